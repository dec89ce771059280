"""`qwen3 run`: what is model and what is prompt, what goes where, flags, JSON."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from qwen3 import LLM, SamplingParams, ThinkingPolicy
from qwen3.chat import ReasoningDelta, TextDelta
from qwen3.cli.console import shown
from qwen3.cli.run import join, settle
from qwen3.cli.session import Printer, Session, first_interrupt
from qwen3.errors import UsageError
from tests.cli.conftest import Command

RUN = {"model": None, "prompt": None}
ASK = ("--max-tokens", "12", "--seed", "3")


@pytest.mark.parametrize(
    ("words", "flags", "expected"),
    [
        ([], {}, (None, None)),
        (["What is 27 * 14?"], {}, (None, "What is 27 * 14?")),
        (["hello"], {}, (None, "hello")),
        (["/no_think hello"], {}, (None, "/no_think hello")),
        (["embedded"], {}, ("embedded", None)),
        (["qwen3:0.6b"], {}, ("qwen3:0.6b", None)),
        (["Qwen/Qwen3-8B@abc"], {}, ("Qwen/Qwen3-8B@abc", None)),
        (["./missing"], {}, ("./missing", None)),
        (["m.gguf"], {}, ("m.gguf", None)),
        (["embedded", "hi"], {}, ("embedded", "hi")),
        (["a", "b"], {}, ("a", "b")),
        (["qwen3:0.6b"], {"model": "embedded"}, ("embedded", "qwen3:0.6b")),
        (["hello"], {"prompt": "hi"}, ("hello", "hi")),
        ([], {"model": "m", "prompt": "p"}, ("m", "p")),
    ],
)
def test_what_is_the_model_and_what_the_prompt(
    words: list[str], flags: dict[str, str], expected: tuple[str | None, str | None]
) -> None:
    assert settle(words, **(RUN | flags)) == expected


@pytest.mark.parametrize(
    ("words", "flags", "named"),
    [
        (["embedded", "hi"], {"model": "qwen3:8b"}, ("-m qwen3:8b", "'embedded'")),
        (["embedded", "hi"], {"prompt": "ho"}, ("-p 'ho'", "'hi'")),
        (["hi"], {"model": "m", "prompt": "p"}, ("-m m", "-p", "'hi'")),
        (["What", "is", "this"], {}, ("quotes",)),
    ],
)
def test_what_is_given_twice_is_named(words: list[str], flags: dict[str, str], named: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        settle(words, **(RUN | flags))
    assert all(text in str(caught.value) for text in named)


def test_piped_text_comes_before_the_prompt() -> None:
    assert join("document", "question") == "document\n\nquestion"
    assert join("", "question") == "question"
    assert join("document", None) == "document"


def test_answer_on_stdout_all_else_on_stderr(qwen3: Command, model: Path) -> None:
    ran = qwen3("run", model, "hi", "--no-think", *ASK)
    assert ran.code == 0
    assert ran.out.endswith("\n")
    assert "\x1b" not in ran.out + ran.err  # not a terminal: no colour
    lines = ran.err.splitlines()
    assert lines[0].startswith(f"model: {model}, sha256 ")
    assert lines[0].endswith("parameters, float32 on cpu)")
    assert lines[-1].startswith("prompt ")
    assert "tok/s" in lines[-1]
    assert "first token" in lines[-1]
    again = qwen3("run", model, "-p", "hi", "--no-think", *ASK)
    assert again.out == ran.out


def test_thinking_goes_to_stderr_and_the_budget_is_kept(qwen3: Command, model: Path) -> None:
    arguments = ("run", model, "hi", "--think-budget", "8", "--seed", "3", "--max-tokens", "60")
    ran = qwen3(*arguments, "--think")
    assert ran.code == 0
    assert "solution based on the thinking directly now" in ran.err
    assert "solution based on the thinking" not in ran.out
    assert "(8 thinking)" in ran.err
    assert "first answer" in ran.err
    hidden = qwen3(*arguments, "--think", "--hide-thinking")
    assert "solution based on the thinking" not in hidden.err
    assert hidden.out == ran.out
    value = json.loads(qwen3(*arguments, "--think", "--json").out)
    assert value["content"] == ran.out.removesuffix("\n")
    assert value["thinking"]["used"] == 8
    assert value["thinking"]["ended_by"] == "budget"


def test_json_has_stable_keys_and_is_alone_on_stdout(qwen3: Command, model: Path) -> None:
    ran = qwen3("run", "--json", model, "hi", "--no-think", *ASK)
    value = json.loads(ran.out)
    assert list(value) == [
        "model",
        "content",
        "reasoning_content",
        "tool_calls",
        "finish_reason",
        "warnings",
        "thinking",
        "usage",
        "seed",
        "timing",
        "adapter",
    ]
    assert list(value["model"]) == ["name", "path", "repo", "revision", "sha256", "dtype", "device"]
    assert value["seed"] == 3
    assert value["usage"]["completion_tokens"] == 12
    assert value["finish_reason"] == "length"
    assert "the answer is cut" in value["warnings"][0]


def test_standard_input_is_the_prompt_or_joins_it(qwen3: Command, model: Path) -> None:
    alone = json.loads(qwen3("run", model, "--json", *ASK, stdin="déjà vu\n".encode()).out)
    both = json.loads(qwen3("run", model, "b", "--json", *ASK, stdin=b"a\n").out)
    same = json.loads(qwen3("run", model, "a\n\nb", "--json", *ASK).out)
    assert alone["usage"]["prompt_tokens"] > 0
    assert both["usage"] == same["usage"]
    assert both["content"] == same["content"]
    ran = qwen3("run", model, "b", stdin=b"\xff\xfe")
    assert ran.code == 2
    assert "not UTF-8" in ran.error


def test_system_and_tools_reach_the_prompt(qwen3: Command, model: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools.json"
    function = {"name": "weather", "description": "", "parameters": {"type": "object", "properties": {}}}
    tools.write_text(json.dumps([{"type": "function", "function": function}]))
    counts = [
        json.loads(qwen3("run", model, "hi", "--json", *ASK, *more).out)["usage"]["prompt_tokens"]
        for more in ((), ("--system", "Be brief."), ("--tools", str(tools)))
    ]
    assert counts[0] < counts[1] < counts[2]


def test_raw_sends_no_template(qwen3: Command, model: Path) -> None:
    value = json.loads(qwen3("run", model, "hi", "--raw", "--json", *ASK).out)
    assert value["usage"]["prompt_tokens"] <= 2
    assert qwen3("run", model, "hi", "--raw", *ASK).out


def test_thinking_that_takes_everything_is_said(qwen3: Command, model: Path) -> None:
    ran = qwen3("run", model, "hi", "--think", *ASK)
    assert "there is no answer; raise --max-tokens" in ran.err


def test_a_terminal_gets_no_control_codes_from_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    assert shown("a\x1b[2Jb\n\tc\x9b", Terminal()) == "a\ufffd[2Jb\n\tc\ufffd"  # type: ignore[arg-type]
    assert shown("a\x1b[2J", sys.stdout) == "a\x1b[2J"
    printer = Printer()
    for event in (ReasoningDelta("so"), ReasoningDelta("."), TextDelta("It is 4"), TextDelta(".")):
        printer.show(event)
    printed = capsys.readouterr()
    assert printed.out == "It is 4."
    assert printed.err == "so.\n\n"


def test_first_interrupt_is_noted_the_second_raises() -> None:
    before = signal.getsignal(signal.SIGINT)
    with first_interrupt() as ctrl_c:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert ctrl_c.presses == 1
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_while_the_prompt_is_read(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It does not wait for the first token; the reading is announced when it takes long."""
    monkeypatch.setattr("qwen3.cli.session.PATIENCE_S", 0.05)
    session = Session(LLM(str(model)))
    advance, calls = session.llm.engine.advance, 0

    def slowly() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        advance()

    monkeypatch.setattr(session.llm.engine, "advance", slowly)
    started = time.monotonic()
    question = [{"role": "user", "content": "hi"}]
    answer = session.chat(question, ThinkingPolicy(), SamplingParams(max_tokens=3))
    assert time.monotonic() - started < 4
    assert answer.interrupted
    assert answer.generation.ids == ()
    said = capsys.readouterr().err
    assert "interrupted before the answer" in said
    assert f"reading {len(answer.generation.prompt_ids)} tokens …" in said
    assert not session.chat(question, ThinkingPolicy(), SamplingParams(max_tokens=3)).interrupted


