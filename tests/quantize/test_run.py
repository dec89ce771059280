"""A checkpoint through every method: what comes out, in which order, and what the report says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qwen3.checkpoint import official_shapes, official_views
from qwen3.config import ModelConfig
from qwen3.errors import CorruptFileError, UsageError
from qwen3.model import Qwen3, load_model
from qwen3.quantize.calibration import load_calibration
from qwen3.quantize.collect import moments
from qwen3.quantize.layers import Walk
from qwen3.quantize.run import Report, quantize_tensors
from qwen3.quantize.spec import Rule, Spec
from qwen3.quantize.types import Float8, Grouped, Int8
from tests.fixtures import official_tensors, random_checkpoint, tiny_config

SMALL: dict[str, Any] = {"group": 32, "samples": 6, "length": 64}


def wide(made: Any) -> Tensor:
    return made.float() if isinstance(made, Tensor) else made.dequantize()


def filled(config: ModelConfig, tensors: dict[str, Any]) -> Qwen3:
    model = Qwen3(config, "cpu", torch.float32)
    for name, view in official_views(config, dict(model.named_parameters())).items():
        view.copy_(wide(tensors[name]))
    return model.eval()


def settings(config: ModelConfig) -> dict[str, Any]:
    return SMALL | {"expert_tokens": 8}


@pytest.fixture
def config(folder: Path) -> ModelConfig:
    return ModelConfig.from_pretrained(folder)


@pytest.fixture
def ids(folder: Path) -> Tensor:
    return load_calibration(folder, "qwen3", samples=4, length=64, seed=5).ids


@torch.no_grad()
def logits(model: Qwen3, ids: Tensor) -> Tensor:
    return model(ids)


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        (Spec("rtn", **SMALL), Grouped),
        (Spec("gptq", **SMALL), Grouped),
        (Spec("awq", **SMALL), Grouped),
        (Spec("w8a8", **SMALL), Int8),
        (Spec("fp8", **SMALL), Float8),
    ],
    ids=lambda value: getattr(value, "method", ""),
)
def test_every_tensor_comes_out_once_and_the_model_still_speaks(
    folder: Path, config: ModelConfig, ids: Tensor, spec: Spec, kind: type
) -> None:
    report = Report()
    calls: list[tuple[int, int, str]] = []
    made = list(quantize_tensors(folder, spec, report=report, progress=lambda *call: calls.append(call)))
    names = [name for name, _ in made]
    assert sorted(names) == sorted(official_shapes(config))
    assert names[0] == "model.embed_tokens.weight"
    layers = [int(name.split(".")[2]) for name in names if ".layers." in name]
    assert layers == sorted(layers)
    rounded = {name: value for name, value in made if not isinstance(value, Tensor)}
    assert all(name.endswith("_proj.weight") for name in rounded)
    assert all(isinstance(value, kind) for value in rounded.values())
    assert len(rounded) == len(report.matrices) == calls[0][1]
    steps = [(i, len(rounded), matrix.module) for i, matrix in enumerate(report.matrices)]
    assert [call for call in calls if not call[2].startswith("factors of layer")] == steps
    with_data = spec.method not in ("rtn", "fp8")
    assert (report.calibration is not None) == with_data
    for matrix in report.matrices:
        assert 0 < matrix.weight_error < (0.2 if spec.method in ("rtn", "gptq", "awq") else 0.05)
        assert (matrix.error is not None and matrix.error < 0.25) or not (with_data and matrix.tokens)
    json.dumps(report.to_dict())
    before = logits(load_model(folder, "cpu", torch.float32), ids)
    after = logits(filled(config, dict(made)), ids)
    limit = {"rtn": 0.5, "gptq": 0.5, "awq": 0.5, "w8a8": 0.1, "fp8": 0.2}[spec.method]
    assert float((after - before).norm() / before.norm()) < limit * (2 if config.is_moe else 1)


def test_gptq_loses_less_than_rounding_and_awq_too(folder: Path, config: ModelConfig) -> None:
    """In the share of the outputs that is wrong, on the data that they saw; tiny random layers gain least."""
    means = {}
    for method in ("rtn", "gptq", "awq"):
        report = Report()
        spec = Spec(method, bits=3, symmetric=False, calibration="qwen3", **settings(config))
        for _ in quantize_tensors(folder, spec, report=report):
            pass
        errors = [matrix.error for matrix in report.matrices if matrix.tokens >= 8 and matrix.error is not None]
        means[method] = sum(errors) / len(errors)
    assert means["gptq"] < 0.9 * means["rtn"]
    assert means["awq"] < means["rtn"]


@pytest.mark.parametrize("method", ["awq", "w8a8"])
def test_a_folded_model_is_the_same_model(
    folder: Path, config: ModelConfig, ids: Tensor, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With rounding left out, what is folded into norms, v and up comes back in the columns behind them."""
    from qwen3.quantize import run

    class Whole(Int8):
        def dequantize(self) -> Tensor:
            return self.data

    monkeypatch.setattr(run, "round_matrix", lambda weight, *_: Whole(weight.clone(), torch.ones(1)))
    made = dict(quantize_tensors(folder, Spec(method, bits=3, alpha=0.8, **settings(config))))
    original = official_tensors(config)
    for name in ("input_layernorm", "self_attn.v_proj"):
        full = f"model.layers.0.{name}.weight"
        assert not torch.allclose(wide(made[full]), original[full], rtol=0.01), name
    before = logits(load_model(folder, "cpu", torch.float32), ids)
    after = logits(filled(config, made), ids)
    torch.testing.assert_close(after, before, rtol=2e-4, atol=2e-4)


