"""A corpus from raw texts: nothing is dropped without a count, and a run that was killed ends in the same bytes."""

from __future__ import annotations

import dataclasses
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen3.checkpoint import journal
from qwen3.errors import UsageError
from qwen3.tokenizer import Tokenizer
from qwen3.train import parts
from qwen3.train.corpus import pipeline, shards, work
from qwen3.train.corpus.documents import Document
from qwen3.train.corpus.filters.gopher import Gopher
from qwen3.train.corpus.pipeline import Corpus
from qwen3.train.corpus.shards import Shards
from qwen3.train.recipe import Recipe, described, override
from qwen3.train.start import train

WORDS = [
    f"{a}{b}" for a in ("the", "and", "of", "river", "moon", "stone", "grain") for b in ("", "s", "ly", "ing", "er")
]
SECRET = "Which of these nine islands in the southern sea did the old captain never once visit by boat?"


def text(rng: random.Random, count: int = 90) -> str:
    words = rng.choices(WORDS, k=count)
    return "\n".join(" ".join([*words[i : i + 15]]) + "." for i in range(0, count, 15))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("source"), random.Random(0)
    texts = [text(rng) for _ in range(40)]
    texts[7] = texts[3]  # an exact duplicate
    texts[9] = texts[4].replace("moon", "moon", 1) + " And a few more words."  # a near one
    texts[11] += f"\n{SECRET}"
    texts[13] = "Too short."
    texts[15] = "\u200b\r\n"
    texts[17] += "\r\nMail to somebody@acme.com about it."
    licence = "This paragraph is a licence which stands in more than one of the documents."
    texts[21], texts[23] = f"{texts[21]}\n\n{licence}", f"{texts[23]}\n\n{licence}"
    rows = [json.dumps({"text": text, "id": f"r{i}"}) for i, text in enumerate(texts)]
    rows[5] = '{"text": '
    (folder / "rows.jsonl").write_text("\n".join(rows))
    (folder / "module.py").write_text('"""A module."""\n\nimport os\n\n\ndef name():\n    return os.name\n')
    (folder / "set.jsonl").write_text(json.dumps({"question": SECRET, "id": "islands"}))
    return folder


def stage(source: Path, **keys: Any) -> Corpus:
    given = {
        "sources": (f"{source}/rows.jsonl", f"{source}/*.py"), "bad_rows": "skip", "paragraphs": True,
        "against": (f"{source}/set.jsonl#question",), "part_bytes": 3000, "shard_tokens": 3000,
        "filters": ("sanity", "gopher", "private", "code"), "workers": 1,
    }  # fmt: skip
    return Corpus(**given | keys)


@pytest.fixture(scope="module")
def small(source: Path) -> Path:
    Tokenizer.from_pretrained().prefix(512).save(source / "tokenizer")
    return source / "tokenizer"


def make(out: Path, made: Corpus, small: Path, say: Callable[[str], None] | None = None) -> dict[str, Any]:
    return train(Recipe("corpus", None, (made,), out=str(out), tokenizer=str(small)), say or (lambda line: None))


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "corpus").iterdir())}


