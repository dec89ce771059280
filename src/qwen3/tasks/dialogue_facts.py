"""Turns the tables of `talk_data` and `talk_qa` into questions, short answers and full answers.

A `Fact` is one thing to know with several wordings; `FACTS` groups them, `pick_fact` draws one. Facts that can be asked
again with another subject ("And Germany?") carry that subject.
"""

from __future__ import annotations

from functools import cache
from random import Random
from typing import NamedTuple

from qwen3.tasks import talk_data as data
from qwen3.tasks.talk_data import words
from qwen3.tasks.talk_qa import DEFINITIONS
from qwen3.tasks.talk_qa import FACTS as FREE


class Turn(NamedTuple):
    """One exchange: what the user says, what the model thinks, what it answers."""

    user: str
    thought: str
    reply: str


class Fact(NamedTuple):
    """One fact. `short` is the answer alone, `full` the answer as sentences (the first is the usual one)."""

    questions: tuple[str, ...]
    short: str
    full: tuple[str, ...]
    subject: str = ""


ONES = words("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen")
ONES += words("seventeen eighteen nineteen")
TENS = words("_ _ twenty thirty forty fifty sixty seventy eighty ninety")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words("January February March April May June July August September October November December")
MONTH_DAYS = (31, 0, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
ORDINALS = words("""first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth
fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth""")


def number_words(n: int) -> str:
    """0 ≤ n < 10,000 in English words: 342 → "three hundred and forty-two"."""
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10] + (f"-{ONES[n % 10]}" if n % 10 else "")
    if n < 1000:
        return f"{ONES[n // 100]} hundred" + (f" and {number_words(n % 100)}" if n % 100 else "")
    rest = n % 1000
    return f"{number_words(n // 1000)} thousand" + (
        f"{' and' if rest < 100 else ''} {number_words(rest)}" if rest else ""
    )


def ordinal(n: int) -> str:
    """1 → "1st", 12 → "12th", 22 → "22nd"."""
    suffix = "th" if 10 <= n % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{suffix}"


def article(noun: str) -> str:
    """The noun with "a" or "an", by its first letter (a few spoken exceptions)."""
    if noun.startswith(("uni", "eu", "use")):
        return f"a {noun}"
    return f"an {noun}" if noun[0].lower() in "aeiou" or noun.startswith("hour") else f"a {noun}"


def cap(text: str) -> str:
    """First letter in upper case, the rest untouched."""
    return text[:1].upper() + text[1:]


def _items(table: str) -> list[str]:
    return [item.strip() for item in table.replace("\n", "").split(";")]


def _pairs(table: str) -> list[tuple[str, str]]:
    """`a=b;c=d` or `a b;c d` (first word, rest) as pairs."""
    pairs = []
    for item in _items(table):
        left, _, right = item.partition("=") if "=" in item else item.partition(" ")
        pairs.append((left, right))
    return pairs


@cache
def categories() -> dict[str, tuple[str, ...]]:
    """Category name → its members."""
    rows = data.CATEGORIES.replace(",\n", ",").split("\n")
    return {name: tuple(members.split(",")) for name, members in (row.split(":") for row in rows)}


@cache
def capitals() -> dict[str, str]:
    """Country → capital city."""
    return dict(_pairs(data.CAPITALS))


def _capital_facts() -> list[Fact]:
    facts = []
    for country, city in capitals().items():
        questions = (
            f"What is the capital of {country}?",
            f"What is the capital city of {country}?",
            f"Which city is the capital of {country}?",
            f"What's the capital of {country}?",
            f"Name the capital of {country}.",
            f"Tell me the capital of {country}.",
            f"{cap(country)} - what is its capital?",
            f"capital of {country}?",
            f"capital of {country}",
        )
        full = (f"The capital of {country} is {city}.", f"{city} is the capital of {country}.")
        facts.append(Fact(questions, city, full, country))
    return facts


def _reverse_capital_facts() -> list[Fact]:
    facts = []
    for country, city in capitals().items():
        if country in ("England", "the United Kingdom", "Mexico", "Panama", "Luxembourg", "Guatemala"):
            continue
        questions = (f"{city} is the capital of which country?", f"Of which country is {city} the capital?")
        facts.append(Fact(questions, country, (f"{city} is the capital of {country}.",), city))
    return facts


