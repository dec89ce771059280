"""What `qwen3 diff` measured, for people: the rows of its table, and one HTML page with charts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape

from qwen3.charts import Series, chart
from qwen3.evaluate.difference import Difference
from qwen3.evaluate.thinking import Result
from qwen3.webpage import PALETTE, bullets, curves, preformatted, section, table, webpage

_LEAST = 1e-9  # nats: below it a divergence is drawn as this, since charts of it are logarithmic

_BITS = "bits a weight, in the files or in memory"


def models(found: Sequence[Difference]) -> list[Result]:
    """The reference, then the variants."""
    return [found[0].reference, *(one.variant for one in found)]


def rows(found: Sequence[Difference]) -> list[list[str]]:
    """Of a table with a column for each model: its first cell is what was measured, one row each."""
    each = models(found)
    out = [
        ["in files", *(_megabytes(m["disk_bytes"]) for m in each)],
        ["bits a weight there", *(f"{m['bits_per_weight']:.2f}" for m in each)],
        ["stored as", *(_kinds(m["stored"]) for m in each)],
        ["in memory", *(_megabytes(m["memory_bytes"]) for m in each)],
        ["bits a weight there", *(f"{m['memory_bits_per_weight']:.2f}" for m in each)],
        ["perplexity", *(_of(m.get("text"), lambda t: _figure(t["perplexity"])) for m in each)],
        ["bits a byte", *(_of(m.get("text"), lambda t: f"{t['bits_per_byte']:.4f}") for m in each)],
    ]
    for part, what in (("text", "text"), ("answers", "its answers")):
        if any(part in one.divergence for one in found):
            parts = [one.divergence.get(part) for one in found]
            out.append([f"KL on {what}: mean", "", *(_of(p, lambda p: _figure(p["mean"])) for p in parts)])
            out.append(["  median, p99, max", "", *(_of(p, _spread) for p in parts)])
            out.append(["  same likeliest token", "", *(_of(p, lambda p: f"{p['agreement']:.2%}") for p in parts)])
    if any(one.layers for one in found):
        errors = [f"{one.layers[-1].whole:.2%}" if one.layers else "–" for one in found]
        out.append(["error behind the last layer", "", *errors])
    for mode in found[0].reference.get("tasks", {}):
        out += _mode_rows(found, mode)
    for streams in found[0].reference.get("speed", {}):
        name = "tok/s, one stream" if streams == "1" else f"tok/s, {streams} streams"
        rates = [f"{m['speed'][streams]:,.0f}" for m in each]
        ratios = ["", *(f" ({one.speed[streams]:.2f}×)" for one in found)]
        out.append([name, *(rate + ratio for rate, ratio in zip(rates, ratios, strict=True))])
    return out


def _mode_rows(found: Sequence[Difference], mode: str) -> Iterator[list[str]]:
    alone = [m.get("tasks", {}).get(mode) for m in models(found)]
    pairs = [one.tasks.get(mode) for one in found]
    yield [f"{mode}: right", *(_of(a, lambda a: f"{a['percent']:.1f} % ({_range(a['interval'])})") for a in alone)]
    yield ["  difference", "", *(_of(p, _points) for p in pairs)]
    yield ["  tokens an answer", *(_of(a, lambda a: f"{a['tokens']:.0f}") for a in alone)]
    if mode == "thinking":
        yield ["  of them thinking", *(_of(a, lambda a: f"{a['thinking_tokens']:.0f}") for a in alone)]
    yield ["  cut off, in a loop", *(_of(a, lambda a: f"{a['cut']}, {a['looped']}") for a in alone)]
    yield ["  length", "", *(_of(p, lambda p: _times(p["length_ratio"], p["length_interval"])) for p in pairs)]
    yield ["  longer, shorter", "", *(_of(p, _drift) for p in pairs)]
    yield ["  tokens a right answer", *(_of(a, _per_right) for a in alone)]
    ratios = (
        _of(p, lambda p: _times(p["tokens_per_right_ratio"], p["tokens_per_right_ratio_interval"])) for p in pairs
    )
    yield ["  of the reference's", "", *ratios]


def verdict(one: Difference) -> str:
    """One line about a variant: only what its tests bear out at 95 %."""
    said = []
    for mode, pair in one.tasks.items():
        if pair["p"] < 0.05:
            said.append(f"{mode}: {'less' if pair['points'] < 0 else 'more'} often right, {_points(pair)}")
        else:
            said.append(f"{mode}: no difference in what is right that {pair['of']} questions can show")
        low, _ = pair["tokens_per_right_ratio_interval"]
        if low is not None and low > 1:
            said.append(f"{mode}: more tokens for each right answer ({_figure(pair['tokens_per_right_ratio'])}×)")
    return f"{one.variant['name']}: {'; '.join(said) if said else 'no tasks were asked'}"


def page(found: Sequence[Difference], title: str | None = None) -> str:
    """One HTML document without script or anything from elsewhere. found: all against the same reference."""
    reference = found[0].reference["name"]
    head = found[0].head
    about = " · ".join(
        str(part) for part in (head.get("date"), head.get("engine"), head.get("machine", {}).get("cpu")) if part
    )
    header = ["", *(model["name"] for model in models(found))]
    notes = [*dict.fromkeys(note for one in found for note in one.notes)]
    notes += [f"{m['name']}: {line}" for m in models(found) for line in m["warnings"]]
    name = title or f"{' and '.join(one.variant['name'] for one in found)} against {reference}"
    body = [
        f'<h1>{escape(name)}</h1><p class="soft">{escape(about)}</p>\n',
        section("In short", bullets(verdict(one) for one in found)),
        section("Notes", bullets(notes)),
        section("Figures", table(header, rows(found))),
        section("Charts", curves(_charts(found))),
        section("How it was measured", _how(found) + preformatted(head.get("command", ""))),
    ]
    return webpage(name, "".join(body))


def _how(found: Sequence[Difference]) -> str:
    settings = found[0].head.get("settings", {})
    text = settings.get("text_name") or "worked solutions of held-out problems"
    return bullets([
        f"Text: {text}. Both models see the same tokens; KL is of the reference's next-token distribution to the "
        "variant's, in nats; its answers are those the reference gave to the tasks.",
        f"Tasks: {settings.get('problems')} held-out problems of {settings.get('suite')!r}, the same for all, with "
        f"the same seeds, at most {settings.get('max_tokens')} tokens. In brackets: 95 % intervals, of shares "
        "Wilson's, of differences and ratios paired bootstrap's; p: McNemar's exact test, for lengths the sign test.",
        "Layers: relative error of the hidden states, whole (errors add up) and of each layer alone, fed with the "
        "reference's states.",
        "Speed: both models in turn on the same machine; it had other work to do, if it was not alone.",
    ])  # fmt: skip


def _charts(found: Sequence[Difference]) -> Iterator[str]:
    for part, what in (("text", "text"), ("answers", "the reference's answers")):
        lines = [
            (one.variant["name"], [(q, _log(kl)) for q, kl in one.divergence[part]["quantiles"]])
            for one in found
            if part in one.divergence
        ]
        yield from _drawn(f"KL on {what}: share of tokens below", "% of tokens", "log10 nats", lines)
    for kind, what in (("whole", "errors added up"), ("alone", "each alone")):
        lines = [(one.variant["name"], [(e.layer, 100 * getattr(e, kind)) for e in one.layers]) for one in found]
        yield from _drawn(f"Error behind each layer, {what}", "layer", "%", [line for line in lines if line[1]])
    each = models(found)
    tasks = found[0].reference.get("tasks", {})
    for title, y_label, key, bounds in (
        ("Right answers", "%", "percent", "interval"),
        ("Tokens for each right answer", "tokens", "tokens_per_right", "tokens_per_right_interval"),
    ):
        series = []
        for colour, mode in zip(PALETTE, tasks, strict=False):
            known = [
                (_bits(m), m["tasks"][mode][key], *m["tasks"][mode][bounds])
                for m in each
                if mode in m.get("tasks", {}) and None not in (m["tasks"][mode][key], *m["tasks"][mode][bounds])
            ]
            known.sort()
            if known:
                band = [(x, low, high) for x, _, low, high in known]
                series.append(Series(mode, colour, [(x, y) for x, y, *_ in known], band))
        if series:
            yield chart(title, _BITS, y_label, series, "linear")
    points = [
        (one.variant["name"], [(_bits(one.variant), _log(one.divergence["answers"]["mean"]))])
        for one in found
        if "answers" in one.divergence
    ]
    if len(points) > 1:
        yield from _drawn("Mean KL on the reference's answers", _BITS, "log10 nats", points)


def _drawn(
    title: str, x_label: str, y_label: str, lines: Sequence[tuple[str, Sequence[tuple[float, float]]]]
) -> Iterator[str]:
    """Charts of at most as many lines as there are colours."""
    for first in range(0, len(lines), len(PALETTE)):
        some = [
            Series(name[-20:], colour, points)
            for colour, (name, points) in zip(PALETTE, lines[first : first + len(PALETTE)], strict=False)
        ]
        yield chart(title, x_label, y_label, some, "linear")


def _bits(model: Result) -> float:
    """What was rounded when it was loaded has more in its files, what was widened then more in memory."""
    return float(min(model["bits_per_weight"], model["memory_bits_per_weight"]))


def _log(value: float) -> float:
    return math.log10(max(value, _LEAST))


# Cells


def _of(value: Result | None, shown: Callable[[Result], str]) -> str:
    return "–" if value is None else shown(value)


def _megabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _kinds(stored: dict[str, int]) -> str:
    total = sum(stored.values())
    shares = [f"{kind} {size / total:.0%}" for kind, size in stored.items() if size >= 0.005 * total]
    return next(iter(stored)) if len(shares) == 1 else ", ".join(shares)


def _figure(value: float | None) -> str:
    return "–" if value is None else "0" if value == 0 else f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def _range(bounds: Sequence[float | None], form: str = ".1f") -> str:
    low, high = ("∞" if bound is None else format(bound, form) for bound in bounds)
    return f"{low} to {high}"


def _spread(part: Result) -> str:
    return ", ".join(_figure(part[key]) for key in ("median", "p99", "max"))


def _points(pair: Result) -> str:
    return f"{pair['points']:+.1f} ({_range(pair['points_interval'], '+.1f')}), p {pair['p']:.2g}"


def _drift(pair: Result) -> str:
    return f"{pair['longer']}, {pair['shorter']}, p {pair['length_p']:.2g}"


def _per_right(alone: Result) -> str:
    return f"{_figure(alone['tokens_per_right'])} ({_range(alone['tokens_per_right_interval'], '.0f')})"


def _cost(pair: Result) -> str:
    return _times(pair["tokens_per_right_ratio"], pair["tokens_per_right_ratio_interval"])


def _times(value: float | None, bounds: Sequence[float | None]) -> str:
    return "–" if value is None else f"{value:.2f}× ({_range(bounds, '.2f')})"
