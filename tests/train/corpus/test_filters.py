"""Each rule of each filter drops what it is for and passes what comes near; masks hide what is private alone."""

from __future__ import annotations

import base64
import pickle
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3.train.corpus.documents import Document, Filter
from qwen3.train.corpus.filters.c4 import C4
from qwen3.train.corpus.filters.code import Code
from qwen3.train.corpus.filters.fineweb import FineWeb
from qwen3.train.corpus.filters.gopher import Gopher
from qwen3.train.corpus.filters.heuristics import Heuristics
from qwen3.train.corpus.filters.private import Private
from qwen3.train.corpus.filters.repetition import Repetition
from qwen3.train.corpus.filters.sanity import Sanity
from qwen3.train.corpus.filters.urls import Urls

PROSE = """The river rises in the hills to the north of the town, and it reaches the sea after forty miles.
Most of its water comes from melting snow, so that its level in spring is twice that of autumn. Farmers have used it
for centuries; they dug canals, built mills and kept records of every flood that took their bridges away.

When the railway came, trade on the water ended. A few boats still carry visitors to the old harbour, where a small
museum shows how grain was weighed, taxed and shipped. "We want people to be curious," says its director.

The valley is known for birds as well. Herons nest on the islands, and with some luck you can see a kingfisher.
"""
CHINESE = (
    "这条河发源于城市北部的山区，流经四十英里后注入大海。河水主要来自融雪，因此春天的水位是秋天的两倍。"
    "几个世纪以来，农民一直利用它灌溉田地，修建水渠和磨坊，并记录每一次冲毁桥梁的洪水。铁路开通以后，水上贸易就结束了。"
)
HINDI = "नदी शहर के उत्तर की पहाड़ियों से निकलती है और चालीस मील बाद समुद्र में मिल जाती है। "
ALL = (
    Sanity(),
    Gopher(min_words=10),
    Repetition(),
    C4(sentences=1),
    FineWeb(),
    Private(),
    Urls(),
    Code(),
    Heuristics(),
)
FLAT = "\n\n".join(part.replace("\n", " ") for part in PROSE.strip().split("\n\n"))
BLOB = base64.b64encode(random.Random(0).randbytes(6000)).decode()
NOISE = "".join(random.Random(0).choices([chr(code) for code in range(33, 127)], k=3000))


def reason(judge: Filter, text: str, name: str = "x.txt", language: str = "") -> str | None:
    found = judge(Document(text, name, language=language))
    return found if isinstance(found, str) else None


@pytest.mark.parametrize("judge", ALL, ids=lambda judge: judge.name)
@pytest.mark.parametrize("text", [FLAT, CHINESE], ids=["english", "chinese"])
def test_prose_of_any_language_passes_unchanged(judge: Filter, text: str) -> None:
    document = Document(text.strip(), "x.txt")
    assert judge(document) == document
    assert pickle.loads(pickle.dumps(judge)) == judge


@given(st.text(st.characters(codec="utf-8"), max_size=200), st.sampled_from(["x.txt", "x.py"]), st.integers(1, 40))
def test_any_text_is_judged_the_same_twice(text: str, name: str, times: int) -> None:
    loose = (Gopher(min_words=0, min_stop_words=0), Code(min_lines=0))
    for judge in (*ALL, *loose):
        document = Document(text * times, name)
        found = judge(document)
        assert found == judge(document)
        assert isinstance(found, str) or (found.id, found.source) == (name, "")


def test_scripts_with_signs_are_letters() -> None:
    assert reason(Sanity(), HINDI) is None
    assert reason(Gopher(min_words=10), HINDI) is None


