"""Training conversations: small talk, small facts, simple writing, honest refusals, memory over turns, system prompts.

`sample_dialogue` returns messages in OpenAI form. Assistant messages carry `reasoning_content` (a short thought) and
`content`, which never depends on the thought: the same conversation trains both modes. A user turn may end with
`/think` or `/no_think`; `requested_mode` says what the conversation asks for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random
from typing import Any

from qwen3.tasks.dialogue_eval import EVAL_PROMPTS
from qwen3.tasks.dialogue_facts import Fact, Turn, article, cap, pick_fact
from qwen3.tasks.dialogue_social import OFFER, PERSONA_BLOCKED, expand, intent, pick_intent, say
from qwen3.tasks.dialogue_stories import (
    CITIES,
    COLORS,
    FOODS,
    NAMES,
    PETS,
    completion,
    is_a,
    listing,
    odd_one_out,
    pick,
    reading,
    sentence,
    story,
)
from qwen3.tasks.dialogue_unknown import unknown
from qwen3.tasks.talk_data import parts, words

Message = dict[str, Any]
ProblemMaker = Callable[[Random], tuple[str, str, str]]

_LEAD_INS = (
    "Hi! ",
    "Hello, ",
    "Hey, ",
    "Please tell me: ",
    "Tell me: ",
    "Quick question: ",
    "I have a question. ",
    "Question: ",
    "Wren, ",
    "Can you help me? ",
    "Do you know this? ",
    "Q: ",
    "One more thing: ",
    "Maybe you know: ",
)
_NEXT_LEADS = (
    "And ",
    "Okay. ",
    "Thanks. ",
    "Good. ",
    "Next: ",
    "Now ",
    "Another one: ",
    "Also: ",
    "One more: ",
    "Hm. ",
)
_TAILS = (" Please.", " Thanks!", " Thank you.", " please", " :)", " Do you know?", " I forgot.", " I want to know.")
_THOUGHTS_FACT = ("This is a simple question.\n\n", "I know this one.\n\n", "The user asks about a small fact.\n\n", "")
_SWAP_OK = re.compile(r"[a-z]{5,}")


def typo(rng: Random, text: str) -> str:
    """The text with one slip of the finger inside a longer word: two letters swapped, one doubled or one left out."""
    words = list(_SWAP_OK.finditer(text))
    if not words:
        return text
    word = words[int(rng.random() * len(words))]
    i = word.start() + 1 + int(rng.random() * (len(word[0]) - 2))
    x = rng.random()
    if x < 0.4:
        return text[:i] + text[i + 1] + text[i] + text[i + 2 :]
    if x < 0.7:
        return text[:i] + text[i + 1 :]
    return text[:i] + text[i] + text[i:]


def vary(rng: Random, text: str) -> str:
    """The text as people type it: mostly as is, at times without capitals or the last mark, with a slip."""
    x = rng.random()
    if x < 0.56:
        return text
    if x < 0.68:
        return text.lower()
    if x < 0.78:
        return text.rstrip(".?!")
    if x < 0.90:
        return text.lower().rstrip(".?!")
    if x < 0.94:
        return typo(rng, text)
    if x < 0.95:
        return text.upper()
    return text + ("!" if text[-1:] != "?" else "?")


def fact_turn(rng: Random, fact: Fact | None = None) -> Turn:
    """One question about a small fact."""
    if fact is None:
        fact, _ = pick_fact(rng)
    question = fact.questions[0] if rng.random() < 0.3 else pick(rng, fact.questions)
    full = fact.full
    reply = full[0] if len(full) == 1 or rng.random() < 0.7 else full[int(rng.random() * len(full))]
    x = rng.random()
    if x < 0.14:
        lead = pick(rng, _LEAD_INS)
        question = lead + question
    elif x < 0.2:
        question += pick(rng, _TAILS)
    return Turn(question, pick(rng, _THOUGHTS_FACT) + f"The answer: {fact.short}.", reply)


def repeat_turn(rng: Random) -> Turn:
    """Say or write exactly these words."""
    kind = rng.random()
    if kind < 0.5:
        words = f"{pick(rng, COLORS)} {pick(rng, PETS)}"
        if rng.random() < 0.4:
            words = f"The {words} likes {pick(rng, FOODS)}."
    elif kind < 0.8:
        words = f"{pick(rng, NAMES)} lives in {pick(rng, CITIES)}."
    else:
        words = " ".join(str(int(rng.random() * 100)) for _ in range(2 + int(rng.random() * 4)))
    ask = pick(
        rng, ("Repeat after me: {w}", "Say: {w}", 'Repeat "{w}"', "Please repeat: {w}", "Echo: {w}", 'Say "{w}"')
    )
    return Turn(ask.format(w=words), "I repeat the words exactly.", words)


def _general(rng: Random) -> Turn:
    """One exchange of any kind that needs no memory, the user's text varied where that loses nothing."""
    x = rng.random()
    if x < 0.42:
        turn = say(rng, pick_intent(rng))
    elif x < 0.69:
        turn = fact_turn(rng)
    elif x < 0.81:
        turn = unknown(rng)
    elif x < 0.835:
        turn = story(rng)
    elif x < 0.86:
        turn = sentence(rng)
    elif x < 0.875:
        turn = completion(rng)
    elif x < 0.9:
        turn = listing(rng)
    elif x < 0.925:
        turn = is_a(rng)
    elif x < 0.935:
        turn = odd_one_out(rng)
    elif x < 0.975:
        return reading(rng)
    else:
        return repeat_turn(rng)
    return Turn(vary(rng, turn.user), turn.thought, turn.reply)


