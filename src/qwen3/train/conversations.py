"""Conversations to training samples: the very ids the engine would see as prompt, and those the model would sample.

    renderer = Renderer(tokenizer, "qwen3")
    renderer.turns([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}])[0].sample()

Every trained turn is a sample of its own. Its prompt is `chat.encode` of the history before it: earlier thoughts are
dropped where inference drops them, and no message can forge a control token. Its completion is what the model writes:
`<think>` to `</think>` with both tags, the answer, tool calls, `<|im_end|>`; not the newline after that, which the
template writes. An empty think block is the prompt's, and never trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from qwen3.chat import TEMPLATES, encode, normalize
from qwen3.chat.encode import encode_pieces
from qwen3.chat.policy import soft_switch
from qwen3.chat.stream import AFTER_THINK, EARLY_STOP
from qwen3.chat.template import Piece, is_tool_response, pieces, split_think
from qwen3.errors import UsageError
from qwen3.tokenizer import Tokenizer
from qwen3.train.samples import TokenSample

Message = Mapping[str, Any]
Turns = Literal["last", "all"]
CutBy = Literal["paragraphs", "tokens"]

TRAINING_FIELDS = ("ids", "trained", "weight")
"""What an assistant message may have beside OpenAI's fields. ids: the tokens as they were sampled, end of turn and all;
they are taken as they are. trained: which of them count (forced ones do not); without it all. weight: of the turn's
tokens in the loss, 0: not trained."""


@dataclass(frozen=True)
class Turn:
    """One assistant turn. prompt, completion: ids. trained: which of the completion's count. thinking: whether it
    thinks. message: its place in the conversation. warnings: control strings that were encoded as text."""

    prompt: list[int]
    completion: list[int]
    trained: list[bool]
    thinking: bool
    message: int
    weight: float = 1.0
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)

    def sample(self, source: str = "") -> TokenSample:
        """Its weight apart (see `weighted`)."""
        ids = np.array([*self.prompt, *self.completion], dtype=np.int32)
        return TokenSample(ids, np.array([False] * len(self.prompt) + self.trained), source=source)


def weighted(sample: TokenSample, weight: float) -> TokenSample:
    """The sample with the stream "weight", which all samples of an update must have, or none."""
    return replace(sample, streams={"weight": np.where(sample.trained, np.float32(weight), np.float32(0))})


@dataclass(frozen=True)
class Renderer:
    """The model's tokenizer, and which of the official templates it wants. Raises UsageError for another template."""

    tokenizer: Tokenizer
    template: str = "qwen3"

    def __post_init__(self) -> None:
        if self.template not in TEMPLATES:
            raise UsageError(
                f"fine-tuning needs one of Qwen's chat templates ({', '.join(TEMPLATES)}), not {self.template!r}"
            )

    def turns(
        self,
        messages: Sequence[Message],
        which: Turns = "last",
        *,
        thinking: bool | None = None,
        tools: Sequence[Any] | None = None,
    ) -> list[Turn]:
        """The trained turns: "last" takes what the assistant writes after the last user message (tool calls and the
        answer), "all" every turn of weight above 0. Each sees its history as inference would render it.

        Raises UsageError as `turn` does, and where no turn is left to train.
        """
        if which not in get_args(Turns):
            raise UsageError(f"turns={which!r} must be last or all")
        if not messages or messages[-1].get("role") != "assistant":
            role = messages[-1].get("role") if messages else "nobody"
            raise UsageError(f"the last message must be the assistant's, not {role}'s: nothing would be trained")
        first = 0
        if which == "last":
            queries = (i for i, m in enumerate(messages) if m.get("role") == "user" and not _is_response(m))
            first = max(queries, default=-1) + 1
        wanted = (i for i in range(first, len(messages)) if messages[i].get("role") == "assistant")
        found = [self.turn(messages[: i + 1], thinking=thinking, tools=tools) for i in wanted if _weight(messages, i)]
        if not found:
            raise UsageError("every assistant message that would be trained has weight 0")
        return found

    def turn(
        self, messages: Sequence[Message], *, thinking: bool | None = None, tools: Sequence[Any] | None = None
    ) -> Turn:
        """The last message, trained. thinking: True trains its reasoning; False leaves that out, and the prompt closes
        an empty think block; None: as the last soft switch before it says, without one as the message itself is.

        Raises UsageError for what `chat.encode` refuses, a turn without text, one that thinks and has no reasoning (or
        the reverse, unless thinking=False), and for `TRAINING_FIELDS` that are wrong.
        """
        *history, last = normalize([_without(m) for m in messages])
        here = len(history)
        where = f"messages[{here}]"
        if last["role"] != "assistant":
            raise UsageError(f"{where} is a {last['role']}'s: only assistant messages are trained")
        if not history or history[-1]["role"] == "assistant":
            raise UsageError(
                f"{where} is an assistant message that answers nobody: "
                + ("join it with the one before" if history else "begin with a user message")
            )
        if "reasoning_content" not in last:
            reasoning, last["content"] = split_think(last["content"])
            last["reasoning_content"] = reasoning
        if not last["content"].strip() and not last.get("tool_calls"):
            raise UsageError(f"{where} is empty: an answer needs content or tool calls")
        thinks = self._mode(history, last, thinking, where)
        prompt = encode(history, tokenizer=self.tokenizer, tools=tools, enable_thinking=thinks, template=self.template)
        given, warnings = messages[here].get("ids"), prompt.warnings
        if given is None:
            made = encode_pieces(_written(last, self.template, thinks, where), self.tokenizer)
            completion, trained = made.ids, [True] * len(made.ids)
            warnings += made.warnings
        else:
            completion, trained = _given(messages[here], self.tokenizer, where)
            if not thinks and self.tokenizer.control.end_think in completion:  # sampled with the thought left out now
                answer = self._answer(completion, last)
                same = completion[-len(answer) :] == answer
                completion, trained = answer, trained[-len(answer) :] if same else [True] * len(answer)
        return Turn(prompt.ids, completion, trained, thinks, here, _weight(messages, here), warnings)

    def stopped(
        self,
        messages: Sequence[Message],
        share: float,
        by: CutBy = "paragraphs",
        *,
        tools: Sequence[Any] | None = None,
    ) -> Turn:
        """The last message as if a budget had closed its thinking: of its thought so much is kept (0 to 1, rounded
        down, at least one token or paragraph), then comes the published early-stop text, then the answer. Only the
        answer is trained."""
        if by not in get_args(CutBy) or not 0 <= share <= 1:
            raise UsageError(
                f"a thought is cut by paragraphs or tokens at a share from 0 to 1, not {by!r} at {share!r}"
            )
        turn = self.turn(messages, thinking=True, tools=tools)
        end = self.tokenizer.control.end_think
        if end not in turn.completion:
            raise UsageError(f"messages[{turn.message}].ids have no </think>: there is no thought to cut")
        thought = turn.completion[: turn.completion.index(end)]
        bounds = list(range(1, len(thought) + 1)) if by == "tokens" else _paragraph_ends(self.tokenizer, thought)
        kept = thought[: bounds[max(1, int(share * len(bounds))) - 1]]
        answer = self._answer(turn.completion, normalize([_without(messages[-1])])[0])
        forced = [*kept, *self.tokenizer.encode(EARLY_STOP)]
        trained = [False] * len(forced) + [True] * len(answer)
        return Turn(turn.prompt, forced + answer, trained, True, turn.message, turn.weight, turn.warnings)

    def _answer(self, completion: Sequence[int], message: dict[str, Any]) -> list[int]:
        """What follows the thought of a completion, without the blank line between: behind an empty think block or the
        early-stop text that is there already."""
        answer = list(completion[completion.index(self.tokenizer.control.end_think) + 1 :])
        gap = self.tokenizer.encode_plain(AFTER_THINK)
        if answer[: len(gap)] == gap and len(answer) > len(gap):
            return answer[len(gap) :]
        return encode_pieces(_written(message, self.template, False, "messages[-1]"), self.tokenizer).ids

    def _mode(self, history: list[dict[str, Any]], last: dict[str, Any], asked: bool | None, where: str) -> bool:
        reasoning = bool(last["reasoning_content"].strip())
        if self.template == "qwen3":
            switch = soft_switch(history) if asked is None else None
            thinks = asked if asked is not None else switch[0] if switch else reasoning
            why = switch[1] if switch else "enable_thinking"
        else:
            thinks, why = self.template == "thinking-2507", f"the template {self.template}"
            if asked is not None and asked is not thinks:
                raise UsageError(f"enable_thinking={asked} does not go with {why}, which {_always(thinks)} thinks")
        if thinks and not reasoning:
            raise UsageError(f"{where} has no reasoning_content, but {why} makes this a turn that thinks")
        if reasoning and not thinks and asked is None:
            raise UsageError(f"{where} has reasoning_content, but {why} makes this a turn that does not think")
        return thinks


