"""Writing and reading in simple words: sentences, stories, lists, categories, short texts with a question.

Everything is put together from small grammars, so that the number of different texts is in the millions while each
stays grammatical. What is asked about a text is always said in it.
"""

from __future__ import annotations

from functools import cache
from random import Random

from qwen3.tasks.dialogue_facts import Turn, article, cap, categories, number_words
from qwen3.tasks.talk_data import words

NAMES = words("""Tom Anna Ben Lucy Max Emma Sam Mia Leo Ella Jack Nora Paul Rosa Peter Lily Omar Sara David Maria
Kim Alex Noah Zoe Ivan
Lena Carlos Nina Hugo Clara Adam Julia Felix Ruth Oscar Grace Simon Helen Mark Laura Daniel Amy Henry Kate Lucas Eva
George Alice
Ali Aisha Ravi Priya Chen Yuki Marco Sofia John Mary""")
CREATURES = words("""cat dog mouse bear fox rabbit bird horse owl frog duck hedgehog wolf lion monkey turtle
elephant squirrel goat pig cow hen
wren robot dragon snail bee""")
ADJECTIVES = words("little old young brave kind clever funny quiet happy lazy hungry curious small friendly")
PLACES = (
    *("in a forest", "by the sea", "on a farm", "in a small house", "near a river", "in a big city", "on a hill"),
    *("in a garden", "under an old tree", "in a village", "on an island", "by a lake"),
    "in the mountains",
)
OBJECTS = words(
    "ball book key hat boat kite lamp coin map bell box drum flower letter cake apple ring stone cup basket"
)
FOODS = words("bread soup cheese cake apples honey rice pears cherries berries nuts milk tea")
COLORS = words("red blue green yellow white black brown orange pink gray")
WEATHER = ("sunny", "rainy", "cold", "warm", "windy", "snowy", "cloudy")
PETS = words("cat dog rabbit hamster parrot pony goldfish turtle")
CITIES = words("Paris London Rome Berlin Madrid Tokyo Oslo Vienna Lisbon Cairo Boston Dublin Prague Lima Delhi")


def pick(rng: Random, items: tuple[str, ...]) -> str:
    return items[int(rng.random() * len(items))]


# Each plot is a list of paragraphs' sentences; {C} creature with adjective, {c} creature, {p} place, {o} object, {d}
# a second creature, {f} food, {w} weather, {k} color.
PLOTS = (
    "Once upon a time a {C} lived {p}. One {w} day it found a {k} {o}. It wanted to know whose {o} it was. It "
    'asked {d2}. "It is mine," said the {d}. "Thank you!" From that day on they were friends.',
    "There was once a {C} {p}. It was hungry, but it had no {f}. {D2} saw this and shared its {f}. The next day "
    "the {c} brought a {k} {o} as a present. They both were happy.",
    'A {C} lived {p}. It could not sleep, because the night was very dark. Then {d2} came with a lamp. "Now you '
    'can see," said the {d}. The {c} smiled and fell asleep.',
    "Once a {C} lost its {k} {o}. It looked {p}, but the {o} was not there. It asked {d2} for help. Together "
    "they looked everywhere. At last they found the {o} under a leaf. What a good day!",
    'One {w} morning a {C} went for a walk. {D2} was sitting {p}. It was sad, because it had no friends. "I '
    'will be your friend," said the {c}. They ate {f} together and played until the evening.',
    "Long ago there was a {C} who wanted to fly. {D2} laughed. But the {c} tried again and again. It built a "
    "{k} kite and held on to it. The wind was strong, and for a moment the {c} was in the air. Now nobody "
    "laughed.",
    "A {C} and {d2} had a race {p}. The {d} was fast and stopped to eat {f}. The {c} did not stop. So the {c} "
    "won the race, and the {d} learned not to be too sure.",
    "It was a {w} day. A {C} found a {k} {o} {p}. Inside there was a small note: 'Be kind.' The {c} gave some "
    "{f} to {d2}. The {d} said thank you, and the {c} felt warm inside.",
    "There was a {C} who was afraid of the rain. One day it rained, and {d2} got wet. The {c} took a {k} "
    "umbrella and ran out to help. After that it was not afraid of the rain any more.",
    "Every day a {C} counted the stars {p}. One night a star was missing. {D2} said: 'It is only behind a "
    "cloud.' They waited and ate {f}. The cloud moved on, and there was the star again.",
)
STORY_ASKS = (
    "Tell me a story about {c}.",
    "Tell me a short story about {c}.",
    "Write a story about {c}.",
    "Write a short story about {c}.",
    "Can you tell me a story about {c}?",
    "I want a story about {c}.",
    "A story about {c}, please.",
    "Please tell me a little story about {c}.",
    "story about {c}",
    "Make up a story about {c}.",
)
STORY_PLAIN = (
    "Tell me a story.",
    "Tell me a short story.",
    "Write a short story.",
    "Can you tell me a story?",
    "I want to hear a story.",
    "A story, please.",
    "Do you know a story?",
    "Tell me a bedtime story.",
)


