"""Tool calls that come in parts: the same call whatever the parts, its arguments shown as soon as they are written."""

from __future__ import annotations

import itertools
import json
import random
import time

import pytest

from qwen3.chat.tool_calls import ToolCallReader, parse_tool_call
from tests.chat.random_chat import text as random_words
from tests.chat.random_chat import value
from tests.tokenizer.random_text import random_text

SPACES = ["", "", " ", "\n", "  ", "\t\r\n "]
NASTY = [
    '"',
    "\\",
    "}",
    "{",
    "]}",
    '\\"',
    "\\\\",
    "é世👩",
    "\n\t\x00\x1f",
    "\u2028",
    '{"name": "g", "arguments": {}}',
    "</x>",
]


def split(rng: random.Random, text: str) -> list[str]:
    """`text` in parts, some of them empty."""
    size = rng.choice([1, 1, 3, 20, len(text) + 1])
    parts, at = [], 0
    while at < len(text):
        step = rng.randrange(0 if size > 1 else 1, size + 1)
        parts.append(text[at : at + step])
        at += step
    return parts


def read(parts) -> tuple[str, str]:
    """(name, arguments) of the parts, with all that can be asked of a reader on the way."""
    reader = ToolCallReader()
    given: list[tuple[str | None, str]] = []
    pushed = 0
    for part in parts:
        given += reader.push(part)
        pushed += len(part)
        assert reader.started == bool(given)
    assert reader.text == "".join(parts)
    given += reader.close()
    names = [name for name, _ in given]
    assert isinstance(names[0], str)
    assert not any(names[1:])
    assert all(delta for _, delta in given)
    return names[0], "".join(delta for _, delta in given)


def outcome(function, argument):
    try:
        result = function(argument)
    except ValueError as error:
        return str(error)
    return result if isinstance(result, tuple) else (result.name, result.arguments)


def written(rng: random.Random, value) -> str:
    """JSON text of a value, as one of the ways to write it."""
    spaces = [(", ", ": "), (",", ":"), (" ,\n ", " : ")]
    return json.dumps(
        value, ensure_ascii=rng.random() < 0.4, separators=rng.choice(spaces), indent=rng.choice([None, None, 2])
    )


def random_call(rng: random.Random) -> tuple[str, str, dict, str | None]:
    """(text of a call, name, arguments, how they are written if in the usual form)."""
    strings = [rng.choice(NASTY) if rng.random() < 0.5 else random_text(rng) for _ in range(rng.randrange(3))]
    arguments = {random_words(rng, False)[:9]: value(rng, True) for _ in range(rng.randrange(4))}
    arguments |= {f"s{i}": text for i, text in enumerate(strings)}
    name = rng.choice(["get_weather", "f", 'we"ird', "naïve", "{", "a\\b"])
    inner = written(rng, arguments)
    form = rng.randrange(8)
    if form == 0:
        pairs = [("arguments", inner), ("name", written(rng, name))]
    elif form == 1:
        pairs = [("name", written(rng, name)), ("arguments", written(rng, inner))]
    elif form == 2:
        arguments, pairs = {}, [("name", written(rng, name))]
    elif form == 3:
        pairs = [("id", "7"), ("name", written(rng, name)), ("arguments", inner)]
    elif form == 4:
        pairs = [("name", written(rng, name)), ("arguments", inner), ("id", '"}"')]
    else:
        pairs = [("name", written(rng, name)), ("arguments", inner)]

    def gap() -> str:
        return rng.choice(SPACES)

    body = ",".join(f'{gap()}"{key}"{gap()}:{gap()}{text}{gap()}' for key, text in pairs)
    return f"{gap()}{{{body}}}{gap()}", name, arguments, inner if form > 3 else None


def test_any_split():
    rng = random.Random(7)
    usual = 0
    for _ in range(3000):
        text, name, arguments, exact = random_call(rng)
        got = read(split(rng, text))
        assert got[0] == name, text
        assert json.loads(got[1]) == arguments, text
        assert exact is None or got[1] == exact, text
        call = parse_tool_call(text)
        assert got == (call.name, call.arguments), text
        usual += exact is not None
    print(f"\n3,000 calls, {usual} in the usual form")


def test_damaged():
    """Whatever happens to a call, in parts or whole it is the same call, or none for the same reason."""
    rng = random.Random(8)
    good = 0
    for _ in range(4000):
        text = random_call(rng)[0]
        for _ in range(rng.randrange(1, 4)):
            at, kind = rng.randrange(len(text) + 1), rng.randrange(4)
            other = random_call(rng)[0]
            if kind == 0:
                text = text[:at]
            elif kind == 1:
                text = text[:at] + rng.choice('{}[]",:\\ x0\n') + text[at:]
            elif kind == 2:
                text = text[:at] + text[at + rng.randrange(1, 4) :]
            else:
                text = text[:at] + other[rng.randrange(len(other)) :]
        whole = outcome(parse_tool_call, text)
        assert outcome(read, split(rng, text)) == whole, text
        assert isinstance(whole, tuple) or "\n" not in whole
        good += isinstance(whole, tuple)
    print(f"\n4,000 damaged calls, {good} still calls")
    assert 40 < good < 3000


