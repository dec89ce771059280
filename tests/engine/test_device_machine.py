"""The device's token machine against the one in Python after every token; drafts verified against plain steps."""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from qwen3.chat import TokenStream
from qwen3.chat.pacing import SENTENCE_END, pace_table
from qwen3.engine.device_sampler import DeviceSampler
from qwen3.engine.machine import PHASES, Machine
from qwen3.engine.params import SamplingParams
from qwen3.engine.sampler import RowSampler
from qwen3.errors import UsageError
from tests.engine.test_device_sampler import DEVICE, PLAIN, Twins
from tests.engine.test_machine import TOKENIZER, random_rules

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
KINDS = (
    SamplingParams(temperature=0, top_p=1, top_k=0, min_p=0),
    PLAIN,
    SamplingParams(temperature=1, top_p=0.95, top_k=8, min_p=0),
    SamplingParams(temperature=1, top_p=0.9, top_k=0, min_p=0.01, presence_penalty=0.5),
    SamplingParams(temperature=1, top_p=1, top_k=97, min_p=0),
)


def random_pace(rng: random.Random, vocab: int) -> np.ndarray:
    """Any table at all: next states, paragraphs that end, sentences."""
    table = np.zeros(vocab, np.uint16)
    for token in range(vocab):
        for state in range(3):
            table[token] |= (rng.randrange(3) | rng.choice([0, 0, 0, 1, 2, 3]) << 2) << 4 * state
        table[token] |= SENTENCE_END * (rng.random() < 0.3)
    return table


def random_machine(rng: random.Random, vocab: int, pace: np.ndarray) -> tuple[Machine, list[int]]:
    """Rules no stream would think of, and the ids that matter to them."""
    tags = rng.sample(range(vocab), 8)
    budget = rng.choice([None, None, 0, 1, 4, 9])
    machine = Machine(
        phase=rng.choice([*PHASES, *["thinking"] * 3]), budget=budget,
        line_state=rng.randrange(3), steps=rng.choice([0, 0, 1]),
        margin=rng.choice([0, 2, 30]) if budget else 0, max_steps=rng.choice([0, 0, 1, 3]),
        close_at=rng.choice([-1, -1, 0, 5]), early_stop=(5, 6, tags[1], 7), close_think=(6, tags[1], 7, 7),
        gap=rng.choice([0, 1, 2, 3, 9]), queue=deque(rng.choice([[], [], [tags[0], 3], [tags[0], 3, tags[1], 3]])),
        think=rng.choice([tags[0], tags[0], -1]), end_think=tags[1], tool_call=rng.choice([tags[2], tags[2], -1]),
        end_tool_call=rng.choice([tags[3], tags[3], -1]), ban_think=rng.random() < 0.4, eos=frozenset(tags[4:6]),
        stop_ids=frozenset(rng.choice([[], tags[5:7], [tags[0]]])), min_tokens=rng.choice([0, 0, 4]),
        max_tokens=rng.choice([3, 12, 30]), pace=rng.choice([pace, pace, pace, None]),
    )  # fmt: skip
    return machine, tags


def streams_machine(rng: random.Random) -> tuple[Machine, list[int]]:
    """A machine of a stream: rather one that thinks."""
    thinks = False
    while not thinks:
        *made, ids = random_rules(rng)
        stream = TokenStream(*made[0], **made[1])
        thinks = stream.state == "thinking" or rng.random() < 0.2
    return Machine.of(stream, SamplingParams(max_tokens=rng.choice([12, 40]))), ids


def watch(seen: Counter[str], before: Machine, after: Machine) -> None:
    """Which rules were carried out."""
    closes = before.phase == after.phase == "thinking" and not before.queue and bool(after.queue)
    steps, asked = 0 < after.max_steps <= after.steps, 0 <= after.close_at <= after.count
    full = after.budget is not None and after.used >= after.budget > 0
    for rule, holds in {"steps": steps, "close_at": asked, "budget": full}.items():
        seen[rule] += closes and holds
    seen["landing"] += closes and not (steps or asked or full or after.budget == 0)
    seen["gap"] += before.phase == "thinking" and after.phase == "answer" and not before.queue and bool(after.queue)
    seen["no think"] += before.ban_think and before.phase in ("start", "answer") and before.think >= 0
    seen["no call"] += before.phase == "thinking" and before.tool_call >= 0 and not before.queue
    for phase in PHASES:
        seen[phase] += before.phase == phase


