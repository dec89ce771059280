"""RULER's synthetic long-context tasks (Hsieh et al. 2024, arXiv 2404.06654) and a needle at each depth, generated.

Eleven of the 13 tasks; the two of question answering need other data sets. As there: the questions' words, the numbers
of needles, keys, values, hops and frequencies, and the score (the share of the expected strings that the answer holds).
Otherwise: prose is made of generated sentences in place of essays, words of frequency tasks are made up, tasks have no
worked example, and the answer is not begun for the model, which chats. A length is that of the prompt in tokens of
Qwen3's tokenizer, from 4 % below it to 0 (of coded words, 12 %); it is reached by characters, without a tokenizer.
"""

from __future__ import annotations

import math
import random
import string
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

from qwen3.errors import UsageError
from qwen3.evaluate.suites.source import published, settings
from qwen3.evaluate.types import Answer, Item, Sampling, Score, Suite


def _words(text: str) -> list[str]:
    return text.split()


ADJECTIVES = _words(
    "amber ancient brave bright broad calm careful clever cold crisp curious deep eager early faint fair "
    "famous fierce gentle golden grand green happy heavy hollow honest humble idle keen kind late light lively "
    "lonely loud lucky mild narrow noble patient pale plain proud quick quiet rapid rare rough round royal "
    "salty sharp shy silent silver slow small smooth soft solid steady steep stern strange strong sturdy "
    "sudden sunny sweet swift tall tender tiny vast warm wide wild wise young"
)
NOUNS = _words(
    "anchor apple arrow badger barrel basket beacon bell blanket boat bottle branch bridge bucket butter "
    "button candle canyon carpet castle cellar chimney cloud compass corner cottage cradle crystal curtain "
    "desert dragon drum eagle engine farmer feather fence fiddle forest fountain garden gate glacier hammer "
    "harbor helmet hill horse island jacket kettle ladder lantern lemon letter library market meadow mirror "
    "mountain needle orchard oven painter paper pebble pepper pillow pirate planet pocket puppet quarry rabbit "
    "ribbon river saddle sailor shadow signal spider stable statue stone storm street tailor temple thunder "
    "tower tunnel valley village violin wagon wheel window winter"
)
VERBS = _words("avoided carried crossed found followed guarded hid left lifted missed moved noticed passed reached saw")
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

_CHARS = {"noise": 3.72, "prose": 5.35, "numbers": 2.96, "uuids": 1.47}
"""Characters a token of Qwen3's tokenizer, of each kind of text."""
_CODE = 3.9
"""Tokens of a coded word."""
Task = Callable[[random.Random, int], tuple[str, list[str]]]


def _key(rng: random.Random) -> str:
    return f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"


def _keys(rng: random.Random, count: int) -> list[str]:
    places = range(len(ADJECTIVES) * len(NOUNS))
    return [f"{ADJECTIVES[i // len(NOUNS)]}-{NOUNS[i % len(NOUNS)]}" for i in rng.sample(places, count)]


def _uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _value(rng: random.Random, kind: str) -> str:
    return _uuid(rng) if kind == "uuids" else str(rng.randint(1_000_000, 9_999_999))


def _fill(unit: Iterator[str], kind: str, tokens: int) -> list[str]:
    """Units of text of so many tokens together."""
    left, found = tokens * _CHARS[kind], []
    while (left := left - len(text := next(unit)) - 1) >= 0:
        found.append(text)
    return found


def _sentences(rng: random.Random) -> Iterator[str]:
    while True:
        a, b, c = rng.sample(ADJECTIVES, 3)
        x, y, z = rng.sample(NOUNS, 3)
        yield f"The {a} {x} {rng.choice(VERBS)} the {b} {y} before the {c} {z} came into sight."


def _noise() -> Iterator[str]:
    while True:
        yield NOISE


def _needle(kind: str, key: str, value: str) -> str:
    return f"One of the special magic {kind} for {key} is: {value}."


def _strewn(rng: random.Random, hay: list[str], needles: list[str], depth: float | None = None) -> list[str]:
    """The needles in order at random places, or all at one depth (0 to 1)."""
    places = sorted(rng.randint(0, len(hay)) if depth is None else round(depth * len(hay)) for _ in needles)
    for place, needle in sorted(zip(places, needles, strict=True), reverse=True):
        hay.insert(place, needle)
    return hay


