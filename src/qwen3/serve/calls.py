"""What every dialect turns its requests into, and what comes back: plain data, no HTTP and no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from qwen3.chat import Event, Result


@dataclass(frozen=True)
class Call:
    """One request to a model: a conversation (`messages`) or a raw prompt (`prompt`), never both.

    messages: dicts of OpenAI's shape, `reasoning_content` where a turn has reasoning. prompt: a text, in which control
    strings become control tokens, or token ids; no chat template. thinking, sampling: keyword arguments of
    ThinkingPolicy and SamplingParams; what is missing has their defaults. tools, tool_choice, parallel_tool_calls,
    schema, regex, grammar, adapter: as for `LLM.chat`. tenant: whose prefix cache may be used; salt: which part of it.
    priority: lower first. continue_last: the last message is an assistant's that is to be continued, not answered.
    """

    messages: list[dict[str, Any]] | None = None
    prompt: str | list[int] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool = True
    schema: Any = None
    regex: str | None = None
    grammar: str | None = None
    thinking: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    adapter: str | None = None
    tenant: str = ""
    salt: str = ""
    priority: int = 0
    continue_last: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class TokenLogprob:
    """One token's log-probability under the model's own distribution, and those of the most probable ones."""

    id: int
    data: bytes
    logprob: float
    rank: int | None = None
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True)
class Item:
    """News of one sample. index: which of the n samples. event: a delta, or the Finish that ends it. logprobs: of the
    tokens that led to the event, where they were asked for. before: of those since the last delta of a text that led to
    none (think tags, tool calls, the end)."""

    index: int
    event: Event
    logprobs: tuple[TokenLogprob, ...] = ()
    before: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One whole answer. ids: the tokens, forced and end tokens among them. prompt_ids: of a raw prompt, and where
    prompt_logprobs were asked for. timing: seconds by the names of `qwen3.llm.Timing`. seed: gives the same tokens
    again."""

    index: int
    result: Result
    ids: tuple[int, ...] = ()
    prompt_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    timing: dict[str, float | None] = field(default_factory=dict)
    seed: int | None = None


@dataclass(frozen=True)
class ModelInfo:
    """A model as clients may know it. context: tokens of prompt and answer together. mode: "hybrid", "thinking",
    "instruct" or "base". kind: "chat", "embedding" or "reranker"."""

    name: str
    context: int
    vocab_size: int
    mode: str
    kind: str = "chat"
    parameters: int = 0
    active_parameters: int = 0
    size_bytes: int = 0
    hidden_size: int = 0
    dtype: str = ""
    device: str = ""
    source: str = ""
    revision: str = ""
    sampling: dict[str, dict[str, float]] = field(default_factory=dict)
    card: str = ""
