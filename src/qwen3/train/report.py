"""A run as one page: `report.html` beside its log, made when the run ends, or any time (`qwen3 train report FOLDER`).

The page needs no network and no script. It is drawn from `log.jsonl`, `run.txt` and `done.json` alone, so a run that is
under way, was killed, or wrote a million lines has one, too.
"""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from qwen3.charts import Series, chart
from qwen3.checkpoint.journal import write_atomic
from qwen3.errors import CorruptFileError, ModelNotFoundError
from qwen3.webpage import PALETTE, bullets, curves, number, preformatted, section, table, webpage

_MOST = 400  # points of a curve
_SAMPLES = 12
_SAID = 400  # lines
# Title -> measurements by name, or its beginning (with *). The others are drawn one by one behind them.
_CHARTS = {
    "Loss": ("loss",),
    "Bits per byte": ("bits_per_byte*", "bpb*"),
    "Reward": ("reward", "reward/*", "advantage*"),
    "Share that is right": ("pass_1", "held_out*", "accuracy*", "needle*", "obeyed*"),
    "Questions that say something, answers that were cut": ("informative", "cut"),
    "Tokens of an answer": ("length*",),
    "Entropy, nats": ("entropy",),
    "Divergence, nats": ("kl*",),
    "Sampler and trainer apart, nats": ("agree_*",),
    "Share of tokens whose ratio was clipped": ("clipped*",),
    "Gradient norm": ("norm",),
    "Learning rate, of its peak": ("lr",),
    "Tokens a second": ("tokens_per_second",),
    "Seconds of an update, by what they went to": ("seconds/*", "device_seconds"),
    "Share of the GPU's peak": ("mfu",),
    "Memory, GB": ("memory",),
    "Load of experts": ("load*", "balance*", "router_entropy", "experts*"),
}
_PLAIN = {"update", "tokens", "trained", "seconds", "asked", "dropped"}  # said elsewhere, or not worth a curve


