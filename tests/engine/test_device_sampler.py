"""The device sampler against the reference sampler and the token machine, token for token."""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from qwen3.engine.device_sampler import REPLACED, DeviceSampler
from qwen3.engine.machine import PHASES, Machine
from qwen3.engine.params import SamplingParams
from qwen3.engine.sampler import RowSampler, gumbel, noise_key, sample
from qwen3.errors import Qwen3Error, UsageError
from qwen3.kernels.gpu import sample as kernel
from tests.engine.test_sampler import chi_square, random_params, slow_distribution

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# What the interpreter does in numpy: hashes overflow, hopeless candidates weigh infinitely much.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
PLAIN = SamplingParams(temperature=1, top_p=1, top_k=0, min_p=0, seed=1)


class Twins:
    """Samples on the device and in the reference, side by side."""

    def __init__(self, slots: int, vocab: int, chunk: int, max_len: int = 64) -> None:
        self.device = DeviceSampler(slots, vocab, DEVICE, max_len=max_len, chunk=chunk)
        self.vocab = vocab
        self.rows: dict[int, RowSampler] = {}
        self.machines: dict[int, Machine] = {}
        self.output: dict[int, list[int]] = {}
        self.allowed: dict[int, list[int]] = {}

    def bind(
        self, slot: int, params: SamplingParams, machine: Machine | None = None, prompt: Sequence[int] = (1, 2),
        output: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self.machines[slot] = machine or Machine(phase="answer", count=len(output))
        self.rows[slot] = row = RowSampler(params, prompt, self.vocab, CPU)
        self.output[slot] = list(output)
        for token in output:
            row.record(token)
        self.device.bind(slot, params, self.machines[slot], prompt_ids=prompt, stream_key=row.stream_key, output=output)

    def step(self, logits: torch.Tensor, slots: list[int]) -> tuple[torch.Tensor, list[Any]]:
        """One token of each slot: `out` of the device, and what the reference records (None: it had ended)."""
        out = torch.full((len(slots), 2), -7, dtype=torch.int32, device=DEVICE)
        self.device.sample(logits.to(DEVICE), torch.tensor(slots, dtype=torch.int32, device=DEVICE), out)
        expected: list[Any] = []
        for i, slot in enumerate(slots):
            machine = self.machines[slot]
            token: int | Qwen3Error | None = machine.forced()
            if machine.done:
                expected.append(None)
                continue
            if token is None:
                forbidden = set(machine.banned()) - {-1}
                if slot in self.allowed:
                    forbidden |= set(range(self.vocab)) - set(self.allowed[slot])
                numbers = logits[i : i + 1].float()
                token = sample(numbers, [self.rows[slot]], [len(self.output[slot])], [sorted(forbidden)])[0]
            if not isinstance(token, Qwen3Error):
                token = machine.push(token)
                self.output[slot].append(token)
                self.rows[slot].record(token)
            expected.append(token)
        return out.cpu(), expected

    def mask(self, slot: int, allowed: list[int] | None) -> None:
        self.allowed.pop(slot, None)
        words = None
        if allowed is not None:
            self.allowed[slot] = allowed
            bits = [0] * (-(-self.vocab // 32))
            for token in allowed:
                bits[token // 32] |= 1 << token % 32
            words = torch.tensor([b - (b >> 31 << 32) for b in bits], dtype=torch.int32)
        self.device.set_mask(slot, words)


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_reference_on_mixed_batches(seed: int) -> None:
    """Every kind of row side by side: biases, penalties, bans, masks, ties; more of a kind than a table starts with."""
    rng = random.Random(seed)
    vocab, columns = ((250, 256), (180, 320))[seed % 2]
    twins = Twins(12, vocab, chunk=128)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(12, columns, generator=generator) * rng.choice([1, 3, 6])
    logits[:, vocab:] = 1e4  # padding rows of the head: must never win
    if seed % 3 == 0:
        logits = logits.bfloat16().float()  # many ties
    slots = rng.sample(range(1, 13), 12)
    for slot in slots:
        params = random_params(rng, vocab)
        ids = [rng.randrange(vocab) for _ in range(rng.randrange(12))]
        banned = frozenset(rng.sample(range(vocab), rng.randrange(3)))
        output = ids[: rng.randrange(6)]
        machine = Machine(phase="answer", stop_ids=banned, min_tokens=rng.choice([0, 9]), count=len(output))
        twins.bind(slot, params, machine, prompt=[3, *ids], output=output)
        if rng.random() < 0.3:
            twins.mask(slot, rng.sample(range(vocab), rng.choice([1, 5, 150])))
    given = logits.clone()
    for _ in range(2):
        out, expected = twins.step(logits, slots)
        live = [i for i, token in enumerate(expected) if token is not None]
        assert [out[i, 0].item() for i in live] == [expected[i] for i in live]
    assert torch.equal(logits, given), "the logits are the caller's"


def test_every_way_through_a_large_vocabulary() -> None:
    """Nuclei too wide and top_k too large for the quick way, hundreds of ties, half the head's numbers in bfloat16."""
    generator = torch.Generator().manual_seed(3)
    vocab, kinds = 2500, []
    for temperature, top_p, top_k, min_p in (
        (0, 1, 0, 0), (1, 1, 0, 0), (0.6, 0.95, 20, 0), (1.5, 0.9, 96, 0.1), (1, 0.999, 97, 0), (3, 1, 1500, 0),
        (5, 0.9, 0, 0), (0.3, 0.9, 0, 0.05), (2, 1, 0, 0.2), (9, 0.5, 2000, 0.01),
    ):  # fmt: skip
        kinds.append(SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=len(kinds)))
    twins = Twins(len(kinds), vocab, chunk=512)
    for slot, params in enumerate(kinds, 1):
        twins.bind(slot, params)
    slots = list(twins.rows)
    for scale, dtype in ((2.0, torch.float32), (0.02, torch.bfloat16)):
        logits = (torch.randn(len(kinds), vocab, generator=generator) * scale).to(dtype)
        if dtype == torch.bfloat16:
            logits[:, 100:1100] = 0.125  # a thousand ties at the top
        out, expected = twins.step(logits, slots)
        assert out[:, 0].tolist() == expected


def test_no_winner_is_missed_by_the_bound_of_the_noise() -> None:
    """Unfiltered rows from almost greedy to almost uniform, with ties and a mask."""
    generator = torch.Generator().manual_seed(4)
    vocab, temperatures = 230, (0.02, 0.3, 0.6, 1, 2, 30, 100)
    twins = Twins(len(temperatures), vocab, chunk=64)
    for slot, temperature in enumerate(temperatures, 1):
        twins.bind(slot, SamplingParams(temperature=temperature, top_p=1, top_k=0, min_p=0, seed=slot))
    twins.mask(3, list(range(5, 70)))
    for scale in (0.6, 8.0):
        logits = (torch.randn(len(temperatures), 256, generator=generator) * scale).bfloat16()
        out, expected = twins.step(logits, list(twins.rows))
        assert out[:, 0].tolist() == expected


def test_noise_is_the_references_in_both_tails() -> None:
    triton = pytest.importorskip("triton")
    tl = triton.language

    @triton.jit
    def noise(ids, out, low, high, step):
        i = tl.arange(0, 4096)
        tl.store(
            out + i, kernel._exponential(tl.load(ids + i), kernel._words(tl.load(low), tl.load(high), tl.load(step)))
        )

    stream_key, step = 0xFEDCBA9876543210, 77
    key = noise_key(stream_key, step)
    ids = torch.arange(4096)

    def unscramble(x: int) -> int:
        """The inverse of the hash's half, to find the ids whose hash is at an end."""
        x ^= x >> 16
        x = x * pow(0x846CA68B, -1, 2**32) % 2**32
        x ^= (x >> 15) ^ (x >> 30)
        x = x * pow(0x7FEB352D, -1, 2**32) % 2**32
        return x ^ (x >> 16)

    ends = [0, 1, 2, 1000, 2**31, 15 << 28, (15 << 28) - 1, 2**32 - 1000, 2**32 - 3, 2**32 - 2, 2**32 - 1]
    ids[: len(ends)] = torch.tensor([unscramble((unscramble(x) - key[1]) % 2**32) ^ key[0] for x in ends])
    expected = torch.exp(-gumbel(torch.tensor([key]), ids.unsqueeze(0))[0])
    parts = [stream_key & 0xFFFFFFFF, stream_key >> 32, step]
    numbers = [torch.tensor([p - (p >> 31 << 32)], dtype=torch.int32, device=DEVICE) for p in parts]
    out = torch.empty(4096, device=DEVICE)
    noise[(1,)]((ids - (ids >> 31 << 32)).to(torch.int32).to(DEVICE), out, *numbers)
    error = (out.cpu().double() - expected).abs() / expected
    assert expected.min() < 2e-10
    assert expected.max() > 22
    assert error.max() < 3e-6


def test_chi_square() -> None:
    """Draws over seeds and steps of 8 tokens, filtered and not."""
    logits = torch.randn(1, 8, generator=torch.Generator().manual_seed(5)).expand(20, -1) * 1.5
    for params in (PLAIN, SamplingParams(temperature=0.7, top_p=0.9, top_k=6, min_p=0.02)):
        sampler = DeviceSampler(20, 8, DEVICE, max_len=8, chunk=64)
        counts: Counter[int] = Counter()
        slots = torch.arange(1, 21, dtype=torch.int32, device=DEVICE)
        for slot in slots.tolist():
            sampler.bind(
                slot, params, Machine(), prompt_ids=[1], stream_key=RowSampler(PLAIN, [], 8, CPU, slot).stream_key
            )
        for _ in range(5):
            out = torch.empty(20, 2, dtype=torch.int32, device=DEVICE)
            sampler.sample(logits.to(DEVICE), slots, out)
            counts.update(out[:, 0].tolist())
        p = slow_distribution(logits[0].tolist(), params, [], [])
        assert all(p[i] > 0 for i in counts)
        value, freedom = chi_square(counts, p, 100)
        assert value < freedom + 4.5 * math.sqrt(2 * freedom) + 6, (value, freedom)


def random_machine(rng: random.Random, vocab: int) -> Machine:
    tags = rng.sample(range(vocab), 8)
    budget = rng.choice([None, 0, 1, 3])
    return Machine(
        phase=rng.choice(PHASES[:3]),
        budget=budget,
        queue=deque(rng.choice([[], [], [tags[0], 3], [tags[0], 3, tags[1], 3]])),
        early_stop=(5, 6, tags[1], 7),
        close_think=(6, tags[1], 7),
        think=tags[0],
        end_think=tags[1],
        tool_call=tags[2] if rng.random() < 0.7 else -1,
        end_tool_call=tags[3],
        eos=frozenset(tags[4:6]),
        stop_ids=frozenset(rng.choice([[], tags[5:7], [tags[0]]])),
        min_tokens=rng.choice([0, 0, 4]),
        max_tokens=rng.choice([3, 12, 30]),
    )


def test_what_siblings_share_is_never_another_samples() -> None:
    """A sampler that has packed others before packs as a fresh one does, whatever became of their machines."""
    rng, vocab = random.Random(), 96
    warm = DeviceSampler(8, vocab, DEVICE, max_len=64, chunk=32)
    params = [random_params(rng, vocab) for _ in range(3)]
    machines = [random_machine(rng, vocab) for _ in range(3)]
    prompts = [[1, 2], [1, 3], [4, 2, 2]]
    one, machine, prompt, common = params[0], machines[0], prompts[0], 0
    for _ in range(300):
        if rng.random() < 0.5:
            one, machine, prompt = rng.choice(params), rng.choice(machines), rng.choice(prompts)
        about = {"prompt_ids": prompt, "stream_key": rng.getrandbits(64), "max_tokens": rng.choice([None, 12])}
        about["output"] = [7] * machine.count
        before = warm._last
        packed = warm.pack(rng.randint(1, 8), one, machine, **about)
        common += warm._last is before
        fresh = DeviceSampler(8, vocab, DEVICE, max_len=64, chunk=32).pack(1, one, machine, **about)
        assert packed.common.tolist() == fresh.common.tolist()
        assert packed.own[:2] == fresh.own[:2]  # the rest are rows of tables, numbered as they are taken
        if rng.random() < 0.1 and machine.done is None:
            machine.push(machine.queue[0] if machine.queue else 8)
        if rng.random() < 0.2:
            machines[rng.randrange(3)] = random_machine(rng, vocab)
    assert common > 5


def test_states_follow_the_machine() -> None:
    """Random rules, a model that says tags and ends often; ended slots are given to new samples."""
    rng = random.Random(1)
    vocab, slots = 24, list(range(1, 9))
    twins = Twins(8, vocab, chunk=64)
    seen: Counter[Any] = Counter()
    for step in range(24):
        for slot in slots:
            if slot not in twins.machines or (twins.machines[slot].done and rng.random() < 0.5):
                params = SamplingParams(
                    temperature=rng.choice([0, 1]), top_p=1, top_k=0, min_p=0, seed=step * 99 + slot,
                    presence_penalty=rng.choice([0, 1]), repetition_penalty=rng.choice([1, 1.2]),
                )  # fmt: skip
                twins.bind(slot, params, random_machine(rng, vocab))
        logits = torch.randn(len(slots), vocab, generator=torch.Generator().manual_seed(step)) * 1.5
        before = {slot: (twins.machines[slot].done, twins.machines[slot].phase) for slot in slots}
        last = twins.device.last_token.tolist()
        out, expected = twins.step(logits, [*slots, 0][: len(slots)])
        for (token, code), want, slot in zip(out.tolist(), expected, slots, strict=True):
            machine = twins.machines[slot]
            seen[before[slot][1], machine.done] += 1
            if want is None:
                assert token == last[slot], "an ended slot repeats itself"
                assert code == {"stop": 1, "length": 2}[before[slot][0] or ""]
                continue
            assert (token, code & 3) == (want, {None: 0, "stop": 1, "length": 2}[machine.done])
            seen["replaced"] += code >= REPLACED
            assert twins.device.last_token[slot] == token
            assert twins.device.position[slot] == 1 + machine.count
            assert twins.device.count[slot] == machine.count
            told = twins.device.snapshots([slot])[0]
            ids, found = told.ids, told.machine
            assert ids == twins.output[slot]
            if machine.done is None:
                assert found == machine
        assert twins.device.last_token[0] == twins.device.position[0] == 0
    assert min(seen[key] for key in [(phase, None) for phase in PHASES]) > 0
    assert min(seen["replaced"], seen["thinking", "length"], seen["answer", "stop"]) > 0


def test_coming_back_is_as_if_never_gone() -> None:
    """A sample is taken from its slot in the middle and put into another one, penalties, queue and all."""
    params = SamplingParams(
        temperature=1, top_p=1, top_k=5, min_p=0, frequency_penalty=0.7, repetition_penalty=1.4, seed=3
    )
    rules = Machine(queue=deque([9, 8, 7]), think=9, end_think=1, budget=2, early_stop=(4, 5, 1), close_think=(5, 1))
    twins = Twins(3, 30, chunk=64)
    twins.bind(1, params, rules)
    logits = torch.randn(12, 30, generator=torch.Generator().manual_seed(0))
    for i in range(12):
        out, expected = twins.step(logits[i : i + 1], [1 + i // 2 % 3])
        assert out[0, 0].item() == expected[0]
        if i % 2:
            old, new = 1 + i // 2 % 3, 1 + (i // 2 + 1) % 3
            told = twins.device.snapshots([old])[0]
            ids, machine = told.ids, told.machine
            twins.device.release(old)
            assert ids == twins.output[old]
            twins.bind(new, params, machine, output=ids)
    assert len(twins.output[1]) == 12


def test_padding_and_ended_rows_change_nothing() -> None:
    twins = Twins(2, 30, chunk=64)
    twins.bind(1, PLAIN, Machine(max_tokens=1))
    twins.bind(2, PLAIN)
    logits = torch.randn(5, 30)
    out, expected = twins.step(logits[:2], [1, 2])
    assert out.tolist() == [[expected[0], 2], [expected[1], 0]]
    state = twins.device._state.clone()
    history = twins.device.history.clone()
    assert out[0, 1] == 2
    rows = torch.tensor([0, 1, 0, 1, 0], dtype=torch.int32, device=DEVICE)
    again = torch.empty(5, 2, dtype=torch.int32, device=DEVICE)
    twins.device.sample(logits.to(DEVICE), rows, again)
    assert again.tolist() == [[0, 1], out[0].tolist(), [0, 1], out[0].tolist(), [0, 1]]
    assert torch.equal(state, twins.device._state)
    assert torch.equal(history, twins.device.history)


def test_a_broken_row_is_an_error_of_its_own() -> None:
    twins = Twins(6, 30, chunk=64)
    kinds = [PLAIN, SamplingParams(temperature=0, top_p=1, top_k=0, min_p=0)]
    kinds += [SamplingParams(temperature=1, top_p=0.9, top_k=5, min_p=0, seed=1)]
    for slot in range(1, 7):
        twins.bind(slot, kinds[slot % 3])
    logits = torch.randn(6, 30)
    logits[:3, 17] = float("nan")
    for slot in (4, 5):
        twins.mask(slot, [])
    out, expected = twins.step(logits, [1, 2, 3, 4, 5, 6])
    assert out.tolist()[:5] == [[-1, 3]] * 3 + [[-2, 3]] * 2
    assert all(isinstance(error, Qwen3Error) for error in expected[:5])
    assert out[5].tolist() == [expected[5], 0]
    assert twins.device.count.tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert twins.device.snapshots([2])[0].machine.done == "stop"


def test_masks_come_and_go() -> None:
    twins = Twins(1, 100, chunk=64)
    twins.bind(1, PLAIN)
    logits = torch.randn(1, 100)
    for allowed in ([31, 63], [99], None, list(range(32, 64))):
        twins.mask(1, allowed)
        out, expected = twins.step(logits, [1])
        assert out[0].tolist() == [expected[0], 0]
        assert allowed is None or out[0, 0].item() in allowed


def test_logprobs_are_raw_and_kept() -> None:
    twins = Twins(2, 90, chunk=64)
    asks = SamplingParams(temperature=0.3, top_p=0.9, top_k=5, min_p=0, logprobs=0, logit_bias={3: 9}, seed=0)
    twins.bind(1, asks, Machine(queue=deque([5])))
    twins.bind(2, PLAIN)
    logits = torch.randn(4, 2, 100, generator=torch.Generator().manual_seed(9)) * 3
    wanted = []
    for step in range(4):
        out, expected = twins.step(logits[step], [1, 2])
        assert out[:, 0].tolist() == expected
        wanted.append(torch.log_softmax(logits[step, 0].double(), 0)[out[0, 0]].item())
    kept, nothing = twins.device.snapshots([1, 2])
    assert (-abs(kept.logprobs)).tolist() == pytest.approx(wanted, abs=1e-5)
    assert np.signbit(kept.logprobs).tolist() == [False, True, True, True]  # the first was forced
    assert nothing.logprobs is None
    assert nothing.ids == twins.output[2]
    assert twins.output[1][0] == 5


def test_what_cannot_be_carried_out_is_refused() -> None:
    sampler = DeviceSampler(2, 30, DEVICE, max_len=8, chunk=64)

    def bind(slot: int = 1, params: SamplingParams = PLAIN, machine: Machine | None = None, **more: Any) -> None:
        sampler.bind(slot, params, machine or Machine(), prompt_ids=[1], stream_key=0, **more)

    for call, text in (
        (lambda: bind(slot=0), "slot=0 must be 1 to 2"),
        (lambda: bind(slot=3), "slot=3 must be 1 to 2"),
        (lambda: bind(params=SamplingParams()), "temperature is None"),
        (lambda: bind(params=SamplingParams(logit_bias={30: 1}).resolved("thinking")), "logit_bias names token 30"),
        (lambda: bind(output=[1]), "output has 1 ids, but the machine has seen 0"),
        (lambda: bind(machine=Machine(stop_ids=frozenset(range(97)))), "97 end ids"),
        (lambda: bind(machine=Machine(early_stop=(1,) * 257)), "257 ids to force"),
    ):
        with pytest.raises(UsageError, match=text):
            call()
