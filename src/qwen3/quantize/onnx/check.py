"""Whether an exported model computes what it should: onnxruntime's logits beside those of our own layers."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qwen3 import kernels
from qwen3.checkpoint.memory import available_bytes
from qwen3.checkpoint.names import EMBED, HEAD, layer_views
from qwen3.config import ModelConfig
from qwen3.errors import Qwen3Error
from qwen3.model.network import Layer, Qwen3
from qwen3.quantize.onnx.graph import DATA, LEVEL, MODEL
from qwen3.quantize.onnx.weights import Weights


@torch.no_grad()
def expected_logits(weights: Weights, config: ModelConfig, ids: Sequence[int]) -> Tensor:
    """float32 [T, V], of the weights as they are exported. Memory: one layer in float32."""
    tokens = torch.tensor([ids])
    positions = torch.arange(len(ids))[None]
    network = Qwen3(config, "meta", torch.float32)  # for its mask and positions
    attend = network._attend_uncached(tokens, positions, None, None)
    cos, sin = network.rotary(positions, torch.float32)
    table = weights.exported(EMBED)
    x = table[tokens]
    for i in range(config.num_hidden_layers):
        layer = Layer(config, i, "meta", torch.float32).to_empty(device="cpu")
        parameters = {f"layers.{i}.{name}": parameter for name, parameter in layer.named_parameters()}
        for name, view in layer_views(config, i, parameters).items():
            view.copy_(weights.exported(name))
        x = layer(x, cos, sin, attend)
    hidden = kernels.rms_norm(x[0], weights.exported("model.norm.weight"), config.rms_norm_eps)
    return hidden @ (table if config.tie_word_embeddings else weights.exported(HEAD)).T


def session(folder: Path, level: int) -> Any:
    """The model in onnxruntime, on the CPU; None without that package. level: as `export`'s accuracy_level, for what it
    makes of DequantizeLinear before MatMul (it would round activations to int8)."""
    try:
        onnxruntime = import_module("onnxruntime")
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(LEVEL, str(level))
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(folder / MODEL), options, providers=["CPUExecutionProvider"])


def run(model: Any, config: ModelConfig, pieces: Sequence[Sequence[int]]) -> Tensor:
    """Logits float32 [T, V] of one text that is fed piece by piece, each beside the cache of those before."""
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    dtype = kinds[next(each.type for each in model.get_inputs() if each.name.startswith("past"))]
    empty = np.zeros((1, config.num_key_value_heads, 0, config.head_dim), dtype)
    names = [f"{i}.{part}" for i in range(config.num_hidden_layers) for part in ("key", "value")]
    cache = {f"past_key_values.{name}": empty for name in names}
    logits, length = [], 0
    for piece in pieces:
        length += len(piece)
        feeds = {"input_ids": np.array([piece], np.int64), "attention_mask": np.ones((1, length), np.int64), **cache}
        found = model.run(["logits", *(f"present.{name}" for name in names)], feeds)
        logits.append(torch.from_numpy(found[0][0].astype(np.float32)))
        cache = {f"past_key_values.{name}": value for name, value in zip(names, found[1:], strict=True)}
    return torch.cat(logits)


def check(
    folder: Path, weights: Weights, config: ModelConfig, ids: Sequence[int], level: int, loss: float
) -> float | None:
    """How far onnxruntime's logits are from ours, as a share of their spread; the last token is fed by itself.

    None: not checked, since onnxruntime is not installed or memory too small. Raises Qwen3Error for more than `loss`,
    NaN, or a model that does not run.
    """
    free = available_bytes()
    if free is not None and 2 * (folder / DATA).stat().st_size > free:
        return None
    try:
        model = session(folder, level)
        found = None if model is None else run(model, config, [ids[:-1], ids[-1:]])
    except Exception as error:  # whatever onnxruntime raises: its classes have no common base of their own
        message = str(error).partition("\n")[0]
        raise Qwen3Error(f"not saved: onnxruntime cannot run the model ({message})") from None
    del model
    if found is None:
        return None
    wanted = expected_logits(weights, config, ids)[-len(found) :]  # two, if only last columns come
    far = float((found - wanted).norm() / (wanted - wanted.mean(-1, keepdim=True)).norm())
    if not far <= loss:
        raise Qwen3Error(f"not saved: onnxruntime computes logits {far:.2g} of their spread away from ours")
    return far
