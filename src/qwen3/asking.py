"""From what a caller asks to the engine's requests: checked, rendered, encoded, every default settled.

Nothing runs here, and no network is needed: `LLM` asks through this, and so can whoever runs an engine of his own.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qwen3 import family
from qwen3.chat import Message, SandboxTemplate, ThinkingPolicy, TokenStream, encode, resolve_mode
from qwen3.chat.messages import plain
from qwen3.chat.next_turn import next_turn_ids
from qwen3.chat.stream import EARLY_STOP
from qwen3.config import ModelConfig
from qwen3.engine.constraint import Constraint, Matcher
from qwen3.engine.params import SamplingParams
from qwen3.engine.request import Request
from qwen3.engine.trial import THRESHOLD, Trial
from qwen3.errors import UsageError
from qwen3.family import Mode
from qwen3.tokenizer import Tokenizer

_FREE = "calls may have any form"
_ADVICE = "temperature 0 while thinking: Qwen advises against it, the model may repeat itself without end"


@dataclass(frozen=True)
class Form:
    """What answers may look like, whatever the question. tools: those the prompt names. constraint: what the answer
    must match; None: free text. notes: what of it cannot be enforced."""

    tools: Sequence[Any] | None = None
    constraint: Constraint | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        tools: Sequence[Any] | None = None,
        tool_choice: Any = None,
        parallel_tool_calls: bool = True,
        schema: Any = None,
        regex: str | None = None,
        grammar: str | None = None,
    ) -> Form:
        """For arguments as of `LLM.chat`. Raises UsageError naming what is wrong, or the two that contradict."""
        if callable(describe := getattr(schema, "model_json_schema", None)):  # a pydantic model's class
            schema = describe()
        shapes = {name: v for name, v in (("schema", schema), ("regex", regex), ("grammar", grammar)) if v is not None}
        shape = next(iter(shapes), None)
        if len(shapes) > 1:
            raise UsageError(f"{' and '.join(shapes)} are given: an answer follows one of them, leave the others out")
        choice, parallel = _choice(tool_choice), parallel_tool_calls
        if not isinstance(parallel, bool):
            raise UsageError(f"parallel_tool_calls={parallel!r} must be True or False")
        if choice not in ("auto", "none"):
            if not tools:
                raise UsageError(f"tool_choice {choice!r} needs tools: give a list of functions")
            if shape:
                raise UsageError(
                    f"{shape} and tool_choice {choice!r} contradict each other: the answer is to be a tool call; use "
                    "tool_choice 'auto' or 'none', or leave one out"
                )
            return cls(tools, Constraint.tools(tools, choice, parallel))
        if choice == "none" or not tools:
            kinds: dict[str, Callable[[Any], Constraint]]
            kinds = {"schema": Constraint.json_schema, "regex": Constraint.regex, "grammar": Constraint.lark}
            return cls(None, kinds[shape](shapes[shape]) if shape else None)
        if shape == "schema":
            return cls(tools, Constraint.tools_or(schema, tools, parallel))
        if shape:
            raise UsageError(f"{shape} does not go with tools the model may call: use tool_choice 'none', or a schema")
        try:
            constraint = Constraint.text_then_calls(tools, parallel)
        except UsageError as error:  # the model may call them all the same
            return cls(tools, None, (f"{error}; {_FREE}",))
        return cls(tools, constraint, constraint.notes)


def _choice(value: Any) -> str:
    """ "auto", "none", "required", or a tool's name."""
    if isinstance(value, str):
        return value
    if value is None:
        return "auto"
    choice = plain(value, "tool_choice")
    function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise UsageError(
            "tool_choice must be 'auto', 'none', 'required', a tool's name or "
            f'{{"type": "function", "function": {{"name": …}}}}, not {value!s:.80}'
        )
    return name


