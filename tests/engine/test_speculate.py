"""Prompt lookup against a search through the tokens, and the controller in a world made of chances and costs."""

from __future__ import annotations

import random
import sys
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3.engine.speculate import Controller, NGram
from qwen3.errors import UsageError


def searched(tokens: list[int], count: int) -> list[int]:
    """What `NGram.propose` says, by its words."""
    for n in (4, 3, 2):
        for start in range(len(tokens) - 1, n - 1, -1):
            if tokens[start - n : start] == tokens[-n:]:
                found = list(tokens)
                while len(found) < len(tokens) + count:
                    found.append(found[start + len(found) - len(tokens)])
                return found[len(tokens) :]
    return []


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2), max_size=300), st.integers(1, 6), st.integers(0, 300), st.integers(0, 2**32))
def test_a_guess_is_what_followed_the_last_occurrence(tokens: list[int], count: int, prompt: int, seed: int) -> None:
    rng = random.Random(seed)
    found, place = NGram(tokens[:prompt]), min(prompt, len(tokens))
    while place < len(tokens):
        if rng.random() < 0.5:
            assert found.propose(count) == searched(found.tokens, count)
        step = rng.choice((1, 1, 3, 100))
        found.tokens.extend(tokens[place : place + step])
        place = min(place + step, len(tokens))
    assert found.propose(count) == searched(tokens, count)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=8, max_size=200), st.data())
def test_what_was_taken_back_is_no_guess(tokens: list[int], data: st.DataObject) -> None:
    """Older occurrences may be lost with it; what is found is there."""
    found = NGram(tokens)
    found.propose(1)
    del tokens[data.draw(st.integers(0, len(tokens))) :]
    if data.draw(st.booleans()):
        found.propose(1)
    found.tokens.extend(data.draw(st.lists(st.integers(0, 2), max_size=80)))
    guess, whole = found.propose(3), found.tokens
    ends = [end for end in range(2, len(whole)) if whole[end - 2 : end] == whole[-2:]]
    assert not guess or any((whole[end:] * 3)[:3] == guess for end in ends)


def test_rare_ids_and_ids_beyond_32_bits_of_hash_do_no_harm() -> None:
    tokens = [151_935, 0, 151_935, 0]
    assert NGram(tokens).propose(3) == [151_935, 0, 151_935]
    assert NGram([7]).propose(4) == []
    assert NGram([]).propose(4) == []


def test_a_token_costs_the_same_whatever_the_length() -> None:
    rng = random.Random(0)
    found = NGram([rng.randrange(1000) for _ in range(100_000)])
    found.propose(4)
    looked = []
    for size in (100_000, 150_000):
        found.tokens.extend([rng.randrange(1000) for _ in range(size - len(found.tokens))])
        found.propose(4)
        found.tokens.extend([5, 6])
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(count)
        found.propose(4)
        sys.setprofile(None)
        looked.append(calls)
    assert max(looked) < 100
    assert found._table.nbytes == 1 << 18  # whatever the length


def speed(
    chance: list[float], fixed: float, slope: float, *, tokens: int = 3000, most: int = 4, rows: int = 1,
    always: int | None = None, switch: list[float] | None = None, seed: int = 0, **options: object,
) -> float:  # fmt: skip
    """Tokens of a row in a plain step's time. A step takes 1 + fixed + slope * guesses; chance: of each row; switch:
    the chances of the second half; always: guesses that each row makes, whatever the controller says."""
    rng, control = random.Random(seed), Controller(most, **options)  # type: ignore[arg-type]
    tracks, time, done = [control.track() for _ in range(rows)], 0.0, 0
    while done < tokens * rows:
        wanted, now = control.begin(rows), switch if switch and done > tokens * rows / 2 else chance
        counts = control.lengths(tracks) if wanted else [0] * rows
        counts = counts if always is None else [always] * rows
        taken = 1 + fixed + slope * sum(counts) if sum(counts) else 1.0
        for track, count, p in zip(tracks, counts, now, strict=True):
            right = next((j for j in range(count) if rng.random() >= p), count)
            control.saw(track, count, right)
            done += 1 + right
        time += taken
        control.timed(rows, rows + sum(counts), taken / 250)
    return done / rows / time


