"""Tokens guessed ahead, to be verified in one step: where guesses come from without a second network, and how many pay.

A guess costs nothing but time. The sampler's noise is a function of (seed, index, step, token), so a row samples its
own token behind each guess, and goes on for as long as the guess is that token: the output is the one of plain steps.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qwen3.errors import UsageError

_LONGEST, _SHORTEST = 4, 2  # tokens that must have occurred before
_BITS = 16
_ODD, _ADD = 0x9E3779B1, 0x7F4A7C15


class NGram:
    """Prompt lookup: what followed the last occurrence of the newest tokens, in prompt or output, comes again.

    tokens: the sample's, looked at and not copied; its owner extends and cuts it. A table by hash says where n tokens,
    n = 2 to 4, last occurred; what is found there is compared with the tokens, so that neither a collision nor a token
    that was taken back does harm. A token costs the same whatever the length, and nothing before a guess is next asked
    for. Memory: a table of 256 KB.
    """

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self._entered = 0  # places before this one are in the table
        self._table = np.zeros(1 << _BITS, np.int32).data  # where a continuation begins; 0: none
        self._asked, self._hashes = -1, _hashes((), 0)  # the place that was asked about last

    def propose(self, count: int) -> list[int]:
        """Up to `count` tokens that may come next; [] if the last two are a new pair. What repeats itself right up to
        the end is taken to go on so."""
        tokens, table, end = self.tokens, self._table, len(self.tokens)
        if self._entered != end:
            self._enter(min(self._entered, end), end)
        self._asked, self._hashes = end, _hashes(tokens, end)
        n = len(self._hashes) + 1
        for place in reversed(self._hashes):
            start = table[place]
            if n <= start < end and tokens[start - n : start] == tokens[end - n :]:
                found = tokens[start : start + count]
                return (found * -(-count // len(found)))[:count]
            n -= 1
        return []

    def _enter(self, begin: int, end: int) -> None:
        """Let n-grams be found whose continuation is known by now."""
        tokens, table, self._entered = self.tokens, self._table, end
        first = end if end - begin <= 64 else max(begin, _LONGEST)
        for start in range(begin, first):
            for place in self._hashes if start == self._asked else _hashes(tokens, start):
                table[place] = start
        if first == end:
            return
        ids, value = np.asarray(tokens, dtype=np.uint64), np.zeros(end - first, np.uint64)
        starts, places = np.arange(first, end), np.asarray(table)
        for n in range(1, _LONGEST + 1):
            value = (value ^ ids[first - n : end - n]) * np.uint64(_ODD) + np.uint64(_ADD) & np.uint64(0xFFFFFFFF)
            value ^= value >> np.uint64(15)
            if n >= _SHORTEST:
                places[value >> np.uint64(32 - _BITS)] = starts  # of equal places the last assignment stays


def _hashes(tokens: Sequence[int], end: int) -> list[int]:
    """Places in the table of the last 2, 3 and 4 tokens before `end`, as far as there are so many."""
    value, found = 0, []
    for token in reversed(tokens[max(end - _LONGEST, 0) : end]):
        value = (value ^ token) * _ODD + _ADD & 0xFFFFFFFF
        value ^= value >> 15
        found.append(value >> (32 - _BITS))
    return found[_SHORTEST - 1 :]


# How many guesses pay

_HOPE = 0.85  # acceptance that is expected before anything is known
_FIRST = 2  # guesses of a step, at first
_MEMORY = 1 / 32  # weight of the newest guess in a sample's acceptance, once there were many
_WAIT = 16, 512  # steps until a sample's guesses are tried again, at first and at last
_LEAST = 1.02  # speed, in plain steps, that guessing must bring
_INCOME = 0.008  # of the time of steps without guesses, that may be spent on finding out whether guessing pays
_LOOKS = 16  # steps in which no guess was tried, until for some none is looked for
_PAUSE = 16, 64  # for how many, at first and at last
_CREDIT, _MOST = 1.0, 8.0  # plain steps' time that may be spent in advance, and that gains may add up to
_STAKE = 0.4  # plain steps' time that is there before guesses are tried again: about what a wrong one costs
_FADE = 0.95  # of the weight of measured steps, for each new one
_OUTLIER = 3.0  # a step that takes more than so many times what is expected was disturbed, and counts as this
_KNOWN = 3  # plain steps that are measured before the first with guesses
_STALE = 64  # steps with guesses until a plain one is measured again
_PRIORS = {"cuda": (0.06, 0.01)}
_CPU_PRIOR = (0.25, 0.1)
"""What guesses add to a step, as a share of a plain one, before it is measured: once, and for each guess."""


class Track:
    """One sample's acceptance. rates[j]: chance that its guess number j is right, those before being right. most:
    guesses of a step, few until as many were right at once."""

    __slots__ = ("_epoch", "_idle", "_seen", "_wait", "most", "rates")

    def __init__(self, rates: Sequence[float], epoch: int = 0) -> None:
        self.rates = [*rates]
        self.most, self._seen = _FIRST, 0
        self._idle, self._wait, self._epoch = 0, _WAIT[0], epoch

    def saw(self, drafted: int, accepted: int) -> None:
        weight = max(1 / (self._seen + 3), _MEMORY)
        self._seen += 1
        for j in range(min(accepted + 1, drafted, len(self.rates))):
            self.rates[j] += weight * ((j < accepted) - self.rates[j])
        for j in range(drafted, len(self.rates)):  # not tried: as the last one that was
            self.rates[j] += weight / 2 * (self.rates[drafted - 1] - self.rates[j])
        self._idle = 0
        if accepted:
            self._wait = _WAIT[0]
        if accepted >= self.most:
            self.most *= 2

    def idle(self) -> None:
        """A step in which guesses were at hand, and none was tried. After many the sample gets another chance."""
        self._idle += 1
        if self._idle >= self._wait:
            self._wait = min(2 * self._wait, _WAIT[1])
            self.hope(self._epoch)

    def hope(self, epoch: int) -> None:
        self.rates = [max(rate, _HOPE) for rate in self.rates]
        self.most, self._seen, self._idle = _FIRST, 0, 0
        self._epoch = epoch

    def chances(self, epoch: int, count: int) -> list[float]:
        """That guesses 1 … count are right, all before them included."""
        if self._epoch != epoch:
            self.hope(epoch)
        return [*itertools.accumulate(self.rates[: min(count, self.most)], operator.mul)]


class _Cost:
    """Time of steps over about so many rows: of a plain one, and what guesses add, as a share of it: fixed + slope *
    guesses, by least squares in which old steps fade. The prior weighs as much as a step, and stays."""

    def __init__(self, fixed: float, slope: float) -> None:
        self.fixed, self.slope = fixed, slope
        self.plain = 0.0  # seconds; 0: not known
        self.since = 0  # steps with guesses since a plain one
        self._plain, self._least = 0, math.inf  # the first few plain steps, and the fastest of them
        self._prior = np.mean([self._moments(extra, fixed + slope * extra) for extra in (1, 4, 8)], axis=0)
        self._sums = np.zeros(5)

    @staticmethod
    def _moments(extra: int, added: float) -> NDArray[np.float64]:
        return np.array([1.0, extra, extra * extra, added, added * extra])

    def of(self, extra: int) -> float:
        """A step's time, in plain steps."""
        return 1 + self.fixed + self.slope * extra if extra else 1.0

    def measure_plain(self, seconds: float) -> None:
        self.since = 0
        if self._plain < _KNOWN:
            self._plain += 1
            self._least = min(self._least, seconds)
            self.plain = self._least if self._plain == _KNOWN else 0.0
        else:
            self.plain += (min(seconds, _OUTLIER * self.plain) - self.plain) / 16

    def measure(self, extra: int, seconds: float) -> float:
        """The step's time, in plain steps."""
        self.since += 1
        time = min(seconds / self.plain, _OUTLIER * self.of(extra))
        self._sums = _FADE * self._sums + self._moments(extra, time - 1)
        n, x, xx, y, xy = (self._sums + self._prior).tolist()
        self.slope = max(0.0, (n * xy - x * y) / (n * xx - x * x))
        self.fixed = max(0.0, (y - self.slope * x) / n)
        return time


