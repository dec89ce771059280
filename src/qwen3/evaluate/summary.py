"""What a run comes to: the figure with its errors, outcomes, groups, tokens, cost, and what speaks against quoting it.

Made of a run's head and samples alone, so that it can be made again of any folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qwen3.errors import UsageError
from qwen3.evaluate.cost import costs
from qwen3.evaluate.runs.record import Run, model_name
from qwen3.evaluate.statistics import Sample, accuracy, by_item, grouped, majority, mean_interval, pass_at, score
from qwen3.evaluate.types import OUTCOMES

MOST_FAILED, MOST_TRUNCATED = 0.01, 0.02
"""Shares of samples above which a run is not to be quoted, or is one of its length limit, too."""
_BINS = 20


def summarise(run: Run, seed: int = 0) -> dict[str, Any]:
    """One object of plain JSON. Shares are in percent.

    head: the run's. accuracy: `statistics.accuracy` of all samples but those that failed (truncated, empty and
    unparsed ones count as wrong); finished: the same of samples that were judged (None: none was). outcomes: {class:
    {count, percent}} of all samples. missing: samples that were asked for and are not there. quotable: nothing is
    missing, next to nothing failed or was cut; cautions: what is to be said with the figure. parts: means of the
    scores' parts. pass_at: {k:
    {percent, interval}}, for scores that are 0 or 1, at samples that every item has; majority: the same of the answer
    most samples gave, None where answers have no short form. groups: [{key, value, …accuracy}]. tokens: {kind: {mean,
    p50, p95, max, unknown, histogram: [[edge, count]…]}}. seconds: the same of a sample's wall time. cost:
    `cost.costs`. references: published values of this model and mode, each with `inside` the interval or not. Raises
    UsageError where every sample failed, or none is there.
    """
    head, samples = run.head, run.samples
    values = by_item(samples, score)
    if not values:
        raise UsageError(f"{head.get('suite')}: no sample of this run was answered; there is nothing to sum up")
    counts = Counter(sample["score"]["outcome"] for sample in samples)
    whole = accuracy(list(values.values()))
    judged = by_item(
        samples, lambda sample: score(sample) if sample["score"]["outcome"] in ("right", "wrong") else None
    )
    about = {str(sample["item"]): sample.get("about") or {} for sample in samples}
    groups = grouped({item: about[item] for item in values})
    cautions, quotable = _cautions(head, samples, counts, whole, len(groups))
    return {
        "suite": head.get("suite"),
        "model": head.get("model"),
        "mode": head.get("mode"),
        "budget": head.get("budget"),
        "head": head,
        "percent": whole["percent"],
        "interval": whole["interval"],
        "accuracy": whole,
        "finished": accuracy(list(judged.values())) if judged else None,
        "outcomes": {name: {"count": counts[name], "percent": 100 * counts[name] / len(samples)} for name in OUTCOMES},
        "missing": max(0, _wanted(head) - len(samples)),
        "quotable": quotable,
        "cautions": cautions,
        "parts": _parts(samples),
        "pass_at": _pass_at(values),
        "majority": _majority(samples),
        "groups": [
            {"key": key, "value": value, **accuracy([values[item] for item in items])} for key, value, items in groups
        ],
        "tokens": {
            kind: found
            for kind in ("prompt", "thinking", "answer")
            if (found := _spread([sample["answer"].get(f"{kind}_tokens") for sample in samples]))
        },
        "seconds": _spread([sample["answer"].get("seconds") for sample in samples]),
        "cost": costs(head, samples, seed),
        "references": _references(head, whole["interval"]),
    }


def _wanted(head: Mapping[str, Any]) -> int:
    return int((head.get("items") or {}).get("count") or 0) * int(head.get("samples") or 0)


def _cautions(
    head: Mapping[str, Any], samples: Sequence[Sample], counts: Counter[str], whole: Mapping[str, Any], groups: int
) -> tuple[list[str], bool]:
    """What a reader must know, the worst first, and whether the figure may be quoted."""
    out: list[str] = []
    total = len(samples)
    failed, cut = counts["failed"] / total, counts["truncated"] / total
    missing = _wanted(head) - total
    if missing > 0:
        out.append(f"not finished: {missing:,} of {total + missing:,} samples are missing")
    if failed:
        names = list(dict.fromkeys(str(s["item"]) for s in samples if s["score"]["outcome"] == "failed"))
        told = ", ".join(names[:10]) + (f" and {len(names) - 10:,} more" if len(names) > 10 else "")
        out.append(f"{counts['failed']:,} of {total:,} samples failed and are in no figure; items: {told}")
    if cut > MOST_TRUNCATED:
        limit = (head.get("sampling") or {}).get("max_tokens")
        out.append(
            f"TRUNCATED: {cut:.1%} of the samples were cut by the length limit ({limit} tokens) and count as wrong"
        )
    if counts["unparsed"] / total > MOST_TRUNCATED:
        out.append(f"in {counts['unparsed'] / total:.1%} of the samples no answer could be read; they count as wrong")
    if head.get("limit") is not None:
        out.append(f"a subset of the suite: --limit {head['limit']}")
    if whole["items"] < 30:
        out.append(f"{whole['items']} items: intervals of so few are rough, and cover less than 95 % where most agree")
    points = whole["detectable"]["unpaired"]
    out.append(f"with {whole['items']:,} items, runs on other items show differences from {points:.1f} points on "
               "(80 % power)")  # fmt: skip
    if groups > 1:
        out.append(f"{groups} groups are shown: {0.05 * groups:.1f} of their intervals are expected to miss by chance")
    return out, missing <= 0 and failed <= MOST_FAILED and cut <= MOST_TRUNCATED


def _parts(samples: Sequence[Sample]) -> dict[str, float]:
    """Means over the samples that have a part, in percent."""
    found: dict[str, list[float]] = {}
    for sample in samples:
        for name, value in (sample["score"].get("parts") or {}).items():
            found.setdefault(name, []).append(value)
    return {name: 100 * float(np.mean(values)) for name, values in found.items()}


def _pass_at(values: Mapping[str, Any]) -> dict[str, Any]:
    every = list(values.values())
    least = min(len(one) for one in every)
    if least < 2 or not all(np.isin(one, (0.0, 1.0)).all() for one in every):
        return {}
    sizes = [2**power for power in range(least.bit_length())]
    sizes += [] if sizes[-1] == least else [least]
    return {str(k): _mean([pass_at(int(one.sum()), len(one), k) for one in every]) for k in sizes}


def _majority(samples: Sequence[Sample]) -> dict[str, Any] | None:
    votes: dict[str, list[tuple[str | None, float]]] = {}
    for sample in samples:
        if (value := score(sample)) is not None:
            votes.setdefault(str(sample["item"]), []).append((sample["score"].get("extracted"), value))
    most = max(len(one) for one in votes.values())
    if most < 2 or not any(answer is not None for one in votes.values() for answer, _ in one):
        return None
    return {"samples": most, **_mean([majority(one) for one in votes.values()])}


def _mean(of_items: Sequence[float]) -> dict[str, Any]:
    low, high, _ = mean_interval(np.array(of_items))
    return {"percent": 100 * float(np.mean(of_items)), "interval": [100 * low, 100 * high]}


def _spread(counts: Sequence[float | None]) -> dict[str, Any] | None:
    known = np.array([count for count in counts if count is not None], dtype=np.float64)
    if not len(known):
        return None
    heights, edges = np.histogram(known, _BINS)
    return {
        "mean": float(known.mean()),
        "p50": float(np.quantile(known, 0.5)),
        "p95": float(np.quantile(known, 0.95)),
        "max": float(known.max()),
        "unknown": len(counts) - len(known),
        "histogram": [[float(edge), int(height)] for edge, height in zip(edges[:-1], heights, strict=True)],
    }


def _references(head: Mapping[str, Any], interval: Sequence[float]) -> list[dict[str, Any]]:
    """Published values of the suite for this model and mode; nothing for a suite that is not ours, and for thinking
    that is cut."""
    from qwen3.evaluate.suites import suites

    if head.get("budget") is not None:
        return []
    suite = suites().get(str(head.get("suite")))
    model = model_name(str(head.get("model")))
    return [
        {"value": one.value, "source": one.source, "inside": interval[0] <= one.value <= interval[1]}
        for one in (suite.references if suite else ())
        if model_name(one.model) == model and one.mode == head.get("mode")
    ]
