"""The conversation of `qwen3 run` without a prompt. Commands start with a slash; everything else goes to the model."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen3 import SamplingParams, ThinkingPolicy
from qwen3.chat.policy import Mode
from qwen3.cli.console import complain, note, out
from qwen3.cli.session import Keyboard, Session
from qwen3.errors import Qwen3Error, UsageError

HELP = """\
/think            think before answering (from now on); /think N: at most N tokens
/no_think         answer at once (from now on)
/auto             begin to answer, and think where that shows doubt
/default          let the model decide
/budget N         at most N tokens of thinking; /budget off: no bound
/system TEXT      set the system message; without TEXT: remove it
/clear            forget the conversation, keep the settings
/show             what is running, and the settings
/bye              leave (Ctrl-D does, too)
\"\"\"               begins and ends a message of several lines
Enter, while it thinks: answer now. Ctrl-C stops an answer.
/think or /no_think inside a message is Qwen3's own switch: it holds until the next one."""
HISTORY_LINES = 1000
_MODES: dict[str, Mode | None] = {"/think": "on", "/no_think": "off", "/auto": "auto", "/default": None}


class Repl:
    """Keeps the conversation and the settings; `ask_line` reads one line (a test's stand-in for `input`)."""

    def __init__(
        self,
        session: Session,
        thinking: ThinkingPolicy,
        sampling: SamplingParams,
        system: str | None,
        ask_line: Callable[[str], str] = input,
    ) -> None:
        self.session = session
        self.thinking = thinking
        self.sampling = sampling
        self.system = system
        self.messages: list[dict[str, Any]] = []
        self._ask_line = ask_line

    def loop(self) -> int:
        """Reads and answers until /bye or Ctrl-D; returns the exit code."""
        note("/help lists the commands; Ctrl-D leaves")
        if os.name == "posix" and self._ask_line is input:
            self.session.keyboard = Keyboard()
        with _History():
            while True:
                try:
                    text = self._read()
                except EOFError:
                    out("")
                    return 0
                except KeyboardInterrupt:
                    out("")
                    note("Ctrl-D or /bye leaves")
                    continue
                if not text.strip():
                    continue
                try:
                    if _command(text) is None:
                        self._answer(text)
                    elif not self.command(text.strip()):
                        return 0
                except Qwen3Error as error:
                    complain(error)

    def command(self, line: str) -> bool:
        """Carries out a slash command; False when it means to leave. Raises UsageError for a wrong one."""
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        match name:
            case "/think" | "/no_think" | "/auto" | "/default":
                self._set_mode(_MODES[name])
                if rest:
                    self._set_budget(rest)
            case "/budget":
                self._set_budget(rest)
            case "/system":
                self.system = rest or None
                note("system message set" if rest else "system message removed")
            case "/clear":
                self.messages.clear()
                note("conversation forgotten")
            case "/show":
                self._show()
            case "/help" | "/?":
                note(HELP)
            case "/bye" | "/exit" | "/quit":
                return False
            case _:
                near = difflib.get_close_matches(
                    name, ["/no_think", "/auto", "/default", "/budget", "/system", "/clear", "/show", "/help", "/bye"]
                )
                raise UsageError(
                    f"no command {name}" + (f"; did you mean {near[0]}?" if near else "; /help lists them")
                )
        return True

    def _answer(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})
        system = [{"role": "system", "content": self.system}] if self.system else []
        try:
            answer = self.session.chat(system + self.messages, self.thinking, self.sampling)
        except BaseException:
            self.messages.pop()  # a question without an answer would confuse the next one
            raise
        result = answer.generation
        if result.content or result.tool_calls:
            self.messages.append(result.message.to_dict())
        else:
            self.messages.pop()
            note("no answer: your message was taken back")

    def _read(self) -> str:
        """One message: a line, or what stands between two lines of three quotation marks."""
        line = self._line(">>> ")
        if not line.startswith('"""'):
            return line
        lines = [line[3:]]
        while not lines[-1].rstrip().endswith('"""'):
            lines.append(self._line("... "))
        lines[-1] = lines[-1].rstrip()[:-3]
        return "\n".join(lines).strip("\n")

    def _line(self, prompt: str) -> str:
        """A line; first those that were typed while the model was thinking."""
        if self.session.keyboard is None or not self.session.keyboard.lines:
            return self._ask_line(prompt)
        line = self.session.keyboard.lines.pop(0)
        if line is None:
            raise EOFError
        out(prompt + line)
        return line

    def _set_mode(self, mode: Mode | None) -> None:
        thinking = self.thinking
        if mode == "off":
            if thinking.limits:
                note(f"bounds of the thinking are off, too: {', '.join(thinking.limits)}")
            bounds: dict[str, Any] = dict.fromkeys(("budget", "answer_reserve", "max_steps", "soft_landing"))
        else:
            bounds = {"budget": thinking.budget or None} if mode else {}
        threshold = thinking.threshold if mode == "auto" else None
        self.thinking = replace(thinking, mode=mode, threshold=threshold, **bounds)
        note(f"thinking: {self._thinking()}")

    def _set_budget(self, text: str) -> None:
        if text.lower() in ("off", "none"):
            self.thinking = replace(self.thinking, budget=None)
        elif text.isdecimal():
            budget = int(text)
            mode = None if (self.thinking.mode == "off" and budget) else self.thinking.mode
            self.thinking = replace(self.thinking, mode=mode, budget=budget)
        else:
            raise UsageError(f"{f'/budget {text}'.rstrip()}: give a number of tokens, or off")
        note(f"thinking: {self._thinking()}")

    def _thinking(self) -> str:
        given = {k: v for k, v in vars(self.thinking).items() if v != getattr(ThinkingPolicy(), k)}
        parts = [given.pop("mode", None) or "the model's default"]
        if "budget" in given:
            parts.append(f"at most {given.pop('budget')} tokens")
        return ", ".join([*parts, *(f"{k} {v}" for k, v in given.items())])

    def _show(self) -> None:
        from qwen3.cli.session import running

        resolved = self.session.llm.resolved
        name = resolved.describe() if resolved else "in memory"
        given = {k: v for k, v in vars(self.sampling).items() if v != getattr(SamplingParams(), k)}
        note(f"model: {name} ({running(self.session.llm)})")
        note(f"thinking: {self._thinking()}")
        note("sampling: " + (", ".join(f"{k} {v}" for k, v in given.items()) or "the published defaults of the mode"))
        note(f"system: {self.system or 'none'}")
        note(f"conversation: {len(self.messages)} messages")


