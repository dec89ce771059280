"""The planner against the engine's own planning, against published memory, and against itself."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from qwen3 import family
from qwen3.checkpoint.sizes import FORMATS, formats
from qwen3.config import ModelConfig
from qwen3.engine.memory import plan_blocks
from qwen3.errors import OutOfMemoryError, UsageError
from qwen3.kernels import BLOCK
from qwen3.model import threads
from qwen3.plan import BLOCK as OURS
from qwen3.plan import COPIES, GIB, MACHINES, Machine, Plan

MIB = 1 << 20
HYBRID = [member for member in family.MODELS.values() if member.mode == "hybrid"]


def config(size: str) -> ModelConfig:
    return family.MODELS[f"Qwen3-{size}"].config


def made(size: str, form: str, machine: Machine, **more: object) -> Plan:
    return Plan(config(size), FORMATS[form], machine, **{"limit": 131072, **more})  # type: ignore[arg-type]


def test_constants_are_those_of_who_computes() -> None:
    assert OURS == BLOCK
    assert COPIES == threads._SHARE


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_engine_gives_the_cache_as_much(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`plan_blocks`, told that as much is free as the planner thinks, finds the blocks that the planner counts on."""
    draw = random.Random(device)
    kinds = {1: torch.float8_e4m3fn, 2: torch.bfloat16, 4: torch.float32}
    refused = 0
    for _ in range(200):
        member = draw.choice(HYBRID)
        form = draw.choice(formats(member.config, device))  # type: ignore[arg-type]
        gib = draw.choice([8, 16, 24, 48, 96, 512])
        machine = Machine.gpu(gib) if device == "cuda" else Machine.cpu(gib)
        kv, context, batch = (
            draw.choice([None, "fp8", "bfloat16"]),
            draw.choice([300, 4096, 32768]),
            draw.randrange(1, 40),
        )
        plan = Plan(member.config, form, machine, context=context, batch=batch, kv=kv)
        size = 1 if kv == "fp8" else 2 if kv else plan.sizes.cache
        left = machine.free - plan.weights - plan.copies
        monkeypatch.setattr("qwen3.engine.memory.available_bytes", lambda device, left=left: left)
        from qwen3.engine.budget import usual_chunk

        tokens = usual_chunk(member.config, device, plan.sizes.size, machine.memory)
        try:
            blocks = plan_blocks(
                member.config, torch.device(device), kinds[plan.sizes.size], kinds[size],
                rows=batch, max_len=1 << 20, tokens=tokens, grouped=plan.sizes.grouped,
            )  # fmt: skip
        except OutOfMemoryError:
            blocks, refused = 0, refused + 1
        wanted = 1 + batch * -(-context // BLOCK)
        most = 1 + batch * (1 << 20) // BLOCK
        if device == "cpu":
            most = min(most, 1 + (1 << 20) // BLOCK)
        if wanted <= most:
            assert plan.fits == (wanted <= blocks), plan
    assert 10 < refused < 190


# Qwen's own table (its documentation, speed_benchmark.md, May 2025): MiB that Transformers takes on an H20 with 96 GB
# for prompts of 1, 6,144, 14,336 and 30,720 tokens and 2,048 more that are generated.
PROMPTS = (1, 6144, 14336, 30720)
PUBLISHED = """
0.6B bf16 1394 2066 2963 4755
0.6B fp8 1217 1943 2839 4632
0.6B gptq-int8 986 1658 2554 4347
1.7B bf16 3412 4213 5109 6902
1.7B fp8 2726 3462 4359 6151
1.7B gptq-int8 2229 2901 3798 5590
4B bf16 7973 8860 10012 12317
4B fp8 5281 6144 7297 9611
4B awq 2915 3881 5151 7742
8B bf16 15947 16811 17963 20267
8B fp8 9323 10187 11340 13644
8B awq 6177 7113 8409 11001
14B bf16 28402 29495 30775 33336
14B fp8 16012 16972 18253 20813
14B awq 9962 11020 12438 15323
32B bf16 62751 64583 66632 70728
32B fp8 33379 34915 36963 41060
32B awq 19109 20795 23105 27718
30B-A3B bf16 58462 59037 59806 61342
30B-A3B fp8 30296 30872 31641 33177
"""
ROWS = [line.split() for line in PUBLISHED.split("\n") if line]


@pytest.mark.parametrize(("size", "form", "published"), [(s, f, [*map(int, rest)]) for s, f, *rest in ROWS])
def test_published_memory(size: str, form: str, published: list[int]) -> None:
    """Weights as stored and the cache, without any working memory: within 4 %, with AWQ 8 %, whose kernels take 17 to
    31 KiB more for each token of a prompt. Transformers holds a tied head a second time beside FP8 weights."""
    own, plan = config(size), made(size, form, Machine.gpu(96))
    twice = 2 * own.vocab_size * own.hidden_size if form == "fp8" and own.tie_word_embeddings else 0
    for prompt, memory in zip(PROMPTS, published, strict=True):
        ours = (plan.sizes.file + twice + plan.cache(prompt + 2048, 1)) / MIB
        assert ours == pytest.approx(memory, rel=0.08 if form == "awq" else 0.04), prompt
    growth = (plan.cache(14336 + 2048, 1) - plan.cache(6144 + 2048, 1)) / MIB
    assert growth == pytest.approx(published[2] - published[1], rel=0.13 if form == "awq" else 0.01)


def test_what_qwen_needed_several_gpus_for() -> None:
    """The same page, with SGLang: 235B in bfloat16 on 8 of these GPUs, in FP8 on 4; 32B in bfloat16 on one up to 63,488
    tokens and on 2 for 129,024."""
    whole = {"context": 131072}
    assert made("235B-A22B", "fp8", Machine.gpu(96, count=4), **whole).fits
    assert not made("235B-A22B", "fp8", Machine.gpu(96, count=2), **whole).fits
    assert not made("235B-A22B", "bf16", Machine.gpu(96, count=4), **whole).fits
    assert made("235B-A22B", "bf16", Machine.gpu(96, count=8), **whole).fits
    assert made("32B", "bf16", Machine.gpu(96), context=63488 + 2048).fits
    assert not made("32B", "bf16", Machine.gpu(96), **whole).fits
    assert made("32B", "bf16", Machine.gpu(96, count=2), **whole).fits
    assert made("32B", "fp8", Machine.gpu(96), **whole).fits


def test_the_announcements() -> None:
    """235B on 4 cards of 96 GB; 32B on one card; 4B on a phone, in 4 bits; 0.6B anywhere."""
    phone, laptop = MACHINES[0], MACHINES[3]
    assert made("235B-A22B", "fp8", MACHINES[-2]).fits
    assert made("32B", "fp8", Machine.gpu(48)).fits
    assert made("4B", "Q4_K_M", phone, context=4096, kv="fp8").fits
    assert not made("8B", "Q4_K_M", phone, context=4096, kv="fp8").fits
    assert made("30B-A3B", "Q4_K_M", laptop, context=4096).fits
    assert all(made("0.6B", "Q8_0", machine, context=4096).fits for machine in MACHINES)


def test_needed_is_where_it_begins_to_fit() -> None:
    draw = random.Random(4)
    for _ in range(40):
        member, machine = draw.choice(HYBRID), draw.choice(MACHINES)
        form = draw.choice(formats(member.config, machine.device))
        plan = Plan(member.config, form, machine, context=draw.choice([256, 5000, 40960]), batch=draw.randrange(1, 9))
        enough = replace(machine, free=plan.needed)
        assert replace(plan, machine=enough).fits
        assert not replace(plan, machine=replace(machine, free=plan.needed - 4096)).fits
        assert plan.fits == (machine.free >= plan.needed)


def test_longest_and_largest_are_the_last_that_fit() -> None:
    draw = random.Random(5)
    for _ in range(60):
        member, machine = draw.choice(HYBRID), draw.choice(MACHINES)
        form = draw.choice(formats(member.config, machine.device))
        plan = Plan(member.config, form, machine)
        if plan.longest:
            assert replace(plan, context=plan.longest).fits
            assert plan.longest == plan.most or not replace(plan, context=plan.longest + BLOCK).fits
        else:
            assert not replace(plan, context=256).fits
        most = plan.largest_batch(4096)
        assert not most or replace(plan, context=4096, batch=most).fits
        assert most == 1024 or not replace(plan, context=4096, batch=most + 1).fits


def test_advice_is_true() -> None:
    plan = made("8B", "bf16", Machine.gpu(24), batch=4)
    advice = plan.advice(formats(plan.config, "cuda"))
    assert not plan.fits
    assert advice[:1] == ["--batch 1"]
    assert any(line.startswith("--context ") for line in advice)
    for line in advice:
        flag, _, value = line.partition(" ")
        if flag == "--context":
            assert replace(plan, context=int(value)).fits
            assert not replace(plan, context=int(value) + BLOCK).fits
        elif flag == "--batch":
            assert replace(plan, batch=int(value)).fits
    assert advice[-1].endswith(f"GiB free instead of {23 * GIB / GIB:.1f}")
    tight = made("8B", "Q4_K_M", Machine.cpu(16), context=36000)
    assert tight.advice(formats(tight.config, "cpu"))[0] == "--kv-dtype fp8"
    assert replace(tight, kv="fp8").fits
    assert made("0.6B", "bf16", Machine.gpu(24), limit=40960, context=50000).advice([]) == [
        "--context 40960, for which it was made"
    ]
    assert made("0.6B", "bf16", Machine.gpu(24)).advice([]) == []


def test_wrong_values() -> None:
    for wrong in ({"context": 0}, {"batch": 0}, {"kv": "int4"}):
        with pytest.raises(UsageError, match=next(iter(wrong)).replace("kv", "kv_dtype")):
            made("8B", "bf16", Machine.gpu(24), **wrong)