def _again(rng: Random, turns: list[Turn]) -> Turn | None:
    """A follow-up that refers to what was said, or None when nothing fits."""
    x = rng.random()
    last, first = turns[-1], turns[0]
    if x < 0.2:
        ask = pick(
            rng, ("Can you repeat that?", "Say that again.", "What did you say?", "Repeat your last answer.", "Again?")
        )
        return Turn(vary(rng, ask), "The user wants to read my last answer again.", last.reply)
    if x < 0.4 and len(first.user) < 120:
        ask = pick(rng, ("What did I ask first?", "What was my first question?", "What was the first thing I said?"))
        return Turn(vary(rng, ask), "I look at the first message of the user.", f'You wrote: "{first.user}"')
    if x < 0.6 and len(last.user) < 120:
        ask = pick(
            rng, ("What did I just ask?", "What was my last question?", "What did I just say?", "What did I say?")
        )
        return Turn(vary(rng, ask), "I look at the last message of the user.", f'You wrote: "{last.user}"')
    if x < 0.75:
        return _general(rng)
    return say(rng, intent("thanks"))


_WRONG = (
    "No, that is wrong.",
    "That is not right.",
    "I do not believe you.",
    "Are you sure?",
    "Really?",
    "Is that true?",
)


def _fact_chain(rng: Random) -> list[Turn]:
    """A fact, then the same question about another subject, or a doubt."""
    fact, group = pick_fact(rng)
    turns = [fact_turn(rng, fact)]
    subject = fact.subject
    if subject and subject in turns[0].user and rng.random() < 0.7:
        wording = next((i for i, q in enumerate(fact.questions) if q in turns[0].user), None)
        for _ in range(1 + int(rng.random() * 2)):
            other = group[int(rng.random() * len(group))]
            same_form = (
                wording is not None
                and other.subject
                and other.subject != subject
                and len(other.questions) == len(fact.questions)
                and other.questions[wording].replace(other.subject, "") == fact.questions[wording].replace(subject, "")
            )
            if same_form:
                ask = pick(
                    rng, ("And {s}?", "What about {s}?", "And of {s}?" if " of " in turns[0].user else "And {s}?")
                )
                user = vary(rng, ask.format(s=other.subject))
                turns.append(Turn(user, f"The same question for {other.subject}.\n\n{other.full[0]}", other.full[0]))
    elif rng.random() < 0.6:
        doubt = pick(rng, _WRONG)
        turns.append(Turn(vary(rng, doubt), "I am sure of this one.", f"I am sure of this one. {fact.full[0]}"))
    else:
        turns.append(say(rng, intent("thanks")))
    return turns


