"""What an answer may look like: a JSON schema, a regular expression, a grammar, or tool calls, as masks over token ids.

A `Constraint` is what is asked for: checked, frozen, hashable, picklable, without a tokenizer. `matcher(tokenizer)`
gives one generation's `Matcher`; the grammar is compiled once per tokenizer. The work is done by llguidance (an Earley
parser over lazily built automata), which is imported when a constraint is made and not before.

Three rules hold for every kind. Control ids are never text: a string may spell `<tool_call>`, in ordinary tokens. Bytes
that the grammar forces are tokenized as the tokenizer would. White space in JSON is bounded, so that a model at
temperature 1 cannot write newlines forever: between two JSON tokens at most one space, or one newline and an indent.
"""

from __future__ import annotations

import json
import re
import threading
import unicodedata
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3.chat.template import plain_tools
from qwen3.engine.json_schema import MAX_TEXT, checked_schema
from qwen3.errors import Qwen3Error, UsageError
from qwen3.tokenizer import Tokenizer, check_unicode

MAX_REGEX = 16 << 10
MAX_GRAMMAR = 32 << 10
MAX_RULES = 1000
"""Rules and open brackets of a grammar: the compiler is recursive, and thousands of nested ones overflow its stack."""
MAX_TOOLS = 256
MAX_COMPILED = 32
"""Compiled grammars kept per tokenizer; the least recently used goes first."""
MAX_KEPT = 1 << 20
"""Characters of tools whose rules are kept: descriptions have no bound."""
MAX_STATES = 100_000
"""States of a grammar's automaton, about 1 kB each: as many characters may a string with a `maxLength` have."""

_JSON_SPACE = r" |\n {0,32}|\n\t{0,8}"  # matched at most once in a place
# Where one of these is, `properties` need not be all arguments there are.
_MORE = frozenset(("$ref", "additionalProperties", "allOf", "anyOf", "minProperties", "oneOf", "patternProperties"))
_TOOL_TAGS = ("<tool_call>", "</tool_call>")
# A grammar's strings, regular expressions and comments, in which nothing below is looked for.
_LITERAL = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|#[^\n]*|/(?:\\.|[^/\\\n])+/')
_TOKEN = re.compile(r"<[^>\n]*>")
_RULE = re.compile(r"^\s*[?!]?\w[\w-]*[^:\n]*:", re.MULTILINE)
_FORBIDDEN = re.compile(r"\b(?:max_tokens|temperature|stop)\s*=|%llguidance\s*\{\s*[^\s}]")


