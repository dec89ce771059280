"""Quantized folders: what the loader finds in them, what is refused, and what is left behind (nothing)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qwen3.checkpoint import resolve, verify
from qwen3.checkpoint.names import fused_name, official_shapes, official_views
from qwen3.errors import CorruptFileError, Qwen3Error, UsageError
from qwen3.model import load_model
from qwen3.quantize.checkpoint import meet, outlined, quantize_checkpoint
from qwen3.quantize.compare import compare, prompts
from qwen3.quantize.folder import Written, write_folder
from qwen3.quantize.formats.choose import choose
from qwen3.quantize.outline import Outline, outline
from qwen3.quantize.run import quantize_tensors
from qwen3.quantize.shards import Shards
from qwen3.quantize.spec import Rule, Spec
from qwen3.quantize.types import Rounded
from tests.fixtures import random_checkpoint, tiny_config, tiny_tokenizer

SIZES: dict[str, Any] = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 256, "dtype": "bfloat16"}
CONFIGS = {"dense": tiny_config(**SIZES), "moe": tiny_config(True, **SIZES | {"moe_intermediate_size": 128})}
Made = Iterable[tuple[str, Rounded | Tensor]]


@pytest.fixture(scope="module", params=["dense", "moe"])
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original") / request.param
    random_checkpoint(folder, CONFIGS[request.param], tokenizer=True, shards=2)
    (folder / "LICENSE").write_text("Apache")
    (folder / "generation_config.json").write_text('{"temperature": 0.6}')
    (folder / "training_args.bin").write_bytes(b"not to be copied")
    return folder


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("dense") / "model", CONFIGS["dense"], tokenizer=True)


def plan(model: Path, spec: Spec, format: str = "compressed-tensors") -> Outline:
    config = CONFIGS["moe" if "moe" in model.name else "dense"]
    return outline(spec, config, choose(format, torch.bfloat16))


def write(
    model: Path, out: Path, spec: Spec, format: str = "compressed-tensors", made: Made | None = None, **how: Any
) -> Written:
    tensors = quantize_tensors(model, spec) if made is None else made
    return write_folder(out, resolve(model), plan(model, spec, format), tensors, **how)


def loaded(folder: Path) -> dict[str, Tensor]:
    """Our parameters in float32, all widened."""
    with warnings.catch_warnings(action="ignore"):
        return dict(load_model(folder, "cpu", "float32").named_parameters())


def remember(made: Made, into: dict[str, Tensor]) -> Iterator[tuple[str, Rounded | Tensor]]:
    for name, tensor in made:
        into[name] = tensor.float() if isinstance(tensor, Tensor) else tensor.dequantize()
        yield name, tensor


MIXED = (Rule("*.v_proj", bits=8, group=32), Rule("model.layers.1.*o_proj", skip=True))
SPECS: dict[str, tuple[Spec, str]] = {
    "gptq": (Spec("rtn", search=False), "gptq"),
    "gptq-v2": (Spec("rtn", 8, 64, symmetric=False, search=False), "gptq_v2"),
    "gptq-3": (Spec("rtn", 3, 32, search=False, rules=MIXED), "gptq"),
    "awq": (Spec("rtn", 4, 64, symmetric=False, search=False), "awq"),
    "w4a16": (Spec("rtn", 4, 32, symmetric=False, search=False, rules=MIXED), "compressed-tensors"),
    "w8a16": (Spec("rtn", 8, -1, search=False), "compressed-tensors"),
    "fp8": (Spec("fp8", rules=MIXED[1:]), "fp8"),
    "fp8-row": (Spec("fp8", fp8_scale="channel"), "compressed-tensors"),
    "fp8-tensor": (Spec("fp8", fp8_scale="tensor"), "compressed-tensors"),
    "both": (Spec("fp8", rules=(Rule("*_proj", method="rtn", group=32),)), "compressed-tensors"),
    "mlx": (Spec("rtn", 4, 64, search=False), "mlx"),
    "mlx-8": (Spec("rtn", 8, 32, rules=(Rule("model.embed_tokens", bits=6),), search=False), "mlx"),
}


@pytest.mark.parametrize("name", SPECS)
def test_loads_as_it_was_in_memory(name: str, original: Path, tmp_path: Path) -> None:
    spec, format = SPECS[name]
    meant: dict[str, Tensor] = {}
    made = remember(quantize_tensors(original, spec), meant)
    written = write(original, tmp_path / "out", spec, format, made, max_shard_bytes=2e5)
    parameters = loaded(written.folder)
    views = official_views(CONFIGS[original.name], parameters)
    assert set(views) == set(meant)
    for official, view in views.items():
        if format == "mlx":  # whose scales are in bfloat16
            assert (view - meant[official]).norm() < 0.02 * meant[official].norm(), official
        else:
            assert torch.equal(view, meant[official]), official
    assert len(list(written.folder.glob("model-*.safetensors"))) > 1
    assert (written.folder / "LICENSE").read_text() == "Apache"
    assert json.loads((written.folder / "generation_config.json").read_text()) == {"temperature": 0.6}
    assert not (written.folder / "training_args.bin").exists()
    findings = [found for found in verify(written.folder).findings if found.severity != "info"]
    assert not findings
    least = {"gptq-3": 0.1, "gptq": 0.25}.get(name, 0.35)
    assert written.agreement.top1 > least
    assert 0 < written.agreement.kl < 3
    assert written.nbytes < 0.8 * sum(path.stat().st_size for path in original.glob("*.safetensors"))


def test_agreement_is_the_networks(dense: Path, tmp_path: Path) -> None:
    """KL and top-1 as two models in memory give them; zero beside itself."""
    written = write(dense, tmp_path / "out", Spec("rtn", 4, 32))
    ids = prompts(tiny_tokenizer(CONFIGS["dense"]), CONFIGS["dense"])
    kl = same = count = 0.0
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        a, b = (load_model(folder, "cpu", "float32") for folder in (dense, written.folder))
        for text in ids:
            p, q = (model(torch.tensor([text]))[0].log_softmax(-1) for model in (a, b))
            kl += float((p.exp() * (p - q)).sum())
            same += float((p.argmax(-1) == q.argmax(-1)).sum())
            count += len(text)
    assert written.agreement.tokens == count > 300
    assert written.agreement.kl == pytest.approx(kl / count, rel=1e-3)
    assert written.agreement.top1 == pytest.approx(same / count, abs=0.01)
    assert len(written.agreement.layers) == 2
    itself = compare(dense, dense, ids)
    assert (itself.kl, itself.top1, itself.layers) == (0, 1, (0, 0))


def spoiled(made: Made, name: str, change: Any) -> Iterator[tuple[str, Rounded | Tensor]]:
    for found, tensor in made:
        yield found, change(tensor) if found == f"{name}.weight" else tensor


def with_scale(value: float) -> Any:
    def change(rounded: Rounded) -> Rounded:
        scale = rounded.scale.clone()
        scale.view(-1)[3] = value
        return replace(rounded, scale=scale)

    return change


def blank_value(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[7] = torch.nan
    return tensor


DOWN = "model.layers.1.mlp.down_proj"
SPOILED: list[tuple[str, Any, str]] = [
    (DOWN, with_scale(0.0), f"not saved: {DOWN}.weight_scale has 1 scales that are zero"),
    (DOWN, with_scale(torch.nan), f"not saved: {DOWN}.weight_scale has 1 NaN or infinite values out of 512"),
    (DOWN, with_scale(torch.inf), f"not saved: {DOWN}.weight_scale has 1 NaN or infinite"),
    (DOWN, lambda r: replace(r, q=r.q + 9), f"not saved: {DOWN} has numbers of more than 4 bits"),
    ("model.norm", blank_value, "not saved: model.norm.weight has 1 NaN or infinite values out of 128"),
]


@pytest.mark.parametrize(("name", "change", "message"), SPOILED)
def test_refused_by_name_and_nothing_left(name: str, change: Any, message: str, dense: Path, tmp_path: Path) -> None:
    spec = Spec("rtn", 4, 64, search=False)
    made = spoiled(quantize_tensors(dense, spec), name, change)
    with pytest.raises(CorruptFileError, match=message):
        write(dense, tmp_path / "out", spec, made=made)
    assert not (tmp_path / "out").exists()


def test_what_was_not_planned(dense: Path, tmp_path: Path) -> None:
    spec = Spec("rtn", 4, 64, search=False)
    four = list(quantize_tensors(dense, spec))
    with pytest.raises(UsageError, match=r"q_proj: the method made something else than was planned"):
        write(dense, tmp_path / "out", replace(spec, bits=8), made=four)
    with pytest.raises(UsageError, match=r"embed_tokens: the method made something else than was planned"):
        write(dense, tmp_path / "out", replace(spec, rules=(Rule("model.embed_tokens", bits=4),)), "mlx", made=four)
    with pytest.raises(
        CorruptFileError, match=r"not saved: model.norm.weight and 0 more were not written once, and wh"
    ):
        write(dense, tmp_path / "out", spec, made=[each for each in four if each[0] != "model.norm.weight"])
    with pytest.raises(CorruptFileError, match=r"not saved: model.norm.weight and 0 more were not written once"):
        write(
            dense, tmp_path / "out", spec, made=[*four, next(each for each in four if each[0] == "model.norm.weight")]
        )
    with pytest.raises(Qwen3Error, match=r"model.layers.9.norm.weight is \[4\].*not planned"):
        write(dense, tmp_path / "out", spec, made=[("model.layers.9.norm.weight", torch.ones(4))])
    with pytest.raises(UsageError, match="the rules skip every module"):
        plan(dense, replace(spec, rules=(Rule("*", skip=True),)))


@pytest.mark.parametrize("part", [".qweight", ".qzeros", ".scales", ".g_idx"])
def test_what_is_read_back_otherwise(part: str, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row, a word, a scale or a group in the wrong place does not pass."""
    spec, todo = Spec("rtn", 4, 64, search=False), plan(dense, Spec("rtn", 4, 64), "gptq")
    tensors = type(todo.format).tensors

    def wrong(self: Any, module: str, rounded: Rounded) -> dict[str, Tensor]:
        found = tensors(self, module, rounded)
        if module == DOWN:
            found[part] = found[part].flip(0) if part != ".qzeros" else found[part] + 1
        return found

    monkeypatch.setattr(type(todo.format), "tensors", wrong)
    with pytest.raises(CorruptFileError, match=f"not saved: {DOWN}.weight is read back as something else"):
        write_folder(tmp_path / "out", resolve(dense), todo, quantize_tensors(dense, spec))
    assert not (tmp_path / "out").exists()


