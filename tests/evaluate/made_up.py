"""Runs of which what is in them is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qwen3.evaluate.runs.record import Run

HEAD: dict[str, Any] = {
    "suite": "math500", "title": "MATH-500", "model": "Qwen/Qwen3-4B", "mode": "think", "budget": None,
    "sampling": {"max_tokens": 1000, "temperature": 0.6}, "command": "qwen3 eval math500 --think",
}  # fmt: skip


def sample(item: str, number: int, outcome: str, value: float | None = None, **more: Any) -> dict[str, Any]:
    """100 tokens in, 300 thought, 100 answered, 2 s, unless said otherwise."""
    worth = (outcome == "right") if value is None else value
    tokens = {"prompt_tokens": 100, "thinking_tokens": 300, "answer_tokens": 100, "seconds": 2.0}
    return {
        "item": item,
        "sample": number,
        "about": more.pop("about", {}),
        "answer": {name: more.pop(name, count) for name, count in tokens.items()},
        "score": {"value": float(worth), "outcome": outcome, "extracted": None, "parts": {}, **more},
    }


def run(outcomes: Sequence[str], **head: Any) -> Run:
    """A word an item, a letter a sample: r(ight), w(rong), t(runcated), e(mpty), u(nparsed), f(ailed)."""
    names = {"r": "right", "w": "wrong", "t": "truncated", "e": "empty", "u": "unparsed", "f": "failed"}
    samples = [
        sample(f"q{i:03}", j, names[letter], about={"subject": "ab"[i % 2]})
        for i, word in enumerate(outcomes)
        for j, letter in enumerate(word)
    ]
    sizes = {"items": {"count": len(outcomes)}, "samples": max(map(len, outcomes))}
    return Run({**HEAD, **sizes, **head}, samples)