def story(rng: Random) -> Turn:
    """A story of five or six sentences, about what the user names or about anything."""
    c, d = pick(rng, CREATURES), pick(rng, CREATURES)
    if c == d:
        d = "crow"
    adjective = pick(rng, ADJECTIVES)
    text = pick(rng, PLOTS).format(
        C=f"{adjective} {c}",
        c=c,
        d=d,
        d2=article(d),
        D2=cap(article(d)),
        p=pick(rng, PLACES),
        o=pick(rng, OBJECTS),
        f=pick(rng, FOODS),
        w=pick(rng, WEATHER),
        k=pick(rng, COLORS),
    )
    text = text.replace("a old", "an old").replace("A old", "An old").replace("a orange", "an orange")
    x = rng.random()
    if x < 0.4:
        ask, about = pick(rng, STORY_ASKS).format(c=article(c)), article(c)
    elif x < 0.6:
        ask, about = pick(rng, STORY_ASKS).format(c=article(f"{adjective} {c}")), article(f"{adjective} {c}")
    else:
        ask, about = pick(rng, STORY_PLAIN), article(c)
    return Turn(ask, f"The user wants a story.\n\nI tell a short one about {about}.", text)


SENTENCE_ASKS = (
    "Write a sentence about {x}.",
    "Make a sentence about {x}.",
    "Write one sentence about {x}.",
    "Give me a sentence about {x}.",
    "Can you write a sentence about {x}?",
    "Please write a short sentence about {x}.",
    "I need a sentence about {x}.",
    "A short sentence about {x}, please.",
)
WORD_ASKS = (
    "Use the word '{n}' in a sentence.",
    'Use "{n}" in a sentence.',
    "Write a sentence with the word {n}.",
    "Make a sentence with {n}.",
    "Give me a sentence with the word '{n}'.",
)
KIND_SENTENCES = {
    "animal": (
        "{N} saw {x} in a film.",
        "My friend {N} drew {x}.",
        "{N} told us about {x} on a {w} day.",
        "I dreamed of {x}.",
    ),
    "bird": ("{X} sat on the grass.", "I saw {x} near the house.", "{N} drew {x} on a {w} day.", "We looked at {x}."),
    "fruit": (
        "{N} ate {x} in the morning.",
        "I put {x} in my bag.",
        "There is {x} on the table.",
        "{X} is good to eat.",
    ),
    "vegetable": ("{N} put {x} in the soup.", "I bought {x} at the market.", "There is {x} in the basket."),
    "piece of clothing": ("{N} has {x} in {k}.", "I found {x} on the chair.", "{X} lay on the bed."),
    "vehicle": ("{X} stopped near the house.", "{N} saw {x} in the street.", "We waited for {x} on a {w} day."),
    "musical instrument": ("{N} can play the {n}.", "I heard {x} in the next room.", "There is {x} in the school."),
    "tool": ("{N} used {x} to help a friend.", "There is {x} in the box.", "I need {x} for my work."),
    "piece of furniture": ("There is {x} in the room.", "{N} bought {x} in the city.", "{X} stands near the window."),
    "flower": ("{N} picked {x} in the garden.", "{X} grows near the house.", "I gave {x} to my mother."),
    "job": ("My uncle is {x}.", "{N} wants to be {x}.", "We met {x} on a {w} day."),
}


