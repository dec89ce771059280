"""Reading into and saving from a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qwen3.checkpoint import available_bytes, load_weights, save_checkpoint
from tests.checkpoint.builders import meta_model, random_model


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_round_trip_through_cuda(made: dict[str, Path], tmp_path: Path, kind: str) -> None:
    free = available_bytes("cuda")
    assert free is not None
    assert free > 1e8
    for dtype in (torch.bfloat16, torch.float32):
        model = meta_model(kind, dtype)
        load_weights(model, made[kind], device="cuda")
        for p, q in zip(model.parameters(), random_model(kind).parameters(), strict=True):
            assert p.is_cuda
            assert torch.equal(p.cpu(), q.to(dtype))
    load_weights(model, made[kind], device="cuda", dtype=torch.bfloat16)
    save_checkpoint(tmp_path / "m", model)
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == (made[kind] / "model.safetensors").read_bytes()
