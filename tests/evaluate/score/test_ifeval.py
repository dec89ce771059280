"""IFEval's instructions: what follows each, counting of words and sentences, strict and loose reading."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from qwen3.errors import UsageError
from qwen3.evaluate.score import ifeval
from qwen3.evaluate.score.ifeval import text
from qwen3.evaluate.score.ifeval.checks import CHECKS
from tests.evaluate.score.ifeval_cases import MAKERS, cases

SPOKEN = {"language:response_language", "change_case:english_capital", "change_case:english_lowercase"}


def follows(name: str, response: str, **arguments: Any) -> bool:
    return ifeval.follows(response, {"id": name, **arguments})


def test_all_instructions_have_cases() -> None:
    assert len(CHECKS) == 25
    assert set(CHECKS) == set(MAKERS)


@pytest.mark.parametrize("name", sorted(set(MAKERS) - SPOKEN))
def test_the_truth_by_construction(name: str) -> None:
    known = [case for case in cases(name, 150, seed=3) if case.truth is not None]
    wrong = [case for case in known if follows(name, case.response, **case.arguments) != case.truth]
    assert not wrong
    assert 10 < sum(bool(case.truth) for case in known) < len(known) - 5


@pytest.mark.parametrize("name", sorted(SPOKEN))
def test_the_truth_of_languages(name: str) -> None:
    pytest.importorskip("langdetect")  # pip install 'qwen3[eval]'
    known = list(cases(name, 40, seed=3))
    right = sum(follows(name, case.response, **case.arguments) == case.truth for case in known)
    assert right >= 38  # langdetect errs on short texts in capitals


def test_a_language_is_always_the_same_one() -> None:
    pytest.importorskip("langdetect")  # pip install 'qwen3[eval]'
    for line in ("Hotel Bar Taxi", "ok no si", "LA MAISON IS ROT"):
        found = set()
        for _ in range(8):
            text.language.cache_clear()
            found.add(text.language(line))
        assert len(found) == 1
    assert text.language("12345 !!") is None
    assert follows("language:response_language", "12345 !!", language="de")  # no language is not the wrong one


@pytest.mark.skipif(find_spec("langdetect") is not None, reason="langdetect is installed")
def test_a_missing_langdetect_is_named() -> None:
    with pytest.raises(UsageError, match=r"pip install 'qwen3\[eval\]'"):
        follows("language:response_language", "Hello", language="en")


@pytest.mark.parametrize(
    ("said", "count"),
    [
        ("One.", 1),
        ("One. Two! Three?", 3),
        ("No end", 1),
        ("Dr. Smith met Mr. Jones in the U.S. army.", 1),
        ("He came at 10 a.m. and left.", 1),
        ("He came at 10 a.m. However nobody saw him.", 2),
        ("It costs 3.14 dollars. Cheap!", 2),
        ('"Go." He left.', 2),
        ("(It rained.) We left.", 2),
        ("Wait... what?", 1),
        ("Wait... The end.", 2),
        ("J. Smith came. Plan B. Then we left.", 3),
        ("1. First\n2. Second", 3),  # "1." is a sentence to Punkt, and the last one has no end
        ("**Bold.** Then.", 2),
        ("What?! No!!! Yes.", 3),
        ("Line one\nLine two", 1),
        ("这是一句。这是两句。", 1),  # no Latin mark, no end
        ("apples, e.g. pears, etc. are fruit.", 3),  # not in the newspaper: an end, as official
    ],
)
def test_sentences(said: str, count: int) -> None:
    assert text.sentences(said) == count


@pytest.mark.parametrize(
    ("said", "count"),
    [
        ("NASA and the U.S. met I.", 3),
        ("X-RAY A/B AT&T B2B", 5),
        ("DON'T I'M IT'S", 6),
        ("I CANNOT GO", 4),
        ("HELLO,WORLD (YES) *NO* [OK]", 5),
        ("A:1 3M mixedCASE Word", 2),
        ("", 0),
    ],
)
def test_capital_words(said: str, count: int) -> None:
    assert text.capital_words(said) == count


def test_sentences_in_linear_time() -> None:
    for long in ("a" * 200_000, "." * 200_000, "a." * 100_000, "! " * 50_000, '."' * 50_000, "(" * 100_000):
        assert text.sentences(long) >= 1


def test_words_of_a_keyword_are_not_a_pattern() -> None:
    assert follows("keywords:existence", "I use C++ (often).", keywords=["C++", "(often)"])
    assert not follows("keywords:existence", "I use CCC.", keywords=["C.C"])
    assert follows("keywords:letter_frequency", "a!b!", letter="!", let_frequency=2, let_relation="at least")


def test_strict_and_loose() -> None:
    asked = [{"id": "startend:quotation"}, {"id": "punctuation:no_comma"}]
    found = ifeval.score('Sure, here it is:\n"the answer"', asked)
    assert (found.value, found.outcome, found.note) == (0.0, "wrong", "startend:quotation, punctuation:no_comma")
    assert found.parts == {
        "prompt_strict": 0.0,
        "instruction_strict": 0.0,
        "strict startend:quotation": 0.0,
        "strict punctuation:no_comma": 0.0,
        "prompt_loose": 1.0,
        "instruction_loose": 1.0,
        "loose startend:quotation": 1.0,
        "loose punctuation:no_comma": 1.0,
    }
    half = ifeval.score('"a, b"', asked)
    assert (half.parts["instruction_strict"], half.parts["instruction_loose"]) == (0.5, 0.5)
    assert ifeval.instruction_level([found.parts, half.parts]) == 0.25
    assert ifeval.instruction_level([found.parts, half.parts], "loose") == 0.75
    right = ifeval.score('"a b"', asked)
    assert (right.value, right.outcome, right.note) == (1.0, "right", "")
    with pytest.raises(ValueError, match="no 'strict' parts"):
        ifeval.instruction_level([])


def test_readings() -> None:
    assert ifeval.readings("a\n*b*\nc") == ["a\n*b*\nc", "*b*\nc", "a\n*b*", "*b*", "a\nb\nc", "b\nc", "a\nb", "b"]
    assert ifeval.readings("one") == ["one", ""]
    assert not follows("punctuation:no_comma", " \n")


def test_instructions_of_a_row() -> None:
    wide = {"num_words": 5, "relation": "at least", "keywords": None}
    found = ifeval.instructions("x", ["length_constraints:number_words"], [wide])
    assert found == [{"id": "length_constraints:number_words", "num_words": 5, "relation": "at least"}]
    assert ifeval.instructions("x", ["punctuation:no_comma"], ["{}"]) == [{"id": "punctuation:no_comma"}]
    for ids, given, said in (
        (["punctuation:none"], [{}], "x: unknown instruction 'punctuation:none'"),
        (["length_constraints:number_words"], [{"num_words": 5}], "lacks its argument 'relation'"),
        (["punctuation:no_comma"], ["{"], "are not JSON"),
        (["punctuation:no_comma"], ["[1]"], "are not an object"),
        (["punctuation:no_comma"], [], "1 instructions with 0 sets"),
    ):
        with pytest.raises(UsageError, match=said):
            ifeval.instructions("x", ids, given)
    with pytest.raises(UsageError, match="relation is 'less than'"):
        follows("length_constraints:number_words", "a", num_words=1, relation="exactly")


def test_words_and_sentences_by_language() -> None:
    pytest.importorskip("langdetect")  # pip install 'qwen3[eval]'
    chinese = "第一批船回来的时候，港口很安静。谁也没想到暴风雨会这么快过去！我们沿着海滩散步，寻找贝壳。"
    assert text.words_in(chinese) == sum(c not in "，。！" for c in chinese)
    assert text.sentences_in(chinese) == 3
    hindi = "जब पहली नावें लौटीं तब बंदरगाह शांत था। किसी ने नहीं सोचा था। हम समुद्र के किनारे चलते रहे।"
    assert text.sentences_in(hindi) == 3
    english = "The harbour was quiet. Nobody had expected it."
    assert (text.words_in(english), text.sentences_in(english)) == (8, 2)
    assert ifeval.follows("“the harbour was quiet”", {"id": "startend:quotation"}, multilingual=True)
    assert not ifeval.follows("“the harbour was quiet”", {"id": "startend:quotation"})


def test_thai_needs_its_package() -> None:
    pytest.importorskip("langdetect")  # pip install 'qwen3[eval]'
    thai = "ท่าเรือเงียบสงบเมื่อเรือลำแรกกลับมา ไม่มีใครคิดว่าพายุจะผ่านไปเร็วขนาดนี้"
    if find_spec("pythainlp"):
        assert 10 < text.words_in(thai) < 40
    else:
        with pytest.raises(UsageError, match="pip install pythainlp"):
            text.words_in(thai)