class Controller:
    """How many guesses each row verifies in the next step: as many as bring most tokens a second, by each sample's
    acceptance and by measured times; none where that is not 2 % more than plain steps bring.

    Beyond what it expects there is an account, in plain steps' time. It begins with one step. The time that guesses
    take is paid from it, right ones pay into it, and so does 0.8 % of the time without guesses, up to one step. Where
    it is empty no guesses are wanted until a wrong one can be paid again. So, however wrong the expectations, a stream
    loses less than 3 % and a few steps, and whether guesses have begun to pay is found out within a hundred steps.
    There is no clock and no randomness in it.

    longest: most guesses of a row. device: its type, for the prior. uniform: all rows verify equally many, and each
    costs `draft` of a plain step to make, by estimate (a draft model's). What is measured says better.
    """

    def __init__(self, longest: int, *, device: str = "cpu", uniform: bool = False, draft: float = 0.0) -> None:
        if longest < 1:
            raise UsageError(f"draft_tokens={longest} must be at least 1")
        self.longest, self.uniform = longest, uniform
        self.resting = False
        self._draft = draft
        self._prior = _PRIORS.get(device, _CPU_PRIOR)
        self._balance = _CREDIT
        self._epoch = 0  # rests that are over
        self._usual = Track([_HOPE] * longest)  # of all samples
        self._costs: dict[int, _Cost] = {}
        self._rows = 1
        self._idle = 0  # steps in a row in which no guess was tried, or, negative, how long none is looked for
        self._pause = _PAUSE[0]

    def track(self) -> Track:
        """For a new sample: it begins with what the others have."""
        return Track(self._usual.rates, self._epoch)

    def begin(self, rows: int) -> bool:
        """A step over so many decoding rows is next: whether guesses are wanted. To be called once for every step."""
        self._rows = rows
        cost = self._cost(rows)
        if not self.resting and self._balance < 0:
            self.resting = True
        elif self.resting and self._balance >= _STAKE:
            self.resting = False
            self._epoch += 1
            self._usual.hope(self._epoch)
        if self._idle < 0:
            self._idle += 1
            return False
        return not self.resting and cost.plain > 0 and cost.since < _STALE

    def lengths(self, tracks: Sequence[Track], available: Sequence[int] | None = None) -> list[int]:
        """For each row, how many guesses to verify. available: how many there are, at most; None: as many as wanted."""
        self._idle += 1
        if self._idle > _LOOKS:
            self._idle, self._pause = -self._pause, min(2 * self._pause, _PAUSE[1])
        if available is not None and not any(available):
            return [0] * len(tracks)
        rows, cost = max(self._rows, len(tracks)), self._cost(self._rows)
        most = [self.longest] * len(tracks) if available is None else [min(n, self.longest) for n in available]
        chances = [track.chances(self._epoch, n) for track, n in zip(tracks, most, strict=True)]
        # What may be added, the best first: the tokens it brings, the guesses it takes, and whose they are.
        if self.uniform:
            columns = itertools.zip_longest(*chances, fillvalue=0.0)
            offers = [(sum(column), len(tracks), -1) for column in columns]
        else:
            offers = sorted(((chance, 1, i) for i, row in enumerate(chances) for chance in row), reverse=True)
        best, taken, tokens, extra = _LEAST * rows, 0, float(rows), 0
        for number, (gain, guesses, _) in enumerate(offers, 1):
            tokens, extra = tokens + gain, extra + guesses
            if (speed := tokens / cost.of(extra)) > best:
                best, taken = speed, number
        if self.uniform:
            found = [min(taken, n) for n in most]
        else:
            found = [0] * len(tracks)
            for _, _, i in offers[:taken]:
                found[i] += 1
        for track, count, n in zip(tracks, found, most, strict=True):
            if n and not count:
                track.idle()
        if any(found):
            self._idle, self._pause = 0, _PAUSE[0]
        elif any(most):
            self._usual.idle()
        return found

    def saw(self, track: Track, drafted: int, accepted: int) -> None:
        """Of a row's `drafted` guesses the first `accepted` were right."""
        if drafted:
            track.saw(drafted, accepted)
            self._usual.saw(drafted, accepted)
            self._balance = min(self._balance + accepted / self._rows, _MOST)

    def timed(self, rows: int, tokens: int, seconds: float, *, waited: bool = False) -> None:
        """A step over `rows` decoding rows and nothing else, and `tokens` in all, took so long, the making of its
        guesses included. waited: it was planned after the last one's tokens were known, though it had no guesses, and
        steps that rest are not."""
        cost = self._cost(rows)
        if tokens > rows:
            if cost.plain:
                self._balance += 1 - _LEAST * cost.measure(tokens - rows, seconds)
            return
        if waited and cost.plain:
            self._balance += 1 - min(seconds / cost.plain, _OUTLIER)
        else:
            cost.measure_plain(seconds)
        if self._balance < _CREDIT:
            self._balance += _INCOME

    def charge(self, seconds: float) -> None:
        """Time that was spent for the sake of guesses beside the steps."""
        self._balance -= seconds / (self._cost(self._rows).plain or seconds)

    def _cost(self, rows: int) -> _Cost:
        size = rows if rows <= 4 else 1 << (rows - 1).bit_length()
        if size not in self._costs:
            fixed, slope = self._prior
            slope = slope / (1 + slope * (size - 1)) + self._draft / size
            self._costs[size] = _Cost(fixed + self._draft, slope)
        return self._costs[size]
