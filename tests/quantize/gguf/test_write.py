"""Whole files: read back by us and by the `gguf` package, dense and MoE, split, refused, interrupted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3.checkpoint import read_config, resolve
from qwen3.checkpoint.gguf.files import open_gguf
from qwen3.checkpoint.mode import find_tokenizer
from qwen3.checkpoint.names import official_views
from qwen3.config import ModelConfig, RopeScaling
from qwen3.errors import ConfigError, CorruptFileError, Qwen3Error, UsageError
from qwen3.model import load_model
from qwen3.quantize.gguf import write_gguf
from qwen3.quantize.gguf.recipe import RECIPES
from qwen3.quantize.gguf.write import Report, tensor_pieces
from tests.fixtures import official_tensors, tiny_config
from tests.quantize.gguf.models import checkpoint

gguf = pytest.importorskip("gguf")
WIDE: dict[str, Any] = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 256}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    moe = {"moe_intermediate_size": 256, "num_experts": 4, "mlp_only_layers": (1,)}
    return {
        "dense": checkpoint(root / "dense", tiny_config(**WIDE)),
        "moe": checkpoint(root / "moe", tiny_config(moe=True, **WIDE, **moe)),
        "narrow": checkpoint(root / "narrow", tiny_config()),
    }


def by_theirs(report: Report) -> dict[str, tuple[str, np.ndarray]]:
    """Name → (type, values), by the `gguf` package."""
    out = {}
    for file in report.files:
        for tensor in gguf.GGUFReader(file).tensors:
            shape = [int(size) for size in reversed(tensor.shape)]
            values = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
            out[tensor.name] = (gguf.GGMLQuantizationType(tensor.tensor_type).name, values)
    return out


@pytest.mark.filterwarnings("ignore:.*nothing here multiplies them")
@pytest.mark.parametrize("model", ["dense", "moe"])
@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "iq4_nl", "q2_k", "q4_k_m", "iq4_xs", "tq2_0"])
def test_a_file_is_read_back_as_it_was_meant(folders: dict[str, Path], tmp_path: Path, model: str, kind: str) -> None:
    report = write_gguf(folders[model], tmp_path / "out.gguf", kind)
    config = read_config(folders[model])
    assert [file.name for file in report.files] == ["out.gguf"]
    assert list(tmp_path.iterdir()) == [tmp_path / "out.gguf"]
    assert report.nbytes == (tmp_path / "out.gguf").stat().st_size
    assert not report.fallbacks
    theirs = by_theirs(report)
    assert {name: found for name, (found, _) in theirs.items()} == {t.name: t.kind for t in report.tensors}
    assert {t.kind for t in report.tensors} >= {RECIPES[kind].base, "F32"}
    network = load_model(tmp_path / "out.gguf", "cpu", "float32")
    ours = official_views(network.config, dict(network.named_parameters()))
    before = official_tensors(config)
    for tensor in report.tensors:
        shape, officials = tensor_pieces(config)[tensor.name]
        assert tensor.shape == shape
        values = torch.from_numpy(theirs[tensor.name][1].copy())
        stacked = [before[official] for official in officials]
        original = torch.stack(stacked) if len(shape) == 3 else stacked[0]
        for i, official in enumerate(officials):
            assert torch.equal(ours[official], values[i] if len(shape) == 3 else values)
        assert abs(float((values - original).norm() / original.norm()) - tensor.error) < 1e-4
    assert report.to_dict()["kinds"][RECIPES[kind].base] > 0


@pytest.mark.parametrize("model", ["dense", "moe", "narrow"])
def test_plain_types_lose_nothing(folders: dict[str, Path], tmp_path: Path, model: str) -> None:
    report = write_gguf(folders[model], tmp_path, "stored")  # into a folder
    assert report.files == (tmp_path / f"{model}-STORED.gguf",)
    assert (report.agreement.kl, report.agreement.top1) == (0, 1)
    assert {t.kind for t in report.tensors} == {"F32"}
    config, back = read_config(folders[model]), read_config(report.files[0])
    different = {f for f in back.__dataclass_fields__ if getattr(back, f) != getattr(config, f)}
    assert different <= {"pad_token_id", "intermediate_size", "initializer_range"}, different
    ids = torch.tensor([[5, 300, 77, 12]])
    with torch.no_grad():
        a, b = (load_model(path, "cpu", "float32")(ids) for path in (folders[model], report.files[0]))
    assert torch.equal(a, b)


def test_the_tokenizer_and_template_come_along(folders: dict[str, Path], tmp_path: Path) -> None:
    file = write_gguf(folders["dense"], tmp_path / "t.gguf", "q8_0").files[0]
    pairs = [find_tokenizer(resolve(path), read_config(path)) for path in (folders["dense"], file)]
    (before, _), (after, doubt) = pairs
    assert doubt is None
    text = "<|im_start|>user\nnaïve 你好 12345<|im_end|>\n<think>\n\n</think>\n\n<tool_call>"
    assert before.encode(text) == after.encode(text)
    assert before.added_tokens == after.added_tokens
    assert before.special_ids == after.special_ids
    fields = gguf.GGUFReader(file).fields
    config = read_config(folders["dense"])
    assert fields["tokenizer.ggml.pre"].contents() == "qwen2"
    assert len(fields["tokenizer.ggml.tokens"].contents()) == config.vocab_size
    assert fields["tokenizer.ggml.eos_token_id"].contents() == config.eos_token_id
    assert fields["general.file_type"].contents() == 7
    assert fields["tokenizer.chat_template"].contents().startswith("{%- if tools %}")


@pytest.mark.parametrize("to_f16", [True, False])
def test_a_gguf_becomes_another(folders: dict[str, Path], tmp_path: Path, to_f16: bool) -> None:
    first = write_gguf(folders["dense"], tmp_path / "a.gguf", "q8_0").files[0]
    report = write_gguf(first, tmp_path / "b.gguf", "f16" if to_f16 else "q4_k_s")
    assert report.agreement.kl < (1e-4 if to_f16 else 1)
    assert any("quantized already (Q8_0)" in warning for warning in report.warnings) != to_f16


def test_yarn_and_experts_are_said(tmp_path: Path) -> None:
    scaling = RopeScaling(4.0, 1024, beta_fast=16.0)
    folder = checkpoint(tmp_path / "m", tiny_config(moe=True, rope_scaling=scaling))
    file = write_gguf(folder, tmp_path / "m.gguf", "f32").files[0]
    back = read_config(file)
    assert back.rope_scaling == scaling
    assert (back.num_experts, back.num_experts_per_tok, back.norm_topk_prob) == (8, 2, True)
    config = tiny_config(rope_scaling=RopeScaling(4.0, 1024, attention_factor=2.0))
    folder = checkpoint(tmp_path / "n", config)
    with pytest.raises(ConfigError, match="attention_factor"):
        write_gguf(folder, tmp_path / "n.gguf", "f32")


def test_what_llama_cpp_would_not_do_is_said(folders: dict[str, Path], tmp_path: Path) -> None:
    assert any("layers [1] are dense" in w for w in write_gguf(folders["moe"], tmp_path / "a.gguf", "f32").warnings)


@pytest.mark.parametrize("count", [1, 3])
def test_split_files(folders: dict[str, Path], tmp_path: Path, count: int) -> None:
    whole = write_gguf(folders["moe"], tmp_path / "whole.gguf", "q4_k_m")
    size = sum(tensor.nbytes for tensor in whole.tensors)
    report = write_gguf(folders["moe"], tmp_path / "p.gguf", "q4_k_m", split_size=size * (2 if count == 1 else 0.42))
    names = ["p.gguf"] if count == 1 else [f"p-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert [file.name for file in report.files] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "whole.gguf"]
    model = open_gguf(report.files[-1])
    assert set(model.tensors) == {tensor.name for tensor in whole.tensors}
    a, b = by_theirs(whole), by_theirs(report)
    assert all(np.array_equal(a[name][1], b[name][1]) for name in a)


def test_widths_that_do_not_fit_are_listed_or_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    report = write_gguf(folders["narrow"], tmp_path / "n.gguf", "q4_k_m")
    listed = {tensor.name: (tensor.wanted, tensor.kind) for tensor in report.fallbacks}
    assert listed["blk.0.attn_q.weight"] == ("Q4_K", "Q5_0")
    assert {tensor.kind for tensor in report.tensors} == {"F32", "Q5_0", "Q8_0"}
    assert report.to_dict()["fallbacks"]["blk.0.attn_q.weight"] == "Q4_K -> Q5_0"
    with pytest.raises(UsageError, match=r"--strict: .* has rows of 64, which Q6_K cannot hold"):
        write_gguf(folders["narrow"], tmp_path / "s.gguf", "q4_k_m", strict=True)
    assert not (tmp_path / "s.gguf").exists()
    write_gguf(folders["dense"], tmp_path / "s.gguf", "q4_k_m", strict=True)


def broken(folder: Path, to: Path, name: str, change: Any) -> Path:
    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    change(tensors[name])
    save_file(tensors, to / "model.safetensors")
    return to


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda t: t[0, :2].fill_(torch.nan), "q4_k_m", "blk.1.ffn_up.weight has 2 NaN or infinite values"),
        (lambda t: t[3, 7].fill_(torch.inf), "f32", "blk.1.ffn_up.weight has 1 NaN or infinite"),
        (lambda t: t.zero_(), "q8_0", "blk.1.ffn_up.weight holds nothing but zeros"),
        (lambda t: t.mul_(1e-12), "q8_0", r"blk.1.ffn_up.weight holds nothing but zeros \(as Q8_0\)"),
        (lambda t: t[0, 0].fill_(1e5), "f16", r"has values up to 1e\+05, beyond what F16 can hold"),
        (lambda t: t[0, 0].fill_(1e9), "q8_0", r"has values up to 1e\+09, beyond what Q8_0 can hold"),
    ],
)
def test_broken_weights_are_refused(
    folders: dict[str, Path], tmp_path: Path, change: Any, kind: str, message: str
) -> None:
    folder = broken(folders["dense"], tmp_path / "bad", "model.layers.1.mlp.up_proj.weight", change)
    with pytest.raises(CorruptFileError, match=message):
        write_gguf(folder, tmp_path / "out.gguf", kind)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad"]


def test_where_it_may_be_written(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.gguf"
    write_gguf(folders["narrow"], file, "f32")
    stamp = file.stat().st_mtime_ns
    for out, message in (
        (file, "exists; give another name, or --force"),
        (tmp_path / "a.bin", "must end in .gguf"),
        (tmp_path / "no" / "a.gguf", "there is no folder"),
    ):
        with pytest.raises(UsageError, match=message):
            write_gguf(folders["narrow"], out, "f32")
    with pytest.raises(UsageError, match="is the model itself"):
        write_gguf(file, file, "q8_0", force=True)
    assert file.stat().st_mtime_ns == stamp
    write_gguf(folders["narrow"], file, "f16", force=True)
    assert file.stat().st_mtime_ns != stamp
    with pytest.raises(UsageError, match="split_size is 0"):
        write_gguf(folders["narrow"], tmp_path / "b.gguf", "f32", split_size=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(Qwen3Error, match=r"the file takes [\d,]+ bytes but the disk has 1,000 free"):
        write_gguf(folders["narrow"], tmp_path / "b.gguf", "f32")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf"]


def test_an_interrupted_write_leaves_the_old_file(folders: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    write_gguf(folders["dense"], file, "q8_0")
    before, seen = file.read_bytes(), []

    def stop(what: str, share: float) -> None:
        assert 0 < share <= 1
        seen.append(what)
        if what == "blk.1.attn_v.weight":
            raise KeyboardInterrupt

    left = tmp_path / ".a.gguf.partial"
    left.mkdir()  # of a writer that was killed
    (left / "a.gguf").write_bytes(b"half")
    with pytest.raises(KeyboardInterrupt):
        write_gguf(folders["dense"], file, "q4_0", force=True, progress=stop)
    assert seen[0] == "token_embd.weight"
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_threads_change_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            write_gguf(folders["dense"], tmp_path / f"{count}.gguf", "q4_k_m")
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "3.gguf").read_bytes()


def test_a_file_that_is_read_back_otherwise_is_not_put_in_place(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwen3.quantize.gguf import stream

    real = stream.encode

    def shifted(kind: str, rows: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
        return real(kind, rows.roll(1, 1) if kind == "Q8_0" else rows, importance)

    monkeypatch.setattr(stream, "encode", shifted)
    with pytest.raises(CorruptFileError, match="is read back as something else"):
        write_gguf(folders["dense"], tmp_path / "a.gguf", "q8_0")
    assert not list(tmp_path.iterdir())


def test_every_configuration_of_tokens(tmp_path: Path) -> None:
    config: ModelConfig = tiny_config(eos_token_id=(610, 600, 612))
    report = write_gguf(checkpoint(tmp_path / "m", config), tmp_path / "m.gguf", "f32")
    assert read_config(report.files[0]).eos_token_id == 610
    assert any("will not end one" in warning for warning in report.warnings)
