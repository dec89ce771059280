"""`qwen3 eval claims`: the published claims, and what runs say of them. The work is in `qwen3.evaluate.claims`."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qwen3.cli.console import note, out, out_json
from qwen3.errors import UsageError
from qwen3.evaluate.claims import CONTRADICTED, NOT_TESTED, SUPPORTED, UNDECIDED, Claim, Verdict, judge, runs_in
from qwen3.evaluate.claims import claims as all_claims
from qwen3.evaluate.runs.record import Run

USUAL = Path("evals")
"""Where `qwen3 eval` puts runs."""
WIDTH = 110
_MARKS = {SUPPORTED: "+", CONTRADICTED: "-", UNDECIDED: "?"}


def claims(words: list[str], as_json: bool, runs: Path | None = None) -> int:
    """Prints all claims, or those whose numbers are among `words`, in full; other words are folders of runs, and so is
    `runs`. None: USUAL, if it is there."""
    known = {str(claim.number): claim for claim in all_claims()}
    chosen = [known[word] for word in words if word in known]
    folders = [Path(word) for word in words if word not in known] + ([runs] if runs else [])
    if wrong := [str(folder) for folder in folders if str(folder).isdecimal() and not folder.exists()]:
        raise UsageError(f"there is no claim {wrong[0]}; they are numbered 1 to {len(known)}")
    if not folders and USUAL.is_dir():
        folders = [USUAL]
    found = [run for folder in folders for run in runs_in(folder)]
    note(f"{len(found)} runs in {', '.join(map(str, folders)) or 'no folder'}")
    judged = [(claim, *judge(claim, found)) for claim in chosen or known.values()]
    if as_json:
        out_json({"runs": [_about(run) for run in found], "claims": [_json(*one) for one in judged]})
    elif chosen:
        out("\n\n".join(_full(*one) for one in judged))
    else:
        _table(judged)
    return 0


Judged = tuple[Claim, Verdict, list[tuple[str, Verdict]]]


def _about(run: Run) -> dict[str, Any]:
    return {key: run.head.get(key) for key in ("suite", "model", "mode", "budget", "samples", "date")}


def _json(claim: Claim, verdict: Verdict, parts: list[tuple[str, Verdict]]) -> dict[str, Any]:
    return {**asdict(claim), "verdict": asdict(verdict), "parts": [{"label": n, **asdict(v)} for n, v in parts]}


def _table(judged: list[Judged]) -> None:
    for claim, verdict, parts in judged:
        out(f"{claim.number:>2}  {verdict.word.upper():<13} {_wrapped(claim.claim)}")
        tested = [part for _, part in parts if part.word != NOT_TESTED]
        for line in [f"{_MARKS[part.word]} {part.detail}" for part in tested] or [verdict.detail]:
            out(f"{'':18}{_wrapped(line, 20)}")
    counts: dict[str, int] = {}
    for _, verdict, _ in judged:
        counts[verdict.word] = counts.get(verdict.word, 0) + 1
    out("\n" + ", ".join(f"{count} {word}" for word, count in sorted(counts.items(), key=lambda pair: -pair[1])))
    out("qwen3 eval claims NUMBER shows one in full, with the commands of the runs that are missing.")


def _full(claim: Claim, verdict: Verdict, parts: list[tuple[str, Verdict]]) -> str:
    lines = [
        f"{claim.number}  {claim.claim}",
        f"claimed by  {', '.join(claim.articles.split())}",
        f"report      {_wrapped(claim.report, 12)}",
        f"criterion   {_wrapped(claim.criterion, 12)}",
        f"verdict     {verdict.word}" + (f": {_wrapped(verdict.detail, 12)}" if len(parts) < 2 else ""),
    ]
    if len(parts) > 1:
        lines += [f"  {label}: {part.word}. {_wrapped(part.detail, 4)}" for label, part in parts]
    if verdict.commands:
        lines += ["runs that are missing:", *(f"  {command}" for command in verdict.commands)]
    return "\n".join(lines)


def _wrapped(text: str, indent: int = 18) -> str:
    return textwrap.fill(text, WIDTH - indent, break_on_hyphens=False).replace("\n", "\n" + " " * indent)