COSTS = {"cheap": (0.05, 0.02), "as expected": (0.1, 0.12), "costly": (0.5, 0.5), "absurd": (3.0, 2.0)}


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("uniform", [False, True])
def test_hostile_streams_lose_less_than_three_percent(cost: str, uniform: bool) -> None:
    fixed, slope = COSTS[cost]
    for chance in (0.0, 0.1, 0.25):
        for rows in (1, 8):
            found = speed([chance] * rows, fixed, slope / rows, rows=rows, tokens=1000, uniform=uniform)
            assert found >= 0.97, (chance, rows)


@pytest.mark.parametrize("cost", ["cheap", "as expected"])
@pytest.mark.parametrize("chance", [0.5, 0.7, 0.9])
def test_friendly_streams_are_near_the_best_fixed_number(cost: str, chance: float) -> None:
    fixed, slope = COSTS[cost]
    best = max(speed([chance], fixed, slope, always=n) for n in range(5))
    assert speed([chance], fixed, slope) >= 0.9 * best > 1.15


def test_a_draft_model_at_its_usual_cost_and_acceptance() -> None:
    """The 0.6B before the 8B costs an eighth of a step, its guesses are right four times of five."""
    best = max(speed([0.8], 0.18, 0.14, always=n) for n in range(5))
    assert speed([0.8], 0.18, 0.14, device="cuda", uniform=True, draft=0.125) >= 0.95 * best > 1.6


def test_rows_get_what_their_own_acceptance_is_worth() -> None:
    chances = [0.95, 0.95, 0.05, 0.05]
    alone = max(speed(chances, 0.1, 0.12, rows=4, always=n) for n in range(5))
    assert speed(chances, 0.1, 0.12, rows=4) > 1.1 * alone


def test_a_stream_that_turns_costs_little_and_is_noticed() -> None:
    fixed, slope = COSTS["as expected"]
    half = speed([0.9], fixed, slope, tokens=1000)
    turned = speed([0.9], fixed, slope, tokens=2000, switch=[0.0])
    assert turned > 2 / (1 / half + 1 / 0.97) * 0.98
    back = speed([0.0], fixed, slope, tokens=2000, switch=[0.9])
    assert back > 2 / (1 / 0.97 + 1 / half) * 0.9


def test_short_streams_after_hostile_ones_are_tried_again() -> None:
    control = Controller(4)
    for chance in (0, 4):
        tried = []
        for _ in range(400):
            track = control.track()
            for _ in range(8):
                counts = control.lengths([track]) if control.begin(1) else [0]
                control.saw(track, counts[0], min(chance, counts[0]))
                control.timed(1, 1 + counts[0], 0.004 * (1 + 0.2 * counts[0]))
                tried.append(counts[0])
        share = sum(n > 0 for n in tried) / len(tried)
        assert share < 0.1 if not chance else share > 0.5


def test_a_lockstep_that_brings_nothing_ends() -> None:
    """Where steps that rest overlap, waiting for guesses costs time even if none is found."""
    control, taken, rests = Controller(4, device="cuda"), 0.0, []
    track = control.track()
    for _ in range(2000):
        wanted = control.begin(1)
        if wanted:
            control.lengths([track], [0])
        seconds = 1.15 if wanted else 1.0
        control.timed(1, 1, seconds, waited=wanted)
        taken += seconds
        rests.append(not wanted)
    assert 2000 / taken > 0.98
    assert sum(a != b for a, b in pairwise(rests)) < 100  # and begins and ends in long runs


def test_steps_that_were_disturbed_change_little() -> None:
    control = Controller(4)
    track = control.track()
    for step in range(300):
        counts = control.lengths([track]) if control.begin(1) else [0]
        control.saw(track, counts[0], counts[0])
        control.timed(1, 1 + counts[0], (1.0 if step % 50 == 7 else 0.004) * (1 + 0.1 * counts[0]))
    assert control.lengths([track]) == [4]


def test_nothing_at_hand_is_nothing_drafted() -> None:
    control = Controller(4)
    for _ in range(3):
        assert not control.begin(2)  # plain steps are measured first
        control.timed(2, 2, 0.004)
    assert control.begin(2)
    tracks = [control.track(), control.track()]
    assert control.lengths(tracks, [0, 0]) == [0, 0]
    assert control.lengths(tracks, [1, 9])[0] <= 1


def test_bad_numbers() -> None:
    with pytest.raises(UsageError, match="draft_tokens=0"):
        Controller(0)
