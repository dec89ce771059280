"""Asking a suite of a model: every item so often, each answer scored as it comes and written down."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from qwen3 import __version__, sandbox
from qwen3.checkpoint.journal import write_atomic
from qwen3.errors import Qwen3Error, RemoteError, UsageError
from qwen3.evaluate.crowd import Progress, Say
from qwen3.evaluate.machine import commit
from qwen3.evaluate.runs.record import FORMAT, PAGE, RESULT, Record, Run, Store, opened, read_run, write_json
from qwen3.evaluate.runs.talk import Talk
from qwen3.evaluate.types import Answer, Item, Score, Suite, score_answer

_SCORERS = 2  # threads; what scores for long (code, mathematics) does so in processes of its own
_UNSCORED = 32  # answers that wait for one: more would be lost by a kill
_ALL_FAILED = 20  # failures in a row, with nothing between, that end a run

FLAGS = {
    "leak": "thoughts with their tags stood in the content (the server has no parser for reasoning); they were taken "
    "out before scoring, and a client of this server would see them",
    "estimated": "tokens are estimated: the server did not say how many were thought",
    "over-budget": "thought more than the budget: the server does not hold to thinking_budget",
    "thought": "thought although it was told not to",
    "loop": "repeated itself without end, and was ended as if at the limit",
    "context": "ended by the model's context before --max-tokens",
}
"""What each flag of a sample means, for the reader of a run."""


class Model(Protocol):
    """What answers: `InProcess` or `Endpoint`."""

    @property
    def mode(self) -> str | None: ...
    @property
    def budget(self) -> int | None: ...
    @property
    def thinks(self) -> bool: ...
    def bound(self, budget: int | None) -> None: ...
    def sampling(self, wish: dict[str, Any]) -> dict[str, Any]: ...
    def head(self) -> dict[str, Any]: ...
    def answers(self, talks: Iterator[Talk], sampling: dict[str, Any]) -> Iterator[Talk]: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Wish:
    """What is asked for beyond the suite's own way. samples: per item, None: the suite's. limit: items, a subset that
    `seed` chooses. data: file, folder or settings as the suite's `load` takes them. sampling: fields of SamplingParams
    that are set. prices: fields of `cost.Prices`. judge: who judges, for the record."""

    samples: int | None = None
    limit: int | None = None
    data: str | None = None
    seed: int = 1
    sampling: Mapping[str, Any] = field(default_factory=dict)
    prices: Mapping[str, float] = field(default_factory=dict)
    judge: str | None = None
    command: str = ""


def check_needs(suite: Suite) -> None:
    """Raises UsageError where a package that scores the suite is not installed: now, not after the first answers."""
    for name in suite.needs:
        if name == "sandbox":
            sandbox.require()
        elif name != "judge":
            try:
                metadata.version(name)
            except metadata.PackageNotFoundError:
                raise UsageError(f"{suite.name} needs the package {name}: pip install 'qwen3[eval]'") from None


def items_of(suite: Suite, wish: Wish) -> list[Item]:
    """The items that are asked. Raises UsageError where there are none, or two with the same id."""
    items = list(suite.load(wish.data))
    if not items:
        raise UsageError(f"{suite.name}: there are no items{f' in {wish.data}' if wish.data else ''}")
    if twice := [id for id, count in Counter(item.id for item in items).items() if count > 1]:
        raise UsageError(f"{suite.name}: two items have the id {twice[0]!r}")
    if wish.limit is not None and wish.limit < len(items):
        kept = set(random.Random(f"{wish.seed}/limit").sample(sorted(item.id for item in items), wish.limit))
        items = [item for item in items if item.id in kept]
    return items


def head_of(suite: Suite, items: Sequence[Item], model: Model, wish: Wish) -> dict[str, Any]:
    """`run.json`: all that is needed to ask the same again."""
    usual = {name: value for name, value in asdict(suite.sampling).items() if name != "samples"}
    given = {name: value for name, value in wish.sampling.items() if value is not None}
    each = wish.samples or suite.sampling.samples
    answering = model.head()
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps(asdict(item), sort_keys=True, default=str).encode() + b"\n")
    return {
        "format": FORMAT,
        "suite": suite.name,
        "title": suite.title,
        "headline": suite.headline,
        "mode": model.mode or "default",
        "budget": model.budget,
        "samples": each,
        "limit": wish.limit,
        "seed": wish.seed,
        "data": wish.data,
        "items": {"count": len(items), "sha256": digest.hexdigest()},
        "groups": list(suite.groups),
        "sampling": model.sampling({**usual, **given}),
        **answering,
        "concurrency": min(answering["concurrency"], len(items) * each),
        "prices": dict(wish.prices),
        "judge": wish.judge if "judge" in suite.needs else None,
        "engine": f"qwen3 {__version__}",
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": wish.command,
    }


def evaluate(
    suite: Suite,
    model: Model,
    wish: Wish,
    folder: Path,
    say: Say = lambda line: None,
    items: Sequence[Item] | None = None,
) -> Run:
    """Asks what the run in `folder` does not have yet, and gives the whole run. Samples that failed are asked again.
    items: of `items_of`, where they are loaded already.

    Raises UsageError as `opened` and `items_of` do, RemoteError where a server refuses or fails every time; what has
    been answered stays, and the same call goes on.
    """
    items = items_of(suite, wish) if items is None else items
    head = head_of(suite, items, model, wish)
    with opened(folder, head, say) as store:
        keys = [(item, k) for item in items for k in range(head["samples"])]
        have = {key for key, record in store.done.items() if record["score"]["outcome"] != "failed"}
        todo = [(item, k) for item, k in keys if (item.id, k) not in have]
        if len(todo) < len(keys):
            say(f"{suite.name}: {len(keys) - len(todo):,} of {len(keys):,} samples are there already")
        start = time.monotonic()
        if todo and store.head.get("seconds") is not None:  # of a run in one piece alone
            store.say("seconds", None)
        talks = (Talk.of(suite, item, k, wish.seed, model.thinks) for item, k in todo)
        try:
            _ask(suite, model, talks, store, Tally(suite.name, len(keys), len(todo), store, wish.prices, say))
        except (KeyboardInterrupt, Qwen3Error):
            say(f"{len(store.done):,} of {len(keys):,} samples are in {folder}; the same command goes on")
            raise
        if len(todo) == len(keys):
            store.say("seconds", round(time.monotonic() - start, 3))
    return read_run(folder)


def _ask(suite: Suite, model: Model, talks: Iterator[Talk], store: Store, tally: Tally) -> None:
    scoring: list[tuple[Talk, Answer, Future[Score]]] = []
    row = 0

    def settle(most: int) -> None:
        while scoring and (len(scoring) > most or scoring[0][2].done()):
            talk, answer, future = scoring.pop(0)
            try:
                score = future.result()
            except Qwen3Error:  # a package that is not there, a sandbox that cannot be made
                raise
            except Exception as error:
                raise RuntimeError(f"scoring {suite.name}, item {talk.item.id}: {error!r}") from error
            record = _record(talk, answer, score)
            store.add(record)
            tally.add(record)

    with ThreadPoolExecutor(_SCORERS) as scorers:
        answers = model.answers(talks, store.head["sampling"])
        try:
            for talk in answers:
                answer = talk.answer
                row = row + 1 if answer.error else 0
                scoring.append((talk, answer, scorers.submit(score_answer, suite, talk.item, answer)))
                settle(_UNSCORED)
                if row >= _ALL_FAILED:
                    raise RemoteError(f"{row} samples in a row failed, the last one with: {answer.error}")
        finally:
            if close := getattr(answers, "close", None):
                close()
            settle(0)


def _record(talk: Talk, answer: Answer, score: Score) -> Record:
    """A line of samples.jsonl."""
    return {
        "item": talk.item.id,
        "sample": talk.sample,
        "about": dict(talk.item.about),
        "answer": asdict(answer),
        "score": asdict(score),
        **({"flags": flags} if (flags := talk.flags) else {}),
    }


class Tally:
    """What a run says of itself while it goes: samples, mean score, tokens, money, time left."""

    def __init__(self, name: str, total: int, todo: int, store: Store, prices: Mapping[str, float], say: Say) -> None:
        self.name, self.total, self.prices = name, total, prices
        self.progress = Progress(todo, say)
        self.done = self.tokens_in = self.tokens_out = 0
        self.value = 0.0
        for record in store.done.values():
            self._count(record)
        self.done = total - todo

    def _count(self, record: Record) -> None:
        answer = record["answer"]
        self.value += record["score"]["value"]
        self.tokens_in += answer["prompt_tokens"] or 0
        self.tokens_out += (answer["thinking_tokens"] or 0) + (answer["answer_tokens"] or 0)

    def add(self, record: Record) -> None:
        self.done += 1
        self._count(record)
        cost = self.tokens_in * self.prices.get("input", 0) / 1e6 + self.tokens_out * self.prices.get("output", 0) / 1e6
        money = f", cost {cost:.2f}" if cost else ""
        told = f"{self.done:,}/{self.total:,} samples, {100 * self.value / self.done:.1f} so far"
        self.progress.add(1, f"{self.name}: {told}, {self.tokens_out:,} tokens{money}")


def remarks(run: Run) -> list[str]:
    """What the flags of its samples say to a reader of the run's figures, one line each."""
    flags = Counter(flag for record in run.samples for flag in record.get("flags", ()))
    return [f"{count:,} of {len(run.samples):,} samples: {FLAGS[flag]}" for flag, count in sorted(flags.items())]


def summarised(run: Run) -> dict[str, Any]:
    """What `result.json` holds: the summary, whose cautions begin with the remarks."""
    from qwen3.evaluate import summary

    result = summary.summarise(run)
    return {**result, "cautions": [*remarks(run), *result["cautions"]]}


def finish(run: Run, folder: Path) -> dict[str, Any]:
    """Sums the run up, and writes that as `result.json` and `report.html`."""
    result = summarised(run)
    write_json(folder / RESULT, result)
    write_page(folder / PAGE, [result])
    return result


def write_page(path: Path, results: list[dict[str, Any]]) -> None:
    """The report of some results."""
    from qwen3.evaluate import report

    write_atomic(path, [report.page(results).encode()])