@pytest.fixture(scope="module")
def whole(source: Path, small: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out, lines = tmp_path_factory.mktemp("whole") / "out", []
    found = make(out, stage(source), small, lines.append)
    assert found["finished"]
    assert found["model"] is None
    return out, "\n".join(lines)


def test_what_is_dropped_is_counted_and_the_rest_is_there(whole: tuple[Path, str], source: Path, small: Path) -> None:
    out, told = whole
    stats = json.loads((out / "corpus" / "stats.json").read_text())
    dropped = {
        (step, reason): found["samples"]
        for step, about in stats["steps"].items()
        for reason, found in about["dropped"].items()
    }
    assert [key for key in dropped if key[0] != "read"] == [
        ("clean", "empty"), ("gopher", "too few words"), ("exact", "is there already"), ("near", "is like one before"),
        ("decontaminate", "holds " + f"{source}/set.jsonl#question"),
    ]  # fmt: skip
    assert dropped["read", "bad row"][0].startswith("rows.jsonl:6: not JSON")
    assert dropped["clean", "empty"] == ["r15"]
    assert dropped["exact", "is there already"] == ["r7"]
    assert dropped["near", "is like one before"] == ["r9 ~ r4"]
    steps, left = stats["steps"], stats["documents"]
    for name, about in steps.items():  # what a step gave, the next one takes
        assert about["documents"] == left, name
        left -= sum(found["documents"] for found in about["dropped"].values())
    assert steps["private"]["changed"] == 1
    assert steps["paragraphs"]["changed"] == 1
    hit = json.loads((out / "corpus" / "contamination.jsonl").read_text())
    assert (hit["document"], hit["item"], hit["by"]) == ("r11", "islands", "words")
    tokenizer = Tokenizer.from_pretrained(small)
    found = Shards(out / "corpus", tokenizer)
    found.verify()
    assert len(found) == left == 41 - 6
    texts = [tokenizer.decode(ids.tolist()) for ids in found]
    assert all(text.endswith("<|endoftext|>") for text in texts)
    assert sum("more than one of the documents" in text for text in texts) == 1
    assert any("name@example.com" in text for text in texts)
    assert "import os" in texts[-1]
    assert f"{len(found):,} documents" in told
    assert "too few words" in told
    assert not (out / "corpus.parts").exists()


class KilledError(BaseException):
    pass


def test_a_run_killed_at_any_write_ends_in_the_same_bytes(
    source: Path, small: Path, whole: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = 0

    def dying(path: Path, given: Any) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise KilledError
        return journal.write_atomic(path, given)

    for module in (work, shards, pipeline, parts):
        monkeypatch.setattr(module, "write_atomic", dying)
    for killed in range(60):
        left = killed
        try:
            assert make(tmp_path, stage(source), small)["finished"]
        except KilledError:
            continue
        break
    assert killed > 8
    assert content(tmp_path) == content(whole[0])


def test_worker_processes_make_the_same_bytes(
    source: Path, small: Path, whole: tuple[Path, str], tmp_path: Path
) -> None:
    make(tmp_path, stage(source, workers=2), small)
    assert content(tmp_path) == content(whole[0])


@pytest.mark.slow
def test_a_process_killed_by_the_system(source: Path, small: Path, whole: tuple[Path, str], tmp_path: Path) -> None:
    made = stage(source, workers=2)
    names = ("sources", "bad_rows", "paragraphs", "against", "part_bytes", "shard_tokens", "filters", "workers")
    given = {name: getattr(made, name) for name in names}
    words = [f"{name}={','.join(v) if isinstance(v, tuple) else v}" for name, v in given.items()]
    command = [sys.executable, "-m", "qwen3.train", "corpus", *words, f"out={tmp_path}", f"tokenizer={small}"]
    for seconds in (4, 5, 6, 7):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
    subprocess.run(command, check=True, capture_output=True)
    assert content(tmp_path) == content(whole[0])


def test_time_that_is_up_ends_a_run_that_goes_on_later(
    source: Path, small: Path, whole: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe("corpus", None, (stage(source),), str(tmp_path), tokenizer=str(small), max_minutes=1e-9)
    assert train(recipe, lambda line: None)["finished"] is False
    assert train(dataclasses.replace(recipe, max_minutes=None), lambda line: None)["finished"] is True
    assert content(tmp_path) == content(whole[0])


def test_an_unfinished_run_keeps_its_keys(source: Path, small: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not JSON"):  # behind the first part
        make(tmp_path, stage(source, bad_rows="stop", part_bytes=600), small)
    with pytest.raises(UsageError, match="near="):
        make(tmp_path, stage(source, near=0.5, part_bytes=600), small)
    with pytest.raises(UsageError, match="filters="):
        make(tmp_path, stage(source, gopher=Gopher(min_words=1), part_bytes=600), small)
    assert make(tmp_path, stage(source, part_bytes=600), small)["finished"]  # what was wrong may be skipped now


def test_a_run_without_a_part_is_begun_anew(source: Path, small: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no text in the field 'txt'"):
        make(tmp_path, stage(source, bad_rows="stop", field="txt", sources=(f"{source}/set.jsonl",)), small)
    make(tmp_path, stage(source, field="question", sources=(f"{source}/set.jsonl",), filters=(), against=()), small)


@dataclasses.dataclass(frozen=True)
class Capitals:
    name: str = "capitals"

    def __call__(self, document: Document) -> Document | str:
        return dataclasses.replace(document, text=document.text.upper())


def test_filters_of_ones_own(source: Path, small: Path, tmp_path: Path) -> None:
    made = stage(
        source, own=(Capitals(),), filters=(), near=None, exact=False, against=(), paragraphs=False, vocabulary=2048
    )
    train(Recipe("corpus", None, (made,), str(tmp_path), tokenizer="embedded"), lambda line: None)
    tokenizer = Tokenizer.from_pretrained().prefix(1792)  # 2,048 ids: 7 · 256 and control tokens
    assert "IMPORT OS" in tokenizer.decode(Shards(tmp_path / "corpus", tokenizer)[-1].tolist())


def test_keys_on_the_command_line() -> None:
    recipe = override(
        pipeline.recipe(),
        ["sources=a,b.jsonl", "gopher.min_words=7", "filters=language,c4", "near=none", "language.keep=de,en"],
    )
    (made,) = recipe.stages
    assert made.gopher.min_words == 7
    assert made.near is None
    assert [judge.name for judge in made.judges] == ["language", "c4"]
    assert made.language.keep == ("de", "en")
    assert "corpus.gopher.min_words" in described(recipe)
    for word, wanted in (("filters=x", "x is none of"), ("near=2", "threshold"), ("workers=0", "workers must be")):
        with pytest.raises(UsageError, match=wanted):
            override(pipeline.recipe(), [word])


def test_sources_that_give_nothing(source: Path, small: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sources is missing"):
        make(tmp_path / "a", stage(source, sources=()), small)
    with pytest.raises(UsageError, match="every document was dropped"):
        make(tmp_path / "b", stage(source, gopher=Gopher(min_words=10_000), sources=(f"{source}/rows.jsonl",)), small)
    with pytest.raises(UsageError, match=r"rows\.jsonl:6: not JSON"):
        make(tmp_path / "c", stage(source, bad_rows="stop"), small)