def _always(thinks: bool) -> str:
    return "always" if thinks else "never"


def _without(message: Message) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key not in TRAINING_FIELDS}


def _is_response(message: Message) -> bool:
    content = message.get("content")
    return isinstance(content, str) and is_tool_response(content)


def _weight(messages: Sequence[Message], i: int) -> float:
    weight = messages[i].get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
        raise UsageError(f"messages[{i}].weight must be a number from 0, not {weight!r}")
    return float(weight)


def _written(message: dict[str, Any], template: str, thinks: bool, where: str) -> list[Piece]:
    """What the model writes of an assistant message, as the template would."""
    made = pieces([{"role": "user", "content": ""}, message], template=template, add_generation_prompt=False)
    start = made.index(Piece("<|im_start|>assistant\n")) + 1
    if template != "instruct-2507":  # a think block comes first: opening tag, reasoning, closing tag
        start += 3 if not thinks else 0 if template == "qwen3" else 1
    own = [Piece(text, None if source is None else where) for text, source in made[start:-1]]
    return [*own, Piece("<|im_end|>")]


def _given(message: Message, tokenizer: Tokenizer, where: str) -> tuple[list[int], list[bool]]:
    ids, trained = message["ids"], message.get("trained")
    if not isinstance(ids, (list, tuple)) or not ids:
        raise UsageError(f"{where}.ids must be a list of token ids")
    for id in ids:
        if isinstance(id, bool) or not isinstance(id, int) or not 0 <= id < tokenizer.vocab_size:
            raise UsageError(f"{where}.ids holds {id!r}, which is no token: they were sampled with another tokenizer")
    if trained is None:
        return list(ids), [True] * len(ids)
    if not isinstance(trained, (list, tuple)) or len(trained) != len(ids) or not all(t in (0, 1) for t in trained):
        raise UsageError(f"{where}.trained must be a list of {len(ids)} times 0 or 1, one for each of ids")
    return list(ids), [bool(t) for t in trained]


def _paragraph_ends(tokenizer: Tokenizer, thought: Sequence[int]) -> list[int]:
    """How many tokens reach the end of each paragraph: its blank line, as `max_steps` counts; the thought's end."""
    ends: list[int] = []
    text, seen = bytearray(), 0
    for count, id in enumerate(thought, 1):
        text += tokenizer.token_bytes(id)
        if (at := text.find(b"\n\n", seen)) >= 0:
            seen = at + 2
            ends.append(count)
    return ends if ends and ends[-1] == len(thought) else [*ends, len(thought)]
