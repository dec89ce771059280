"""Changed copies of suites: the question is another one, the answer is right."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from qwen3.errors import UsageError
from qwen3.evaluate.score.options import choice_item
from qwen3.evaluate.suites import gpqa, gsm8k
from qwen3.evaluate.types import Item
from qwen3.evaluate.variants import perturbed, renumbered, variant


def item(text: str, gold: object = "4") -> Item:
    return Item("a", ({"role": "system", "content": "Tom"}, {"role": "user", "content": text}), gold)


def test_people_get_other_names_everywhere_and_each_their_own() -> None:
    new = perturbed(item("Anna and Tom meet. Anna's hat is Tom's; Annabel and tomatoes stay."), "names")
    assert new is not None
    text = new.messages[-1]["content"]
    match = re.fullmatch(r"(\w+) and (\w+) meet\. \1's hat is \2's; Annabel and tomatoes stay\.", text)
    assert match
    assert match[1] != match[2]
    assert not {"Anna", "Tom"} & set(match.groups())
    assert new.messages[0] == {"role": "system", "content": "Tom"}
    assert (new.id, new.gold) == ("a", "4")
    assert perturbed(item("Nobody is named."), "names") is None
    assert perturbed(item("Does Tom win?", gold="Tom"), "names") is None, "the answer is a name"
    assert (
        perturbed(
            item(
                " ".join(
                    f"Tom {n}" for n in ["Tim", "Ted", "Ron", "Rob", "Joe", "Jim", "Bob", "Ben", "Dan", "Sam", "Leo"]
                )
            ),
            "names",
        )
        is None
    )


def test_a_sentence_beside_the_question() -> None:
    new = perturbed(item("How many?"), "irrelevant")
    assert new is not None
    assert new.messages[-1]["content"].endswith(". How many?")
    assert perturbed(item("How many?"), "irrelevant") == new, "the same in every run"


def test_options_are_turned_and_the_right_one_stays_right() -> None:
    one = choice_item("q", "Which?", ["w", "x", "y", "z"], 1, {})
    new = perturbed(one, "options", 2)
    assert new is not None
    assert new.gold["options"]["ABCD".index(new.gold["letter"])] == "x"
    assert new.gold["letter"] == "D"
    assert "D. x" in new.messages[-1]["content"]
    assert perturbed(one, "options", 4) is None
    assert perturbed(item("How many?"), "options") is None


PEN = "Mia buys {a} pens at ${b} each and a bag of {c} apples. She eats 2 apples and pays with {d} dollars."
SOLUTION = (
    "Pens: {a}*{b}=$<<{a}*{b}={e}>>{e}. Change: <<{d}-{e}={f}>>{f}. Apples: <<{c}-2={g}>>{g}. <<{f}*{g}={h}>>\n#### {h}"
)


def test_numbers_change_and_the_answer_follows() -> None:
    rng = random.Random(0)
    made = 0
    for _ in range(200):
        a, b, c, d = (rng.randrange(5, 40) for _ in range(4))
        d += a * b
        e, f, g = a * b, d - a * b, c - 2
        question = PEN.format(a=a, b=b, c=c, d=d)
        new = renumbered(question, SOLUTION.format(a=a, b=b, c=c, d=d, e=e, f=f, g=g, h=f * g), rng)
        if new is None:
            continue
        made += 1
        a, b, c, two, d = map(int, re.findall(r"\d+", new[0]))
        assert two == 2
        assert new[1] == (d - a * b) * (c - 2)
        assert new[0] != question
    assert made > 30


@pytest.mark.parametrize(
    ("question", "solution"),
    [
        ("He has 8 pens and 8 hats.", "<<8+8=16>>\n#### 16"),  # which 8?
        ("He has 9 pens, 5 red.", "<<9*2=18>>\n#### 18"),  # a number that no step uses, and is not usual
        ("He has 9 pens and 6 hats.", "<<9+6=15>>\n#### 14"),  # the answer is not the last step's
        ("He has 9 pens and 6 hats.", "<<9+6=16>>\n#### 16"),  # the step is wrong
        ("He has 9 pens and 6 hats.", "<<9-6=3>>, <<9*3=27>>, <<27+6=33>>\n#### 33"),  # the result 3, or a usual 3?
        ("He has 9 pens and 6 hats.", "He has 15.\n#### 15"),  # no steps
        ("He has 9 pens and 6 hats.", "<<9**6=531441>>\n#### 531441"),  # not arithmetic of GSM8K
        ("He has 9 pens and 6 hats.", "<<9+6=15>>\n#### many"),
    ],
)
def test_what_is_in_doubt_is_not_renumbered(question: str, solution: str) -> None:
    assert renumbered(question, solution, random.Random(0)) is None


def test_variants_of_suites(tmp_path: Path) -> None:
    others = {f"Incorrect Answer {i}": f"w{i}" for i in (1, 2, 3)}
    rows = [{"Question": f"Which of these, {n}?", "Correct Answer": "r", **others} for n in range(5)]
    (tmp_path / "gpqa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    turned = variant(gpqa.SUITE, "options3")
    assert (turned.name, turned.references) == ("gpqa+options3", ())
    old, new = (suite.load(str(tmp_path / "gpqa.jsonl")) for suite in (gpqa.SUITE, turned))
    assert [one.id for one in old] == [one.id for one in new]
    assert all(a.gold["letter"] != b.gold["letter"] for a, b in zip(old, new, strict=True))
    with pytest.raises(UsageError, match="none of its 5 items"):
        variant(gpqa.SUITE, "names").load(str(tmp_path / "gpqa.jsonl"))
    for kind in ("colours", "options0", "numbers"):
        with pytest.raises(UsageError, match=re.escape(f"gpqa+{kind}")):
            variant(gpqa.SUITE, kind)


def test_gsm8k_with_other_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gsm8k, "need", lambda: None)  # math-verify scores, and is not needed to read
    rows = [{"question": "Tom has 9 pens and 6 hats. How many things?", "answer": "<<9+6=15>>15.\n#### 15"},
            {"question": "How many days has a week?", "answer": "#### 7"}]  # fmt: skip
    (tmp_path / "gsm8k.jsonl").write_text("\n".join(map(json.dumps, rows)))
    suite = replace(gsm8k.SUITE)
    found = variant(suite, "numbers").load(str(tmp_path / "gsm8k.jsonl"))
    assert [one.id for one in found] == ["0"]
    pens, hats = map(int, re.findall(r"\d+", found[0].messages[-1]["content"])[:2])
    assert str(pens + hats) in json.dumps(found[0].gold)
    assert (pens, hats) != (9, 6)
