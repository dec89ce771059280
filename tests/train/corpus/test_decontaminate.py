"""A document with a problem of an evaluation set in it is found and the problem named; one that is near is not."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path

import pytest

from qwen3.errors import UsageError
from qwen3.train.corpus.decontaminate import Decontaminator, Item, load_items

LONG = "A farmer has seventeen sheep and all but nine run away before the sun goes down; how many sheep are left?"
SHORT = "What is the capital of Burkina Faso?"
CHINESE = "一个农夫有十七只羊，除了九只以外全都跑掉了，请问他还剩下几只羊？"
ITEMS = [
    Item("riddles", "1", LONG),
    Item("facts", "7", SHORT),
    Item("riddles", "zh", CHINESE),
    Item("facts", "x", "Why?"),
]
OTHER = "The weather was fine and the road to the village was dry, so that we walked for hours without any rest. "


@pytest.fixture(scope="module")
def judge() -> Decontaminator:
    return pickle.loads(pickle.dumps(Decontaminator(ITEMS)))


@pytest.mark.parametrize(
    ("text", "item", "by"),
    [
        (OTHER + LONG + OTHER, "1", "words"),
        (OTHER + LONG.upper().replace(";", " —\n") + OTHER, "1", "words"),
        (OTHER + " ".join(LONG.split()[3:17]) + OTHER, "1", "words"),
        (OTHER + "Q: what is the capital of  BURKINA FASO" + OTHER, "7", "letters"),
        ("他说：" + CHINESE.replace("，", " ") + OTHER, "zh", "letters"),
    ],
)
def test_what_is_found(judge: Decontaminator, text: str, item: str, by: str) -> None:
    hit = judge.find(text)
    assert hit is not None
    assert (hit.item.id, hit.by) == (item, by)
    assert 0 < hit.overlap <= 1


@pytest.mark.parametrize(
    "text",
    [
        OTHER * 5,
        " ".join(LONG.split()[:12]) + " noon. " + OTHER,
        "What is the capital of France? It is not in Burkina or in Faso.",
        "what is the " + OTHER * 3 + "capital of " + OTHER * 3 + "burkina faso",
        "Why?",
        "",
    ],
)
def test_what_is_near_is_not_found(judge: Decontaminator, text: str) -> None:
    assert judge.find(text) is None


def test_items_that_cannot_be_looked_for_are_counted(judge: Decontaminator) -> None:
    assert judge.unchecked == {"riddles": 0, "facts": 1}


def test_the_wording_of_a_set_is_no_problem() -> None:
    wording = "Read the following statement with care and then say in one single word whether it is true or false: "
    judge = Decontaminator([Item("s", str(i), f"{wording}{i} {i * i} {i + 3} is number {i * 77}") for i in range(40)])
    assert judge.find(wording + "some other statement that nobody has in any set") is None
    hit = judge.find(f"{wording}5 25 8 is number 385")
    assert hit is not None
    assert hit.item.id == "5"


def test_held_out_problems_of_the_tasks_are_a_set() -> None:
    items = list(load_items("tasks:boolean", 50))
    assert items == list(load_items("tasks:boolean", 50))
    judge = Decontaminator(items)
    long = [item for item in items if len(item.text) > 100]
    found = [judge.find(f"{OTHER}{item.text}\n{OTHER}") for item in random.Random(0).sample(long, 10)]
    assert all(hit is not None and hit.item.set == "tasks:boolean" for hit in found)
    with pytest.raises(UsageError, match="no family chess"):
        list(load_items("tasks:chess"))


def test_a_file_is_a_set(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text("\n".join(json.dumps({"question": item.text, "id": item.id}) for item in ITEMS), encoding="utf-8")
    assert [(item.id, item.text) for item in load_items(f"{path}#question")] == [(i.id, i.text) for i in ITEMS]
    with pytest.raises(UsageError, match=r"set\.jsonl:1: no text in the field 'text' .*FILE#FIELD"):
        list(load_items(str(path)))