def _continent_facts() -> list[Fact]:
    facts = []
    for row in data.CONTINENTS.replace(",\n", ",").split("\n"):
        continent, _, countries = row.partition(":")
        for country in countries.split(","):
            verb = "are" if country in ("the Netherlands", "the Philippines") else "is"
            questions = (
                f"On which continent {verb} {country}?",
                f"Which continent {verb} {country} in?",
                f"What continent {verb} {country} on?",
                f"In which part of the world {verb} {country}?",
            )
            facts.append(Fact(questions, continent, (f"{cap(country)} {verb} in {continent}.",), country))
    return facts


def _language_facts() -> list[Fact]:
    facts = []
    for place, language in _pairs(data.LANGUAGES):
        questions = (
            f"What language do people speak in {place}?",
            f"Which language do people speak in {place}?",
            f"What do most people speak in {place}?",
        )
        facts.append(Fact(questions, language, (f"Most people in {place} speak {language}.",), place))
    return facts


def _word_facts() -> list[Fact]:
    facts = []
    for word, other in _pairs(data.OPPOSITES):
        both = ((word, other),) if word in ("new", "heavy", "find", "tall") else ((word, other), (other, word))
        for a, b in both:
            questions = (
                f"What is the opposite of {a}?",
                f"What is the opposite of '{a}'?",
                f'What word means the opposite of "{a}"?',
                f"What's the opposite of {a}?",
                f"Give me the opposite of {a}.",
                f"opposite of {a}?",
            )
            facts.append(Fact(questions, b, (f"The opposite of {a} is {b}.",), a))
    return facts


def _plural_facts() -> list[Fact]:
    facts = []
    for one, many in _pairs(data.PLURALS):
        questions = (
            f"What is the plural of {one}?",
            f"What is the plural of '{one}'?",
            f"What's the plural of {one}?",
            f"What do you call more than one {one}?",
            f"plural of {one}?",
        )
        facts.append(Fact(questions, many, (f"The plural of {one} is {many}.",), one))
    return facts


def _past_facts() -> list[Fact]:
    facts = []
    for now, past in _pairs(data.PAST):
        questions = (
            f"What is the past tense of {now}?",
            f"What is the past tense of '{now}'?",
            f"What is the past of {now}?",
            f"past tense of {now}?",
        )
        facts.append(Fact(questions, past, (f"The past tense of {now} is {past}.",), now))
    return facts


def _animal_facts() -> list[Fact]:
    facts = []
    questions: tuple[str, ...]
    for animal, sound in _pairs(data.SOUNDS):
        verb, _, word = sound.partition(",")
        a = article(animal)
        questions = (
            f"What sound does {a} make?",
            f"What does {a} say?",
            f"What noise does {a} make?",
            f"How does {a} sound?",
        )
        facts.append(Fact(questions, word, (f"{cap(a)} {verb}: {word}!", f"{cap(a)} says {word}."), a))
    for animal, young in _pairs(data.BABIES):
        a = article(animal)
        questions = (
            f"What is a baby {animal} called?",
            f"What do you call a young {animal}?",
            f"What is the name for a baby {animal}?",
        )
        facts.append(Fact(questions, young, (f"A young {animal} is called {article(young)}.",)))
    for animal, count in _pairs(data.LEGS):
        a = article(animal)
        questions = (f"How many legs does {a} have?", f"How many legs has {a}?", f"Count the legs of {a}.")
        short = "none" if count == "no" else count
        facts.append(Fact(questions, short, (f"{cap(a)} has {count} legs.",), a))
    for animal, home in _pairs(data.HOMES):
        place = "water" if home == "water" else article(home)
        a = article(animal)
        questions = (f"Where does {a} live?", f"What is the home of {a}?")
        facts.append(Fact(questions, f"in {place}", (f"{cap(a)} lives in {place}.",), a))
    return facts


def _color_facts() -> list[Fact]:
    facts = []
    questions: tuple[str, ...]
    for thing, color in _pairs(data.COLORS):
        questions = (
            f"What color is {thing}?",
            f"What colour is {thing}?",
            f"Which color is {thing}?",
            f"Tell me the color of {thing}.",
        )
        facts.append(Fact(questions, color, (f"{cap(thing)} is {color}.",), thing))
    for mix, color in _pairs(data.MIXES):
        a, b = mix.split(",")
        questions = (
            f"What do you get when you mix {a} and {b}?",
            f"What color do {a} and {b} make?",
            f"What colour do you get from {b} and {a}?",
        )
        facts.append(Fact(questions, color, (f"When you mix {a} and {b}, you get {color}.",)))
    return facts


