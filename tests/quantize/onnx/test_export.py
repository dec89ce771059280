"""Exported models in onnxruntime (a package of the extra `onnx` and one that only tests need) beside the engine."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qwen3.checkpoint import official_views
from qwen3.checkpoint.source import open_source
from qwen3.config import ModelConfig, RopeScaling
from qwen3.errors import CorruptFileError, Qwen3Error, UsageError
from qwen3.model import Qwen3, load_model
from qwen3.quantize.onnx.check import run, session
from qwen3.quantize.onnx.export import Report, export, weights_of
from tests.checkpoint.formats.build import awq, gptq, make
from tests.fixtures import random_checkpoint, tiny_config

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
PIECES = [[5, 9, 300, 17, 2, 88, 41, 7], [11, 12, 13], [3]]  # of one text, fed one after the other
WHOLE = torch.tensor([[id for piece in PIECES for id in piece]])
GROUPED = ("weights", "symmetric", "embedding", "activations", "block_size")


def twin(folder: Path, **how: Any) -> Qwen3:
    """Our network with the weights that are exported, widened."""
    model = load_model(folder, "cpu", "float32")
    with closing(open_source(folder, model.config)) as source, torch.no_grad():
        held = weights_of(source, **{name: value for name, value in how.items() if name in GROUPED})
        for name, view in official_views(model.config, dict(model.named_parameters())).items():
            view.copy_(held.exported(name))
    return model


@torch.no_grad()
def far(out: Path, model: Qwen3, level: int = 0) -> float:
    """The difference of logits, in their spread."""
    found = run(session(out, level), model.config, PIECES)
    wanted = model(WHOLE)[0]
    assert found.shape == wanted.shape
    return float((found - wanted).norm() / (wanted - wanted.mean()).norm())


EXACT: list[dict[str, Any]] = [
    {},
    {"opset": 23, "fused": False},
    {"opset": 18, "weights": "int4"},
    {"weights": "int4", "symmetric": False, "block_size": 16},
    {"weights": "int4", "fused": False},
    {"weights": "int4", "symmetric": False, "fused": False, "embedding": "kept"},
    {"weights": "int8", "fused": False, "symmetric": False},
]


@pytest.mark.parametrize("how", EXACT, ids=str)
def test_logits_are_the_engines(how: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    report = export(folder, tmp_path / "out", **how)
    assert report.logits_off is not None
    assert report.logits_off < 1e-4
    assert far(tmp_path / "out", twin(folder, **how)) < 1e-4
    assert (report.rounded > 0) == ("weights" in how)


@pytest.mark.parametrize(
    ("how", "loss"),
    [
        ({"weights": "fp16"}, 0.03),
        ({"weights": "fp16", "fused": False}, 0.03),
        ({"weights": "int4", "activations": "fp16"}, 0.03),
        ({"weights": "int4", "accuracy_level": 4}, 0.6),
        ({"weights": "int8"}, 0.6),  # experts: onnxruntime has 8-bit ones with int8 activations only
    ],
    ids=str,
)
def test_logits_in_fewer_bits(how: dict[str, Any], loss: float, folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "out", **how)
    assert far(tmp_path / "out", twin(folder, **how), level=how.get("accuracy_level", 0)) < loss


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": False},
        {"rope_scaling": RopeScaling(4.0, 1024), "rope_theta": 10_000.0},
        {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "mlp_only_layers": (0,)},
        {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "norm_topk_prob": False},
        {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 32, "intermediate_size": 96},
    ],
    ids=str,
)
def test_other_shapes(changes: dict[str, Any], fused: bool, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["dense"], tmp_path / "model")
    random_checkpoint(folder, tiny_config(**changes))
    for how in ({}, {"weights": "int4"}):
        export(folder, tmp_path / "out", fused=fused, force=True, **how)
        assert far(tmp_path / "out", twin(folder, **how)) < 1e-4


@pytest.mark.parametrize("how", [gptq(4, 32), gptq(4, 32, False), awq(64)], ids=["gptq", "gptq-zeros", "awq"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_stored_groups_keep_their_numbers(
    how: Any, fused: bool, kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    small, wide = make(tmp_path, kind, how)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folders["dense"] / name, small / name)
    report = export(small, tmp_path / "out", weights="int4", embedding="kept", fused=fused)
    assert (report.rounded, report.warnings) == (0, ())
    assert report.kept > 0
    assert far(tmp_path / "out", wide) < 1e-4  # the numbers as the checkpoint's own tool would widen them


def test_groups_that_do_not_fit_are_rounded_again(folders: dict[str, Path], tmp_path: Path) -> None:
    small, wide = make(tmp_path, "dense", gptq(8, 32))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folders["dense"] / name, small / name)
    report = export(small, tmp_path / "out", weights="int4")
    assert report.kept == 0
    assert "rounded again" in report.warnings[0]
    report = export(small, tmp_path / "floats")
    assert (report.kept, report.rounded, report.warnings) == (0, 0, ())
    assert far(tmp_path / "floats", wide) < 1e-4


def test_a_batch_with_padding(folder: Path, tmp_path: Path) -> None:
    """In standard operators columns may be masked anywhere: rows are as if they were alone."""
    export(folder, tmp_path / "out", fused=False)
    model, rows = session(tmp_path / "out", 0), [[5, 9, 300, 17], [8, 2]]
    config = ModelConfig.from_pretrained(folder)
    alone = [run(model, config, [row]) for row in rows]
    ids, mask = np.array([rows[0], [0, 0, *rows[1]]]), np.array([[1] * 4, [0, 0, 1, 1]])
    names = [each.name for each in model.get_inputs()[2:]]
    empty = np.zeros((2, config.num_key_value_heads, 0, config.head_dim), np.float32)
    feeds = {"input_ids": ids, "attention_mask": mask, **dict.fromkeys(names, empty)}
    logits = torch.from_numpy(model.run(["logits"], feeds)[0])
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits[0], alone[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[1, 2:], alone[1], rtol=1e-4, atol=1e-4)
    # a cache of fixed size, whose columns before the text hold whatever they hold
    past = np.random.default_rng(0).normal(size=(1, *empty.shape[1:2], 5, *empty.shape[3:])).astype(np.float32)
    feeds = {"input_ids": np.array([rows[0]]), "attention_mask": np.array([[0] * 5 + [1] * 4])}
    logits = torch.from_numpy(model.run(["logits"], {**feeds, **dict.fromkeys(names, past)})[0])
    torch.testing.assert_close(logits[0], alone[0], rtol=1e-4, atol=1e-4)


def test_standard_operators_alone(folder: Path, tmp_path: Path) -> None:
    """The plain variant passes the strict checker, and another runtime (onnx's own) computes the same."""
    from onnx.reference import ReferenceEvaluator

    export(folder, tmp_path / "out", fused=False)
    path = tmp_path / "out" / "model.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} == {""}
    shapes = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    assert len(shapes.graph.value_info) >= len(model.graph.node) - len(model.graph.output)
    config = ModelConfig.from_pretrained(folder)
    empty = np.zeros((1, config.num_key_value_heads, 0, config.head_dim), np.float32)
    feeds = {each.name: empty for each in model.graph.input[2:]}
    feeds |= {"input_ids": np.array([PIECES[0]]), "attention_mask": np.ones((1, len(PIECES[0])), np.int64)}
    logits = torch.from_numpy(ReferenceEvaluator(model).run(["logits"], feeds)[0])
    with torch.no_grad():
        wanted = twin(folder)(torch.tensor([PIECES[0]]))
    torch.testing.assert_close(logits, wanted, rtol=1e-3, atol=1e-3)


def test_only_the_last_logits(folder: Path, tmp_path: Path) -> None:
    report = export(folder, tmp_path / "out", last_only=True, context=12)
    assert report.logits_off is not None
    assert report.context == 12
    logits = run(session(tmp_path / "out", 0), ModelConfig.from_pretrained(folder), PIECES)
    with torch.no_grad():
        wanted = twin(folder)(WHOLE)[0, [7, 10, 11]]
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)