def test_fallbacks_keep_to_the_plan(dense: Path, tmp_path: Path) -> None:
    """Where zeros and an order of columns were planned, a matrix that was rounded to nearest gets the usual ones."""
    spec = Spec("gptq", 4, 64, symmetric=False, static_groups=False)
    plain = Spec("rtn", 4, 64, search=False)
    meant: dict[str, Tensor] = {}
    made = remember(quantize_tensors(dense, plain), meant)
    written = write(dense, tmp_path / "out", spec, "gptq_v2", made)
    assert json.loads((written.folder / "config.json").read_text())["quantization_config"]["desc_act"] is True
    found = official_views(CONFIGS["dense"], loaded(written.folder))
    assert all(torch.equal(view, meant[name]) for name, view in found.items())


def test_where_something_is_already(dense: Path, tmp_path: Path) -> None:
    spec, out = Spec("rtn", 4, 64, search=False), tmp_path / "out"
    first = write(dense, out, spec, about={"by": "test"})
    assert json.loads((out / "qwen3.manifest.json").read_text())["made"] == {"by": "test"}
    with pytest.raises(UsageError, match=r"out exists already, a checkpoint in compressed-tensors: run it \(qwen3 run"):
        write(dense, out, spec)
    other = write(dense, out, replace(spec, bits=8), force=True, max_shard_bytes=3e5)
    assert other.nbytes > first.nbytes
    assert not (out / "model.safetensors").exists()
    assert not [f for f in verify(out).findings if f.severity != "info"]
    again = write(dense, out, spec, force=True)
    assert again.files == first.files  # same weights, same bytes
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"full is not empty \(it has thesis.txt\); give another --out, or --force"):
        write(dense, full, spec)
    write(dense, full, spec, force=True)
    assert (full / "thesis.txt").read_text() == "mine"
    for wrong in (dense, dense / ".." / dense.name):
        with pytest.raises(UsageError, match="is where the model itself lies"):
            write(dense, wrong, spec, force=True)
    with pytest.raises(UsageError, match="is a file; give a folder"):
        write(dense, full / "thesis.txt", spec)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_interrupted(error: type[BaseException], dense: Path, tmp_path: Path) -> None:
    spec, out = Spec("rtn", 4, 64, search=False), tmp_path / "out"
    first = write(dense, out, spec)

    def cut() -> Iterator[tuple[str, Rounded | Tensor]]:
        for i, each in enumerate(quantize_tensors(dense, spec)):
            if i == 9:
                raise error
            yield each

    with pytest.raises(error):
        write(dense, out, replace(spec), made=cut(), force=True)
    assert {path.name for path in out.iterdir()} == {*first.files, "qwen3.manifest.json"}
    with pytest.raises(error):
        write(dense, tmp_path / "new", spec, made=cut())
    assert not (tmp_path / "new").exists()


