"""Cleaning takes away what says nothing, keeps what carries meaning, and counts both."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3.train.corpus.clean import clean


@pytest.mark.parametrize(
    ("text", "wanted", "counted"),
    [
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd", {"line ends": 3}),
        ("e\u200b\u0301", "é", {"documents not in NFC": 1, "invisible characters": 1}),
        ("a\x00b\x1b[0m\tc", "ab[0m\tc", {"control characters": 2}),
        ("\ufeffze\u200bro so\u00adft \u202eevil\u202c", "zero soft evil", {"invisible characters": 5}),
        ("ab\u200dc d\u200c", "abc d", {"invisible characters": 2}),
        ("می\u200cخواهم 👩\u200d👧 क्\u200dष", "می\u200cخواهم 👩\u200d👧 क्\u200dष", {}),
        ("itâ€™s cafÃ©", "itâ€™s cafÃ©", {"mojibake": 2}),
        ("a  \n\n\n\n\n\nb\t\n", "a\n\n\nb", {}),
        ("Skip to content\nText about cookies.\nShare on Facebook\n© 2020 Acme, Inc. All rights reserved.",
         "Text about cookies.", {"boilerplate lines": 3}),
        ("    indented = 1\n", "    indented = 1", {}),
    ],
)  # fmt: skip
def test_what_goes_and_what_stays(text: str, wanted: str, counted: dict[str, int]) -> None:
    assert clean(text) == (wanted, counted)


@given(st.text(st.characters(codec="utf-8"), max_size=80))
def test_it_is_normal_and_clean_texts_stay(text: str) -> None:
    once, _ = clean(text)
    assert unicodedata.is_normalized("NFC", once)
    assert "\r" not in once
    assert "\x00" not in once
    assert clean(clean(once)[0])[0] == clean(once)[0]
