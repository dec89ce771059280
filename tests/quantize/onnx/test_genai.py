"""Exported folders in onnxruntime-genai, a package that no extra of ours has: greedy tokens beside the engine's."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen3 import LLM
from qwen3.checkpoint import official_views
from qwen3.checkpoint.resolved import embedded_folder
from qwen3.checkpoint.source import open_source
from qwen3.engine import Engine, Request, SamplingParams
from qwen3.model import load_model
from qwen3.quantize.onnx.export import export, weights_of
from tests.fixtures import random_checkpoint, tiny_config

pytest.importorskip("onnx")
genai = pytest.importorskip("onnxruntime_genai")
GUIDE = Path(__file__).parents[3] / "docs" / "onnx.md"
TEXTS = ["One, two,", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "a b c d e f g h i j k l m n o p"]


def greedy(model: Any, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    engine = Engine(model, max_batch=len(prompts), max_len=256)
    params = SamplingParams(max_tokens=tokens, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, ignore_eos=True)
    requests = [Request(ids, params) for ids in prompts]
    for request in requests:
        engine.add(request)
    while engine.has_work:
        engine.advance()
    return [list(request.output) for request in requests]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    dense = random_checkpoint(root / "dense", tiny_config(), tokenizer=True)
    sparse = shutil.copytree(dense, root / "moe")
    return {"dense": dense, "moe": random_checkpoint(sparse, tiny_config(moe=True))}


@pytest.mark.parametrize("how", [{}, {"fused": False}, {"weights": "int4"}, {"last_only": True}], ids=str)
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_greedy_tokens(kind: str, how: dict[str, Any], folders: dict[str, Path], tmp_path: Path) -> None:
    """In one piece, in two, and after going back; ours of the same weights."""
    export(folders[kind], tmp_path / "out", **how)
    model = load_model(folders[kind], "cpu", "float32")
    with closing(open_source(folders[kind], model.config)) as source, torch.no_grad():
        held = weights_of(source, how.get("weights", "fp32"))
        for name, view in official_views(model.config, dict(model.named_parameters())).items():
            view.copy_(held.exported(name))
    runtime = genai.Model(str(tmp_path / "out"))
    tokenizer = genai.Tokenizer(runtime)
    prompts = [list(map(int, tokenizer.encode(text))) for text in TEXTS]
    wanted = greedy(model, prompts, 20)
    for ids, tokens in zip(prompts, wanted, strict=True):
        params = genai.GeneratorParams(runtime)
        params.set_search_options(do_sample=False, max_length=len(ids) + 20)
        generator = genai.Generator(runtime, params)
        generator.append_tokens(ids[:2])
        generator.append_tokens(ids[2:])
        for _ in range(2):
            found: list[int] = []
            while not generator.is_done():
                generator.generate_next_token()
                found.append(int(generator.get_next_tokens()[0]))
            assert found == tokens[: len(found)]
            assert found
            generator.rewind_to(len(ids) - 1)
            generator.append_tokens(ids[-1:])


@pytest.mark.slow
def test_the_guides_examples(tmp_path: Path) -> None:
    """docs/onnx.md's two programs say what the engine says."""
    embedded = embedded_folder()
    if embedded is None:
        pytest.skip("an installation without the embedded model")
    export(embedded, tmp_path / "embedded-onnx")
    asked = [{"role": "user", "content": "What is 27 * 14?"}]
    said = LLM("embedded", dtype="float32").chat(asked, sampling=SamplingParams(temperature=0)).content
    programs = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(programs) == 2
    for program in programs:
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert said in done.stdout
        assert "<think>" in done.stdout


def test_search_settings(folders: dict[str, Path], tmp_path: Path) -> None:
    """onnxruntime-genai takes every key of the file, and samples as the family's defaults say."""
    export(folders["dense"], tmp_path / "out", context=64)
    search = json.loads((tmp_path / "out" / "genai_config.json").read_text())["search"]
    assert (search["do_sample"], search["temperature"], search["top_p"], search["top_k"]) == (True, 0.6, 0.95, 20)
    runtime = genai.Model(str(tmp_path / "out"))
    generator = genai.Generator(runtime, genai.GeneratorParams(runtime))
    generator.append_tokens([5, 6, 7])
    while not generator.is_done():
        generator.generate_next_token()
    assert len(generator.get_sequence(0)) <= 64
