"""llama.cpp reads our files as we do. Needs llama-cpp-python (compiled from source, so not among the test extras)."""

from __future__ import annotations

import ctypes
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qwen3.checkpoint import read_config, resolve
from qwen3.checkpoint.gguf.dequantize import dequantize
from qwen3.checkpoint.gguf.files import open_gguf
from qwen3.checkpoint.mode import find_tokenizer
from qwen3.checkpoint.source import open_source
from qwen3.model import load_model
from qwen3.quantize.gguf import write_gguf
from qwen3.quantize.gguf.encode import BY_NAME, encode
from qwen3.quantize.gguf.recipe import RECIPES
from tests.fixtures import tiny_config
from tests.quantize.gguf.models import checkpoint

llama_cpp = pytest.importorskip("llama_cpp")
TEXT = "<|im_start|>user\nWhat is 27 * 14? naïve 你好 12345<|im_end|>\n<think>\n\n</think>\n\n<tool_call>x"
WIDE: dict[str, Any] = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512, "num_hidden_layers": 8}
pytestmark = pytest.mark.filterwarnings("ignore:.*nothing here multiplies them")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    moe = tiny_config(moe=True, moe_intermediate_size=256, num_experts=4, **{**WIDE, "num_hidden_layers": 2})
    config = tiny_config(num_attention_heads=8, tie_word_embeddings=False, **WIDE)
    return {
        "dense": checkpoint(root / "dense", config),
        "moe": checkpoint(root / "moe", moe),
    }


@pytest.mark.parametrize("model", ["dense", "moe", "embedded"])
@pytest.mark.parametrize(("kind", "limit"), [("f16", 0.006), ("q8_0", 0.1), ("q4_k_m", 0.12)])
def test_it_computes_what_we_do(folders: dict[str, Path], tmp_path: Path, model: str, kind: str, limit: float) -> None:
    """Its activations are rounded to 8 bits beside quantized weights, which can move a router: hence the limits."""
    file = write_gguf(folders.get(model, model), tmp_path / "m.gguf", kind).files[0]
    theirs = llama_cpp.Llama(str(file), n_ctx=128, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False)
    ids = theirs.tokenize(TEXT.encode(), add_bos=False, special=True)
    config = read_config(file)
    assert ids == find_tokenizer(resolve(file), config)[0].encode(TEXT)
    assert theirs.token_eos() == config.eos_token_id
    theirs.eval(ids)
    a = torch.from_numpy(np.array(theirs.scores[: len(ids)]))
    with torch.no_grad():
        b = load_model(file, "cpu", "float32")(torch.tensor([ids]))[0]
    assert (a - b).norm() < limit * b.norm()


@pytest.mark.parametrize("model", ["dense", "moe"])
@pytest.mark.slow
def test_recipes_are_those_of_its_own_quantizer(folders: dict[str, Path], tmp_path: Path, model: str) -> None:
    source, theirs, ours = (tmp_path / f"{name}.gguf" for name in ("source", "theirs", "ours"))
    write_gguf(folders[model], source, "f32")
    for name, recipe in RECIPES.items():
        if recipe.base in ("F32", "F16", "BF16") or name == "mxfp4_moe":
            continue
        parameters = llama_cpp.llama_model_quantize_default_params()
        parameters.ftype, parameters.nthread = recipe.number, 1
        assert llama_cpp.llama_model_quantize(str(source).encode(), str(theirs).encode(), ctypes.byref(parameters)) == 0
        write_gguf(folders[model], ours, name, force=True)
        a, b = (open_gguf(file) for file in (theirs, ours))
        assert {n: t.type for n, t in a.tensors.items()} == {n: t.type for n, t in b.tensors.items()}, name
        assert a.metadata["general.file_type"] == b.metadata["general.file_type"]
        theirs.unlink()


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(
    "kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]
)
def test_errors_are_no_larger_than_its_own(kind: str, guided: bool) -> None:
    """Of weights of the embedded model, by the importance that was given, or alike."""
    library = Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"
    quantize = ctypes.CDLL(str(library)).ggml_quantize_chunk
    quantize.restype, quantize.argtypes = ctypes.c_size_t, [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
    ]  # fmt: skip
    path = resolve("embedded").path
    with closing(open_source(path, read_config(path))) as source:
        x = source.stored["model.layers.3.mlp.up_proj.weight"].read(slice(256), torch.float32)
    importance = torch.rand(512, generator=torch.Generator().manual_seed(1)).pow(3) + 0.02 if guided else None
    number, form = BY_NAME[kind]
    theirs = torch.empty(x.numel() // form.block * form.size, dtype=torch.uint8)
    given = None if importance is None else importance.data_ptr()
    quantize(number, x.data_ptr(), theirs.data_ptr(), 0, *x.shape, given)
    errors = []
    for data in (encode(kind, x, importance).view(-1), theirs):
        back = torch.empty_like(x)
        dequantize(data, form, back)
        errors.append(float(((x - back).square() * (1 if importance is None else importance)).sum()))
    assert errors[0] <= errors[1]
