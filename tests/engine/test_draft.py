"""The draft model beside an engine: what it guesses is what it alone would say, whatever became of blocks and slots."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qwen3.engine import Engine, Request, SamplingParams
from qwen3.engine.draft import DraftModel, kv_bytes_per_block
from qwen3.engine.pickers import Sample
from qwen3.engine.sampler import sample
from qwen3.engine.scheduler import Status
from qwen3.errors import UsageError
from qwen3.model import Qwen3
from qwen3.tokenizer import Tokenizer
from tests.fixtures import random_model, tiny_config, tiny_tokenizer

VOCAB = 634
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def target() -> Qwen3:
    return random_model(tiny_config(), seed=1)


@pytest.fixture(scope="module")
def small() -> Qwen3:
    return random_model(tiny_config(num_hidden_layers=1, num_key_value_heads=1, hidden_size=32), seed=2)


def request(seed: int, length: int = 20, **params: Any) -> Request:
    rng = random.Random(seed)
    given = {"temperature": 1, "top_p": 1, "top_k": 0, "min_p": 0, "seed": seed, "max_tokens": 30, "ignore_eos": True}
    return Request([rng.randrange(608) for _ in range(length)], SamplingParams(**(given | params)))


def alone(model: Qwen3, item: Sample, count: int) -> list[int]:
    """What the draft model says after the sample's tokens, computed from nothing."""
    ids = list(item.row.tokens)
    for step in range(min(count, item.row.max_total - len(ids) - 1)):
        logits = model(torch.tensor([ids]))[0, -1:]
        ids += sample(logits, [item.sampler], [len(item.request.output) + step], [()])  # type: ignore[arg-type]
    return ids[len(item.row.tokens) :]


class World:
    """An engine with a draft model beside it, whose guesses are looked at and not used."""

    def __init__(self, target: Qwen3, small: Qwen3, **options: Any) -> None:
        self.engine = Engine(target, vocab_size=VOCAB, **({"max_batch": 4, "blocks": 40, "max_len": 200} | options))
        self.draft = DraftModel(small)
        self.draft.attach(self.engine.runner, VOCAB)
        self.fed: list[int] = []
        inner, runner = self.draft.runner.forward, self.draft.runner  # type: ignore[union-attr]

        def forward(decode: Any, chunks: Any, state: Any, *rest: Any, **more: Any) -> torch.Tensor:
            self.fed.append(len(decode) + sum(len(chunk.ids) for chunk in chunks))
            return inner(decode, chunks, state, *rest, **more)

        runner.forward = forward  # type: ignore[method-assign, union-attr]

    def decoding(self) -> list[Sample]:
        rows = (Status.DECODE, Status.PREFILL)
        found = [item for item in self.engine._live.values() if item.row.status in rows]
        return [item for item in found if item.row.computed == len(item.row.tokens) - 1 and item.request.output]

    @torch.inference_mode()
    def look(self, count: int = 3) -> int:
        """Guesses for all that decode, compared; how many tokens were fed for them."""
        items = self.decoding()
        self.fed.clear()
        found = self.draft.draft(items, count)
        fed = sum(self.fed)
        for item, guesses in zip(items, found, strict=True):
            assert guesses == alone(self.draft.model, item, count)
        return fed

    def run(self, steps: int, count: int = 3) -> None:
        for _ in range(steps):
            self.engine.advance()
            self.look(count)


def test_guesses_are_what_the_draft_model_alone_would_say(target: Qwen3, small: Qwen3) -> None:
    world = World(target, small)
    requests = [request(1, 20), request(2, 33, temperature=0.0), request(3, 47, top_k=20, repetition_penalty=1.3)]
    for one in requests:
        world.engine.add(one)
    world.run(34)
    assert all(one.done and one.error is None for one in requests)


def test_it_is_fed_only_what_it_has_not_seen(target: Qwen3, small: Qwen3) -> None:
    world = World(target, small)
    world.engine.add(request(1, 40, max_tokens=40))
    world.engine.advance()
    assert world.look() == 41 + 2
    for _ in range(20):
        world.engine.advance()
        assert world.look() <= 2 + 2  # its own wrong guess is written over
    for _ in range(10):
        world.engine.advance()
    assert world.look() <= 11 + 2