def test_every_split_in_two():
    text = '\n{"name": "f\\u00e9", "arguments": {"a": "\\\\\\"}{", "b": [{"c": {}}, "\\u007d"], "d": -1.50e+3}}\n'
    whole = parse_tool_call(text)
    assert (whole.name, whole.arguments) == ("fé", text[text.index('{"a"') : text.rindex("}")])
    for i, j in itertools.combinations(range(len(text) + 1), 2):
        assert read([text[:i], text[i:j], text[j:]]) == (whole.name, whole.arguments)


def test_shown_at_once():
    """In the usual form all that is written of the arguments has been shown, and never more."""
    rng = random.Random(9)
    for _ in range(300):
        text, name, _, exact = random_call(rng)
        if exact is None:
            continue
        begin = text.index(exact, text.index('"arguments"'))
        reader, shown, seen = ToolCallReader(), "", 0
        for part in split(rng, text + rng.choice(["", "}", "\n\n}}"])):
            for given, delta in reader.push(part):
                assert given == (None if shown else name)
                shown += delta
            seen += len(part)
            assert shown == text[begin : min(max(seen, begin), begin + len(exact))], text


def test_other_forms_are_held():
    for text in (
        '{"arguments": {"a": 1}, "name": "f"}',
        '{"name": "f", "arguments": "{\\"a\\": 1}"}',
        '{"name": "f"}',
        '{"id": 1, "name": "f", "arguments": {"a": 1}}',
        '{"name": "f", "parameters": {}, "arguments": {"a": 1}}',
        " " * 2000 + '{"name": "f", "arguments": {"a": 1}}',
    ):
        reader = ToolCallReader()
        assert [piece for char in text for piece in reader.push(char)] == []
        assert not reader.started
        assert reader.close() == [("f", "{}" if text == '{"name": "f"}' else '{"a": 1}')]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ('{"name": "f", "arguments": {"a": 1}', "not JSON"),
        ('{"name": "f", "arguments": {"a": 1', "not JSON"),
        ('{"name": "f", "arguments": {"a": [}}}', "not JSON"),
        ('{"name": "f", "arguments": {"a": 01}}', "not JSON"),
        ('{"name": "f", "arguments": {"a": "\n"}}', "not JSON"),
        ('{"name": "f", "arguments": {\'a\': 1}}', "not JSON"),
        ('{"name": "f", "arguments": {"a": NaN}}', "NaN is not JSON"),
        ('{"name": "f", "arguments": {}}}', "not JSON"),
        ('{"name": "f", "arguments": {}} and more', "not JSON"),
        ('{"name": "f", "arguments": {}, "name": "g"}', "given twice"),
        ('{"name": "f", "arguments": {}, "arguments": {"a": 1}}', "given twice"),
        ('{\u00a0"name": "f", "arguments": {}}', "not JSON"),
        ('{"name": "", "arguments": {}}', "no name"),
        ('{"name": "\\ud800", "arguments": {}}', "not valid Unicode"),
        ('{"name": "\\x", "arguments": {}}', "not JSON"),
        ('{"name": "f", "arguments": [{}]}', "arguments is not an object"),
        ('[{"name": "f", "arguments": {}}]', "not a JSON object"),
        ('{"name": "f", "arguments": ' + '{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_no_calls(text, why):
    for parts in ([text], [text[i : i + 7] for i in range(0, len(text), 7)]):
        reader = ToolCallReader()
        for part in parts:
            reader.push(part)
        with pytest.raises(ValueError, match=why) as caught:
            reader.close()
        assert len(str(caught.value)) < 100
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=why):
        parse_tool_call(text)


def test_half_a_surrogate_pair_stays_escaped():
    for text in ('{"name": "f", "arguments": {"a": "\\ud800"}}', '{"arguments": {"a": "\\ud800"}, "name": "f"}'):
        assert parse_tool_call(text).arguments == '{"a": "\\ud800"}'


@pytest.mark.parametrize("kind", ["words", "escapes", "braces", "held", "no call"])
def test_a_megabyte(kind):
    """Linear: it takes half a second here; by the square, 250,000 parts would take minutes."""
    value = {"escapes": 'a"\\\n' * 140_000, "braces": [{"a": {}}] * 110_000}.get(kind, "a word, " * 125_000)
    arguments = json.dumps({"text": value})
    text = f'{{"name": "f", "arguments": {arguments}}}'
    if kind == "held":
        text = f'{{"arguments": {arguments}, "name": "f"}}'
    elif kind == "no call":
        text = "{" * 1_000_000
    parts = [text[i : i + 4] for i in range(0, len(text), 4)]
    spent = []
    for _ in range(3):  # on a machine that other work makes slow, the quickest counts
        reader = ToolCallReader()
        start = time.process_time()
        given = [piece for part in parts for piece in reader.push(part)]
        if kind != "no call":
            given += reader.close()
            assert "".join(delta for _, delta in given) == arguments
        spent.append(time.process_time() - start)
    print(f"\n{kind}: {len(text):,} characters in {min(spent):.2f} s")
    assert len(text) >= 900_000
    assert min(spent) < 1
