"""One loaded model, asked and printed: thinking dim on stderr, the answer on stdout as it comes, a timing line."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from qwen3.chat import Event, Finish, ReasoningDelta, TextDelta, ThinkingPolicy
from qwen3.checkpoint import resolve
from qwen3.cli.console import dim, note, out, parameters, shown, warn
from qwen3.engine.params import SamplingParams
from qwen3.llm import LLM, ChatStream, Generation, check_options

PATIENCE_S = 3.0  # after so long without a token we say what we are doing
DEMONSTRATION = "a demonstration model; for real work: qwen3 run qwen3:0.6b"


@dataclass(frozen=True)
class Answer:
    """`interrupted`: Ctrl-C ended it, and the generation is what had come by then."""

    generation: Generation
    interrupted: bool = False


class Printer:
    """Shows events as they come, thinking on stderr, the answer on stdout."""

    def __init__(self, hide_thinking: bool = False) -> None:
        self._hide = hide_thinking
        self._thinking = False  # a line of thinking is open on stderr
        self._open = False  # a line of the answer is open on stdout

    def show(self, event: Event) -> None:
        if isinstance(event, ReasoningDelta) and event.text and not self._hide:
            self._thinking = True
            self._stderr(dim(shown(event.text, sys.stderr), sys.stderr))
        elif isinstance(event, TextDelta) and event.text:
            self._end_thinking()
            out(shown(event.text, sys.stdout), end="")
            self._open = not event.text.endswith("\n")

    def close(self, generation: Generation) -> None:
        """Ends open lines and prints the tool calls, one JSON object a line: they are part of the answer."""
        self._end_thinking()
        if self._open:
            out("")
        for call in generation.tool_calls:
            out(f'{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": {call.arguments}}}')

    def _end_thinking(self) -> None:
        if self._thinking:
            self._stderr("\n\n")
            self._thinking = False

    @staticmethod
    def _stderr(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


class Keyboard:
    """What is typed on the terminal while a model thinks. `lines` keeps it for the next prompt; None is Ctrl-D."""

    def __init__(self) -> None:
        self.lines: list[str | None] = []

    def enter(self) -> bool:
        """Whether Enter was pressed, on an empty line, since somebody looked."""
        pressed = False
        while select.select([sys.stdin], [], [], 0)[0]:
            data = os.read(sys.stdin.fileno(), 4096)  # a terminal gives one line at a time
            line = data.decode(errors="replace").rstrip("\r\n") if data else None
            if line == "":
                pressed = True
            else:
                self.lines.append(line)
                break
        return pressed


class Session:
    """A model and how its answers are shown. `quiet`: not at all (`--json`). `keyboard`: where Enter says that thinking
    has gone on long enough. `adapter`: the name of the one that all answers are made with."""

    def __init__(
        self, llm: LLM, *, hide_thinking: bool = False, quiet: bool = False, adapter: str | None = None
    ) -> None:
        self.llm = llm
        self.adapter = adapter
        self._warned: set[str] = set()
        self.hide_thinking = hide_thinking
        self.quiet = quiet
        self.keyboard: Keyboard | None = None

    @classmethod
    def open(
        cls,
        model: str | None,
        device: str | None,
        dtype: str | None,
        *,
        hide_thinking: bool = False,
        quiet: bool = False,
        adapter: Path | None = None,
        **options: Any,
    ) -> Session:
        """Finds (or downloads) and loads `model`, with more options of `LLM`; one line on stderr says what it is.
        adapter: a folder."""
        check_options(model, device, dtype)
        name = None if adapter is None else adapter.expanduser().resolve().name
        if name is not None:
            options["adapters"] = {name: adapter}
        found = resolve(model)
        print(dim(f"model: {found.describe()}", sys.stderr), end="", file=sys.stderr, flush=True)
        try:
            llm = LLM(model, device=device, dtype=dtype, **options)
        except BaseException:
            print(file=sys.stderr)
            raise
        demonstration = f": {DEMONSTRATION}" if found.kind == "embedded" else ""
        note(f" ({running(llm)}){demonstration}")
        for used in llm.adapters.values():
            base = f", made for {used.base}" if used.base else ""
            note(f"adapter: {shown(used.source, sys.stderr)} (rank {used.rank}, {used.modules} matrices{base})")
        for warning in llm.warnings:
            warn(warning)
        return cls(llm, hide_thinking=hide_thinking, quiet=quiet, adapter=name)

    def chat(
        self, messages: list[dict[str, Any]], thinking: ThinkingPolicy, sampling: SamplingParams, **form: Any
    ) -> Answer:
        """One answer, shown as it comes. The first Ctrl-C ends it, the second raises KeyboardInterrupt. form: more
        arguments of `LLM.chat`."""
        form |= {"thinking": thinking, "sampling": sampling, "adapter": self.adapter}
        return self._follow(lambda: self.llm.chat(messages, stream=True, **form))

    def complete(self, prompt: str, sampling: SamplingParams, **form: Any) -> Answer:
        """Continues `prompt` as it is, without a chat template; else as `chat`."""
        return self._follow(lambda: self.llm.generate(prompt, sampling, stream=True, adapter=self.adapter, **form))

    def _follow(self, start: Callable[[], ChatStream]) -> Answer:
        interrupted = False
        printer = Printer(self.hide_thinking)
        with first_interrupt() as ctrl_c, start() as stream:
            ctrl_c.waiting = True  # a long prompt can take minutes on a CPU: nobody waits for its end to stop it
            patience = threading.Timer(PATIENCE_S, lambda: note(f"reading {len(stream.result.prompt_ids):,} tokens …"))
            patience.daemon = True
            if not self.quiet:
                patience.start()
            try:
                for event in stream:
                    ctrl_c.waiting = False
                    patience.cancel()
                    if not self.quiet:
                        printer.show(event)
                    if self.keyboard and isinstance(event, ReasoningDelta) and self.keyboard.enter():
                        stream.answer_now()
                    if ctrl_c.presses and not isinstance(event, Finish):
                        interrupted = True
                        break
            except KeyboardInterrupt:
                if ctrl_c.presses != 1:
                    raise
                interrupted = True
            finally:
                # Joined: a thread left behind could drop the last reference to the model while Python shuts down, which
                # ends the process with an abort.
                patience.cancel()
                if not self.quiet:
                    patience.join()
        answer = Answer(stream.result, interrupted)
        if not self.quiet:
            printer.close(answer.generation)
            self._report(answer)
        return answer

    def _report(self, answer: Answer) -> None:
        for warning in notes(answer):
            if warning in answer.generation.warnings:  # an old message of a conversation is warned of once
                if warning in self._warned:
                    continue
                self._warned.add(warning)
            warn(warning)
        line = timing_line(answer.generation)
        if line:
            note(line)


@dataclass
class CtrlC:
    """How often it was pressed. While `waiting` the first press raises KeyboardInterrupt, too."""

    presses: int = 0
    waiting: bool = False


@contextmanager
def first_interrupt() -> Iterator[CtrlC]:
    """Within the block the first Ctrl-C is counted in what is given, the second raises KeyboardInterrupt."""
    ctrl_c = CtrlC()

    def handler(_number: int, _frame: FrameType | None) -> None:
        ctrl_c.presses += 1
        if ctrl_c.presses > 1 or ctrl_c.waiting:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only the main thread may have handlers
        yield ctrl_c
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield ctrl_c
    finally:
        signal.signal(signal.SIGINT, before)


def running(llm: LLM) -> str:
    """Size, dtype and device, for people."""
    return (
        f"{parameters(llm.config.num_parameters())} parameters, {str(llm.dtype).removeprefix('torch.')} on {llm.device}"
    )


def notes(answer: Answer) -> list[str]:
    """What the user should know about this answer."""
    generation = answer.generation
    found = list(generation.warnings)
    if answer.interrupted:
        found.append(
            "interrupted: this is what had come by then" if generation.ids else "interrupted before the answer"
        )
    elif generation.finish_reason == "length":
        thinks = generation.thinking is not None and generation.thinking.mode == "on"
        empty = thinks and not generation.content and not generation.tool_calls
        found.append(
            "thinking took all tokens and there is no answer; raise --max-tokens, or bound it with --think-budget"
            if empty
            else "the answer is cut: --max-tokens, --time-limit or the end of the context was reached"
        )
    elif generation.finish_reason == "loop":
        found.append("the answer repeated itself without end and was stopped")
    return found


def timing_line(generation: Generation) -> str:
    """prompt 34 tokens at 310 tok/s · output 120 (96 thinking) at 85 tok/s · first token 0.1 s · first answer 1.2 s"""
    usage, timing = generation.usage, generation.timing
    if usage is None or timing is None:
        return ""
    thought = f" ({usage.reasoning_tokens:,} thinking)" if usage.reasoning_tokens else ""
    speed = f" at {timing.decode_tokens_per_second:,.0f} tok/s" if usage.completion_tokens > 1 else ""
    parts = [
        f"prompt {usage.prompt_tokens:,} tokens at {timing.prompt_tokens_per_second:,.0f} tok/s",
        f"output {usage.completion_tokens:,}{thought}{speed}",
        f"first token {timing.first_token:.2f} s",
    ]
    if timing.first_answer is not None and usage.reasoning_tokens:
        parts.append(f"first answer {timing.first_answer:.2f} s")
    return " · ".join(parts)


def to_json(session: Session, answer: Answer) -> dict[str, Any]:
    """The object of `qwen3 run --json`; docs/cli.md lists its keys, which do not change."""
    generation, llm, resolved = answer.generation, session.llm, session.llm.resolved
    assert resolved is not None  # a session opens models by name
    return {
        "model": {
            "name": resolved.name,
            "path": str(resolved.path),
            "repo": resolved.repo,
            "revision": resolved.commit,
            "sha256": resolved.sha256,
            "dtype": str(llm.dtype).removeprefix("torch."),
            "device": str(llm.device),
        },
        "content": generation.content,
        "reasoning_content": generation.reasoning_content,
        "tool_calls": [call.to_dict() for call in generation.tool_calls],
        "finish_reason": generation.finish_reason,
        "warnings": llm.warnings + notes(answer),
        "thinking": asdict(generation.thinking) if generation.thinking else None,
        "usage": asdict(generation.usage) if generation.usage else None,
        "seed": generation.seed,
        "timing": asdict(generation.timing) if generation.timing else None,
        "adapter": session.adapter and llm.adapters[session.adapter].source,
    }
