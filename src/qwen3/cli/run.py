"""`qwen3 run`: what is the model, what is the prompt, do the flags agree; then one answer, or a conversation."""

from __future__ import annotations

import json
import os
import re
import select
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen3.checkpoint import looks_like_model, resolve
from qwen3.cli.console import note, out_json
from qwen3.errors import Qwen3Error, UsageError

MAX_FILE_BYTES = 1 << 20
_WAIT_S = 1.0  # how long standard input may be silent before we say that we wait for it
_FLAGS = {
    "budget": "--think-budget",
    "answer_reserve": "--answer-reserve",
    "max_steps": "--max-steps",
    "time_limit_s": "--time-limit",
    "max_active_params": "--max-active-params",
    "soft_landing": "--soft-landing",
    "threshold": "--threshold",
}
_MODES = {"on": "--think", "off": "--no-think", "auto": "--auto"}


@dataclass(frozen=True)
class Options:
    """The flags of `qwen3 run` but model and prompt. `sampling` and `thinking` hold the arguments of SamplingParams and
    of ThinkingPolicy (but the mode)."""

    system: str | None = None
    think: bool = False
    no_think: bool = False
    auto: bool = False
    thinking: dict[str, Any] = field(default_factory=dict)
    hide_thinking: bool = False
    sampling: dict[str, Any] = field(default_factory=dict)
    tools: Path | None = None
    tool_choice: str | None = None
    schema: str | None = None
    regex: str | None = None
    grammar: Path | None = None
    raw: bool = False
    adapter: Path | None = None
    device: str | None = None
    dtype: str | None = None
    speculation: str | None = None
    as_json: bool = False

    def check(self) -> None:
        """Raises UsageError naming the two flags that contradict each other."""
        modes = [
            flag for flag, given in zip(_MODES.values(), (self.think, self.no_think, self.auto), strict=True) if given
        ]
        if len(modes) > 1:
            raise UsageError(f"{modes[0]} and {modes[1]} contradict each other: give one")
        limits = [_FLAGS[name] for name, value in self.thinking.items() if value is not None]
        if modes in (["--think"], ["--auto"]) and self.thinking.get("budget") == 0:
            raise UsageError(f"{modes[0]} and --think-budget 0 contradict each other: give one")
        if "--threshold" in limits and not self.auto:
            raise UsageError("--threshold is of --auto: give both, or neither")
        if self.raw:
            for flag, given in (
                ("--hide-thinking", self.hide_thinking),
                ("--system", self.system is not None),
                ("--tools", self.tools is not None),
                ("--tool-choice", self.tool_choice is not None),
                *((flag, True) for flag in (*modes, *limits)),
            ):
                if given:
                    raise UsageError(
                        f"--raw and {flag} contradict each other: --raw sends the prompt without a template"
                    )

    @property
    def mode(self) -> str | None:
        return "on" if self.think else "off" if self.no_think else "auto" if self.auto else None

    def form(self) -> dict[str, Any]:
        """What the answer may look like, as arguments of `LLM.chat`; read and checked, before any model is loaded."""
        found: dict[str, Any] = {
            "tools": read_tools(self.tools) if self.tools else None,
            "tool_choice": self.tool_choice,
            "schema": read_schema(self.schema) if self.schema is not None else None,
            "regex": self.regex,
            "grammar": read_file(self.grammar) if self.grammar else None,
        }
        found = {name: value for name, value in found.items() if value is not None}
        if found:
            from qwen3.asking import Form

            Form.of(**found)
        return found


def run(words: list[str], model: str | None, prompt: str | None, options: Options) -> int:
    """Everything that can be wrong without the model is found before the model is loaded."""
    try:
        return _run(words, model, prompt, options)
    except UsageError as error:  # what the library calls a field is a flag here
        text = re.sub(
            r"thinking\.mode (is )?'(on|off|auto)'", lambda m: _MODES[m[2]] + " is given" * bool(m[1]), str(error)
        )
        raise UsageError(re.sub(r"thinking\.(\w+)", lambda m: _FLAGS.get(m[1], m[0]), text)) from error


def _run(words: list[str], model: str | None, prompt: str | None, options: Options) -> int:
    options.check()
    model, prompt = settle(words, model, prompt)
    talk = prompt is None and sys.stdin.isatty() and sys.stdout.isatty()
    if not talk:
        prompt = join(read_piped(prompt is not None), prompt)
        if not prompt or not prompt.strip():
            raise _no_prompt(model)
    for flag, given in (
        ("--json", options.as_json),
        ("--raw", options.raw),
        ("--tools", options.tools),
        ("--schema", options.schema),
        ("--regex", options.regex),
        ("--grammar", options.grammar),
    ):
        if talk and given:
            raise UsageError(f"{flag} needs a prompt")
    from qwen3 import SamplingParams, ThinkingPolicy

    sampling = SamplingParams(**options.sampling)
    thinking = ThinkingPolicy(mode=options.mode, **options.thinking)  # type: ignore[arg-type]
    form = options.form()

    from qwen3.cli.session import Session, to_json

    session = Session.open(
        model,
        options.device,
        options.dtype,
        hide_thinking=options.hide_thinking,
        quiet=options.as_json,
        prefill_ahead=talk,
        speculation=options.speculation,
        adapter=options.adapter,
    )
    if talk:
        from qwen3.cli.repl import Repl

        return Repl(session, thinking, sampling, options.system).loop()
    assert prompt is not None
    if options.raw:
        answer = session.complete(prompt, sampling, **form)
    else:
        system = [{"role": "system", "content": options.system}] if options.system is not None else []
        answer = session.chat([*system, {"role": "user", "content": prompt}], thinking, sampling, **form)
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


def read_file(path: Path) -> str:
    """A text file that a flag names. Raises UsageError naming it."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UsageError(f"{path}: more than {MAX_FILE_BYTES:,} bytes are too much here")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text") from None


def read_schema(given: str) -> str:
    """The JSON text of a schema: `given` itself, or that of the file it names."""
    return given if given.lstrip().startswith("{") or given in ("true", "false") else read_file(Path(given))


def read_tools(path: Path) -> list[Any]:
    """A JSON list of function definitions. Raises UsageError naming the file and what is wrong."""
    try:
        tools = json.loads(read_file(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise
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
