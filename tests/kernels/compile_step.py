"""Compiles, with no GPU, every Triton kernel that engine steps of the published models launch. Run as a script:

    python tests/kernels/compile_step.py '[["Qwen3-0.6B", [1, 32], {"kv": "fp8"}], ...]'

prints a JSON list: kernel, options, and what the assembler says of registers, stack, shared and local memory. The
networks stand on PyTorch's "meta" device at their true sizes (two layers of them), so nothing is computed or held; the
dry run of a step notes the launches, and Triton compiles them for an H100 behind a driver that only says it is one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from qwen3 import family
from qwen3.checkpoint.fp8 import hold_fp8, parameters_to_hold
from qwen3.checkpoint.packed import BITS, fitting, hold
from qwen3.engine.device_sampler import DeviceSampler
from qwen3.engine.graphs import Graphs
from qwen3.engine.runner import Fed, Runner
from qwen3.kernels import dispatch, grouped
from qwen3.model import Qwen3

META = torch.device("meta")
BLOCKS = {"fp8": 0, "fp8-block": 128}  # of the weights' scales
TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
WIDEST_MIXED = 64  # rows beside which a prompt's chunk runs


def pretend_h100() -> None:
    """Before anything of `qwen3.kernels.gpu` is imported."""
    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: 0,
            get_current_stream=lambda device=None: 0,
            get_current_target=lambda: GPUTarget("cuda", 90, 32),
            get_active_torch_device=lambda: META,
            is_active=lambda: True,
            set_current_device=lambda device: None,
        )
    )
    from qwen3.kernels import gpu
    from qwen3.kernels.gpu import elementwise

    elementwise.processors = lambda device: (132, True)  # type: ignore[assignment]
    for name, function in gpu.OPERATIONS.items():
        dispatch.register(name, "gpu", function, ("meta",))


def launches(
    name: str, sizes: list[int], kv: str = "bf16", weights: str = "bf16", invariant: bool = False
) -> list[Any]:
    """What steps with so many decoding rows launch, alone, beside a chunk of 32 tokens, and with two long chunks."""
    from qwen3.kernels.gpu.launch import collect

    config = replace(family.MODELS[name].config, num_hidden_layers=2)
    model = Qwen3(config, device=META, dtype=torch.bfloat16).eval()
    if weights in BITS:
        for key, value in [*model.named_parameters()]:
            if value.dim() > 1 and not key.endswith("mlp.gate.weight"):
                bits, group = fitting(key, value.shape[-1], weights)
                q = torch.empty(value.shape, dtype=torch.uint8, device=META)
                scale = torch.empty(*value.shape[:-1], value.shape[-1] // group, dtype=torch.float16, device=META)
                hold(model, key, grouped.pack(q, scale, None, bits))
    elif weights in BLOCKS:
        hold_fp8(model, parameters_to_hold(config, None)[0], BLOCKS[weights])
    kv_dtype = torch.float8_e4m3fn if kv == "fp8" else torch.bfloat16
    runner = Runner(
        model.stepper(), META, max_rows=max(sizes), max_len=8192, blocks=64, kv_dtype=kv_dtype, invariant=invariant
    )
    sampler = DeviceSampler(max(sizes), config.vocab_size - 256, META, max_len=8192)
    graphs = Graphs(runner, sampler)
    with collect() as jobs:
        for rows in sizes:
            for chunk in (0, 32) if rows <= WIDEST_MIXED else (0,):
                picked = rows + (chunk > 0)
                inputs = graphs._blank(rows + 2 * picked + 3 + chunk if chunk else rows)
                for longest in sorted({runner.reach(rows, 1), runner.max_len}):
                    graphs._step(rows, chunk, inputs, graphs._blank(picked, 2), longest)
        runner.logits(runner.forward([1], [Fed(1, 0, [0] * 2100), Fed(1, 512, [0] * 700)], sampler)[-2:])
    return jobs


def built(job: Any) -> dict[str, Any]:
    kernel, grid, args, options = job
    code = kernel.warmup(*args, grid=grid, **options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code.asm["cubin"])
        file.flush()
        said = subprocess.run([TOOL, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    usage = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", said)}
    return {"kernel": kernel.__name__, "options": repr(options), "shared": code.metadata.shared, **usage}


def main(cases: list[list[Any]]) -> None:
    pretend_h100()
    from qwen3.kernels.gpu.launch import _kind

    jobs = {}
    with torch.inference_mode():
        for name, sizes, how in cases:
            only = how.pop("only", None)  # kernels of this name
            for job in launches(name, sizes, **how):
                kernel, _, args, options = job
                if only in (None, kernel.__name__):
                    jobs[kernel, repr(options), *map(_kind, args)] = job
    with ThreadPoolExecutor(2) as pool:
        print(json.dumps([*pool.map(built, jobs.values())]))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