@dataclass(frozen=True)
class Constraint:
    """What the answer must match. Equal constraints have equal text. Made by the class methods below.

    kind: what messages call it (`schema`, `regex`, `grammar`, `tools`). grammar: llguidance's text of it. late: any
    text may come first, and the grammar begins with `<tool_call>`. notes: what was asked for and is not enforced.
    """

    kind: str
    grammar: str = field(repr=False)
    late: bool = False
    notes: tuple[str, ...] = field(default=(), repr=False, compare=False)

    @classmethod
    def json_schema(cls, schema: Any) -> Constraint:
        """JSON that is valid under `schema`: a dict, a bool, JSON text, or a pydantic-like object of that shape.

        Properties come in the order of the schema. Formats are enforced. Raises UsageError naming the place in the
        schema for what is malformed, too large, or not supported; no keyword is ignored but annotations.
        """
        return cls("schema", f"start: {_json(schema, 'schema')}")

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        """Text that matches `pattern` as a whole (Rust's regex syntax: no look-around, no back references)."""
        _text(pattern, "regex", MAX_REGEX)
        return cls("regex", _validated("regex", _llguidance().LLMatcher.grammar_from_regex(pattern)))

    @classmethod
    def lark(cls, text: str) -> Constraint:
        """Text of the language of a grammar: llguidance's dialect of Lark (`start: …`), or EBNF (`root ::= …`).

        The only control tokens it may name are `<tool_call>` and `</tool_call>`. `%json` schemas inside are compiled as
        llguidance does by default, without the checks of `json_schema`.
        """
        _text(text, "grammar", MAX_GRAMMAR)
        if "::=" in text:
            try:
                text = _llguidance().grammar_from("grammar", text)
            except ValueError as error:
                raise UsageError(f"grammar: {_one_line(str(error))}") from None
        bare = _LITERAL.sub(" ", text)
        if wrong := [token for token in _TOKEN.findall(bare) if token not in _TOOL_TAGS]:
            raise UsageError(f"grammar: {wrong[0]} is a control token; only {' and '.join(_TOOL_TAGS)} may be named")
        if found := _FORBIDDEN.search(bare):
            raise UsageError(f"grammar: {found[0].strip()!r} is not supported: write the bound into the rule itself")
        if (size := len(_RULE.findall(bare)) + bare.count("(") + bare.count("[")) > MAX_RULES:
            raise UsageError(f"grammar has {size} rules and brackets; at most {MAX_RULES} are allowed")
        return cls("grammar", _validated("grammar", text))

    @classmethod
    def tools(cls, tools: Any, choice: str = "required", parallel: bool = True) -> Constraint:
        """Calls of `tools` and nothing else, as the template writes them, from `<tool_call>` to `</tool_call>`.

        choice: "required" (one call, or with `parallel` one or more, a newline between two), or a tool's name: exactly
        one call of that tool. Arguments follow the tool's `parameters`; where there are none, any object. Arguments
        that `properties` does not list are allowed where `additionalProperties` says so, or there is no such list.
        """
        calls, rules, _ = _calls(tools, None if choice == "required" else choice, parallel)
        return cls("tools", f"start: {calls}\n{rules}")

    @classmethod
    def tools_or(cls, schema: Any, tools: Any, parallel: bool = True) -> Constraint:
        """Either JSON under `schema` or calls as of `tools`: a schema with tools the model may call."""
        answer = cls.json_schema(schema).grammar.removeprefix("start: ")
        calls, rules, _ = _calls(tools, None, parallel)
        return cls("tools", f"start: answer | calls\nanswer: {answer}\ncalls: {calls}\n{rules}")

    @classmethod
    def text_then_calls(cls, tools: Any, parallel: bool = True) -> Constraint:
        """Any text, and from the first `<tool_call>` to the end calls as of `tools`: tools the model may call.

        The text costs nothing: there is no mask before the first call. A tool whose `parameters` cannot be enforced
        takes any object, and `notes` names it.
        """
        calls, rules, notes = _calls(tools, None, parallel, lenient=True)
        return cls("tools", f"start: {calls}\n{rules}", True, notes)

    def matcher(self, tokenizer: Tokenizer) -> Matcher:
        """A matcher at the beginning of an answer in the tokens of `tokenizer`. Cheap after the first time.

        Raises UsageError naming `kind` if the grammar is too large to compile, or if nothing matches it.
        """
        return Matcher(tokenizer, self)


