"""`qwen3 eval contamination`: which items of a suite stand in a corpus. The work is in `evaluate.contamination`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from time import monotonic

from qwen3.checkpoint.journal import write_atomic
from qwen3.cli.console import note, out, out_json, table
from qwen3.errors import UsageError
from qwen3.evaluate.contamination import by_grade, grades, overlap
from qwen3.evaluate.runs.record import HEAD, read_run
from qwen3.evaluate.suites import suite_named
from qwen3.train.corpus.readers import read

_SHOWN = 20
_EVERY = 10.0  # seconds between words of progress


def check(words: Sequence[str], data: str | None, as_json: bool, file: Path | None = None) -> int:
    """words: a suite, then corpora (files, folders, patterns, FILE#FIELD as `qwen3.train` reads them) and folders of
    its runs, whose accuracy is then split by what was found. data: the suite's. file: gets the JSON."""
    suite = suite_named(words[0]) if words else None
    runs = [read_run(word) for word in words[1:] if (Path(word) / HEAD).is_file()]
    corpora = [word for word in words[1:] if not (Path(word) / HEAD).is_file()]
    if suite is None or not corpora:
        raise UsageError("say which suite and which corpus: qwen3 eval contamination SUITE FILE_OR_FOLDER…")
    for run in runs:
        if run.head["suite"] != suite.name:
            raise UsageError(f"a run is of {run.head['suite']}, not of {suite.name}")
    items = suite.load(data)
    found = overlap(items, _documents(corpora))
    counts = grades(found)
    listed = sorted((entry for entry in found if entry.longest), key=lambda entry: (-entry.share, -entry.longest))
    parts = [by_grade(found, run.samples) for run in runs]
    result = {
        "suite": suite.name,
        "corpus": corpora,
        "items": len(items),
        "grades": counts,
        "found": [{**asdict(entry), "grade": entry.grade} for entry in listed],
        "runs": [[asdict(part) for part in one] for one in parts],
    }
    if file is not None:
        write_atomic(file, [json.dumps(result, ensure_ascii=False, indent=1).encode() + b"\n"])
    if as_json:
        out_json(result)
        return 0
    if listed:
        rows = [[e.id, e.grade, str(e.longest), f"{e.share:.0%}", str(e.documents), e.where] for e in listed[:_SHOWN]]
        out(table(rows, ["item", "grade", "longest run", "of its words", "documents", "most of it in"]))
        if len(listed) > _SHOWN:
            out(f"… and {len(listed) - _SHOWN:,} more (--json, --out FILE)")
    out(f"{suite.name}: of {len(items):,} items " + ", ".join(f"{n:,} {grade}" for grade, n in counts.items()))
    for one in parts:
        shown = [[p.name, str(p.items), _number(p.percent), _ends(p.interval)] for p in one if p.items]
        out(table(shown, ["items that are", "count", "right, %", "95 % interval"]))
    return 0


def _documents(corpora: Sequence[str]) -> Iterator[tuple[str, str]]:
    count, letters, last = 0, 0, monotonic()
    for spec in corpora:
        path, _, field = spec.partition("#")
        for document in read(path, field=field or "text"):
            yield document.id, document.text
            count, letters = count + 1, letters + len(document.text)
            if monotonic() - last > _EVERY:
                last = monotonic()
                note(f"{count:,} documents, {letters / 1e6:,.0f} million characters")
    note(f"{count:,} documents, {letters / 1e6:,.1f} million characters")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _ends(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"
