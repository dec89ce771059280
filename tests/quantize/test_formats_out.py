"""Packing is the inverse of reading, number for number, and byte for byte what the tools themselves write."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from qwen3.checkpoint.formats.affine import unpack_bits
from qwen3.checkpoint.formats.detect import find_layout
from qwen3.checkpoint.formats.layout import Piece
from qwen3.checkpoint.header import TensorEntry, read_header
from qwen3.checkpoint.save import _DTYPE_NAMES
from qwen3.errors import UsageError
from qwen3.quantize.formats.awq import Awq
from qwen3.quantize.formats.choose import FORMATS, choose, usual
from qwen3.quantize.formats.compressed import Compressed
from qwen3.quantize.formats.fp8 import Fp8
from qwen3.quantize.formats.gptq import Gptq
from qwen3.quantize.formats.layout import Format, pack_bits
from qwen3.quantize.formats.mlx import Mlx
from qwen3.quantize.spec import Rule, Spec
from qwen3.quantize.types import Float8, Grouped, Int8, Rounded

VECTORS = Path(__file__).parents[1] / "checkpoint" / "formats" / "vectors.safetensors"
CASES = {name: json.loads(text) for name, text in read_header(VECTORS).metadata.items() if name != "format"}
MODULE = "model.layers.0.mlp.down_proj"


def random_grouped(
    bits: int = 4, group: int = 32, *, zeros: bool = False, order: bool = False, rows: int = 64, columns: int = 96
) -> Grouped:
    group = columns if group == -1 else group
    q = torch.randint(0, 1 << bits, (rows, columns), dtype=torch.uint8)
    scale = (torch.rand(rows, columns // group) * 0.02 + 0.001).half()
    zero = torch.randint(1, 1 << bits, scale.shape, dtype=torch.uint8) if zeros else None
    places = (torch.arange(columns) // group)[torch.randperm(columns)].int() if order else None
    return Grouped(q, scale, zero, bits, group, places)


def read_back(format: Format, rounded: Rounded, folder: Path, module: str = MODULE) -> Tensor:
    """What our reader makes of the tensors and the settings that a format gives: float32."""
    told = format.config({module: rounded}, ["model.embed_tokens", "lm_head"])
    (folder / "config.json").write_text(json.dumps({format.key: told}))
    layout = find_layout(folder)
    assert layout is not None
    tensors = {
        suffix: part.view(torch.int32) if part.dtype == torch.uint32 else part
        for suffix, part in format.tensors(module, rounded).items()
    }
    names = {s: _DTYPE_NAMES[part.dtype] for s, part in format.tensors(module, rounded).items()}
    entries = {
        module + suffix: TensorEntry(module + suffix, Path("x"), names[suffix], tuple(part.shape), 0, part.nbytes)
        for suffix, part in tensors.items()
    }
    data = rounded.q if isinstance(rounded, Grouped) else rounded.data
    wants = layout.wants(module, tuple(data.shape), entries)
    assert wants is not None
    assert set(tensors) <= set(wants)
    for suffix, want in wants.items():
        assert suffix in tensors or not want.needed
        if suffix in tensors:
            assert want.shape == tuple(tensors[suffix].shape)
            assert names[suffix] in want.dtypes
    pieces = {suffix: Piece(entries[module + suffix], -1, part) for suffix, part in tensors.items()}
    return layout.tensor(module, tuple(data.shape), pieces).read(slice(None), torch.float32)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_bits(bits: int) -> None:
    q = torch.randint(0, 1 << bits, (3, 5, 64), dtype=torch.uint8)
    words = pack_bits(q, bits)
    assert words.shape == (3, 5, 2 * bits)
    assert torch.equal(unpack_bits(words, bits), q)
    assert pack_bits(q.to("meta"), bits).shape == words.shape
    uneven = pack_bits(q[..., :37].transpose(0, 1), bits)  # strides that are not usual; words that are not full
    assert torch.equal(unpack_bits(uneven, bits)[..., :37], q[..., :37].transpose(0, 1))
    if bits in (4, 8):
        assert uneven.shape[-1] == -(-37 * bits // 32)


GROUPED: dict[str, tuple[Format, dict[str, Any]]] = {
    "gptq": (Gptq(1), {}),
    "gptq8": (Gptq(1), {"bits": 8}),
    "gptq2": (Gptq(1), {"bits": 2, "zeros": True}),
    "gptq3-v2": (Gptq(2), {"bits": 3, "zeros": True}),
    "gptq-order": (Gptq(1), {"order": True}),
    "gptq8-order-v2": (Gptq(2), {"bits": 8, "zeros": True, "order": True}),
    "gptq-row": (Gptq(1), {"group": -1}),
    "awq": (Awq(), {"zeros": True}),
    "awq-symmetric": (Awq(), {}),
    "awq-row": (Awq(), {"group": -1, "zeros": True}),
    "ct4": (Compressed(), {}),
    "ct2": (Compressed(), {"bits": 2}),
    "ct8-zeros": (Compressed(), {"bits": 8, "zeros": True}),
    "ct4-zeros": (Compressed(), {"zeros": True}),
    "ct8-row": (Compressed(), {"bits": 8, "group": -1}),
    "ct4-narrow": (Compressed(), {"group": -1, "columns": 100}),
}


@pytest.mark.parametrize("name", GROUPED)
def test_read_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    format, how = GROUPED[name]
    rounded = random_grouped(**how)
    assert torch.equal(read_back(format, rounded, tmp_path), rounded.dequantize())


def test_version_2_stores_a_zero_of_0(tmp_path: Path) -> None:
    rounded = random_grouped(zeros=True)
    assert rounded.zero is not None
    rounded.zero[5, 1] = 0
    assert torch.equal(read_back(Gptq(2), rounded, tmp_path), rounded.dequantize())
    with pytest.raises(UsageError, match=f"{MODULE}: version 1 of GPTQ cannot store a zero point of 0; take --format"):
        Gptq(1).tensors(MODULE, rounded)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", Mlx.bits)
@pytest.mark.parametrize("zeros", [False, True])
def test_mlx_is_as_near_as_its_scales_allow(bits: int, zeros: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    rounded = random_grouped(bits, 32, zeros=zeros)
    found, meant = read_back(Mlx(dtype), rounded, tmp_path), rounded.dequantize()
    half = dtype == torch.float16
    if half and not zeros:
        assert torch.equal(found, meant)  # powers of two times a scale are exact
    # rounding moves scale and bias by as much of them, at most, as there are numbers; what can be made up for is
    steps = (1 << bits) * (2**-10 if half else 2**-7)
    limit = rounded.scale.float().repeat_interleave(32, 1) * (steps + 0.01)
    inside = (found - meant).abs() <= limit.clamp_max(rounded.scale.float().max() * 0.51)
    assert inside.float().mean() > 0.95  # but at the ends, where there is no next number
    assert ((found - meant).abs() <= limit).all()


def test_int8_and_fp8(tmp_path: Path) -> None:
    int8 = Int8(torch.randint(-128, 128, (48, 64), dtype=torch.int8), torch.rand(48, 1) * 0.01 + 1e-4)
    assert torch.equal(read_back(Compressed(), int8, tmp_path), int8.dequantize())
    data = torch.randn(200, 300).to(torch.float8_e4m3fn)
    for sizes in ((1,), (200, 1), (2, 3)):
        fp8 = Float8(data, torch.rand(sizes) * 0.01 + 1e-4)
        assert torch.equal(read_back(Compressed(), fp8, tmp_path), fp8.dequantize()), sizes
    official = Fp8().tensors(MODULE, fp8)
    assert {k: v.shape for k, v in official.items()} == {".weight": (200, 300), ".weight_scale_inv": (2, 3)}


def as_rounded(case: str) -> tuple[Format, Grouped | Int8 | Float8]:
    """A matrix that a tool wrote, by our reader, and the format that is to write it again."""
    tensors = {k.removeprefix(case): v for k, v in load_file(VECTORS).items() if k.startswith(f"{case}.")}
    told, shape = CASES[case]["config"], CASES[case]["shape"]
    folder_layout = _layout(told)
    names = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"} | _DTYPE_NAMES
    pieces = {}
    for suffix, part in tensors.items():
        entry = TensorEntry(suffix, Path("x"), names[part.dtype], tuple(part.shape), 0, part.nbytes)
        pieces[suffix] = Piece(entry, -1, part.view(torch.int32) if part.dtype == torch.uint32 else part)
    if ".weight" in pieces and pieces[".weight"].entry.dtype in ("I8", "F8_E4M3"):
        kind = Int8 if pieces[".weight"].entry.dtype == "I8" else Float8
        return Compressed(), kind(tensors[".weight"], tensors[".weight_scale"])
    stored: Any = folder_layout.tensor(case, tuple(shape), pieces)
    scale, zero, _ = stored.marks(0, shape[0])
    middle = 1 << stored.bits - 1
    zero = None if zero is None or bool((zero == middle).all()) else zero.to(torch.uint8)
    order = stored.order()
    found = Grouped(
        stored.q(0, shape[0]), scale, zero, stored.bits, stored.group, None if order is None else order.int()
    )
    return {"gptq": Gptq(1), "awq": Awq()}.get(told.get("quant_method"), Compressed()), found


def _layout(told: dict[str, Any]) -> Any:
    from qwen3.checkpoint.formats.detect import _METHODS

    return _METHODS[told["quant_method"]]("vectors", told)


@pytest.mark.parametrize(
    "case", [case for case in CASES if CASES[case]["config"].get("quant_method") not in (None, "bitsandbytes")]
)
def test_the_same_bytes_as_the_tool(case: str) -> None:
    """What auto-gptq, autoawq and compressed-tensors packed (see `record_vectors.py`), read and packed again."""
    format, rounded = as_rounded(case)
    wanted = {k.removeprefix(case): v for k, v in load_file(VECTORS).items() if k.startswith(f"{case}.")}
    found = format.tensors(MODULE, rounded)
    assert set(found) == set(wanted)
    for suffix, part in wanted.items():
        assert torch.equal(found[suffix].to(part.dtype), part), suffix


REFUSED: list[tuple[Format, Rounded, str, str]] = [
    (Gptq(), random_grouped(5), MODULE, "gptq has no 5-bit numbers, only 2, 3, 4, 8; take another format"),
    (Awq(), random_grouped(8), MODULE, "awq has no 8-bit numbers, only 4"),
    (Awq(), random_grouped(order=True), MODULE, "awq cannot store the order of columns; take static groups, or gptq"),
    (Mlx(), random_grouped(group=-1), MODULE, "mlx has groups of 32, 64 or 128 columns, not 96; give --group"),
    (Compressed(), random_grouped(order=True), MODULE, "compressed-tensors cannot store the order of columns"),
    (Compressed(), random_grouped(3), MODULE, "compressed-tensors has no 3-bit numbers"),
    (Gptq(), random_grouped(rows=20), MODULE, "gptq packs rows in 32-bit words, but they have 80 bits; keep it"),
    (Gptq(), random_grouped(), "model.embed_tokens", "gptq leaves the embedding as it is"),
    (Awq(), random_grouped(), "lm_head", "awq leaves embedding and head as they are"),
    (Fp8(), random_grouped(), MODULE, "fp8 has a scale for each 128 × 128 block; take --format compressed-tensors"),
    (Fp8(), Float8(torch.zeros(4, 4), torch.ones(4, 1)), MODULE, "fp8 has a scale for each 128 × 128 block"),
    (Gptq(), Int8(torch.zeros(4, 4, dtype=torch.int8), torch.ones(4, 1)), MODULE, "not int8; take compressed-tensors"),
    (Mlx(), Float8(torch.zeros(4, 4), torch.ones(1)), MODULE, "not FP8; take fp8 or compressed-tensors"),
]


@pytest.mark.parametrize(("format", "rounded", "module", "message"), REFUSED)
def test_refused_with_the_module(format: Format, rounded: Rounded, module: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"{module}: .*{message}"):
        format.tensors(module, rounded)


def test_rules_in_the_settings() -> None:
    """Mixed widths and kept modules are said in each format's own way; experts' names match no others."""
    four, eight = random_grouped(), random_grouped(8)
    planned: dict[str, Rounded] = {f"model.layers.{i}.mlp.{n}_proj": four for i in (1, 11) for n in ("gate", "up")}
    planned["model.layers.1.mlp.down_proj"] = eight
    kept = ["model.embed_tokens", "lm_head", "model.layers.11.mlp.down_proj", "model.layers.0.mlp.gate"]
    assert Gptq().config(planned, kept)["dynamic"] == {
        r"+:model\.layers\.1\.mlp\.down_proj$": {"bits": 8, "group_size": 32, "sym": True, "desc_act": False},
        r"-:model\.layers\.11\.mlp\.down_proj$": {}, r"-:.*\.mlp\.gate$": {},
    }  # fmt: skip
    told = Compressed().config(planned, kept)
    assert told["ignore"] == ["lm_head", "model.layers.11.mlp.down_proj", "model.layers.0.mlp.gate"]
    assert [group["targets"] for group in told["config_groups"].values()] == [
        ["Linear"],
        ["model.layers.1.mlp.down_proj"],
    ]
    assert told["format"] == "pack-quantized"
    mixed = Compressed().config({**planned, "x": Float8(torch.zeros(4, 4), torch.ones(4, 1))}, kept)
    assert mixed["format"] == "mixed-precision"
    assert {group["format"] for group in mixed["config_groups"].values()} == {"pack-quantized", "float-quantized"}
    own = Mlx().config(planned, kept)
    assert own["model.layers.1.mlp.down_proj"] == {"group_size": 32, "bits": 8}
    assert own["lm_head"] is False
    with pytest.raises(UsageError, match="down_proj: awq has one group size for all"):
        Awq().config({**planned, "model.layers.1.mlp.down_proj": random_grouped(group=64, columns=128)}, kept)
    assert Mlx().stacked("model.layers.3.mlp.experts.17.up_proj.scales") == (
        "model.layers.3.mlp.switch_mlp.up_proj.scales", 17,
    )  # fmt: skip
    assert Gptq().stacked("model.layers.3.mlp.experts.17.up_proj.scales") is None


def test_rows_as_groups() -> None:
    """One setting where widths differ: 64 columns in groups of 64 are like any other; rows of all widths are -1."""
    wide, narrow = random_grouped(group=64, columns=128), random_grouped(group=64, columns=64)
    rows: dict[str, Rounded] = {"a": random_grouped(group=-1, columns=64), "b": random_grouped(group=-1, columns=160)}
    for format in (Gptq(), Awq(), Compressed()):
        told = format.config({"a": wide, "b": narrow}, [])
        assert "dynamic" not in told
        assert told.get("group_size", 64) == 64
        assert len(told.get("config_groups", [0])) == 1
    assert Awq().config(rows, [])["group_size"] == -1


def test_usual_formats() -> None:
    assert usual(Spec("gptq")) == "gptq"
    assert usual(Spec("gptq", symmetric=False)) == "gptq_v2"
    assert usual(Spec("awq")) == "awq"
    assert usual(Spec("awq", rules=(Rule("*down_proj", bits=8),))) == "compressed-tensors"
    assert usual(Spec("fp8")) == "fp8"
    assert usual(Spec("fp8", fp8_scale="channel")) == "compressed-tensors"
    assert usual(Spec("rtn", 3)) == "gptq"
    assert usual(Spec("awq", 3)) == "gptq_v2"
    assert usual(Spec("rtn", rules=(Rule("*down_proj", bits=6),))) == "mlx"
    assert usual(Spec("rtn")) == usual(Spec("w8a8")) == "compressed-tensors"
    assert [choose(name, torch.bfloat16).name for name in FORMATS] == list(FORMATS)
    assert replace(Mlx(), dtype=torch.bfloat16) == choose("mlx", torch.bfloat16)
    with pytest.raises(UsageError, match="--format exl2: there is no such format; take gptq, gptq_v2, awq"):
        choose("exl2", torch.bfloat16)
