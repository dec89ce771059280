"""One sample of one item, as a conversation: what is asked next, and what all turns come to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qwen3.evaluate.types import Answer, Item, Suite


@dataclass(frozen=True)
class Reply:
    """What came back for one turn; fields as those of Answer. flags: what a reader of the run should know of it."""

    content: str = ""
    thinking: str = ""
    finish_reason: str = "stop"
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    prompt_tokens: int | None = None
    thinking_tokens: int | None = None
    answer_tokens: int | None = None
    seconds: float = 0.0
    error: str = ""
    flags: tuple[str, ...] = ()


@dataclass(eq=False)
class Talk:
    """item, sample: which one this is. messages: the chat so far. replies: of the turns that ended."""

    item: Item
    sample: int
    base_seed: int
    messages: list[Mapping[str, Any]]
    replies: list[Reply] = field(default_factory=list)

    @classmethod
    def of(cls, suite: Suite, item: Item, sample: int, seed: int, thinks: bool) -> Talk:
        """thinks: whether the prompt is the one that the suite has for thinking."""
        messages = suite.think_messages(item) if thinks and suite.think_messages else item.messages
        return cls(item, sample, seed, list(messages))

    @property
    def seed(self) -> int:
        """Of the next turn: the same for the same seed of the run, item, sample and turn. 31 bits, as servers take."""
        text = f"{self.base_seed}/{self.item.id}/{self.sample}/{len(self.replies)}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1

    def add(self, reply: Reply) -> bool:
        """Takes a turn's reply; whether there is another turn to ask, which `messages` then holds. A turn that was cut
        or failed is the last."""
        self.replies.append(reply)
        if len(self.replies) > len(self.item.later) or reply.error or reply.finish_reason == "length":
            return False
        self.messages.append({"role": "assistant", "content": reply.content})
        self.messages.append({"role": "user", "content": self.item.later[len(self.replies) - 1]})
        return True

    @property
    def answer(self) -> Answer:
        last = self.replies[-1]
        return Answer(
            content=last.content,
            thinking="\n\n".join(filter(None, (reply.thinking for reply in self.replies))),
            finish_reason=last.finish_reason,
            turns=tuple(reply.content for reply in self.replies),
            tool_calls=last.tool_calls,
            prompt_tokens=_sum(reply.prompt_tokens for reply in self.replies),
            thinking_tokens=_sum(reply.thinking_tokens for reply in self.replies),
            answer_tokens=_sum(reply.answer_tokens for reply in self.replies),
            seconds=round(sum(reply.seconds for reply in self.replies), 3),
            error=last.error,
        )

    @property
    def flags(self) -> list[str]:
        return sorted({flag for reply in self.replies for flag in reply.flags})


def _sum(counts: Any) -> int | None:
    """None where one is unknown."""
    known = list(counts)
    return None if None in known else sum(known)
