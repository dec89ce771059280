"""Weights of 2 to 8 bits: their layout, the compiled product against its plain twin, and models that are held so."""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from qwen3 import LLM, SamplingParams, ThinkingPolicy
from qwen3.checkpoint.source import Form
from qwen3.errors import UsageError
from qwen3.kernels import dispatch, native, packed
from qwen3.kernels.packed import PackedWeight
from qwen3.model.pack import pack_model
from qwen3.tasks import FAMILIES
from tests.fixtures import random_model, tiny_config

COMPILED = native.library()
needs_compiler = pytest.mark.skipif(COMPILED is None, reason=f"no compiled kernels: {native.state()}")


def some(bits: int, group: int, rows: int, columns: int, mins: bool = False) -> PackedWeight:
    q = torch.randint(0, 1 << bits, (rows, columns), dtype=torch.uint8)
    scale = (torch.rand(rows, columns // group) * 0.1 - 0.02).half()
    return packed.pack(q, scale, (torch.randn(rows, columns // group) * 0.3).half() if mins else None, bits)


@pytest.mark.parametrize("mins", [False, True])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_layout(bits: int, group: int, mins: bool) -> None:
    rows, columns = 37, 256
    q = torch.randint(0, 1 << bits, (rows, columns), dtype=torch.uint8)
    scale = torch.randn(rows, columns // group).half()
    least = torch.randn(rows, columns // group).half() if mins else None
    weight = packed.pack(q, scale, least, bits)
    assert torch.equal(packed.unpack(weight.data, bits)[:rows], q)
    wide = q.double().unflatten(1, (-1, group))
    plain = wide * scale.double().unsqueeze(-1) + least.double().unsqueeze(-1) if least is not None else (
        (wide - (1 << (bits - 1))) * scale.double().unsqueeze(-1)
    )  # fmt: skip
    assert torch.allclose(weight.dequantize(torch.float64), plain.flatten(1), rtol=1e-6, atol=1e-6)
    ids = torch.tensor([[0, 36], [17, 17]])
    looked_up: Any = F.embedding
    assert torch.equal(looked_up(ids, weight), weight.dequantize()[ids])
    assert weight.shape == (rows, columns)
    assert weight.nbytes < rows * columns * (bits / 8) * 1.6 + 16 * columns


@pytest.mark.parametrize("form", sorted(packed.FORMS))
def test_layout_of_every_form(form: tuple[int, int, bool, bool]) -> None:
    bits, fine, table, least = form
    rows, columns, group = 21, 512, 256 if fine else 32
    q = torch.randint(0, 1 << bits, (rows, columns), dtype=torch.uint8)
    scale = torch.randn(rows, columns // group).half()
    mins = torch.randn(rows, columns // group).half() if least else None
    levels = 2 if least else 1
    marks = torch.randint(-128, 128, (rows, levels, columns // fine), dtype=torch.int8) if fine else None
    weight = packed.pack(q, scale, mins, bits, None if marks is None else marks.flatten(1), table=table)
    assert torch.equal(packed.unpack(weight.data, bits)[:rows], q)

    def wide(values: torch.Tensor, each: int) -> torch.Tensor:
        return values.double().repeat_interleave(each, 1)

    numbers = torch.tensor(packed.TABLE)[q.int()].double() if table else q.double() - (0 if least else 1 << bits - 1)
    plain = numbers * wide(scale, group) * (1 if marks is None else wide(marks[:, 0], fine))
    if mins is not None:
        plain += wide(mins, group) * (1 if marks is None else wide(marks[:, 1], fine))
    assert torch.allclose(weight.dequantize(torch.float64), plain, rtol=1e-6, atol=1e-4)
    looked_up: Any = F.embedding
    ids = torch.tensor([[0, 20], [17, 16]])
    assert torch.equal(looked_up(ids, weight), weight.dequantize()[ids])
    per_weight = bits + (8 * levels / fine if fine else 0) + 16 * levels / group
    assert weight.nbytes * 8 == per_weight * 32 * columns  # 21 rows are kept as 32
    assert Form(bits, group, least, fine, table).nbytes(rows, columns) == weight.nbytes
    x = torch.randn(3, columns)
    with torch.enable_grad():
        assert torch.equal(F.linear(x, weight), F.linear(x, weight.dequantize()))  # type: ignore[arg-type]


@needs_compiler
@pytest.mark.parametrize("form", sorted(packed.FORMS))
def test_every_form_compiled(form: tuple[int, int, bool, bool]) -> None:
    """Against the plain twin; each row the same whatever else there is."""
    weight, x = packed.sample(form, (70, 512), 256), torch.randn(11, 512)
    found, plain = packed.compiled_linear(x, weight), packed.linear(x, weight)
    assert (found - plain).norm() <= 2e-6 * plain.norm()
    for first, count in ((0, 1), (3, 2), (2, 3), (1, 5), (4, 7)):
        assert torch.equal(packed.compiled_linear(x[first : first + count], weight), found[first : first + count])
    wide, residual = packed.sample(form, (96, 256), 256), torch.randn(11, 48)
    how: dict[str, Any] = {"silu": True, "residual": residual}
    found, plain = (run(x[:, :256], wide, **how) for run in (packed.compiled_linear, packed.linear))
    assert (found - plain).norm() <= 2e-6 * plain.norm()


@needs_compiler
def test_largest_sums_are_exact() -> None:
    """All numbers and activations at their ends: sums of 16 or 32 products times the integer scale fit."""
    for bits, fine, table, least in sorted(packed.FORMS):
        q = torch.full((16, 512), 0 if bits < 8 and not least else (1 << bits) - 1, dtype=torch.uint8)
        scale, marks = torch.ones(16, 2).half(), None
        if fine:
            marks = torch.full((16, 512 // fine * (2 if least else 1)), -128, dtype=torch.int8)
        weight = packed.pack(q, scale, scale if least else None, bits, marks, table=table)
        x = torch.full((9, 512), 127.0)
        assert torch.equal(packed.compiled_linear(x, weight), x @ weight.dequantize().T), (bits, fine, table, least)


@needs_compiler
@pytest.mark.slow
def test_the_other_processors_paths(tmp_path: Path) -> None:
    """The same bits from AVX2, from plain C, and from what this processor takes."""
    said = subprocess.run(["cc", "-dumpmachine"], capture_output=True, text=True, check=True).stdout
    if not said.startswith("x86_64"):
        pytest.skip(f"cc is for {said}")
    source = Path(native.__file__).with_name("packed.c")
    for name, flags in (("AVX2", ["-mavx2", "-mfma", "-mf16c"]), ("plain C", [])):
        made = tmp_path / f"{name}.so"
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", *flags, str(source), "-o", str(made), "-lm"], check=True)
        library = ctypes.CDLL(str(made))
        library.qwen3_path.restype = ctypes.c_char_p
        assert library.qwen3_path().decode() == name
        for form in sorted(packed.FORMS):
            weight, x = packed.sample(form, (64, 512), 256), torch.randn(9, 512)
            for silu in (False, True):
                found = packed.run(library, x, weight, silu=silu)
                plain = packed.compiled_linear(x, weight, silu=silu)
                if silu:  # exp may be fused another way
                    assert (found - plain).norm() <= 1e-6 * plain.norm(), (name, form)
                else:
                    assert torch.equal(found, plain), (name, form)


def test_parts_of_different_kinds() -> None:
    """One matrix whose rows are of several kinds; experts of it; those of one kind become one."""
    kinds = ((4, 32, False, True), (4, 32, False, True), (6, 16, False, False), (8, 0, False, False))
    parts = [packed.sample(kind, (rows, 256), 256) for kind, rows in zip(kinds, (32, 16, 24, 24), strict=True)]
    whole, plain = PackedWeight.cat(parts), torch.cat([part.dequantize() for part in parts])
    assert [part.rows for part in whole.parts] == [48, 24, 24]
    assert whole.shape == (96, 256)
    assert whole.nbytes == sum(part.nbytes for part in parts)
    assert torch.equal(whole.dequantize(), plain)
    looked_up: Any = F.embedding
    assert torch.equal(looked_up(torch.tensor([[95, 0], [50, 33]]), whole), plain[[95, 0, 50, 33]].view(2, 2, 256))
    x, residual = torch.randn(5, 256, requires_grad=True), torch.randn(5, 48)
    with torch.enable_grad():
        F.linear(x, whole).sum().backward()  # type: ignore[arg-type]
    assert torch.allclose(x.grad, plain.sum(0).expand(5, -1), rtol=1e-5, atol=1e-3)  # type: ignore[arg-type]
    with torch.no_grad():
        for how in ({}, {"silu": True, "residual": residual}, {"residual": torch.randn(5, 96)}):
            found, twin = packed.compiled_linear(x, whole, **how), packed.linear(x, whole, **how)
            assert (found - twin).norm() <= 2e-6 * twin.norm()
    experts = PackedWeight.stack([whole, whole, PackedWeight.cat(parts)])
    assert experts.shape == (3, 96, 256)
    assert torch.equal(experts[1].dequantize(), plain)
    assert torch.equal(experts.dequantize(), plain.expand(3, -1, -1))
    assert sum(buffer.nbytes for buffer in experts.buffers()) == experts.nbytes == 3 * whole.nbytes
    # rows of one kind that do not fill blocks of 16 stay apart
    assert len(PackedWeight.cat([parts[2], packed.sample(kinds[2], (16, 256), 256)]).parts) == 2


@needs_compiler
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 19])
@pytest.mark.parametrize("bits", [4, 8])
def test_compiled_against_plain(bits: int, rows: int) -> None:
    for group, mins, outputs in ((32, False, 48), (128, True, 70), (64, False, 96)):
        weight = some(bits, group, outputs, 256, mins)
        x, norm, residual = torch.randn(rows, 256), torch.rand(256) + 0.5, torch.randn(rows, outputs)
        for how in (
            {}, {"norm": norm, "eps": 1e-6}, {"residual": residual}, {"silu": True},
            {"silu": True, "residual": torch.randn(rows, outputs // 2)},
        ):  # fmt: skip
            found, plain = packed.compiled_linear(x, weight, **how), packed.linear(x, weight, **how)
            # a norm's last bit may round an activation to the next of its 255 steps; a gate may be nearly nothing
            apart = 2e-3 if "norm" in how else 5e-5 if "silu" in how else 2e-6
            assert (found - plain).norm() <= apart * plain.norm(), (group, mins, how.keys())


@needs_compiler
def test_rows_do_not_depend_on_the_batch_or_the_threads() -> None:
    weight, x = some(4, 32, 160, 512), torch.randn(21, 512)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = packed.compiled_linear(x, weight)
        torch.set_num_threads(2)
        assert torch.equal(packed.compiled_linear(x, weight), whole)
    finally:
        torch.set_num_threads(before)
    for i, row in enumerate(x.split(1)):
        assert torch.equal(packed.compiled_linear(row, weight)[0], whole[i])


@needs_compiler
def test_what_is_not_finite_stays_so() -> None:
    weight, x = some(8, 32, 32, 64), torch.randn(3, 64)
    x[1, 40] = torch.nan
    found = packed.compiled_linear(x, weight)
    assert found[1].isnan().all()
    assert found[0].isfinite().all()
    assert torch.equal(packed.compiled_linear(torch.zeros(1, 64), weight), torch.zeros(1, 32))
    assert packed.compiled_linear(torch.empty(0, 64), weight).shape == (0, 32)


@pytest.mark.parametrize(("bits", "most"), [(8, 0.008), (4, 0.12)])
def test_rounding_error(bits: int, most: float) -> None:
    weight = torch.randn(64, 256)
    held = packed.quantize_rtn(weight, bits, 128)
    assert (held.dequantize() - weight).norm() < most * weight.norm()
    again = packed.quantize_rtn(held.dequantize(), bits, 128)
    assert (again.dequantize() - held.dequantize()).norm() < 1e-3 * weight.norm()
    assert torch.equal(packed.quantize_rtn(torch.zeros(16, 64), bits, 32).dequantize(), torch.zeros(16, 64))


def test_bad_input() -> None:
    with pytest.raises(UsageError, match="NaN or infinite"):
        packed.quantize_rtn(torch.full((16, 64), torch.nan), 4, 32)
    with pytest.raises(UsageError, match="groups of 16"):
        packed.pack(torch.zeros(16, 64, dtype=torch.uint8), torch.zeros(16, 4), None, 4)
    with pytest.raises(UsageError, match="weights='int5' is not supported"):
        LLM(weights="int5")
    if COMPILED is not None:
        with pytest.raises(UsageError, match="64 columns"):
            packed.compiled_linear(torch.zeros(1, 64), some(4, 32, 16, 128))


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("moe", [False, True])
def test_a_network_that_is_held_so(kind: str, moe: bool) -> None:
    """Both forwards, dense and with experts, against the network of the dequantized weights."""
    torch.manual_seed(0)  # with some inputs a last bit changes what an activation is rounded to, and an expert
    model = random_model(tiny_config(moe))
    ids = torch.randint(0, model.config.vocab_size, (1, 12))
    pack_model(model, kind)
    with torch.inference_mode():
        found = model(ids)
        with dispatch.use("reference"):
            plain = model(ids)
    assert (found - plain).norm() < 0.01 * plain.norm()


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_the_embedded_model_still_solves(kind: str) -> None:
    with LLM(device="cpu", weights=kind) as llm:
        task, rng = FAMILIES["multiply"], random.Random(5)
        problems = [task.sample(rng, 2, split="eval") for _ in range(8)]
        asked = [problem.prompt for problem in problems]
        answers = llm.chat_batch(asked, ThinkingPolicy(mode="on"), SamplingParams(temperature=0))
        assert sum(task.check(problem, a.content) for problem, a in zip(problems, answers, strict=True)) >= 6
        alone = llm.generate([[5, 6, 7]], SamplingParams(max_tokens=20, temperature=0, ignore_eos=True))[0]
        crowd = llm.generate([[5, 6, 7], [9] * 40], SamplingParams(max_tokens=20, temperature=0, ignore_eos=True))[0]
        assert alone.text == crowd.text


def test_without_a_compiler(tmp_path: Path) -> None:
    """Nothing fails; what runs instead is said."""
    script = "from qwen3.kernels import native; print(native.library() is None, native.state())"
    for change, said in (({"QWEN3_NATIVE": "0"}, "QWEN3_NATIVE=0"), ({"CC": "/nowhere/cc"}, "/nowhere/cc failed")):
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)} | change
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert done.stdout.startswith("True none: "), done.stderr
        assert said in done.stdout
