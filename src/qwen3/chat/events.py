"""What a generation is made of: deltas, then one Finish. Folded, they are the result that is not streamed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from qwen3.chat.messages import Message, ToolCall


@dataclass(frozen=True)
class ReasoningDelta:
    """More reasoning text. `ids` are the tokens pushed since the last delta of this kind that led to it."""

    text: str
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class TextDelta:
    """More answer text; `ids` as in ReasoningDelta."""

    text: str
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class ToolCallDelta:
    """A tool call, or more of one: `id` and `name` come with the first delta of an index, arguments are appended."""

    index: int
    id: str | None
    name: str | None
    arguments_delta: str


@dataclass(frozen=True)
class ToolCallDropped:
    """The call `index`, of which deltas were given, turned out malformed or unclosed: forget it. `text`, as the model
    wrote it, follows in the content."""

    index: int
    text: str


@dataclass(frozen=True)
class Usage:
    """Token counts. reasoning_tokens: sampled between the think tags. completion_tokens: all, forced ones, discarded
    ones and the end-of-sequence token included."""

    prompt_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class ThinkingReport:
    """How the thinking went.

    mode: what it did, "on" (a think block with thinking in it was opened) or "off"; "auto" while that is undecided.
    budget: the bound in force. used: tokens sampled strictly between the tags. forced_tokens: tokens put there by the
    stream, not the model. ended_by: "natural" (the model wrote the closing tag), "budget", "steps", "time", "client",
    "loop", "eos" (it tried to stop inside), "length", "cancelled", "stop", or None (no thinking). source: what settled
    the mode, "explicit", "switch", "default" or "auto" (None: nobody said). steps: paragraphs of the reasoning.
    discarded_tokens: of the answer that mode "auto" began and threw away, the empty think block included. window:
    tokens that "auto" looked at before it decided (None: not auto).
    """

    mode: str
    budget: int | None
    used: int
    forced_tokens: int
    ended_by: str | None
    source: str | None = None
    steps: int = 0
    discarded_tokens: int = 0
    window: int | None = None


@dataclass(frozen=True)
class Finish:
    """The last event. reason: stop, length, tool_calls, loop (the answer repeated itself without end), cancelled, or
    error (from the engine, which also has the exception). matched: the stop string or stop id that ended it (None for
    an ordinary end of turn)."""

    reason: str
    usage: Usage
    thinking: ThinkingReport
    warnings: tuple[str, ...] = ()
    matched: str | int | None = None


Event = ReasoningDelta | TextDelta | ToolCallDelta | ToolCallDropped | Finish


@dataclass(frozen=True)
class Result:
    """A whole generation: all events, folded. Without a Finish among them, reason, usage and report are None."""

    content: str
    reasoning_content: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str | None = None
    usage: Usage | None = None
    thinking: ThinkingReport | None = None
    warnings: tuple[str, ...] = ()
    matched: str | int | None = None

    @property
    def message(self) -> Message:
        """The assistant turn, good as history for the next request."""
        return Message("assistant", self.content, self.reasoning_content, self.tool_calls, self.warnings)


@dataclass
class _Call:
    id: str | None = None
    name: str = ""
    arguments: list[str] = field(default_factory=list)


def fold(events: Iterable[Event]) -> Result:
    """The result that the events, streamed, add up to."""
    text: list[str] = []
    reasoning: list[str] = []
    calls: dict[int, _Call] = {}
    finish: Finish | None = None
    for event in events:
        match event:
            case TextDelta():
                text.append(event.text)
            case ReasoningDelta():
                reasoning.append(event.text)
            case ToolCallDelta():
                call = calls.setdefault(event.index, _Call())
                call.id = event.id or call.id
                call.name = event.name or call.name
                call.arguments.append(event.arguments_delta)
            case ToolCallDropped():
                calls.pop(event.index, None)
            case Finish():
                finish = event
    made = tuple(ToolCall(calls[i].name, "".join(calls[i].arguments), calls[i].id) for i in sorted(calls))
    if finish is None:
        return Result("".join(text), "".join(reasoning), made)
    return Result(
        "".join(text),
        "".join(reasoning),
        made,
        finish.reason,
        finish.usage,
        finish.thinking,
        finish.warnings,
        finish.matched,
    )