class Matcher:
    """One generation against one constraint. Not thread-safe; masks are computed without the GIL."""

    def __init__(self, tokenizer: Tokenizer, constraint: Constraint):
        """Not for callers: use `Constraint.matcher`."""
        self._tokenizer = tokenizer  # held: the bridge does not
        self._constraint = constraint
        self._bridge = _bridge(tokenizer)
        self._inner = self._bridge.compiled(constraint).deep_copy()
        self._ids: list[int] = []  # pushed, but for the end
        self._ended = False
        self._mask: NDArray[np.int32] | None = None

    @property
    def begins_with(self) -> int | None:
        """The id that is its first, with any text before it; None: it begins where the answer does."""
        return self._tokenizer.control.tool_call if self._constraint.late else None

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process a matcher goes as what it is made of, and the tokens it has seen."""
        return _replayed, (self._tokenizer, self._constraint, self._ids, self._ended)

    def mask(self) -> NDArray[np.int32]:
        """int32 [ceil(vocab_size / 32)]: bit i % 32 of word i // 32 says whether id i may come next. A copy.

        All of the tokenizer's ends are allowed where the answer may end. Bits past the vocabulary are 0. Raises
        Qwen3Error where the grammar turns out too complex, or leads nowhere.
        """
        return self._current().copy()

    def push(self, id: int) -> None:
        """Take the next token. Raises Qwen3Error, with nothing changed, if the grammar refuses it."""
        is_end = id in self._bridge.end_ids
        if self._ended or not 0 <= id < self._tokenizer.vocab_size:
            allowed = False
        else:
            allowed = self.accepting if is_end else self._ask(lambda inner: inner.try_consume_tokens([id])) == 1
        if not allowed:
            where = "after the end" if self._ended else f"after {len(self)} tokens"
            raise Qwen3Error(f"{self._constraint.kind}: token {id} is not allowed {where}")
        self._mask = None
        if is_end:
            self._ended = True
        else:
            self._ids.append(id)

    def rollback(self, n: int) -> None:
        """Forget the last `n` tokens. Raises UsageError if there are not so many."""
        if not 0 <= n <= len(self):
            raise UsageError(f"rollback: n must be from 0 to {len(self)}, the tokens pushed, not {n}")
        if n == 0:
            return
        tokens = n - self._ended
        self._ended, self._mask = False, None
        self._ask(lambda inner: inner.rollback(tokens))
        del self._ids[len(self._ids) - tokens :]

    def reset(self) -> None:
        """Back to the beginning."""
        self.rollback(len(self))

    def __len__(self) -> int:
        """How many tokens were pushed, the end included."""
        return len(self._ids) + self._ended

    @property
    def accepting(self) -> bool:
        """Whether the answer may end here."""
        return self._ended or bool(self._ask(lambda inner: inner.is_accepting()))

    @property
    def done(self) -> bool:
        """Whether nothing but an end may follow."""
        return self._ended or (self.accepting and np.array_equal(self._current(), self._bridge.ends))

    def forced(self) -> list[int]:
        """Ids that must come next, in order, as the tokenizer would encode them; [] where there is a choice.

        The last bytes the grammar forces are held back where a longer token could begin with them.
        """
        return [] if self._ended else self._ask(lambda inner: inner.compute_ff_tokens())

    def _current(self) -> NDArray[np.int32]:
        if self._mask is None:
            mask = self._bridge.ends.copy()
            if not self._ended:
                self._ask(lambda inner: inner.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes))
            self._mask = mask
        return self._mask

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        """What llguidance answers; once more by a new compilation if it fails.

        All matchers of a compiled grammar share its automaton, which grows with what they meet and has a limit: when it
        is reached, or the automaton broke, this generation need not be the one that is too complex.
        """
        answer = question(self._inner)
        if self._inner.is_error():
            self._inner = self._bridge.compiled(self._constraint, renew=True).deep_copy()
            self._inner.try_consume_tokens(self._ids)
            answer = question(self._inner)
            if self._inner.is_error():
                reason = _reason(self._inner)
                raise Qwen3Error(f"{self._constraint.kind}: the grammar failed after {len(self)} tokens: {reason}")
        return answer


def _replayed(tokenizer: Tokenizer, constraint: Constraint, ids: Sequence[int], ended: bool) -> Matcher:
    matcher = constraint.matcher(tokenizer)
    for id in [*ids, *[*tokenizer.eos_ids][:ended]]:
        matcher.push(id)
    return matcher


# Checks


def _text(value: Any, where: str, limit: int) -> None:
    if not isinstance(value, str):
        raise UsageError(f"{where} must be a string, not {type(value).__name__}")
    if len(value) > limit:
        raise UsageError(f"{where} has {len(value)} characters; at most {limit} are allowed")
    check_unicode(value, where)


def _json(schema: Any, where: str) -> str:
    """`schema`, checked and with our white space, as it stands in a grammar."""
    options = {"whitespace_pattern": _JSON_SPACE}
    text = json.dumps({**checked_schema(schema, where), "x-guidance": options}, ensure_ascii=False)
    return _validated(where, f"start: %json {text}").removeprefix("start: ")


def _calls(tools: Any, name: str | None, parallel: bool, lenient: bool = False) -> tuple[str, str, tuple[str, ...]]:
    """(what the calls are, the rules that needs, notes); `name`: one call of this tool. lenient: parameters that cannot
    be enforced are noted, not raised."""
    try:
        text = json.dumps(plain_tools(tools), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"tools have no JSON form: {error}") from None
    rules_of = _calls_of if len(text) <= MAX_KEPT else _calls_of.__wrapped__
    return rules_of(text, name, parallel, lenient)


@lru_cache(MAX_COMPILED)  # every turn of a conversation sends the same tools, and each of them takes 0.6 ms
def _calls_of(tools: str, name: str | None, parallel: bool, lenient: bool) -> tuple[str, str, tuple[str, ...]]:
    """`_calls` of tools as JSON."""
    plain = json.loads(tools)
    if not plain:
        raise UsageError("tools is empty: a tool call needs at least one tool")
    if len(plain) > MAX_TOOLS:
        raise UsageError(f"tools has {len(plain)} tools; at most {MAX_TOOLS} are allowed")
    rules: dict[str, str] = {}
    notes: list[str] = []
    for i, tool in enumerate(plain):
        function, where = (tool["function"], f"tools[{i}].function") if "function" in tool else (tool, f"tools[{i}]")
        if not isinstance(function, dict):
            raise UsageError(f"{where} must be an object with name and parameters, not {type(function).__name__}")
        key = function.get("name")
        if not isinstance(key, str) or not key:
            raise UsageError(f"{where}.name must be a string that is not empty, not {key!r}")
        check_unicode(key, f"{where}.name")
        if key in rules:
            raise UsageError(f"{where}.name {key!r} is given twice")
        rules[key] = ""
        if name in (None, key):
            try:
                rules[key] = _call(key, function.get("parameters"), f"{where}.parameters")
            except UsageError as error:
                if not lenient:
                    raise
                rules[key] = _call(key, None, where)
                notes.append(f"{error}; the arguments of {key!r} may be any object")
    if name is not None and name not in rules:
        raise UsageError(f"tool_choice names {name!r}, which is not among the tools: {', '.join(rules)}")
    bodies = [rule for rule in rules.values() if rule]
    if (size := sum(map(len, bodies))) > MAX_TEXT:
        raise UsageError(f"tools have {size} characters of schemas; at most {MAX_TEXT} are allowed")
    lines = [f"call: <tool_call> ({' | '.join(f'call_{i}' for i in range(len(bodies)))}) </tool_call>"]
    lines += [f"call_{i}: {body}" for i, body in enumerate(bodies)]
    calls = 'call ("\\n" call)*' if parallel and name is None else "call"
    return calls, "\n".join(lines), tuple(notes)


def _call(name: str, parameters: Any, where: str) -> str:
    parameters = {} if parameters is None else parameters
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        raise UsageError(f"{where} must be a JSON schema of type object: arguments are an object")
    head = f'\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '
    schema = _json({**_closed(parameters), "type": "object"}, where)
    literal = json.dumps(head, ensure_ascii=False).replace("\x7f", r"\u007f")  # the one character that must be escaped
    return f'{literal} {schema} "}}\\n"'


def _closed(parameters: dict[str, Any]) -> dict[str, Any]:
    """A function takes the arguments that are listed, whether or not its schema says that there are no others."""
    listed, required = parameters.get("properties"), parameters.get("required", [])
    if not isinstance(listed, dict) or _MORE & parameters.keys():
        return parameters
    complete = isinstance(required, list) and all(name in listed for name in required if isinstance(name, str))
    return {**parameters, "additionalProperties": False} if complete else parameters


def _validated(where: str, grammar: str) -> str:
    failed, messages = _llguidance().LLMatcher.validate_grammar_with_warnings(grammar, limits=_limits())
    if failed:
        raise UsageError(f"{where}: {_one_line(messages[0])}")
    return grammar


def _one_line(message: str) -> str:
    """llguidance's message without the excerpt of the grammar, and at most 300 characters."""
    message = re.split(r"\n\s+\d+ \| |\n<", message)[0]
    return " ".join(re.sub(r"^at \d+\(\d+\): ", "", message).split())[:300]


