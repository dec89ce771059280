"""Grammars: whatever is picked among the allowed tokens is valid, ends and parses; nothing is ignored in silence."""

from __future__ import annotations

import contextlib
import gc
import json
import pickle
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from qwen3.chat import parse
from qwen3.chat.tool_calls import parse_tool_call
from qwen3.engine import constraint as module
from qwen3.engine.constraint import Constraint, Matcher
from qwen3.errors import Qwen3Error, UsageError
from qwen3.evaluate.schemas import SCHEMAS
from qwen3.tokenizer import Tokenizer

CAP = 2000
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 12, "description": "its name"},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
ODD = {
    "name": 'we"ird \\ näme\x7f\n日本',
    "parameters": {"properties": {"a": {"enum": [1, 2]}}, "additionalProperties": False},
}
NOTHING = {"name": "now", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}

# Shapes whose answers have no bound, or that are met less often; together with SCHEMAS all a schema may hold.
MORE: dict[str, Any] = {
    "anything": True,
    "number": {"type": "number", "minimum": -1.5, "exclusiveMaximum": 2.25},
    "tenths": {"type": "number", "minimum": 0, "multipleOf": 0.5},
    "constant": {"const": {'q"\\\n': ["é\u2028\x7f\u0001", 0.1, 1e-7, None]}},
    "not normalized": {"const": "cafe\u0301 \u212b e\u0301"},
    "date-time": {"type": ["string", "null"], "format": "date-time"},
    "leap day": {"type": "string", "format": "date", "pattern": "-02-29$"},
    "ipv6": {"type": "string", "format": "ipv6"},
    "at least one": {
        "type": "object",
        "properties": {"a": {"type": "null"}, "b": {"type": "boolean"}},
        "additionalProperties": False,
        "minProperties": 1,
    },
    "free names": {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": {"type": "string", "maxLength": 3},
    },
    "list": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": {
            "a/b~c": {
                "type": "object",
                "properties": {
                    "v": {"type": "boolean"},
                    "next": {"anyOf": [{"$ref": "#/$defs/a~1b~0c"}, {"type": "null"}]},
                },
                "required": ["v", "next"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/a~1b~0c",
        "title": "a list",
        "x-note": {"anything": 1},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The embedded model's: a prefix of the official one."""
    return Tokenizer.from_pretrained(Path(str(resources.files("qwen3") / "data" / "embedded")))


@pytest.fixture(scope="module")
def official() -> Tokenizer:
    return Tokenizer.from_pretrained()


def allowed(matcher: Matcher) -> np.ndarray:
    return np.flatnonzero(np.unpackbits(matcher.mask().view(np.uint8), bitorder="little"))


def sample(matcher: Matcher, tokenizer: Tokenizer, rng: np.random.Generator, ids: list[int] | None = None) -> str:
    """Text of tokens taken uniformly among the allowed ones; after CAP / 4 it ends where it may."""
    ids = [] if ids is None else ids
    while len(ids) < CAP:
        choice = allowed(matcher)
        end = len(ids) > CAP / 4 and tokenizer.eos_ids[0] in choice
        id = tokenizer.eos_ids[0] if end else int(rng.choice(choice))
        matcher.push(id)
        if id in tokenizer.eos_ids:
            break
        ids.append(id)
    return tokenizer.decode(ids)


def is_valid(schema: Any, text: str) -> bool:
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(json.loads(text))
    return True


# JSON schemas


@pytest.mark.parametrize("name", SCHEMAS)
def test_random_answers_are_valid_and_short(name: str, tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(len(name))
    constraint = Constraint.json_schema(SCHEMAS[name])
    for _ in range(12):
        matcher, ids = constraint.matcher(tokenizer), []
        assert is_valid(SCHEMAS[name], sample(matcher, tokenizer, rng, ids))
        assert matcher.done
        assert len(ids) < 400


@pytest.mark.parametrize("name", MORE)
def test_random_answers_without_a_bound_are_valid_where_they_end(name: str, tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(len(name))
    constraint = Constraint.json_schema(MORE[name])
    ended = 0
    for _ in range(8):
        matcher = constraint.matcher(tokenizer)
        text = sample(matcher, tokenizer, rng)
        ended += matcher.done and is_valid(MORE[name], text)
    assert ended >= 4


def test_white_space_is_bounded(tokenizer: Tokenizer) -> None:
    """Always taking white space where it is allowed still ends; so does pretty-printed and compact JSON."""
    schema = SCHEMAS["nested"]
    matcher = Constraint.json_schema(schema).matcher(tokenizer)
    text = b""
    while not matcher.done:
        pieces = {int(id): tokenizer.token_bytes(int(id)) for id in allowed(matcher)}
        blank = [id for id, piece in pieces.items() if not piece.strip()]
        id = blank[0] if blank else min(pieces, key=lambda id: (len(pieces[id]), id))
        matcher.push(id)
        text += pieces[id]
        assert len(text) < 4000
    assert is_valid(schema, text.decode())
    assert not re.search(rb"\n\s*\n|\s{35}| \n", text)
    value = {"user": {"id": 7, "roles": ["admin"]}, "active": True}
    for written in (json.dumps(value), json.dumps(value, indent=4), json.dumps(value, separators=(",", ":"))):
        matcher = Constraint.json_schema(schema).matcher(tokenizer)
        for id in tokenizer.encode(written):
            matcher.push(id)
        assert matcher.accepting
    for wrong in ('{  "user"', '{\n\n"user"', ' {"user"', '\n{"user"'):
        with pytest.raises(Qwen3Error, match="schema: token"):
            matcher.reset() or [matcher.push(id) for id in tokenizer.encode(wrong)]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "schema is not JSON"),
        ('{"type": "string", "type": "null"}', "schema: the key 'type' is given twice"),
        (3, "schema must be a schema"),
        (False, "schema is false"),
        ({"type": "text"}, "schema: .*Invalid type: text"),
        ({"properties": {"a": {"minlength": 3}}}, r"schema\.properties\.a\.minlength is not supported"),
        ({"uniqueItems": True}, r"schema\.uniqueItems is not supported"),
        ({"items": [{"not": {}}]}, r"schema\.items\.0\.not is not supported"),
        ({"if": {}, "then": {}}, r"schema\.if is not supported"),
        ({"allOf": [{"$id": "a"}]}, r"schema\.allOf\.0\.\$id is not supported"),
        ({"x-guidance": {"lenient": True}}, "schema.x-guidance is not supported"),
        ({"type": "string", "format": "color"}, "schema.format 'color' is not supported; known: date"),
        ({"anyOf": {}}, "schema.anyOf must be a list"),
        ({"properties": []}, "schema.properties must be an object"),
        ({"$ref": "https://example.com/a"}, r"schema\.\$ref must lead into this document"),
        ({"items": {"$ref": "#/$defs/b"}, "$defs": {"a": {}}}, r"schema\.items\.\$ref leads to no schema"),
        ({"default": {}, "$ref": "#/default"}, "leads to no schema"),
        ({"const": 2**53 + 1}, r"schema\.const holds 9007199254740993, which is beyond"),
        ({"enum": [{"a": [1e300]}]}, "schema.enum holds 1e.300"),
        ({"minimum": float("nan")}, "schema has no JSON form"),
        ({"prefixItems": [{}], "items": [{}]}, "schema mixes prefixItems"),
        ({"type": "object", "minProperties": 2}, "schema.minProperties is not supported where names are free"),
        ({"oneOf": [{"type": "string"}, {"maxLength": 3}]}, "schema: .*oneOf constraints are not supported"),
        ({"type": "string", "pattern": "(?=a)b"}, "schema: .*look-around"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "schema: .*[Uu]nsatisfiable"),
        ({"const": "\ud800"}, "lone surrogate"),
        ({"description": "x" * 200_000}, "schema has 2000.. characters as JSON; at most 131072"),
        ("[" * 200_000, "schema has 200000 characters"),
        ("[" * 100_000, "schema is nested too deeply"),
        ({"type": object()}, "schema.type is a object, which has no JSON form"),
    ],
)
def test_what_is_wrong_in_a_schema_is_named(schema: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Constraint.json_schema(schema)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_schemas_are_bounded_and_never_overflow_the_compiler() -> None:
    deep: dict[str, Any] = {}
    for _ in range(65):
        deep = {"items": deep}
    with pytest.raises(UsageError, match="deeper than 64 levels"):
        Constraint.json_schema(deep)
    chain = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(3000)}
    with pytest.raises(UsageError, match="too complex: depth times references"):
        Constraint.json_schema({"$defs": {**chain, "d3000": {}}, "$ref": "#/$defs/d0"})
    with pytest.raises(UsageError, match="grammar has 2002 rules and brackets"):
        Constraint.lark("start: a0\n" + "".join(f"a{i}: a{i + 1}\n" for i in range(2000)) + 'a2000: "x"')


def test_what_matches_nothing_is_an_error_when_it_is_compiled(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="schema: nothing can follow"):
        Constraint.json_schema({"$ref": "#"}).matcher(tokenizer)
    with pytest.raises(UsageError, match="grammar: nothing can follow"):
        Constraint.lark("start: a\na: b\nb: a").matcher(tokenizer)
    with pytest.raises(UsageError, match="regex: "):
        Constraint.regex("(a|b)?" * 2700).matcher(tokenizer)


def test_a_grammar_too_complex_for_a_step_fails_and_does_not_end_the_answer(tokenizer: Tokenizer) -> None:
    constraint = Constraint.json_schema({"type": "string", "pattern": "^(.*a.{200}|.*b.{200}|.*c.{300})$"})
    matcher = constraint.matcher(tokenizer)
    with pytest.raises(Qwen3Error, match=r"schema: the grammar failed after .* tokens: "):  # noqa: PT012
        for id in tokenizer.encode('"' + "abc" * 100):
            matcher.push(id)
            matcher.mask()


def test_what_others_met_does_not_count_against_a_generation(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The automaton is shared and bounded: when it is full, a generation goes on with a new one."""
    monkeypatch.setattr(module, "MAX_STATES", 250)
    renewed: list[bool] = []
    compiled = module._Bridge.compiled

    def spy(self: Any, constraint: Constraint, renew: bool = False) -> Any:
        renewed.append(renew)
        return compiled(self, constraint, renew)

    monkeypatch.setattr(module._Bridge, "compiled", spy)
    tokenizer, rng = tokenizer.prefix(300), np.random.default_rng(0)
    constraint = Constraint.regex("[ab]*a[ab]{25}")
    for _ in range(20):
        assert re.fullmatch("[ab]*a[ab]{25}", sample(constraint.matcher(tokenizer), tokenizer, rng))
    assert any(renewed)


def test_matchers_of_one_constraint_run_in_threads(tokenizer: Tokenizer) -> None:
    constraint = Constraint.json_schema(SCHEMAS["object"])

    def run(seed: int) -> str:
        return sample(constraint.matcher(tokenizer), tokenizer, np.random.default_rng(seed))

    with ThreadPoolExecutor(4) as pool:
        texts = [*pool.map(run, range(12))]
    assert texts == [run(seed) for seed in range(12)]


# Regular expressions and grammars


def test_regex(tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(0)
    constraint = Constraint.regex(r"[0-9]{3}-(?:foo|bär)+/?")
    for _ in range(5):
        assert re.fullmatch(r"[0-9]{3}-(?:foo|bär)+/?", sample(constraint.matcher(tokenizer), tokenizer, rng))
    for pattern, message in (
        ("(", "regex: invalid regex .*unclosed group"),
        ("(?=a)b", "regex: .*look-around"),
        (r"(?-u:\xff)", "regex: .*invalid UTF-8"),
        ("a" * 20_000, "regex has 20000 characters"),
        (3, "regex must be a string, not int"),
    ):
        with pytest.raises(UsageError, match=message):
            Constraint.regex(pattern)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        'start: sum\nsum: NUMBER ("+" NUMBER){0,3}  // "<|im_end|>"\nNUMBER: /[0-9]{1,4}/',
        'root ::= number ("+" number)? ("+" number)?\nnumber ::= [0-9] [0-9]?',
    ],
)
def test_lark_and_ebnf(text: str, tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        assert re.fullmatch(r"\d+(\+\d+){0,3}", sample(Constraint.lark(text).matcher(tokenizer), tokenizer, rng))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "grammar: Empty grammar"),
        ('foo: "a"', "grammar: no start rule"),
        ("start: (", "grammar: "),
        ("root ::= (", "grammar: Failed to convert"),
        ("start: <|im_end|>", r"grammar: <\|im_end\|> is a control token"),
        ('start: "x" <[151645]>', r"grammar: <\[151645\]> is a control token"),
        ("start: a\na[max_tokens=3]: /x+/", "grammar: 'max_tokens=' is not supported"),
        ('%llguidance {"no_forcing": true}\nstart: "a"', "grammar: '%llguidance"),
        ("start: " + "x" * 40_000, "grammar has 40007 characters"),
        (b"start", "grammar must be a string, not bytes"),
    ],
)
def test_what_is_wrong_in_a_grammar_is_named(text: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Constraint.lark(text)


# Tools


def calls_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The calls in a text that is nothing but calls, byte for byte as the template separates them."""
    bodies = text.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>").split("\n</tool_call>\n<tool_call>\n")
    assert text == "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)
    calls = [parse_tool_call(body) for body in bodies]
    for body, call in zip(bodies, calls, strict=True):
        head = f'{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": '
        assert body == f"{head}{call.arguments}}}"
    return [(call.name, json.loads(call.arguments)) for call in calls]


@pytest.mark.parametrize("parallel", [True, False])
def test_required_tools_are_called_in_the_form_of_the_template(parallel: bool, tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(parallel)
    tools = {"get_weather": WEATHER["function"], ODD["name"]: ODD, "now": NOTHING}
    constraint = Constraint.tools([WEATHER, ODD, NOTHING], parallel=parallel)
    seen: set[str] = set()
    counts = set()
    for _ in range(25):
        matcher, ids = constraint.matcher(tokenizer), []
        calls = calls_of(sample(matcher, tokenizer, rng, ids))
        assert matcher.done
        assert [call.name for call in parse(ids, tokenizer).tool_calls] == [name for name, _ in calls]
        for name, arguments in calls:
            jsonschema.validate(arguments, {**tools[name]["parameters"], "type": "object"})  # type: ignore[index]
        seen |= {name for name, _ in calls}
        counts.add(len(calls))
    assert seen == tools.keys()
    assert (counts > {1}) if parallel else (counts == {1})


def test_a_named_tool_is_called_once(tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(0)
    unchecked = {"name": "later", "parameters": {"not": {}}}  # not asked for, so it is not compiled
    for _ in range(5):
        matcher = Constraint.tools([WEATHER, unchecked], "get_weather").matcher(tokenizer)
        assert [name for name, _ in calls_of(sample(matcher, tokenizer, rng))] == ["get_weather"]


def test_a_tool_without_parameters_takes_any_object(tokenizer: Tokenizer) -> None:
    matcher = Constraint.tools([{"name": "f"}]).matcher(tokenizer)
    for id in tokenizer.encode('<tool_call>\n{"name": "f", "arguments": {"a": [1, {"b": null}]}}\n</tool_call>'):
        matcher.push(id)
    assert matcher.accepting


def test_a_function_takes_the_arguments_that_are_listed(tokenizer: Tokenizer) -> None:
    listed: dict[str, Any] = {"properties": {"a": {"type": "integer"}}}
    for parameters, more in (
        (listed, False),
        ({"properties": {}}, False),
        ({**listed, "required": ["a"]}, False),
        ({**listed, "additionalProperties": {"type": "integer"}}, True),
        ({**listed, "patternProperties": {"^b": {}}}, True),
        ({**listed, "required": ["b"]}, True),
        ({"required": ["b"]}, True),
        (None, True),
    ):
        matcher = Constraint.tools([{"name": "f", "parameters": parameters}], "f").matcher(tokenizer)
        with contextlib.nullcontext() if more else pytest.raises(Qwen3Error, match="is not allowed"):
            for id in tokenizer.encode('<tool_call>\n{"name": "f", "arguments": {"b": 1}}'):
                matcher.push(id)


def test_text_comes_before_calls_that_are_held_to_their_form(tokenizer: Tokenizer) -> None:
    call = tokenizer.control.tool_call
    for parallel in (True, False):
        constraint = Constraint.text_then_calls([WEATHER, ODD], parallel)
        assert (constraint.late, constraint.notes) == (True, ())
        assert constraint.matcher(tokenizer).begins_with == call
        assert {*allowed(constraint.matcher(tokenizer))} == {call}
        eager = Constraint.tools([WEATHER, ODD], parallel=parallel)
        assert eager.matcher(tokenizer).begins_with is None
        assert constraint.grammar == eager.grammar
        assert constraint != eager


def test_what_cannot_be_enforced_is_noted_where_the_model_may_call(tokenizer: Tokenizer) -> None:
    odd = {"name": "g", "parameters": {"properties": {"a": {"nullable": True}}}}
    constraint = Constraint.text_then_calls([WEATHER, odd])
    (note,) = constraint.notes
    assert note.startswith("tools[1].parameters.properties.a.nullable is not supported")
    assert note.endswith("the arguments of 'g' may be any object")
    matcher = constraint.matcher(tokenizer)
    for id in tokenizer.encode('<tool_call>\n{"name": "g", "arguments": {"b": [null]}}\n</tool_call>'):
        matcher.push(id)
    assert matcher.accepting
    with pytest.raises(UsageError, match="nullable"):
        Constraint.tools([WEATHER, odd])
    with pytest.raises(UsageError, match="'now' is given twice"):
        Constraint.text_then_calls([NOTHING, NOTHING])
    with pytest.raises(UsageError, match="tools have no JSON form"):
        Constraint.text_then_calls([{"name": "f", "parameters": {"minimum": float("nan")}}])


def test_schema_with_tools_gives_an_answer_or_calls(tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(3)
    constraint = Constraint.tools_or(SCHEMAS["object"], [WEATHER, NOTHING])
    kinds = set()
    for _ in range(30):
        text = sample(constraint.matcher(tokenizer), tokenizer, rng)
        kinds.add(text[0])
        assert calls_of(text) if text.startswith("<") else is_valid(SCHEMAS["object"], text)
    assert kinds == {"<", "{"}


@pytest.mark.parametrize(
    ("tools", "choice", "message"),
    [
        ([], "required", "tools is empty"),
        ({}, "required", "tools must be a list"),
        ([WEATHER, {"function": 3}], "required", r"tools\[1\]\.function must be an object"),
        ([{"name": ""}], "required", r"tools\[0\]\.name must be a string that is not empty"),
        ([NOTHING, NOTHING], "required", r"tools\[1\]\.name 'now' is given twice"),
        ([NOTHING], "later", "tool_choice names 'later', which is not among the tools: now"),
        ([{"name": "f", "parameters": {"type": "array"}}], "f", r"tools\[0\]\.parameters must be a JSON schema of"),
        ([NOTHING, {"function": {"name": "f", "parameters": {"properties": {"a": {"nullable": True}}}}}], "required",
         r"tools\[1\]\.function\.parameters\.properties\.a\.nullable is not supported"),
        ([{"name": "f", "parameters": {"required": ["a"], "additionalProperties": False}}], "required",
         r"tools\[0\]\.parameters: .*[Uu]nsatisfiable"),
        ([{"name": f"f{i}"} for i in range(300)], "required", "tools has 300 tools; at most 256"),
        ([{"name": f"f{i}" + "x" * 999} for i in range(200)], "required", "tools have .* characters of schemas"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_tools_is_named(tools: Any, choice: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Constraint.tools(tools, choice)


# Tokens


def test_control_ids_are_never_text_and_ends_only_where_the_answer_may_end(tokenizer: Tokenizer) -> None:
    matcher = Constraint.json_schema({"type": "string"}).matcher(tokenizer)
    control, ends = set(tokenizer.added_tokens), set(tokenizer.eos_ids)
    for id in tokenizer.encode_plain('"a <tool_call> <think> <|im_end|>'):
        matcher.push(id)
        assert not control & {*allowed(matcher)}
        assert not matcher.accepting
    for id in control:
        with pytest.raises(Qwen3Error, match=f"schema: token {id} is not allowed after"):
            matcher.push(id)
    matcher.push(*tokenizer.encode('"'))
    assert matcher.accepting
    assert matcher.done
    assert {*allowed(matcher)} == ends
    number = Constraint.json_schema({"type": "integer"}).matcher(tokenizer)
    number.push(*tokenizer.encode("7"))
    assert number.accepting
    assert not number.done
    assert {*allowed(number)} > ends
    for end in ends:
        number.push(end)
        assert number.done
        assert {*allowed(number)} == ends
        assert number.forced() == []
        with pytest.raises(Qwen3Error, match="is not allowed after the end"):
            number.push(end)
        number.rollback(1)
    for id in (-1, tokenizer.vocab_size, 10**9):
        with pytest.raises(Qwen3Error, match=f"token {id} is not allowed"):
            number.push(id)
    assert len(number) == 1


def test_masks_have_the_size_of_the_vocabulary_and_gaps_are_never_allowed(tokenizer: Tokenizer) -> None:
    tokenizer = tokenizer.prefix(300)
    tokenizer.vocab_size += 41  # as in a checkpoint that leaves ids unused
    matcher = Constraint.regex(r"(?s:.*)").matcher(tokenizer)
    assert matcher.mask().dtype == np.int32
    assert matcher.mask().shape == (-(-tokenizer.vocab_size // 32),)
    assert {*allowed(matcher)} == {*range(300), *tokenizer.eos_ids} - {
        id for id in range(300) if not is_utf8_start(tokenizer.token_bytes(id))
    }
    matcher.mask()[:] = 0  # the caller's own
    assert allowed(matcher).size


def is_utf8_start(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True


def test_forced_ids_are_the_tokenizers_own_encoding(tokenizer: Tokenizer) -> None:
    matcher = Constraint.tools([WEATHER], parallel=False).matcher(tokenizer)
    text = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    ids = tokenizer.encode(text)
    forced = matcher.forced()
    assert len(forced) > 5
    assert forced == ids[: len(forced)]
    for id in ids:
        after = matcher.forced()
        if after:  # the mask says the same
            assert {*allowed(matcher)} == {after[0]}
        matcher.push(id)
    assert matcher.done
    exact = "cafe\u0301 \u212b"
    matcher = Constraint.json_schema({"const": exact}).matcher(tokenizer)
    forced = matcher.forced()
    for id in forced:
        matcher.push(id)
    assert f'"{exact}"'.startswith(tokenizer.decode(forced))
    assert len(forced) > 4


def test_rollback_equals_replay(tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(5)
    for constraint in (Constraint.tools_or(MORE["list"], [WEATHER, ODD]), Constraint.json_schema(SCHEMAS["recursion"])):
        matcher = constraint.matcher(tokenizer)
        path: list[int] = []
        for _ in range(150):
            if path and (rng.random() < 0.3 or path[-1] in tokenizer.eos_ids):
                n = int(rng.integers(1, len(path) + 1))
                matcher.rollback(n)
                del path[-n:]
                fresh = constraint.matcher(tokenizer)
                for id in path:
                    fresh.push(id)
                assert np.array_equal(fresh.mask(), matcher.mask())
                assert (fresh.accepting, fresh.done) == (matcher.accepting, matcher.done)
                assert fresh.forced() == matcher.forced()
            path.append(int(rng.choice(allowed(matcher))))
            matcher.push(path[-1])
            assert len(matcher) == len(path)
        with pytest.raises(UsageError, match="rollback: n must be from 0 to"):
            matcher.rollback(len(path) + 1)
        matcher.reset()
        assert len(matcher) == 0


def test_a_refused_token_changes_nothing(tokenizer: Tokenizer) -> None:
    matcher = Constraint.json_schema(SCHEMAS["object"]).matcher(tokenizer)
    matcher.push(*tokenizer.encode("{"))
    before = matcher.mask()
    wrong = next(id for id in range(tokenizer.vocab_size) if id not in {*allowed(matcher)})
    with pytest.raises(Qwen3Error):
        matcher.push(wrong)
    assert np.array_equal(matcher.mask(), before)


# Sharing


def test_constraints_are_values(tokenizer: Tokenizer) -> None:
    one = Constraint.json_schema(SCHEMAS["object"])
    same = Constraint.json_schema(json.dumps({**SCHEMAS["object"], "description": "differs"}))
    assert one == same == pickle.loads(pickle.dumps(one))
    assert len({one, same, Constraint.json_schema({"type": "object"})}) == 2
    first, second = one.matcher(tokenizer), one.matcher(tokenizer)
    first.push(*tokenizer.encode("{"))
    assert (len(first), len(second)) == (1, 0)
    assert not np.array_equal(first.mask(), second.mask())


def test_the_cache_is_bounded_and_ends_with_the_tokenizer(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    monkeypatch.setattr(module, "MAX_COMPILED", 2)
    gc.collect()
    count = len(module._bridges)
    tokenizer = tokenizer.prefix(300)
    matcher = None
    for pattern in "abcab":
        matcher = Constraint.regex(pattern).matcher(tokenizer)
    assert len(module._bridges) == count + 1
    assert len(module._bridges[tokenizer]._compiled) == 2
    del matcher, tokenizer
    gc.collect()
    assert len(module._bridges) == count


def test_without_llguidance_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UsageError, match="pip install llguidance"):
        Constraint.json_schema({})
    script = "import sys, qwen3.engine.constraint; assert 'llguidance' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


def test_masks_of_the_official_vocabulary_are_fast(official: Tokenizer) -> None:
    """A mask is tens to hundreds of microseconds; the bounds here leave room for a busy machine."""
    constraint = Constraint.json_schema(SCHEMAS["nested"])
    matcher = constraint.matcher(official)  # 2 s the first time: the trie of 151,669 tokens
    start = time.perf_counter()
    for _ in range(100):
        constraint.matcher(official)
    assert time.perf_counter() - start < 0.2
    rng = np.random.default_rng(0)
    times = []
    for _ in range(5):
        matcher = constraint.matcher(official)
        while not matcher.done:
            start = time.perf_counter()
            mask = matcher.mask()
            times.append(time.perf_counter() - start)
            assert mask[-1] >> (official.vocab_size % 32) == 0
            matcher.push(int(rng.choice([id for id in allowed(matcher) if id not in official.eos_ids])))
    assert np.median(times) < 2e-3
