"""The page says what a doubter asks, and is well formed."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from qwen3.evaluate.report import page
from qwen3.evaluate.summary import summarise
from tests.evaluate.made_up import run

VOID = ("meta", "rect", "line", "circle", "polyline", "polygon")


class Balanced(HTMLParser):
    """Fails at a tag that is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def whole(text: str) -> str:
    reader = Balanced()
    reader.feed(text)
    assert not reader.open
    assert "<script" not in text
    return text


def test_one_run() -> None:
    text = whole(page([summarise(run(["rrwt"] * 20, prices={"out": 1.0}, seed=3))]))
    for told in (
        "TRUNCATED: 25.0%", "± sampling", "OUTSIDE the interval", "qwen3 eval math500 --think", "temperature 0.6",
        "pass@4", "truncated 20 (25.0 %)", "a right answer", "subject", "95th percentile",
    ):  # fmt: skip
        assert told in text, told
    assert "Not to be quoted" in text  # a quarter of it was cut
    assert "Not to be quoted" not in whole(page([summarise(run(["rrrw"] * 20))]))


def test_several_budgets_make_curves() -> None:
    made = [summarise(run(["rw" * (1 + k)] * 20, budget=512 * k, prices={"out": 1.0 + k})) for k in range(3)]
    text = whole(page(made, "Budgets"))
    assert "<title>Budgets</title>" in text
    assert "accuracy against the budget" in text
    assert "accuracy against the price of tokens" in text
    assert "best at its price" not in text.split("the price")[0]


def test_what_is_hostile_or_missing() -> None:
    made = run(["rf", "ww"], model="<b>&x", command="echo '<script>'")
    for one in made.samples:
        one["answer"].update(prompt_tokens=None, thinking_tokens=None, answer_tokens=None)
    text = whole(page([{**summarise(made), "remarks": ["the server leaks <think>"]}]))
    assert "Not to be quoted" in text
    assert "leaks &lt;think&gt;" in text
    assert "<b>&x" not in text


@pytest.mark.parametrize("word", ["r", "w", "t", "e", "u"])
def test_one_item(word: str) -> None:
    whole(page([summarise(run([word]))]))
