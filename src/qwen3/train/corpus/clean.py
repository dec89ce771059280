"""One spelling of Unicode and of line ends, and no characters or lines that say nothing. Everything is counted."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_BREAKS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
# Invisible: zero-width space, word joiner, byte order mark, soft hyphen, directions (CVE-2021-42574), tags.
_INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad\u200e\u200f\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]")
# Joiners spell Persian, Indic scripts and emoji; beside ASCII and white space they say nothing.
_JOINERS = re.compile("(?<=[\\s!-~])[\u200c\u200d]+|[\u200c\u200d]+(?=[\\s!-~])|^[\u200c\u200d]+|[\u200c\u200d]+$")
# UTF-8 that was read as Latin-1 or Windows-1252, and what could not be read at all.
_MOJIBAKE = re.compile("[ÂÃ][\u0080-\u00bf]|â€[™œžš¦“”\u009d\u0153]|ï¿½|ï»¿|\ufffd")
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)
_EMPTY = re.compile(r"\n{4,}")
# Whole lines that web pages put around a text.
_LINES = (
    r"skip to (?:main )?content|back to top|load more|read more|leave a (?:comment|reply)|advertisements?",
    r"(?:click here to )?(?:subscribe|sign up)(?: to| for) (?:our |the )?newsletter|log ?in to (?:comment|reply)",
    r"share (?:this )?(?:on|via|to) (?:facebook|twitter|x|linkedin|whatsapp|email|pinterest)",
    r"(?:copyright )?(?:©|\(c\)) ?\d{4}.{0,60}all rights reserved|all rights reserved|privacy policy",
    r"(?:this (?:web)?site|we) uses? cookies.{0,160}|(?:accept|reject|manage) (?:all )?cookies",
    r"(?:please )?enable javascript.{0,80}|javascript is (?:disabled|required).{0,80}",
    r"terms of (?:use|service)(?: (?:and|\||&) privacy policy)?",
)
_BOILERPLATE = re.compile(rf"^[ \t>*•|-]*(?:{'|'.join(_LINES)})[ \t.!…»>|]*$\n?", re.IGNORECASE | re.MULTILINE)


def clean(text: str) -> tuple[str, Counter[str]]:
    """The text in NFC with `\\n` at its lines' ends, and how many of what was removed or found in it.

    Removed: control characters, invisible characters (joiners only where they join nothing), white space before line
    ends, more than two empty lines in a row, boilerplate lines. Mojibake is counted and left alone: to guess at what a
    text once said may make it worse.
    """
    counts: Counter[str] = Counter()

    def cut(pattern: re.Pattern[str], by: str, what: str) -> None:
        nonlocal text
        text, count = pattern.subn(by, text)
        if count:
            counts[what] += count

    cut(_BREAKS, "\n", "line ends")
    cut(_CONTROL, "", "control characters")
    if not text.isascii():
        cut(_INVISIBLE, "", "invisible characters")
    if "\u200c" in text or "\u200d" in text:
        cut(_JOINERS, "", "invisible characters")
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
        counts["documents not in NFC"] = 1
    cut(_BOILERPLATE, "", "boilerplate lines")
    text = _EMPTY.sub("\n\n\n", _TRAILING.sub("", text)).strip("\n")
    if not text.isascii() and (found := len(_MOJIBAKE.findall(text))):
        counts["mojibake"] = found
    return text, counts