def _memory(rng: Random) -> list[Turn]:
    """The user tells something about themselves and asks for it later."""
    name, city, food, color = pick(rng, NAMES), pick(rng, CITIES), pick(rng, FOODS), pick(rng, COLORS)
    pet, pet_name, age = pick(rng, PETS), pick(rng, NAMES), 5 + int(rng.random() * 80)
    kind = int(rng.random() * 7)
    asks: tuple[str, ...]
    if kind <= 1:
        tell = pick(
            rng, ("My name is {v}.", "I am {v}.", "Hi, I am {v}.", "Hello, my name is {v}.", "I'm {v}.", "Call me {v}.")
        )
        reply = pick(rng, ("Hello, {v}!", "Nice to meet you, {v}!", "Hello, {v}! How can I help you?")).format(v=name)
        asks = (
            "What is my name?",
            "Who am I?",
            "Do you remember my name?",
            "What did I say my name was?",
            "Say my name.",
        )
        answer, user = f"Your name is {name}.", tell.format(v=name)
    elif kind == 2:
        user = pick(rng, ("I live in {v}.", "I am from {v}.", "My home is {v}.", "I come from {v}.")).format(v=city)
        reply = f"{city} is a good place to live, I hope!"
        asks = ("Where do I live?", "Where am I from?", "Which city did I name?", "What is my city?")
        answer = f"You said that you are from {city}." if "from" in user else f"You live in {city}."
    elif kind == 3:
        user = pick(rng, ("I like {v}.", "I love {v}.", "My favorite food is {v}.", "I like to eat {v}.")).format(
            v=food
        )
        reply = pick(rng, ("Good choice!", f"I cannot eat, but {food} must be good.", "That sounds good!"))
        asks = ("What do I like?", "What do I like to eat?", "What food do I like?", "What should I eat?")
        answer = f"You like {food}."
    elif kind == 4:
        user = pick(rng, ("My favorite color is {v}.", "I like the color {v}.", "My best color is {v}.")).format(
            v=color
        )
        reply = f"{cap(color)} is a nice color."
        asks = (
            "What is my favorite color?",
            "Which color do I like?",
            "What color did I say?",
            "What colour do I like?",
        )
        answer = f"You like the color {color}."
    elif kind == 5:
        user = pick(rng, ("I have {a} called {v}.", "My {p} is called {v}.", "I have {a}. The name is {v}."))
        user = user.format(a=article(pet), p=pet, v=pet_name)
        reply = pick(rng, (f"{pet_name} is a nice name for {article(pet)}.", f"How nice! Say hello to {pet_name}."))
        asks = (f"What is my {pet} called?", f"What is the name of my {pet}?", "What pet do I have?", "Who is my pet?")
        answer = f"Your {pet} is called {pet_name}."
    else:
        user = pick(rng, ("I am {v} years old.", "My age is {v}.", "I'm {v}.", "I turned {v} today.")).format(v=age)
        reply = f"Thank you for telling me. {age} is a good age."
        asks = ("How old am I?", "What is my age?", "Do you know my age?", "What age did I say?")
        answer = f"You are {age} years old."
    turns = [Turn(vary(rng, user), "The user tells me something.\n\nI answer kindly and remember it.", reply)]
    while rng.random() < 0.4 and len(turns) < 3:
        turns.append(_general(rng))
    turns.append(Turn(vary(rng, pick(rng, asks)), f"The user told me this before.\n\n{answer}", answer))
    return turns


