"""What a caller may ask of the sampler. No torch: a client can build, check and send these without it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qwen3 import family
from qwen3.errors import UsageError

MAX_N = 128
MAX_LOGPROBS = 20
MAX_STOPS = 64
MAX_STOP_CHARS = 1024
MAX_BIASES = 1024


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens. A field left at None takes the published default of the mode the request runs in.

    The order in which they act on a row of logits: `logit_bias`, `repetition_penalty`, `frequency_penalty` and
    `presence_penalty`, `temperature`, `top_k`, `top_p`, `min_p`. Each of the last three keeps a set of tokens, judged
    on the distribution its predecessors left (renormalised).

    max_tokens: most tokens to generate, forced ones included, >= 1. None: whatever the context leaves.
    min_tokens: nothing ends the generation (EOS, `stop_token_ids`, `stop`) before this many tokens exist.
    temperature: 0 is greedy (argmax after bias and penalties), else logits are divided by it. 0 … 100.
    top_p: keep the most probable tokens until their sum reaches it. 0 < top_p <= 1 (1 = off).
    top_k: keep the k most probable tokens, ties at the k-th kept. 0 or -1 = off.
    min_p: drop tokens less probable than min_p times the most probable one. 0 … 1 (0 = off).
    presence_penalty: taken off the logit of every token generated so far. -2 … 2.
    frequency_penalty: taken off once for every time the token was generated. -2 … 2.
    repetition_penalty: logits of tokens in the prompt or generated are divided (if > 0) or multiplied by it.
        0 < repetition_penalty <= 10 (1 = off).
    logit_bias: token id -> number added to its logit, -100 … 100.
    seed: same seed, same tokens, whatever else runs beside. None: a fresh random one. -2**63 … 2**64-1.
    stop: text or texts at which the answer ends (not searched inside thinking); cut from the output.
    stop_token_ids: ids that end the generation, as EOS does.
    ignore_eos: keep going after `<|im_end|>` and `<|endoftext|>`.
    n: how many independent samples of the same prompt, 1 … 128; the prompt is computed once.
    logprobs: report each generated token's log-probability and this many most probable alternatives, 0 … 20. It is the
        model's own distribution: log-softmax of the unmodified logits, before bias, penalties, temperature and filters.
    prompt_logprobs: the same for the prompt's tokens (the first has none).

    Raises UsageError naming the field, the value and what is allowed.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    stop: str | tuple[str, ...] | list[str] | None = None
    stop_token_ids: tuple[int, ...] | list[int] | None = None
    ignore_eos: bool = False
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        _integer("max_tokens", self.max_tokens, 1, None, none="what the context leaves")
        _integer("min_tokens", self.min_tokens, 0, None)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise UsageError(f"min_tokens={self.min_tokens} is above max_tokens={self.max_tokens}")
        published = "the published default"
        self._set("temperature", _number("temperature", self.temperature, 0, 100, none=published))
        self._set("top_p", _number("top_p", self.top_p, 0, 1, low_open=True, none=published))
        _integer("top_k", self.top_k, -1, None, none=published, note="; 0 or -1 = off")
        self._set("min_p", _number("min_p", self.min_p, 0, 1, none=published))
        self._set("presence_penalty", _number("presence_penalty", self.presence_penalty, -2, 2))
        self._set("frequency_penalty", _number("frequency_penalty", self.frequency_penalty, -2, 2))
        self._set("repetition_penalty", _number("repetition_penalty", self.repetition_penalty, 0, 10, low_open=True))
        self._set("logit_bias", _biases(self.logit_bias))
        _integer("seed", self.seed, -(2**63), 2**64 - 1, none="a random seed")
        self._set("stop", _stops(self.stop))
        self._set("stop_token_ids", _ids("stop_token_ids", self.stop_token_ids))
        if not isinstance(self.ignore_eos, bool):
            raise UsageError(f"ignore_eos={self.ignore_eos!r} must be True or False")
        _integer("n", self.n, 1, MAX_N)
        _integer("logprobs", self.logprobs, 0, MAX_LOGPROBS, none="no log-probabilities")
        _integer("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS, none="no log-probabilities")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def stops(self) -> tuple[str, ...]:
        """`stop` as a tuple, empty when there is none."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """`stop_token_ids` as a tuple, empty when there are none."""
        return tuple(self.stop_token_ids or ())

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def resolved(self, mode: str) -> SamplingParams:
        """The same request with every None that has a published default filled in.

        mode: a key of `family.SAMPLING` ("thinking", "non-thinking", "instruct", "thinking-2507", "base"). `max_tokens`
        stays None: only the engine knows what the context leaves.
        """
        if mode not in family.SAMPLING:
            raise UsageError(f"mode={mode!r} must be one of {', '.join(sorted(family.SAMPLING))}")
        published = family.SAMPLING[mode]
        names = ("temperature", "top_p", "top_k", "min_p")
        return replace(self, **{n: getattr(published, n) for n in names if getattr(self, n) is None})


def _allowed(low: float | None, high: float | None, low_open: bool, none: str | None, note: str = "") -> str:
    if low is None:
        text = ""
    elif high is None:
        text = f">= {low:g}"
    else:
        text = f"{'above ' if low_open else ''}{low:g} to {high:g}" if abs(low) < 1e15 else "-2**63 to 2**64-1"
    return text + note + (f", or None for {none}" if none else "")


def _integer(name: str, value: Any, low: int, high: int | None, *, none: str | None = None, note: str = "") -> None:
    if value is None and none:
        return
    ok = isinstance(value, int) and not isinstance(value, bool) and value >= low and (high is None or value <= high)
    if not ok:
        raise UsageError(f"{name}={value!r} must be an integer, {_allowed(low, high, False, none, note)}")


def _number(
    name: str, value: Any, low: float, high: float, *, low_open: bool = False, none: str | None = None
) -> float | None:
    if value is None and none:
        return None
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not ok or value < low or value > high or (low_open and value == low):
        raise UsageError(f"{name}={value!r} must be a number, {_allowed(low, high, low_open, none)}")
    return float(value)


def _ids(name: str, value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        raise UsageError(f"{name}={value!r} must be a list of token ids")
    ids = tuple(value)
    for i in ids:
        if not isinstance(i, int) or isinstance(i, bool) or i < 0:
            raise UsageError(f"{name} contains {i!r}; every entry must be a token id, an integer >= 0")
    if len(ids) > MAX_STOPS:
        raise UsageError(f"{name} has {len(ids)} entries; at most {MAX_STOPS} are allowed")
    return ids


def _stops(value: Any) -> tuple[str, ...]:
    texts = () if value is None else (value,) if isinstance(value, str) else value
    if not isinstance(texts, (tuple, list)):
        raise UsageError(f"stop={value!r} must be a string or a list of strings")
    for text in texts:
        if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_CHARS:
            raise UsageError(
                f"stop contains {text!r:.60}; every entry must be a text of 1 to {MAX_STOP_CHARS} characters"
            )
    if len(texts) > MAX_STOPS:
        raise UsageError(f"stop has {len(texts)} entries; at most {MAX_STOPS} are allowed")
    return tuple(texts)


def _biases(value: Any) -> dict[int, float] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise UsageError(f"logit_bias={value!r:.60} must map token ids to numbers")
    if len(value) > MAX_BIASES:
        raise UsageError(f"logit_bias has {len(value)} entries; at most {MAX_BIASES} are allowed")
    for token, bias in value.items():
        if not isinstance(token, int) or isinstance(token, bool) or token < 0:
            raise UsageError(f"logit_bias has the key {token!r}; every key must be a token id, an integer >= 0")
        _number(f"logit_bias[{token}]", bias, -100, 100)
    return {token: float(bias) for token, bias in value.items()}
