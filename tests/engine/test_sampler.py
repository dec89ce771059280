"""The vectorised sampler against a slow twin, one row at a time in float64, and against statistics."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch

from qwen3.engine.measures import measure, read_logprobs
from qwen3.engine.params import SamplingParams
from qwen3.engine.sampler import RowSampler, gumbel, mix64, noise_key, sample
from qwen3.errors import CorruptFileError, UsageError

CPU = torch.device("cpu")


def slow_distribution(
    logits: list[float], params: SamplingParams, prompt: list[int], output: list[int], forbidden: tuple[int, ...] = ()
) -> list[float]:
    """Probabilities by the book: one row, plain Python floats, one rule after the other."""
    z = list(logits)
    for token, bias in (params.logit_bias or {}).items():
        z[token] += bias
    for token in set(prompt) | set(output):
        z[token] = z[token] / params.repetition_penalty if z[token] > 0 else z[token] * params.repetition_penalty
    for token, count in Counter(output).items():
        z[token] -= params.frequency_penalty * count + params.presence_penalty
    for token in forbidden:
        z[token] = -math.inf
    if params.temperature == 0:
        best = max(range(len(z)), key=lambda i: z[i])
        return [float(i == best) for i in range(len(z))]
    top = max(z)
    p = [math.exp((v - top) / params.temperature) for v in z]
    order = sorted(range(len(z)), key=lambda i: -p[i])
    if 0 < params.top_k < len(z):
        border = p[order[params.top_k - 1]]
        p = [v if v >= border else 0.0 for v in p]
    total = math.fsum(p)
    p = [v / total for v in p]
    if params.top_p < 1:
        mass, border = 0.0, 0.0
        for i in order:
            border = p[i]
            mass += p[i]
            if mass >= params.top_p:
                break
        p = [v if v >= border else 0.0 for v in p]
    best_p = max(p)
    p = [v if v >= params.min_p * best_p else 0.0 for v in p]
    total = math.fsum(p)
    return [v / total for v in p]


def slow_sample(p: list[float], row: RowSampler, step: int) -> int:
    """Gumbel-max with the same noise, evaluated in Python integers."""

    def scramble(x: int) -> int:
        x ^= x >> 16
        x = x * 0x7FEB352D % 2**32
        x ^= x >> 15
        x = x * 0x846CA68B % 2**32
        return x ^ (x >> 16)

    low, high = noise_key(row.stream_key, step)
    best, score = -1, -math.inf
    for i, v in enumerate(p):
        if v > 0:
            u = (scramble((scramble(i ^ low) + high) % 2**32) + 0.5) / 2**32
            value = math.log(v) - math.log(-math.log(u))
            if value > score:
                best, score = i, value
    return best


def random_params(rng: random.Random, vocab: int) -> SamplingParams:
    pick = rng.choice
    return SamplingParams(
        temperature=pick([0.0, 0.3, 0.6, 1.0, 1.7, 30.0]),
        top_p=pick([1.0, 0.95, 0.8, 0.3, 0.01]),
        top_k=pick([0, -1, 1, 2, 5, 20, vocab, vocab + 9]),
        min_p=pick([0.0, 0.0, 0.05, 0.4, 1.0]),
        presence_penalty=pick([0.0, 0.0, 1.5, -1.0]),
        frequency_penalty=pick([0.0, 0.0, 0.4, -0.7]),
        repetition_penalty=pick([1.0, 1.0, 1.3, 0.7]),
        logit_bias=pick([None, None, {rng.randrange(vocab): rng.uniform(-5, 5) for _ in range(3)}]),
        seed=rng.randrange(2**63),
    )


@pytest.mark.parametrize("seed", range(40))
def test_equals_slow_twin_on_mixed_batches(seed: int) -> None:
    rng = random.Random(seed)
    vocab, batch, padding = rng.choice([7, 40, 300, 2500]), rng.randrange(1, 9), rng.choice([0, 13])
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, vocab + padding, generator=generator) * rng.choice([1, 3, 6])
    logits[:, vocab:] = 1e4  # padding rows of the head: must never win
    if seed % 3 == 0:
        logits[:, :vocab] = logits[:, :vocab].bfloat16().float()  # many ties
    rows, expected, steps, forbidden, masks = [], [], [], [], []
    for b in range(batch):
        params = random_params(rng, vocab)
        prompt = [rng.randrange(vocab) for _ in range(5)]
        output = [rng.randrange(vocab) for _ in range(rng.randrange(6))]
        banned = rng.sample(range(vocab), rng.randrange(3))
        row = RowSampler(params, prompt, vocab, CPU, index=rng.randrange(3))
        for token in output:
            row.record(token)
        mask, refused = None, set(banned)
        if rng.random() < 0.4:
            allowed = set(rng.sample(range(vocab), rng.choice([3, vocab // 2 + 3])))
            banned = [token for token in banned if token not in allowed]  # something must be left
            mask, refused = bits(allowed, vocab), set(range(vocab)) - allowed
        p = slow_distribution(logits[b, :vocab].double().tolist(), params, prompt, output, tuple(refused))
        expected.append(max(range(vocab), key=p.__getitem__) if params.greedy else slow_sample(p, row, len(output)))
        rows.append(row)
        steps.append(len(output))
        forbidden.append(banned)
        masks.append(mask)
    before = logits.clone()
    assert sample(logits, rows, steps, forbidden, masks) == expected
    assert torch.equal(logits, before), "the logits are the caller's"
    alone = [
        sample(logits[b : b + 1], rows[b : b + 1], steps[b : b + 1], forbidden[b : b + 1], masks[b : b + 1])[0]
        for b in range(batch)
    ]
    assert alone == expected


def bits(allowed: set[int], vocab: int) -> np.ndarray:
    found = np.zeros(-(-vocab // 32) * 32, np.uint8)
    found[list(allowed)] = 1
    return np.packbits(found, bitorder="little").view(np.int32)


def test_what_a_mask_rules_out_is_no_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer tokens than top_k: the k-th best is minus infinity, as the whole vocabulary, which need not be sorted."""
    asked, topk = [], torch.topk
    monkeypatch.setattr(torch, "topk", lambda x, k, **how: asked.append(k) or topk(x, k, **how))  # type: ignore[func-returns-value]
    row = RowSampler(SamplingParams(temperature=0.6, top_p=0.95, top_k=20, min_p=0, seed=3), [], 5000, CPU)
    chosen = {sample(torch.randn(1, 5000), [row], [step], [()], [bits({4, 900, 4999}, 5000)])[0] for step in range(50)}
    assert chosen == {4, 900, 4999}
    assert set(asked) == {20}