def test_as_a_whole(dense: Path, tmp_path: Path) -> None:
    """In Python as at the command line, to a size, too."""
    said: list[float] = []
    spec = Spec("rtn", group=64, calibration="qwen3", samples=2, length=64, search=False)
    limit = outlined(spec, CONFIGS["dense"], "gptq").nbytes - 5000
    fitting = meet(dense, spec, outlined(spec, CONFIGS["dense"], "gptq"), nbytes=limit)
    made = quantize_checkpoint(
        dense, tmp_path / "out", fitting, format="gptq", progress=lambda what, share: said.append(share)
    )
    told = json.loads(json.dumps(made.to_dict()))
    assert limit * 0.97 < made.outline.nbytes <= limit
    assert {matrix["bits"] for matrix in told["matrices"]} > {4.25}
    assert said == sorted(said)
    assert told["bytes_before"] > told["bytes_after"] > limit * 0.97
    assert verify(tmp_path / "out").ok
    with pytest.raises(UsageError, match="exists already"):
        quantize_checkpoint(dense, tmp_path / "out", spec)


def test_no_tokenizer(tmp_path: Path) -> None:
    bare = random_checkpoint(tmp_path / "bare", CONFIGS["dense"])
    written = write(bare, tmp_path / "out", Spec("rtn", 8, 64, search=False))
    assert written.agreement.tokens == 8 * 32
    assert set(written.files) == {"config.json", "model.safetensors"}


