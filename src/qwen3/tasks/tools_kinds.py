"""The tools of the training conversations: what each does, its arguments, how users ask, what comes back, what to say.

A `Kind` is one sort of tool; names, argument names and descriptions are drawn anew for every conversation, so that a
model can only copy them from the tools block. `{slot}` in a text stands for the argument's wording.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from qwen3.tasks.dialogue_facts import DAYS, capitals
from qwen3.tasks.dialogue_stories import CITIES, NAMES
from qwen3.tasks.talk_data import parts, words

Draw = Callable[[Random], Any]
Result = Callable[[Random, Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Slot:
    """One argument: names it may have, JSON type, description, how a value is drawn and said.

    `says` maps a value to its wording. An optional slot has `adds`, the words that put it into a request.
    """

    names: tuple[str, ...]
    type: str
    about: str
    draw: Draw
    says: Mapping[Any, str] = field(default_factory=dict)
    adds: str = ""
    enum: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kind:
    """One sort of tool. `without` is a request that lacks the first slot, with the question to ask back."""

    group: str
    names: tuple[str, ...]
    about: tuple[str, ...]
    slots: Mapping[str, Slot]
    goal: str
    asks: tuple[str, ...]
    result: Result
    answers: tuple[str, ...]
    without: tuple[str, str] | None = None
    pairs: bool = False  # whether two calls for two values of the first slot make sense


def one_of(values: tuple[str, ...]) -> Draw:
    return lambda rng: values[int(rng.random() * len(values))]


def whole(low: int, high: int) -> Draw:
    return lambda rng: low + int(rng.random() * (high - low + 1))


def decimal(low: int, high: int) -> Draw:
    """A number with two places."""
    return lambda rng: round(low + rng.random() * (high - low), 2)


def clock(rng: Random) -> str:
    return f"{6 + int(rng.random() * 17):02d}:{int(rng.random() * 12) * 5:02d}"


def date(rng: Random) -> str:
    return f"202{int(rng.random() * 10)}-{1 + int(rng.random() * 12):02d}-{1 + int(rng.random() * 28):02d}"


def code(rng: Random) -> str:
    """Something like A4821 or KX-7310."""
    letters = "".join("ABCDEFGHKLMNPRSTUVWXYZ"[int(rng.random() * 22)] for _ in range(1 + int(rng.random() * 2)))
    return f"{letters}{'-' if rng.random() < 0.4 else ''}{100 + int(rng.random() * 9900)}"


PLACES = (
    *CITIES,
    *words("Munich Hamburg Milan Naples Porto Athens Moscow Mumbai Sydney Toronto Chicago Seattle Austin"),
)
PLACES += (
    *words("Denver Miami Dallas Nairobi Accra Lagos Seoul Bangkok Hanoi Istanbul Warsaw Zurich Geneva Brussels"),
)
PLACES += ("New York", "Los Angeles", "Mexico City", "Hong Kong", "San Francisco", "Cape Town", "Buenos Aires")
COUNTRIES = tuple(c for c in capitals() if not c.startswith("the "))
ROOMS = (*words("kitchen bedroom bathroom office hall garage garden attic"), "living room", "dining room")
ITEMS = parts("""milk|bread|eggs|butter|apples|coffee|rice|soap|paper|cheese|bananas|sugar|flour|salt|tea|batteries|
onions|orange juice|olive oil|light bulbs""")
PRODUCTS = parts("""red lamp|desk chair|water bottle|black jacket|phone case|coffee cup|wool scarf|garden hose|
table fan|blue kettle|wooden shelf|running shoes|travel bag|desk lamp|paper towel|winter coat|glass bowl|steel pan|
camera lens""")
DISHES = words("pizza pasta soup salad curry sushi burger tacos noodles pancakes lasagna risotto")
TOPICS = parts("""electric cars|solar energy|the moon landing|football results|cheap flights|vegan recipes|
learning Spanish|old castles|cat food|space travel|music festivals|rain forests|chess openings|local museums|
bike repair|ocean plastic|home gardens|wild birds|coffee beans|train tickets|art schools|city maps|tax rules|
job offers|winter sports""")
ERRANDS = parts("""call the doctor|buy milk|water the plants|pay the rent|feed the cat|send the report|call mom|
wash the car|take out the trash|book the tickets|clean the desk|meet the team|bake a cake|return the book|
charge the phone""")
MESSAGES = parts("""I am late|see you tomorrow|happy birthday|the train is full|dinner is ready|I am at home|
call me back|thank you for the gift|the meeting is over|good luck today|I lost my key|we won the game""")
MEETINGS = parts("""team meeting|dentist|lunch with Anna|piano lesson|project review|yoga class|birthday party|
job interview|doctor visit|book club|football training|parent evening|budget call|dinner with Tom""")
SONGS = parts("""Blue Morning|Silver Rain|Home Again|Night Train|Little Star|Golden Fields|River Song|Open Road|
Paper Moon|Winter Light|Summer Dance|Old Friends""")
SUBJECTS = parts("report|lunch|invoice|holiday|meeting|new plan|contract|garden party|travel dates|price list")
FILES = parts("""notes.txt|report.pdf|data.csv|photo.png|list.md|budget.xlsx|song.mp3|plan.doc|main.py|index.html|
readme.md|log.txt|todo.txt|config.json""")
FOLDERS = parts("/home|/tmp|/home/docs|/data|/var/log|/projects|/music|/home/photos|/backup|/work/reports")
LANGUAGES = parts("French|German|Spanish|Italian")
TRANSLATIONS = {
    "good night": parts("bonne nuit|gute Nacht|buenas noches|buona notte"),
    "thank you": parts("merci|danke|gracias|grazie"),
    "my friend": parts("mon ami|mein Freund|mi amigo|amico mio"),
    "the water": parts("l'eau|das Wasser|el agua|l'acqua"),
    "the bread": parts("le pain|das Brot|el pan|il pane"),
    "a book": parts("un livre|ein Buch|un libro|un libro"),
    "the sun": parts("le soleil|die Sonne|el sol|il sole"),
    "the house": parts("la maison|das Haus|la casa|la casa"),
}
SKIES = parts("sunny|cloudy|rainy|windy|foggy|snowy|clear|stormy")
METERS = {"meters": 1.0, "kilometers": 1000.0, "miles": 1609.344, "feet": 0.3048, "inches": 0.0254, "yards": 0.9144}
UNITS = tuple(METERS)
MONEY = parts("USD|EUR|GBP|JPY|CHF|CAD|AUD|SEK|PLN|INR")
SYMBOLS = parts("AAPL|MSFT|TSLA|NVDA|AMZN|GOOG|META|IBM|INTC|ORCL|SAP|NFLX|AMD|UBER|SONY")
RARE = parts("lucid|nimble|quaint|brisk|serene|vivid|obscure|candid|frugal|rustic|humble|eager|placid|sturdy")
ON_OFF = {True: "on", False: "off"}


def slot(names: str, kind: str, about: str, draw: Draw, **more: Any) -> Slot:
    """A row of arguments, its names separated by bars."""
    return Slot(parts(names), kind, about, draw, **more)


CITY = slot("city|location|place|town|city_name", "string", "Name of the city", one_of(PLACES))
FROM = slot("origin|from_city|start|departure", "string", "Where the trip starts", one_of(PLACES))
TO = slot("destination|to_city|end|arrival", "string", "Where the trip ends", one_of(PLACES))
DAY = slot("day|weekday|on_day", "string", "Day of the week", one_of(tuple(DAYS)))
TIME = slot("time|at|clock_time|start_time", "string", "Time as HH:MM", clock)
ROOM = slot("room|location|room_name|area", "string", "The room", one_of(ROOMS))
ON = slot(
    "on|state|enabled|power|turn_on",
    "boolean",
    "True for on, false for off",
    lambda r: r.random() < 0.5,
    says=ON_OFF,
)
PERSON = slot("name|person|contact|recipient|to", "string", "Name of the person", one_of(NAMES))
DISH = slot("dish|meal|food|name", "string", "Name of the dish", one_of(DISHES))
ITEM = slot("item|product|name|thing", "string", "What to add", one_of(ITEMS))


def worked(rng: Random, _: Mapping[str, Any]) -> dict[str, Any]:
    """A result that only says that it worked."""
    return ({"status": "ok"}, {"success": True}, {"ok": True}, {"status": "done"}, {"result": "success"})[
        int(rng.random() * 5)
    ]


def gives(**draws: Draw) -> Result:
    """A result with these fields, drawn anew."""
    return lambda rng, _: {name: draw(rng) for name, draw in draws.items()}


def calculated(_: Random, args: Mapping[str, Any]) -> dict[str, Any]:
    left, mark, right = args["expression"].split(" ")
    a, b = int(left), int(right)
    return {"result": a + b if mark == "+" else a - b if mark == "-" else a * b}


def expression(rng: Random) -> str:
    mark = "+-*"[int(rng.random() * 3)]
    return f"{10 + int(rng.random() * 990)} {mark} {10 + int(rng.random() * 990)}"


def some_files(rng: Random, _: Mapping[str, Any]) -> dict[str, Any]:
    start = int(rng.random() * len(FILES))
    return {"files": [FILES[(start + 3 * i) % len(FILES)] for i in range(1 + int(rng.random() * 3))]}


def agenda(rng: Random, _: Mapping[str, Any]) -> dict[str, Any]:
    return {"events": [f"{clock(rng)} {one_of(MEETINGS)(rng)}" for _ in range(1 + int(rng.random() * 2))]}


def translated(_: Random, args: Mapping[str, Any]) -> dict[str, Any]:
    return {"translation": TRANSLATIONS[args["text"]][LANGUAGES.index(args["language"])]}


def converted(_: Random, args: Mapping[str, Any]) -> dict[str, Any]:
    return {"converted": round(args["value"] * METERS[args["source"]] / METERS[args["target"]], 2)}


def rolled(rng: Random, args: Mapping[str, Any]) -> dict[str, Any]:
    return {"value": 1 + int(rng.random() * args["sides"])}


def random_number(rng: Random, args: Mapping[str, Any]) -> dict[str, Any]:
    return {"number": args["low"] + int(rng.random() * (args["high"] - args["low"] + 1))}


def row(
    group: str, names: str, about: str, goal: str, asks: str, answers: str, result: Result = worked, /, **more: Any
) -> Kind:
    """A row of the table; `without` and `pairs` apart, keyword arguments are the slots."""
    without, pairs = more.pop("without", None), more.pop("pairs", False)
    slots = dict(more)
    return Kind(group, parts(names), parts(about), slots, goal, parts(asks), result, parts(answers), without, pairs)
