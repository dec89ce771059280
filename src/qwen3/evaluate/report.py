"""Summaries of runs as one HTML page, for a reader who doubts them: figures with errors, what was asked, and how."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from qwen3.charts import Series, chart
from qwen3.evaluate.cost import front
from qwen3.evaluate.types import OUTCOMES
from qwen3.webpage import PALETTE, bullets, curves, number, preformatted, section, table, webpage

Summary = Mapping[str, Any]
_SHADES = dict(zip(OUTCOMES, ("#2f9e62", "#c04848", "#d9730d", "#8a8a30", "#7a6ad0", "#7f8790"), strict=True))
_UNPRINTED = ("command", "prices", "title", "headline", "groups")  # settings that stand elsewhere, or say nothing


def page(summaries: Sequence[Summary], title: str | None = None) -> str:
    """One HTML document without script or anything from elsewhere. summaries: of `summary.summarise`, one a run."""
    names = [f"{one['head'].get('title') or one['suite']}: {label(one)}" for one in summaries]
    name = title or (names[0] if len(names) == 1 else f"{len(names)} runs: {', '.join(_suites(summaries))}")
    body = [
        f"<h1>{escape(name)}</h1>",
        "".join(_warning(one, many=len(summaries) > 1) for one in summaries),
        section("Figures", table(_HEADER, [_figures(one) for one in summaries]) + _reading()),
        section("Published values", _references(summaries)),
        section("What came back", "".join(_outcomes(one) for one in summaries)),
        section("Accuracy against cost and budget", curves(_curves(summaries))),
        section("What it cost", _costs(summaries)),
    ]
    for one, heading in zip(summaries, names, strict=True):
        parts = [
            section("More than one sample", _repeats(one)),
            section("Parts of the score", table(["part", "%"], (one.get("parts") or {}).items())),
            section("Groups", _groups(one)),
            section("Tokens and time", _tokens(one) + curves(_histograms(one))),
            section("Settings", _settings(one["head"])),
            section("The same again", preformatted(str(one["head"].get("command") or ""))),
        ]
        body += [f"<h1>{escape(heading)}</h1>" if len(summaries) > 1 else "", *parts]
    return webpage(name, "\n".join(body))


def label(one: Summary) -> str:
    """Model, mode and budget, as short as they are told apart by."""
    model = str(one["model"]).rstrip("/").rpartition("/")[2]
    budget = "" if one.get("budget") is None else f", budget {one['budget']}"
    return f"{model}, {one['mode']}{budget}"


def _suites(summaries: Sequence[Summary]) -> list[str]:
    return list(dict.fromkeys(str(one["suite"]) for one in summaries))


def _warning(one: Summary, many: bool) -> str:
    whose = f"<b>{escape(label(one))}</b>" if many else ""
    why = "<b>Not to be quoted</b>: samples failed, are missing or were cut."
    unfit = "" if one["quotable"] else f'<p class="bad">{why}</p>'
    loud = [line for line in one["cautions"] if line.startswith("TRUNCATED")]
    soft = [*(line for line in one["cautions"] if line not in loud), *one.get("remarks", ())]
    shouts = "".join(f'<p class="bad"><b>{escape(line)}</b></p>' for line in loud)
    return f"{whose}{unfit}{shouts}{bullets(soft)}\n"


_HEADER = (
    "suite", "model", "items", "samples", "accuracy", "95 % interval", "± items", "± sampling", "of finished",
    "truncated", "to quote",
)  # fmt: skip


def _figures(one: Summary) -> list[Any]:
    whole, finished = one["accuracy"], one["finished"]
    return [
        one["suite"],
        label(one),
        whole["items"],
        whole["samples"],
        f"{whole['percent']:.1f} %",
        _range(whole["interval"]),
        _error(whole["item_error"]),
        _error(whole["sampling_error"]),
        "–" if finished is None else f"{finished['percent']:.1f} %",
        f"{one['outcomes']['truncated']['percent']:.1f} %",
        "yes" if one["quotable"] else "no",
    ]


def _error(standard: float | None) -> str:
    return "not known" if standard is None else f"{1.96 * standard:.1f}"


def _range(bounds: Sequence[float | None], form: str = ".1f") -> str:
    low, high = ("∞" if bound is None else format(bound, form) for bound in bounds)
    return f"{low} to {high}"


def _reading() -> str:
    return bullets([
        "Interval: where the accuracy on all items like these lies; an item counts once, whatever the number of its "
        "samples. ± items, ± sampling: 1.96 standard errors of its two sources, which items were asked and the luck of "
        "each answer. Another run of the same items differs by the second alone (by 1.4 times it, as both have such "
        "luck). One sample an item cannot tell the two apart.",
        "Truncated, empty and unreadable answers count as wrong; failed ones (no answer came) are left out. "
        "Of finished: accuracy of answers that ended and could be read, which flatters a model that is cut off often.",
    ])  # fmt: skip


def _references(summaries: Sequence[Summary]) -> str:
    rows = [
        [
            one["suite"],
            label(one),
            f"{one['percent']:.1f} ({_range(one['interval'])})",
            reference["value"],
            "inside the interval" if reference["inside"] else "OUTSIDE the interval",
            reference["source"],
        ]
        for one in summaries
        for reference in one["references"]
    ]
    shown = table(["suite", "model", "ours, %", "published, %", "it lies", "source"], rows)
    doubt = (
        "A published value has an error of its own, and rarely says its prompt, scorer or number of samples: inside is "
        "no proof that both are the same, outside none that one is wrong. The interval counts the choice of items; on "
        "the very same items ± sampling is the nearer measure. A subset, another limit of tokens or other sampling is "
        "another measurement."
    )
    return shown + bullets([doubt]) if shown else ""


def _outcomes(one: Summary) -> str:
    """One bar, its parts as wide as the shares."""
    x, rects, told = 0.0, [], []
    for name, found in one["outcomes"].items():
        if found["count"]:
            width = 7.2 * found["percent"]
            # A style, as the page's sheet takes rectangles' fill away.
            rects.append(f'<rect x="{x:.2f}" y="0" width="{width:.2f}" height="24" style="fill:{_SHADES[name]}"/>')
            told.append(
                f'<span style="color:{_SHADES[name]}">■</span> {name} {found["count"]:,} ({found["percent"]:.1f} %)'
            )
            x += width
    return f'<p>{escape(label(one))}: {", ".join(told)}</p><svg viewBox="0 0 720 24">{"".join(rects)}</svg>\n'


def _repeats(one: Summary) -> str:
    rows = [[f"pass@{k}", f"{v['percent']:.1f}", _range(v["interval"])] for k, v in one["pass_at"].items()]
    if most := one["majority"]:
        rows.append([f"majority@{most['samples']}", f"{most['percent']:.1f}", _range(most["interval"])])
    if not rows:
        return ""
    return table(["", "%", "95 % interval"], rows) + bullets([
        "pass@k: that one of k samples is right (unbiased); majority: the answer that most samples of an item gave, "
        "ties split, answers compared as they are written.",
    ])  # fmt: skip


def _groups(one: Summary) -> str:
    rows = [
        [g["key"], g["value"], g["items"], f"{g['percent']:.1f}", _range(g["interval"]), _error(g["sampling_error"])]
        for g in one["groups"]
    ]
    return table(["by", "", "items", "%", "95 % interval", "± sampling"], rows)


def _tokens(one: Summary) -> str:
    found = {f"{kind} tokens": spread for kind, spread in one["tokens"].items()}
    if one["seconds"]:
        found["seconds a sample"] = one["seconds"]
    rows = [[kind, *(s[key] for key in ("mean", "p50", "p95", "max", "unknown"))] for kind, s in found.items()]
    return table(["", "mean", "median", "95th percentile", "most", "not known"], rows)


def _histograms(one: Summary) -> Iterator[str]:
    for kind in ("thinking", "answer"):
        if (spread := one["tokens"].get(kind)) and spread["max"]:
            edges = [edge for edge, _ in spread["histogram"]] + [spread["max"]]
            bins = zip(spread["histogram"], edges[1:], strict=True)
            middles = [((left + right) / 2, float(count)) for (left, count), right in bins]
            yield chart(f"{kind} tokens", "tokens", "samples", [Series("samples", PALETTE[0], middles)], "linear")


def _costs(summaries: Sequence[Summary]) -> str:
    rows = []
    for one in summaries:
        cost = one["cost"]
        for how, name in (("by_tokens", "tokens"), ("by_gpu", "GPU time"), ("energy", "energy")):
            if found := cost[how]:
                right = found["per_right"]
                each = (
                    "no right answer"
                    if right is None
                    else f"{right:.4g} ({_range(found['per_right_interval'], '.4g')})"
                )
                rows.append([label(one), name, cost["currency"], found["total"], found["per_sample"], each])
    notes = [
        f"{label(one)}: {number(one['cost']['seconds'])} s of wall time ({one['cost']['basis']})"
        + (f", {number(one['cost']['joules'])} J" if one["cost"]["joules"] is not None else "")
        + (f"; {one['cost']['unpriced']:,} samples without a count of tokens are in no price" if rows else "")
        for one in summaries
    ]
    header = ["run", "by", "in", "all", "a sample", "a right answer (95 %)"]
    return table(header, rows) + bullets(notes)


def _curves(summaries: Sequence[Summary]) -> Iterator[str]:
    """Of each suite with several runs: accuracy by what a sample costs, and by thinking budget."""
    for suite in _suites(summaries):
        runs = [one for one in summaries if one["suite"] == suite]
        for title, x_label, x_of in _AGAINST:
            points = [(x, one) for one in runs if (x := x_of(one)) is not None and math.isfinite(x)]
            if len({x for x, _ in points}) < 2:
                continue
            lines: dict[str, list[tuple[float, Summary]]] = {}
            for x, one in sorted(points, key=lambda point: point[0]):
                lines.setdefault(str(one["model"]).rstrip("/").rpartition("/")[2], []).append((x, one))
            series = [
                Series(name[:20], colour, [(x, one["percent"]) for x, one in line],
                       [(x, *one["interval"]) for x, one in line])
                for colour, (name, line) in zip(PALETTE[1:], lines.items(), strict=False)
            ]  # fmt: skip
            best = front([(x, one["percent"]) for x, one in points])
            if x_label != _BUDGET and len(best) > 1:
                ahead = [(points[i][0], points[i][1]["percent"]) for i in best]
                series.append(Series("best at its price", PALETTE[0], ahead))
            yield chart(f"{suite}: accuracy {title}", x_label, "%", series, "linear")


_BUDGET = "most thinking tokens"
_AGAINST = (
    ("against the budget", _BUDGET, lambda one: one.get("budget")),
    ("against tokens", "tokens a sample, thinking and answer", lambda one: _made(one)),
    ("against the price of tokens", "a sample, by tokens", lambda one: _price(one, "by_tokens")),
    ("against GPU time", "a sample, by GPU time", lambda one: _price(one, "by_gpu")),
)


def _made(one: Summary) -> float | None:
    spreads = [one["tokens"].get(kind) for kind in ("thinking", "answer")]
    return None if None in spreads else sum(spread["mean"] for spread in spreads)


def _price(one: Summary, how: str) -> float | None:
    return one["cost"][how]["per_sample"] if one["cost"][how] else None


def _settings(head: Mapping[str, Any]) -> str:
    rows = []
    for key, value in head.items():
        if key in _UNPRINTED or value is None:
            continue
        told = ", ".join(f"{k} {v}" for k, v in value.items() if v is not None) if isinstance(value, dict) else value
        rows.append([key.replace("_", " "), str(told)])
    return table(["what", "as it was"], rows)
