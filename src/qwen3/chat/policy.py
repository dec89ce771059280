"""Whether a request thinks, and for how long: the policy a caller states, and how it is settled.

An explicit field beats a soft switch (`/think`, `/no_think` in a user or system text; the last one counts), and a soft
switch beats the default. A model that has one mode only refuses the other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from qwen3.chat.messages import normalize
from qwen3.chat.sandbox_template import SandboxTemplate, template_mode
from qwen3.chat.template import is_tool_response
from qwen3.errors import UsageError

Mode = Literal["on", "off", "auto"]
Source = Literal["explicit", "switch", "default"]

# A whole word: nothing but white space before it, and only closing punctuation up to white space after it.
_SWITCH = re.compile(r"(?<!\S)/(no_)?think(?=[.,;:!?)\"'\]]*(?:\s|$))")


# What each field may be: types, lowest, highest, and that in words.
_BOUNDS: dict[str, tuple[tuple[type, ...], float, float, str]] = {
    "budget": ((int,), 0, math.inf, "a whole number of tokens, 0 or more"),
    "answer_reserve": ((int,), 1, math.inf, "a whole number of tokens, 1 or more"),
    "max_steps": ((int,), 1, 32, "a whole number of paragraphs, 1 to 32"),
    "time_limit_s": ((int, float), 0.5, 30, "a number of seconds, 0.5 to 30"),
    "max_active_params": ((int,), 1, math.inf, "a whole number of parameters, 1 or more"),
    "soft_landing": ((int,), 1, 1024, "a whole number of tokens, 1 to 1024"),
    "threshold": ((int, float), 0, 1, "a number, 0 to 1"),
}
_NO_LIMITS: dict[str, Any] = dict.fromkeys(("budget", "answer_reserve", "max_steps", "soft_landing"))


@dataclass(frozen=True)
class ThinkingPolicy:
    """What a caller asks for. None leaves a field open.

    mode: "on" makes the model think, "off" renders an empty think block, "auto" lets the model begin to answer and
    opens thinking where it turns out unsure, None leaves it to soft switches and the model. budget: the most tokens
    sampled strictly between the think tags; 0 is the empty block. answer_reserve: so many of max_tokens are kept for
    the answer: a budget of max_tokens less these (with `budget`: the smaller one). max_steps: the most paragraphs of
    reasoning, 1 to 32. time_limit_s: seconds from submission to the end of the answer, 0.5 to 30. max_active_params:
    of a mixture of experts, fewer experts per token, so that active parameters stay within it. soft_landing: so many
    tokens before the budget, 1 to 1024, thinking is already closed at the end of a sentence. threshold: how unsure mode
    "auto" has to be, 0 to 1. loop_guard: thinking that repeats itself without end is closed, such an answer ended.

    Raises UsageError for a wrong value, and for two fields that contradict each other.
    """

    mode: Mode | None = None
    budget: int | None = None
    answer_reserve: int | None = None
    max_steps: int | None = None
    time_limit_s: float | None = None
    max_active_params: int | None = None
    soft_landing: int | None = None
    threshold: float | None = None
    loop_guard: bool = True

    def __post_init__(self) -> None:
        if self.mode not in (None, "on", "off", "auto"):
            raise UsageError(f"thinking.mode must be 'on', 'off', 'auto' or null, not {self.mode!r}")
        for name, (kinds, low, high, what) in _BOUNDS.items():
            value = getattr(self, name)
            number = type(value) in kinds  # which leaves out bool
            if value is not None and not (number and low <= value <= high):
                raise UsageError(f"thinking.{name} must be {what}, not {value!r}")
        if not isinstance(self.loop_guard, bool):
            raise UsageError(f"thinking.loop_guard must be true or false, not {self.loop_guard!r}")
        if self.off and self.limits:
            name = self.limits[0]
            why = "mode is 'off'" if self.mode == "off" else "budget is 0"
            zero = ", or set thinking.budget to 0" if name == "budget" else ""
            raise UsageError(f"thinking.{why} but thinking.{name} is {getattr(self, name)}: leave one out{zero}")
        if self.threshold is not None and self.mode != "auto":
            raise UsageError(
                f"thinking.threshold is {self.threshold} but thinking.mode is {self.mode or 'not set'}: "
                "only mode 'auto' has a threshold"
            )
        if self.soft_landing and self.budget is None and self.answer_reserve is None:
            raise UsageError(
                f"thinking.soft_landing is {self.soft_landing} but neither thinking.budget nor thinking.answer_reserve "
                "is set: there is nothing to land before"
            )

    @property
    def off(self) -> bool:
        """Whether thinking is explicitly off: by mode, or by a budget of 0."""
        return self.mode == "off" or self.budget == 0

    @property
    def limits(self) -> tuple[str, ...]:
        """Names of the fields that are set and bound the thinking by tokens or paragraphs."""
        return tuple(name for name in _NO_LIMITS if getattr(self, name))

    def limited(self, max_tokens: int) -> ThinkingPolicy:
        """This policy for an output of `max_tokens`: `answer_reserve` is turned into a budget.

        Raises UsageError where the reserve leaves nothing to think with.
        """
        reserve = self.answer_reserve
        if reserve is None:
            return self
        if reserve >= max_tokens:
            raise UsageError(
                f"thinking.answer_reserve is {reserve} but max_tokens is {max_tokens}: nothing is left to think with"
            )
        left = max_tokens - reserve
        budget = left if self.budget is None else min(self.budget, left)
        return replace(self, budget=budget, answer_reserve=None)

    def switched_off(self) -> ThinkingPolicy:
        """This policy with thinking off; what does not depend on thinking stays."""
        return replace(self, mode="off", threshold=None, **(_NO_LIMITS | {"budget": 0}))


@dataclass(frozen=True)
class Resolution:
    """How one request thinks.

    enable_thinking: what to give `render`/`encode` (None for a model with one mode). thinks: whether it is expected to
    think. source: "explicit", "switch" or "default". messages: the normalized messages. policy: what to give
    `TokenStream`. warnings: what was overridden or has no effect.
    """

    enable_thinking: bool | None
    thinks: bool
    source: Source
    messages: list[dict[str, Any]]
    policy: ThinkingPolicy
    warnings: tuple[str, ...] = ()


def soft_switch(messages: Sequence[dict[str, Any]]) -> tuple[bool, str] | None:
    """The last `/think` (True) or `/no_think` (False) in user or system text, and where it stands."""
    for i in range(len(messages) - 1, -1, -1):
        message = messages[i]
        text = message.get("content")
        if message.get("role") not in ("user", "system") or not isinstance(text, str) or is_tool_response(text):
            continue
        if found := list(_SWITCH.finditer(text)):
            return found[-1][1] is None, f"{found[-1][0]} in messages[{i}]"
    return None


def resolve_mode(
    messages: Any,
    policy: ThinkingPolicy | None = None,
    model_mode: str | None = None,
    template: str | SandboxTemplate = "qwen3",
) -> Resolution:
    """Settle how a request thinks.

    `model_mode` is the family's: "hybrid", "base", "thinking", "instruct", or None when only the template is known. A
    template that knows one mode only decides, whatever the family says.

    Raises UsageError for bad messages, and for what the model cannot do: "off" or budget 0 for a model that always
    thinks, "on" for one that never does, "auto" for both.
    """
    policy = policy or ThinkingPolicy()
    turns = normalize(messages)
    switch = soft_switch(turns)
    if model_mode not in (None, "hybrid", "base", "thinking", "instruct"):
        raise UsageError(f"model_mode must be hybrid, base, thinking or instruct, not {model_mode!r}")
    mode = template_mode(template)
    if mode == "hybrid" and model_mode in ("thinking", "instruct"):
        mode = model_mode
    if mode != "hybrid":
        return _single_mode(turns, policy, mode == "thinking", switch)
    if policy.off or policy.mode is not None:
        thinks = not policy.off
        warnings = []
        if switch and (switch[0] is not thinks or policy.mode == "auto"):
            field = f"thinking.mode={policy.mode!r}" if policy.mode else "thinking.budget=0"
            warnings.append(f"{switch[1]} is overridden by {field}")
        if policy.mode in ("on", "auto") and policy.budget == 0:
            warnings.append(f"thinking.mode={policy.mode!r} with thinking.budget=0: the think block is empty")
        return _hybrid(thinks, "explicit", turns, policy, template, tuple(warnings))
    if switch:
        why = "" if switch[0] else f"{switch[1]} turns thinking off"
        return _hybrid(switch[0], "switch", turns, policy, template, _idle(policy, why) if why else ())
    return _hybrid(True, "default", turns, policy, template)


def _idle(policy: ThinkingPolicy, why: str) -> tuple[str, ...]:
    """A warning for each limit of a policy that will not come to anything."""
    return tuple(f"thinking.{name}={getattr(policy, name)} has no effect: {why}" for name in policy.limits)


def _hybrid(
    thinks: bool,
    source: Source,
    turns: list[dict[str, Any]],
    policy: ThinkingPolicy,
    template: str | SandboxTemplate,
    warnings: tuple[str, ...] = (),
) -> Resolution:
    if not thinks and isinstance(template, SandboxTemplate) and not template.switchable:
        policy = policy.switched_off()  # the template has no switch: the stream puts the empty block
    return Resolution(thinks, thinks, source, turns, policy, warnings)


def _single_mode(
    turns: list[dict[str, Any]], policy: ThinkingPolicy, always: bool, switch: tuple[bool, str] | None
) -> Resolution:
    """A 2507 model: it always thinks, or never."""
    what = f"this model {'always' if always else 'never'} thinks"
    if always and policy.off:
        field = "thinking.mode 'off'" if policy.mode == "off" else "thinking.budget 0"
        raise UsageError(f"{field} is impossible: {what}; give a budget above 0, or another model")
    if policy.mode == "auto" or (policy.mode == "on" and not always):
        raise UsageError(f"thinking.mode {policy.mode!r} is impossible: {what}; use another model")
    warnings = []
    if switch and switch[0] is not always:
        warnings.append(f"{switch[1]} has no effect: {what}")
    if not always:
        warnings += _idle(policy, what)
    source: Source = "explicit" if policy.mode else "default"
    if not always:
        policy = replace(policy, mode=None, **_NO_LIMITS)
    return Resolution(None, always, source, turns, policy, tuple(warnings))
