"""Products in 8 bits: against bounds of their rounding in float64, the twin against PyTorch's own product, compiled."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from qwen3.engine import Engine, Request, SamplingParams
from qwen3.errors import UsageError
from qwen3.model.network import Linear
from qwen3.train.adapters import LoraConfig, add_lora
from qwen3.train.forward import Forward
from qwen3.train.fp8 import (
    E4M3,
    E5M2,
    Fp8Linear,
    RowwiseFp8Linear,
    _Linear,
    fp8_linear,
    multiply,
    native,
    quantize,
    twin,
    use_fp8,
)  # fmt: skip
from qwen3.train.optim import OptimConfig
from qwen3.train.trainer import CrossEntropy, Trainer
from tests.fixtures import random_model, tiny_config
from tests.train.test_forward import batch_of

HALF_ULP = {E4M3: 2**-4, E5M2: 2**-3}  # relative, of a normal number
SMALLEST = {E4M3: 2**-9, E5M2: 2**-16}  # step between subnormal numbers


def drawn(rows: int, columns: int, seed: int, spread: float = 1.0) -> Tensor:
    """Rows of different sizes, as activations have them."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=g) * torch.exp(spread * torch.randn(rows, 1, generator=g))


def bound(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """How far a rounded number may be from x, float64."""
    return torch.maximum(x.double().abs() * HALF_ULP[dtype], scale.double() * SMALLEST[dtype] / 2) * (1 + 1e-6)


@pytest.mark.parametrize("rowwise", [False, True])
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_rounding_stays_within_half_a_step(dtype: torch.dtype, rowwise: bool) -> None:
    x = drawn(32, 48, 0)
    eight, scale = quantize(x, dtype, rowwise)
    assert eight.dtype == dtype
    assert scale.shape == ((32, 1) if rowwise else ())
    back = eight.double() * scale.double()
    assert bool(((back - x.double()).abs() <= bound(x, scale, dtype)).all())
    largest = eight.float().abs().amax(1) if rowwise else eight.float().abs().amax()
    assert bool((largest == torch.finfo(dtype).max).all())
    zero, one = quantize(torch.zeros(4, 4), dtype, rowwise)
    assert bool((zero.float() * one == 0).all())


@pytest.mark.parametrize("rowwise", [False, True])
@pytest.mark.parametrize("dtypes", [(E4M3, E4M3), (E5M2, E4M3)])
def test_a_product_is_within_the_bounds_of_its_roundings(
    dtypes: tuple[torch.dtype, torch.dtype], rowwise: bool
) -> None:
    a, b = drawn(32, 64, 1), drawn(48, 64, 2)
    found = multiply(a, b, dtypes, rowwise)
    ea, eb = (bound(t, quantize(t, d, rowwise)[1], d) for t, d in zip((a, b), dtypes, strict=True))
    a64, b64 = a.double(), b.double()
    most = a64.abs() @ eb.T + ea @ b64.abs().T + ea @ eb.T + 1e-5 * (a64.abs() @ b64.abs().T)
    apart = (found.double() - a64 @ b64.T).abs()
    assert bool((apart <= most).all())
    assert float(apart.max()) > 1e-3, "nothing was rounded"


@pytest.mark.parametrize("rowwise", [False, True])
@pytest.mark.parametrize("dtypes", [(E4M3, E4M3), (E5M2, E4M3)])
def test_pytorchs_product_is_the_twins(dtypes: tuple[torch.dtype, torch.dtype], rowwise: bool) -> None:
    a, b = drawn(32, 64, 3).bfloat16(), drawn(48, 64, 4).bfloat16()
    (a8, sa), (b8, sb) = quantize(a, dtypes[0], rowwise), quantize(b, dtypes[1], rowwise)
    mine, theirs = (f(a8, b8, sa, sb, torch.bfloat16).float() for f in (twin, native))
    torch.testing.assert_close(theirs, mine, rtol=2**-7, atol=2**-7 * float(mine.abs().max()) / 64)


def test_scales_of_rows_keep_small_rows_that_one_scale_loses() -> None:
    a, b = drawn(32, 64, 5, spread=6.0), drawn(48, 64, 6)
    right = a.double() @ b.double().T
    apart = [
        ((multiply(a, b, (E4M3, E4M3), rowwise).double() - right).norm(dim=1) / right.norm(dim=1)).max()
        for rowwise in (True, False)
    ]
    assert apart[0] < 0.09 < 0.5 < apart[1]


@pytest.mark.parametrize("rowwise", [False, True])
@pytest.mark.parametrize("shape", [(32, 64), (3, 7, 64)])
def test_gradients_are_the_products_they_should_be(shape: tuple[int, ...], rowwise: bool) -> None:
    """Also of a number of tokens that is no multiple of 16."""
    x = drawn(shape[0], 64, 7).new_empty(shape).normal_(generator=torch.Generator().manual_seed(7)).requires_grad_()
    w = drawn(48, 64, 8, spread=0.2).requires_grad_()
    y = fp8_linear(x, w, rowwise)
    outer = torch.randn(y.shape, generator=torch.Generator().manual_seed(9))
    y.backward(outer)
    wide = [t.detach().double().requires_grad_() for t in (x, w)]
    (wide[0] @ wide[1].T).backward(outer.double())
    for mine, exact in zip((x, w), wide, strict=True):
        assert mine.grad is not None
        assert exact.grad is not None
        assert float((mine.grad.double() - exact.grad).norm() / exact.grad.norm()) < 0.08
    assert (
        float((y.detach().double() - wide[0].detach() @ wide[1].detach().T).norm() / y.detach().double().norm()) < 0.05
    )


def test_what_needs_no_gradient_gets_none_and_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("qwen3.train.fp8.multiply", lambda *args: calls.append(1) or multiply(*args))
    x, w = drawn(16, 32, 1).requires_grad_(), drawn(16, 32, 2)
    _Linear.apply(x, w, False).sum().backward()
    assert len(calls) == 2  # forward, and the gradient of x


def test_what_is_not_finite_shows() -> None:
    for bad in (float("nan"), float("inf")):
        x = torch.ones(16, 16)
        x[3, 4] = bad
        assert not bool(fp8_linear(x, torch.ones(16, 16)).isfinite().all())


@pytest.mark.parametrize("fp8", [True, "rowwise"])
@pytest.mark.parametrize("moe", [False, True])
def test_layers_maps_are_changed_and_nothing_else(fp8: Literal[True, "rowwise"], moe: bool) -> None:
    model = random_model(tiny_config(moe=moe))
    names, kind = list(dict(model.named_parameters())), RowwiseFp8Linear if fp8 == "rowwise" else Fp8Linear
    count = use_fp8(model, fp8)
    changed = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, Fp8Linear)}
    assert changed == ({"qkv_proj", "o_proj"} if moe else {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"})
    assert count == sum(type(m) is kind for m in model.modules())
    assert list(dict(model.named_parameters())) == names
    Forward(model)  # an evaluation's, say
    assert count == sum(type(m) is kind for m in model.modules())
    assert use_fp8(model, False) == 0
    assert not any(isinstance(m, Fp8Linear) for m in model.modules())


def test_sizes_and_words_that_cannot_be() -> None:
    with pytest.raises(UsageError, match=r"qkv_proj is \[160, 40\]; sizes must be multiples of 16"):
        use_fp8(random_model(tiny_config(hidden_size=40, head_dim=20)), True)
    with pytest.raises(UsageError, match="fp8='fast' must be true, false or rowwise"):
        use_fp8(random_model(tiny_config()), "fast")  # type: ignore[arg-type]


@pytest.mark.parametrize("fp8", [True, "rowwise"])
def test_training_in_8_bits_follows_training_in_32(fp8: Literal[True, "rowwise"]) -> None:
    batches = [batch_of([30, 17, 9, 20, 5], rows=2, seed=i) for i in range(2)]
    losses = {}
    for kind in (False, fp8):
        trainer = Trainer(random_model(tiny_config()), OptimConfig(kind="adamw", matrix_lr=3e-3), fp8=kind)
        losses[kind] = [trainer.update([batches[i % 2]], CrossEntropy())["loss"] for i in range(6)]
    assert losses[False] != losses[fp8]
    assert losses[fp8][-1] < losses[fp8][0] / 2
    assert losses[fp8] == pytest.approx(losses[False], rel=0.1)


def test_an_adapter_is_trained_beside_frozen_weights_in_8_bits() -> None:
    model = random_model(tiny_config())
    add_lora(model, LoraConfig(rank=2))
    trainer = Trainer(model, OptimConfig(kind="adamw", vector_lr=0.01), fp8=True)
    losses = [trainer.update([batch_of([30, 17, 9], rows=2)], CrossEntropy())["loss"] for _ in range(8)]
    assert losses[-1] < losses[0]


def test_the_engine_samples_from_the_weights_as_they_are() -> None:
    model, prompt = random_model(tiny_config()), [5, 6, 7, 8]
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=0).resolved("instruct")
    found = []
    for fp8 in (False, True):
        use_fp8(model, fp8)
        engine, request = Engine(model, vocab_size=634), Request(prompt, params)
        engine.add(request)
        while engine.has_work:
            engine.step()
        found.append((request.output, [entry.logprob for entry in request.logprobs]))
    assert found[0] == found[1]


def test_a_checkpoint_knows_its_products() -> None:
    model = random_model(tiny_config())
    assert "fp8" not in Trainer(model).config()
    assert Trainer(model, fp8="rowwise").config()["fp8"] == "rowwise"


@pytest.mark.parametrize("rowwise", [False, True])
def test_it_compiles_without_a_break(rowwise: bool) -> None:
    torch._dynamo.reset()
    layer = (RowwiseFp8Linear if rowwise else Fp8Linear)(32, 48, "cpu", torch.float32)
    with torch.no_grad():
        layer.weight.copy_(drawn(48, 32, 1))
    turned = torch.compile(lambda x: layer(x).square(), fullgraph=True, backend="aot_eager")
    results = []
    for run in (turned, lambda x: layer(x).square()):
        x = drawn(24, 32, 2).requires_grad_()
        layer.weight.grad = None
        run(x).sum().backward()
        results.append((x.grad, layer.weight.grad))
    for mine, right in zip(*results, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-5)


def test_a_plain_linear_is_what_it_was() -> None:
    model = random_model(tiny_config())
    x = torch.tensor([[5, 6, 7]])
    before = model(x)
    use_fp8(model, True)
    assert not torch.equal(model(x), before)
    use_fp8(model, False)
    assert torch.equal(model(x), before)
    assert all(type(m) is Linear for m in model.modules() if isinstance(m, Linear))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("rowwise", [False, True])
def test_a_gpus_product_and_gradients_are_the_twins(rowwise: bool) -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no FP8")
    x, w, outer = (drawn(n, m, seed).bfloat16() for n, m, seed in ((96, 64, 1), (48, 64, 2), (96, 48, 3)))
    found = []
    for device in ("cuda", "cpu"):
        a, b = x.to(device).requires_grad_(), w.to(device).requires_grad_()
        out = fp8_linear(a, b, rowwise)
        found.append([t.float().cpu() for t in (out, *torch.autograd.grad(out, (a, b), outer.to(device)))])
    for mine, right in zip(*found, strict=True):
        assert float((mine - right).norm() / right.norm()) < 0.01
