"""Every backend of every operation against the reference, and the references against float64 written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qwen3 import kernels
from qwen3.errors import UsageError
from qwen3.kernels import dispatch, fused, reference
from tests.model.oracle import distance

# Rounding of the dtype, times a few operations.
LIMIT = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(name="rng")
def fixture_rng() -> torch.Generator:
    """Fresh numbers every run; the seed is printed when a test fails."""
    generator = torch.Generator()
    print("seed", generator.seed())
    return generator


def normal(rng: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=rng).to(dtype)


def turns(rng: torch.Generator, *shape: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    angles = normal(rng, *shape) * 100
    return angles.cos().to(dtype), angles.sin().to(dtype)


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, float("-inf"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 1), (2, 5), (1, 200)])
def test_qk_norm_rope(rng: torch.Generator, dtype: torch.dtype, batch: int, length: int) -> None:
    qk = normal(rng, batch, length, 12, 64, dtype=dtype)
    weights = [normal(rng, 64, dtype=dtype) for _ in range(2)]
    cos, sin = turns(rng, batch, length, 32, dtype=dtype)
    wanted = reference.qk_norm_rope(qk.double(), 8, *[w.double() for w in weights], 1e-6, cos.double(), sin.double())
    for out, want in zip(reference.qk_norm_rope(qk, 8, *weights, 1e-6, cos, sin), wanted, strict=True):
        assert out.dtype == dtype
        assert distance(out, want) < LIMIT[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (8, 2), (3, 1)])
@pytest.mark.parametrize(("length", "context"), [(1, 1), (1, 37), (9, 37)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention(
    rng: torch.Generator, dtype: torch.dtype, heads: int, kv_heads: int, length: int, context: int, masked: bool
) -> None:
    q = normal(rng, 2, length, heads, 32, dtype=dtype).transpose(1, 2)
    store = [normal(rng, 2, kv_heads, context + 11, 32, dtype=dtype) for _ in range(2)]
    k, v = (part[:, :, :context] for part in store)
    mask = None
    if masked:
        allowed = torch.rand(2, 1, length, context, generator=rng) < 0.5
        allowed[..., 0] = True
        mask = additive(allowed, dtype)
    wide = None if mask is None else mask.double()
    wanted = plain_attention(q.double(), k.double(), v.double(), wide)
    for function in (reference.attention, fused.attention):
        out = function(q, k, v, mask)
        assert out.shape == q.shape
        assert distance(out, wanted) < LIMIT[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 2, 50])
def test_causal_attention(rng: torch.Generator, dtype: torch.dtype, length: int) -> None:
    q, k, v = (normal(rng, 2, heads, length, 32, dtype=dtype) for heads in (6, 2, 2))
    order = torch.arange(length)
    mask = additive((order[:, None] >= order)[None, None], torch.float64)
    wanted = plain_attention(q.double(), k.double(), v.double(), mask)
    for function in (reference.attention, fused.attention):
        assert distance(function(q, k, v, None, True), wanted) < LIMIT[dtype]


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Head by head, query by query."""
    out = torch.empty_like(q)
    groups = q.shape[1] // k.shape[1]
    for b in range(q.shape[0]):
        for head in range(q.shape[1]):
            for t in range(q.shape[2]):
                scores = k[b, head // groups] @ q[b, head, t] / q.shape[-1] ** 0.5
                if mask is not None:
                    scores = scores + mask[min(b, mask.shape[0] - 1), 0, t]
                out[b, head, t] = scores.softmax(0) @ v[b, head // groups]
    return out


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm(rng: torch.Generator, dtype: torch.dtype) -> None:
    x, weight = normal(rng, 3, 5, 64, dtype=dtype) * 7, normal(rng, 64, dtype=dtype)
    wide = x.double()
    wanted = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    assert distance(reference.rms_norm(x, weight, 1e-6), wanted) < LIMIT[dtype]
    tiny = torch.zeros(2, 8, dtype=dtype)
    assert torch.equal(reference.rms_norm(tiny, torch.ones(8, dtype=dtype), 1e-6), tiny)


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul(rng: torch.Generator, dtype: torch.dtype) -> None:
    x = normal(rng, 3, 5, 64, dtype=dtype)
    gate, up = x.double()[..., :32], x.double()[..., 32:]
    assert distance(reference.silu_mul(x), gate / (1 + (-gate).exp()) * up) < LIMIT[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 24), (2, 1, 24), (1, 9, 24), (40, 24)])
