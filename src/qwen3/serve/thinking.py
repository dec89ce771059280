"""All spellings of thinking, from all dialects, to one policy.

An explicit number beats on and off, these beat the name of an effort, that beats a soft switch in the text, and that
the model's default. Only explicit fields can contradict each other, and that is an error which names them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from qwen3.chat import ThinkingPolicy
from qwen3.errors import UsageError
from qwen3.serve.calls import ModelInfo
from qwen3.serve.errors import ApiError
from qwen3.serve.fields import EFFORTS, INT32, ThinkingBody, shown

_SWITCHES = frozenset({"enable_thinking", "enabled", "think", "thinking"})
_NUMBERS = frozenset(
    {"thinking_budget", "thinking_token_budget", "thinking_budget_tokens", "budget_tokens", "max_tokens", "budget"}
)
_EFFORTS = frozenset({"reasoning_effort", "effort", "think", "thinking"})
_TYPES: dict[str, bool | str] = {"enabled": True, "disabled": False, "adaptive": "auto"}
_MODES: dict[str, bool | str] = {"on": True, "off": False, "auto": "auto"}
_OWN = (
    "answer_reserve", "max_steps", "time_limit_s", "max_active_params", "soft_landing", "threshold", "loop_guard",
)  # fmt: skip
_TEMPLATE_KEYS = ("enable_thinking", "thinking_budget")
_SHOWN = frozenset({"display", "exclude", "summary", "generate_summary"})  # what is shown, which the dialects handle
_LEAST_ANSWER = 4  # a quarter of the room is the answer's where an effort has to be cut


def spellings(body: ThinkingBody) -> tuple[dict[str, Any], list[str]]:
    """(`given` of `thinking_of` for an OpenAI-shaped body, warnings). Raises ApiError for `chat_template_kwargs` that
    this server does not have."""
    names = ("enable_thinking", "thinking_budget", "thinking_token_budget", "thinking_budget_tokens")
    given = {name: getattr(body, name) for name in (*names, "reasoning_effort", "thinking")}
    given |= {f"reasoning.{name}": value for name, value in (body.reasoning or {}).items()}
    for name, value in (body.chat_template_kwargs or {}).items():
        if name not in _TEMPLATE_KEYS:
            raise ApiError(
                400,
                f"chat_template_kwargs.{shown(name)} is not a template variable that can be set; only "
                f"{' and '.join(_TEMPLATE_KEYS)} are: leave it out",
                f"chat_template_kwargs.{shown(name)}",
            )
        given[f"chat_template_kwargs.{name}"] = value
    warnings = []
    for name, value in (body.custom_params or {}).items():
        if name == "thinking_budget":
            given["custom_params.thinking_budget"] = value
        else:
            warnings.append(f"custom_params.{shown(name)} has no meaning here and was ignored")
    return given, warnings


def thinking_of(
    given: Mapping[str, Any], *, info: ModelInfo | None, max_tokens: int | None
) -> tuple[dict[str, Any], list[str]]:
    """(keyword arguments of ThinkingPolicy, warnings).

    given: spelling, as the client wrote it, with dots for what is nested -> value; null is as good as left out. The
    last part of a spelling says what it is. An object under `thinking` is Anthropic's (`type`, `budget_tokens`) or our
    own (`mode`, `budget` and the other fields of ThinkingPolicy). info: the model, None: not known yet. max_tokens: of
    the whole output, None: what the context leaves.

    Raises ApiError 400 naming the field, or the fields that contradict each other, or what the model cannot do.
    """
    return _Settling(info, max_tokens).settle(given)


class _Settling:
    def __init__(self, info: ModelInfo | None, max_tokens: int | None) -> None:
        self.info, self.max_tokens = info, max_tokens
        self.mode = info.mode if info else "hybrid"
        self.numbers: dict[str, int] = {}
        self.switches: dict[str, bool | str] = {}
        self.efforts: dict[str, str] = {}
        self.own: dict[str, Any] = {}
        self.warnings: list[str] = []

    def settle(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        for spelling, value in given.items():
            if isinstance(value, Mapping) and spelling.rpartition(".")[2] == "thinking":
                for name, inner in value.items():
                    self._sort(f"{spelling}.{name}", name, inner, inside=True)
            else:
                self._sort(spelling, spelling.rpartition(".")[2], value, inside=spelling.startswith("thinking."))
        for values in (self.numbers, self.switches, self.efforts):
            _agree(values)
        return self._policy(), self.warnings

    # What each spelling is

    def _sort(self, spelling: str, name: str, value: Any, inside: bool) -> None:
        if value is None:
            return
        if name in _NUMBERS:
            if type(value) is not int or not 0 <= value <= INT32:
                raise ApiError(400, f"{spelling} must be a whole number of tokens, 0 to {INT32}", spelling)
            self.numbers[spelling] = value
        elif name in _SWITCHES and isinstance(value, bool):
            self.switches[spelling] = value
        elif name in _EFFORTS:
            if not isinstance(value, str) or value.lower() not in EFFORTS:
                either = "true, false or " if name in _SWITCHES else ""
                raise ApiError(400, f"{spelling} must be {either}one of {', '.join(EFFORTS)}", spelling)
            self.efforts[spelling] = value.lower()
        elif name in ("type", "mode") and inside:
            allowed = _TYPES if name == "type" else _MODES
            if not isinstance(value, str) or value not in allowed:
                raise ApiError(400, f"{spelling} must be one of {', '.join(allowed)}", spelling)
            if value != "adaptive" or self.mode == "hybrid":  # a model with one mode has nothing to adapt
                self.switches[spelling] = allowed[value]
        elif name in _SWITCHES:
            raise ApiError(400, f"{spelling} must be true or false", spelling)
        elif name in _OWN and inside:
            self.own[name] = value
        elif name not in _SHOWN:
            near = difflib.get_close_matches(name, ("mode", "budget", *_OWN), 1) if inside else []
            hint = f" (did you mean {near[0]}?)" if near else ""
            self.warnings.append(f"{shown(spelling)} has no meaning here and was ignored{hint}")

    # What follows from them

    def _policy(self) -> dict[str, Any]:
        number, by_number = _first(self.numbers)
        switch, by_switch = _first(self.switches)
        effort, by_effort = _first(self.efforts)
        if number and switch is False:
            raise ApiError(
                400, f"{by_switch} turns thinking off but {by_number} is {number}: leave one out",
                f"{by_switch}, {by_number}", "contradiction",
            )  # fmt: skip
        budget, why = number, by_number
        if effort is not None and number is not None:
            self._overridden(by_effort, f"{by_number} is {number}")
        elif effort is not None and switch is not None and (effort == "none" or switch is False):
            if effort != "none" or switch is not False:
                self._overridden(by_effort, f"{by_switch} is {_said(switch)}")
        elif effort is not None:
            budget, why = self._fitting(effort, by_effort), by_effort
        off = switch is False or budget == 0
        if self.mode == "thinking" and (off or switch == "auto"):
            raise self._impossible(why if switch is None else by_switch, "always thinks")
        if self.mode == "instruct" and switch is not None and not off:
            raise self._impossible(by_switch, "never thinks")
        mode = None if switch is None else "on" if switch is True else "off" if switch is False else "auto"
        if switch is None and (budget or (budget is None and effort)) and self.mode in ("hybrid", "base"):
            mode = "on"  # who names a number or an effort wants it to think, whatever the text says
        return self._checked({"mode": mode, "budget": budget})

    def _fitting(self, effort: str, spelling: str) -> int | None:
        """An effort's budget, cut where it would leave the answer no room."""
        budget = EFFORTS[effort]
        rooms = [room for room in (self.max_tokens, self.info.context if self.info else None) if room]
        if not budget or not rooms:
            return budget
        room = min(rooms)
        most = max(1, room - max(1, room // _LEAST_ANSWER))
        if budget > most:
            what = f"max_tokens {room:,}" if room == self.max_tokens else f"the model's context of {room:,}"
            self.warnings.append(
                f"{spelling} '{effort}' is a budget of {budget:,} tokens; it was cut to {most:,}, so that {what} "
                "leaves room for an answer"
            )
        return min(budget, most)

    def _overridden(self, spelling: str, why: str) -> None:
        self.warnings.append(f"{spelling} has no effect: {why}")

    def _impossible(self, spelling: str, what: str) -> ApiError:
        return ApiError(
            400, f"{spelling} asks for the impossible: this model {what}; leave it out, or take another model", spelling
        )

    def _checked(self, policy: dict[str, Any]) -> dict[str, Any]:
        found = {name: value for name, value in (policy | self.own).items() if value is not None}
        try:
            ThinkingPolicy(**found)
        except UsageError as error:
            field = str(error).partition(" ")[0]
            raise ApiError(400, str(error), field if field.startswith("thinking.") else "thinking") from None
        return found


def _agree(values: Mapping[str, Any]) -> None:
    (name, value), *others = list(values.items()) or [("", None)]
    for other, second in others:
        if second != value:
            raise ApiError(
                400,
                f"{name} and {other} contradict each other ({_said(value)} and {_said(second)}): leave one out",
                f"{name}, {other}",
                "contradiction",
            )


def _said(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _first(values: Mapping[str, Any]) -> tuple[Any, str]:
    return next(((value, name) for name, value in values.items()), (None, ""))