@dataclass(frozen=True)
class Asked:
    """The samples of one prompt. messages: the conversation that was rendered, None: the prompt was given raw."""

    requests: list[Request]
    form: Form
    messages: list[dict[str, Any]] | None = None

    def using(self, adapter: str | None) -> Asked:
        """The same with an adapter, by its name in the engine."""
        for request in self.requests:
            request.adapter = adapter
        return self


@dataclass(frozen=True)
class Asking:
    """What decides, beside the call itself, which requests it becomes."""

    tokenizer: Tokenizer
    config: ModelConfig
    mode: Mode
    template: str | SandboxTemplate

    def chat(
        self,
        messages: str | Sequence[Any],
        form: Form,
        thinking: ThinkingPolicy | None,
        sampling: SamplingParams | None,
        check: Callable[[Request], None],
        continue_last: bool = False,
    ) -> Asked:
        """The requests of a conversation, one for each of the `n` samples. check: `Engine.check`. continue_last: the
        last message is the assistant's and goes on where it ends, in its thought where it has no content."""
        params = checked(sampling, SamplingParams, "sampling") or SamplingParams()
        policy = checked(thinking, ThinkingPolicy, "thinking")
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        found = resolve_mode(turns, policy, self.mode, self.template)
        if continue_last:
            encoded = encode(
                found.messages, tokenizer=self.tokenizer, tools=form.tools, template=self.template, continue_last=True
            )
            return self.raw(encoded.ids, form, policy, params, check, warnings=encoded.warnings)
        encoded = encode(
            found.messages,
            tokenizer=self.tokenizer,
            tools=form.tools,
            enable_thinking=found.enable_thinking,
            template=self.template,
        )
        warnings = [*found.warnings, *encoded.warnings]
        requests = self._requests(encoded.ids, params, found.policy, found.thinks, found.source, form, warnings, check)
        return Asked(requests, form, found.messages)

    def raw(
        self,
        ids: list[int],
        form: Form,
        thinking: ThinkingPolicy | None,
        sampling: SamplingParams | None,
        check: Callable[[Request], None],
        split: bool = True,
        warnings: Sequence[str] = (),
    ) -> Asked:
        """The requests of a prompt that is there as ids. Whether it thinks is read off its end. split=False: thinking
        and tool calls stay in the text, tags included, and `thinking` has nothing to bound."""
        params = checked(sampling, SamplingParams, "sampling") or SamplingParams()
        policy = checked(thinking, ThinkingPolicy, "thinking") or ThinkingPolicy()
        state = TokenStream(self.tokenizer, ids).state
        open_still = state != "answer" if split else state == "thinking"
        if policy.mode == "auto":
            if not open_still:
                raise UsageError("thinking.mode 'auto' is impossible: the prompt has closed its think block already")
            resolve_mode([{"role": "user", "content": ""}], policy, self.mode, self.template)  # may refuse, too
        thinks = open_still and not policy.off
        source = "explicit" if policy.mode or policy.off else "default"
        requests = self._requests(
            ids, params, policy, thinks, source, form, [*warnings], check, include_tools=split, split=split
        )
        return Asked(requests, form)

    def next_ids(self, asked: Asked, reply: Message) -> list[int]:
        """What the prompt of the conversation's next turn begins with, if the answer was `reply`."""
        assert asked.messages is not None
        return next_turn_ids(
            asked.messages, reply, tokenizer=self.tokenizer, tools=asked.form.tools, template=self.template
        )

    def _requests(
        self,
        ids: list[int],
        params: SamplingParams,
        policy: ThinkingPolicy,
        thinks: bool,
        source: str,
        form: Form,
        warnings: list[str],
        check: Callable[[Request], None],
        include_tools: bool = False,
        split: bool = True,
    ) -> list[Request]:
        params = params.resolved(family.sampling_key(self.mode, thinks))
        if params.seed is None:
            # One for all n: sample 0 can be had again alone. 53 bits: every JSON reader keeps it exactly.
            params = replace(params, seed=secrets.randbits(53))
        first = Request(ids, replace(params, n=1), warnings=warnings)
        check(first)
        policy = self._limited(policy, thinks, params, first)
        attempt, trial = policy, policy.mode == "auto" and thinks
        if trial:
            attempt, source = policy.switched_off(), "auto"
        experts = self._experts(policy.max_active_params)
        return [
            Request(
                ids,
                first.params,
                TokenStream(
                    self.tokenizer,
                    ids,
                    attempt,
                    stop=params.stops,
                    stop_token_ids=params.stop_ids,
                    ignore_eos=params.ignore_eos,
                    min_tokens=params.min_tokens,
                    include_tools=include_tools or bool(form.tools),
                    matcher=matcher,
                    source=source,
                    split=split,
                ),
                index,
                warnings=list(warnings),
                experts=experts,
                time_limit=policy.time_limit_s,
                trial=Trial(THRESHOLD if policy.threshold is None else policy.threshold) if trial else None,
                thinking=replace(policy, mode="on", threshold=None) if trial else None,
            )
            for index, matcher in enumerate(self._matchers(form, params.n, warnings))
        ]

    def _matchers(self, form: Form, count: int, warnings: list[str]) -> Sequence[Matcher | None]:
        """One for each sample; warns of what is not enforced. Raises UsageError where it must be and cannot."""
        warnings += form.notes
        if form.constraint is not None:
            try:
                return [form.constraint.matcher(self.tokenizer) for _ in range(count)]
            except UsageError as error:
                if not form.constraint.late:
                    raise
                warnings.append(f"{error}; {_FREE}")
        return [None] * count

    def _limited(self, policy: ThinkingPolicy, thinks: bool, params: SamplingParams, first: Request) -> ThinkingPolicy:
        """The policy with `answer_reserve` as a budget; warns of what is likely to disappoint."""
        room, warnings = first.max_tokens, first.warnings
        if params.ignore_eos and policy.time_limit_s is not None:
            warnings.append("ignore_eos: the answer does not end by itself, so thinking.time_limit_s will cut it")
        if not thinks:
            return policy if policy.answer_reserve is None else replace(policy, answer_reserve=None, soft_landing=None)
        if params.greedy and self.mode in ("hybrid", "thinking"):
            warnings.append(_ADVICE)
        what = f"max_tokens={room}" if room == params.max_tokens else f"the {room:,} tokens that the context leaves"
        if policy.answer_reserve is not None and policy.answer_reserve >= room and room != params.max_tokens:
            raise UsageError(f"thinking.answer_reserve is {policy.answer_reserve} but {what} are no more: shorten it")
        policy = policy.limited(room)
        forced = len(self.tokenizer.encode(EARLY_STOP)) if policy.budget else 0
        if policy.budget and room <= policy.budget + forced:
            warnings.append(
                f"{what} may leave no room for an answer after thinking.budget={policy.budget} and {forced} closing "
                "tokens"
            )
        return policy

    def _experts(self, limit: int | None) -> int:
        """Experts per token that keep the active parameters within `limit`; 0: the model's own number."""
        if limit is None:
            return 0
        config = self.config
        if not config.is_moe:
            raise UsageError(
                f"thinking.max_active_params is {limit:,} but this model is dense, all its "
                f"{config.num_parameters():,} parameters are active: leave it out"
            )
        experts = config.experts_within(limit)
        if not experts:
            raise UsageError(
                f"thinking.max_active_params is {limit:,} but with one expert per token "
                f"{config.num_parameters(True, 1):,} parameters are active: that is the least"
            )
        return experts if experts < config.num_experts_per_tok else 0


def checked(value: Any, kind: type, name: str) -> Any:
    """`value` if it is None or of this kind, else UsageError."""
    if value is not None and not isinstance(value, kind):
        raise UsageError(f"{name} must be a {kind.__name__}, not {type(value).__name__}")
    return value
