"""Multiple choice: how a question shows its options, in which order, and which of them an answer takes.

A suite's item is made by `choice_item`, asked in the words that Qwen recommends, and scored by `score`. `permuted`
gives the same item with its options turned round: what knowledge does not mind and memory does.

An answer is read by its most explicit form: the JSON field that the prompt asks for, a \\boxed{}, "the answer is C" in
many languages, "C is correct", a letter that stands alone, a bold letter, an option's whole text. Within a form the
last statement counts, so that a corrected answer is the corrected one. Two options in one statement, or in a weak form,
are no answer, and neither is an option that is only said to be wrong.
"""

from __future__ import annotations

import random
import re
import string
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from qwen3.errors import UsageError
from qwen3.evaluate.types import Answer, Item, Score

LETTERS = string.ascii_uppercase
ASK = 'Please show your choice in the `answer` field with only the choice letter, e.g., `"answer": "C"`.'
"""Qwen3's model cards, "Standardize Output Format"."""


def block(options: Sequence[str]) -> str:
    """The options as a prompt shows them, one a line."""
    return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))


def order(item: str, count: int) -> list[int]:
    """A random order of `count` options that depends on the item's id alone."""
    places = list(range(count))
    random.Random(f"options/{item}").shuffle(places)
    return places


def choice_item(
    id: str,
    question: str,
    options: Sequence[str],
    right: int,
    about: Mapping[str, Any],
    *,
    shuffle: bool = False,
    ask: str = ASK,
) -> Item:
    """An item that asks for a letter. right: the index of the right option as given; shuffle: for data sets that always
    write it first. The gold value is {"letter", "options"}. Raises UsageError for what is no choice."""
    texts = [str(option).strip() for option in options]
    if not 2 <= len(texts) <= len(LETTERS) or not 0 <= right < len(texts) or not question.strip():
        raise UsageError(f"item {id}: needs a question, 2 to 26 options and the right one among them")
    places = order(id, len(texts)) if shuffle else list(range(len(texts)))
    texts, right = [texts[i] for i in places], places.index(right)
    prompt = f"{question.strip()}\n\n{block(texts)}\n\n{ask}"
    gold = {"letter": LETTERS[right], "options": texts}
    return Item(id, ({"role": "user", "content": prompt},), gold, dict(about))


def permuted(item: Item, turn: int) -> Item:
    """The same question with its options rotated by `turn` places: over all turns each option is at each letter once.
    0, or a multiple of the number of options, is the item itself."""
    options, right = item.gold["options"], LETTERS.index(item.gold["letter"])
    if not (by := turn % len(options)):
        return item
    turned = [*options[-by:], *options[:-by]]
    asked = item.messages[-1]["content"].replace(block(options), block(turned))
    gold = {"letter": LETTERS[(right + by) % len(options)], "options": turned}
    return replace(item, messages=(*item.messages[:-1], {**item.messages[-1], "content": asked}), gold=gold)


def score(item: Item, answer: Answer) -> Score:
    """Right if the option that the answer takes is the gold one; unparsed where it takes none, or several."""
    letter, form = taken(answer.content, item.gold["options"])
    if letter is None:
        return Score(0.0, "unparsed", note=form)
    right = letter == item.gold["letter"]
    return Score(float(right), "right" if right else "wrong", letter, note=form)


class Taken(NamedTuple):
    """The option that an answer takes, None: not one; and the form it was read by, or why there is none."""

    letter: str | None
    form: str


SEVERAL = "several options"

# What other scripts write for A, B, C, D: look-alikes, and the letters that translated exams label options with.
_ALIKE = dict(
    zip("АВСДЕБΑΒСأبجدابجدঅবডঢアイウエ가나다라甲乙丙丁", "ABCDEBABCABCDABCDABCDABCDABCDABCD", strict=True)
) | {"Г": "D", "Δ": "D", "Γ": "C", "Ϲ": "C"}
_ONE = r"(?:[A-Z]|[" + "".join(_ALIKE) + "])"
_WORD = r"A-Za-z0-9\u00c0-\u06ff\u0900-\u0dff"
_LETTER = rf"(?<![{_WORD}\\])(?<![A-Za-z][-'’])({_ONE})(?![{_WORD}]|['’][A-Za-z]|-[a-z])"

