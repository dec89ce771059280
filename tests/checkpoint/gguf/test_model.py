"""Whole models: the embedded one and a tiny MoE, written by the `gguf` package, read and run by us."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen3 import LLM, SamplingParams
from qwen3.chat import ThinkingPolicy
from qwen3.checkpoint import read_config, resolve, save_checkpoint, verify
from qwen3.checkpoint.gguf.files import open_gguf
from qwen3.checkpoint.source import open_source
from qwen3.errors import CorruptFileError, ModelNotFoundError, OutOfMemoryError
from qwen3.model import load_model
from tests.checkpoint.gguf import build

pytest.importorskip("gguf")
EMBEDDED = resolve("embedded").path
IDS = torch.tensor([[5, 900, 77, 300, 8, 1200, 44, 2000]])
pytestmark = pytest.mark.filterwarnings("ignore:.*nothing here multiplies them:UserWarning")


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))
    try:
        make = pytest.importorskip("make_tiny_moe")
    finally:
        sys.path.pop(0)
    folder = tmp_path_factory.mktemp("moe")
    tokenizer = build_tokenizer(make.RANKS)
    save_checkpoint(folder, make.build(0), tokenizer=tokenizer)
    return folder


def build_tokenizer(ranks: int) -> Any:
    from qwen3.tokenizer import Tokenizer

    return Tokenizer.from_pretrained().prefix(ranks)


def mixed(name: str) -> str:
    """As a recipe such as Q4_K_M does it: more bits where they matter."""
    return "Q8_0" if "attn_v" in name or "token_embd" in name else "Q4_0"


def rare(name: str) -> str:
    """Types whose quantizers take long, once each."""
    return {"blk.0.attn_q.weight": "MXFP4", "blk.1.attn_k.weight": "TQ1_0", "blk.2.ffn_up.weight": "TQ2_0"}.get(
        name, "F16"
    )


KINDS: list[Any] = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", rare, mixed]


@pytest.mark.parametrize("kinds", KINDS, ids=lambda kinds: kinds if isinstance(kinds, str) else kinds.__name__)
def test_logits_are_those_of_the_dequantized_twin(kinds: str | Callable[[str], str], tmp_path: Path) -> None:
    file, twin = build.write(EMBEDDED, tmp_path / "m.gguf", kinds)
    with torch.no_grad():
        assert torch.equal(load_model(file, "cpu", "float32")(IDS), twin(IDS))


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("kinds", ["F16", "Q4_0", mixed], ids=["F16", "Q4_0", "mixed"])
def test_mixture_of_experts(kinds: str | Callable[[str], str], spread: bool, moe: Path, tmp_path: Path) -> None:
    file, twin = build.write(moe, tmp_path / "m.gguf", kinds, spread=spread)
    assert read_config(file).num_experts == 8
    with torch.no_grad():
        assert torch.equal(load_model(file, "cpu", "float32")(IDS), twin(IDS))


def test_rows_one_by_one(moe: Path, tmp_path: Path) -> None:
    """The seam: any rows, in any dtype, are the rows of the whole."""
    file, _ = build.write(moe, tmp_path / "m.gguf", mixed)
    for path in (file, moe):
        config = read_config(path)
        with closing(open_source(path, config)) as source:
            for name in ("model.layers.1.mlp.experts.5.down_proj.weight", "model.norm.weight"):
                stored = source.stored[name]
                whole = stored.read(slice(None), torch.float32)
                assert whole.shape == stored.shape
                assert torch.equal(stored.read(slice(7, 200), torch.float32), whole[7:200])
                assert torch.equal(stored.read(slice(3, 4), torch.bfloat16), whole[3:4].bfloat16())
                assert stored.read(slice(9, 9), torch.float32).numel() == 0


def test_split_model(tmp_path: Path) -> None:
    file, twin = build.write(EMBEDDED, tmp_path / "m.gguf", "Q8_0", parts=30)
    assert len(open_gguf(file).headers) == 3
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "m-00002-of-00003.gguf", "cpu", "float32")(IDS), twin(IDS))
    (tmp_path / "m-00003-of-00003.gguf").unlink()
    with pytest.raises(ModelNotFoundError, match=r"of 3 parts of the model m-00003-of-00003.gguf is not there"):
        load_model(file)


def test_greedy_text_of_f16_is_the_originals(tmp_path: Path) -> None:
    file, _ = build.write(EMBEDDED, tmp_path / "m.gguf", "F16")
    sampling, thinking = SamplingParams(max_tokens=60, temperature=0), ThinkingPolicy(mode="off")
    answers = []
    for model in (None, str(file)):
        with LLM(model, "cpu", "float32") as llm:
            answers.append(llm.chat("What is 27 * 14?", thinking, sampling).content)
            assert llm.template == "qwen3"
            assert llm.mode == "hybrid"
    assert answers[0] == answers[1]
    assert answers[0]


def test_what_widening_costs_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _ = build.write(EMBEDDED, tmp_path / "m.gguf", "Q5_0")
    with pytest.warns(UserWarning, match=r"m.gguf: its 12.7 MB in Q5_0 become 73.7 MB in float32: nothing here"):
        load_model(file, "cpu", "float32")
    monkeypatch.setattr("qwen3.checkpoint.memory.available_bytes", lambda device=None: 50_000_000)
    with pytest.raises(OutOfMemoryError, match=r"m.gguf \(12.7 MB in Q5_0\), once widened, needs 73,695,232 bytes"):
        load_model(file, "cpu", "float32")


def test_held_in_fp8(tmp_path: Path) -> None:
    file, twin = build.write(EMBEDDED, tmp_path / "m.gguf", "Q8_0")
    with torch.no_grad():
        from qwen3.model.load import quantize_model

        held = load_model(file, "cpu", "float32", quantization="fp8")(IDS)
        assert torch.equal(held, quantize_model(twin)(IDS))


def test_verify(tmp_path: Path) -> None:
    file, _ = build.write(EMBEDDED, tmp_path / "m.gguf", "Q4_0")
    report = verify(file)
    assert report.ok, report.findings
    assert (report.tensors, report.parameters, report.bytes) == (68, 18_423_808, file.stat().st_size)
    tensor = open_gguf(file).tensors["blk.2.attn_v.weight"]
    with file.open("r+b") as handle:
        handle.seek(tensor.begin)
        handle.write(b"\x00\x7e")  # a scale that is no number
    assert ["model.layers.2.self_attn.v_proj.weight has 32 NaN" in f.message for f in verify(file).findings].count(True)
    file.write_bytes(file.read_bytes()[:-1000])
    assert not verify(file).ok


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from qwen3.cli.models import verify as verify_verb
    from qwen3.cli.show import show

    file, _ = build.write(EMBEDDED, tmp_path / "m.gguf", "Q4_0")
    assert show(str(file), True, {}) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["stored"] == {"Q4_0": 10_358_784, "F32": 32_768}
    assert facts["files"] == [{"name": "m.gguf", "bytes": file.stat().st_size}]
    assert verify_verb(str(file), True) == 0
    assert json.loads(capsys.readouterr().out)["ok"]


def test_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwen3.checkpoint.gguf import source

    file, _ = build.write(EMBEDDED, tmp_path / "m.gguf", "Q4_0")
    read = source.read_into

    def touch_and_read(*args: Any) -> None:
        read(*args)
        file.touch()

    monkeypatch.setattr(source, "read_into", touch_and_read)
    with pytest.raises(CorruptFileError, match="was replaced or written to while it was read"):
        load_model(file, "cpu", "float32")

    def cut_and_read(*args: Any) -> None:
        with file.open("r+b") as handle:
            handle.truncate(file.stat().st_size // 2 if file.stat().st_size > 1_000_000 else file.stat().st_size)
        read(*args)

    monkeypatch.setattr(source, "read_into", cut_and_read)
    with pytest.raises(CorruptFileError, match=r"tensor \S+ ends at byte \d+; the file was truncated"):
        load_model(file, "cpu", "float32")


def test_peak_memory(tmp_path: Path) -> None:
    """31 MB widened to 221 MB in a fresh process: at most 1.15 × the weights at any time."""
    sizes = {"block_count": 3, "embedding_length": 1024, "feed_forward_length": 4096, "attention.head_count": 8}
    sizes |= {"attention.head_count_kv": 2, "attention.key_length": 128}
    meta = build.metadata() | {f"qwen3.{key}": value for key, value in sizes.items()}
    matrices = {"attn_q": (1024, 1024), "attn_k": (1024, 256), "attn_v": (1024, 256), "attn_output": (1024, 1024)}
    matrices |= {"ffn_gate": (1024, 4096), "ffn_up": (1024, 4096), "ffn_down": (4096, 1024)}
    infos: dict[str, Any] = {"token_embd.weight": ((1024, 16000), 2), "output_norm.weight": ((1024,), 0)}
    for layer in range(3):
        infos |= {f"blk.{layer}.{name}.weight": (shape, 2) for name, shape in matrices.items()}
        infos |= {f"blk.{layer}.{name}_norm.weight": ((1024,), 0) for name in ("attn", "ffn")}
        infos |= {f"blk.{layer}.attn_{name}_norm.weight": ((128,), 0) for name in "qk"}
    file = tmp_path / "m.gguf"
    file.write_bytes(build.build(meta, infos))
    code = f"""
import torch
from qwen3.model import load_model
def mark(key):
    return int(next(line for line in open('/proc/self/status') if line.startswith(key)).split()[1]) * 1024
import qwen3.checkpoint.gguf.source
torch.ones(8).bfloat16().float().sum()
before = mark('VmRSS')
load_model({str(file)!r}, 'cpu', 'float32')
print(mark('VmHWM') - before)
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    weights = read_config(file).num_parameters() * 4
    assert weights > 200e6
    assert int(done.stdout) <= 1.15 * weights, f"{int(done.stdout) / weights:.3f} × the weights"