def test_the_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["dense"], tmp_path / "model")
    ends = ModelConfig.from_pretrained(folder).eos_token_ids
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [*ends, 608], "temperature": 0.25}))
    seen: list[tuple[str, float]] = []
    report = export(folder, tmp_path / "out", progress=lambda what, share: seen.append((what, share)))
    assert isinstance(report, Report)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*report.files, "qwen3.manifest.json"}
    genai = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    assert genai["model"]["type"] == "qwen3"
    assert genai["model"]["eos_token_id"] == [*ends, 608]
    assert genai["model"]["context_length"] == genai["search"]["max_length"] == 4096
    assert (genai["search"]["temperature"], genai["search"]["top_k"]) == (0.25, 20)
    assert genai["search"]["past_present_share_buffer"] is True
    assert ModelConfig.from_pretrained(tmp_path / "out") == ModelConfig.from_pretrained(folder)
    shares = [share for what, share in seen if what == "writing weights"]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    again = export(folder, tmp_path / "again")
    assert again.files == report.files  # the same bytes


# What goes wrong


def left(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir()) if out.exists() else []


def test_what_is_there_is_not_overwritten(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        export(folders["dense"], tmp_path / "out")
    with pytest.raises(UsageError, match="the model itself"):
        export(folders["dense"], folders["dense"], force=True)
    export(folders["dense"], tmp_path / "out", force=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert "model.onnx" in left(tmp_path / "out")


def test_interrupted(folders: dict[str, Path], tmp_path: Path) -> None:
    def stop(what: str, share: float) -> None:
        if share > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(folders["dense"], tmp_path / "out", progress=stop)
    assert left(tmp_path / "out") == []
    before = export(folders["dense"], tmp_path / "out").files
    with pytest.raises(KeyboardInterrupt):
        export(folders["dense"], tmp_path / "out", weights="int4", force=True, progress=stop)
    assert left(tmp_path / "out") == sorted([*before, "qwen3.manifest.json"])
    assert (tmp_path / "out" / "model.onnx.data").stat().st_size == before["model.onnx.data"][0]


@pytest.mark.parametrize(("value", "how"), [(float("nan"), {}), (float("inf"), {"weights": "int4"})])
def test_values_not_finite(value: float, how: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    name = next(name for name in sorted(tensors) if name.endswith("down_proj.weight"))
    tensors[name][3, 1] = value
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(CorruptFileError, match=name.replace(".", r"\.")):
        export(broken, tmp_path / "out", **how)
    assert left(tmp_path / "out") == []


def test_a_missing_tensor(folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    tensors: dict[str, Tensor] = load_file(broken / "model.safetensors")
    del tensors["model.layers.1.self_attn.q_norm.weight"]
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(CorruptFileError, match=r"model\.layers\.1\.self_attn\.q_norm\.weight"):
        export(broken, tmp_path / "out")
    assert left(tmp_path / "out") == []


def test_beyond_float16(folders: dict[str, Path], tmp_path: Path) -> None:
    broken = shutil.copytree(folders["dense"], tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(UsageError, match=r"layers\.0\.mlp\.up_proj\.weight holds values beyond float16"):
        export(broken, tmp_path / "out", weights="fp16")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"weights": "int2"}, "weights must be one of fp32, fp16, int8, int4, not 'int2'"),
        ({"block_size": 48}, "block_size must be one of"),
        ({"weights": "int4", "block_size": 128}, "has 64 columns, no multiple of block size 128"),
        ({"opset": 17}, "opset must be one of"),
        ({"accuracy_level": 5}, "accuracy_level must be one of"),
        ({"embedding": "int2"}, "embedding must be one of"),
        ({"weights": "fp16", "activations": "fp32"}, "computed with in fp16"),
        ({"weights": "int4", "fused": False, "opset": 20}, "need opset 21"),
        ({"context": 9999}, "context must be between 2 and the model's 4096"),
    ],
    ids=str,
)
def test_wrong_arguments(how: dict[str, Any], message: str, folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        export(folders["dense"], tmp_path / "out", **how)
    assert left(tmp_path / "out") == []


def test_without_the_packages(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    report = export(folders["dense"], tmp_path / "out")
    assert report.logits_off is None
    assert report.warnings[0].startswith("not checked: onnxruntime")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(Qwen3Error, match=r"pip install 'qwen3\[onnx\]'"):
        export(folders["dense"], tmp_path / "none")


def test_a_runtime_that_cannot(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwen3.quantize.onnx import experts

    monkeypatch.setattr(experts, "MICROSOFT", "com.example")
    with pytest.raises(Qwen3Error, match=r"not saved: onnxruntime cannot run the model .*com.example"):
        export(folders["moe"], tmp_path / "out")
    assert left(tmp_path / "out") == []


def test_other_numbers_are_refused(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check is one: an export whose attention scale is wrong does not reach its folder."""
    from qwen3.quantize.onnx.graph import Graph

    call = Graph.__call__

    def wrong(self: Graph, op: str, *inputs: str, **options: Any) -> str:
        return call(self, op, *inputs, **(options | ({"scale": 0.3} if op == "GroupQueryAttention" else {})))

    monkeypatch.setattr(Graph, "__call__", wrong)
    with pytest.raises(Qwen3Error, match="not saved: onnxruntime computes logits"):
        export(folders["dense"], tmp_path / "out")
    assert left(tmp_path / "out") == []