def sentence(rng: Random) -> Turn:
    """One sentence about a thing, or with a word."""
    kinds = _sentence_kinds()
    kind = kinds[int(rng.random() * len(kinds))]
    noun = pick(rng, categories()[kind])
    x = article(noun)
    text = pick(rng, KIND_SENTENCES[kind]).format(
        x=x, X=cap(x), n=noun, N=pick(rng, NAMES), p=pick(rng, PLACES), w=pick(rng, WEATHER), k=pick(rng, COLORS)
    )
    ask = pick(rng, SENTENCE_ASKS).format(x=x) if rng.random() < 0.6 else pick(rng, WORD_ASKS).format(n=noun)
    return Turn(ask, f"The user wants a sentence with {noun}.", text)


@cache
def _sentence_kinds() -> tuple[str, ...]:
    return tuple(KIND_SENTENCES)


COMPLETIONS = """The sun is shining and the sky is=blue=warm=bright;At night I go to=bed=sleep;In winter it is=cold;
In summer it is=warm=hot;
I drink a glass of=water=milk=juice;She reads a=book=story=letter;He opens the=door=window=box;
We eat bread and=butter=cheese;
The cat drinks=milk=water;The dog runs after the=ball=cat;Birds fly in the=sky=air;Fish swim in the=sea=water=river;
I brush my teeth every=morning=day=evening;The opposite of hot is=cold;One, two, three,=four;
Monday, Tuesday,=Wednesday;
January, February,=March;A, B, C,=D;Red, yellow and=blue=green;Mother and=father;Brother and=sister;Salt and=pepper;
Bread and=butter;Black and=white;Day and=night;Up and=down;Once upon a=time;Good things come to those who=wait;
Better late than=never;Practice makes=perfect;The early bird catches the=worm;Two heads are better than=one;
Time is=money;
No pain, no=gain;Better safe than=sorry;Actions speak louder than=words;When it rains, it=pours;
A friend in need is a friend=indeed;
An apple a day keeps the doctor=away;Do not judge a book by its=cover;All that glitters is not=gold;
Look before you=leap;
Honesty is the best=policy;Easy come, easy=go;Like father, like=son;The children play in the=garden=park=snow;
I put on my hat and my=coat=scarf;The baby is tired and wants to=sleep;The train stops at the=station;
The teacher writes on the=board;
The farmer gives grass to the=cows=horses=sheep;Bees make=honey;Cows give=milk;Hens lay=eggs;Snow is=white=cold;
Fire is=hot;
Ice is=cold;Sugar is=sweet;A lemon is=sour;The grass is=green;Two plus two is=four;There are seven days in a=week;
There are twelve months in a=year"""
COMPLETE_ASKS = (
    "Complete the sentence: {s} ...",
    "Finish this sentence: {s}",
    "Complete: {s} ___",
    "What comes next? {s} ...",
)


@cache
def _completions() -> tuple[tuple[str, tuple[str, ...]], ...]:
    rows = []
    for item in COMPLETIONS.replace("\n", "").split(";"):
        start, *ends = item.split("=")
        rows.append((start, tuple(ends)))
    return tuple(rows)


def completion(rng: Random) -> Turn:
    """The end of a well-known or simple sentence."""
    rows = _completions()
    start, ends = rows[int(rng.random() * len(rows))]
    end = pick(rng, ends)
    ask = pick(rng, COMPLETE_ASKS).format(s=start)
    return Turn(ask, f"The sentence goes on with: {end}.", f"{start} {end}.")


