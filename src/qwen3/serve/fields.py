"""What the bodies of all dialects are made of: every number bounded and finite, every type strict, no key unnoticed.

A body keeps the keys it does not know, and `Body.ignored` says in words which of them did nothing.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from qwen3.engine.params import MAX_BIASES, MAX_LOGPROBS, MAX_N, MAX_STOP_CHARS, MAX_STOPS

INT32 = 2**31 - 1
MAX_MESSAGES, MAX_TOOLS, MAX_IDS = 65_536, 1024, 2**21
_MAX_WARNINGS, _MAX_KEY = 32, 60

Temperature = Annotated[float, Field(ge=0, le=100)]
TopP = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=-1, le=INT32)]
MinP = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
RepetitionPenalty = Annotated[float, Field(gt=0, le=10)]
MaxTokens = Annotated[int, Field(ge=1, le=INT32)]
MinTokens = Annotated[int, Field(ge=0, le=INT32)]
Budget = Annotated[int, Field(ge=0, le=INT32)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**64 - 1)]
N = Annotated[int, Field(ge=1, le=MAX_N)]
Logprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]
Priority = Annotated[int, Field(ge=-INT32, le=INT32)]
TokenId = Annotated[int, Field(ge=0, le=INT32)]
TokenIds = Annotated[list[TokenId], Field(max_length=MAX_IDS)]
StopIds = Annotated[list[TokenId], Field(max_length=MAX_STOPS)]


def _unicode(text: str) -> str:
    """JSON can spell half a surrogate pair, which no encoder takes."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("the text is not valid Unicode: it holds half of a surrogate pair") from None
    return text


Text = Annotated[str, AfterValidator(_unicode)]
Name = Annotated[Text, Field(min_length=1, max_length=512)]
Label = Annotated[Text, Field(max_length=4096)]
EFFORTS: dict[str, int | None] = {
    "none": 0, "minimal": 512, "low": 1024, "medium": 4096, "high": 16_384, "xhigh": None, "max": None,
}  # fmt: skip
"""Name of an effort of thinking -> budget in tokens; None: none."""

Effort = Annotated[Name, WithJsonSchema({"enum": list(EFFORTS)})]
Pattern = Annotated[Text, Field(min_length=1, max_length=65_536)]


def _stops(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("must be a text or a list of texts")
    if len(texts) > MAX_STOPS or not all(0 < len(_unicode(text)) <= MAX_STOP_CHARS for text in texts):
        raise ValueError(f"at most {MAX_STOPS} texts of 1 to {MAX_STOP_CHARS} characters are allowed")
    return texts


def _biases(value: dict[str, float]) -> dict[int, float]:
    if len(value) > MAX_BIASES:
        raise ValueError(f"at most {MAX_BIASES} entries are allowed, these are {len(value)}")
    for key, bias in value.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise ValueError(f"every key must be a token id, not {key[:_MAX_KEY]!r}")
        if not -100 <= bias <= 100:
            raise ValueError(f"the bias of {key} must be -100 to 100, not {bias:g}")
    return {int(key): bias for key, bias in value.items()}


Stop = Annotated[
    Any,  # a union's errors would name its branches
    AfterValidator(_stops),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS},
                {
                    "type": "array",
                    "maxItems": MAX_STOPS,
                    "items": {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS},
                },
            ]
        }
    ),
]
"""One text or several; validated it is a list."""

LogitBias = Annotated[
    dict[str, float],
    AfterValidator(_biases),
    WithJsonSchema(
        {
            "type": "object",
            "maxProperties": MAX_BIASES,
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        }
    ),
]
"""Token id as a string -> bias; validated its keys are ints."""

# What a message may be is checked where it is rendered (`chat.messages.normalize`), with better words than a union's.
Messages = Annotated[
    list[dict[str, Any]],
    Field(min_length=1, max_length=MAX_MESSAGES),
    WithJsonSchema(
        {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_MESSAGES,
            "items": {
                "type": "object",
                "required": ["role"],
                "properties": {
                    "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
                    "content": {
                        "anyOf": [
                            {"type": "string"},
                            {"type": "null"},
                            {
                                "type": "array",
                                "items": {
                                    "type": "object",
                                    "required": ["type", "text"],
                                    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                                },
                            },
                        ]
                    },
                    "reasoning_content": {"type": ["string", "null"]},
                    "tool_calls": {"type": ["array", "null"], "items": {"type": "object"}},
                    "tool_call_id": {"type": ["string", "null"]},
                },
            },
        }
    ),
]
"""A conversation in OpenAI's shape; keys it does not know are kept."""