def _reason(inner: Any) -> str:
    reason = _one_line(inner.get_error())
    return "nothing can follow" if reason == "NoExtensionBias" else reason


# llguidance


def _llguidance() -> ModuleType:
    try:
        import llguidance
    except ImportError:
        raise UsageError("structured output needs the library llguidance: pip install llguidance") from None
    return llguidance


def _limits() -> Any:
    """Bounds on memory; those on the work of compiling and of a step are the library's. No grammar in messages."""
    return _llguidance().LLParserLimits(max_lexer_states=MAX_STATES, max_grammar_size=200_000, verbose_errors=False)


class _Vocabulary:
    """The tokenizer as llguidance reads it: bytes of every id once, and later the encoding of forced text."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer):
        # Not held: llguidance keeps this object as long as the cache keeps the bridge, whose key the tokenizer is.
        self._tokenizer = weakref.ref(tokenizer)
        self.eos_token_id = tokenizer.eos_ids[0]
        # Every added token is a control token here, whether or not the file flags it `special`: it is never text.
        self.special_token_ids = sorted(tokenizer.added_tokens)
        self.tokens = [_bytes(tokenizer, id) for id in range(tokenizer.vocab_size)]
        self._byte_ids = {data[0]: id for id, data in enumerate(self.tokens) if len(data) == 1}

    def __call__(self, text: str) -> list[int]:
        tokenizer = self._tokenizer()
        assert tokenizer is not None  # a matcher holds it
        if unicodedata.is_normalized("NFC", text):
            return tokenizer.encode_plain(text)
        # The pipeline would normalize, and give the tokens of other bytes than the grammar forces.
        ids: list[int] = []
        for piece in re.findall(r"[\x00-\x7f]+|[^\x00-\x7f]+", text):
            stable = unicodedata.is_normalized("NFC", piece)
            ids += tokenizer.encode_plain(piece) if stable else [self._byte_ids[byte] for byte in piece.encode()]
        return ids


def _bytes(tokenizer: Tokenizer, id: int) -> bytes:
    try:
        return tokenizer.token_bytes(id)
    except UsageError:
        return b""  # a gap among the ids: never allowed


class _Bridge:
    """One tokenizer's side of llguidance: its vocabulary as a trie, and the grammars compiled against it."""

    def __init__(self, tokenizer: Tokenizer):
        vocabulary = _Vocabulary(tokenizer)
        self._inner = _llguidance().LLTokenizer(vocabulary, eos_token=list(tokenizer.eos_ids))
        vocabulary.tokens = []  # copied; 150,000 objects that nobody needs
        self._compiled: OrderedDict[Constraint, Any] = OrderedDict()
        self._lock = threading.Lock()
        self.end_ids = frozenset(tokenizer.eos_ids)
        bits = np.zeros(-(-tokenizer.vocab_size // 32) * 32, np.uint8)
        bits[list(tokenizer.eos_ids)] = 1
        self.ends = np.packbits(bits, bitorder="little").view(np.int32)

    def compiled(self, constraint: Constraint, renew: bool = False) -> Any:
        """An LLMatcher at the beginning, to be copied; `renew`: not one that was there already."""
        with self._lock:
            found = None if renew else self._compiled.get(constraint)
            if found is None:
                found = _llguidance().LLMatcher(self._inner, constraint.grammar, limits=_limits(), log_level=0)
                found.compute_bitmask()  # what is too complex, or matches nothing, shows here
                if found.is_error():
                    raise UsageError(f"{constraint.kind}: {_reason(found)}")
                self._compiled[constraint] = found
                if len(self._compiled) > MAX_COMPILED:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(constraint)
            return found


_bridges: weakref.WeakKeyDictionary[Tokenizer, _Bridge] = weakref.WeakKeyDictionary()
_bridges_lock = threading.Lock()


def _bridge(tokenizer: Tokenizer) -> _Bridge:
    with _bridges_lock:
        if (bridge := _bridges.get(tokenizer)) is None:
            bridge = _bridges[tokenizer] = _Bridge(tokenizer)
        return bridge
