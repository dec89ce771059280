"""Speculation changes no token: guesses of either kind, always tried, against plain steps; on the host, and with a
device that chooses (in Triton's interpreter, eager steps in the place of captured rounds)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from qwen3.chat.policy import ThinkingPolicy
from qwen3.chat.stream import TokenStream
from qwen3.engine import Engine, Request, SamplingParams, pickers
from qwen3.engine.constraint import Constraint
from qwen3.engine.draft import DraftModel
from qwen3.engine.rounds import Round, Rounds
from qwen3.engine.speculate import Controller
from qwen3.model import Qwen3
from qwen3.tokenizer import Tokenizer
from tests.engine.overlapped import _Done, _Picked, blank, overlapped
from tests.fixtures import random_model, tiny_config

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
RULES: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0},
    {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0},
    {"temperature": 0.8, "top_p": 0.9, "top_k": 0, "min_p": 0.02, "presence_penalty": 1.0},
]


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many guesses as there are, whatever they cost."""
    begin = Controller.begin

    def lengths(self: Controller, tracks: Sequence[Any], available: Sequence[int] | None = None) -> list[int]:
        most = [self.longest] * len(tracks) if available is None else available
        return [min(self.longest, n) for n in most]

    monkeypatch.setattr(Controller, "begin", lambda self, rows: begin(self, rows) or True)
    monkeypatch.setattr(Controller, "lengths", lengths)


def requests(
    count: int,
    longest: int,
    tokenizer: Tokenizer | None = None,
    constraint: Constraint | None = None,
    logit_bias: dict[int, float] | None = None,
) -> list[Request]:
    """Prompts of few different tokens, so that prompt lookup finds something; with a tokenizer, a stream each."""
    found = []
    for seed in range(count):
        rng = random.Random(seed)
        few = [rng.randrange(300, 608) for _ in range(4)]
        ids = [rng.choice(few) for _ in range(rng.randrange(5, 40))]
        given = {"seed": seed, "max_tokens": rng.randrange(1, longest), "ignore_eos": tokenizer is None}
        params = SamplingParams(**given, **RULES[seed % 4], logit_bias=logit_bias).resolved("instruct")
        stream = None
        if tokenizer is not None:
            matcher = None if constraint is None else constraint.matcher(tokenizer)
            stream = TokenStream(tokenizer, ids, ThinkingPolicy(budget=5) if seed % 2 else None, matcher=matcher)
        found.append(Request(ids, params, stream))
    return found


def run(engine: Engine, asked: list[Request]) -> list[list[int]]:
    for one in asked:
        engine.add(one)
    for _ in range(1000):
        if not engine.has_work:
            break
        engine.advance()
    assert [one.error for one in asked] == [None] * len(asked)
    assert engine.used_blocks == 0
    return [one.output for one in asked]


def counted(engine: Engine) -> list[tuple[int, int]]:
    """(guesses, right ones) of each verification to come."""
    found: list[tuple[int, int]] = []
    inner = engine._verify

    def verify(drafted: Any) -> int:
        right = inner(drafted)
        found.append((len(drafted.tokens), right))
        return right

    engine._verify = verify  # type: ignore[method-assign]
    return found


def ways(model: Qwen3) -> dict[str, Any]:
    small = random_model(tiny_config(num_hidden_layers=1), seed=2)
    return {"ngram": "ngram", "draft": DraftModel(small), "itself": DraftModel(model)}


@pytest.mark.parametrize("way", ["ngram", "draft", "itself"])
@pytest.mark.parametrize("blocks", [60, 24])
def test_the_host_says_the_same(way: str, blocks: int) -> None:
    """In few blocks samples are preempted."""
    model = random_model(tiny_config(), seed=1)
    options: dict[str, Any] = {"vocab_size": 634, "max_batch": 6, "blocks": blocks, "max_len": 200}
    expected = run(Engine(model, **options), requests(20, 60))
    engine = Engine(model, **options, speculation=ways(model)[way], draft_tokens=4)
    verified = counted(engine)
    assert run(engine, requests(20, 60)) == expected
    guessed, right = map(sum, zip(*verified, strict=True))
    assert right > (0.9 if way == "itself" else 0) * guessed


@pytest.mark.parametrize(
    ("way", "what"),
    [
        ("ngram", "text"),
        ("draft", "text"),
        ("itself", "text"),
        ("ngram", "schema"),
        ("draft", "schema"),
        ("ngram", "calls"),
        ("itself", "calls"),
        ("ngram", ""),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="in the interpreter")
def test_a_device_says_the_same(way: str, what: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text, answers bound by a grammar, and samples that the host does not follow."""
    rounds = 0
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}
    constraint, eager = None, None
    if what == "schema":
        constraint = Constraint.json_schema(schema)
    elif what == "calls":  # a guess behind `<tool_call>` was drawn without the grammar
        constraint = Constraint.text_then_calls([{"name": "f", "parameters": {"properties": {"a": schema}}}])
        eager = {tokenizer.control.tool_call: 5.0}

    def asked() -> list[Request]:
        return requests(4, 24 if eager else 14, tokenizer if what else None, constraint, eager)

    def replay(self: Rounds, items: Sequence[Any], guesses: Sequence[Sequence[int]], longest: int) -> Round | None:
        nonlocal rounds
        count = max(map(len, guesses))
        if not self.fits(len(items), count, longest):
            return None
        given = [item.row.slot for item in items]
        for guess in guesses:
            given += [*guess, *[-1] * (count - len(guess))]
        rounds += 1
        told, logits = self.run(len(items), count, torch.tensor(given, dtype=torch.int32), longest)
        found = Round.__new__(Round)
        found._out, found._count, found._host, found.done = told, len(items), told.clone(), _Done()  # type: ignore[assignment]
        found.items, found.logits = items, logits
        return found

    monkeypatch.setattr(Rounds, "replay", replay)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *_: self)
    monkeypatch.setattr(pickers.DevicePicked, "__init__", _Picked.__init__)
    model = random_model(tiny_config(), seed=1)
    expected = run(Engine(model, tokenizer, max_batch=3, blocks=40, max_len=200), asked())
    speculation = ways(model)[way]
    engine = overlapped(model, tokenizer, max_batch=3, blocks=40, max_len=200, speculation=speculation, draft_tokens=3)
    assert engine._speculation is not None
    with torch.inference_mode():
        engine._speculation.attach(engine.runner, engine.picker, engine.vocab_size)
        for runner in (engine.runner, getattr(speculation, "runner", None)):
            if runner is not None:
                blank(runner)
    verified = counted(engine)
    assert run(engine, asked()) == expected
    assert rounds or what != "text"
    assert way != "itself" or what != "text" or sum(right for _, right in verified) > len(verified)
