"""`qwen3 run`: what its flags say about thinking and about the form of the answer."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qwen3 import ThinkingPolicy
from qwen3.cli.session import Keyboard
from qwen3.engine.trial import SPAN, THRESHOLD, WINDOW
from tests.cli.conftest import Command, terminal_until

ASK = ("--seed", "3", "--json")
REPORT = ["mode", "budget", "used", "forced_tokens", "ended_by", "source", "steps", "discarded_tokens", "window"]
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    file = tmp_path / "tools.json"
    functions = [{"name": name, "parameters": SCHEMA} for name in ("add", "drop")]
    file.write_text(json.dumps([{"type": "function", "function": function} for function in functions]))
    return file


def test_the_report_is_whole(qwen3: Command, model: Path) -> None:
    def report(*flags: str) -> dict[str, Any]:
        ran = qwen3("run", *ASK, "-n", "300", model, "hi", *flags)
        assert ran.code == 0, ran.err
        found = json.loads(ran.out)["thinking"]
        assert list(found) == REPORT
        return found

    budget = report("--think", "--budget", "20")
    assert (budget["budget"], budget["source"]) == (20, "explicit")
    assert budget["used"] <= 20
    assert report("--think", "--answer-reserve", "280")["budget"] == 20
    assert report("--think", "--max-steps", "1")["steps"] <= 1
    assert report("--think", "--budget", "30", "--soft-landing", "25")["used"] <= 30
    assert report("--think", "--time-limit", "20", "--budget", "9")["used"] <= 9
    sure, unsure = report("--auto", "--threshold", "1"), report("--auto", "--threshold", "0.01", "--budget", "12")
    assert (sure["mode"], sure["source"], sure["discarded_tokens"]) == ("off", "auto", 0)
    assert (unsure["mode"], unsure["source"]) == ("on", "auto")
    assert unsure["discarded_tokens"] > 0
    assert unsure["window"] > 0


def test_answers_of_a_form(qwen3: Command, model: Path, tmp_path: Path, tools: Path) -> None:
    file, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    file.write_text(json.dumps(SCHEMA))
    grammar.write_text('start: "x" ("y" | "z")~2\n')
    run = ("run", "--budget", "9", "--seed", "3", model, "hi")
    for schema in (file, json.dumps(SCHEMA)):
        ran = qwen3(*run, "--schema", schema)
        assert ran.code == 0, ran.err
        assert json.loads(ran.out)["a"] in (1, 2)
    assert re.fullmatch("[ab]{5}\n", qwen3(*run, "--regex", "[ab]{5}").out)
    assert re.fullmatch("x[yz]{2}\n", qwen3(*run, "--grammar", grammar).out)
    assert re.fullmatch("[ab]{5}\n", qwen3("run", "--raw", model, "hi", "--regex", "[ab]{5}").out)
    assert re.fullmatch("[ab]{5}\n", qwen3(*run, "--regex", "[ab]{5}", "--speculation", "ngram").out)
    call = json.loads(qwen3(*run, "--tools", tools, "--tool-choice", "drop").out)
    assert (call["name"], list(call["arguments"])) == ("drop", ["a"])
    assert "reasoning" not in call


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--budget", "-1"), "--think-budget must be a whole number of tokens, 0 or more, not -1"),
        (("--budget", "some"), "valid int"),
        (("--answer-reserve", "0"), "--answer-reserve must be a whole number of tokens, 1 or more, not 0"),
        (("--answer-reserve", "9", "-n", "9"), "--answer-reserve is 9 but max_tokens is 9"),
        (("--max-steps", "33"), "--max-steps must be a whole number of paragraphs, 1 to 32, not 33"),
        (("--time-limit", "0.1"), "--time-limit must be a number of seconds, 0.5 to 30, not 0.1"),
        (("--time-limit", "nan"), "--time-limit must be a number of seconds, 0.5 to 30, not nan"),
        (("--soft-landing", "5"), "--soft-landing is 5 but neither --think-budget nor --answer-reserve is set"),
        (("--max-active-params", "7"), "--max-active-params is 7 but this model is dense"),
        (("--threshold", "0.5"), "--threshold is of --auto: give both, or neither"),
        (("--auto", "--threshold", "2"), "--threshold must be a number, 0 to 1, not 2"),
        (("--auto", "--think"), "--think and --auto contradict each other"),
        (("--auto", "--budget", "0"), "--auto and --think-budget 0 contradict each other"),
        (("--no-think", "--max-steps", "3"), "--no-think is given but --max-steps is 3: leave one out"),
        (("--budget", "0", "--max-steps", "3"), "--think-budget is 0 but --max-steps is 3"),
        (("--raw", "--time-limit", "3"), "--raw and --time-limit contradict each other"),
        (("--raw", "--auto"), "--raw and --auto contradict each other"),
        (("--raw", "--tool-choice", "none"), "--raw and --tool-choice contradict each other"),
        (("--schema", "/no/such"), "/no/such: No such file"),
        (("--schema", "{"), "schema is not JSON"),
        (("--schema", '{"type": "objekt"}'), "schema"),
        (("--regex", "("), "regex: "),
        (("--regex", "a", "--schema", "true"), "schema and regex are given"),
        (("--grammar", "/no/such"), "/no/such: No such file"),
        (("--tool-choice", "required"), "tool_choice 'required' needs tools"),
        (("--speculation", "embedded"), "the draft model has another tokenizer"),
    ],
)
def test_bad_values_are_one_line_and_exit_code_2(
    qwen3: Command, model: Path, flags: tuple[str, ...], said: str
) -> None:
    ran = qwen3("run", model, "hi", *flags)
    assert ran.code == 2
    assert said in ran.error
    assert ran.out == ""


def test_a_tool_that_is_not_there_and_a_grammar_that_is_no_text(qwen3: Command, tools: Path, tmp_path: Path) -> None:
    ran = qwen3("run", "hi", "--tools", tools, "--tool-choice", "ad")
    assert (ran.code, ran.error) == (2, "tool_choice names 'ad', which is not among the tools: add, drop")
    (tmp_path / "grammar").write_bytes(b"\xff\xfe")
    ran = qwen3("run", "hi", "--grammar", tmp_path / "grammar")
    assert (ran.code, ran.error) == (2, f"{tmp_path / 'grammar'}: not UTF-8 text")


def test_the_page_says_what_there_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "thinking.md").read_text(encoding="utf-8")
    for name in vars(ThinkingPolicy()):
        assert f"`{name}=" in page or f"**{name}**" in page, name
    assert all(f"| `{name}` |" in page for name in REPORT)
    for cause in ("natural", "budget", "steps", "time", "client", "loop", "eos", "length", "stop", "cancelled"):
        assert f'"{cause}"' in page.partition("| `ended_by` |")[2], cause
    assert f"mean over {SPAN} tokens" in page
    assert f"after {WINDOW} tokens" in page
    assert f"{THRESHOLD:g} unless you say" in page


def test_lines_typed_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    monkeypatch.setattr(sys, "stdin", os.fdopen(theirs, "r"))
    keyboard = Keyboard()

    def after(data: bytes) -> bool:
        os.write(ours, data)
        time.sleep(0.05)
        return keyboard.enter()

    assert not keyboard.enter()
    assert after(b"\n")
    assert not keyboard.enter()
    assert not after(b"half a")
    assert not after(b" line\n")
    assert after(b"\n\nmore\n")
    assert not after(b"\x04")
    assert keyboard.lines == ["half a line", "more", None]
    os.close(ours)


def test_enter_means_answer_now(model: Path) -> None:
    """On a terminal: a thought that would not end is closed, and what was typed meanwhile is the next message."""
    ours, theirs = pty.openpty()
    program = (
        "import sys; from qwen3.cli import run, main; from qwen3.chat.stream import TokenStream; "
        "from qwen3.engine import request; old = TokenStream.banned; "
        "TokenStream.banned = lambda self: old(self) | {self.tokenizer.control.end_think, *self.tokenizer.eos_ids}; "
        "sys.exit(main.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "run", str(model), "--think", "--seed", "5", "-n", "450"]
    command += ["--presence-penalty", "2"]
    environment = {**os.environ, "QWEN3_HISTORY": "", "TERM": "dumb"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)

    read_until = partial(terminal_until, ours)
    read_until(">>> ")
    os.write(ours, b"hello\n")
    read_until("hello\r\n")
    time.sleep(0.1)
    os.write(ours, b"\n")
    answer = read_until("tok/s · output")
    assert "solution based on the thinking directly now" in answer.replace("\r\n", "")
    read_until(">>> ")
    os.write(ours, b"/bye\n")
    assert process.wait(timeout=60) == 0
    os.close(ours)