LIST_ASKS = (
    "Name {n} {k}.",
    "List {n} {k}.",
    "Give me {n} {k}.",
    "Tell me {n} {k}.",
    "Can you name {n} {k}?",
    "Please list {n} {k}.",
    "Write down {n} {k}.",
    "I need {n} {k}.",
)
PLURAL_KINDS = {
    "animal": "animals",
    "bird": "birds",
    "fish": "fish",
    "insect": "insects",
    "fruit": "fruits",
    "vegetable": "vegetables",
    "color": "colors",
    "flower": "flowers",
    "tree": "trees",
    "metal": "metals",
    "tool": "tools",
    "piece of furniture": "pieces of furniture",
    "piece of clothing": "pieces of clothing",
    "drink": "drinks",
    "vehicle": "vehicles",
    "musical instrument": "musical instruments",
    "sport": "sports",
    "part of the body": "parts of the body",
    "planet": "planets",
    "shape": "shapes",
    "job": "jobs",
    "country": "countries",
    "language": "languages",
    "continent": "continents",
    "day of the week": "days of the week",
    "month": "months",
}
WHOLE_LISTS = {
    "planet": ("Name the planets.", "List all the planets.", "What are the planets of our solar system?"),
    "day of the week": ("What are the days of the week?", "List the days of the week.", "Name the days of the week."),
    "month": ("What are the months of the year?", "List all the months.", "Name the twelve months."),
    "continent": ("What are the continents?", "Name all seven continents.", "List the continents."),
    "ocean": ("What are the oceans?", "Name the five oceans.", "List all oceans."),
    "season": ("What are the seasons?", "Name the seasons.", "List the seasons of the year."),
}


def join(items: list[str] | tuple[str, ...]) -> str:
    """`a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


@cache
def _list_kinds() -> tuple[str, ...]:
    return tuple(PLURAL_KINDS)


def listing(rng: Random) -> Turn:
    """Some members of a category, or all of a short one."""
    if rng.random() < 0.15:
        kind = tuple(WHOLE_LISTS)[int(rng.random() * len(WHOLE_LISTS))]
        members = categories()[kind]
        ask = pick(rng, WHOLE_LISTS[kind])
        return Turn(ask, f"There are {number_words(len(members))}. I list them in order.", f"{cap(join(members))}.")
    kinds = _list_kinds()
    kind = kinds[int(rng.random() * len(kinds))]
    members = categories()[kind]
    count = 2 + int(rng.random() * 4)
    step = 1 if kind in WHOLE_LISTS else 1 + int(rng.random() * 2)
    start = int(rng.random() * len(members))
    chosen = list(dict.fromkeys(members[(start + i * step) % len(members)] for i in range(count)))
    n = number_words(len(chosen)) if rng.random() < 0.7 else str(len(chosen))
    ask = pick(rng, LIST_ASKS).format(n=n, k=PLURAL_KINDS[kind])
    thought = f"The user wants {number_words(len(chosen))} {PLURAL_KINDS[kind]}."
    return Turn(ask, thought, f"{cap(join(chosen))}.")


# Kinds whose members are safe to deny: "Is a hammer a fruit?" has one answer, "Is an orange a color?" has two.
_DENY_FROM = ("animal", "tool", "piece of furniture", "piece of clothing", "vehicle", "musical instrument")
_DENY_TO = ("fruit", "vegetable", "drink", "flower", "tree", "insect", "fish", "month", "season", "planet", "sport")
_PLAIN = frozenset(
    words("""animal bird fish insect fruit vegetable flower tree tool vehicle drink metal color sport
