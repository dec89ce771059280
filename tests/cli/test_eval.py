"""`qwen3 eval`, `curve` over a suite and `compare`, on the embedded model and on scripted endpoints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from qwen3.evaluate.runs import read_run
from qwen3.evaluate.runs.run import Wish, items_of
from qwen3.evaluate.suites import suite_named
from tests.cli.conftest import Command
from tests.evaluate.endpoint import Body, Reply, leaking, oracle, question, serving, truncating
from tests.evaluate.suites.test_instruction_suites import arena

KNOWS = oracle({
    str(item.messages[-1]["content"]): item.gold["answer"]
    for item in items_of(suite_named("controls"), Wish(data="count=60,seed=1"))
})  # fmt: skip
SOME = ("controls", "--data", "count=60,seed=1", "--samples", "2")


def test_an_endpoint_from_the_first_answer_to_the_report(qwen3: Command, tmp_path: Path) -> None:
    with serving(KNOWS) as server:
        api = ("--api", server.url, "--api-model", "oracle", "--price-in", 1, "--price-out", 2)
        ran = qwen3("eval", *SOME, *api, "--think", "--out", tmp_path / "a")
        assert ran.code == 0
        assert "100.0 %" in ran.out
        again = qwen3("eval", *SOME, *api, "--think", "--out", tmp_path / "a", "--json")
        assert len(server.bodies) == 120  # the second start asked nothing
        assert json.loads(again.out)["runs"][0]["percent"] == 100
        other = qwen3("eval", *SOME, *api, "--think", "--seed", 2, "--out", tmp_path / "a")
        assert other.code == 2
        assert "seed: there 1, now 2" in other.error
    assert {file.name for file in (tmp_path / "a").iterdir()} == {
        "run.json", "samples.jsonl", "result.json", "report.html",
    }  # fmt: skip
    assert json.loads((tmp_path / "a" / "result.json").read_text())["cost"]["by_tokens"]["total"] > 0
    with serving(truncating(KNOWS)) as server:
        ran = qwen3("eval", *SOME, "--api", server.url, "--api-model", "x", "--think", "--out", tmp_path / "b")
        assert ran.code == 0
        assert "120 truncated" in ran.out
    ran = qwen3("compare", tmp_path / "a", tmp_path / "b", "--html", tmp_path / "page.html")
    assert ran.code == 0
    assert "-100.0 points" in ran.out
    assert "<svg" in (tmp_path / "page.html").read_text()
    with serving(leaking(KNOWS)) as server:
        ran = qwen3("eval", *SOME, "--api", server.url, "--api-model", "x", "--think", "--out", tmp_path / "c")
        assert "120 of 120 samples: thoughts with their tags stood in the content" in ran.err


def test_a_judge_at_another_endpoint(qwen3: Command, tmp_path: Path) -> None:
    def verdict(body: Body) -> Reply:
        return Reply("[[A>>B]]" if "Assistant A's Answer|>\nOf course" in question(body) else "[[B>A]]")

    asked = ("eval", "arena_hard", "--data", arena(tmp_path / "data"), "--api-model", "x", "--out", tmp_path / "run")
    with serving(lambda body: Reply("Of course.")) as server, serving(verdict) as judge:
        none = qwen3(*asked, "--api", server.url)
        assert none.code == 2
        assert "arena_hard is scored by a judge: give --judge URL and --judge-model NAME" in none.error
        ran = qwen3(*asked, "--api", server.url, "--judge", judge.url, "--judge-model", "strict", "--json")
        assert ran.code == 0
        assert len(judge.bodies) == 2  # both ways round
        assert {body["temperature"] for body in judge.bodies} == {0}
        result = json.loads(ran.out)["runs"][0]
        assert (result["percent"], result["head"]["judge"]) == (100, f"strict at {judge.url}")
        other = qwen3(*asked, "--api", server.url, "--judge", judge.url, "--judge-model", "mild")
        assert "judge: there" in other.error
        unwanted = qwen3("eval", *SOME, "--judge", judge.url, "--judge-model", "strict", "--out", tmp_path / "b")
        assert "none of controls is scored by a judge" in unwanted.error


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("eval",), "name a suite"),
        (("eval", "math5000"), "no suite 'math5000'; there are:"),
        (("eval", "steps", "--think", "--no-think"), "contradict each other"),
        (("eval", "steps", "--budget", "9", "--no-think"), "contradict each other"),
        (("eval", "steps", "--api", "localhost", "--api-model", "x"), "must be the address up to /v1"),
        (("eval", "steps", "--api", "http://k:s@h/v1", "--api-model", "x"), "no secrets in the address"),
        (("eval", "steps", "--api", "http://h/v1"), "--api needs --api-model"),
        (("eval", "steps", "--api", "http://h/v1", "--model", "x"), "the model's name there is --api-model"),
        (("eval", "steps", "--api-model", "x"), "goes with --api"),
        (("eval", "steps", "--api", "http://h/v1", "--api-model", "x", "--api-key-env", "NO_SUCH"), "NO_SUCH"),
        (("eval", "steps", "--data", "count=0"), "count"),
        (("compare", "nowhere", "nowhere"), "nowhere: no run is here"),
        (("curve", "steps5"), "no suite 'steps5'"),
        (("curve", "steps", "--data", "count=8", "--budgets", "few"), "budgets must be whole numbers"),
    ],
)
def test_mistakes_are_said_before_anything_is_loaded(qwen3: Command, words: tuple[str, ...], told: str) -> None:
    ran = qwen3(*words)
    assert ran.code == 2
    assert told in ran.error


def test_list(qwen3: Command) -> None:
    ran = qwen3("eval", "--list", "--json")
    found = {suite["name"]: suite for suite in json.loads(ran.out)["suites"]}
    assert found["steps"]["licence"] == "Apache-2.0"
    assert "steps " in qwen3("eval", "--list").out


@pytest.mark.slow
def test_curve_on_the_embedded_model(qwen3: Command, tmp_path: Path) -> None:
    words = ("curve", "steps", "--data", "count=10,seed=3", "--budgets", "none,0,8", "--out", tmp_path / "c")
    ran = qwen3(*words, "--json")
    assert ran.code == 0, ran.err
    points = json.loads(ran.out)["points"]
    assert [point["budget"] for point in points] == [0, 8, None]
    assert points[0]["tokens"]["thinking"]["max"] == 0 and 0 < points[1]["tokens"]["thinking"]["max"] <= 8  # noqa: PT018
    assert points[2]["percent"] >= points[1]["percent"]
    assert (tmp_path / "c" / "curve.html").stat().st_size > 1000
    assert qwen3(*words).out.count("steps") == 3


def told(folder: Path) -> list[dict[str, Any]]:
    """A run's samples without what is of the clock."""
    return [{**one, "answer": {**one["answer"], "seconds": 0}} for one in read_run(folder).samples]