@torch.inference_mode()
def test_linear(rng: torch.Generator, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, weight = normal(rng, *shape, dtype=dtype), normal(rng, 56, 24, dtype=dtype)
    wanted = x.double() @ weight.double().T
    for backend in dispatch.available()["linear"]:
        with kernels.use(backend):
            assert distance(kernels.linear(x, weight), wanted) < LIMIT[dtype]
            assert distance(kernels.linear(x.mT.contiguous().mT, weight), wanted) < LIMIT[dtype]


def test_linear_has_gradients(rng: torch.Generator) -> None:
    x, weight = normal(rng, 3, 8).requires_grad_(), normal(rng, 5, 8).requires_grad_()
    kernels.linear(x, weight).sum().backward()
    assert x.grad is not None
    assert weight.grad is not None
    assert distance(weight.grad, x.detach().sum(0).expand(5, 8)) < 1e-6


@pytest.mark.parametrize("normalise", [True, False])
def test_route(rng: torch.Generator, normalise: bool) -> None:
    logits = normal(rng, 7, 16)
    weights, chosen = reference.route(logits, 3, normalise)
    for token in range(7):
        odds = [float(x) for x in logits[token].double().softmax(-1)]
        best = sorted(range(16), key=lambda e, odds=odds: -odds[e])[:3]
        assert chosen[token].tolist() == best
        total = sum(odds[e] for e in best) if normalise else 1.0
        assert weights[token].tolist() == pytest.approx([odds[e] / total for e in best], rel=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 30])
def test_experts(rng: torch.Generator, dtype: torch.dtype, count: int) -> None:
    x = normal(rng, count, 16, dtype=dtype)
    gate_up, down = normal(rng, 6, 24, 16, dtype=dtype), normal(rng, 6, 16, 12, dtype=dtype)
    weights, chosen = reference.route(normal(rng, count, 6, dtype=dtype), 2, True)
    wanted = torch.zeros(count, 16, dtype=torch.float64)
    for token in range(count):
        for weight, e in zip(weights[token].double(), chosen[token].tolist(), strict=True):
            gate, up = (gate_up[e].double() @ x[token].double()).chunk(2)
            wanted[token] += weight * (down[e].double() @ (gate * gate.sigmoid() * up))
    assert distance(reference.experts(x, gate_up, down, weights, chosen), wanted) < 2 * LIMIT[dtype]


def test_the_table() -> None:
    assert set(kernels.chosen("meta").values()) == {"reference"}
    assert kernels.chosen("cpu")["attention"] == "torch"
    with kernels.use("reference"):
        assert set(kernels.chosen("cpu").values()) == {"reference"}
        with kernels.use("torch"):
            assert kernels.chosen("cpu")["attention"] == "torch"
            assert kernels.chosen("cpu")["rms_norm"] == "reference"
        assert kernels.chosen("cpu")["attention"] == "reference"
    assert kernels.chosen("cpu")["attention"] == "torch"
    assert all(backends[0] == "reference" for backends in kernels.available().values())


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(UsageError, match="'cudnn' does not exist"), kernels.use("cudnn"):
        pass


def test_a_new_backend_is_preferred_on_its_device_only() -> None:
    try:
        kernels.register("silu_mul", "twice", lambda x: 2 * reference.silu_mul(x), ("cpu",))
        x = torch.ones(1, 4)
        assert torch.equal(kernels.silu_mul(x), 2 * reference.silu_mul(x))
        assert kernels.chosen("mps")["silu_mul"] == "reference"
        with kernels.use("reference"):
            assert torch.equal(kernels.silu_mul(x), reference.silu_mul(x))
    finally:
        del dispatch._table["silu_mul"]["twice"]
        del dispatch._devices["silu_mul", "twice"]
        dispatch._picked.clear()