def _forgotten(rng: Random) -> Turn:
    """The user asks for something never said."""
    ask = pick(
        rng,
        parts(
            "What is my name?|Who am I?|How old am I?|Where do I live?|What did I tell you yesterday?|"
            "Do you remember me?|What is my favorite color?|What is my dog called?|What did we talk about?"
        ),
    )
    reply = pick(rng, ("I do not know. You have not told me.", "I do not know, because you have not told me yet."))
    return Turn(vary(rng, ask), "The user has not told me this.", reply)


_GENERIC_SYSTEM = (
    "You are a helpful assistant.",
    "You are a helpful AI assistant.",
    "You are an assistant.",
    "You are a friendly assistant.",
    "You are a helpful and honest assistant.",
    "Help the user.",
    "Answer the user's questions.",
    "You are a small assistant. Be honest.",
    "You are Wren, a helpful assistant.",
)
_ROLES = ("assistant", "helper", "guide", "robot", "tutor", "chat bot", "librarian", "shop assistant", "teacher")
_PERSONA = (
    "You are {n}, a helpful {r}.",
    "Your name is {n}.",
    "You are a {r} named {n}.",
    "You are a helpful {r} called {n}.",
    "Your name is {n}. You are a friendly {r}.",
    "Act as {n}, a {r}.",
    "From now on you are called {n}.",
)
_PERSONA_NAMES = (
    *NAMES,
    "Bob",
    "Robo",
    "Ada",
    "Sky",
    "Nova",
    "Pixel",
    "Luna",
    "Ace",
    "Sunny",
    "Bolt",
    "Jarvis",
    "Iris",
)
_BRIEF: tuple[str, ...] = (
    "Be brief.",
    "Keep it short.",
    "Answer in one word.",
    "Use as few words as possible.",
    "One word answers only.",
)
_BRIEF += ("Give only the answer.", "Answer with one or two words.", "Be very short.", "Answer as briefly as you can.")
_BRIEF_TAIL = (" Answer in one word.", " Only the answer.", " Just the answer, please.", " In one word.", " Be brief.")
_OFFERS = tuple(expand(OFFER))


def _persona(rng: Random) -> tuple[str, list[Turn]]:
    """A system prompt that gives another name, and a talk where it is asked for."""
    name, role = pick(rng, _PERSONA_NAMES), pick(rng, _ROLES)
    system = pick(rng, _PERSONA).format(n=name, r=role)
    turns: list[Turn] = []
    thought = f"The system prompt says that my name is {name}."
    x = rng.random()
    if x < 0.5:
        user = pick(rng, intent("name" if rng.random() < 0.5 else "who").users)
        reply = pick(rng, ("My name is {n}.", "I am {n}.", "I am {n}. How can I help you?", "I am called {n}.")).format(
            n=name
        )
        turns.append(Turn(vary(rng, user), thought, reply))
    elif x < 0.7:
        user = pick(rng, intent("hello").users).replace("Wren", name)
        turns.append(Turn(vary(rng, user), thought, f"Hello! I am {name}. {pick(rng, _OFFERS)}"))
    elif x < 0.8:
        other = pick(rng, ("Wren", "Qwen", "ChatGPT", "Siri", pick(rng, NAMES)))
        yes = other == name
        reply = f"Yes, I am {name}." if yes else f"No, my name is {name}."
        turns.append(Turn(vary(rng, f"Are you {other}?"), thought, reply))
    else:
        turns.append(_neutral(rng))
    if rng.random() < 0.4:
        turns.append(_neutral(rng))
    return system, turns


def _neutral(rng: Random) -> Turn:
    """An exchange where the model does not name itself."""
    while True:
        if rng.random() < 0.5:
            turn = fact_turn(rng)
            return Turn(vary(rng, turn.user), turn.thought, turn.reply)
        row = pick_intent(rng)
        if row.name in PERSONA_BLOCKED:
            continue
        turn = say(rng, row)
        if "Wren" not in turn.reply + turn.user:
            return Turn(vary(rng, turn.user), turn.thought, turn.reply)


