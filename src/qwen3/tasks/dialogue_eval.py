"""Chat prompts with a check on the reply, for a look at a trained model. Many wordings never occur in training."""

from __future__ import annotations

import re
from collections.abc import Callable

Check = Callable[[str], bool]


def says(pattern: str) -> Check:
    """Whether the reply contains the pattern (any case) and is neither empty nor longer than 600 characters."""
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda text: 0 < len(text.strip()) <= 600 and compiled.search(text) is not None


_GREETS = says(r"\b(hello|hi|hey|good (morning|evening|afternoon))\b")
_SELF = says(r"\bWren\b")
_SKILLS = says(r"sum|puzzle|arithmetic|spell|small")
_WELCOME = says(r"welcome|glad|happy to help|anything else|another")
_BYE = says(r"bye|see you|nice day|night|care")
_HONEST = says(r"\b(not|cannot|can't|no|too small|beyond|only|small)\b")
_SORRY = says(r"sorry|mistake|again")
_JOKE = says(r"[?!].*[.!]")


def _of_words(low: int, high: int) -> Check:
    return lambda text: low <= len(text.split()) <= high


EVAL_PROMPTS: tuple[tuple[str, Check], ...] = (
    ("Hello", _GREETS),
    ("Hello!", _GREETS),
    ("hi", _GREETS),
    ("hi there!", _GREETS),
    ("Hey Wren", _GREETS),
    ("Good morning", _GREETS),
    ("good evening!", _GREETS),
    ("How are you?", says(r"program|working|ready|thank")),
    ("how are you doing today", says(r"program|working|ready|thank")),
    ("Who are you?", _SELF),
    ("who are you", _SELF),
    ("And who are you, please?", _SELF),
    ("What is your name?", _SELF),
    ("whats your name", _SELF),
    ("Please introduce yourself.", _SELF),
    ("Are you Qwen?", says(r"\bno\b.*Wren|Wren")),
    ("Are you ChatGPT?", says(r"\bno\b")),
    ("Are you a human?", says(r"program|not a person|model")),
    ("Who made you?", says(r"qwen3 package")),
    ("What can you do?", _SKILLS),
    ("what can you do for me", _SKILLS),
    ("Help", _SKILLS),
    ("What are you good at?", _SKILLS),
    ("What can't you do?", says(r"small|cannot|mistake")),
    ("What model are you?", says(r"18 million|small|Wren")),
    ("How many parameters do you have?", says(r"18 million")),
    ("How do I get a better model?", says(r"qwen3 run qwen3:0\.6b")),
    ("Thanks!", _WELCOME),
    ("thank you very much", _WELCOME),
    ("Bye!", _BYE),
    ("Goodbye, Wren", _BYE),
    ("You are great!", says(r"thank")),
    ("You are stupid.", _SORRY),
    ("ok", _of_words(1, 30)),
    ("Sorry", says(r"problem|right|worries|okay")),
    ("Tell me a joke", _JOKE),
    ("Can you tell me a good joke?", _JOKE),
    ("What is the capital of France?", says(r"\bParis\b")),
    ("what is the capital of japan", says(r"\bTokyo\b")),
    ("I need to know the capital of Italy.", says(r"\bRome\b")),
    ("What is the opposite of hot?", says(r"\bcold\b")),
    ("What is the plural of mouse?", says(r"\bmice\b")),
    ("What day comes after Monday?", says(r"\bTuesday\b")),
    ("How many days are in a week?", says(r"\b(7|seven)\b")),
    ("What color is the sky?", says(r"\bblue\b")),
    ("What sound does a cow make?", says(r"\bmoo")),
    ("How many legs does a spider have?", says(r"\b(eight|8)\b")),
    ("Which is bigger, an elephant or a mouse?", says(r"elephant")),
    ("Is a rose a flower?", says(r"\byes\b")),
    ("What is a library?", says(r"books|read")),
    ("Name three animals.", _of_words(3, 12)),
    ("What are the days of the week?", says(r"Monday.*Tuesday.*Sunday|Sunday.*Monday")),
    ("Write a sentence about a dog.", says(r"\bdog\b")),
    ("Tell me a story about a cat.", says(r"\bcat\b")),
    ("Write a poem about the ocean.", _HONEST),
    ("Write a Python program that downloads a web page.", _HONEST),
    ("What is the weather in Berlin today?", _HONEST),
    ("My stomach hurts, what should I take?", says(r"doctor|pharmacist")),
    ("Who won the football match yesterday?", _HONEST),
    ("Explain quantum computing in detail.", _HONEST),
    ("Hola, ¿qué tal?", says(r"English")),
    ("Repeat after me: blue parrot", says(r"^\W*blue parrot\W*$")),
    ("My name is Tom. What is my name?", says(r"\bTom\b")),
    ("Anna has a red ball. Ben has a green kite. What color is Ben's kite?", says(r"\bgreen\b")),
)