Tools = Annotated[
    list[dict[str, Any]],
    Field(max_length=MAX_TOOLS),
    WithJsonSchema(
        {
            "type": "array",
            "maxItems": MAX_TOOLS,
            "items": {
                "type": "object",
                "required": ["type", "function"],
                "properties": {
                    "type": {"const": "function"},
                    "function": {
                        "type": "object",
                        "required": ["name"],
                        "properties": {
                            "name": {"type": "string", "minLength": 1},
                            "description": {"type": "string"},
                            "parameters": {"type": "object"},
                        },
                    },
                },
            },
        }
    ),
]
"""Tools in OpenAI's shape: {"type": "function", "function": {"name", "description", "parameters"}}."""


def shown(name: str) -> str:
    """A key that a client made up, as a message may repeat it: not long, and valid Unicode."""
    return name[:_MAX_KEY].encode(errors="replace").decode()


# Checked by `serve.thinking`: a union's errors would name its branches.
ThinkingField = Annotated[Any, WithJsonSchema({"type": ["object", "boolean", "string", "null"]})]


class Body(BaseModel):
    """A request's JSON. Strict: no "1" for 1, `true` is no number, no NaN; unknown keys are kept and reported.

    INEFFECTIVE: fields that are known and do nothing here, with the reason; they are reported where they are set to
    something (not to null, false, zero or an empty value).
    """

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, protected_namespaces=())

    INEFFECTIVE: ClassVar[dict[str, str]] = {}

    @model_validator(mode="after")
    def _own_template(self) -> Self:
        """A template is a program: no request brings one, and nobody should believe that theirs was used."""
        if (self.model_extra or {}).get("chat_template") is not None:
            words = "chat_template is not taken from requests: the model's own template is used, leave it out"
            raise PydanticCustomError("not_supported", words, {"param": "chat_template"})
        return self

    def ignored(self) -> list[str]:
        """A line for each field that was given and does nothing, at most 33 of them."""
        known = [field.alias or name for name, field in type(self).model_fields.items()]
        found = []
        for name in self.model_extra or {}:
            near = difflib.get_close_matches(name, known, 1, 0.8) if len(name) <= _MAX_KEY else []
            hint = f" (did you mean {near[0]}?)" if near else ""
            found.append(f"{shown(name)} is not a field of this request and was ignored{hint}")
            if len(found) == _MAX_WARNINGS:
                found.append(f"{len(self.model_extra or {}) - _MAX_WARNINGS} more unknown fields were ignored")
                break
        return found + [
            f"{name} has no effect: {why}"
            for name, why in self.INEFFECTIVE.items()
            if getattr(self, name, None) and name in self.model_fields_set
        ]


class SamplingBody(Body):
    """The fields that choose tokens, as OpenAI and vLLM spell them; null is as good as left out."""

    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    logit_bias: LogitBias | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    stop_token_ids: StopIds | None = None
    ignore_eos: bool | None = None
    max_tokens: MaxTokens | None = None
    min_tokens: MinTokens | None = None
    n: N | None = None
    prompt_logprobs: Logprobs | None = None

    def sampling(self, **more: Any) -> dict[str, Any]:
        """Keyword arguments of SamplingParams: these fields and `more` (which wins), without what is None."""
        values = {name: getattr(self, name) for name in SamplingBody.model_fields} | more
        return {name: value for name, value in values.items() if value is not None}


class ThinkingBody(Body):
    """Every spelling of thinking that OpenAI-shaped clients use; `serve.thinking` makes one policy of them."""

    thinking: ThinkingField = None
    enable_thinking: bool | None = None
    thinking_budget: Budget | None = None
    thinking_token_budget: Budget | None = None
    thinking_budget_tokens: Budget | None = None
    reasoning_effort: Effort | None = None
    reasoning: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    custom_params: dict[str, Any] | None = None