def chi_square(counts: Counter[int], p: list[float], draws: int) -> tuple[float, int]:
    cells = [(counts[i], draws * v) for i, v in enumerate(p) if draws * v >= 5]
    rest_seen, rest_expected = draws - sum(c for c, _ in cells), draws - sum(e for _, e in cells)
    if rest_expected >= 5:
        cells.append((rest_seen, rest_expected))
    return sum((c - e) ** 2 / e for c, e in cells), len(cells) - 1


@pytest.mark.parametrize("over", ["steps", "seeds", "indices"])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1, top_p=1, top_k=0, min_p=0),
        SamplingParams(temperature=0.6, top_p=0.95, top_k=20, min_p=0),
        SamplingParams(temperature=0.7, top_p=0.8, top_k=0, min_p=0.02),
        SamplingParams(temperature=2, top_p=1, top_k=5, min_p=0),
    ],
)
def test_chi_square(over: str, params: SamplingParams) -> None:
    """20,000 draws over steps of one sample, over seeds, and over the n samples of a seed."""
    vocab, draws = 50, 20_000
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(5)) * 1.5
    p = slow_distribution(logits[0].tolist(), params, [], [])
    row = RowSampler(params, [], vocab, CPU)
    counts: Counter[int] = Counter()
    for start in range(0, draws, 2000):
        numbers = range(start, start + 2000)
        rows = []
        for i in numbers:
            one = object.__new__(RowSampler)
            one.__dict__ = dict(row.__dict__)
            one.stream_key = {
                "steps": mix64(mix64(1)),
                "seeds": mix64(mix64(i)),
                "indices": mix64(mix64(1) ^ i),
            }[over]
            rows.append(one)
        steps = list(numbers) if over == "steps" else [0] * 2000
        counts.update(sample(logits.expand(2000, -1), rows, steps, [()] * 2000))
    assert all(p[i] > 0 for i in counts)
    value, freedom = chi_square(counts, p, draws)
    assert value < freedom + 4.5 * math.sqrt(2 * freedom) + 6, (value, freedom)