def test_a_model_that_drafts_for_itself_is_always_right(target: Qwen3) -> None:
    world = World(target, target, max_batch=2)
    one = request(7, 30, max_tokens=36)
    world.engine.add(one)
    guesses = []
    while world.engine.has_work:
        world.engine.advance()
        if items := world.decoding():
            guesses.append((len(one.output), world.draft.draft(items, 4)[0]))
    assert len(guesses) > 30
    for place, guess in guesses:
        assert guess == one.output[place : place + len(guess)]
        assert len(guess) == min(4, 36 - place - 1)


def test_prompts_fed_with_the_target_cost_nothing_later(target: Qwen3, small: Qwen3) -> None:
    world = World(target, small, prefill_chunk=64)
    engine, plan = world.engine, world.engine.scheduler.plan

    def planned() -> Any:
        found = plan()
        if found is not None:
            engine.runner.place(found.new_blocks)
            world.draft.feed(found.chunks)
        return found

    engine.scheduler.plan = planned  # type: ignore[method-assign]
    engine.add(request(1, 150))
    for _ in range(3):
        engine.advance()
    assert sum(world.fed) == 150
    assert world.look() == 1 + 2
    engine.add(request(1, 150))  # the same prompt: in the cache of both
    world.fed.clear()
    for _ in range(3):
        engine.advance()
    assert sum(world.fed) <= 16
    world.look()


def test_blocks_found_again_are_computed_only_where_it_has_missed_them(target: Qwen3, small: Qwen3) -> None:
    world = World(target, small)
    world.engine.add(request(1, 70, max_tokens=4))
    world.run(1)
    while world.engine.has_work:
        world.engine.advance()
    world.engine.add(request(1, 70, max_tokens=4))
    world.engine.advance()
    assert world.look(2) <= 70 - 64 + 1 + 1
    while world.engine.has_work:
        world.engine.advance()
    # Blocks that others have had since hold nothing of this prompt, though the target has computed it again.
    for seed in range(2, 12):
        world.engine.add(request(seed, 120, max_tokens=2))
        while world.engine.has_work:
            world.engine.advance()
            world.look(1)
    world.engine.add(request(1, 70, max_tokens=4))
    world.engine.advance()
    assert world.look(2) >= 70


def test_preempted_cancelled_and_taken_back(target: Qwen3, small: Qwen3) -> None:
    world = World(target, small, blocks=14, max_batch=4)
    requests = [request(seed, 30 + seed, max_tokens=40) for seed in range(4)]
    for one in requests:
        world.engine.add(one)
    preempted = 0
    for step in range(160):
        if not world.engine.has_work:
            break
        world.engine.advance()
        world.look(4)
        preempted += sum(item.row.preemptions for item in world.engine._live.values())
        live = [item for item in world.decoding() if len(item.request.output) > 6]
        if step % 9 == 5 and live:
            world.engine.rollback(live[0].request.id, 5)
            world.look(3)
        if step == 30:
            world.engine.cancel(requests[0].id)
            world.engine.add(request(9, 25))
    assert preempted
    assert not world.engine.has_work


def test_a_long_rollback_is_told(target: Qwen3, small: Qwen3) -> None:
    world = World(target, small)
    world.engine.add(request(1, 20, max_tokens=120))
    world.run(1)
    for _ in range(100):
        world.engine.advance()
    world.look()
    item = world.decoding()[0]
    world.engine.rollback(item.request.id, 90)
    world.draft.forget(item.row)
    for _ in range(95):
        world.engine.advance()
    world.look()


def test_tables_are_as_the_scheduler_left_them(target: Qwen3, small: Qwen3) -> None:
    world = World(target, small)
    world.engine.add(request(1, 30))
    for _ in range(12):
        world.engine.advance()
        before = world.engine.runner.tables.clone()
        world.look(4)
        rows = world.engine.runner.tables
        assert int(rows.max()) < world.engine.blocks
        for item in world.decoding():
            blocks = len(item.row.blocks)
            assert torch.equal(rows[item.row.slot, :blocks], before[item.row.slot, :blocks])


