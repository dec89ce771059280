"""Whole tiny models of each format, dense and with experts: the same numbers as their widened twins."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3.checkpoint import verify
from qwen3.errors import OutOfMemoryError
from qwen3.kernels import native
from qwen3.kernels.fp8 import Fp8Weight
from qwen3.kernels.packed import PackedWeight
from qwen3.model import load_model
from tests.checkpoint.formats import build

IDS = torch.tensor([[5, 90, 77, 300, 8, 120, 44, 200]])
W4: dict[str, Any] = {"num_bits": 4, "strategy": "group", "group_size": 128}
W8: dict[str, Any] = {"num_bits": 8, "strategy": "channel"}
ANY = r"_proj\.weight|embed_tokens|lm_head|mlp\.gate\."
GATE = {f"model.layers.{i}.mlp.gate": {"bits": 8, "group_size": 64} for i in (0, 2)}

# name → (how it is written, the bits in which a CPU holds it: 0 if widened)
HOW: dict[str, tuple[Any, int]] = {
    "gptq": (build.gptq(), 4),
    "gptq-asymmetric": (build.gptq(4, 32, symmetric=False, version=2), 5),
    "gptq-desc-act": (build.gptq(4, 64, order=True), 0),
    "gptq-8": (build.gptq(8, 64), 8),
    "gptq-channel": (build.gptq(4, -1, symmetric=False, version=1), 5),
    "gptq-8-desc-act": (build.gptq(8, 32, symmetric=False, order=True, version=2), 0),
    "awq": (build.awq(), 5),
    "w4a16": (build.compressed(**W4), 4),
    "w4a16-zero": (build.compressed(**W4, symmetric=False), 5),
    "w4a16-order": (build.compressed(**W4 | {"group_size": 64}, actorder="group"), 0),
    "w8a16": (build.compressed(**W8), 8),
    "w8a8": (build.compressed("int-quantized", **W8), 8),
    "fp8": (build.compressed("float-quantized", **W8 | {"type": "float"}), 0),
    "fp8-tensor": (build.compressed("float-quantized", **W8 | {"type": "float", "strategy": "tensor"}), 0),
    "fp8-block": (build.compressed("float-quantized", **W8 | {"type": "float", "strategy": "block"}), 0),
    "nf4": (build.nf4(), 0),
    "mlx": (build.mlx(), 4),
    "mlx-8": (build.mlx(8, 32), 8),
    "mlx-3": (build.mlx(3, 128), 4),
}


def small(folder: Path, name: str, kind: str) -> tuple[Path, Any]:
    takes = ANY if name.startswith("mlx") else r"_proj\.weight"
    return build.make(folder, kind, HOW[name][0], takes)


@pytest.mark.parametrize("kind", ["dense", "moe"])
@pytest.mark.parametrize("name", HOW)
def test_logits_are_those_of_the_widened_twin(name: str, kind: str, tmp_path: Path) -> None:
    folder, twin = small(tmp_path, name, kind)
    with pytest.warns(UserWarning, match=r"small: its [\d.]+ MB in .* become [\d.]+ MB in float32: nothing here"):
        model = load_model(folder, "cpu", "float32")
    with torch.no_grad():
        assert torch.equal(model(IDS), twin(IDS))
    assert not [found for found in verify(folder).findings if found.severity == "error" and found.check != "tokenizer"]
    if native.library() is None:
        return
    bits = HOW[name][1]
    with warnings.catch_warnings():
        warnings.simplefilter("error" if bits else "ignore")
        warnings.filterwarnings("ignore", ".*MLX.* become")  # a router is never packed
        held = load_model(folder, "cpu")
    found = {path: part for path, part in held.named_modules() if isinstance(part, PackedWeight)}
    plain, layers = dict(twin.named_parameters()), held.config.num_hidden_layers
    more = (1 if kind == "dense" else 2) if name.startswith("mlx") else 0  # embedding and head
    assert len(found) == (4 * layers + more if bits else 0)
    for path, part in found.items():
        assert part.bits == bits
        assert torch.equal(part.dequantize(), plain[path]), path
    with torch.no_grad():  # activations are rounded to 8 bits, which may send a token to another expert
        assert (held(IDS) - twin(IDS)).norm() < (0.15 if kind == "moe" else 0.05) * twin(IDS).norm()


@pytest.mark.skipif(native.library() is None, reason=f"no compiled kernels: {native.state()}")
def test_parts_that_differ(tmp_path: Path) -> None:
    """Query and key in 4 bits, value in 8, which are one matrix here; a module that is not quantized."""
    four, eight = build.gptq(), build.gptq(8, 128)
    rule = {"+:.*v_proj": {"bits": 8}, "-:model.layers.1.mlp.down_proj": {}}

    def encode(name: str, weight: torch.Tensor) -> Any:
        return (eight if "v_proj" in name else four)[0](name, weight)

    takes = r"(?<!layers\.1\.mlp\.down)_proj\.weight"
    folder, twin = build.make(tmp_path, "dense", (encode, four[1] | {"dynamic": rule}), takes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_model(folder, "cpu")
    held: Any = {name: part for name, part in model.named_modules() if isinstance(part, PackedWeight)}
    assert [part.bits for part in held["layers.0.self_attn.qkv_proj.weight"].parts] == [4, 8]
    plain = dict(twin.named_parameters())
    names = {name for name in plain if "_proj" in name and name != "layers.1.mlp.down_proj.weight"}
    assert names <= held.keys()
    for name in names:
        assert torch.equal(held[name].dequantize(), plain[name]), name
    with torch.no_grad():
        assert (model(IDS) - twin(IDS)).norm() < 0.05 * twin(IDS).norm()


@pytest.mark.parametrize("kind", ["dense", "moe"])
@pytest.mark.parametrize("name", ["fp8", "fp8-tensor", "fp8-block"])
def test_fp8_where_a_device_multiplies_it(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Number for number, but blocks, which are not widened in silence; without loss where asked for, too."""
    monkeypatch.setattr("qwen3.model.load.has_fp8", lambda device: True)
    folder, twin = small(tmp_path, name, kind)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = load_model(folder, "cpu", "float32")
    assert any("become" in str(one.message) for one in caught) == (name == "fp8-block")
    held = {path: part for path, part in model.named_modules() if isinstance(part, Fp8Weight)}
    assert len(held) == (0 if name == "fp8-block" else 4 * model.config.num_hidden_layers)
    if held:
        again = dict(load_model(folder, "cpu", quantization="fp8").named_modules())
        assert all(torch.equal(part.scale, again[path].scale) for path, part in held.items())
    plain = dict(twin.named_parameters())
    for path, part in held.items():
        assert torch.equal(part.dequantize(torch.float32), plain[path]), path