def test_a_model_in_a_thread_leaves_signals_alone() -> None:
    seen: list[int] = []

    def work() -> None:
        with first_interrupt() as ctrl_c:
            seen.append(ctrl_c.presses)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0]


def test_ctrl_c_ends_the_answer_and_a_reader_that_leaves_ends_it_quietly(model: Path) -> None:
    """In processes of their own: real signals, real pipes."""
    command = [sys.executable, "-m", "qwen3.cli.main", "run", str(model), "hi", "--no-think", "--seed", "5"]
    long = [*command, "--presence-penalty", "2"]
    pipe = subprocess.PIPE
    with subprocess.Popen(long, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert first
    assert rest.endswith(b"\n")
    assert process.returncode == 130
    assert b"interrupted: this is what had come by then" in errors
    assert b"Traceback" not in errors
    with subprocess.Popen(long, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        errors = process.stderr.read()
        process.wait(timeout=60)
    assert process.returncode == 141
    assert b"Traceback" not in errors
    assert b"Exception ignored" not in errors
    assert b"error:" not in errors


def test_no_thread_outlives_an_answer(qwen3: Command, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that drops the last reference to the model while Python shuts down aborts the process."""
    timers: list[threading.Timer] = []

    class Slow(threading.Timer):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            timers.append(self)

        def run(self) -> None:
            super().run()
            time.sleep(0.2)  # long enough to be seen by a caller that did not wait

    monkeypatch.setattr("qwen3.cli.session.threading.Timer", Slow)
    assert qwen3("run", model, "hi", *ASK).code == 0
    assert len(timers) == 1
    assert not timers[0].is_alive()


def test_ctrl_c_while_loading_is_said_too(qwen3: Command, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qwen3.cli.session.LLM", interrupted)
    ran = qwen3("run", "--json", model, "hi")
    assert ran.code == 130
    assert ran.error == "interrupted"
    assert json.loads(ran.out)["error"]["exit_code"] == 130


def test_penalties_reach_the_sampler(qwen3: Command, model: Path) -> None:
    ask = ("run", "--no-think", "-n", "24", "--seed", "3", "--temperature", "0", model, "hi")
    plain = qwen3(*ask).out
    for flag, value in (("--repetition-penalty", "10"), ("--frequency-penalty", "2")):
        assert qwen3(*ask, flag, value).out != plain, flag


def test_a_closed_stdout_or_stderr_is_as_good_as_dev_null(model: Path) -> None:
    for closed in (">&-", "2>&-", "<&-", "<&- >&- 2>&-"):
        command = f'"{sys.executable}" -m qwen3.cli.main run --no-think -n 3 "{model}" hi </dev/null {closed}'
        ran = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stderr
        assert "Traceback" not in ran.stderr
        assert "error:" not in ran.stderr


def test_a_single_token_has_no_speed_and_no_answer_while_thinking(qwen3: Command, model: Path) -> None:
    ran = qwen3("run", "--think", "--max-tokens", "1", "--seed", "3", model, "hi")
    assert "thinking took all tokens" in ran.err
    assert re.search(r"output 1( \(1 thinking\))? · first token", ran.err)


def test_raw_is_streamed(qwen3: Command, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[str] = []
    monkeypatch.setattr(Printer, "show", lambda self, event: pieces.append(getattr(event, "text", "")))
    assert qwen3("run", "--raw", "--seed", "3", "--max-tokens", "12", model, "1, 2, 3").code == 0
    assert len([piece for piece in pieces if piece]) > 1


def test_a_fresh_seed_survives_any_json_reader(qwen3: Command, model: Path) -> None:
    seed = json.loads(qwen3("run", "--json", "--max-tokens", "2", model, "hi").out)["seed"]
    assert int(float(seed)) == seed
    assert 0 <= seed < 2**53
