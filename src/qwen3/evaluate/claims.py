"""What the announcements of Qwen3 claim, what it takes to test each claim, and what the runs that are there say.

`data/claims.json` holds the claims. A claim's tests each make a statement about a number d (a difference in points, a
ratio, a share) and a region of it; from the runs comes a 95 % interval of d. The statement is supported where the
interval lies within the region, contradicted where it lies outside, undecided where it holds both: then it is told how
much more of the same would decide it if d stays where it is. Claims on configurations and memory are settled without
runs (`claims_settled`).

Where the same items are asked as for the published value, the choice of the items is no error: sampling noise of both
sides counts (theirs is taken to be as ours). Where two runs are compared, items are drawn again, pairs kept together.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from qwen3.errors import UsageError
from qwen3.evaluate.claims_settled import SETTLED
from qwen3.evaluate.contamination import by_date
from qwen3.evaluate.paired import bootstrap, share
from qwen3.evaluate.runs.record import HEAD, Record, Run, model_name, read_run
from qwen3.family import MODELS
from qwen3.tasks.base import interval

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
PART, NOT_TESTED, NOT_TESTABLE = "in part", "not tested", "not testable"
Z = 1.96
BUDGETS = "256 512 1024 2048 4096 8192 16384 32768"


@dataclass(frozen=True)
class Verdict:
    """word: one of the above. detail: the numbers behind it. commands: of the runs that are missing."""

    word: str
    detail: str
    commands: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """One of the claims. articles: which of the four make it. report: what the Qwen3 report says. settled: the name of
    a function of `claims_settled`. why: it is not testable."""

    number: int
    articles: str
    claim: str
    report: str
    criterion: str
    tests: Sequence[Mapping[str, Any]] = field(default=())
    settled: str | None = None
    why: str | None = None


@cache
def claims() -> tuple[Claim, ...]:
    """All of them, by number."""
    text = (files("qwen3") / "data" / "claims.json").read_text(encoding="utf-8")
    return tuple(Claim(**one) for one in json.loads(text))


def runs_in(folder: Path) -> list[Run]:
    """All runs in a folder, at any depth. Raises UsageError where there is no folder."""
    if not folder.is_dir():
        raise UsageError(f"--runs {folder}: there is no such folder")
    return [read_run(path.parent) for path in sorted(folder.rglob(HEAD))]


def judge(claim: Claim, runs: Sequence[Run]) -> tuple[Verdict, list[tuple[str, Verdict]]]:
    """The verdict on a claim, and those on its parts by their labels."""
    if claim.why:
        return Verdict(NOT_TESTABLE, claim.why), []
    parts = [(test["label"], _tested(test, runs)) for test in claim.tests]
    if claim.settled:
        found = SETTLED[claim.settled]()
        parts += [("arithmetic", Verdict(SUPPORTED if so else CONTRADICTED, text)) for so, text in found]
    words = [verdict.word for _, verdict in parts]
    commands = tuple(dict.fromkeys(command for _, verdict in parts for command in verdict.commands))
    tested = sum(word != NOT_TESTED for word in words)
    if CONTRADICTED in words:  # a claim of several parts falls with one of them
        word = PART if SUPPORTED in words else CONTRADICTED
    else:
        word = next((word for word in (NOT_TESTED, UNDECIDED) if word in words), SUPPORTED)
    detail = parts[0][1].detail if len(parts) == 1 else f"{tested} of {len(parts)} parts tested"
    return Verdict(word, detail, commands), parts


def command(need: Mapping[str, Any]) -> str:
    """The command that makes a run that a test needs."""
    name = need["model"]
    if need.get("api"):
        model = f"--api http://HOST/v1 --api-model {name}"
    else:
        model = f"--model {name if name == 'embedded' or name.endswith('.gguf') else f'Qwen/{name}'}"
    data = f" --data {need['data']}" if need.get("data") else ""
    how = {"budget": " --budget $N", "default": "", "no-think": " --no-think --presence-penalty 1.5"}.get(
        need["mode"], f" --{need['mode']}"
    )
    line = f"qwen3 eval {need['suite']}{data} {model}{how} --samples {need['samples']}"
    return f"for N in {BUDGETS}; do {line}; done" if need["mode"] == "budget" else line


def _fits(run: Run, need: Mapping[str, Any]) -> bool:
    head = run.head
    mode = "budget" if head.get("budget") is not None else head.get("mode")
    same = head.get("suite") == need["suite"] and model_name(str(head.get("model"))) == model_name(need["model"])
    return same and mode == need["mode"] and bool(run.samples)


def _samples(run: Run, where: Mapping[str, Any] | None) -> list[Record]:
    """Samples that were answered, of items that are asked for."""
    wanted = (where or {}).items()
    return [
        sample
        for sample in run.samples
        if sample["score"]["outcome"] != "failed" and all(sample["about"].get(key) == value for key, value in wanted)
    ]


Columns = dict[str, list[Record]]


def _by_item(samples: Sequence[Record]) -> Columns:
    found: Columns = {}
    for sample in samples:
        found.setdefault(sample["item"], []).append(sample)
    return found


def _values(samples: Sequence[Record]) -> list[float]:
    return [100 * sample["score"]["value"] for sample in samples]


def _tokens(samples: Sequence[Record]) -> float:
    """Tokens of an answer, thinking included, in the mean. Raises UsageError where they were not counted."""
    counts = [(s["answer"].get("thinking_tokens"), s["answer"].get("answer_tokens")) for s in samples]
    if any(answer is None for _, answer in counts):
        raise UsageError("tokens were not counted in one of the runs")
    return statistics.fmean((thinking or 0) + answer for thinking, answer in counts)


def _tested(test: Mapping[str, Any], runs: Sequence[Run]) -> Verdict:
    """The verdict on one test: by the largest fitting run for each that it needs."""
    chosen = []
    for need in test["runs"]:
        whole = test["kind"] in ("value", "at_least")  # a published value is of all items: a subset has other ones
        fitting = [run for run in runs if _fits(run, need) and not (whole and run.head.get("limit"))]
        fitting.sort(key=lambda run: len(run.samples))
        chosen.append(fitting if need["mode"] == "budget" else fitting[-1:])
    missing = tuple(command(need) for need, found in zip(test["runs"], chosen, strict=True) if not found)
    if missing:
        return Verdict(NOT_TESTED, f"{len(missing)} of the {len(chosen)} runs it needs are not there", missing)
    where = [test.get("where") or need.get("where") for need in test["runs"]]
    columns = [[_by_item(_samples(run, here)) for run in found] for found, here in zip(chosen, where, strict=True)]
    if not all(column for found in columns for column in found):
        return Verdict(NOT_TESTED, "the run holds no such items", tuple(map(command, test["runs"])))
    if test["kind"] == "rises":
        return _rises(test, sorted(chosen[0], key=lambda run: run.head["budget"]))
    if test["kind"] == "newer_lower":
        return _newer_lower(test, chosen[0][0])
    return _KINDS[test["kind"]](test, [found[0] for found in columns])


def decide(low: float, high: float, least: float, most: float, what: str, unit: str = "items") -> Verdict:
    """Where an interval lies to a region. unit: what more of would make the interval narrower."""
    if least <= low and high <= most:
        return Verdict(SUPPORTED, what)
    if high < least or low > most:
        return Verdict(CONTRADICTED, what)
    middle, half = (low + high) / 2, (high - low) / 2
    away = min(abs(middle - edge) for edge in (least, most) if math.isfinite(edge))
    times = (half / away) ** 2 if away > half / 32 else math.inf
    more = f"about {times:.1f} times the {unit}" if times < 1000 else f"far more {unit} than these"
    return Verdict(UNDECIDED, f"{what}; would take {more}")


def _published(test: Mapping[str, Any], columns: list[Columns]) -> Verdict:
    """A published value on the same items: sampling noise of both sides, item noise of neither."""
    means = [statistics.fmean(_values(samples)) for samples in columns[0].values()]
    counts = [len(samples) for samples in columns[0].values()]
    mean, value = statistics.fmean(means), test["value"]
    shown = f"{mean:.1f} against {value}, {len(means)} items × {min(counts)}"
    if min(counts) < 2:
        # One sample an item tells nothing of its noise: that of a coin of the overall mean is the most it can be.
        variances = [mean * (100 - mean)] * len(means)
    else:
        variances = [statistics.variance(_values(samples)) for samples in columns[0].values()]
    half = Z * math.sqrt(2 * sum(v / k for v, k in zip(variances, counts, strict=True))) / len(means)
    most = test["margin"] if test["kind"] == "value" else math.inf
    what = f"{shown}: {mean - value:+.1f} ± {half:.1f}"
    return decide(mean - value - half, mean - value + half, -test["margin"], most, what, "samples")


def _pairs(columns: list[Columns]) -> list[tuple[list[Record], list[Record]]]:
    a, b = columns
    return [(a[item], b[item]) for item in a if item in b]


def _difference(columns: list[Columns]) -> tuple[str, float, float]:
    """(in words, ends of the interval) of the difference in points on the items that both have."""
    gaps = [statistics.fmean(_values(a)) - statistics.fmean(_values(b)) for a, b in _pairs(columns)]
    if len(gaps) < 2:
        raise UsageError("the runs have fewer than two items in common")
    low, high = bootstrap(lambda drawn: drawn.mean(-1), gaps)
    return f"{statistics.fmean(gaps):+.1f} ({low:+.1f} to {high:+.1f}) points on {len(gaps)} items", low, high


def _not_worse(test: Mapping[str, Any], columns: list[Columns]) -> Verdict:
    what, low, high = _difference(columns)
    return decide(low, high, -test["margin"], math.inf, what)


def _lower(test: Mapping[str, Any], columns: list[Columns]) -> Verdict:
    what, low, high = _difference(columns)
    return decide(low, high, -math.inf, -test["margin"], what)


def _ratio(test: Mapping[str, Any], above: list[float], below: list[float], what: str) -> Verdict:
    low, high = bootstrap(share, above, below)
    middle = sum(above) / sum(below) if sum(below) else math.inf
    return decide(low, high, test["factor"], math.inf, f"{what} {middle:.1f} times ({low:.1f} to {high:.1f})")


def _more_tokens(test: Mapping[str, Any], columns: list[Columns]) -> Verdict:
    pairs = _pairs(columns)
    return _ratio(test, [_tokens(a) for a, _ in pairs], [_tokens(b) for _, b in pairs], "tokens are")


def _work(test: Mapping[str, Any], columns: list[Columns]) -> Verdict:
    """Tokens times active parameters for each right answer: the second run's over the first's."""
    sizes = [
        given or MODELS[need["model"]].active_params
        for given, need in zip(test["parameters"], test["runs"], strict=True)
    ]
    rows = []
    for small, large in _pairs(columns):
        right = [sum(_values(samples)) / 100 / len(samples) for samples in (small, large)]
        rows.append((_tokens(small) * sizes[0], right[0], _tokens(large) * sizes[1], right[1]))
    found = np.array(rows, dtype=np.float64)

    def ratio(a: Any, right_a: Any, b: Any, right_b: Any) -> Any:
        above, below = b.sum(-1) * right_a.sum(-1), a.sum(-1) * right_b.sum(-1)
        return np.divide(above, below, out=np.full_like(above, np.inf), where=below > 0)

    middle = float(ratio(*found.T[:, None, :])[0])
    low, high = bootstrap(ratio, *found.T)
    what = f"the larger model's work is {middle:.1f} times ({low:.1f} to {high:.1f})"
    return decide(low, high, test["factor"], math.inf, what)


def _switch(test: Mapping[str, Any], columns: list[Columns]) -> Verdict:
    done = [
        [s for found in column.values() for s in found if s["score"]["outcome"] != "truncated"] for column in columns
    ]
    thought = [sum(bool(s["answer"].get("thinking")) for s in found) for found in done]
    obeyed = [thought[0], len(done[1]) - thought[1]]
    verdicts = []
    for name, right, found in zip(("asked to think", "asked not to"), obeyed, done, strict=True):
        low, high = interval(right, len(found))
        # 99 % of few samples cannot be shown: all of them right is then undecided.
        verdicts.append(decide(100 * low, 100 * high, 99, 100, f"{name}: {right} of {len(found)} obeyed"))
    worst = next((w for w in (CONTRADICTED, UNDECIDED) if w in [v.word for v in verdicts]), SUPPORTED)
    return Verdict(worst, "; ".join(verdict.detail for verdict in verdicts))


def _above_chance(test: Mapping[str, Any], columns: list[Columns]) -> Verdict:
    groups: dict[str, list[float]] = {}
    for samples in columns[0].values():
        groups.setdefault(str(samples[0]["about"].get(test["group"])), []).append(statistics.fmean(_values(samples)))
    ends = {name: interval(round(sum(found) / 100), len(found)) for name, found in groups.items()}
    chance = test["chance"] / 100
    below = [name for name, (_, high) in ends.items() if high < chance]
    above = [name for name, (low, _) in ends.items() if low > chance]
    what = f"{len(above)} of {len(ends)} {test['group']}s are above chance"
    if below:
        return Verdict(CONTRADICTED, f"{what}; below it: {', '.join(below)}")
    return Verdict(SUPPORTED if len(above) == len(ends) else UNDECIDED, what)


def _rises(test: Mapping[str, Any], runs: Sequence[Run]) -> Verdict:
    """Accuracy over budgets, on the items of all of them."""
    budgets = {run.head["budget"]: _by_item(_samples(run, None)) for run in runs}
    if len(budgets) < test["points"]:
        missing = (command(test["runs"][0]),)
        return Verdict(NOT_TESTED, f"{len(budgets)} of {test['points']} budgets are there", missing)
    columns = list(budgets.values())
    for (below, a), (budget, b) in zip(budgets.items(), list(budgets.items())[1:], strict=False):
        what, _, high = _difference([b, a])
        if high < 0:
            return Verdict(CONTRADICTED, f"from {below} to {budget} tokens it falls: {what}")
    what, low, high = _difference([columns[-1], columns[0]])
    return decide(low, high, test["margin"], math.inf, f"{len(budgets)} budgets, no fall, first to last {what}")


def _newer_lower(test: Mapping[str, Any], run: Run) -> Verdict:
    old, new = by_date(_samples(run, None), [test["cut"]])
    if old.percent is None or new.percent is None or old.interval is None or new.interval is None:
        return Verdict(NOT_TESTED, f"items lie on one side of {test['cut']} alone")
    half = math.hypot(*((part.interval[1] - part.interval[0]) / 2 for part in (old, new)))  # type: ignore[index]
    gap = new.percent - old.percent
    what = f"{new.percent:.1f} from {test['cut']} on ({new.items} items), {old.percent:.1f} before ({old.items})"
    return decide(gap - half, gap + half, -math.inf, -test["margin"], f"{what}: {gap:+.1f} ± {half:.1f}")


_KINDS: dict[str, Callable[[Mapping[str, Any], list[Columns]], Verdict]] = {
    "value": _published,
    "at_least": _published,
    "not_worse": _not_worse,
    "lower": _lower,
    "tokens": _more_tokens,
    "work": _work,
    "switch": _switch,
    "above_chance": _above_chance,
}
