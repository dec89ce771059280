"""Words, sentences and the language of a response, counted as IFEval's published values were.

The official code counts sentences with the Punkt algorithm (Kiss and Strunk, "Unsupervised multilingual sentence
boundary detection", Computational Linguistics 2006) under a model learned from the Wall Street Journal, and words in
capitals with Treebank tokens. Both are rebuilt here with short word lists in place of the learned tables: what differs
is an abbreviation or a name that only the newspaper knew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from itertools import pairwise
from typing import Any

from qwen3.errors import UsageError


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ABBREVIATIONS = _set(
    "adm ala ariz aug ave bros calif cie co col colo conn corp cos ct dec dr feb fla fri ft ga gen ill inc jan jr kan"
    " ky lt ltd maj messrs mg mich minn mr mrs ms nev nov oct ok okla ore pa prof rep reps sen sep sept sr st tenn tues"
    " va vs vt wash wed wis yr a.m d.c l.a m.b.a n.c n.d n.h n.j n.m n.v n.y p.m ph.d r.i s.a s.c u.k u.n u.s u.s.a"
    " u.s.s.r w.va c d e f g h k l m n p r s t v w"
)
# Which capitalized words begin a sentence after an abbreviation or dots: those that are never inside a name.
_STARTERS = _set(
    "above although always anyone being between both but does either even finally he her here hers him his however i if"
    " in indeed instead into is it many meanwhile moreover most nevertheless nor nothing please since so some someone"
    " soon still such the them there therefore these they this though through thus together tomorrow under very were"
    " when whether which while without yes yesterday yet your"
)
# Which ones do after a single letter ("Plan B. Next"); any other is taken for a surname ("J. Smith").
_COMMON = _STARTERS - {"i"} | _set(
    "a about after again all also an and another any are as at be because before by can could did do during each every"
    " few first for from had has have how its just last later let like may maybe me more much must my never next no not"
    " now of often on once one only or other our over perhaps rather second she should something than that their then"
    " those to today too two until up was we well what where who why will with would you add ask call choose create"
    " find give go help keep list look make open put read set start take tell think try turn use work write"
)

_APART = "[?!)\";}\\]*:@'({\\[]"  # characters that end a word
_MARKS = r"-{2,}|\.{2,}|(?:\.\s){2,}\."
_TOKEN = re.compile(
    rf"{_MARKS}|(?=[^(\"`{{\[:;&#*@)}}\]\-,])\S+?(?=\s|$|{_APART}|{_MARKS}|,(?=$|\s|{_APART}|{_MARKS}))|\S"
)
_END = re.compile(rf"[.?!](?={_APART}|\s+\S)")
_AFTER = re.compile(rf"{_APART}|\s+\S+")
_CLOSING = re.compile("[\"')\\]}]+?(?:\\s+|(?=--)|$)", re.M)
_NUMBER = re.compile(r"-?[.,]?\d[\d,.-]*\.?")


def words(text: str) -> int:
    """Runs of letters, digits and underscores."""
    return len(re.findall(r"\w+", text))


def sentences(text: str) -> int:
    """Sentences by Punkt's rules for English, whatever the language is: only . ? ! end one, before a space or a mark
    such as a quote; a list's "1." is one."""
    text = text.rstrip()
    starts, ends = [0], []
    for start, end in _possible_ends(text):
        after = _AFTER.match(text, end)
        if after and _breaks(text[start:end] + after[0]):
            ends.append(end)
            starts.append(after.end() - len(after[0].lstrip()) if after[0][0].isspace() else end)
    count = 0
    for start, end in zip(starts, [*ends, len(text)], strict=True):
        # What closes a quote or a bracket belongs to the sentence before it.
        closing = _CLOSING.match(text[start:end]) if start else None
        count += start + (closing.end() if closing else 0) < end
    return count


def _possible_ends(text: str) -> list[tuple[int, int]]:
    """(start of its run of characters without a space, end) of the last possible end of each run."""
    found: list[tuple[int, int]] = []
    for m in _END.finditer(text):
        since = found[-1][1] if found else 0
        run = len(text[since : m.end()].rsplit(None, 1)[-1])
        if found and run == m.end() - since:
            found[-1] = (found[-1][0], m.end())
        else:
            found.append((m.end() - run, m.end()))
    return found