def test_experts_that_differ(tmp_path: Path) -> None:
    config = CONFIGS["moe"]
    spec = Spec("rtn", 4, 64, rules=(Rule("*experts.3.up_proj", bits=8),))
    with pytest.raises(
        UsageError, match=r"layers.0.mlp.switch_mlp.up_proj.weight: mlx has all experts of a layer in one"
    ):
        outline(spec, config, choose("mlx", torch.bfloat16))
    assert outline(spec, config, choose("gptq", torch.bfloat16)).nbytes


def test_outline_is_exact(original: Path, tmp_path: Path) -> None:
    spec = Spec("rtn", 4, 32, symmetric=False, search=False)
    todo, written = plan(original, spec, "awq"), write(original, tmp_path / "out", spec, "awq")
    headers = sum(8 + int.from_bytes((written.folder / n).open("rb").read(8), "little") for n in ["model.safetensors"])
    assert written.nbytes == todo.nbytes + headers
    weights = sum(torch.Size(shape).numel() for shape in official_shapes(todo.config).values())
    assert todo.bits_per_weight == 8 * todo.nbytes / weights
    assert {fused_name(f"{m}.weight") for m in todo.kept} >= {"embed_tokens.weight"}
    assert sum(todo.sizes.values()) < todo.nbytes


def test_shards_in_any_order(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(30, 7), "b": torch.randint(0, 99, (40,)), "c": torch.randn(5, 3).half()}
    with Shards(tmp_path, {n: t.to("meta") for n, t in tensors.items()}, 500) as shards:
        for row in (3, 0, *range(4, 30), 2, 1):
            shards.write("a", tensors["a"][row], row)
        shards.write("c", tensors["c"])
        with pytest.raises(CorruptFileError, match="b and 0 more were not written"):
            shards.finish()
        shards.write("b", tensors["b"])
        files = shards.finish()
    from safetensors.torch import load_file

    found = {n: t for name in files if name.endswith(".safetensors") for n, t in load_file(tmp_path / name).items()}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


PEAK = """
import sys, torch
from pathlib import Path
from qwen3.checkpoint import read_config, resolve
from qwen3.quantize.folder import write_folder
from qwen3.quantize.formats.choose import choose
from qwen3.quantize.outline import outline
from qwen3.quantize.run import quantize_tensors
from qwen3.quantize.spec import Spec

def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024

def write(model, out):
    spec, model = Spec("rtn", 8, search=False), resolve(model)
    todo = outline(spec, read_config(model.path), choose("gptq", torch.bfloat16))
    write_folder(out, model, todo, quantize_tensors(model.path, spec), max_shard_bytes=3e6)

small, big, out = map(Path, sys.argv[1:])
write(small, out / "small")  # everything is imported, allocated and warm
before = peak()
write(big, out / "big")
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_a_layers_not_a_models(tmp_path: Path) -> None:
    """The same layer, 2 and 12 times: what ten layers more take is a tensor or two, not their 20 MB."""
    sizes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 1024, "head_dim": 64, "dtype": "bfloat16"}
    for layers in (2, 12):
        random_checkpoint(tmp_path / str(layers), tiny_config(num_hidden_layers=layers, **sizes))
    args = [sys.executable, "-c", PEAK, str(tmp_path / "2"), str(tmp_path / "12"), str(tmp_path)]
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back: no holes are counted
    grown = int(subprocess.run(args, check=True, capture_output=True, text=True, env=env).stdout)
    assert len(list((tmp_path / "big").glob("model-*.safetensors"))) >= 4
    assert grown < 6e6, f"{grown:,} bytes more for ten more layers of 2 MB (4 MB in float32)"
