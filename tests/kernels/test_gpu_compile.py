"""Without a GPU: every Triton kernel of an engine step compiles for an H100, spills nothing and fits shared memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from qwen3 import family

triton = pytest.importorskip("triton")

SHARED = 227 << 10  # bytes that a block may use on an H100 or H200
SPILLED = 0 if triton.__version__.startswith("3.6.") else 512  # bytes; the kernels were tuned with Triton 3.6
SCRIPT = Path(__file__).with_name("compile_step.py")
FP8_KV, FP8_WEIGHTS, FP8_BLOCKS, INVARIANT = ({"kv": "fp8"}, {"weights": "fp8"}, {"weights": "fp8-block"},
                                              {"invariant": True})  # fmt: skip
INT4, INT8 = {"weights": "int4"}, {"weights": "int8"}


def compiled(cases: list[Any], cache: Path) -> list[dict[str, Any]]:
    """The kernels of `cases` (see the script), compiled in a process that knows neither interpreter nor cache."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, SCRIPT, json.dumps(cases)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def check(kernels: list[dict[str, Any]]) -> None:
    for kernel in kernels:
        assert kernel["STACK"] + kernel["LOCAL"] <= SPILLED, f"spills registers: {kernel}"
        assert max(kernel["shared"], kernel["SHARED"]) <= SHARED, f"too much shared memory: {kernel}"
        assert 16 <= kernel["REG"] <= 255


@pytest.mark.timeout(240)
def test_a_dense_and_a_sparse_model(tmp_path: Path) -> None:
    cases = [
        ["Qwen3-0.6B", [1, 32], {}],
        ["Qwen3-0.6B", [8], FP8_KV | INVARIANT],
        ["Qwen3-0.6B", [128], FP8_KV],
        ["Qwen3-30B-A3B", [8], {}],
        ["Qwen3-30B-A3B", [1], FP8_KV | FP8_WEIGHTS],
    ]
    kernels = compiled(cases, tmp_path)
    check(kernels)
    assert len(kernels) > 50
    assert len({kernel["kernel"] for kernel in kernels}) > 8


def test_few_rows_of_weights_in_4_bits(tmp_path: Path) -> None:
    """Straight into the matrix units' registers: the only shared memory is where warps meet at the end."""
    kernels = compiled([["Qwen3-0.6B", [1], INT4 | {"only": "_few"}]], tmp_path)
    check(kernels)
    assert len(kernels) >= 5
    assert max(kernel["shared"] for kernel in kernels) <= 16384  # 8192 with Triton 3.6


@pytest.mark.slow  # hundreds of kernels, half a second each
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [name for name, member in family.MODELS.items() if member.mode == "hybrid"])
def test_all_published_shapes(tmp_path: Path, name: str) -> None:
    hows = [kv | weights | invariant for kv, weights, invariant in
            product(({}, FP8_KV), ({}, FP8_WEIGHTS, FP8_BLOCKS, INT4, INT8), ({}, INVARIANT))]  # fmt: skip
    check(compiled([[name, [1, 2, 4, 8, 16, 32, 64, 128, 256], how] for how in hows], tmp_path))
