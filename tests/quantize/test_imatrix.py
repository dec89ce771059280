"""Importance of columns: collected, written, read in both of llama.cpp's forms, refused, used."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qwen3.checkpoint import read_config
from qwen3.config import ModelConfig
from qwen3.errors import ConfigError, CorruptFileError, ModelNotFoundError
from qwen3.model import load_model
from qwen3.quantize.calibration import load_calibration
from qwen3.quantize.gguf import write_gguf
from qwen3.quantize.gguf.write import tensor_pieces
from qwen3.quantize.imatrix import Imatrix, collect_imatrix, read_imatrix
from tests.fixtures import tiny_config
from tests.quantize.gguf.models import checkpoint

WIDE: dict[str, Any] = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 256}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "dense": checkpoint(root / "dense", tiny_config(**WIDE)),
        "moe": checkpoint(root / "moe", tiny_config(moe=True, moe_intermediate_size=256, **WIDE)),
    }


@pytest.fixture(scope="module")
def collected(folders: dict[str, Path]) -> dict[str, Imatrix]:
    return {
        name: collect_imatrix(folder, load_calibration(folder, "qwen3", samples=2, length=64))
        for name, folder in folders.items()
    }


def invented(config: ModelConfig, seed: int = 0) -> Imatrix:
    generator = torch.Generator().manual_seed(seed)
    means, counts = {}, {}
    for name, (shape, _) in tensor_pieces(config).items():
        if name.startswith("blk.") and len(shape) > 1 and "_inp" not in name:
            rows = shape[0] if len(shape) == 3 else 1
            means[name] = torch.rand(rows, shape[-1], generator=generator) ** 4 + 1e-3
            counts[name] = torch.full((rows,), 512.0)
    return Imatrix(means, counts, "made up", 4, 128)


def test_it_is_the_mean_square_of_what_each_matrix_sees(
    folders: dict[str, Path], collected: dict[str, Imatrix]
) -> None:
    data = load_calibration(folders["dense"], "qwen3", samples=2, length=64)
    network = load_model(folders["dense"], "cpu", "float32")
    seen: dict[str, Tensor] = {}
    names = {"self_attn.qkv_proj": "attn_q attn_k attn_v", "self_attn.o_proj": "attn_output",
             "mlp.gate_up_proj": "ffn_gate ffn_up", "mlp.down_proj": "ffn_down"}  # fmt: skip
    for i in range(2):
        for module, own in names.items():

            def hook(_: Any, args: Any, i: int = i, own: str = own) -> None:
                for name in own.split():
                    seen[f"blk.{i}.{name}.weight"] = args[0].flatten(0, -2).square().mean(0)

            network.get_submodule(f"layers.{i}.{module}").register_forward_pre_hook(hook)
    with torch.no_grad():
        network(data.ids, positions=data.positions, doc_ids=data.documents)
    found = collected["dense"]
    assert set(found.means) == set(seen)
    for name, expected in seen.items():
        assert torch.allclose(found.means[name][0], expected, rtol=1e-3, atol=1e-6), name
        assert found.counts[name].tolist() == [128]


def test_experts_are_counted_one_by_one(collected: dict[str, Imatrix]) -> None:
    found = collected["moe"]
    for layer in range(2):
        counts = found.counts[f"blk.{layer}.ffn_up_exps.weight"]
        assert counts.shape == (8,)
        assert counts.sum() == 2 * 128  # each token reaches two
        assert torch.equal(counts, found.counts[f"blk.{layer}.ffn_down_exps.weight"])
    assert found.counts["blk.0.attn_q.weight"].tolist() == [128]


@pytest.mark.parametrize("suffix", [".gguf", ".dat"])
@pytest.mark.parametrize("model", ["dense", "moe"])
def test_what_is_saved_is_read_again(
    folders: dict[str, Path], collected: dict[str, Imatrix], tmp_path: Path, suffix: str, model: str
) -> None:
    before = collected[model]
    before.save(tmp_path / f"i{suffix}")
    after = read_imatrix(tmp_path / f"i{suffix}", read_config(folders[model]))
    assert (after.dataset, after.chunks) == (before.dataset, 2)
    assert set(after.means) == set(before.means)
    for name, means in before.means.items():
        assert torch.allclose(after.means[name], means, rtol=1e-5), name
        assert torch.equal(after.counts[name] > 0, before.counts[name] > 0)
    if suffix == ".gguf":
        gguf = pytest.importorskip("gguf")
        theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "i.gguf").tensors}
        for name, means in before.means.items():
            sums, counts = (theirs[name + ending].data for ending in (".in_sum2", ".counts"))
            assert counts.shape == (len(means), 1)
            assert np.allclose(sums, (means * before.counts[name].unsqueeze(1)).numpy())


def test_a_published_gguf_imatrix_is_read(tmp_path: Path) -> None:
    """As llama-imatrix writes it, here by the `gguf` package."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "i.gguf", "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["wiki.train.raw"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 512)
    sums = np.arange(1, 513, dtype=np.float32).reshape(2, 256)
    writer.add_tensor("blk.0.ffn_up_exps.weight.in_sum2", sums)
    writer.add_tensor("blk.0.ffn_up_exps.weight.counts", np.array([[4.0], [0.0]], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_imatrix(tmp_path / "i.gguf", tiny_config(moe=True, num_experts=2, **WIDE))
    assert (found.dataset, found.chunks, found.length) == ("wiki.train.raw", 7, 512)
    assert torch.equal(found.means["blk.0.ffn_up_exps.weight"][0], torch.from_numpy(sums[0]) / 4)
    assert found.of("blk.0.ffn_up_exps.weight", 1) is None
    own = found.of("blk.0.ffn_up_exps.weight", 0)
    assert own is not None
    assert torch.isclose(own.mean(), torch.ones(()))


def legacy(entries: dict[str, tuple[int, np.ndarray]], tail: bytes = b"") -> bytes:
    out = struct.pack("<i", len(entries))
    for name, (calls, values) in entries.items():
        out += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, values.size)
        out += values.astype("<f4").tobytes()
    return out + tail


def test_an_old_imatrix_is_read(tmp_path: Path) -> None:
    file = tmp_path / "imatrix.dat"
    values = np.linspace(0, 9, 256)
    file.write_bytes(legacy({"blk.0.attn_q.weight": (3, values)}, struct.pack("<ii", 5, 4) + b"wiki"))
    found = read_imatrix(file, tiny_config(**WIDE))
    assert torch.allclose(found.means["blk.0.attn_q.weight"][0], torch.from_numpy(values).float() / 3)
    assert (found.dataset, found.chunks) == ("wiki", 5)
    file.write_bytes(legacy({"blk.0.attn_q.weight": (3, values)}))  # of 2023
    assert read_imatrix(file, tiny_config(**WIDE)).dataset == "imatrix.dat"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "truncated"),
        (struct.pack("<i", 1 << 30), "it would have 1073741824 entries"),
        (legacy({"a": (1, np.ones(4))})[:-3], "truncated"),
        (legacy({"a": (0, np.ones(4))}), "4 numbers of 0 calls"),
        (struct.pack("<ii", 1, -5), "truncated"),
        (struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 1 << 30), "truncated"),
        (legacy({"a": (1, np.array([1, -1.0]))}), "negative, NaN or infinite"),
        (legacy({"a": (1, np.array([1, np.nan]))}), "negative, NaN or infinite"),
        (b"GGUF" + bytes(20), "version"),
    ],
)
def test_what_is_no_imatrix_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "i.dat").write_bytes(data)
    with pytest.raises(CorruptFileError, match=message):
        read_imatrix(tmp_path / "i.dat", tiny_config())
    with pytest.raises(ModelNotFoundError):
        read_imatrix(tmp_path / "none.dat", tiny_config())


