"""`qwen3 quantize MODEL gguf`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen3.checkpoint import read_config
from qwen3.checkpoint.gguf.files import open_gguf
from qwen3.quantize.imatrix import read_imatrix
from tests.cli.conftest import Command
from tests.fixtures import tiny_config
from tests.quantize.gguf.models import checkpoint

FEW = ("--samples", 2, "--sequence-length", 64)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(hidden_size=256, head_dim=64, intermediate_size=256, max_position_embeddings=512)
    return checkpoint(tmp_path_factory.mktemp("models") / "wide", config)


def test_with_importance_collected_and_read(qwen3: Command, wide: Path, tmp_path: Path) -> None:
    kept = tmp_path / "wide.imatrix.gguf"
    ran = qwen3(
        "quantize", wide, "gguf", "--type", "q4_k_m", "--out", tmp_path / "a.gguf", "--calibration", "qwen3", *FEW,
        "--save-imatrix", kept, "--rule", "blk.0.*=q6_k", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "importance from qwen3: 2 × 64 = 128 tokens" in ran.err
    told = json.loads(ran.out)
    assert (told["type"], told["kinds"]) == ("Q4_K_M", {"F32": 9, "Q4_K": 5, "Q6_K": 10})
    assert open_gguf(tmp_path / "a.gguf").tensors["blk.0.attn_q.weight"].type.name == "Q6_K"
    assert read_imatrix(kept, read_config(wide)).chunks == 2
    rule = ("--rule", "blk.0.*=q6_k")
    ran = qwen3("quantize", wide, "gguf", "--type=q4_k_m", "-o", tmp_path / "b.gguf", "--imatrix", kept, *rule)
    assert ran.code == 0, ran.err
    a, b = (open_gguf(tmp_path / f"{name}.gguf") for name in "ab")
    assert {n: t.type for n, t in a.tensors.items()} == {n: t.type for n, t in b.tensors.items()}
    assert a.metadata["quantize.imatrix.dataset"] == b.metadata["quantize.imatrix.dataset"]


def test_a_dry_run_says_what_each_tensor_gets(qwen3: Command, model: Path, wide: Path, tmp_path: Path) -> None:
    ran = qwen3("quantize", wide, "gguf", "--type", "q4_k_s", "--dry-run")
    assert ran.code == 0
    assert ran.out.splitlines()[0] == "Q6_K     token_embd.weight  640 x 256"
    narrow = qwen3("quantize", model, "gguf", "--type", "q4_k_s", "--dry-run")
    assert "fallback   token_embd.weight: Q6_K -> Q8_0, since its width is no multiple of 256" in narrow.out
    told = json.loads(qwen3("quantize", "qwen3:30b-a3b", "gguf", "--type", "q4_k_m", "--dry-run", "--json").out)
    assert told["tensors"]["blk.0.ffn_down_exps.weight"] == {
        "type": "Q6_K", "shape": [128, 2048, 768], "bytes": 128 * 2048 * 768 // 256 * 210,
    }  # fmt: skip
    assert 18.4e9 < told["bytes"] < 18.7e9  # the published file has 18.56 GB
    assert not list(tmp_path.glob("*.gguf"))


def test_split_and_strict(qwen3: Command, model: Path, wide: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "m.gguf")
    ran = qwen3("quantize", wide, "gguf", "--type=q8_0", "--split-size=300KB", "--strict", *out, "--json")
    assert ran.code == 0, ran.err
    assert len(json.loads(ran.out)["files"]) == len(list(tmp_path.glob("m-*.gguf"))) > 1
    ran = qwen3("quantize", model, "gguf", "--type=q4_k_m", "--strict", *out)
    assert ran.code == 2
    assert ran.error.startswith("--strict: token_embd.weight has rows of 64, which Q6_K cannot hold")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--type", "q4_0", "--bits", 4), "--bits does not go with gguf"),
        (("--type", "q4_0", "--no-act-order"), "--act-order does not go with gguf"),
        (("--type", "q4_0", "--target-size", "1GB"), "--target-size does not go with gguf"),
        (("--type", "q9"), "--type q9 is unknown; there are f32, f16, bf16, q8_0"),
        (("--type", "q4_0", "--imatrix", "a", "--calibration", "qwen3"), "--imatrix and --calibration contradict"),
        (("--type", "q4_0", "--samples", 3), "--samples, --sequence-length and --seed are of --calibration"),
        (("--type", "q4_0", "--save-imatrix", "a"), "--save-imatrix keeps what --calibration collects"),
        (("--type", "q4_0", "--split-size", "x"), "--split-size 'x' is no size"),
        (("--type", "q4_0", "--rule", "x"), "--rule x: must be PATTERN=TYPE"),
    ],
)
def test_what_is_refused(qwen3: Command, model: Path, tmp_path: Path, args: tuple[Any, ...], message: str) -> None:
    ran = qwen3("quantize", model, "gguf", "--out", tmp_path / "m.gguf", *args)
    assert ran.code == 2
    assert ran.error.startswith(message)
    assert not list(tmp_path.glob("*.gguf"))


def test_an_imatrix_that_is_none(qwen3: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.dat").write_bytes(b"nonsense")
    for file, code in ((tmp_path / "bad.dat", 6), (tmp_path / "none.dat", 3)):
        ran = qwen3("quantize", model, "gguf", "--type=q4_0", "--out", tmp_path / "m.gguf", "--imatrix", file)
        assert ran.code == code
        assert str(file) in ran.error
