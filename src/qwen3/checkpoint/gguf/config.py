"""A GGUF file's metadata as `ModelConfig`. Keys: docs/gguf.md of ggml-org/ggml, llama.cpp's `qwen3` and `qwen3moe`."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from qwen3.checkpoint.gguf.files import Gguf, open_gguf
from qwen3.checkpoint.gguf.reader import MAGIC, GgufTensor, Strings, is_gguf_path
from qwen3.config import ModelConfig, RopeScaling
from qwen3.errors import ConfigError

ARCHITECTURES = ("qwen3", "qwen3moe")
# keys of the architecture that change nothing here at these values; at others they ask for a network we do not have
_INERT: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "attention.scale": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "use_parallel_residual": (True,),
    "tensor_data_layout": ("",),
    "nextn_predict_layers": (0,),
    "leading_dense_block_count": (0,),
    "expert_shared_count": (0,),
    "expert_shared_feed_forward_length": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_gating_func": (1,),  # softmax
    "expert_weights_scale": (0.0, 1.0),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (-1.0, 1.0),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "rope.scaling.alpha": (0.0,),
}
# say what the file is for, not what the network computes
_IDLE = ("pooling_type", "rope.scaling.finetuned")


def read_config(path: str | Path) -> ModelConfig:
    """The configuration of any checkpoint: the metadata of a GGUF file, `config.json` of a folder.

    Raises ModelNotFoundError, CorruptFileError, or ConfigError naming the key.
    """
    path = Path(path)
    return gguf_config(open_gguf(path)) if is_gguf_path(path) else ModelConfig.from_pretrained(path)


def gguf_config(model: Gguf) -> ModelConfig:
    """Raises ConfigError naming the key that is missing, wrong or unknown, or the architecture if it is not Qwen3's."""
    try:
        return _read(model)
    except ConfigError as error:
        raise ConfigError(f"{model.path}: {error}") from None


def check_beginning(name: str, data: bytes) -> None:
    """From the first kilobytes of a file that is yet to come: ConfigError if they name another architecture."""
    key = b"general.architecture\x08\0\0\0"
    at = data.find(key) + len(key)
    if at < len(key) or not data.startswith(MAGIC):
        return  # it is said further on, and read in whole later
    length = int.from_bytes(data[at : at + 8], "little")
    architecture = data[at + 8 : at + 8 + min(length, 80)].decode("utf-8", "replace")
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"{name}: {_other(architecture, {})}")


def _read(model: Gguf) -> ModelConfig:
    architecture = model.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES or model.metadata.get("general.type", "model") != "model":
        raise ConfigError(_other(architecture, model.metadata))
    keys = _Keys(model.metadata, architecture)
    heads, hidden = keys.same("attention.head_count"), keys.integer("embedding_length")
    head_dim = keys.integer("attention.key_length", hidden // max(heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.integer(key, head_dim) != head_dim:
            raise ConfigError(f"{architecture}.{key} must be {head_dim}, the length of a key, as in every Qwen3")
    length = keys.integer("context_length")
    vocab = _vocabulary(model.tensors, keys)
    values: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": keys.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.same("attention.head_count_kv", heads),
        "intermediate_size": keys.same("feed_forward_length", 0 if architecture == "qwen3moe" else None),
        "head_dim": head_dim,
        "max_position_embeddings": length,
        "rope_theta": keys.number("rope.freq_base"),
        "rope_scaling": _scaling(keys, length),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in model.tensors,
        "bos_token_id": _token(model.metadata, "bos_token_id", vocab),
        "eos_token_id": _token(model.metadata, "eos_token_id", vocab),
        "pad_token_id": _token(model.metadata, "padding_token_id", vocab),
        "dtype": _dtype(model.tensors),
    }
    if architecture == "qwen3moe":
        dense = [int(m[1]) for name in model.tensors if (m := re.fullmatch(r"blk\.(\d{1,4})\.ffn_gate\.weight", name))]
        values |= {
            "num_experts": _experts(model.tensors, keys),
            "num_experts_per_tok": keys.integer("expert_used_count"),
            "moe_intermediate_size": keys.integer("expert_feed_forward_length"),
            "norm_topk_prob": keys.boolean("expert_weights_norm", True),
            "mlp_only_layers": tuple(sorted(dense)),
        }
        values["intermediate_size"] = values["intermediate_size"] or values["moe_intermediate_size"]
    keys.finish()
    return ModelConfig(**values)


def _other(architecture: Any, metadata: dict[str, Any]) -> str:
    if architecture is None:
        return "it has no general.architecture, so it is no model (an adapter or a projector, perhaps)"
    if not isinstance(architecture, str):
        return "general.architecture must be a string"
    if metadata.get("general.type", "model") != "model":
        return f"it holds {str(metadata['general.type'])[:40]!r}, not a model"
    name = architecture[:40]
    if name == "clip":
        return "it is the vision part of a model (architecture 'clip'): give the file of the language model"
    return (
        f"its architecture is {name!r}, but only Qwen3's are run here ('qwen3' and 'qwen3moe'); run it with a program "
        "for that architecture, or take a Qwen3 file such as Qwen/Qwen3-8B-GGUF:Q4_K_M"
    )