def _breaks(context: str) -> bool:
    """Whether one of the tokens but the last ends a sentence."""
    return any(_ends(token, after) for token, after in pairwise(_TOKEN.findall(context)))


def _ends(token: str, after: str) -> bool:
    if token in ("?", "!"):
        return True
    if not token.endswith("."):
        return False
    word, following = token[:-1].lower(), after.lower().rstrip(".") or after
    upper, lower = after[0].isupper(), after[0].islower()
    initial = bool(re.fullmatch(r"[^\W\d]\.", token))
    dots = re.fullmatch(r"\.{2,}|(?:\.\s){2,}\.", token)
    if dots or word in _ABBREVIATIONS or word.split("-")[-1] in _ABBREVIATIONS:
        return not initial and upper and following in _STARTERS
    if token.endswith(".."):
        return False
    if initial or _NUMBER.fullmatch(token):
        if lower or after in (";", ":", ",", ".", "!", "?"):
            return False
        return not (initial and upper and following not in _COMMON)
    return True


_JOINED = re.compile(r"(?i)\b(can)(not)\b|\b(d)('ye)\b|\b(gim|lem)(me)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b")
_SHORT = re.compile(r"([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T|'[sSmMdD])(?=\s|$)")


def capital_words(text: str) -> int:
    """Treebank tokens whose letters are all capitals: A and I, U.S., X-RAY as one, DON'T as two (DO, N'T)."""
    text = re.sub(r"[\[\](){}<>;@#$%&?!*\"“”«»„`‘’]|\.{2,}|--|[:,](?!\d)|''", " ", text)
    text = _SHORT.sub(r"\1 \2 ", text)
    text = _JOINED.sub(lambda m: " ".join(part for part in m.groups() if part), text)
    return sum(token.isupper() for token in text.split())


@lru_cache(256)
def language(text: str) -> str | None:
    """The language as langdetect names it ("en", "zh-cn"), None for a text without letters to tell by. The benchmark is
    defined by that package; its random draws are seeded here, so a text always has the same language. Raises UsageError
    where the package is missing."""
    try:
        lib = import_module("langdetect.detector_factory")
    except ImportError:
        raise UsageError("telling the language of a response needs langdetect: pip install 'qwen3[eval]'") from None
    lib.init_factory()
    detector = lib._factory.create()
    detector.seed = 0
    detector.append(text)
    try:
        return str(detector.detect())
    except lib.LangDetectException:
        return None


_ASIAN = re.compile("[\u4e00-\u9fff\u3400-\u4dbf\u3040-\u30ff\uac00-\ud7af]")
_EMOJI = re.compile("[\U0001f1e6-\U0001faff\u2600-\u27bf\u2b50\u2b55]\ufe0f?")
_DROPPED = re.compile(r"[\\.!?．/_,{}<>:;$%^&*(+\"'—！，。？、`~@#￥…（）：；《》“”()\[\]»〔〕\-「」]+")


def words_in(text: str) -> int:
    """Words by the rules of the response's own language, as Multi-IF counts: characters in Chinese and Japanese."""
    spoken = language(text)
    if spoken == "th":
        return len(_thai().word_tokenize(text))
    if spoken not in ("zh-cn", "zh-tw", "ja"):
        return words(text)
    text, emoji = _EMOJI.subn("", _DROPPED.sub("", text))
    return emoji + len(_ASIAN.findall(text)) + len(_ASIAN.sub(" ", text).split())


def sentences_in(text: str) -> int:
    """Sentences by the rules of the response's own language, as Multi-IF counts."""
    spoken = language(text)
    if spoken == "th":
        return sum(len(_thai().sent_tokenize(line)) for line in text.splitlines())
    if spoken == "hi":
        return sum(bool(part.strip()) for part in re.split(r"(?<=[।!?])\s*", text))
    if spoken in ("zh-cn", "zh-tw", "ja"):
        return sum(1 for line in text.splitlines() for _ in _asian_sentences(line.strip()))
    return sentences(text)


def _asian_sentences(line: str) -> Iterator[str]:
    return (m.group() for m in re.finditer(r"[^!?。.！？．]+[!?。.！？．]?", line))


def _thai() -> Any:
    try:
        return import_module("pythainlp.tokenize")
    except ImportError:
        raise UsageError("Thai is counted by pythainlp: pip install pythainlp python-crfsuite") from None
