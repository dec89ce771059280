"""A round (guesses, their verification, the sampler's state) says what plain steps say: run without capturing, on the
CPU, the sampler in Triton's interpreter."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from qwen3.engine import SamplingParams
from qwen3.engine.device_sampler import DeviceSampler
from qwen3.engine.draft import DraftModel
from qwen3.engine.machine import Machine
from qwen3.engine.rounds import Round, Rounds
from qwen3.engine.runner import Fed, Runner
from qwen3.engine.sampler import RowSampler, sample
from qwen3.model import Qwen3
from tests.engine.overlapped import blank
from tests.fixtures import random_model, tiny_config

pytestmark = [
    pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="in the interpreter"),
]
VOCAB, CPU = 60, torch.device("cpu")
PROMPTS = {1: [5, 9, 5, 9, 3] * 3, 2: [7] * 17, 3: [11, 2, 40]}
PARAMS = {
    1: SamplingParams(temperature=0.0).resolved("instruct"),
    2: SamplingParams(temperature=1, top_p=1, top_k=0, min_p=0, seed=2),
    3: SamplingParams(temperature=0.7, top_p=0.9, top_k=20, min_p=0, presence_penalty=0.5, seed=3),
}


@pytest.fixture(scope="module")
def target() -> Qwen3:
    return random_model(tiny_config(vocab_size=64), seed=1)


def plain(model: Qwen3, slot: int, count: int) -> list[int]:
    """Tokens one by one, from the model and the reference sampler."""
    row = RowSampler(PARAMS[slot], PROMPTS[slot], VOCAB, CPU)
    ids = list(PROMPTS[slot])
    for step in range(count):
        token = sample(model(torch.tensor([ids]))[0, -1:], [row], [step], [()])[0]
        assert isinstance(token, int)
        row.record(token)
        ids.append(token)
    return ids[len(PROMPTS[slot]) :]


class World:
    """A runner with three prompts computed and their first tokens sampled."""

    def __init__(self, target: Qwen3, draft: DraftModel | None) -> None:
        self.runner = Runner(target.stepper(), CPU, max_rows=3, max_len=96, blocks=40, kv_dtype=torch.float32)
        blank(self.runner)
        self.sampler = DeviceSampler(3, VOCAB, CPU, max_len=96, chunk=64)
        blocks = iter(torch.randperm(39, generator=torch.Generator().manual_seed(1)).add(1).tolist())
        self.runner.place([(slot, i, next(blocks)) for slot in PROMPTS for i in range(6)])
        chunks = [Fed(slot, 0, ids) for slot, ids in PROMPTS.items()]
        hidden = self.runner.forward((), chunks, self.sampler)
        for slot, ids in PROMPTS.items():
            key = RowSampler(PARAMS[slot], ids, VOCAB, CPU).stream_key
            self.bind(self.sampler, slot, key)
        if draft is not None:
            draft.attach(self.runner, VOCAB, on_device=True)
            for slot, ids in PROMPTS.items():
                self.bind(draft.sampler, slot, RowSampler(PARAMS[slot], ids, VOCAB, CPU).stream_key)
            assert draft.runner is not None
            blank(draft.runner)
            draft.runner.forward((), chunks, draft.sampler)
        ends = torch.tensor([len(ids) for ids in PROMPTS.values()]).cumsum(0) - 1
        out = torch.zeros(3, 2, dtype=torch.int32)
        slots = torch.tensor([*PROMPTS], dtype=torch.int32)
        self.sampler.sample(self.runner.logits(hidden[ends]), slots, out)
        if draft is not None:
            draft.follow(self.sampler, slots)
        self.said = {slot: [int(token)] for slot, token in zip(PROMPTS, out[:, 0], strict=True)}
        self.rounds = Rounds(self.runner, self.sampler, draft)

    @staticmethod
    def bind(sampler: DeviceSampler, slot: int, key: int) -> None:
        sampler.bind(slot, PARAMS[slot], Machine(phase="answer"), prompt_ids=PROMPTS[slot], stream_key=key)

    def round(self, rows: int, slots: list[int], guesses: list[list[int]]) -> list[int]:
        """One round, padded to `rows`; how many guesses each row took."""
        count = len(guesses[0])
        told = [*slots, *[0] * (rows - len(slots)), *(g for row in guesses for g in row)]
        told += [-1] * (rows * (count + 1) - len(told))
        out, logits = self.rounds.run(rows, count, torch.tensor(told, dtype=torch.int32), 96)
        items: Any = [SimpleNamespace(slot=slot) for slot in slots]
        found, taken = Round.__new__(Round), []
        found.items, found.logits, found._rows = items, logits, out[: len(slots)].numpy  # type: ignore[method-assign]
        for slot, drafted in zip(slots, found, strict=True):
            row = [drafted.read(place) for place in range(len(drafted.tokens) + 1)]
            new = [token for token, _ in row if token != -1]
            assert row[len(new) :] == [(-1, 0)] * (len(row) - len(new))
            assert tuple(new[:-1]) == drafted.tokens[: len(new) - 1]
            assert len(drafted.logits) == len(row)
            self.said[slot] += new
            taken.append(len(new) - 1)
        return taken


@torch.inference_mode()
def test_given_guesses_right_wrong_and_none(target: Qwen3) -> None:
    world = World(target, None)
    expected = {slot: plain(target, slot, 24) for slot in PROMPTS}
    rng = torch.Generator().manual_seed(0)
    for number in range(5):
        slots = [[1, 2, 3], [3, 1], [2]][number % 3]
        right = [int(torch.randint(0, 4, (1,), generator=rng)) for _ in slots]
        guesses = []
        for slot, n in zip(slots, right, strict=True):
            place = len(world.said[slot])
            guess = expected[slot][place : place + 3]
            guess[n:] = [-1] * (3 - n) if number % 2 else [(token + 1) % VOCAB for token in guess[n:]]
            guesses.append(guess)
        assert world.round(4, slots, guesses) == right
    for slot, said in world.said.items():
        assert said == expected[slot][: len(said)]


@pytest.mark.parametrize("own", [True, False])
@torch.inference_mode()
def test_guesses_of_a_draft_model(target: Qwen3, own: bool) -> None:
    small = target if own else random_model(tiny_config(vocab_size=64, num_hidden_layers=1), seed=2)
    world = World(target, DraftModel(small))
    taken: list[Any] = []
    for number in range(3):
        slots = [1, 2, 3] if number != 1 else [3, 2]
        limits = [[0, 0, 0], [0, 0, -1], [0, 0, 0]][: len(slots)]
        taken += zip(slots, world.round(4, slots, limits), strict=True)
    if own:
        assert [n for slot, n in taken if slot == 1] == [3, 3]  # penalties apart, which a draft's guesses change
        assert [n for slot, n in taken if slot == 2] == [2, 2, 2]
    else:
        assert 0 < sum(n for _, n in taken) < 3 * len(taken)
    for slot, said in world.said.items():
        assert said == plain(target, slot, 24)[: len(said)]
