"""Suites of mathematics: from files in the layout their data sets are published in to scored items."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen3.errors import UsageError
from qwen3.evaluate.score.math import ASK
from qwen3.evaluate.suites import aime, gsm8k, math500, mt_aime, polymath
from qwen3.evaluate.types import Answer, Suite, score_answer

AIME = {suite.name: suite for suite in aime.SUITES}


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading needs no math-verify, and numbers are compared without it: only whether it is there is asked."""
    for module in (aime, gsm8k, math500, mt_aime, polymath):
        monkeypatch.setattr(module, "need", lambda: None)


def put(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def right(suite: Suite, item: Any, text: str) -> bool:
    return score_answer(suite, item, Answer(text)).outcome == "right"


def test_math500(tmp_path: Path) -> None:
    row = {"problem": "What is $1/2$?", "solution": "…", "answer": r"\frac{1}{2}", "subject": "Algebra", "level": 2}
    item, other = math500.load(put(tmp_path / "test.jsonl", [row | {"unique_id": "test/algebra/1.json"}, row]))
    assert (item.id, other.id, item.about) == ("test/algebra/1.json", "1", {"subject": "Algebra", "level": 2})
    assert item.messages == ({"role": "user", "content": f"What is $1/2$?\n\n{ASK}"},)
    assert right(math500.SUITE, item, r"So \boxed{0.5}.")
    assert not right(math500.SUITE, item, r"So \boxed{0.6}.")


def test_gsm8k(tmp_path: Path) -> None:
    file = put(tmp_path / "test.jsonl", [{"question": "How many?", "answer": "2*617=<<2*617=1234>>1234\n#### 1,234"}])
    (item,) = gsm8k.load(file)
    assert item.gold == 1234
    assert right(gsm8k.SUITE, item, "It costs **$1,234.00** in all.")
    with pytest.raises(UsageError, match="row 1 has no ####"):
        gsm8k.load(put(tmp_path / "bad.jsonl", [{"question": "How many?", "answer": "12"}]))


@pytest.mark.parametrize(
    "row",
    [
        {"id": 60, "problem": "Find it.", "answer": "033", "year": "2024"},
        {"ID": "2024-I-1", "Problem": "Find it.", "Answer": 33},
        {"id": "1", "problem": "Find it.", "solution": r"\boxed{33}"},
        {"question": "Find it.", "answer": "33"},
    ],
)
def test_aime_in_the_columns_of_its_data_sets(tmp_path: Path, row: dict[str, Any]) -> None:
    suite = AIME["aime24"]
    (item,) = suite.load(put(tmp_path / "a.jsonl", [row]))
    assert item.gold == 33
    assert item.id.startswith("2024/")
    assert right(suite, item, r"\boxed{033}")
    assert not right(suite, item, r"\boxed{330}")


def test_aime_takes_its_year_alone_and_64_samples(tmp_path: Path) -> None:
    rows = [{"id": str(year), "problem": "Find it.", "answer": 5, "year": year} for year in (2023, 2024, 2025)]
    file = put(tmp_path / "a.jsonl", rows)
    assert [[item.id for item in suite.load(file)] for suite in aime.SUITES] == [["2024/2024"], ["2025/2025"]]
    for suite in aime.SUITES:
        assert (suite.sampling.samples, suite.sampling.max_tokens) == (64, 38912)
        assert len(suite.references) == 16


def test_mt_aime_has_an_item_for_each_language(tmp_path: Path) -> None:
    row = {"English": "Find it.", "Korean": "구하시오.", "answer": "204"}
    items = mt_aime.load(put(tmp_path / "mt-aime2024.jsonl", [row, row]))
    assert [item.id for item in items] == ["English/0", "Korean/0", "English/1", "Korean/1"]
    assert items[1].about == {"language": "Korean", "problem": 0}
    assert right(mt_aime.SUITE, items[1], "따라서 답은 $\\boxed{204}$")
    with pytest.raises(UsageError, match="row 1 is not one text per language"):
        mt_aime.load(put(tmp_path / "bad.jsonl", [{"English": "", "answer": "3"}]))


def test_polymath_asks_in_its_language(tmp_path: Path) -> None:
    for place in ("en/low", "zh/top"):
        put(tmp_path / f"{place}.jsonl", [{"id": place.replace("/", "-"), "question": "Q?", "answer": "$12$"}])
    one, other = polymath.load(str(tmp_path))
    assert (one.id, one.about) == ("en/en-low", {"language": "en", "level": "low"})
    assert other.about["level"] == "top"
    assert one.messages[0]["content"] == "Q?\n\nNote: Please put the final answer in the $\\boxed\\{\\}$."
    assert other.messages[0]["content"].startswith("Q?\n\n注意")
    assert right(polymath.SUITE, one, r"$\boxed{12}$")
    assert right(polymath.SUITE, other, "答案是 12。")
    with pytest.raises(UsageError, match=r"xx/low.jsonl is not LANGUAGE/LEVEL"):
        polymath.load(
            str(Path(put(tmp_path / "more" / "xx" / "low.jsonl", [{"question": "Q", "answer": "1"}])).parents[1])
        )


def test_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no column 'problem'"):
        math500.load(put(tmp_path / "a.jsonl", [{"text": "What?"}]))
    with pytest.raises(UsageError, match="row 1: the answer 'x' is no whole number"):
        AIME["aime25"].load(put(tmp_path / "b.jsonl", [{"problem": "Find it.", "answer": "x"}]))
    with pytest.raises(UsageError, match="hf download --repo-type dataset openai/gsm8k"):
        gsm8k.load(str(tmp_path / "nowhere"))
