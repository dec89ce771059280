"""GGUF blocks that stay as they are on a CPU: the numbers of the file, and the same answers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen3.checkpoint import resolve
from qwen3.checkpoint.gguf import direct
from qwen3.errors import CorruptFileError, OutOfMemoryError
from qwen3.kernels import dispatch, native
from qwen3.kernels.packed import PackedWeight
from qwen3.model import Qwen3, load_model
from tests.checkpoint.gguf import build
from tests.checkpoint.gguf.test_model import EMBEDDED, IDS, mixed, moe  # noqa: F401 (a fixture)

pytest.importorskip("gguf")
pytestmark = pytest.mark.skipif(native.library() is None, reason=f"no compiled kernels: {native.state()}")


def halves(name: str) -> str:
    """Query and key in one type, value in one that no kernel has: the three are one matrix, which must be widened."""
    return "F16" if "attn_v" in name else "Q4_0"


def q4_k_m(name: str) -> str:
    """What files of this name are: more bits for values and the way down in half of the layers, and for the head."""
    if name.startswith("token_embd") or any(part in name for part in ("0.attn_v", "0.ffn_down", "3.attn_v")):
        return "Q6_K"
    return "Q4_K"


def gate_and_up(name: str) -> str:
    """Of different types, though no file is known to be so; and one that falls back to blocks of 32."""
    return "Q5_K" if "ffn_up" in name else "Q5_0" if "attn_k" in name else "Q3_K"


def held_by(model: Qwen3) -> dict[str, PackedWeight]:
    """By parameter; the parts of one that has several kinds left out."""
    found = {name: part for name, part in model.named_modules() if isinstance(part, PackedWeight)}
    return {name: part for name, part in found.items() if ".list." not in name}


BOTH: list[Any] = ["Q4_0", "Q4_1", "Q8_0", mixed, halves, q4_k_m, gate_and_up]
ONE = ["Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


@pytest.mark.parametrize(
    ("kinds", "experts"), [(kinds, experts) for kinds in BOTH for experts in (False, True)] + [(k, True) for k in ONE]
)
def test_numbers_of_the_file(
    kinds: str | Callable[[str], str], experts: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    file, twin = build.write(request.getfixturevalue("moe") if experts else EMBEDDED, tmp_path / "m.gguf", kinds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if kinds is halves else "error")
        model = load_model(file, "cpu")
    held = held_by(model)
    plain = dict(twin.named_parameters())
    layers = model.config.num_hidden_layers
    assert len(held) == 1 + layers * (3 if kinds is halves else 4), sorted(held)
    for name, part in held.items():
        assert torch.equal(part.dequantize(), plain[name]), name
    if kinds is q4_k_m:
        assert [part.bits for part in held["layers.0.self_attn.qkv_proj.weight"].parts] == [4, 6]
        assert sum(part.nbytes for part in held.values()) < 1.03 * file.stat().st_size
    with torch.inference_mode():
        found = model(IDS)
        with dispatch.use("reference"):
            assert (found - model(IDS)).norm() < 0.02 * found.norm()  # a last bit may change what 8 bits round to
        # activations are rounded to 8 bits, which may send a token to another expert
        assert (found - twin(IDS)).norm() < (0.15 if experts else 0.05) * found.norm()


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_rounded_while_read(kind: str, tmp_path: Path) -> None:
    """From any format; the same as rounding a model in memory."""
    from qwen3.model.pack import pack_model

    file, twin = build.write(EMBEDDED, tmp_path / "m.gguf", "F16")
    pack_model(twin, kind)
    for source in (file, resolve("embedded").path):
        model = load_model(source, "cpu", quantization=kind)
        for name, part in twin.named_modules():
            if isinstance(part, PackedWeight):
                own = model.get_submodule(name)
                assert isinstance(own, PackedWeight)
                assert torch.equal(own.data, part.data), name
                assert torch.equal(own.scale, part.scale), name


def test_memory_is_that_of_the_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _ = build.write(EMBEDDED, tmp_path / "m.gguf", "Q4_0")
    monkeypatch.setattr("qwen3.checkpoint.memory.available_bytes", lambda device=None: 12_000_000)
    load_model(file, "cpu")
    monkeypatch.setattr("qwen3.checkpoint.memory.available_bytes", lambda device=None: 8_000_000)
    with pytest.raises(OutOfMemoryError, match=r"m.gguf needs 10,"):
        load_model(file, "cpu")


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
@pytest.mark.parametrize("experts", [False, True])
def test_read_in_one_call(
    kind: str, experts: bool, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiled reader's bytes are those that the operators make."""
    folder = request.getfixturevalue("moe") if experts else EMBEDDED
    file, _ = build.write(folder, tmp_path / "m.gguf", kind)
    found = held_by(load_model(file, "cpu"))
    asked: list[list[str]] = []

    def none(packings: dict[str, Any]) -> Any:
        made, _ = prepare(packings)
        asked.append(sorted(made))
        return {}, torch.empty(0, 7, dtype=torch.int64)

    prepare = direct.prepare
    monkeypatch.setattr(direct, "prepare", none)
    plain = held_by(load_model(file, "cpu"))
    assert asked == [sorted(found)] == [sorted(plain)]
    for name, weight in plain.items():
        assert all(torch.equal(*pair) for pair in zip(weight.tensors[:2], found[name].tensors[:2], strict=True)), name


def test_a_file_that_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It shrinks behind its header's checks: an error that names the tensor, from the plain reader."""
    file, _ = build.write(EMBEDDED, tmp_path / "m.gguf", "Q8_0")
    prepare = direct.prepare

    def shrink(packings: dict[str, Any]) -> Any:
        os.truncate(file, file.stat().st_size // 2)
        return prepare(packings)

    monkeypatch.setattr(direct, "prepare", shrink)
    with pytest.raises(CorruptFileError, match="the file was truncated"):
        load_model(file, "cpu")