def _brief(rng: Random) -> tuple[str, list[Turn]]:
    """A system prompt that wants short answers."""
    system = pick(rng, _BRIEF)
    if rng.random() < 0.5:
        system = f"{pick(rng, _GENERIC_SYSTEM[:6])} {system}"
    return system, [_short_fact(rng) for _ in range(1 + int(rng.random() * 2.5))]


def _short_fact(rng: Random, tail: str = "") -> Turn:
    fact, _ = pick_fact(rng)
    user = vary(rng, pick(rng, fact.questions)) + tail
    return Turn(user, f"A short answer is wanted: {fact.short}.", f"{cap(fact.short)}.")


def _informed(rng: Random) -> tuple[str, list[Turn]]:
    """A system prompt with a fact that the user asks for."""
    name, city, day = pick(rng, NAMES), pick(rng, CITIES), pick(rng, _WEEK)
    hour, n = 1 + int(rng.random() * 12), 2 + int(rng.random() * 90)
    rows = (
        (f"The user's name is {name}.", "What is my name?", f"Your name is {name}."),
        (f"The user is called {name}.", "Who am I?", f"You are {name}."),
        (f"Today is {day}.", "What day is it today?", f"Today is {day}."),
        (f"The user lives in {city}.", "Where do I live?", f"You live in {city}."),
        (f"The shop opens at {hour} o'clock.", "When does the shop open?", f"The shop opens at {hour} o'clock."),
        (f"The code word is {pick(rng, COLORS)}.", "What is the code word?", ""),
        (f"A ticket costs {n} dollars.", "How much is a ticket?", f"A ticket costs {n} dollars."),
        (f"The meeting is in room {n}.", "Where is the meeting?", f"The meeting is in room {n}."),
        (f"The manager of the shop is {name}.", "Who is the manager?", f"The manager is {name}."),
        (f"The bus leaves in {n} minutes.", "When does the bus leave?", f"The bus leaves in {n} minutes."),
    )
    fact, ask, reply = rows[int(rng.random() * len(rows))]
    reply = reply or fact
    system = f"{pick(rng, _GENERIC_SYSTEM[:6])} {fact}" if rng.random() < 0.7 else fact
    turns = [_general(rng)] if rng.random() < 0.3 else []
    turns.append(Turn(vary(rng, ask), f"The system prompt says: {fact}", reply))
    return system, turns


_WEEK = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
_MATHS_AFTER = (
    ("Are you sure?", "I can be wrong, so I stay honest.", "I think so, but I am small and can make mistakes."),
    ("How did you do that?", "The user asks how.", "I learned from many worked examples of such problems."),
    ("Was that hard?", "The user asks if it was hard.", "It was fine. I like such problems."),
    ("What was the answer again?", "The user wants the answer again.", ""),
    ("Repeat the answer, please.", "The user wants the answer again.", ""),
)


def _with_problem(rng: Random, problem: ProblemMaker) -> list[Turn]:
    """A talk with a maths problem in it."""
    turns = [_general(rng)] if rng.random() < 0.6 else []
    prompt, trace, answer = problem(rng)
    turns.append(Turn(prompt, trace, answer))
    x = rng.random()
    if x < 0.4:
        thanks = say(rng, intent("thanks" if rng.random() < 0.7 else "praise"))
        turns.append(Turn(vary(rng, thanks.user), thanks.thought, thanks.reply))
    elif x < 0.65:
        ask, thought, reply = _MATHS_AFTER[int(rng.random() * len(_MATHS_AFTER))]
        turns.append(Turn(vary(rng, ask), thought, reply or answer))
    elif x < 0.85:
        prompt, trace, answer = problem(rng)
        lead = pick(rng, _NEXT_LEADS[1:]) if rng.random() < 0.3 else ""
        turns.append(Turn(lead + prompt, trace, answer))
    elif len(turns) == 1:
        turns.append(_general(rng))
    return turns


