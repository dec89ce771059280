"""Loops are found soon, nothing else is taken for one, and it costs next to nothing."""

from __future__ import annotations

import itertools
import json
import random
import time
import tracemalloc

import pytest

from qwen3.chat.loops import LoopDetector
from qwen3.errors import UsageError
from tests.tokenizer.random_text import random_text

NAMES = ["Ann", "Bob", "Cho", "Dev", "Eva", "Fay", "Gus", "Hal", "Ida", "Jon"]


def found_at(ids, detector: LoopDetector | None = None) -> int | None:
    """How many ids had been pushed when the loop was found."""
    detector = detector or LoopDetector()
    return next((n for n, id in enumerate(ids, 1) if detector.push(id)), None)


@pytest.mark.parametrize("period", [1, 2, 3, 4, 7, 16, 31, 32, 33, 64, 100, 223, 224, 225, 256, 257, 400, 511, 512])
def test_found_soon(tok, period):
    rng = random.Random(period)
    text = tok.encode("Let me check this again, step by step. The number of apples is 12, so 12 - 5 = 7.\n" * 2)
    for alphabet in (2, 100_000):
        unit = [rng.randrange(alphabet) for _ in range(period)]
        prefix = (text + [rng.randrange(alphabet) for _ in range(rng.randrange(3000))])[: rng.randrange(3000)]
        at = found_at(itertools.chain(prefix, itertools.islice(itertools.cycle(unit), 5000)))
        needed = max(256, 8 * period)
        assert at is not None
        assert at - len(prefix) <= needed + 15
        if alphabet > 2:  # a short alphabet may repeat in a shorter period, or begin in the prefix
            assert at - len(prefix) >= needed


def test_longer_periods_are_none():
    unit = list(range(513))
    assert found_at(unit * 40) is None
    assert found_at(unit * 40, LoopDetector(max_period=513)) is not None


def test_against_the_definition():
    """Small limits and small alphabets: every check agrees with the definition, word for word."""
    rng = random.Random(5)
    loops = 0
    for _ in range(3000):
        span, repeats, longest = rng.randrange(2, 30), rng.randrange(2, 6), rng.randrange(1, 12)
        ids: list[int] = []
        while len(ids) < 128:
            if rng.random() < 0.5:
                ids += [rng.randrange(rng.randrange(1, 4)) for _ in range(rng.randrange(1, 30))]
            else:
                ids += [rng.randrange(3) for _ in range(rng.randrange(1, 14))] * rng.randrange(2, 9)
        detector, looping = LoopDetector(span, repeats, longest), False
        for n, id in enumerate(ids, 1):
            if n % 16 == 0:
                for period in range(1, longest + 1):
                    tail = ids[max(n - max(span, repeats * period), 0) : n]
                    full = len(tail) == max(span, repeats * period)
                    looping = looping or (full and tail[period:] == tail[:-period])
            assert detector.push(id) == looping, (ids[:n], span, repeats, longest)
        loops += looping
    print(f"\n3,000 sequences, {loops} with loops")
    assert 500 < loops < 2900


def texts():
    rng = random.Random(3)
    yield "counting", "\n".join(map(str, range(10_001)))
    yield "counting on one line", ", ".join(map(str, range(10_001)))
    yield "steps", "\n\n".join(f"Step {i}: add {i} to the sum, which is now {i * (i + 1) // 2}." for i in range(1, 800))
    yield "multiplication table", "\n".join("".join(f"{a * b:6d}" for b in range(1, 31)) for a in range(1, 31))
    rows = (f"| {rng.choice(NAMES)} | {rng.randrange(100)} | {rng.random():.2f} | yes |" for _ in range(500))
    yield "markdown table", "| name | n | x | ok |\n|---|---|---|---|\n" + "\n".join(rows)
    objects = [{"id": i, "name": rng.choice(NAMES), "active": True, "tags": [], "parent": None} for i in range(500)]
    yield "JSON", json.dumps(objects)
    yield "indented JSON", json.dumps(objects, indent=2)
    yield "zeros but for the diagonal", json.dumps([[int(a == b) for b in range(60)] for a in range(60)])
    code = (
        "    if x == {0}:\n        total += 1\n        continue\n    else:\n        pass\n        pass\n        pass\n"
    )
    yield "code", "def f(x):\n" + "".join(code.format(i) for i in range(300))
    yield "closing brackets", ("{ " * 40 + "\n" + "}\n" * 40 + "\n") * 3 + "-" * 2000 + "\n" + "=" * 500 + "\n" * 50
    yield "assertions", "".join(f"    assertEquals({i}, f({i}));\n" for i in range(1000))
    yield (
        "refrain",
        "\n".join(f"{n} bottles of beer on the wall, take one down, pass it around" for n in range(500, 0, -1)),
    )
    yield "random", "".join(random_text(rng) for _ in range(1500))


@pytest.mark.parametrize(("kind", "text"), list(texts()), ids=[kind for kind, _ in texts()])
def test_no_loop(tok, kind, text):
    ids = tok.encode(text)
    assert found_at(ids) is None
    # and the same text, given out again and again, is one
    unit = ids[:300]
    assert found_at(unit * 9) is not None


def test_real_ones(tok):
    for line in (
        "Wait, let me check that again.\n\n",
        "no ",
        "So 3 + 4 = 7. Then 7 + 1 = 8. Hmm, but 3 + 4 = 7. ",
        "\n",
    ):
        prefix = tok.encode("I need the sum of the first ten primes. ")
        unit = tok.encode(line)
        at = found_at(prefix + unit * 600)
        assert at is not None
        assert at <= len(prefix) + max(256, 8 * len(unit)) + 15


def test_stays_until_reset():
    detector = LoopDetector()
    assert found_at([1] * 300, detector) is not None
    assert detector.push(2)
    detector.reset()
    assert not detector.push(1)
    assert found_at([1] * 240, detector) is None


@pytest.mark.parametrize("kind", ["random", "counting", "runs"])
def test_flat_cost(kind):
    rng = random.Random(1)
    ids = {
        "random": [rng.randrange(151_643) for _ in range(100_000)],
        "counting": [x for i in range(20_000) for x in (15 + i // 1000, 15 + i % 1000, 11, 13, 220)],
        "runs": [x for _ in range(400) for x in [5] * 249 + [rng.randrange(151_643)]],  # each almost a loop
    }[kind]
    detector = LoopDetector()
    times = []
    for part in range(0, 100_000, 25_000):
        start = time.process_time()
        assert found_at(ids[part : part + 25_000], detector) is None
        times.append((time.process_time() - start) / 25_000 * 1e6)
    print(f"\n{kind}: {', '.join(f'{t:.2f}' for t in times)} µs a token")
    assert max(times) < 10
    assert times[-1] < 4 * times[0] + 1


def test_bounded_memory():
    detector = LoopDetector()
    for id in range(10_000):
        detector.push(id)
    tracemalloc.start()
    for id in range(100_000):
        detector.push(id)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"\nkept {kept} bytes, peak {peak}")
    assert peak < 100_000


@pytest.mark.parametrize("field", ["min_span", "min_repeats", "max_period"])
@pytest.mark.parametrize("value", [0, -1, 2.5, True, None])
def test_bad_limits(field, value):
    with pytest.raises(UsageError, match=field):
        LoopDetector(**{field: value})