_GLUE = re.compile(
    r"(?:[\s:=\-–—→>\"'“”‘’«»(\[{#|,]|(?:is|are|was|be|would|should|must|will|the|to|this|question|problem|letter|option"
    r"|options|choice|answer|number|therefore|thus|hence|so|clearly|definitely|most|likely|probably|correct|right|best"
    r"|final|only|indeed|actually|but|rather|instead|it|it's|that|which|one|i\s+(?:think|believe))\b)*",
    re.I,
)
_CUE = re.compile(
    r"\b(?:answer|(?:correct|right|best|final|my|only)\s+(?:option|choice|response|letter|one)|choice\s*(?:is|:)"
    r"|(?:choose|pick|select|chose|picked|selected|go(?:ing)?\s+with|opt\s+for))\b",
    re.I,
)
_FOREIGN = re.compile(
    r"(?:答案|答え|解答|正解|回答|答复|答曰|答:|选择|選擇|应选|故选|选|選|정답|답변|답은|답:|الإجابة|الاجابة|إجابة|الجواب"
    r"|উত্তর|उत्तर|คำตอบ|ответ|відповідь|απάντηση|תשובה|جواب|پاسخ|պատասխան|პასუხი|பதில்|సమాధానం"
    r"|\b(?:antwort|réponse|reponse|respuesta|resposta|risposta|jawaban|cevap|yanıt|đáp án|jibu|ìdáhùn|idáhùn|idahun"
    r"|àmọ̀nà|àdáhùn|ànúgọ|àṣàyàn|odpowiedź|odpověď|odpoveď|răspuns|vastaus|svar|svaret|antwoord|válasz|erantzun"
    r"|erantzuna|atsakymas|atbilde|vastus|odgovor|sagot|javob|жауап|адказ|одговор|отговор|cavab|përgjigja|jawapan)\b)",
    re.I,
)
_NOT = re.compile(
    r"(?:\b(?:is|are|was|be)\s*(?:not|n['’]t)|\b(?:not|cannot|can['’]t\s+be|never|neither|nor|rather\s+than"
    r"|instead\s+of|except|ist\s+nicht|nicht|n['’]est\s+pas|pas|no\s+es|não\s+é|non\s+è|bukan|не)\b|不是|并非|不选|而不是|ではなく)"
    r"\s*(?:simply\s+|just\s+)?(?:the\s+|option\s+|choice\s+|answer\s+|letter\s+)*[(\[\"'“]?" + _LETTER + r"[)\]\"'”]?",
    re.I,
)
_WRONG = re.compile(
    _LETTER + r"[)\]]?\s+(?:is|are|was|were)\s+(?:[a-z]+\s+){0,2}?"
    r"(?:wrong|incorrect|false|untrue|impossible|excluded|eliminated|ruled\s+out)\b"
)
_MORE = re.compile(
    r"[)\]\"'”.]*\s*(?:,|/|&|\+|;|、|和|或|与|及|\b(?:or|and|oder|und|ou|et|o|y|e|и|или|as\s+well\s+as)\b)+\s*"
    r"(?:(?:option|choice|both)\s+)?[(\[\"'“]?" + _LETTER + r"(?!\s+(?:is|was|are|has|and|can|would|does))",
)
_REVERSED = re.compile(
    _LETTER
    + r"[)\]]?(?:[.:,]\s[^.\n]{0,120}?)?\s*(?:\s(?:is|would\s+be|must\s+be|seems|looks)\s+(?:indeed\s+|clearly\s+)?"
    r"(?:the\s+)?(?:only\s+|most\s+likely\s+|single\s+)?(?:correct|right|best|answer|true)\b|选?项?(?:是)?正确)",
)
_FIELD = re.compile(
    r"[\"'“`](?:final[_ ]|correct[_ ])?(?:answer|choice)[\"'”`]\s*[:：]\s*"
    r"(\[[^\]]*\]|\"(?:[^\"\\]|\\.)*\"|'[^'\n]*'|“[^”]*”|[^,}\n]*)",
    re.I,
)
_BOLD = re.compile(r"\*\*\s*([^*\n]+?)\s*\*\*|__\s*([^_\n]+?)\s*__|<b>\s*([^<\n]+?)\s*</b>", re.I)
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathsf|bf|rm|operatorname)\s*\{([^{}]*)\}")
_LED = re.compile(rf"^[\W_]*(?:(?:option|choice|answer|选项|選項)\s*)?[\W_]*{_LETTER}(?P<after>[\W_]*)", re.I)
_ARTICLE = re.compile(r"\s+(?!because|since|as\b|for\b|is\b|due|with|that|by\b|in\b|and\b|or\b|which|was\b)[a-z]")