@pytest.mark.parametrize("real", [False, True])
def test_every_rule_is_carried_out_as_in_python(real: bool) -> None:
    """Samples of all kinds, side by side, that are closed, taken away and brought back in the middle."""
    rng = random.Random(7 * real)  # one with which every rule has its turn
    vocab = TOKENIZER.vocab_size if real else 60
    pace = pace_table(TOKENIZER) if real else random_pace(rng, vocab)
    slots, seen = list(range(1, 17)), Counter[str]()
    twins, favourites = Twins(16, vocab, chunk=256 if real else 64), dict[int, list[int]]()
    for step in range(20):
        for slot in slots:
            if slot not in twins.machines or (twins.machines[slot].done and rng.random() < 0.7):
                machine, favourites[slot] = streams_machine(rng) if real else random_machine(rng, vocab, pace)
                twins.bind(slot, replace(rng.choice(KINDS[:2]), seed=step * 99 + slot), machine)
        logits = torch.randn(16, vocab, generator=torch.Generator().manual_seed(step))
        for slot in slots:
            logits[slot - 1, favourites[slot]] += 3
            machine = twins.machines[slot]
            if rng.random() < 0.1 and not machine.done:
                machine.close_at = machine.count + rng.randrange(-2, 6) if machine.count > 2 else 2**40
                twins.device.close(slot, machine.close_at)
        before = {slot: replace(machine, queue=deque(machine.queue)) for slot, machine in twins.machines.items()}
        out, expected = twins.step(logits, slots)
        for slot, (token, code), want in zip(slots, out.tolist(), expected, strict=True):
            machine = twins.machines[slot]
            if want is None:
                continue
            assert (token, code & 3) == (want, {None: 0, "stop": 1, "length": 2}[machine.done]), before[slot]
            assert token not in before[slot].banned() or code & 4 or before[slot].forced() == token
            watch(seen, before[slot], machine)
            told = twins.device.snapshots([slot])[0]
            ids, found = told.ids, told.machine
            assert ids == twins.output[slot]
            assert found == machine if not machine.done else found.done == machine.done
            assert (found.used, found.steps, found.line_state) == (machine.used, machine.steps, machine.line_state)
            if rng.random() < 0.1 and not machine.done:
                twins.device.release(slot)
                key = twins.rows[slot].stream_key
                params = twins.rows[slot].params
                twins.device.bind(slot, params, found, prompt_ids=[1, 2], stream_key=key, output=ids)
                seen["back"] += 1
    rules = "steps", "budget", "landing", "close_at", "gap", "no think", "no call", "back", *PHASES
    assert min(seen[rule] for rule in rules) > 0, seen


@pytest.mark.parametrize("kind", KINDS, ids=["greedy", "free", "top_k", "nucleus", "wide"])
def test_what_a_phase_bans_is_never_drawn(kind: SamplingParams) -> None:
    """However likely it is: in the first chunk, in the last one, and where nothing else is allowed."""
    vocab = 150
    tags: dict[str, Any] = {"think": 140, "end_think": 149, "tool_call": 3, "end_tool_call": 70, "ban_think": True}
    twins = Twins(5, vocab, chunk=64)
    for slot, phase in enumerate(("start", "thinking", "answer", "tool_call", "thinking"), 1):
        twins.bind(slot, replace(kind, seed=slot), Machine(phase=phase, **tags))
    twins.mask(5, [3, 70])
    logits = torch.randn(5, vocab, generator=torch.Generator().manual_seed(0))
    logits[:, [3, 70, 140]] += torch.tensor([[0, 0, 90.0], [90, 90, 0], [0, 0, 90], [0, 0, 90], [90, 90, 0]])
    out, expected = twins.step(logits, [1, 2, 3, 4, 5])
    assert out[:4, 0].tolist() == expected[:4]
    assert not {3, 70, 140} & set(expected[:3])
    assert expected[3] == 140
    assert out[4].tolist() == [-2, 3]


def drafting(rng: random.Random, rows: int, vocab: int) -> tuple[DeviceSampler, DeviceSampler, torch.Tensor]:
    """Two samplers with the same samples, and what logits follow: two thirds of draws are the likeliest token."""
    pair = [DeviceSampler(rows, vocab, DEVICE, max_len=32, chunk=64) for _ in range(2)]
    pace = random_pace(rng, vocab)
    for slot in range(1, rows + 1):
        machine = random_machine(rng, vocab, pace)[0]
        params = replace(rng.choice(KINDS[:4]), seed=slot)
        key = RowSampler(params, [1], vocab, torch.device("cpu")).stream_key
        for sampler in pair:
            sampler.bind(slot, params, machine, prompt_ids=[1], stream_key=key)
    logits = torch.randn(rows, 5, vocab, generator=torch.Generator().manual_seed(rng.randrange(99))) * 3
    return pair[0], pair[1], logits.to(DEVICE)


def numbers(sampler: DeviceSampler, slot: int) -> tuple[Any, ...]:
    return sampler._state[:, slot].tolist(), sampler.history[slot, : int(sampler.count[slot])].tolist()


