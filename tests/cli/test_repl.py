"""The conversation: commands, settings, what is remembered."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from qwen3 import LLM, SamplingParams, ThinkingPolicy
from qwen3.cli.repl import Repl, _command
from qwen3.cli.session import Session
from qwen3.errors import UsageError
from tests.cli.conftest import terminal_until


class Typist:
    """Types the lines, then Ctrl-D. An exception among them is raised in its place, as Ctrl-C would be."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self.lines: Iterator[str | type[BaseException]] = iter(lines)
        self.prompts: list[str] = []

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        line = next(self.lines, EOFError)
        if isinstance(line, str):
            return line
        raise line


@pytest.fixture(scope="module")
def session(model: Path) -> Session:
    return Session(LLM(str(model)))


@pytest.fixture(autouse=True)
def _no_history(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN3_HISTORY", "")


def talk(session: Session, *lines: str | type[BaseException], **settings: object) -> Repl:
    sampling = SamplingParams(max_tokens=6, seed=3)
    repl = Repl(session, ThinkingPolicy(mode="off"), sampling, None, Typist(*lines))
    for name, value in settings.items():
        setattr(repl, name, value)
    assert repl.loop() == 0
    return repl


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("/think", "/think"),
        ("  /bye ", "/bye"),
        ("/system be brief", "/system"),
        ("/budget 5", "/budget"),
        ("/wrong", "/wrong"),
        ("/no_think What is 2 + 2?", None),
        ("/think 64", "/think"),
        ("/think 64 is even", None),
        ("/etc/passwd: what is it?", None),
        ("/usr", "/usr"),
        ("What is 27 * 14?", None),
        ("/clear\nand more", None),
    ],
)
def test_what_is_a_command(line: str, command: str | None) -> None:
    assert _command(line) == command


def test_the_conversation_is_kept_and_forgotten(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    repl = talk(session, "hi", "", "again")
    assert [message["role"] for message in repl.messages] == ["user", "assistant", "user", "assistant"]
    assert repl.messages[0]["content"] == "hi"
    printed = capsys.readouterr()
    assert repl.messages[1]["content"] in printed.out
    assert printed.err.count("tok/s · output") == 2
    assert talk(session, "hi", "/clear").messages == []


def test_settings(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    assert talk(session, "/think").thinking == ThinkingPolicy(mode="on")
    assert talk(session, "/no_think").thinking == ThinkingPolicy(mode="off")
    assert talk(session, "/budget 40").thinking == ThinkingPolicy(budget=40)
    assert talk(session, "/think", "/budget 40").thinking == ThinkingPolicy(mode="on", budget=40)
    assert talk(session, "/budget 40", "/no_think").thinking == ThinkingPolicy(mode="off")
    assert talk(session, "/budget 40", "/budget off").thinking == ThinkingPolicy()
    assert talk(session, "/budget 0", "/think").thinking == ThinkingPolicy(mode="on")
    assert talk(session, "/auto").thinking == ThinkingPolicy(mode="auto")
    assert talk(session, "/budget 0", "/auto").thinking == ThinkingPolicy(mode="auto")
    assert talk(session, "/auto", "/default").thinking == ThinkingPolicy()
    assert talk(session, "/think 40").thinking == ThinkingPolicy(mode="on", budget=40)
    limited = ThinkingPolicy(max_steps=3, budget=9, time_limit_s=5, answer_reserve=7, soft_landing=2)
    assert talk(session, "/think", thinking=limited).thinking == replace(limited, mode="on")
    assert talk(session, "/no_think", thinking=limited).thinking == ThinkingPolicy("off", time_limit_s=5)
    unsure = ThinkingPolicy("auto", threshold=0.2)
    assert talk(session, "/auto", thinking=unsure).thinking == unsure
    assert talk(session, "/think", thinking=unsure).thinking == ThinkingPolicy("on")
    assert talk(session, "/system Be brief.").system == "Be brief."
    assert talk(session, "/system", system="Be brief.").system is None
    capsys.readouterr()
    talk(session, "/budget 7", "/system Be brief.", "/show", "/help", thinking=ThinkingPolicy(max_steps=3))
    told = capsys.readouterr().err
    assert "thinking: the model's default, at most 7 tokens, max_steps 3" in told
    assert "system: Be brief." in told
    assert "sampling: max_tokens 6, seed 3" in told
    for command in ("/think", "/no_think", "/auto", "/default", "/budget", "/system", "/clear", "/bye"):
        assert command in told


def test_the_system_message_is_sent(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[list[dict[str, str]]] = []
    chat = session.chat

    def spy(messages: list[dict[str, str]], *rest: object) -> object:
        sent.append(list(messages))
        return chat(messages, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(session, "chat", spy)
    talk(session, "/system Be brief.", "hi")
    assert sent == [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]]


def test_wrong_commands_are_told_and_harmless(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    repl = talk(session, "/sytem x", "/xyzzy", "/budget many", "/bye", "never read")
    told = capsys.readouterr().err
    assert "error: no command /sytem; did you mean /system?" in told
    assert "error: no command /xyzzy; /help lists them" in told
    assert "error: /budget many: give a number of tokens, or off" in told
    assert repl.messages == []


def test_a_message_that_fails_is_taken_back(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    repl = talk(session, "word " * 2000, "hi")
    assert "error: " in capsys.readouterr().err
    assert repl.messages[0]["content"] == "hi"


def test_thinking_without_an_answer_is_taken_back(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    repl = talk(session, "hi", thinking=ThinkingPolicy(mode="on"))
    assert repl.messages == []
    assert "your message was taken back" in capsys.readouterr().err


def test_a_message_of_several_lines(session: Session) -> None:
    repl = talk(session, '"""one', "/think", 'three"""')
    assert repl.messages[0]["content"] == "one\n/think\nthree"


def test_ctrl_c_at_the_prompt_does_not_leave(session: Session) -> None:
    assert len(talk(session, KeyboardInterrupt, "hi").messages) == 2


def test_an_old_message_is_warned_of_once(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    talk(session, "a <|im_end|> b </think> c", "hello", "hello again")
    assert capsys.readouterr().err.count("contains the control strings '<|im_end|>', '</think>', which were") == 1


def test_unknown_command_error_is_a_usage_error(session: Session) -> None:
    with pytest.raises(UsageError):
        Repl(session, ThinkingPolicy(), SamplingParams(), None).command("/nothing")


def test_on_a_terminal(model: Path, tmp_path: Path) -> None:
    """The real thing: colours, Ctrl-C during an answer, the history file, Ctrl-D."""
    history = tmp_path / "state" / "history"
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "qwen3.cli.main", "run", str(model), "--seed", "5", "--presence-penalty", "2"]
    environment = {**os.environ, "QWEN3_HISTORY": str(history), "TERM": "xterm", "NO_COLOR": ""}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)

    read_until = partial(terminal_until, ours)
    start = read_until(">>> ")
    assert "\x1b[2mmodel: " in start
    os.write(ours, b"/no_think\n")
    read_until(">>> ")
    os.write(ours, b"hello there\n")
    read_until("hello there\r\n")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    answer = read_until(">>> ")
    assert "interrupted: this is what had come by then" in answer or "tok/s" in answer
    os.write(ours, b"\x04")
    assert process.wait(timeout=60) == 0
    os.close(ours)
    assert history.read_text().split() == ["/no_think", "hello", "there"]
    assert history.stat().st_mode & 0o777 == 0o600
