"""The 25 instructions. A check takes the response and the arguments that the data set names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from qwen3.errors import UsageError
from qwen3.evaluate.score.ifeval import text as read


class Check(NamedTuple):
    """needs: names of the arguments. run(response, multilingual, arguments by name)."""

    needs: tuple[str, ...]
    run: Callable[..., bool]

    def follows(self, response: str, *, multilingual: bool, **arguments: Any) -> bool:
        return bool(self.run(response, multilingual, **arguments))


CHECKS: dict[str, Check] = {}


def _check(name: str, *needs: str) -> Callable[[Callable[..., bool]], Callable[..., bool]]:
    def note(run: Callable[..., bool]) -> Callable[..., bool]:
        CHECKS[name] = Check(needs, run)
        return run

    return note


def _related(count: int, relation: str, bound: int) -> bool:
    if relation not in ("less than", "at least"):
        raise UsageError(f"an instruction's relation is 'less than' or 'at least', not {relation!r}")
    return count < bound if relation == "less than" else count >= bound


def _found(word: str, response: str, around: str = "") -> int:
    return len(re.findall(around + re.escape(word) + around, response, re.I))


@_check("keywords:existence", "keywords")
def _keywords(response: str, _: bool, keywords: Sequence[str]) -> bool:
    return all(_found(word, response) for word in keywords)


@_check("keywords:frequency", "keyword", "frequency", "relation")
def _keyword_frequency(response: str, _: bool, keyword: str, frequency: int, relation: str) -> bool:
    return _related(_found(keyword.strip(), response), relation, frequency)


@_check("keywords:forbidden_words", "forbidden_words")
def _forbidden(response: str, _: bool, forbidden_words: Sequence[str]) -> bool:
    return not any(_found(word, response, r"\b") for word in forbidden_words)


@_check("keywords:letter_frequency", "letter", "let_frequency", "let_relation")
def _letters(response: str, _: bool, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _related(response.lower().count(letter.strip().lower()), let_relation, let_frequency)


@_check("language:response_language", "language")
def _language(response: str, _: bool, language: str) -> bool:
    return read.language(response) in (language, None)  # what has no language is not in a wrong one


@_check("length_constraints:number_sentences", "num_sentences", "relation")
def _sentences(response: str, multilingual: bool, num_sentences: int, relation: str) -> bool:
    count = read.sentences_in if multilingual else read.sentences
    return _related(count(response), relation, num_sentences)


@_check("length_constraints:number_words", "num_words", "relation")
def _words(response: str, multilingual: bool, num_words: int, relation: str) -> bool:
    count = read.words_in if multilingual else read.words
    return _related(count(response), relation, num_words)


@_check("length_constraints:number_paragraphs", "num_paragraphs")
def _paragraphs(response: str, _: bool, num_paragraphs: int) -> bool:
    full = [bool(part.strip()) for part in re.split(r"\s?\*\*\*\s?", response)]
    # A divider may stand before the first paragraph and after the last one, not twice between two.
    return all(full[1:-1]) and sum(full) == num_paragraphs


@_check("length_constraints:nth_paragraph_first_word", "num_paragraphs", "nth_paragraph", "first_word")
def _first_word(response: str, _: bool, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = response.split("\n\n")
    if sum(bool(part.strip()) for part in parts) != num_paragraphs or not 0 < nth_paragraph <= num_paragraphs:
        return False
    start = parts[nth_paragraph - 1].split()  # blank paragraphs do not count, and yet have a place: as official
    return bool(start) and re.split(r"[.,?!'\"]", start[0].lstrip("'").lstrip('"').lower())[0] == first_word.lower()


@_check("detectable_content:number_placeholders", "num_placeholders")
def _placeholders(response: str, _: bool, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", response)) >= num_placeholders


@_check("detectable_content:postscript", "postscript_marker")
def _postscript(response: str, _: bool, postscript_marker: str) -> bool:
    spaced = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    marker = postscript_marker.strip()
    return bool(re.search(spaced.get(marker, re.escape(marker.lower())), response.lower()))


@_check("detectable_format:number_bullet_lists", "num_bullets")
def _bullets(response: str, _: bool, num_bullets: int) -> bool:
    stars, dashes = (re.findall(pattern, response, re.M) for pattern in (r"^\s*\*[^*].*$", r"^\s*-.*$"))
    return len(stars) + len(dashes) == num_bullets


@_check("detectable_format:constrained_response")
def _constrained(response: str, _: bool) -> bool:
    return any(f"My answer is {option}." in response for option in ("yes", "no", "maybe"))


@_check("detectable_format:number_highlighted_sections", "num_highlights")
def _highlights(response: str, _: bool, num_highlights: int) -> bool:
    single, double = (re.findall(rf"{mark}([^\n*]*){mark}", response) for mark in (r"\*", r"\*\*"))
    return sum(bool(inside.strip()) for inside in single + double) >= num_highlights


@_check("detectable_format:multiple_sections", "section_spliter", "num_sections")
def _sections(response: str, _: bool, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", response)) >= num_sections


@_check("detectable_format:json_format")
def _json(response: str, _: bool) -> bool:
    bare = response.strip()
    for opening in ("```json", "```Json", "```JSON", "```"):
        bare = bare.removeprefix(opening)
    try:
        json.loads(bare.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


@_check("detectable_format:title")
def _title(response: str, _: bool) -> bool:
    return any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", response))


@_check("combination:two_responses")
def _two(response: str, _: bool) -> bool:
    parts = [part.strip() for part in response.split("******")]
    full = [part for part in parts if part]
    return all(parts[1:-1]) and len(full) == 2 and full[0] != full[1]


@_check("combination:repeat_prompt", "prompt_to_repeat")
def _repeat(response: str, _: bool, prompt_to_repeat: str) -> bool:
    return response.strip().lower().startswith(prompt_to_repeat.strip().lower())


@_check("startend:end_checker", "end_phrase")
def _ends(response: str, _: bool, end_phrase: str) -> bool:
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@_check("startend:quotation")
def _quoted(response: str, multilingual: bool) -> bool:
    marks = ('""', "“”", "「」") if multilingual else ('""',)
    bare = response.strip()
    return len(bare) > 1 and bare[0] + bare[-1] in marks


@_check("change_case:capital_word_frequency", "capital_frequency", "capital_relation")
def _capitals(response: str, _: bool, capital_frequency: int, capital_relation: str) -> bool:
    return _related(read.capital_words(response), capital_relation, capital_frequency)


@_check("change_case:english_capital")
def _upper(response: str, _: bool) -> bool:
    return response.isupper() and read.language(response) in ("en", None)


@_check("change_case:english_lowercase")
def _lower(response: str, _: bool) -> bool:
    return response.islower() and read.language(response) in ("en", None)


@_check("punctuation:no_comma")
def _no_comma(response: str, _: bool) -> bool:
    return "," not in response