@pytest.mark.parametrize(
    ("judge", "text", "wanted"),
    [
        (Sanity(), " \n", "empty"),
        (Sanity(), PROSE + "\ufffd" * 3, "unreadable characters"),
        (Sanity(), "-=-=-=- 42 *** //// ----", "few letters"),
        (Sanity(), BLOB[:4000] + PROSE, "encoded data"),
        (Gopher(), "Only a few words here.", "too few words"),
        (Gopher(max_words=60), PROSE, "too many words"),
        (Gopher(), PROSE + "# " * 30, "too many symbols"),
        (Gopher(), "\n".join(f"- the line and that {i}" for i in range(30)), "bullet list"),
        (Gopher(), "\n".join(f"the line and that of {i} goes on to be a very long one and then it is read more..."
                             for i in range(9)), "lines end in ellipses"),
        (Gopher(), "the and " + "12 345 6,78 " * 30, "few words with letters"),
        (Gopher(), "a be to of " * 20, "mean length of words"),
        (Gopher(), "Menu Home Products Contact Imprint " * 12, "few stop words"),
        (Repetition(), "same line again\n" * 3 + "another", "repeated lines"),
        (Repetition(), "A paragraph.\n\n" * 3 + "Another.", "repeated lines"),
        (Repetition(), "one thing " * 9 + PROSE[:200], "frequent 2-gram"),
        (Repetition(), f"{FLAT[:300]} so {FLAT[:300]} then", "repeated 5-grams"),
        (C4(), "Lorem ipsum dolor sit amet.", "lorem ipsum"),
        (C4(), "function() { return 1; }", "curly bracket"),
        (C4(), "Home\nAbout us\nContact", "no line left"),
        (C4(), "There is only one sentence here.", "too few sentences"),
        (FineWeb(), "\n".join(f"a line without any mark at its end {i}" for i in range(9)),
         "few lines end in punctuation"),
        (FineWeb(), "A line that is said again and again.\n" * 4, "duplicated lines"),
        (FineWeb(), "\n".join(f"Item {i}." for i in range(20)), "short lines"),
        (Urls(), "see https://example.com/a/very/long/path/to/nowhere and that", "mostly addresses"),
        (Heuristics(), "all the same words again. " * 80, "says one thing over and over"),
        (Heuristics(), NOISE, "noise"),
        (Heuristics(entropy=5.5), PROSE, "few different words"),
        (Heuristics(), PROSE.upper(), "capitals"),
    ],
)  # fmt: skip
def test_what_each_rule_drops(judge: Filter, text: str, wanted: str) -> None:
    assert reason(judge, text) == wanted


SOURCE = "import os\n\n\ndef size(path):\n    return os.path.getsize(path)\n"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (SOURCE, None),
        ("x = 1\n", "too few lines"),
        (SOURCE * 3 + f"data = '{'x' * 1200}'\n", "a line is too long"),
        ("\n".join("x = " + "a + " * 40 + "b" for _ in range(9)), "lines are too long"),
        ("{[()]}\n" * 9 + "== !! == ??\n" * 9, "few letters and digits"),
        ("# This file is generated, do not edit.\n" + SOURCE, "generated file"),
    ],
)
def test_source_files_have_rules_of_their_own(text: str, wanted: str | None) -> None:
    assert reason(Code(), text, "package/module.py") == wanted
    assert reason(Code(), text, "notes.txt") is None
    if wanted is None:
        assert all(reason(judge, text, "package/module.py.gz") is None for judge in ALL)


def test_stop_words_are_asked_of_english_alone() -> None:
    german = "Der Fluss entspringt in den Bergen nördlich der Stadt und mündet nach vierzig Meilen ins Meer. " * 5
    assert reason(Gopher(), german) == "few stop words"
    assert reason(Gopher(), german, language="de") is None
    russian = "Река берёт начало на холмах к северу от города и впадает в море через сорок миль. " * 5
    assert reason(Gopher(), russian) is None


def test_c4_keeps_lines_that_are_sentences() -> None:
    found = C4(sentences=1)(Document(f"Home\n{PROSE}\nWe use cookies to make this site better for you.\nMenu", "x"))
    assert isinstance(found, Document)
    assert "Home" not in found.text
    assert "cookies" not in found.text
    assert "Herons nest on the islands" in found.text


def test_addresses_are_masked_and_what_looks_like_them_is_not() -> None:
    text = (
        "Mail jane.doe@acme.co.uk or me@example.com; 8.8.8.8 and 192.168.1.1, version 1.2.3.4.5, "
        "2606:4700:4700::1111 and fe80::1, at 12:30:45, std::vector."
    )
    found = Private()(Document(text, "x"))
    assert isinstance(found, Document)
    assert found.text == (
        "Mail name@example.com or me@example.com; 192.0.2.1 and 192.168.1.1, version 1.2.3.4.5, "
        "2001:db8::1 and fe80::1, at 12:30:45, std::vector."
    )


def test_secrets_are_cut_from_addresses() -> None:
    text = f"{PROSE} https://bob:hunter2@acme.com/x?id=3&api_key=abc123&utm_source=mail (http://acme.com/?q=1)"
    found = Urls()(Document(text, "x"))
    assert isinstance(found, Document)
    assert found.text.endswith("https://acme.com/x?id=3&api_key=…&utm_source=… (http://acme.com/?q=1)")