def niah(
    rng: random.Random,
    tokens: int,
    *,
    hay: str = "prose",
    kind: str = "numbers",
    keys: int = 1,
    values: int = 1,
    queries: int = 1,
    depth: float | None = None,
) -> tuple[str, list[str]]:
    """Needles "key: value" in noise, prose, or other needles; asked for the values of `queries` of the keys."""
    uuids = hay == "uuids"
    named = [_uuid(rng) for _ in range(keys)] if uuids else _keys(rng, keys)
    held = {name: [_value(rng, kind) for _ in range(values)] for name in named}
    needles = [_needle(kind, name, value) for name, found in held.items() for value in found]
    rng.shuffle(needles)
    room = tokens - 90 - sum(round(len(text) / _CHARS[kind]) for text in needles)
    if hay == "noise":
        units = _fill(_noise(), "noise", room)
    elif hay == "prose":
        units = _fill(_sentences(rng), "prose", room)
    else:
        others = (_needle(kind, _uuid(rng) if uuids else _key(rng), _value(rng, kind)) for _ in iter(int, 1))
        own = set(named)
        units = _fill((text for text in others if not own & {text.split(" for ")[1].split(" is:")[0]}), hay, room)
    text = ("\n" if hay != "prose" else " ").join(_strewn(rng, units, needles, depth))
    asked = rng.sample(named, queries)
    query = ", ".join(asked[:-1]) + (", and " if len(asked) > 1 else "") + asked[-1]
    gold = [value for name in asked for value in held[name]]
    one = len(gold) == 1
    what, are, some = (kind[:-1], "is", "A") if one else (kind, "are all", "Some")
    return (
        f"{some} special magic {what} {are.split()[0]} hidden within the following text. Make sure to memorize it. "
        f"I will quiz you about the {what} afterwards.\n{text}\nWhat {are} the special magic {what} for {query} "
        "mentioned in the provided text?",
        gold,
    )


def variables(rng: random.Random, tokens: int) -> tuple[str, list[str]]:
    """One chain of four assignments in noise; asked for all five variables of the value."""
    names = ["".join(letters) for letters in (rng.choices(string.ascii_uppercase, k=5) for _ in range(5))]
    value = str(rng.randint(10_000, 99_999))
    chain = [f"VAR {names[0]} = {value}", *(f"VAR {b} = VAR {a} " for a, b in pairwise(names))]
    text = "\n".join(_strewn(rng, _fill(_noise(), "noise", tokens - 150), chain))
    return (
        f"Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{text}\nQuestion: "
        f"Find all variables that are assigned the value {value} in the text above.",
        names,
    )


def _made_up(rng: random.Random) -> str:
    return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(3))


def common_words(rng: random.Random, tokens: int) -> tuple[str, list[str]]:
    """A numbered list in which ten words stand 30 times each and the others three times."""
    often = 30 if tokens >= 4096 else 10
    words: dict[str, None] = {}
    while len(words) < 10:
        words[_made_up(rng)] = None
    common = list(words)
    count, left = 10 * often, tokens - 70.0 - sum(4.7 + len(str(i)) for i in range(10 * often))
    while (left := left - 3 * (4.7 + len(str(count)))) > 0:
        while (word := _made_up(rng)) in words:
            pass
        words[word] = None
        count += 3
    entries = common * often + list(words)[10:] * 3
    rng.shuffle(entries)
    text = " ".join(f"{i}. {word}" for i, word in enumerate(entries, 1))
    return (
        "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
        f"appear most often.\n{text}\nQuestion: What are the 10 most common words in the above list?",
        common,
    )


def frequent_words(rng: random.Random, tokens: int) -> tuple[str, list[str]]:
    """Coded words by a zeta distribution of exponent 2; asked for the three most frequent after the dots."""
    words: dict[str, None] = {}
    while len(words) < 2000:
        words["".join(rng.choices(string.ascii_lowercase, k=6))] = None
    names = list(words)
    weights = [6 / math.pi**2 * k**-2.0 for k in range(1, len(names) + 2)]
    count = float(tokens)
    while sum(int(count * weight) * (_CODE if k else 1) for k, weight in enumerate(weights)) > tokens - 80:
        count *= 0.99
    text = [name for name, weight in zip(["....", *names], weights, strict=True) for _ in range(int(count * weight))]
    rng.shuffle(text)
    return (
        "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
        f"appeared coded words. {' '.join(text)}\nQuestion: Do not provide any explanation. Please ignore the dots "
        "'....'. What are the three most frequently appeared words in the above coded text?",
        names[:3],
    )