def _vocabulary(tensors: dict[str, GgufTensor], keys: _Keys) -> int:
    embedding = tensors.get("token_embd.weight")
    if embedding is None:
        raise ConfigError("it has no tensor token_embd.weight, so it is no whole model")
    rows = embedding.shape[0]
    if keys.integer("vocab_size", rows) != rows:
        raise ConfigError(f"{keys.prefix}vocab_size contradicts token_embd.weight, which has {rows} rows")
    return rows


def _experts(tensors: dict[str, GgufTensor], keys: _Keys) -> int:
    """As many as the routers have rows: what comes later counts them one by one."""
    count = keys.integer("expert_count")
    for name, tensor in tensors.items():
        if name.endswith(".ffn_gate_inp.weight") and tensor.shape[0] != count:
            raise ConfigError(f"{keys.prefix}expert_count is {count}, but {name} has {tensor.shape[0]} rows")
    if not any(name.endswith(".ffn_gate_inp.weight") for name in tensors):
        raise ConfigError(f"{keys.prefix}expert_count is {count}, but there is no router (ffn_gate_inp.weight)")
    return count


def _dtype(tensors: dict[str, GgufTensor]) -> str:
    """What the matrices are stored in where that is one of ours, else bfloat16, in which the models were published."""
    kinds = {tensor.type.name for tensor in tensors.values() if len(tensor.shape) > 1}
    if kinds <= {"F32", "F64"}:
        return "float32"
    return "float16" if kinds <= {"F16", "F32"} else "bfloat16"


def _token(metadata: dict[str, Any], name: str, vocab: int) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < vocab:
        raise ConfigError(f"tokenizer.ggml.{name} is {str(value)[:40]}, no token of a vocabulary of {vocab}")
    return value


def _scaling(keys: _Keys, length: int) -> RopeScaling | None:
    kind = keys.take("rope.scaling.type", "none")
    factor = keys.number("rope.scaling.factor", 1.0)
    original = keys.integer("rope.scaling.original_context_length", length)
    fast = keys.number("rope.scaling.yarn_beta_fast", 32.0)
    slow = keys.number("rope.scaling.yarn_beta_slow", 1.0)
    if kind == "yarn":
        return RopeScaling(factor, original, beta_fast=fast, beta_slow=slow)
    if kind != "none":
        raise ConfigError(f"{keys.prefix}rope.scaling.type is {str(kind)[:40]!r}; Qwen3 uses 'none' or 'yarn'")
    return None


class _Keys:
    """The keys under the architecture's name, taken one by one; what is left at the end nobody asked for."""

    def __init__(self, metadata: dict[str, Any], architecture: str) -> None:
        self.prefix = architecture + "."
        self.left = {k.removeprefix(self.prefix): v for k, v in metadata.items() if k.startswith(self.prefix)}

    def take(self, name: str, default: Any = None) -> Any:
        value = self.left.pop(name, default)
        if value is None:
            raise ConfigError(f"metadata key {self.prefix}{name} is missing")
        return value

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.take(name, default)
        if type(value) is not int:
            raise ConfigError(f"{self.prefix}{name} must be a whole number, not {_shown(value)}")
        return value

    def same(self, name: str, default: int | None = None) -> int:
        """An integer that may be given for each layer, if these agree."""
        value = self.take(name, default)
        if isinstance(value, memoryview) and len(set(value)) == 1:
            value = value[0]
        if type(value) is not int:
            raise ConfigError(f"{self.prefix}{name} must be one whole number, not {_shown(value)}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Read as float32 gives it, to the digits that identify it: 1e-6 rather than 9.99999997e-7."""
        value = self.take(name, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ConfigError(f"{self.prefix}{name} must be a number, not {_shown(value)}")
        return float(f"{value:.7g}")

    def boolean(self, name: str, default: bool) -> bool:
        value = self.take(name, default)
        if type(value) is not bool:
            raise ConfigError(f"{self.prefix}{name} must be true or false, not {_shown(value)}")
        return value

    def finish(self) -> None:
        for name, value in self.left.items():
            if name not in _IDLE and (name not in _INERT or value not in _INERT[name]):
                raise ConfigError(
                    f"metadata key {self.prefix}{name[:60]} is {_shown(value)}, which asks for a network that is not "
                    "Qwen3's or is unknown, so it is not ignored"
                )


def _shown(value: Any) -> str:
    return "an array" if isinstance(value, memoryview | Strings) else repr(value)[:60]