def test_noise_is_gumbel_and_independent_of_company() -> None:
    keys = torch.tensor([noise_key(mix64(s), t) for s in range(20) for t in range(20)])
    ids = torch.arange(500).unsqueeze(0)
    g = gumbel(keys, ids)
    assert g.shape == (400, 500)
    assert abs(g.mean().item() - 0.57722) < 0.01
    assert abs(g.var().item() - math.pi**2 / 6) < 0.02
    some = torch.tensor([[3, 77, 499]])
    assert torch.equal(gumbel(keys[7:8], some), g[7:8, some[0]])
    shifted = torch.corrcoef(torch.stack([g[:-1].flatten(), g[1:].flatten()]))[0, 1]
    neighbours = torch.corrcoef(torch.stack([g[:, :-1].flatten(), g[:, 1:].flatten()]))[0, 1]
    assert abs(shifted.item()) < 0.01
    assert abs(neighbours.item()) < 0.01


def test_ties_at_the_border_are_all_kept() -> None:
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, -3.0]])
    seen = set()
    for seed in range(200):
        row = RowSampler(SamplingParams(temperature=1, top_p=1, top_k=2, min_p=0, seed=seed), [], 5, CPU)
        seen.add(sample(logits, [row], [0], [()])[0])
    assert seen == {0, 1, 2, 3}


def test_a_broken_row_is_an_error_of_its_own() -> None:
    logits = torch.zeros(3, 4)
    logits[1] = float("nan")
    params = [
        SamplingParams(temperature=1, top_p=1, top_k=0, min_p=0),
        SamplingParams(temperature=0, top_p=1, top_k=0, min_p=0),
        SamplingParams(temperature=0.6, top_p=0.9, top_k=2, min_p=0),
    ]
    rows = [RowSampler(p, [], 4, CPU) for p in params]
    logits[0, 3] = float("nan")
    assert isinstance(sample(logits[:1], rows[:1], [0], [()])[0], CorruptFileError)
    logits[0, 3] = 0
    first, second, third = sample(logits, rows, [0, 0, 0], [(), (), (0, 1, 2, 3)])
    assert first in range(4)
    assert isinstance(second, CorruptFileError)
    assert "qwen3 verify" in str(second)
    assert isinstance(third, UsageError)
    assert "forbidden" in str(third)


def test_extreme_temperatures() -> None:
    logits = torch.tensor([[0.0, 5.0, 4.999, -1e4]])
    for temperature, allowed in ((1e-30, {1}), (100.0, {0, 1, 2, 3})):
        row = RowSampler(SamplingParams(temperature=temperature, top_p=1, top_k=0, min_p=0, seed=1), [], 4, CPU)
        assert {sample(logits, [row], [t], [()])[0] for t in range(300)} <= allowed


def test_unresolved_and_unknown_ids_are_refused() -> None:
    with pytest.raises(UsageError, match="temperature is None"):
        RowSampler(SamplingParams(), [], 10, CPU)
    with pytest.raises(UsageError, match="logit_bias names token 10, but the vocabulary ends at 9"):
        RowSampler(SamplingParams(logit_bias={10: 1}).resolved("thinking"), [], 10, CPU)
    with pytest.raises(UsageError, match="stop_token_ids names token 12"):
        RowSampler(SamplingParams(stop_token_ids=[12]).resolved("thinking"), [], 10, CPU)


def test_logprobs_are_the_raw_distribution() -> None:
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(2)) * 4
    expected = torch.log_softmax(logits.double(), dim=1)
    found = read_logprobs(measure(logits, torch.tensor([4, 0, 15]), 5, vocab_size=16), [5, 5, 5])
    assert [entry.id for entry in found] == [4, 0, 15]
    for i, entry in enumerate(found):
        assert entry.logprob == pytest.approx(expected[i, entry.id].item(), abs=1e-5)
        best = sorted(range(16), key=lambda t: -expected[i, t])[:5]
        assert [t for t, _ in entry.top] == best
        assert [v for _, v in entry.top] == pytest.approx([expected[i, t].item() for t in best], abs=1e-5)
    assert read_logprobs(measure(logits, torch.tensor([1, 1, 1]), 0, 16), [0, 0, 0])[0].top == []
