"""Random Unicode text of the kinds that break tokenizers."""

from __future__ import annotations

import random

SCRIPTS = [
    (0x20, 0x7E),  # ASCII
    (0xA0, 0x24F),  # Latin supplements, no-break space
    (0x370, 0x52F),  # Greek, Cyrillic
    (0x590, 0x6FF),  # Hebrew, Arabic
    (0x900, 0xDFF),  # Indic scripts
    (0xE00, 0x11FF),  # Thai, Lao, Tibetan, Georgian, Hangul jamo
    (0x1200, 0x18AF),  # Ethiopic, Canadian syllabics, Khmer, Mongolian
    (0x2000, 0x2BFF),  # punctuation, arrows, box drawing
    (0x3000, 0x30FF),  # CJK punctuation, kana
    (0x4E00, 0x9FFF),  # Han
    (0xAC00, 0xD7A3),  # Hangul
    (0xE000, 0xE0FF),  # private use
    (0xF900, 0xFFFD),  # compatibility forms, full width, specials
    (0x10000, 0x1F0FF),  # ancient scripts, notation
    (0x1F300, 0x1FAFF),  # emoji
    (0x20000, 0x2FA1D),  # Han extensions, compatibility ideographs
    (0xE0000, 0xE01EF),  # tags, variation selectors
    (0x10FF00, 0x10FFFF),  # the end
]
SPACES = " \t\n\r\x0b\x0c\x85\xa0\u1680\u2003\u2028\u2029\u202f\u3000\ufeff"
COMBINING = [chr(code) for code in (*range(0x300, 0x370), *range(0x20D0, 0x20F0), 0x200D, 0xFE0F, 0x3099, 0x0F39)]
SNIPPETS = ["'s", "'LL", "’s", "don't", "``", "=>", "http://x.y/z?q=1&r=%20", "</think", "<|im_", "0x1F", "1,234.50"]


def random_text(rng: random.Random) -> str:
    """A few runs, each of one kind, up to some sixty characters."""
    return "".join(_run(rng) for _ in range(rng.randrange(1, 6)))


def _run(rng: random.Random) -> str:
    kind = rng.randrange(8)
    length = rng.randrange(1, 13)
    if kind <= 2:
        low, high = rng.choice(SCRIPTS)
        return "".join(chr(rng.randint(low, high)) for _ in range(length))
    if kind == 3:
        return "".join(rng.choice(SPACES) for _ in range(length))
    if kind == 4:
        return "".join(rng.choice("0123456789٣४Ⅳ½²𝟗") for _ in range(length))
    if kind == 5:
        return "".join(chr(rng.choice((*range(32), 127, *range(128, 160)))) for _ in range(rng.randrange(1, 4)))
    if kind == 6:
        base = rng.choice("aeoAÅ한かक🏳👩")
        return base + "".join(rng.choice(COMBINING) for _ in range(rng.randrange(1, 5)))
    return rng.choice(SNIPPETS) + rng.choice(["", " ", "\n"])