def test_norms_of_a_bfloat16_checkpoint_are_folded_without_loss(folders: dict[str, Path], tmp_path: Path) -> None:
    """Columns are multiplied by what the rounded norm was really divided by."""
    from qwen3.quantize.fold import fold
    from qwen3.quantize.spec import plan

    config = tiny_config(dtype="bfloat16")
    path = random_checkpoint(shutil.copytree(folders["dense"], tmp_path / "model"), config)
    spec = Spec("w8a8", samples=4, length=64)
    with Walk(path, load_calibration(path, "qwen3", samples=4, length=64)) as walk:
        next(walk.ends())
        opened = next(walk.layers())
        norm, column = (
            opened.views[f"{opened.prefix}{name}.weight"] for name in ("input_layernorm", "self_attn.q_proj")
        )
        product = norm * column
        before = norm.clone()
        fold(opened, list(walk.stages(opened, advance=False)), plan(spec, config), config, walk.dtype)
        assert not torch.equal(norm, before)
        assert torch.equal(norm, norm.bfloat16().float())
        torch.testing.assert_close(norm * column, product, rtol=1e-6, atol=0)


def test_rules_change_and_keep_modules(folder: Path, config: ModelConfig) -> None:
    rules = (Rule("*.o_proj", skip=True), Rule("*.v_proj", bits=8, group=64), Rule("model.embed_tokens", bits=8))
    made = dict(quantize_tensors(folder, Spec("gptq", rules=rules, **settings(config))))
    kept = made["model.layers.1.self_attn.o_proj.weight"]
    assert torch.equal(kept, official_tensors(config)["model.layers.1.self_attn.o_proj.weight"])
    assert (
        made["model.layers.0.self_attn.v_proj.weight"].bits,
        made["model.layers.0.self_attn.v_proj.weight"].group,
    ) == (8, 64)
    assert made["model.embed_tokens.weight"].bits == 8