def test_what_does_not_belong_together(target: Qwen3, small: Qwen3) -> None:
    few = DraftModel(random_model(tiny_config(num_hidden_layers=1, vocab_size=400)))
    with pytest.raises(UsageError, match="knows 400 tokens, the model samples from 634"):
        few.check(CPU, VOCAB)
    with pytest.raises(UsageError, match="draft model is on cpu, the model on meta"):
        DraftModel(small).check(torch.device("meta"), VOCAB)
    own, same = tiny_tokenizer(tiny_config()), tiny_tokenizer(tiny_config())
    other: Tokenizer = tiny_tokenizer(tiny_config(vocab_size=600))
    DraftModel(small, own).check(CPU, VOCAB, same)
    with pytest.raises(UsageError, match="another tokenizer"):
        DraftModel(small, other).check(CPU, VOCAB, own)


def test_bytes_of_a_block() -> None:
    config = tiny_config(num_hidden_layers=3)
    size = 16 * 2 * 3 * config.num_key_value_heads * config.head_dim
    assert kv_bytes_per_block(config, torch.bfloat16) == 2 * size
    assert kv_bytes_per_block(config, torch.float8_e4m3fn) == size


def test_followed_samples_are_fed_what_the_device_alone_knows(target: Qwen3, small: Qwen3) -> None:
    """sync, feed with rows that decode, leave: the cache holds what the books say."""
    world = World(target, small)
    engine, draft = world.engine, world.draft
    one = request(4, 40, max_tokens=60)
    engine.add(one)
    engine.advance()
    item = world.decoding()[0]
    draft.sync([item.row])
    state = SimpleNamespace(last_token=draft.last_token.clone(), position=draft.position.clone())
    for _ in range(20):
        state.last_token[item.row.slot], state.position[item.row.slot] = item.row.tokens[-1], len(item.row.tokens) - 1
        engine.advance()
        draft.feed([], [item.row.slot], state)
    draft.leave([item.row])
    assert world.look() <= 2 + 2


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
@pytest.mark.skipif(torch.cuda.is_available(), reason="in the interpreter")
@torch.inference_mode()
def test_where_a_gpu_chooses_the_guesses_are_the_same(target: Qwen3, small: Qwen3) -> None:
    """The sampler in Triton's interpreter."""
    pytest.importorskip("triton")
    from qwen3.engine.device_sampler import DeviceSampler

    engine = Engine(target, vocab_size=VOCAB, max_batch=3, blocks=40, max_len=200)
    draft = DraftModel(small)
    draft.attach(engine.runner, VOCAB, on_device=True)
    chosen = DeviceSampler(3, VOCAB, CPU, max_len=200)  # the target's, as far as the draft looks at it
    for one in (request(1, 20), request(2, 29, temperature=0.0), request(3, 40, top_k=20, top_p=0.9)):
        engine.add(one)
    for step in range(6):
        engine.advance()
        items = list(engine._live.values())
        rows = [item.row for item in items]
        if step == 0:
            for item in items:
                draft.bind(item)
        if step in (0, 4):
            draft.sync(rows)
        slots = torch.tensor([row.slot for row in rows], dtype=torch.int32)
        # Blocks for all guesses, as a plan with drafts has them.
        for row in rows:
            while len(row.blocks) * 16 < len(row.tokens) + 4:
                engine.scheduler._append(row, engine.scheduler.pool.take())
        engine.runner.place([(row.slot, i, block) for row in rows for i, block in enumerate(row.blocks)])
        for item in items:
            state = item.row.tokens[-1], len(item.row.tokens) - 1, len(item.request.output)
            chosen._state[:3, item.row.slot] = torch.tensor(state, dtype=torch.int32)
        draft.follow(chosen, slots)
        if step == 2:
            draft.leave(rows)  # two steps without guesses
        if step in (2, 3):
            continue
        found = draft.draft_on_device(slots.tolist(), 3)
        assert found.tolist() == [alone(small, item, 3) for item in items]
