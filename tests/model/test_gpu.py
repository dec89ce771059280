"""On a CUDA device: the same logits as on the CPU, with and without cache, dense and MoE."""

from __future__ import annotations

import pytest
import torch

from qwen3 import kernels
from tests.fixtures import random_model, tiny_config
from tests.model.oracle import distance

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICE = "cuda"


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
@torch.inference_mode()
def test_logits_on_the_device(moe: bool, dtype: torch.dtype, limit: float) -> None:
    if moe and dtype == torch.bfloat16:
        limit *= 3  # a router that rounds to another expert moves a whole token
    config = tiny_config(moe, head_dim=128)
    ids = torch.randint(0, 600, (3, 40), generator=torch.Generator().manual_seed(1))
    wanted = random_model(config, dtype=dtype).float()(ids)
    model = random_model(config, dtype=dtype).to(DEVICE)
    ids = ids.to(DEVICE)
    positions = torch.arange(40, device=DEVICE).expand(3, 40)
    cache = model.new_cache(3, 64)
    chunks = [(0, 20), (20, 21), (21, 22), (22, 40)]
    parts = [model(ids[:, a:b], positions=positions[:, a:b], cache=cache) for a, b in chunks]
    assert distance(model(ids).cpu(), wanted) < limit
    assert distance(torch.cat(parts, dim=1).cpu(), wanted) < limit
    with kernels.use("reference"):
        assert distance(model(ids).cpu(), wanted) < limit