@pytest.mark.slow
def test_killed_and_resumed_is_as_unbroken(tmp_path: Path) -> None:
    """SIGKILL after the first samples, again, then Ctrl-C, then to the end: the same samples as in one piece."""

    def begin(folder: Path) -> subprocess.Popen[bytes]:
        words = ("eval", "steps", "--limit", "16", "--samples", "2", "--concurrency", "4", "--out", str(folder))
        return subprocess.Popen([sys.executable, "-m", "qwen3.cli.main", *words], env=os.environ)

    def lines(folder: Path) -> int:
        file = folder / "samples.jsonl"
        return file.read_bytes().count(b"\n") if file.exists() else 0

    for stop in (signal.SIGKILL, signal.SIGKILL, signal.SIGINT):
        before, process = lines(tmp_path / "broken"), begin(tmp_path / "broken")
        while process.poll() is None and lines(tmp_path / "broken") < before + 3:
            time.sleep(0.05)
        process.send_signal(stop)
        assert process.wait() == (130 if stop == signal.SIGINT else -stop)
    assert 9 <= lines(tmp_path / "broken") < 32
    assert begin(tmp_path / "broken").wait() == 0
    assert begin(tmp_path / "whole").wait() == 0
    assert told(tmp_path / "broken") == told(tmp_path / "whole")
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("broken", "whole")]
    assert results[0]["accuracy"] == results[1]["accuracy"]
    assert results[0]["tokens"] == results[1]["tokens"]