def taken(text: str, options: Sequence[str]) -> Taken:
    """Which of the options an answer takes. text: the answer without its thoughts."""
    marked = _plain(text)
    bare = _WRONG.sub(" ", _NOT.sub(" ", marked.replace("*", "").replace("`", "")))
    texts = [_folded(option) for option in options]
    for form, values in (
        ("field", [m[1] for m in _FIELD.finditer(marked.replace("*", ""))]),
        ("boxed", list(_boxed(marked))),
        ("stated", list(_stated(bare))),
    ):
        for value in reversed(values):
            found = _value(value, texts, stated=form == "stated")
            if found:
                return Taken(found if found != SEVERAL else None, form if found != SEVERAL else SEVERAL)
    said = {letter for m in _REVERSED.finditer(bare) if (letter := _letter(m[1], len(texts)))}
    if said:
        return Taken(said.pop(), "correct") if len(said) == 1 else Taken(None, SEVERAL)
    lines = [line.strip() for line in bare.splitlines() if line.strip()]
    for form, candidates in (
        ("alone", [line for line in lines if _alone(line, texts)]),
        ("bold", [value for m in _BOLD.finditer(marked) if (value := next(filter(None, m.groups())))]),
        ("text", [bare, *lines[-1:]]),
    ):
        shown = {found for value in candidates if (found := _value(_NOT.sub(" ", value), texts, stated=False))}
        if shown:
            only = shown.pop() if len(shown) == 1 else SEVERAL
            return Taken(None, SEVERAL) if only == SEVERAL else Taken(only, form)
    return Taken(None, "no option found")


def _plain(text: str) -> str:
    """Full-width and other compatible forms made plain, LaTeX's and Markdown's wrapping taken off."""
    text = unicodedata.normalize("NFKC", text)
    while (bare := _WRAPPED.sub(r"\1", text)) != text:
        text = bare
    return re.sub(r"\\[()\[\]]|\$|\\[,;!]|[\u200b-\u200f\u202a-\u202e\u2060-\u2069]", " ", text)


def _folded(text: str) -> str:
    """A text as it is compared with an option's: no case, no marks around it."""
    return " ".join(_plain(text).replace("*", "").casefold().split()).strip(" .。,;:!\"'“”`")


def _letter(token: str, count: int) -> str | None:
    token = _ALIKE.get(token, token)
    return token if token in LETTERS[:count] else None


def _boxed(text: str) -> Iterator[str]:
    for m in re.finditer(r"\\(?:boxed|fbox)\s*\{", text):
        depth = 1
        for end in range(m.end(), len(text)):
            depth += (text[end] == "{") - (text[end] == "}")
            if not depth:
                yield text[m.end() : end]
                break


def _stated(text: str) -> Iterator[str]:
    """What follows each "the answer is", to the end of the line; the next line where nothing does."""
    cues = [(m.end(), False) for m in _CUE.finditer(text)] + [(m.end(), True) for m in _FOREIGN.finditer(text)]
    for at, foreign in sorted(cues):
        glue = _GLUE.match(text, at)
        rest = text[glue.end() if glue else at :].split("\n", 1)[0]
        if foreign and (m := re.search(_LETTER, rest[:28])) and not re.search(r"[.!?。]\s", rest[: m.start()]):
            rest = rest[m.start() :]
        yield rest


def _alone(line: str, texts: Sequence[str]) -> bool:
    """Whether a line is a letter and no more, or a letter with its option's text."""
    m = _LED.match(line)
    letter = m and _letter(m[1].upper(), len(texts))
    if not m or not letter:
        return False
    rest = _folded(line[m.end() :])
    return not rest or rest == texts[LETTERS.index(letter)]


def _value(value: str, texts: Sequence[str], *, stated: bool) -> str | None:
    """The letter that a value names, or SEVERAL. stated: it may go on as a sentence does."""
    folded = _folded(value)
    same = [LETTERS[i] for i, text in enumerate(texts) if text == folded]
    m = _LED.match(value)
    rest = _folded(value[m.end() :]) if m else ""
    letter = _letter(m[1] if stated and rest else m[1].upper(), len(texts)) if m else None
    if m and letter:
        if not rest:
            return letter
        if len(same) == 1:
            return same[0]
        if (more := _MORE.match(value, m.end(1))) and _letter(more[1], len(texts)) not in (None, letter):
            return SEVERAL
        led = bool(m["after"].strip()) or stated
        if led and not (m[1] in "AaI" and _ARTICLE.match(value, m.end(1))):
            return letter
    if same:
        return same[0] if len(same) == 1 else SEVERAL
    if stated:
        begun = [i for i, text in enumerate(texts) if text and re.match(rf"{re.escape(text)}(?![^\W_])", folded)]
        longest = max((len(texts[i]) for i in begun), default=0)
        best = [i for i in begun if len(texts[i]) == longest]
        return LETTERS[best[0]] if len(best) == 1 else SEVERAL if best else None
    return None
