"""Matrices as the tools themselves wrote and read them (`record_vectors.py`), bit for bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qwen3.checkpoint.formats.detect import find_layout
from qwen3.checkpoint.formats.layout import Piece, Quantized, find_quantized
from qwen3.checkpoint.header import read_header
from qwen3.kernels.packed import pack

FILE = Path(__file__).parent / "vectors.safetensors"
HEADER = read_header(FILE)
CASES = {name: json.loads(text) for name, text in HEADER.metadata.items() if name != "format"}
# which a CPU holds as they are: (bits, group, minima)
HELD = {
    "gptq4_all": (4, 64, False), "awq": (5, 32, False), "ct4": (4, 32, False), "ct4_zero": (5, 32, False),
    "ct8": (8, 64, False), "ct_int8": (8, 64, False), "mlx2": (4, 32, True), "mlx3": (4, 32, True),
    "mlx4": (4, 32, True), "mlx5": (5, 32, True), "mlx6": (8, 32, True), "mlx8": (8, 32, True),
}  # fmt: skip


@pytest.fixture(scope="module")
def fd() -> Iterator[int]:
    with FILE.open("rb") as handle:
        yield handle.fileno()


def matrix(case: str, folder: Path, fd: int) -> Quantized:
    told = CASES[case]["config"]
    key = "quantization_config" if "quant_method" in told else "quantization"
    (folder / "config.json").write_text(json.dumps({key: told}))
    layout = find_layout(folder)
    assert layout is not None
    shape = tuple(CASES[case]["shape"])
    entries = {name: e for name, e in HEADER.tensors.items() if name.startswith(f"{case}.")}
    parts, rest = find_quantized(folder, layout, entries, {f"{case}.weight": shape})
    assert not rest
    return layout.tensor(case, shape, {suffix: Piece(e, fd) for suffix, e in parts[f"{case}.weight"].items()})


@pytest.mark.parametrize("case", CASES)
def test_as_the_tool_reads_it(case: str, tmp_path: Path, fd: int) -> None:
    stored = matrix(case, tmp_path, fd)
    found = stored.read(slice(None), torch.float32)
    assert torch.equal(found[0], load_file(FILE)[f"{case}:first"])
    assert hashlib.sha256((found + 0.0).numpy().tobytes()).hexdigest() == CASES[case]["sha256"]
    assert torch.equal(stored.read(slice(3, 14), torch.bfloat16), found[3:14].bfloat16())
    assert stored.read(slice(5, 5), torch.float32).shape == (0, 64)
    place = torch.empty(found.shape)
    stored.fill(place)
    assert torch.equal(place, found)
    form = stored.form
    assert (form and form[:3]) == HELD.get(case)
    if form is not None:
        whole: Any = stored.packed(slice(None))
        q, scale, mins = whole
        assert torch.equal(pack(q, scale, mins, form.bits).dequantize(), found)
        for part, all_of_it in zip(stored.packed(slice(3, 14)), whole, strict=True):
            assert (part is None and all_of_it is None) or torch.equal(part, all_of_it[3:14])


@pytest.mark.parametrize("case", ["gptq4_all", "awq", "ct4"])
def test_chunks_do_not_read_a_file_again(case: str, tmp_path: Path, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwen3.checkpoint.formats import layout

    stored, count, read = matrix(case, tmp_path, fd), [0], layout.read_into
    assert stored.form is not None
    whole: Any = stored.packed(slice(None))

    def counted(fd: int, target: torch.Tensor, *rest: Any) -> None:
        count[0] += target.nbytes
        read(fd, target, *rest)

    monkeypatch.setattr(layout, "read_into", counted)
    rows = stored.shape[0]
    chunks: Any = [stored.packed(slice(first, first + 4)) for first in range(0, rows, 4)]
    assert torch.equal(torch.cat([chunk[0] for chunk in chunks]), whole[0])
    assert 0 < count[0] <= stored.nbytes


def test_every_tool_is_there() -> None:
    kinds = {case["config"].get("quant_method", "mlx") for case in CASES.values()}
    assert kinds == {"gptq", "awq", "compressed-tensors", "bitsandbytes", "mlx"}
    assert FILE.stat().st_size < 50_000