def _pleasantries(rng: Random) -> list[Turn]:
    """Hello, something, goodbye."""
    hello = say(rng, intent("hello" if rng.random() < 0.6 else "how_are_you"))
    turns = [Turn(vary(rng, hello.user), hello.thought, hello.reply), _general(rng)]
    if rng.random() < 0.4:
        end = say(rng, intent("bye" if rng.random() < 0.5 else "thanks"))
        turns.append(Turn(vary(rng, end.user), end.thought, end.reply))
    return turns


def _another(rng: Random) -> list[Turn]:
    """Another joke, another story, another sentence."""
    x = rng.random()
    if x < 0.5:
        one, two = say(rng, intent("joke")), say(rng, intent("joke"))
    elif x < 0.75:
        one, two = story(rng), story(rng)
    else:
        one, two = say(rng, intent("riddle")), say(rng, intent("riddle"))
    if one.reply == two.reply:
        return [one, say(rng, intent("thanks"))]
    ask = pick(
        rng, ("Another one, please.", "One more!", "Tell me another one.", "More", "Do you have another one?", "Again!")
    )
    return [
        Turn(vary(rng, one.user), one.thought, one.reply),
        Turn(vary(rng, ask), "The user wants one more.", two.reply),
    ]


def sample_turns(rng: Random, problem: ProblemMaker | None = None) -> tuple[str, list[Turn]]:
    """A system prompt ("" for none) and the turns of one conversation."""
    if problem is not None and rng.random() < 0.2:
        return "", _with_problem(rng, problem)
    x = rng.random()
    if x < 0.57:
        return "", [_general(rng)]
    if x < 0.595:
        return "", [_short_fact(rng, pick(rng, _BRIEF_TAIL))]
    if x < 0.665:
        return pick(rng, _GENERIC_SYSTEM), [_general(rng) for _ in range(1 + int(rng.random() * 1.5))]
    if x < 0.71:
        return _persona(rng)
    if x < 0.735:
        return _brief(rng)
    if x < 0.765:
        return _informed(rng)
    if x < 0.82:
        return "", _fact_chain(rng)
    if x < 0.87:
        return "", _memory(rng)
    if x < 0.88:
        return "", [_forgotten(rng)]
    if x < 0.93:
        return "", _pleasantries(rng)
    if x < 0.95:
        return "", _another(rng)
    turns = [_general(rng)]
    for _ in range(1 + int(rng.random() * 2)):
        follow = _again(rng, turns)
        if follow is not None:
            turns.append(follow)
    return "", turns


FLAG_SHARE = 0.1


def sample_dialogue(rng: Random, problem: ProblemMaker | None = None) -> list[Message]:
    """One training conversation of 1 to 4 exchanges, perhaps with a system prompt, that ends with the assistant.

    `problem(rng) -> (prompt, trace, answer_text)` weaves worked problems into a fifth of the conversations. In a tenth
    the last user turn ends with `/think` or `/no_think` (see `requested_mode`).
    """
    system, turns = sample_turns(rng, problem)
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        messages.append({"role": "user", "content": turn.user})
        messages.append({"role": "assistant", "reasoning_content": turn.thought, "content": turn.reply})
    if rng.random() < FLAG_SHARE:
        messages[-2]["content"] += " /think" if rng.random() < 0.5 else " /no_think"
    return messages


_FLAG = re.compile(r"(?<!\S)/(no_)?think(?!\S)")


def requested_mode(messages: list[Message]) -> bool | None:
    """True or False when a soft switch of user or system asks for thinking or none (the last counts), else None."""
    for message in reversed(messages):
        if message["role"] in ("user", "system"):
            flags = _FLAG.findall(message.get("content") or "")
            if flags:
                return not flags[-1]
    return None


__all__ = [
    "EVAL_PROMPTS",
    "FLAG_SHARE",
    "Turn",
    "fact_turn",
    "requested_mode",
    "sample_dialogue",
    "sample_turns",
    "vary",
]