def _order_facts() -> list[Fact]:
    """What comes after and before: days, months, letters, numbers."""
    facts = []
    questions: tuple[str, ...]
    letters = [chr(65 + i) for i in range(26)]
    for names, kind, round_trip in ((DAYS, "day", True), (MONTHS, "month", True), (letters, "letter", False)):
        for i, name in enumerate(names):
            if round_trip or i + 1 < len(names):
                after = names[(i + 1) % len(names)]
                questions = (
                    f"What {kind} comes after {name}?",
                    f"Which {kind} comes after {name}?",
                    f"What is the {kind} after {name}?",
                    f"Which {kind} follows {name}?",
                )
                facts.append(Fact(questions, after, (f"{after} comes after {name}.",), name))
            if round_trip or i:
                before = names[i - 1]
                questions = (
                    f"What {kind} comes before {name}?",
                    f"Which {kind} comes before {name}?",
                    f"What is the {kind} before {name}?",
                )
                facts.append(Fact(questions, before, (f"{before} comes before {name}.",), name))
            if kind != "day":
                place = f"{kind} of the {'year' if kind == 'month' else 'alphabet'}"
                nth = ORDINALS[i] if i < 20 else ordinal(i + 1)
                questions = (f"What is the {ordinal(i + 1)} {place}?", f"Which is the {nth} {place}?")
                facts.append(Fact(questions, name, (f"The {ordinal(i + 1)} {place} is {name}.",)))
    for i, days in enumerate(MONTH_DAYS):
        if days:
            questions = (f"How many days are in {MONTHS[i]}?", f"How many days does {MONTHS[i]} have?")
            facts.append(Fact(questions, str(days), (f"{MONTHS[i]} has {days} days.",), MONTHS[i]))
    return facts


def _number_facts() -> list[Fact]:
    facts = []
    for n in [*range(121), 150, 200, 300, 365, 400, 500, 999, 1000, 2000]:
        words = number_words(n)
        questions = (
            f"How do you write {n} in words?",
            f"Write {n} in words.",
            f"What is {n} in words?",
            f"Say {n} in words.",
        )
        facts.append(Fact(questions, words, (f"{n} in words is {words}.",), str(n)))
        back = (f"Write {words} as a number.", f"What number is {words}?", f"Write {words} in digits.")
        facts.append(Fact(back, str(n), (f"{cap(words)} is {n}.",), words))
        if n < 121:
            after = (f"What number comes after {n}?", f"Which number comes right after {n}?", f"What is after {n}?")
            facts.append(Fact(after, str(n + 1), (f"{n + 1} comes after {n}.",), str(n)))
            if n:
                before = (f"What number comes before {n}?", f"Which number comes right before {n}?")
                facts.append(Fact(before, str(n - 1), (f"{n - 1} comes before {n}.",), str(n)))
            even = "even" if n % 2 == 0 else "odd"
            parity = (f"Is {n} even or odd?", f"Is the number {n} odd or even?")
            facts.append(Fact(parity, even, (f"{n} is {even}.", f"{n} is an {even} number."), str(n)))
    return facts


def _unit_facts() -> list[Fact]:
    facts = []
    owners = {"sides", "corners", "faces", "wheels", "strings", "keys", "degrees", "fingers", "toes", "legs"}
    for item in _items(data.UNITS):
        head, _, count = item.rpartition(" ")
        part, _, whole = head.partition(" ")
        a = "an" if whole == "hour" else article(whole).split()[0]
        if part in owners:
            questions = (f"How many {part} does {a} {whole} have?", f"How many {part} are there on {a} {whole}?")
            full = f"{cap(a)} {whole} has {count} {part}."
        else:
            a = "the" if whole.startswith("English") else a
            questions = (f"How many {part} are in {a} {whole}?", f"How many {part} are there in {a} {whole}?")
            full = f"There are {count} {part} in {a} {whole}."
        facts.append(Fact(questions, count, (full,)))
    return facts


