"""Bits where they count: against every other choice, to a size, an average and a loss."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from qwen3.errors import UsageError
from qwen3.quantize.mixed import Candidate, choose, measure
from qwen3.quantize.run import Report, quantize_tensors
from qwen3.quantize.spec import Rule, Spec, plan
from tests.fixtures import random_checkpoint, tiny_config

WIDTHS = (2, 3, 4, 8)


def made_up(seed: int, layers: int = 2) -> dict[str, list[Candidate]]:
    """o_proj and down_proj of some layers: units of one module each."""
    rng = random.Random(seed)
    found = {}
    for layer in range(layers):
        for kind in ("self_attn.o_proj", "mlp.down_proj"):
            size, loss = rng.choice((1000, 4000)), 10 ** rng.uniform(-2, 1)
            losses = [loss * 4.0**-bits * rng.uniform(0.7, 1.4) for bits in WIDTHS]
            found[f"model.layers.{layer}.{kind}"] = [
                Candidate(bits, bits * size / 8, size, one) for bits, one in zip(WIDTHS, losses, strict=True)
            ]
    return found


def every_choice(candidates: dict[str, list[Candidate]]) -> list[Sequence[Candidate]]:
    return list(itertools.product(*candidates.values()))


@pytest.mark.parametrize("seed", range(6))
def test_no_choice_of_as_many_bytes_loses_less(seed: int) -> None:
    candidates = made_up(seed)
    for average in (2.0, 2.7, 3.5, 5.0, 8.0):
        mix = choose(candidates, average=average)
        assert mix.average <= average
        rivals = [each for each in every_choice(candidates) if sum(c.nbytes for c in each) <= mix.nbytes]
        best = min(sum(c.loss for c in each) for each in rivals)
        # steps that fit into what a step too large has left may be less than the best there is
        assert mix.loss <= best * 1.25
        chosen = [next(c for c in own if c.bits == mix.bits[name]) for name, own in candidates.items()]
        assert mix.nbytes == pytest.approx(sum(c.nbytes for c in chosen))
        assert mix.loss == pytest.approx(sum(c.loss for c in chosen))


@pytest.mark.parametrize("seed", range(6))
def test_a_loss_target_is_met_with_few_bytes(seed: int) -> None:
    candidates = made_up(seed)
    low, high = (choose(candidates, average=bits).loss for bits in (8.0, 2.0))
    for target in (high, (high * low) ** 0.5, low):
        mix = choose(candidates, loss=target)
        assert mix.loss <= target * (1 + 1e-9)
        least = min(
            sum(c.nbytes for c in each)
            for each in every_choice(candidates)
            if sum(c.loss for c in each) <= target * (1 + 1e-9)
        )
        largest = max(own[-1].nbytes - own[0].nbytes for own in candidates.values())
        assert mix.nbytes <= least + largest  # one step's bytes


def test_what_inference_keeps_as_one_gets_the_same_bits() -> None:
    names = [f"model.layers.0.self_attn.{n}_proj" for n in "qkv"]
    names += [f"model.layers.0.mlp.experts.{e}.{n}_proj" for e in range(3) for n in ("gate", "up")]
    rng = random.Random(1)
    candidates = {n: [Candidate(b, b * 100.0, 800, rng.random() / b) for b in WIDTHS] for n in names}
    mix = choose(candidates, average=4.5)
    assert len({mix.bits[name] for name in names[:3]}) == 1
    assert len({mix.bits[name] for name in names[3:]}) == 1
    assert all(sum(rule.matches(name) for rule in mix.rules) == 1 for name in names)
    assert all(rule.bits == mix.bits[name] for name in names for rule in mix.rules if rule.matches(name))


def test_targets_that_cannot_be_met_or_are_none() -> None:
    candidates = made_up(0)
    for wrong in ({}, {"average": 3.0, "loss": 0.1}):
        with pytest.raises(UsageError, match="give one target"):
            choose(candidates, **wrong)
    with pytest.raises(UsageError, match="more than the target"):
        choose(candidates, average=1.9)
    with pytest.raises(UsageError, match="more than the target"):
        choose(candidates, loss=0.0)
    name = "model.layers.0.self_attn.q_proj"
    with pytest.raises(UsageError, match=r"qkv_proj.*not measured at the same widths"):
        choose({name: candidates["model.layers.0.mlp.down_proj"], name.replace("q_", "k_"): []}, average=4.0)


@pytest.mark.parametrize("moe", [False, True])
def test_measured_on_a_checkpoint_and_applied_to_it(tmp_path: Path, moe: bool) -> None:
    config = tiny_config(moe)
    path = random_checkpoint(tmp_path / "model", config, tokenizer=True)
    spec = Spec("gptq", group=32, samples=4, length=64, rules=(Rule("*.layers.1.self_attn.o_proj", skip=True),))
    candidates = measure(path, spec, (2, 4, 8))
    assert {*candidates} == {*plan(spec, config)}
    for name, own in candidates.items():
        assert [c.bits for c in own] == [2, 4, 8]
        assert own[0].nbytes < own[1].nbytes < own[2].nbytes
        assert own[0].loss > own[1].loss > own[2].loss > 0 or "experts" in name
    mix = choose(candidates, average=5.0)
    assert 4.0 < mix.average <= 5.0
    assert len({*mix.bits.values()}) > 1
    report = Report()
    for _ in quantize_tensors(path, mix.applied(spec), report=report):
        pass
    assert {m.module: round(m.bits - 0.5) for m in report.matrices} == mix.bits  # a scale for 32 columns is half a bit


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="rtn or gptq"):
        measure(tmp_path, Spec("awq"))
    with pytest.raises(UsageError, match="no rules but those that skip"):
        measure(tmp_path, Spec("gptq", rules=(Rule("*", bits=8),)))
    with pytest.raises(UsageError, match="need calibration data"):
        measure(tmp_path, Spec("rtn"))
    with pytest.raises(UsageError, match="bits must be one of"):
        measure(tmp_path, Spec("gptq"), (1, 4))
