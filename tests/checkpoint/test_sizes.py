"""Sums against what is there: names and shapes, files in every format, loaded networks, a process's memory."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import warnings
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen3 import family
from qwen3.checkpoint import resolve
from qwen3.checkpoint.folder import Fp8Format
from qwen3.checkpoint.forms import _LANES
from qwen3.checkpoint.fp8 import hold_fp8, parameters_to_hold
from qwen3.checkpoint.gguf.config import read_config
from qwen3.checkpoint.names import fused_shapes, official_shapes
from qwen3.checkpoint.packed import packings
from qwen3.checkpoint.sizes import FORMATS, formats, matrices, mixed, more_bits, sizes, stored_sizes
from qwen3.checkpoint.source import open_source
from qwen3.config import ModelConfig
from qwen3.kernels import native
from qwen3.kernels.grouped import SLAB
from qwen3.kernels.packed import LANES, PackedWeight
from qwen3.model import Qwen3, load_model
from qwen3.model.load import SMALL_MODEL
from qwen3.quantize.gguf.recipe import choose, recipe_named
from tests.checkpoint.formats import build
from tests.checkpoint.formats.test_models import ANY, W4, W8
from tests.checkpoint.gguf import build as gguf_build
from tests.checkpoint.gguf.test_kept import EMBEDDED, moe  # noqa: F401 (a fixture)
from tests.fixtures import tiny_config

MEMBERS = [m.config for m in family.MODELS.values() if m.mode == "hybrid"]
needs_kernels = pytest.mark.skipif(native.library() is None, reason=f"no compiled kernels: {native.state()}")


def held(model: Qwen3) -> int:
    """Bytes of all weights of a network."""
    return sum(part.nbytes for part in (*model.parameters(), *_buffers(model)))


def _buffers(model: Qwen3) -> list[Any]:
    return [b for name, b in model.named_buffers() if not name.startswith("rotary")]


@pytest.mark.parametrize("config", MEMBERS, ids=lambda config: f"{config.num_parameters():,}")
def test_every_weight_is_counted(config: ModelConfig) -> None:
    assert sum(matrix.numbers for matrix in matrices(config)) == config.num_parameters()
    few = replace(config, num_hidden_layers=2)
    found: Counter[tuple[int, ...]] = Counter()
    for matrix in matrices(few):
        found[matrix.shape] += matrix.times
    assert found == Counter(official_shapes(few).values())
    names = {m.name if m.layer is None else f"layers.{m.layer}.{m.name}" for m in matrices(few) if m.times == 1}
    official = {name.removeprefix("model.").removesuffix(".weight") for name in official_shapes(few)}
    assert names == {name for name in official if ".experts." not in name}


def test_constants_are_those_of_who_computes() -> None:
    from qwen3.checkpoint import sizes as module

    assert (_LANES, module.SMALL, module._SLAB) == (LANES, SMALL_MODEL, SLAB)


# What is published of all members (arithmetic of their config.json): GB of the weights in bfloat16 and Qwen's FP8
PUBLISHED = {"0.6B": (1.19, 0.75), "1.7B": (3.44, 2.03), "4B": (8.04, 4.41), "8B": (16.38, 9.44), "14B": (29.54, 16.33),
             "32B": (65.52, 34.32), "30B-A3B": (61.06, 31.17), "235B-A22B": (470.19, 236.42)}  # fmt: skip


@pytest.mark.parametrize("size", PUBLISHED)
def test_weights_of_the_family(size: str) -> None:
    config = family.MODELS[f"Qwen3-{size}"].config
    found = [round(sizes(config, FORMATS[name], "cuda").file / 1e9, 2) for name in ("bf16", "fp8")]
    assert tuple(found) == PUBLISHED[size]
    assert set(formats(config, "cpu")) | set(formats(config, "cuda")) == set(FORMATS.values())


@pytest.mark.parametrize("experts", [False, True])
def test_fp8_of_a_network(experts: bool) -> None:
    config = replace(MEMBERS[-2] if experts else MEMBERS[0], num_hidden_layers=2, vocab_size=151936)
    for name, stored, block in (("fp8", Fp8Format((), 128), 128), ("fp8-rows", None, 0)):
        model = Qwen3(config, "meta")
        hold_fp8(model, parameters_to_hold(config, stored)[0], block)
        assert held(model) == sizes(config, FORMATS[name], "cuda").memory
    assert held(Qwen3(config, "meta")) == sizes(config, FORMATS["bf16"], "cuda").memory


WRITTEN: list[tuple[str, Any, str]] = [
    ("gptq-int4", build.gptq(), r"_proj\.weight"),
    ("gptq-int8", build.gptq(8, 128), r"_proj\.weight"),
    ("awq", build.awq(128), r"_proj\.weight"),
    ("w4a16", build.compressed(**W4), r"_proj\.weight"),
    ("w8a8", build.compressed("int-quantized", **W8), r"_proj\.weight"),
    ("mlx-4bit", build.mlx(4, 64), ANY),
]


@needs_kernels
@pytest.mark.parametrize(("name", "how", "takes"), WRITTEN, ids=[name for name, _, _ in WRITTEN])
def test_folders_that_are_written(
    name: str, how: Any, takes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The builder keeps what is not quantized in float32, and MLX's router is like all: a file's bytes these apart."""
    monkeypatch.setitem(build.CONFIGS, "wide", tiny_config(hidden_size=256, intermediate_size=512, head_dim=64))
    folder, _ = build.make(tmp_path, "wide", how, takes)
    config = read_config(folder)
    planned, there = sizes(config, FORMATS[name], "cpu"), stored_sizes(folder, config, "cpu")
    plain = [m for m in matrices(config) if len(m.shape) == 1 or (not name.startswith("mlx") and "_proj" not in m.name)]
    assert there.file == planned.file + 2 * sum(matrix.numbers for matrix in plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is widened
        loaded = held(load_model(folder, "cpu"))
    assert planned.memory == there.memory == loaded
    assert on_a_gpu(folder, config) == sizes(config, FORMATS[name], "cuda").memory


@needs_kernels
@pytest.mark.parametrize("mix", ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K", "Q4_K_S"])
@pytest.mark.parametrize("experts", [False, True])
def test_gguf_files_that_are_written(mix: str, experts: bool, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("gguf")
    folder = request.getfixturevalue("moe") if experts else EMBEDDED
    config = read_config(folder)
    choose = mixed(mix)
    kinds = {_gguf_name(m.name, m.layer): choose(m, config) for m in matrices(config)}
    file, _ = gguf_build.write(folder, tmp_path / "m.gguf", lambda name: kinds[name])
    there = stored_sizes(file, config, "cpu")
    assert there.memory == held(load_model(file, "cpu"))
    assert there.file < file.stat().st_size < 1.2 * there.file + (1 << 20)
    if mix in FORMATS:
        assert there == sizes(config, FORMATS[mix], "cpu")
        assert on_a_gpu(file, config) == sizes(config, FORMATS[mix], "cuda").memory


def on_a_gpu(path: Path, config: ModelConfig) -> int:
    """Bytes of the weights as a GPU holds them, laid out on this CPU."""
    with closing(open_source(path, config)) as source:
        found = packings(source, config, None, torch.device("cpu"), torch.bfloat16)
        held = sum(packing.build().nbytes for packing in found.values())
    return held + 2 * sum(math.prod(shape) for name, shape in fused_shapes(config).items() if name not in found)


def _gguf_name(name: str, layer: int | None) -> str:
    official = f"model.layers.{layer}.{name}.weight" if layer is not None else f"model.{name}.weight"
    official = official.replace("model.lm_head", "lm_head").replace("experts.", "experts.0.")
    return gguf_build.place(official)[0]


@pytest.mark.parametrize("mix", ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "Q3_K_M", "Q2_K"])
def test_mixes_are_those_that_are_written(mix: str) -> None:
    for config in MEMBERS:
        some = [m for m in matrices(config) if len(m.shape) == 2 and m.name != "mlp.gate"]
        named = {_gguf_name(m.name, m.layer): m for m in some}
        chosen = choose(recipe_named(mix), {name: m.shape for name, m in named.items()}, config, (), False)
        rule = mixed(mix)
        assert {name: kind.kind for name, kind in chosen.items()} == {n: rule(m, config) for n, m in named.items()}


def test_layers_with_more_bits() -> None:
    """Of 28 layers (0.6B): the first 3, the last 4 from 24, and every third between."""
    assert [i for i in range(28) if more_bits(i, 28)] == [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27]


@needs_kernels
@pytest.mark.parametrize("name", ["bf16", "int8", "int4"])
def test_the_embedded_model(name: str) -> None:
    path = resolve("embedded").path
    config = read_config(path)
    model = load_model(path, "cpu", quantization=None if name == "bf16" else name)
    found = sizes(config, FORMATS[name], "cpu")
    assert found.memory == held(model)
    assert found.size == model.dtype.itemsize
    if name == "bf16":
        assert stored_sizes(path, config, "cpu") == found
    else:
        assert any(isinstance(part, PackedWeight) for part in model.modules())


PROCESS = """
import sys
from pathlib import Path
from qwen3.model import load_model

def resident():
    return 1024 * next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmRSS"))

first = load_model(sys.argv[1], "cpu", "float32")  # libraries, threads and buffers come with it
before = resident()
more = [load_model(sys.argv[1], "cpu", "float32") for _ in range(3)]
print((resident() - before) // 3)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_processs_memory() -> None:
    path = resolve("embedded").path
    # glibc keeps freed buffers, more or fewer by thread and run (1.5 to 5 % here); mapped ones go back at once
    env = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    ran = subprocess.run(
        [sys.executable, "-c", PROCESS, path], env=env, capture_output=True, text=True, timeout=120, check=True
    )
    assert int(ran.stdout) == pytest.approx(sizes(read_config(path), FORMATS["bf16"], "cpu").memory, rel=0.01)
