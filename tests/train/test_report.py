"""The page of a run: whole, under way, damaged, long; no network and no script in it."""

from __future__ import annotations

import json
import math
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from qwen3.charts import chart
from qwen3.errors import CorruptFileError, ModelNotFoundError
from qwen3.train.report import Curve, Record, logged_lines, write_report

START = {
    "event": "start", "recipe": "two <b>", "stages": ["sft", "rl"], "parameters": 1234, "device": "cpu",
    "keys": {"model": "qwen3:0.6b", "sft.lr": None, "sft.data": ["a.jsonl", "b.jsonl"]}, "help": {"sft.lr": "its peak"},
    "command": "qwen3 train sft data=a.jsonl",
}  # fmt: skip


def write(folder: Path, lines: list[dict[str, Any]], end: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + end)
    return folder


def updates(stage: str, count: int) -> list[dict[str, Any]]:
    return [
        {"stage": stage, "update": i, "loss": 3.0 / i, "norm": 1.0, "lr": 0.5, "memory": 1.5, "pass_1": 0.5}
        | ({"held_out": i / count} if i % 4 == 0 else {})
        for i in range(1, count + 1)
    ]


def summary(stage: str, **more: Any) -> dict[str, Any]:
    return {"event": "stage", "stage": stage, "finished": True, "update": 8, "of": 8, "tokens": 9000, "loss": 0.4,
            "seconds": 65.0, "tokens_per_second": 138.5} | more  # fmt: skip


class Checked(HTMLParser):
    """Collects the text, and fails on what would be fetched or run."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe", "object"), tag
        assert not {"src", "href"} & {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(folder: Path) -> tuple[str, str]:
    """(the page, its text)."""
    page = write_report(folder).read_text(encoding="utf-8")
    assert "url(" not in page
    assert "@import" not in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)
        assert "nan" not in svg
    return page, re.sub(r"\s+", " ", " ".join(Checked(page).words))


def test_a_finished_run_of_two_stages(tmp_path: Path) -> None:
    sample = {"event": "samples", "stage": "rl", "update": 8, "texts": ["2 + <2>? 4"]}
    lines = [START, *updates("sft", 8), summary("sft"), *updates("rl", 8), sample, summary("rl", gap=0.25)]
    folder = write(tmp_path / "run", lines)
    (folder / "run.txt").write_text("75 updates of 8; AdamW because\nwarning: one mode alone\n")
    (folder / "adapter").mkdir()
    page, text = read(folder)
    titles = ("Loss", "Gradient norm", "Learning rate, of its peak", "Memory, GB", "Share that is right")
    assert all(title in text for title in titles)
    assert page.count("<svg") == 5
    for told in (
        "two <b> finished", "rl, update 8 2 + <2>? 4", "75 updates of 8; AdamW because", "one mode alone", "1 min 05 s",
        "8 of 8", "9,000", "gap 0.25", "a.jsonl,b.jsonl", "its peak", "held_out",
        f"qwen3 run qwen3:0.6b --adapter {folder}/adapter",
    ):  # fmt: skip
        assert told in text, told
    assert "go on from" not in text


def test_a_run_that_is_under_way_or_was_killed(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", [START, *updates("sft", 3)], end='{"stage": "sft", "upda')
    _, text = read(folder)
    assert "not finished" in text
    assert "# go on from the last checkpoint qwen3 train sft data=a.jsonl" in text
    assert "1 lines of the log could not be read" in text
    assert "begun" in text
    assert "to come" in text
    write(folder, [START, *updates("sft", 2), {"event": "failed", "error": "no <memory>"}])
    _, text = read(folder)
    assert "ended by an error" in text
    assert "no <memory>" in text
    write(folder, [START, {"event": "failed", "error": "x"}, START, *updates("sft", 2)])
    assert "begun 2 times" in read(folder)[1]
    assert "ended by an error" not in read(folder)[1]


def test_numbers_that_are_not_finite_are_told_and_not_drawn(tmp_path: Path) -> None:
    lines = [*updates("sft", 3), {"stage": "sft", "update": 4, "loss": math.nan, "norm": math.inf}]
    assert "loss was not finite in 1 lines" in read(write(tmp_path / "run", lines))[1]


def test_no_run_and_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="holds no run"):
        write_report(tmp_path)
    (tmp_path / "log.jsonl").write_bytes(b"\xff\x00\n[1]\n")
    with pytest.raises(CorruptFileError, match="nothing in it can be read"):
        write_report(tmp_path)
    assert [line["event"] for line in logged_lines(tmp_path)] == ["unreadable", "unreadable"]


def test_a_long_log_is_thinned_without_losing_its_spikes(tmp_path: Path) -> None:
    count, curve = 100_000, Curve()
    for i in range(count):
        curve.add(i, 50.0 if i == 70_001 else math.sin(i / 9000))
    series = curve.series("loss", "#000000")
    assert 200 <= len(series.points) <= 800
    assert max(high for _, _, high in series.band) == 50.0
    assert sum(high == 50.0 for _, _, high in series.band) == 1
    assert all(abs(y - math.sin(x / 9000)) < 0.01 for x, y in series.points if abs(x - 70_001) > 500)
    lines = ({"stage": "s", "update": i, "loss": 1 / i, "norm": 1.0} for i in range(1, 30_001))
    begin = time.perf_counter()
    folder = write(tmp_path / "run", list(lines))
    page, _ = read(folder)
    assert len(page) < 200_000
    assert time.perf_counter() - begin < 10
    assert Record.of(logged_lines(folder)).curves["loss", "s"].last == (30_000, 1 / 30_000)


@pytest.mark.parametrize("ys", [[5.0, 5.0], [0.0, 0.0], [1e-7, 3e-7], [-2.0, 1e6], [1.0]])
def test_a_linear_chart_has_its_data_between_round_ticks(ys: list[float]) -> None:
    svg = ElementTree.fromstring(chart("t & <u>", "x", "", [("a", "#000000", list(enumerate(ys)))], "linear"))
    space = "{http://www.w3.org/2000/svg}"
    assert next(svg.iter(f"{space}text")).text == "t & <u>"
    line = next(svg.iter(f"{space}polyline")).get("points")
    assert line is not None
    for point in line.split():
        x, y = map(float, point.split(","))
        assert 76 <= x <= 570
        assert 40 <= y <= 348
    ticks = [text.text for text in svg.iter(f"{space}text") if text.get("text-anchor") == "end"]
    assert 2 <= len(ticks) <= 8
    assert len(set(ticks)) == len(ticks)