def test_one_of_another_model_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    for config, message in (
        (tiny_config(num_hidden_layers=3, **WIDE), "knows blk.2.attn_k.weight, which the model does not have"),
        (tiny_config(**{**WIDE, "hidden_size": 512}), r"has 1 x 512 numbers for blk.0.attn_k.weight, not 1 x 256"),
    ):
        with pytest.raises(ConfigError, match=message):
            write_gguf(folders["dense"], tmp_path / "a.gguf", "q4_k_m", imatrix=invented(config))
    assert not list(tmp_path.iterdir())


def test_it_moves_errors_and_leaves_its_mark(folders: dict[str, Path], tmp_path: Path) -> None:
    guide = invented(read_config(folders["dense"]))
    guided = write_gguf(folders["dense"], tmp_path / "a.gguf", "q3_k_s", imatrix=guide)
    blind = write_gguf(folders["dense"], tmp_path / "b.gguf", "q3_k_s")
    a, b = ({t.name: t for t in report.tensors} for report in (guided, blind))
    assert all(a[name].error > b[name].error for name in guide.means)  # of all weights alike
    assert a["token_embd.weight"].error == b["token_embd.weight"].error
    from qwen3.checkpoint.gguf.files import open_gguf

    metadata = open_gguf(tmp_path / "a.gguf").metadata
    assert metadata["quantize.imatrix.dataset"] == "made up"
    assert metadata["quantize.imatrix.entries_count"] == 14


def test_what_it_does_not_know_is_counted(folders: dict[str, Path], tmp_path: Path) -> None:
    guide = invented(read_config(folders["moe"]))
    guide.counts["blk.0.ffn_up_exps.weight"][2:5] = 0
    report = write_gguf(folders["moe"], tmp_path / "a.gguf", "q4_k_m", imatrix=guide)
    assert any("3 of 48 experts' matrices were reached by no token" in warning for warning in report.warnings)
    means = {name: value for name, value in guide.means.items() if "attn_q" not in name}
    report = write_gguf(folders["moe"], tmp_path / "b.gguf", "q8_0", imatrix=replace(guide, means=means))
    assert any("says nothing of 2 of 14 matrices, such as blk.0.attn_q" in warning for warning in report.warnings)