def _people_and_things() -> list[Fact]:
    facts = []
    questions: tuple[str, ...]
    for job, does in _pairs(data.WORKERS):
        a = article(job)
        questions = (f"What does {a} do?", f"What is the job of {a}?", f"What is the work of {a}?")
        facts.append(Fact(questions, does, (f"{cap(a)} {does}.",), a))
        facts.append(Fact((f"Who {does}?", f"Which person {does}?"), a, (f"{cap(a)} {does}.",)))
    for thing, source in _pairs(data.MADE):
        verb = "are" if thing in ("raisins", "french fries") else "is"
        questions = (f"What {verb} {thing} made from?", f"What {verb} {thing} made of?")
        facts.append(Fact(questions, source, (f"{cap(thing)} {verb} made from {source}.",), thing))
    for thing, use in _pairs(data.USES):
        a = thing if thing in ("scissors", "soap") else article(thing)
        questions = (f"What do you use {a} for?", f"What can you do with {a}?", f"Why do people use {a}?")
        facts.append(Fact(questions, f"to {use}", (f"You use {a} to {use}.",), a))
        facts.append(
            Fact((f"What do you use to {use}?", f"What do people use to {use}?"), a, (f"You use {a} to {use}.",))
        )
    return facts


def _compare_facts() -> list[Fact]:
    facts = []
    tables = (
        (data.SIZES, "bigger", "smaller"),
        (data.THINGS_SIZE, "bigger", "smaller"),
        (data.WEIGHTS, "heavier", "lighter"),
        (data.SPEEDS, "faster", "slower"),
    )
    for table, more, less in tables:
        names = _items(table)
        for i, low in enumerate(names):
            for high in names[i + 1 :]:
                for word, best, worst in ((more, high, low), (less, low, high)):
                    questions = (
                        f"Which is {word}, {low} or {high}?",
                        f"Which is {word}, {high} or {low}?",
                        f"What is {word}: {high} or {low}?",
                    )
                    facts.append(Fact(questions, best, (f"{cap(best)} is {word} than {worst}.",)))
                    facts.append(
                        Fact((f"Is {best} {word} than {worst}?",), "yes", (f"Yes, {best} is {word} than {worst}.",))
                    )
                    facts.append(
                        Fact((f"Is {worst} {word} than {best}?",), "no", (f"No, {best} is {word} than {worst}.",))
                    )
    return facts


def _free_facts() -> list[Fact]:
    facts = []
    for line in FREE.replace("\n  ", " ").split("\n"):
        questions, short, full = line.split(" = ")
        facts.append(Fact(tuple(questions.split("|")), short, (full,)))
    return facts


def _definition_facts() -> list[Fact]:
    mass = {"bread", "cheese", "honey", "soup", "tea", "thunder", "fog", "money"}
    facts = []
    for line in DEFINITIONS.replace("\n  ", " ").split("\n"):
        noun, _, meaning = line.partition(": ")
        a = noun if noun in mass else article(noun)
        questions = (
            f"What is {a}?",
            f"What's {a}?",
            f"What does the word {noun} mean?",
            f"What does '{noun}' mean?",
            f"Define {noun}.",
            f"Explain what {a} is.",
        )
        facts.append(Fact(questions, meaning, (f"{cap(a)} is {meaning}.",), a))
    return facts


TILT = 1.6


@cache
def fact_groups() -> tuple[tuple[float, tuple[Fact, ...]], ...]:
    """(cumulative weight, facts) per group; built once, about 30 ms."""
    groups = (
        (15, _capital_facts()),
        (1.5, _reverse_capital_facts()),
        (3, _continent_facts()),
        (2.5, _language_facts()),
        (9, _word_facts()),
        (6, _plural_facts()),
        (3, _past_facts()),
        (8, _animal_facts()),
        (6, _color_facts()),
        (7, _order_facts()),
        (4, _number_facts()),
        (4, _unit_facts()),
        (6, _people_and_things()),
        (3, _compare_facts()),
        (18, _free_facts()),
        (9, _definition_facts()),
    )
    total = float(sum(weight for weight, _ in groups))
    out, seen = [], 0.0
    for weight, facts in groups:
        seen += weight
        out.append((seen / total, tuple(facts)))
    return tuple(out)


def pick_fact(rng: Random) -> tuple[Fact, tuple[Fact, ...]]:
    """A random fact and the group it belongs to."""
    groups = fact_groups()
    x = rng.random()
    for bound, facts in groups:
        if x < bound:
            # The tables begin with what people ask most; those facts come up more often than the last ones.
            return facts[int(rng.random() ** TILT * len(facts))], facts
    facts = groups[-1][1]
    return facts[-1], facts