def _command(text: str) -> str | None:
    """The command a line gives; None for a message. `/think 64` is one, but `/no_think What is 2 + 2?` is a message
    with Qwen3's own switch, and a line that starts with a path is one, too."""
    found = re.match(r"\s*(/[a-z_?]+)(\s+\S)?", text) if "\n" not in text else None
    if found is None or (
        found[1] in ("/think", "/no_think") and found[2] and not re.match(r"\s*/think\s+\d+\s*$", text)
    ):
        return None
    return found[1] if re.match(r"\s*/[a-z_?]+(\s|$)", text) else None


class _History:
    """Line editing and a history over sessions, where Python has readline. QWEN3_HISTORY: its file, "" for none."""

    def __enter__(self) -> None:
        self._file: Path | None = None
        try:
            import readline
        except ImportError:
            return
        state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
        named = os.environ.get("QWEN3_HISTORY", str(state / "qwen3" / "history"))
        if not named:
            return
        self._file = Path(named).expanduser()
        readline.set_history_length(HISTORY_LINES)
        with suppress(OSError):
            readline.read_history_file(self._file)

    def __exit__(self, *_error: object) -> None:
        if self._file is None:
            return
        import readline

        with suppress(OSError):  # a home that cannot be written is no reason to fail
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.touch(mode=0o600)
            readline.write_history_file(self._file)
