"""Keys of a recipe: set by name, refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from qwen3.errors import UsageError
from qwen3.train.recipe import Recipe, described, key, override


@dataclass(frozen=True)
class Rates:
    matrix: float = key(0.02, "Muon's")
    vector: float = key(0.003, "AdamW's")


@dataclass(frozen=True)
class Learn:
    name: str = "learn"
    steps: int = key(100, "updates")
    rates: Rates = key(Rates, "learning rates")
    kind: Literal["a", "b"] = key("a", "of loss")
    shares: tuple[float, ...] = key((0.5, 0.5), "of the sources")
    limit: float | None = key(None, "of something")
    cut: bool = key(False, "whether to")

    def run(self, job: Any) -> dict[str, Any]:
        return {"finished": True}


def recipe(*stages: Any) -> Recipe:
    return Recipe("test", "embedded", stages or (Learn(),))


def test_keys_are_set_with_their_kinds() -> None:
    words = [
        "steps=1_000",
        "rates.matrix=1e-3",
        "kind=b",
        "shares=0.1,0.9",
        "limit=2.5",
        "cut=yes",
        "out=x",
        "max_minutes=3",
    ]
    made = override(recipe(), words)
    assert made.stages[0] == Learn("learn", 1000, Rates(1e-3), "b", (0.1, 0.9), 2.5, True)
    assert (str(made.folder), made.max_minutes) == ("x", 3.0)
    assert override(made, ["limit=none"]).stages[0].limit is None


def test_of_several_stages_one_is_named() -> None:
    two = recipe(Learn(), Learn("more"))
    assert override(two, ["more.steps=5"]).stages[1].steps == 5
    with pytest.raises(UsageError, match=r"several stages: say which, learn\.steps, more\.steps"):
        override(two, ["steps=5"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("step=5", r"step is no key of the recipe test; did you mean learn\.steps"),
        ("learn.rates.matrx=5", "no key matrx; there are matrix"),
        ("zzz=5", "there are model, out"),
        ("steps=many", "steps='many' must be a whole number"),
        ("kind=c", "kind='c' must be one of a, b"),
        ("cut=perhaps", "cut='perhaps' must be true or false"),
        ("steps", "'steps' is no key=value"),
        ("learn.name=x", "there is no key name"),
    ],
)
def test_what_is_wrong_is_named(word: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        override(recipe(), [word])


def test_every_key_is_described() -> None:
    lines = described(recipe()).splitlines()
    assert any(line.startswith("learn.rates.matrix") and line.endswith("Muon's") for line in lines)
    assert any(line.startswith("max_minutes") for line in lines)
