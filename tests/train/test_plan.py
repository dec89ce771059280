"""Commands in recipes/plan.md and docs/training.md name recipes, keys, scripts and options that exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen3.train.recipe import keys
from qwen3.train.start import RECIPES, find_recipe
from tests.test_floors import CHECKOUT

PLAN, PAGE = CHECKOUT / "recipes/plan.md", CHECKOUT / "docs/training.md"
ROW = re.compile(r"^\| (\w+) \| `([^`]+)` \| (\d+) \| (\d+)[^|]* \| ([^|]+) \|$", re.MULTILINE)


def commands(page: Path) -> Iterator[str]:
    """Of sh blocks, continued lines joined, and of the plan's tables."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.startswith("#"):
                yield line.partition("  #")[0].strip()
    yield from (row[1] for row in ROW.findall(text))


def check(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *words = shlex.split(command)
    monkeypatch.chdir(CHECKOUT)
    if first == "torchrun":
        words = words[words.index("-m") + 2 :]
        assert words[0] in RECIPES, command
        find_recipe(words[0], words[1:])
    elif first == "qwen3" and words[0] == "train":
        if len(words) > 1 and words[1] != "report":
            options = [i for i, word in enumerate(words) if word.startswith("--")]
            assert all(words[i] in ("--keys", "--json", "--max-minutes") for i in options), command
            find_recipe(words[1], [word for word in words[2:] if "=" in word])
    elif first == "python":
        script = Path(words[1].replace(".", "/") + ".py") if words[0] == "-m" else Path(words[0])
        script = script if script.is_file() else Path("src") / script
        assert script.is_file(), command
        text = script.read_text(encoding="utf-8")
        for word in words:
            if word.startswith("--"):
                assert f'"{word}"' in text, f"{script} has no option {word}"
    else:
        assert first in ("qwen3", "pip", "tensorboard"), command


@pytest.mark.parametrize("page", [PLAN, PAGE], ids=lambda page: page.name)
def test_commands_name_what_exists(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(commands(page))
    assert len(found) > 8
    for command in found:
        check(command, monkeypatch)


def test_every_run_of_the_plan_is_short_and_all_fit_about_two_hours() -> None:
    rows = ROW.findall(PLAN.read_text(encoding="utf-8"))
    assert len(rows) == sum(line.startswith("| ") for line in PLAN.read_text().splitlines()) - PLAN.read_text().count(
        "| run | command |"
    )
    assert len({row[0] for row in rows}) == len(rows)
    assert all(int(minutes) <= 8 and int(size) <= 16 and must.strip() for _, _, minutes, size, must in rows)
    assert sum(int(minutes) for _, _, minutes, _, _ in rows) <= 140
    assert sum(int(m) for name, _, m, _, _ in rows if name in ("e1", "e2", "e3", "e4")) <= 26


def test_keys_on_the_page_have_the_defaults_that_it_says() -> None:
    rows = re.findall(r"^\| (\w+) \| `([\w.-]+)` \| ([^|]*) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 12
    for recipe, name, told in rows:
        value = dict(keys(find_recipe(recipe)))[name][0]
        shown = "" if value in (None, ()) else str(value)
        assert told.strip() == shown, f"{name} is {shown!r}, the page says {told!r}"


def test_the_page_lists_recipes_as_they_are_and_files_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CHECKOUT / "tools"))
    made = pytest.importorskip("training_page").made
    text = PAGE.read_text(encoding="utf-8")
    mark = "<!-- end: recipes -->"
    assert made(text).partition(mark)[0] == text.partition(mark)[0], "run tools/training_page.py"
    assert made(made(text)) == made(text)
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (PAGE.parent / link).exists(), link
    with pytest.raises(ValueError, match="must have the lines"):
        made("# nothing")


def test_the_pictures_are_what_the_files_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CHECKOUT / "tools"))
    plot = pytest.importorskip("plot_training")
    drawn = dict(plot.pictures())
    assert set(re.findall(r"images/(training-[a-z-]+\.svg)", PAGE.read_text(encoding="utf-8"))) == set(drawn)
    for name, text in drawn.items():
        assert (plot.IMAGES / name).read_text(encoding="utf-8") == text, "run tools/plot_training.py"
