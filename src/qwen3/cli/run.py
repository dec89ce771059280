"""`qwen3 run`: what is the model, what is the prompt, do the flags agree; then one answer, or a conversation."""

from __future__ import annotations

import json
import os
import select
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen3.checkpoint import looks_like_model, resolve
from qwen3.cli.console import note, out_json
from qwen3.errors import Qwen3Error, UsageError

MAX_TOOLS_BYTES = 1 << 20
_WAIT_S = 1.0  # how long standard input may be silent before we say that we wait for it


@dataclass(frozen=True)
class Options:
    """The flags of `qwen3 run` but model and prompt. `sampling` holds the arguments of SamplingParams."""

    system: str | None = None
    think: bool = False
    no_think: bool = False
    think_budget: int | None = None
    hide_thinking: bool = False
    sampling: dict[str, Any] = field(default_factory=dict)
    tools: Path | None = None
    raw: bool = False
    device: str | None = None
    dtype: str | None = None
    as_json: bool = False

    def check(self) -> None:
        """Raises UsageError naming the two flags that contradict each other."""
        if self.think and self.no_think:
            raise UsageError("--think and --no-think contradict each other: give one")
        if self.no_think and self.think_budget:
            raise UsageError(f"--no-think and --think-budget {self.think_budget} contradict each other: give one")
        if self.think and self.think_budget == 0:
            raise UsageError("--think and --think-budget 0 contradict each other: give one")
        if self.raw:
            for flag, given in (
                ("--think", self.think),
                ("--no-think", self.no_think),
                ("--think-budget", self.think_budget is not None),
                ("--hide-thinking", self.hide_thinking),
                ("--system", self.system is not None),
                ("--tools", self.tools is not None),
            ):
                if given:
                    raise UsageError(
                        f"--raw and {flag} contradict each other: --raw sends the prompt without a template"
                    )

    @property
    def mode(self) -> str | None:
        return "on" if self.think else "off" if self.no_think else None


def run(words: list[str], model: str | None, prompt: str | None, options: Options) -> int:
    """Everything that can be wrong without the model is found before the model is loaded."""
    options.check()
    model, prompt = settle(words, model, prompt)
    talk = prompt is None and sys.stdin.isatty() and sys.stdout.isatty()
    if not talk:
        prompt = join(read_piped(prompt is not None), prompt)
        if not prompt or not prompt.strip():
            raise _no_prompt(model)
    elif options.as_json or options.raw or options.tools:
        flag = "--json" if options.as_json else "--raw" if options.raw else "--tools"
        raise UsageError(f"{flag} needs a prompt")
    tools = read_tools(options.tools) if options.tools else None

    from qwen3 import SamplingParams, ThinkingPolicy

    sampling = SamplingParams(**options.sampling)
    thinking = ThinkingPolicy(mode=options.mode, budget=options.think_budget)  # type: ignore[arg-type]

    from qwen3.cli.session import Session, to_json

    session = Session.open(
        model, options.device, options.dtype, hide_thinking=options.hide_thinking, quiet=options.as_json
    )
    if talk:
        from qwen3.cli.repl import Repl

        return Repl(session, thinking, sampling, options.system).loop()
    assert prompt is not None
    if options.raw:
        answer = session.complete(prompt, sampling)
    else:
        system = [{"role": "system", "content": options.system}] if options.system is not None else []
        answer = session.chat([*system, {"role": "user", "content": prompt}], thinking, sampling, tools)
    if options.as_json:
        out_json(to_json(session, answer))
    return 130 if answer.interrupted else 0


def settle(words: list[str], model: str | None, prompt: str | None) -> tuple[str | None, str | None]:
    """(model, prompt) from the positional words and -m, -p. Raises UsageError naming what is given twice.

    -m and -p always decide. A single word is the model if it can be one (`looks_like_model`), else the prompt.
    """
    if len(words) > 2:
        raise UsageError(f"too many arguments ({len(words)}): [MODEL] [PROMPT]; put the prompt in quotes")
    if model is not None and prompt is not None and words:
        raise UsageError(f"-m {model}, -p and the argument {_short(words[0])}: nothing is left for the argument to be")
    if len(words) == 2:
        if model is not None:
            raise UsageError(f"-m {model} and the model argument {_short(words[0])} contradict each other: give one")
        if prompt is not None:
            raise UsageError(
                f"-p {_short(prompt)} and the prompt argument {_short(words[1])} contradict each other: give one"
            )
        return words[0], words[1]
    if len(words) == 1:
        if prompt is not None or (model is None and looks_like_model(words[0])):
            return words[0], prompt
        return model, words[0]
    return model, prompt


def read_piped(have_prompt: bool) -> str:
    """What is piped or redirected into us, without surrounding blank lines; "" on a terminal."""
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return ""
    if have_prompt and os.name == "posix":
        try:
            ready = select.select([sys.stdin], [], [], _WAIT_S)[0]
        except (OSError, ValueError):
            ready = [sys.stdin]  # not a file of the system (a test's stand-in)
        if not ready:
            note("waiting for the end of standard input; if nothing is piped in, add < /dev/null")
    data = getattr(sys.stdin, "buffer", sys.stdin).read()
    if isinstance(data, str):
        return data.strip("\r\n")
    try:
        return data.decode("utf-8").strip("\r\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 text (byte {error.start}); this model reads text only") from None


def join(piped: str, prompt: str | None) -> str | None:
    """The piped text first, then the prompt: a question after its document."""
    return f"{piped}\n\n{prompt}" if piped and prompt else piped or prompt


def read_tools(path: Path) -> list[Any]:
    """A JSON list of function definitions. Raises UsageError naming the file and what is wrong."""
    try:
        if path.stat().st_size > MAX_TOOLS_BYTES:
            raise UsageError(f"{path}: more than {MAX_TOOLS_BYTES:,} bytes are no tool list")
        tools = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools) or not tools:
        raise UsageError(f"{path}: expected a JSON list of function definitions, each an object")
    for i, tool in enumerate(tools):
        function = tool.get("function", tool)  # OpenAI's wrapper may be left out
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise UsageError(
                f"{path}: entry {i} has no function name; expected "
                '{"type": "function", "function": {"name": …, "description": …, "parameters": …}}'
            )
    return tools


def _no_prompt(model: str | None) -> Qwen3Error:
    """A model that is no such file is said first, since it is what was given."""
    how = 'give one (qwen3 run "What is 27 * 14?"), pipe one in, or run in a terminal'
    if model is None:
        return UsageError(f"no prompt: {how}")
    if model.startswith(("/", "./", "../", "~")) or model.lower().endswith(".gguf"):
        try:
            resolve(model, offline=True)
        except Qwen3Error as error:
            return error
    return UsageError(f"no prompt for the model {_short(model)}: {how}; if it is the prompt, say -p {_short(model)}")


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 40 else text[:39] + "…")
