"""One loaded model, asked and printed: thinking dim on stderr, the answer on stdout as it comes, a timing line."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

from qwen3 import LLM, SamplingParams, ThinkingPolicy
from qwen3.chat import Event, Finish, ReasoningDelta, Result, TextDelta, ToolCallDelta, fold
from qwen3.cli.console import dim, note, out, parameters, warn

DEMONSTRATION = "a small demonstration model; for real work: qwen3 run qwen3:0.6b"


@dataclass(frozen=True)
class Timing:
    """Seconds from the request to: the first token, the first token of the answer (None: there was none), the end."""

    first_token: float | None
    first_answer: float | None
    total: float

    def rates(self, result: Result) -> tuple[float | None, float | None]:
        """Prompt and output tokens per second; None where there is too little to measure."""
        if result.usage is None or self.first_token is None:
            return None, None
        prompt = (result.usage.prompt_tokens - result.usage.cached_tokens) / max(self.first_token, 1e-9)
        rest = self.total - self.first_token
        return prompt, (result.usage.completion_tokens - 1) / rest if result.usage.completion_tokens > 1 else None


@dataclass(frozen=True)
class Answer:
    result: Result
    timing: Timing
    interrupted: bool


class Printer:
    """Shows events as they come. `quiet` shows nothing; `hide_thinking` the answer alone."""

    def __init__(self, *, quiet: bool = False, hide_thinking: bool = False) -> None:
        self._quiet = quiet
        self._hide = hide_thinking
        self._thinking = False  # a line of thinking is open on stderr
        self._open = False  # a line of the answer is open on stdout

    def show(self, event: Event) -> None:
        if self._quiet:
            return
        match event:
            case ReasoningDelta(text=text) if text and not self._hide:
                self._thinking = True
                sys.stderr.write(dim(text, sys.stderr))
                sys.stderr.flush()
            case TextDelta(text=text) if text:
                self._end_thinking()
                out(text, end="")
                self._open = not text.endswith("\n")

    def close(self, result: Result) -> None:
        """Ends open lines and prints the tool calls, one JSON object a line: they are the answer, too."""
        if self._quiet:
            return
        self._end_thinking()
        if self._open:
            out("")
        for call in result.tool_calls:
            out(f'{{"name": {_quoted(call.name)}, "arguments": {call.arguments}}}')

    def _end_thinking(self) -> None:
        if self._thinking:
            sys.stderr.write("\n\n")
            sys.stderr.flush()
            self._thinking = False


class Session:
    """A model and how it is asked."""

    def __init__(self, llm: LLM, *, hide_thinking: bool = False, quiet: bool = False) -> None:
        self.llm = llm
        self.hide_thinking = hide_thinking
        self.quiet = quiet

    @classmethod
    def open(cls, model: str | None, device: str | None, dtype: str | None, **options: bool) -> Session:
        """Resolves and loads `model`, and says on stderr what it is."""
        llm = LLM(model, device=device, dtype=dtype)
        note(f"model: {describe(llm)}")
        return cls(llm, **options)

    def chat(
        self, messages: list[dict[str, Any]], thinking: ThinkingPolicy, sampling: SamplingParams, tools: Any = None
    ) -> Answer:
        return self._show(self.llm.chat(messages, thinking=thinking, sampling=sampling, tools=tools, stream=True))

    def complete(self, prompt: str, sampling: SamplingParams) -> Answer:
        """Continues `prompt` as it is, without a chat template."""
        return self._show(self.llm.generate(prompt, sampling, stream=True))

    def _show(self, events: Iterable[Event]) -> Answer:
        start = time.perf_counter()
        marks: dict[str, float] = {}
        seen: list[Event] = []
        printer = Printer(quiet=self.quiet, hide_thinking=self.hide_thinking)
        interrupted = False
        with first_interrupt() as pressed:
            for event in events:
                if not isinstance(event, Finish):
                    marks.setdefault("token", time.perf_counter() - start)
                if isinstance(event, (TextDelta, ToolCallDelta)):
                    marks.setdefault("answer", time.perf_counter() - start)
                seen.append(event)
                printer.show(event)
                if pressed.is_set() and not isinstance(event, Finish):
                    interrupted = True
                    break
        if interrupted and hasattr(events, "close"):
            events.close()  # tells the engine to drop the request
        result = fold(seen)
        printer.close(result)
        timing = Timing(marks.get("token"), marks.get("answer"), time.perf_counter() - start)
        if not self.quiet:
            self._report(Answer(result, timing, interrupted))
        return Answer(result, timing, interrupted)

    @staticmethod
    def _report(answer: Answer) -> None:
        for warning in notes(answer):
            warn(warning)
        line = timing_line(answer)
        if line:
            note(line)


@contextmanager
def first_interrupt() -> Iterator[threading.Event]:
    """Within the block the first Ctrl-C sets the event that is given, the second raises KeyboardInterrupt."""
    pressed = threading.Event()

    def handler(_number: int, _frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    if threading.current_thread() is not threading.main_thread():  # only the main thread may have handlers
        yield pressed
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def describe(llm: LLM) -> str:
    """What is running: name, where it comes from, size, dtype, device."""
    model = llm.model
    count = parameters(llm.config.num_parameters())
    running = f"{count} parameters, {str(model.dtype).removeprefix('torch.')} on {model.device}"
    if llm.resolved.kind == "embedded":
        return f"{llm.resolved.describe()}, {DEMONSTRATION} ({running})"
    return f"{llm.resolved.describe()} ({running})"


def notes(answer: Answer) -> list[str]:
    """What the user should know about this answer."""
    result = answer.result
    found = list(result.warnings)
    if answer.interrupted:
        found.append("stopped by you; what stands above is all there is")
    if result.finish_reason == "length":
        ran_out = "the answer was cut: --max-tokens, or the end of the context, was reached"
        empty = "thinking took all tokens and there is no answer; raise --max-tokens, or bound it with --think-budget"
        found.append(empty if result.reasoning_content and not result.content and not result.tool_calls else ran_out)
    return found


def timing_line(answer: Answer) -> str:
    """prompt 34 tokens at 310 tok/s · output 120 (96 thinking) at 85 tok/s · first token 0.11 s · first answer 1.24 s"""
    usage, timing = answer.result.usage, answer.timing
    if usage is None:
        return ""
    prompt, output = timing.rates(answer.result)
    parts = [f"prompt {usage.prompt_tokens:,} tokens" + (f" at {prompt:,.0f} tok/s" if prompt else "")]
    thought = f" ({usage.reasoning_tokens:,} thinking)" if usage.reasoning_tokens else ""
    parts.append(f"output {usage.completion_tokens:,}{thought}" + (f" at {output:,.0f} tok/s" if output else ""))
    if timing.first_token is not None:
        parts.append(f"first token {timing.first_token:.2f} s")
    if timing.first_answer is not None:
        parts.append(f"first answer {timing.first_answer:.2f} s")
    return " · ".join(parts)


def to_json(session: Session, answer: Answer) -> dict[str, Any]:
    """The object of `qwen3 run --json`; its keys are listed in docs/cli.md and do not change."""
    result, timing, resolved = answer.result, answer.timing, session.llm.resolved
    prompt, output = timing.rates(result)
    return {
        "model": {
            "name": resolved.name,
            "path": str(resolved.path),
            "repo": resolved.repo,
            "revision": resolved.commit or resolved.revision,
            "sha256": resolved.sha256,
        },
        "content": result.content,
        "reasoning_content": result.reasoning_content,
        "tool_calls": [call.to_dict() for call in result.tool_calls],
        "finish_reason": "cancelled" if answer.interrupted else result.finish_reason,
        "warnings": notes(answer),
        "thinking": asdict(result.thinking) if result.thinking else None,
        "usage": asdict(result.usage) if result.usage else None,
        "timing": {
            "first_token_s": timing.first_token,
            "first_answer_s": timing.first_answer,
            "total_s": timing.total,
            "prompt_tokens_per_s": prompt,
            "output_tokens_per_s": output,
        },
    }


def _quoted(text: str) -> str:
    import json

    return json.dumps(text, ensure_ascii=False)