TASKS: dict[str, Task] = {
    "niah_single_1": partial(niah, hay="noise"),
    "niah_single_2": partial(niah),
    "niah_single_3": partial(niah, kind="uuids"),
    "niah_multikey_1": partial(niah, keys=4),
    "niah_multikey_2": partial(niah, hay="numbers"),
    "niah_multikey_3": partial(niah, hay="uuids", kind="uuids"),
    "niah_multivalue": partial(niah, values=4),
    "niah_multiquery": partial(niah, keys=4, queries=4),
    "vt": variables,
    "cwe": common_words,
    "fwe": frequent_words,
}
DEFAULTS = {"lengths": (4096, 8192, 16384, 32768), "count": 5, "seed": 1, "tasks": tuple(TASKS)}
DEPTHS = {"lengths": (4096, 8192, 16384, 32768), "count": 1, "seed": 1, "depths": tuple(range(0, 101, 10))}


def _item(id: str, make: Task, length: int, about: dict[str, object]) -> Item:
    if length < 1024:
        raise UsageError(f"{id}: a length of {length} tokens is too short; take 1024 or more")
    prompt, gold = make(random.Random(id), length)
    return Item(id, ({"role": "user", "content": prompt},), gold, {"length": length, **about})


def load(source: str | None) -> list[Item]:
    """`count` items of each task and length: "lengths=4096+131072,count=20,tasks=vt+cwe,seed=2"."""
    asked = settings("ruler", source, DEFAULTS)
    if unknown := [name for name in asked["tasks"] if name not in TASKS]:
        raise UsageError(f"ruler: no task {unknown[0]!r}; there are {', '.join(TASKS)}")
    return [
        _item(f"{name}/{length}/{asked['seed']}/{i}", TASKS[name], length, {"task": name})
        for length in asked["lengths"]
        for name in asked["tasks"]
        for i in range(asked["count"])
    ]


def load_needle(source: str | None) -> list[Item]:
    """One needle in prose at each depth (percent) and length: "lengths=4096+32768,depths=0+50+100,count=3,seed=2"."""
    asked = settings("needle", source, DEPTHS)
    if max(asked["depths"]) > 100:
        raise UsageError(f"needle: a depth is a percentage, not {max(asked['depths'])}")
    return [
        _item(
            f"needle/{length}/{depth}/{asked['seed']}/{i}", partial(niah, depth=depth / 100), length, {"depth": depth}
        )
        for length in asked["lengths"]
        for depth in asked["depths"]
        for i in range(asked["count"])
    ]


def score(item: Item, answer: Answer) -> Score:
    """RULER's: the share of the expected strings that the answer holds, upper and lower case alike."""
    said = answer.content.lower()
    missing = [text for text in item.gold if text.lower() not in said]
    value = 1 - len(missing) / len(item.gold)
    note = f"missing {', '.join(missing)}"[:200] if missing else ""
    return Score(value, "wrong" if missing else "right", note=note)


RULER_TABLE = "Qwen3 Technical Report (arXiv 2505.09388), table 23: average of 13 tasks, 4K to 128K, YaRN factor 4"
SUITES = (
    Suite(
        name="ruler",
        title="RULER, 11 tasks",
        load=load,
        score=score,
        licence="Apache-2.0",
        source="generated, after https://github.com/NVIDIA/RULER",
        headline="mean share of expected strings",
        sampling=Sampling(max_tokens=8192),
        references=published(
            "83.5 84.4 90.1 91.0 86.6 92.2",
            "85.2 89.1 94.6 93.7 91.6 95.0",
            RULER_TABLE,
            ("4B", "8B", "14B", "32B", "30B-A3B", "235B-A22B"),
        ),
        groups=("length", "task"),
        notes="Settings in place of a file: lengths=4096+8192+16384+32768,count=5,seed=1,tasks=all eleven. The report "
        "goes on to lengths=65536+131072 with YaRN (factor 4), and thinks with a budget of 8,192 tokens.",
    ),
    Suite(
        name="needle",
        title="a needle at each depth",
        load=load_needle,
        score=score,
        licence="Apache-2.0",
        source="generated",
        headline="share of needles found",
        sampling=Sampling(max_tokens=8192),
        groups=("length", "depth"),
        notes="Settings in place of a file: lengths=4096+8192+16384+32768,depths=0+10+...+100,count=1,seed=1.",
    ),
)
