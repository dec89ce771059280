"""The MoE fixture's script: what it writes loads here and in transformers, and both compute the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from qwen3.model import load_model
from tests.model.oracle import distance, oracle_logits

SCRIPT = Path(__file__).parents[2] / "tools" / "make_tiny_moe.py"


def test_the_script_makes_a_checkpoint_that_transformers_loads(tmp_path: Path) -> None:
    import transformers

    folder = tmp_path / "moe"
    made = subprocess.run([sys.executable, SCRIPT, folder], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert "4,085,504 parameters, 1,726,208 active" in made.stdout
    model = load_model(folder, device="cpu", dtype="float32")
    assert model.config.is_moe
    assert model.config.num_parameters(active=True) <= 2_000_000
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    ids = torch.arange(100, 140).view(2, 20)
    with torch.inference_mode():
        assert distance(model(ids), oracle_logits(theirs.eval(), ids)) < 1e-5