def test_modules_of_their_own(tmp_path: Path) -> None:
    """MLX: the router in 8 bits, as its converter does; a module left out; both keys in config.json."""
    own = GATE | {"model.layers.1.self_attn.o_proj": False}
    four, eight = build.mlx(4, 64, **own), build.mlx(8, 64)

    def encode(name: str, weight: torch.Tensor) -> Any:
        return (eight if "mlp.gate." in name else four)[0](name, weight)

    takes = rf"(?<!layers\.1\.self_attn\.o){ANY}"
    folder, twin = build.make(tmp_path, "moe", (encode, four[1]), takes)
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | {"quantization_config": told["quantization"]}))
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        assert torch.equal(load_model(folder, "cpu", "float32")(IDS), twin(IDS))


def test_experts_in_one_tensor(tmp_path: Path) -> None:
    """As transformers 5 has them in memory: gate and up in one, [E, 2·M, H]."""
    _, twin = small(tmp_path, "gptq", "moe")
    tensors = load_file(tmp_path / "wide" / "model.safetensors")
    for layer in (0, 2):
        path = f"model.layers.{layer}.mlp.experts"
        parts = {
            side: [tensors.pop(f"{path}.{e}.{side}_proj.weight") for e in range(4)] for side in ("gate", "up", "down")
        }
        both = [torch.cat(pair) for pair in zip(parts["gate"], parts["up"], strict=True)]
        tensors |= {f"{path}.gate_up_proj": torch.stack(both), f"{path}.down_proj": torch.stack(parts["down"])}
    save_file(tensors, tmp_path / "wide" / "model.safetensors")
    (tmp_path / "wide" / "qwen3.manifest.json").unlink()
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "wide", "cpu", "float32")(IDS), twin(IDS))


def test_memory_is_asked_for_the_widened_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, twin = small(tmp_path, "nf4", "dense")
    need = twin.config.num_parameters() * 4
    monkeypatch.setattr("qwen3.checkpoint.memory.available_bytes", lambda device=None: need - 1)
    with pytest.raises(OutOfMemoryError, match=rf"in bitsandbytes nf4\), once widened, needs {need:,} bytes"):
        load_model(folder, "cpu", "float32")