@pytest.mark.parametrize("seed", range(2))
def test_drafts_are_verified_as_if_drawn_one_by_one(seed: int) -> None:
    """Drafts that are right up to some place, wrong, or missing; rows that end, have ended, or only pad."""
    rng = random.Random(seed)
    seen: Counter[Any] = Counter()
    slow, fast, logits = drafting(rng, 8, 60)
    for _ in range(2):
        slots = [*rng.sample(range(1, 9), 8), 0]
        given = torch.cat([logits, logits[:1]])
        plain = [[[-1, 0]] * 5 for _ in slots]
        drafts = torch.randint(0, 60, (9, 4), generator=torch.Generator().manual_seed(seed))
        for i, slot in enumerate(slots[:8]):
            right, out = rng.choice([0, 1, 2, 4, 4]), torch.zeros(1, 2, dtype=torch.int32, device=DEVICE)
            row, code = torch.tensor([slot], dtype=torch.int32, device=DEVICE), int(slow._state[7, slot])
            seen["over"] += code > 0
            for place in range(0 if code else right + 1):
                slow.sample(given[i : i + 1, place], row, out)
                plain[i][place] = out[0].tolist()
                token, code = plain[i][place]
                if place < 4:
                    drafts[i, place] = token if place < right else rng.choice([-1, (token + 1) % 60])
                if code & 3:
                    seen["ended", place < right] += 1
                    break
                seen[place] += 1
        out = torch.full((9, 5, 2), -9, dtype=torch.int32, device=DEVICE)
        rows = torch.tensor(slots, dtype=torch.int32, device=DEVICE)
        fast.verify(given, rows, drafts.to(torch.int32).to(DEVICE), out)
        assert out.tolist() == plain
        for slot in range(9):
            assert numbers(fast, slot) == numbers(slow, slot)
    assert min(seen[key] for key in (0, 1, 2, 3, 4, "over", ("ended", True))) > 0, seen


def test_measurements_say_which_drafts_are_right() -> None:
    sampler = DeviceSampler(3, 40, DEVICE, max_len=32, chunk=64)
    for slot in range(1, 4):
        sampler.bind(slot, PLAIN, Machine(max_tokens=(9, 9, 2)[slot - 1]), prompt_ids=[1], stream_key=slot)
    accept = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1]], dtype=torch.bool, device=DEVICE)
    drafts = torch.full((3, 4), -1, dtype=torch.int32, device=DEVICE)
    out = torch.zeros(3, 5, 2, dtype=torch.int32, device=DEVICE)
    rows = torch.tensor([1, 2, 3], dtype=torch.int32, device=DEVICE)
    sampler.verify(torch.randn(3, 5, 40, device=DEVICE), rows, drafts, out, accept)
    assert (out[:, :, 0] >= 0).sum(1).tolist() == sampler.count[1:].tolist() == [3, 1, 2]
    assert out[2].tolist()[1:] == [[sampler.last_token[3].item(), 2], *[[-1, 0]] * 3]


def test_a_drafts_sampler_begins_where_the_other_is() -> None:
    one, other = Twins(3, 30, chunk=64), Twins(3, 30, chunk=64)
    for slot in (1, 2, 3):
        one.bind(slot, PLAIN, prompt=[1, 2, 3, 4])
        other.bind(slot, PLAIN, prompt=[9])
    one.step(torch.randn(3, 30), [1, 2, 3])
    kept = other.device._state.clone()
    other.device.copy_state(one.device, torch.tensor([3, 1, 0, 0], dtype=torch.int32, device=DEVICE))
    assert torch.equal(other.device._state[:3, [0, 1, 3]], one.device._state[:3, [0, 1, 3]])
    assert other.device.position.tolist() == [0, 4, 0, 4]
    assert torch.equal(other.device._state[:, 2], kept[:, 2])
    assert torch.equal(other.device._state[3:], kept[3:])


def test_a_sampler_knows_one_tables_worth_of_paragraphs() -> None:
    sampler = DeviceSampler(2, 30, DEVICE, max_len=8, chunk=64)
    table = random_pace(random.Random(0), 30)

    def bind(pace: np.ndarray | None) -> None:
        sampler.bind(1, PLAIN, Machine(pace=pace), prompt_ids=[1], stream_key=0)

    with pytest.raises(UsageError, match="the machine's pace has 29 entries, but vocab_size is 30"):
        bind(table[:29])
    bind(None)
    bind(table)
    address = sampler._cells.tolist()
    bind(table)
    bind(table.copy())
    bind(None)
    with pytest.raises(UsageError, match="pace is another tokenizer's"):
        bind(table ^ 1)
    assert sampler._cells.tolist() == address
