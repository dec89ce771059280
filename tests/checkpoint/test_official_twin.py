"""The official 0.6B folder's shape at full size."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from qwen3.checkpoint import load_weights, save_checkpoint, verify
from qwen3.checkpoint.header import read_header
from qwen3.config import ModelConfig
from qwen3.errors import CorruptFileError
from qwen3.model import Qwen3, load_model
from tests.checkpoint import official_twin
from tests.checkpoint.test_reading import measure_peak

TOKENIZER_SHA256 = "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4"


@pytest.fixture
def big(tmp_path: Path) -> Iterator[Path]:
    """A folder that is emptied afterwards; pytest keeps its own."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
def test_twin_of_the_official_0_6b(big: Path) -> None:
    folder = official_twin.build(big / "Qwen3-0.6B")
    file = folder / "model.safetensors"
    header = read_header(file)
    assert file.stat().st_size == official_twin.FILE_BYTES
    assert len(header.tensors) == official_twin.TENSORS
    assert int.from_bytes(file.open("rb").read(8), "little") == official_twin.HEADER_BYTES
    assert hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest() == TOKENIZER_SHA256

    weights = ModelConfig.from_pretrained(folder).num_parameters() * 2
    assert weights == 596_049_920 * 2
    peak = measure_peak(folder)
    print(f"peak {peak:,} bytes = {peak / weights:.4f} x the weights")
    assert peak <= 1.1 * weights

    started = time.perf_counter()
    model = load_model(folder, "cpu", torch.bfloat16)
    print(f"loaded in {time.perf_counter() - started:.2f} s")
    with torch.no_grad():
        logits = model(torch.tensor([[151644, 872, 198, 9707]]))
    assert logits.shape == (1, 4, 151936)
    assert torch.isfinite(logits).all()

    findings = [f for f in verify(folder).findings if f.severity != "info"]
    assert [f.check for f in findings] == ["hashes"]  # the official size, not the official weights
    assert "not its hash" in findings[0].message

    report = save_checkpoint(big / "saved", model)
    assert report.tensors == 310  # the tied head is not stored twice again
    assert weights < report.files["model.safetensors"][0] < weights + 40_000
    again = Qwen3(model.config, "meta", torch.bfloat16)
    load_weights(again, big / "saved")
    assert save_checkpoint(big / "saved2", again).files == report.files

    with file.open("r+b") as handle:  # one bit in the stored copy of the embedding
        handle.seek(header.tensors["lm_head.weight"].begin + 77_777_777)
        byte = handle.read(1)[0]
        handle.seek(-1, 1)
        handle.write(bytes([byte ^ 4]))
    with pytest.raises(CorruptFileError, match=r"lm_head\.weight differs"):
        load_weights(again, folder)
