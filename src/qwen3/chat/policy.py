"""Whether a request thinks, and for how long: the policy a caller states, and how it is settled.

An explicit field beats a soft switch (`/think`, `/no_think` in a user or system text; the last one counts), and a soft
switch beats the default. A model that has one mode only refuses the other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qwen3.chat.messages import normalize
from qwen3.chat.sandbox_template import SandboxTemplate, template_mode
from qwen3.chat.template import is_tool_response
from qwen3.errors import UsageError

Mode = Literal["on", "off", "auto"]
Source = Literal["explicit", "switch", "default"]

# A whole word: nothing but white space before it, and only closing punctuation up to white space after it.
_SWITCH = re.compile(r"(?<!\S)/(no_)?think(?=[.,;:!?)\"'\]]*(?:\s|$))")


@dataclass(frozen=True)
class ThinkingPolicy:
    """What a caller asks for. None leaves a field open.

    mode: "on" makes the model think, "off" renders an empty think block, None leaves it to soft switches and the
    model; "auto" is reserved. budget: the most tokens sampled strictly between the think tags; 0 is the empty block.
    Raises UsageError for a wrong value, and for mode "off" with a budget above 0.
    """

    mode: Mode | None = None
    budget: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in (None, "on", "off", "auto"):
            raise UsageError(f"thinking.mode must be 'on', 'off', 'auto' or null, not {self.mode!r}")
        budget = self.budget
        if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int) or budget < 0):
            raise UsageError(f"thinking.budget must be a whole number of tokens, 0 or more, not {budget!r}")
        if self.mode == "off" and budget:
            raise UsageError(
                f"thinking.mode is 'off' but thinking.budget is {budget}: leave one out, or set thinking.budget to 0"
            )

    @property
    def off(self) -> bool:
        """Whether thinking is explicitly off: by mode, or by a budget of 0."""
        return self.mode == "off" or self.budget == 0

    def require_supported(self) -> None:
        """Raise UsageError for "auto", which the type knows but nothing decides yet."""
        if self.mode == "auto":
            raise UsageError("thinking.mode 'auto' is not available in this release: use 'on', 'off' or leave it out")


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

    Raises UsageError for bad messages, mode "auto", and what the model cannot do: "off" or budget 0 for a model that
    always thinks, "on" for one that never does.
    """
    policy = policy or ThinkingPolicy()
    policy.require_supported()
    turns = normalize(messages)
    switch = soft_switch(turns)
    if model_mode not in (None, "hybrid", "base", "thinking", "instruct"):
        raise UsageError(f"model_mode must be hybrid, base, thinking or instruct, not {model_mode!r}")
    mode = template_mode(template)
    if mode == "hybrid" and model_mode in ("thinking", "instruct"):
        mode = model_mode
    if mode != "hybrid":
        return _single_mode(turns, policy, mode == "thinking", switch)
    if policy.off or policy.mode == "on":
        thinks = not policy.off
        warnings = []
        if switch and switch[0] is not thinks:
            field = f"thinking.mode={policy.mode!r}" if policy.mode else "thinking.budget=0"
            warnings.append(f"{switch[1]} is overridden by {field}")
        if policy.mode == "on" and policy.budget == 0:
            warnings.append("thinking.mode='on' with thinking.budget=0: the think block is empty")
        return _hybrid(thinks, "explicit", turns, policy, template, tuple(warnings))
    if switch:
        warnings = []
        if policy.budget is not None and not switch[0]:
            warnings.append(f"thinking.budget={policy.budget} has no effect: {switch[1]} turns thinking off")
        return _hybrid(switch[0], "switch", turns, policy, template, tuple(warnings))
    return _hybrid(True, "default", turns, policy, template)


def _hybrid(
    thinks: bool,
    source: Source,
    turns: list[dict[str, Any]],
    policy: ThinkingPolicy,
    template: str | SandboxTemplate,
    warnings: tuple[str, ...] = (),
) -> Resolution:
    if not thinks and isinstance(template, SandboxTemplate) and not template.switchable:
        policy = ThinkingPolicy("off", 0)  # the template has no switch: the stream puts the empty block
    return Resolution(thinks, thinks, source, turns, policy, warnings)


def _single_mode(
    turns: list[dict[str, Any]], policy: ThinkingPolicy, always: bool, switch: tuple[bool, str] | None
) -> Resolution:
    """A 2507 model: it always thinks, or never."""
    if always and policy.off:
        field = "thinking.mode 'off'" if policy.mode == "off" else "thinking.budget 0"
        raise UsageError(f"{field} is impossible: this model always thinks; give a budget above 0, or another model")
    if not always and policy.mode == "on":
        raise UsageError("thinking.mode 'on' is impossible: this model never thinks; use another model")
    warnings = []
    if switch and switch[0] is not always:
        warnings.append(f"{switch[1]} has no effect: this model {'always' if always else 'never'} thinks")
    if not always and policy.budget:
        warnings.append(f"thinking.budget={policy.budget} has no effect: this model never thinks")
    source: Source = "explicit" if policy.mode else "default"
    return Resolution(None, always, source, turns, policy if always else ThinkingPolicy(), tuple(warnings))