def test_the_walk_runs_the_model(folder: Path, config: ModelConfig) -> None:
    """Layer by layer, stage by stage, it has the activations that the network itself has."""
    data = load_calibration(folder, "qwen3", samples=3, length=48, seed=1)
    model = load_model(folder, "cpu", torch.float32)
    seen: dict[str, list[Tensor]] = {}
    for i, layer in enumerate(model.layers):
        layer.self_attn.o_proj.register_forward_pre_hook(
            lambda _, args, i=i: seen.setdefault(f"o{i}", []).append(args[0])
        )
        layer.self_attn.qkv_proj.register_forward_pre_hook(
            lambda _, args, i=i: seen.setdefault(f"q{i}", []).append(args[0])
        )
    with torch.no_grad():
        model(data.ids, positions=data.positions, doc_ids=data.documents)
    with Walk(folder, data) as walk:
        next(walk.ends())
        for i, opened in enumerate(walk.layers()):
            tokens: dict[int, int] = {}
            for stage in walk.stages(opened, advance=True):
                assert stage.inputs is not None
                inputs = torch.cat(list(stage.inputs()))
                kind = stage.modules[0][-6]
                if kind in "qo":
                    torch.testing.assert_close(inputs, seen[f"{kind}{i}"][0].flatten(0, 1), rtol=1e-4, atol=1e-4)
                elif stage.expert is not None:
                    tokens[stage.expert] = len(inputs)
                else:
                    assert len(inputs) == data.ids.numel()
            assert sum(tokens.values()) == (2 * data.ids.numel() if config.is_moe else 0)


def test_experts_that_few_tokens_reach_are_rounded_to_nearest_with_a_warning(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(folders["moe"], tmp_path / "model"))
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.1.mlp.gate.weight"][5] = 0  # a logit of zero, never among the best two of eight … or seldom
    tensors["model.layers.1.mlp.gate.weight"][:5] *= 100
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    report = Report()
    spec = Spec("gptq", expert_tokens=60, **SMALL)
    made = dict(quantize_tensors(path, spec, report=report))
    counts = report.experts["model.layers.1.mlp"]
    assert len(counts) == 8
    assert sum(counts) == 2 * SMALL["samples"] * SMALL["length"]
    few = sum(count < 60 for count in counts)
    assert few > 0
    warning = next(line for line in report.warnings if line.startswith("model.layers.1.mlp"))
    assert f"{few} of 8 experts saw fewer than 60 calibration tokens" in warning
    methods = {matrix.module: matrix.method for matrix in report.matrices}
    for expert, count in enumerate(counts):
        assert methods[f"model.layers.1.mlp.experts.{expert}.down_proj"] == ("rtn" if count < 60 else "gptq")
    assert isinstance(made["model.layers.1.mlp.experts.5.down_proj.weight"], Grouped)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.layers.1.self_attn.k_proj.weight", "model.embed_tokens.weight"])
def test_a_weight_that_is_not_finite_is_refused_by_name(tmp_path: Path, name: str, value: float) -> None:
    path = random_checkpoint(tmp_path / "model", tiny_config())
    tensors = load_file(path / "model.safetensors")
    tensors[name][3, 3] = value
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CorruptFileError, match=f"{name} has a value that is NaN or infinite"):
        list(quantize_tensors(path, Spec("rtn", group=32)))


def test_a_weight_too_large_for_its_scale_is_refused_by_name(tmp_path: Path) -> None:
    path = random_checkpoint(tmp_path / "model", tiny_config())
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e9
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"model\.layers\.0\.mlp\.up_proj: .*does not fit float16"):
        list(quantize_tensors(path, Spec("rtn", group=32)))


def test_the_same_seed_gives_the_same_numbers(folder: Path, config: ModelConfig) -> None:
    def run() -> Iterator[Tensor]:
        return (wide(made) for _, made in quantize_tensors(folder, Spec("gptq", **settings(config))))

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


def test_moments_are_means() -> None:
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    found = moments([x[:20], x[20:20], x[20:]])
    assert found is not None
    assert found.hessian is not None
    torch.testing.assert_close(found.hessian, x.T @ x / 50)
    torch.testing.assert_close(found.mean, x.abs().mean(0))
    assert torch.equal(found.peak, x.abs().amax(0))
    assert (found.tokens, moments([]), moments([x[:0]])) == (50, None, None)
    with pytest.raises(UsageError, match="activations of the calibration data"):
        moments([torch.full((2, 8), float("inf"))])