def logged_lines(folder: Path, needle: str = "") -> Iterator[dict[str, Any]]:
    """The objects of a run's log.jsonl whose line has `needle` in it, without what cannot be read (the end of a killed
    run, say); nothing where there is no log."""
    try:
        file = (folder / "log.jsonl").open(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            if needle in line:
                try:
                    found = json.loads(line)
                except ValueError:
                    found = None
                yield found if isinstance(found, dict) else {"event": "unreadable"}


class Curve:
    """Points in the order of x; when there are too many, neighbours become one that knows its lowest and highest."""

    def __init__(self) -> None:
        self._every = 1
        self._parts: list[list[float]] = []  # how many, the sums of x and y, lowest and highest y
        self.last = (0.0, math.nan)
        self.best = (math.inf, -math.inf)

    def add(self, x: float, y: float) -> None:
        self.last, self.best = (x, y), (min(y, self.best[0]), max(y, self.best[1]))
        if self._parts and self._parts[-1][0] < self._every:
            self._join(self._parts[-1], [1, x, y, y, y])
        else:
            self._parts.append([1, x, y, y, y])
            if len(self._parts) > 2 * _MOST:
                for a, b in zip(self._parts[::2], self._parts[1::2], strict=False):
                    self._join(a, b)
                self._parts = self._parts[::2]
                self._every *= 2

    @staticmethod
    def _join(a: list[float], b: list[float]) -> None:
        a[:] = [a[0] + b[0], a[1] + b[1], a[2] + b[2], min(a[3], b[3]), max(a[4], b[4])]

    def series(self, label: str, colour: str) -> Series:
        mean = [(x / n, y / n) for n, x, y, _, _ in self._parts]
        band = [(x / n, low, high) for n, x, _, low, high in self._parts] if self._every > 1 else []
        return Series(label, colour, mean, band)


@dataclass
class Record:
    """What a log says. curves: by (name, stage). odd: numbers that were not finite, by name. rare: names that only some
    updates have, with all their (stage, update, value), as far as a table takes them."""

    starts: list[dict[str, Any]] = field(default_factory=list)
    ends: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: str = ""
    unreadable: int = 0
    lines: Counter[str] = field(default_factory=Counter)
    curves: dict[tuple[str, str], Curve] = field(default_factory=lambda: defaultdict(Curve))
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    at: dict[str, int] = field(default_factory=dict)
    odd: Counter[str] = field(default_factory=Counter)
    samples: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, lines: Iterable[Mapping[str, Any]]) -> Record:
        record = cls()
        for fields in lines:
            record.take(dict(fields))
        return record

    def take(self, fields: dict[str, Any]) -> None:
        event, stage = fields.get("event"), str(fields.get("stage", "run"))
        if event == "start":
            self.starts.append(fields)
            self.failed = ""
        elif event == "stage":
            self.ends[stage] = fields
        elif event == "failed":
            self.failed = str(fields.get("error"))
        elif event == "samples" and isinstance(texts := fields.get("texts"), list):
            about = f"{stage}, update {fields.get('update', '?')}"
            self.samples = [*self.samples, *((about, str(text)) for text in texts)][-_SAMPLES:]
        elif event == "unreadable":
            self.unreadable += 1
        elif isinstance(update := fields.get("update"), int):
            self.lines[stage] += 1
            self.at[stage] = update
            for name, value in _numbers(fields):
                if math.isfinite(value):
                    self.curves[name, stage].add(update, value)
                    self.counts[name, stage] += 1
                else:
                    self.odd[name] += 1

    @property
    def stages(self) -> list[str]:
        planned = self.starts[-1].get("stages") if self.starts else None
        known = [str(name) for name in planned] if isinstance(planned, list) else []
        return list(dict.fromkeys([*known, *self.lines, *self.ends]))

    @property
    def finished(self) -> bool:
        return bool(self.stages) and all(self.ends.get(name, {}).get("finished") for name in self.stages)

    def rare(self) -> list[tuple[str, str]]:
        """Evaluations: what few of a stage's lines have."""
        return [key for key, count in self.counts.items() if count <= max(1, self.lines[key[1]] // 2)]


def _numbers(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and name not in _PLAIN:
            yield prefix + name, float(value)


def write_report(folder: str | Path) -> Path:
    """Draw the run in `folder`, finished or not; returns the page's path. Raises ModelNotFoundError where there is no
    run, CorruptFileError where nothing of it can be read."""
    folder = Path(folder)
    if not (folder / "log.jsonl").is_file():
        raise ModelNotFoundError(f"{folder} holds no run: there is no log.jsonl")
    record = Record.of(logged_lines(folder))
    if not record.starts and not record.lines and not record.ends:
        raise CorruptFileError(f"{folder / 'log.jsonl'}: nothing in it can be read")
    said: list[str] = []
    if (folder / "run.txt").is_file():
        said = (folder / "run.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    path = folder / "report.html"
    write_atomic(path, [page(folder, record, said).encode()])
    return path


def page(folder: Path, record: Record, said: list[str]) -> str:
    """The HTML. said: lines of run.txt."""
    start = record.starts[-1] if record.starts else {}
    name = str(start.get("recipe", folder.name))
    parts = [
        _head(folder, name, start, record),
        section("Warnings", _warnings(record, said)),
        section("What to run next", _next(folder, start, record)),
        section("Stages", _stages(record)),
        section("Evaluations", _evaluations(record)),
        section("Curves", _curves(record)),
        section("Samples", _samples(record)),
        section("What was derived, and why", preformatted("\n".join(said[-_SAID:]))),
        section("Keys", _keys(start)),
    ]
    return webpage(name, "".join(parts))


def _said(value: Any) -> Any:
    """As the command line has it."""
    if isinstance(value, list):
        return ",".join(str(_said(one)) for one in value)
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else value


def _head(folder: Path, name: str, start: Mapping[str, Any], record: Record) -> str:
    if record.finished:
        state, kind = "finished", "good"
    elif record.failed:
        state, kind = "ended by an error", "bad"
    else:
        state, kind = "not finished", "soft"
    about = [str(folder.resolve()), str(start.get("time", ""))]
    if isinstance(count := start.get("parameters"), int):
        about.append(f"{count:,} parameters")
    about += [str(start.get("device", "")), f"torch {start['torch']}" if "torch" in start else ""]
    about += [f"begun {len(record.starts)} times"] if len(record.starts) > 1 else []
    failed = f'<p class="bad">{escape(record.failed)}</p>' if record.failed else ""
    return (
        f'<h1>{escape(name)} <span class="{kind}">{state}</span></h1>'
        f'<p class="soft">{escape(" · ".join(part for part in about if part))}</p>{failed}\n'
    )


def _warnings(record: Record, said: list[str]) -> str:
    found = list(dict.fromkeys(line.removeprefix("warning: ") for line in said if line.startswith("warning: ")))
    found += [f"{name} was not finite in {count:,} lines of the log" for name, count in record.odd.items()]
    if record.unreadable:
        found.append(f"{record.unreadable:,} lines of the log could not be read: the run was killed as it wrote")
    return bullets(found)


def _next(folder: Path, start: Mapping[str, Any], record: Record) -> str:
    command, keys = str(start.get("command", "")), start.get("keys")
    lines = []
    if not record.finished and command:
        lines += ["# go on from the last checkpoint", command]
    base = shlex.quote(str(keys.get("model", "embedded"))) if isinstance(keys, dict) else "embedded"
    for name in ("adapter", "model"):
        if (found := folder / name).is_dir():
            place = shlex.quote(str(found))
            asked = f"{base} --adapter {place}" if name == "adapter" else place
            served = f"{base} --adapter mine={place}" if name == "adapter" else place
            lines += ["# talk to the result, or serve it", f"qwen3 run {asked}", f"qwen3 serve {served}"]
            break
    lines += ["# draw this page again", f"qwen3 train report {shlex.quote(str(folder))}"]
    return preformatted("\n".join(lines))


def _stages(record: Record) -> str:
    rows = []
    for name in record.stages:
        end = record.ends.get(name, {})
        done, of = end.get("update", record.at.get(name, 0)), end.get("of", "")
        state = "finished" if end.get("finished") else "begun" if name in record.at else "to come"
        shown = {"finished", "update", "of", "seconds", "loss", "tokens", "tokens_per_second", "event", "stage"}
        rest = ", ".join(f"{key} {number(value)}" for key, value in _numbers(end) if key not in shown)
        loss = end.get("loss", record.curves[("loss", name)].last[1] if ("loss", name) in record.curves else "")
        seconds = _duration(end["seconds"]) if isinstance(end.get("seconds"), (int, float)) else ""
        speed = end.get("tokens_per_second", "")
        rows.append(
            [name, state, f"{done:,}{f' of {of:,}' if of else ''}", seconds, loss, end.get("tokens", ""), speed, rest]
        )
    return table(["stage", "", "updates", "time", "loss", "tokens", "tokens/s", ""], rows)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def _evaluations(record: Record) -> str:
    rows = []
    for name, stage in sorted(record.rare(), key=lambda key: (key[1], key[0])):
        curve = record.curves[name, stage]
        at, last = curve.last
        rows.append([stage, name, last, int(at), *curve.best, record.counts[name, stage]])
    return table(["stage", "", "last", "at update", "lowest", "highest", "times"], rows)


def _curves(record: Record) -> str:
    """One chart of each kind; stages follow each other."""
    begins, x = {}, 0
    for stage in record.stages:
        begins[stage] = x
        x += record.at.get(stage, 0)
    several = len(record.lines) > 1
    left = list(dict.fromkeys(name for name, _ in record.curves))
    groups: list[tuple[str, list[str]]] = []
    for title, patterns in _CHARTS.items():
        names = [name for name in left if any(_matches(name, pattern) for pattern in patterns)]
        left = [name for name in left if name not in names]
        groups.append((title, names))
    groups += [(name, [name]) for name in left]
    drawn = []
    for title, names in groups:
        found = [(name, stage) for name in names for stage in begins if (name, stage) in record.curves]
        for i in range(0, len(found), len(PALETTE)):
            series = []
            for (name, stage), colour in zip(found[i : i + len(PALETTE)], PALETTE, strict=False):
                label = name if not several else stage if len(names) == 1 else f"{stage} {name}"
                _, _, points, band = record.curves[name, stage].series("", "")
                shift = begins[stage]
                moved = [(x + shift, low, high) for x, low, high in band]
                series.append(Series(label[-20:], colour, [(x + shift, y) for x, y in points], moved))
            drawn.append(chart(title, "updates", "", series, "linear"))
    return curves(drawn)


def _matches(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _samples(record: Record) -> str:
    return "".join(
        f'<p class="soft">{escape(about)}</p>{preformatted(text)}' for about, text in reversed(record.samples)
    )


def _keys(start: Mapping[str, Any]) -> str:
    keys, meanings = start.get("keys"), start.get("help")
    if not isinstance(keys, dict):
        return ""
    told = meanings if isinstance(meanings, dict) else {}
    return table(["key", "value", "meaning"], ([k, _said(v), told.get(k, "")] for k, v in keys.items()))