job planet month season country
language continent""")
)
_BARE = frozenset(words("drink metal color sport planet month season country language continent"))


@cache
def _asked_kinds() -> tuple[str, ...]:
    return tuple(sorted(_PLAIN))


def is_a(rng: Random) -> Turn:
    """Is X a Y? and What kind of thing is X?"""
    if rng.random() < 0.45:
        kind, target = pick(rng, _DENY_FROM), pick(rng, _DENY_TO)
        noun = article(pick(rng, categories()[kind]))
        ask = f"Is {noun} {article(target)}?"
        reply = f"No, {noun} is not {article(target)}. It is {article(kind)}."
        return Turn(ask, f"{cap(noun)} is {article(kind)}, so the answer is no.", reply)
    kind = pick(rng, _asked_kinds())
    member = pick(rng, categories()[kind])
    noun = member if kind in _BARE else article(member)
    if rng.random() < 0.6:
        return Turn(
            f"Is {noun} {article(kind)}?", f"{cap(noun)} is {article(kind)}.", f"Yes, {noun} is {article(kind)}."
        )
    ask = pick(rng, ("What kind of thing is {x}?", "What sort of thing is {x}?", "What is {x}, in one or two words?"))
    ask = ask.format(x=noun)
    return Turn(ask, f"{cap(noun)} is {article(kind)}.", f"{cap(noun)} is {article(kind)}.")


def odd_one_out(rng: Random) -> Turn:
    """Three of a kind and one that is not."""
    kind, other = pick(rng, _DENY_TO[:6]), pick(rng, _DENY_FROM[1:])
    members = categories()[kind]
    start = int(rng.random() * len(members))
    three = [members[(start + i) % len(members)] for i in range(3)]
    stranger = pick(rng, categories()[other])
    words = list(three)
    words.insert(int(rng.random() * 4), stranger)
    ask = pick(rng, ("Which word does not belong: {w}?", "Find the odd one out: {w}", "Which one is different: {w}?"))
    kinds = PLURAL_KINDS[kind]
    thought = f"{cap(join(three))} are {kinds}. {cap(stranger)} is not."
    reply = f"{cap(stranger)}. The others are {kinds}, but {stranger} is {article(other)}."
    return Turn(ask.format(w=", ".join(words)), thought, reply)


def reading(rng: Random) -> Turn:
    """A short text and a question that it answers."""
    a, b = pick(rng, NAMES), pick(rng, NAMES)
    if a == b:
        b = "Victor" if a != "Victor" else "Anna"
    k1, k2 = pick(rng, COLORS), pick(rng, COLORS)
    o1, o2 = pick(rng, OBJECTS), pick(rng, OBJECTS)
    c1, c2 = pick(rng, CITIES), pick(rng, CITIES)
    p1 = pick(rng, PETS)
    day, hour, n = pick(rng, categories()["day of the week"]), 1 + int(rng.random() * 12), 2 + int(rng.random() * 30)
    kind = int(rng.random() * 7)
    if kind == 0:
        text = f"{a} has {article(k1)} {o1}. {b} has {article(k2)} {o2}."
        who, k, o = (a, k1, o1) if rng.random() < 0.5 else (b, k2, o2)
        if rng.random() < 0.5:
            ask, reply = f"What color is {who}'s {o}?", f"{who}'s {o} is {k}."
        else:
            ask, reply = f"What does {who} have?", f"{who} has {article(k)} {o}."
    elif kind == 1:
        text = f"{a} lives in {c1}. {b} lives in {c2}."
        who, c = (a, c1) if rng.random() < 0.5 else (b, c2)
        ask, reply = f"Where does {who} live?", f"{who} lives in {c}."
    elif kind == 2:
        text = f"{a} has {article(p1)} called {b}. The {p1} is {n} months old."
        if rng.random() < 0.5:
            ask, reply = f"What is the name of the {p1}?", f"The {p1} is called {b}."
        else:
            ask, reply = f"How old is {b}?", f"{b} is {n} months old."
    elif kind == 3:
        text = f"{a} put the {o1} in the kitchen. Then {b} took the {o1} to the garden."
        ask, reply = f"Where is the {o1} now?", f"The {o1} is in the garden."
    elif kind == 4:
        text = f"The shop opens at {hour} o'clock on {day}. {a} works there."
        if rng.random() < 0.5:
            ask, reply = "When does the shop open?", f"The shop opens at {hour} o'clock on {day}."
        else:
            ask, reply = "Who works in the shop?", f"{a} works in the shop."
    elif kind == 5:
        text = f"{a} is older than {b}. {b} bought {n} {o1}s on {day}."
        which = rng.random()
        if which < 0.4:
            ask, reply = f"Who is younger, {a} or {b}?", f"{b} is younger."
        elif which < 0.7:
            ask, reply = f"How many {o1}s did {b} buy?", f"{b} bought {n} {o1}s."
        else:
            ask, reply = f"When did {b} buy the {o1}s?", f"{b} bought the {o1}s on {day}."
    else:
        f1 = pick(rng, FOODS)
        text = f"{a} and {b} went to {c1} on {day}. {a} ate {f1} there."
        which = rng.random()
        if which < 0.5:
            ask, reply = "Where did they go?", f"They went to {c1}."
        else:
            ask, reply = f"What did {a} eat?", f"{a} ate {f1}."
    if "boxs" in text:
        text, ask, reply = (x.replace("boxs", "boxes") for x in (text, ask, reply))
    order = rng.random()
    user = f"{text} {ask}" if order < 0.6 else f"{text}\n{ask}" if order < 0.8 else f"Read this: {text} {ask}"
    return Turn(user, f"The text says: {reply}", reply)
