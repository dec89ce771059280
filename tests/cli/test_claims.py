"""`qwen3 eval claims` and `qwen3 eval contamination`, as their functions print them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwen3.cli.claims import claims
from qwen3.cli.contamination import check
from qwen3.errors import Qwen3Error, UsageError


def test_all_claims_with_their_verdicts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
                                        tmp_path: Path) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert claims([], False) == 0
    shown = capsys.readouterr()
    numbers = [line.split()[0] for line in shown.out.splitlines() if line[:2].strip().isdecimal() and line[2:4] == "  "]
    assert numbers == [str(n) for n in range(1, 32)]
    assert "16  SUPPORTED" in shown.out
    assert "0 runs in no folder" in shown.err
    assert max(map(len, shown.out.splitlines())) <= 120


def test_one_claim_in_full_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert claims(["5"], False) == 0
    assert "  qwen3 eval gpqa --model Qwen/Qwen3-4B --think --samples 10\n" in capsys.readouterr().out
    assert claims(["17", "1"], True) == 0
    found = json.loads(capsys.readouterr().out)["claims"]
    assert [(one["number"], one["verdict"]["word"]) for one in found] == [(17, "in part"), (1, "not tested")]
    assert len(found[0]["parts"]) == 2


def test_wrong_words_are_told(tmp_path: Path) -> None:
    for words, message in ((["32"], "numbered 1 to 31"), ([str(tmp_path / "none")], "no such folder")):
        with pytest.raises(UsageError, match=message):
            claims(words, False)


QUESTION = "A train of {} waggons leaves at noon and meets another one that left an hour later: where do they meet?"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    wrong = {f"Incorrect Answer {i}": f"w{i}" for i in (1, 2, 3)}
    asked = [QUESTION.format(n) * (n % 2) + f" Which of these is of the kind {n} {n} {n}?" for n in range(4)]
    rows = [{"Question": question, "Correct Answer": "r", **wrong} for question in asked]
    (tmp_path / "gpqa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("Riddles. " + QUESTION.format(3).upper())
    (tmp_path / "corpus" / "b.jsonl").write_text(json.dumps({"text": "nothing of the kind"}) + "\n")
    return tmp_path


def test_items_that_stand_in_a_corpus(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["gpqa", str(data / "corpus")]
    assert check(words, str(data / "gpqa.jsonl"), False, data / "found.json") == 0
    shown = capsys.readouterr()
    assert "of 4 items" in shown.out
    assert "2 documents" in shown.err
    assert check(words, str(data / "gpqa.jsonl"), True) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((data / "found.json").read_text())
    assert sum(found["grades"].values()) == found["items"] == 4
    assert found["found"][0]["where"] == "a.txt"


def test_a_run_is_split_by_what_was_found(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from qwen3.evaluate.suites.gpqa import load

    folder = data / "run"
    folder.mkdir()
    items = load(str(data / "gpqa.jsonl"))
    (folder / "run.json").write_text(json.dumps({"format": 1, "suite": "gpqa"}))
    scores = [{"value": float(n == 3), "outcome": "right"} for n in range(4)]
    lines = [
        {"item": item.id, "sample": 0, "about": {}, "answer": {}, "score": score}
        for item, score in zip(items, scores, strict=True)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert check(["gpqa", str(data / "corpus"), str(folder)], str(data / "gpqa.jsonl"), True) == 0
    parts = {part["name"]: part for part in json.loads(capsys.readouterr().out)["runs"][0]}
    assert sum(part["items"] for part in parts.values()) == 4
    (folder / "run.json").write_text(json.dumps({"format": 1, "suite": "math500"}))
    with pytest.raises(UsageError, match="a run is of math500, not of gpqa"):
        check(["gpqa", str(data / "corpus"), str(folder)], str(data / "gpqa.jsonl"), False)


def test_what_is_missing_is_told(data: Path) -> None:
    for words in ([], ["gpqa"]):
        with pytest.raises(UsageError, match="which suite and which corpus"):
            check(words, None, False)
    with pytest.raises(Qwen3Error, match="no such file"):
        check(["gpqa", str(data / "none")], str(data / "gpqa.jsonl"), False)
