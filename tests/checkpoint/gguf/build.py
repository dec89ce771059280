"""GGUF files for tests: by hand, byte by byte, and with the `gguf` package from a checkpoint folder."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwen3.checkpoint.gguf.files import part_names
from qwen3.checkpoint.names import official_views
from qwen3.config import ModelConfig
from qwen3.model import Qwen3, load_model

U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10
QWEN3 = {
    "block_count": 1,
    "context_length": 64,
    "embedding_length": 32,
    "feed_forward_length": 32,
    "attention.head_count": 1,
    "attention.head_count_kv": 1,
    "attention.key_length": 32,
}
VECTORS = ("blk.0.attn_norm", "blk.0.ffn_norm", "blk.0.attn_q_norm", "blk.0.attn_k_norm", "output_norm")
MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def value(item: Any) -> tuple[int, bytes]:
    """(type, bytes) of a metadata value; a list becomes an array, a tuple (type, bytes) stays."""
    if isinstance(item, tuple):
        return item
    if isinstance(item, bool):
        return BOOL, bytes([item])
    if isinstance(item, int):
        return U32, struct.pack("<I", item)
    if isinstance(item, float):
        return F32, struct.pack("<f", item)
    if isinstance(item, str):
        return STRING, text(item)
    kinds = [value(inner) for inner in item]
    return ARRAY, struct.pack("<IQ", kinds[0][0], len(kinds)) + b"".join(data for _, data in kinds)


def metadata(**changed: Any) -> dict[str, Any]:
    """Of a tiny Qwen3 without tokenizer; `changed` by the key behind "qwen3." with __ for dots, None takes it out."""
    out: dict[str, Any] = {"general.architecture": "qwen3"} | {f"qwen3.{key}": item for key, item in QWEN3.items()}
    out |= {"qwen3.rope.freq_base": 1e6, "qwen3.attention.layer_norm_rms_epsilon": 1e-6}
    for key, item in changed.items():
        out[f"qwen3.{key.replace('__', '.')}"] = item
    return {key: item for key, item in out.items() if item is not None}


def tensors(**changed: tuple[tuple[int, ...], int] | None) -> dict[str, tuple[tuple[int, ...], int]]:
    """Name → (shape as in the file, innermost first; type) of that network; matrices are Q4_0."""
    out: dict[str, Any] = {"token_embd.weight": ((32, 320), 2)}
    out |= {f"blk.0.{name}.weight": ((32, 32), 2) for name in MATRICES}
    out |= {f"{name}.weight": ((32,), 0) for name in VECTORS}
    for name, item in changed.items():
        out[name.replace("__", ".") + ".weight"] = item
    return {name: item for name, item in out.items() if item is not None}


def nbytes(shape: tuple[int, ...], kind: int) -> int:
    return math.prod(shape) // 32 * 18 if kind == 2 else math.prod(shape) * {0: 4, 1: 2, 26: 4}.get(kind, 1)


def build(
    meta: dict[str, Any],
    infos: dict[str, tuple[tuple[int, ...], int]],
    *,
    version: int = 3,
    offset: Callable[[int], int] = lambda offset: offset,
    extra: int = 0,
) -> bytes:
    """A whole file with zeros as weights. `offset`: changes what the table says of where tensors are."""
    pairs = b"".join(text(key) + struct.pack("<I", value(item)[0]) + value(item)[1] for key, item in meta.items())
    table, at = b"", 0
    for name, (shape, kind) in infos.items():
        table += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset(at))
        at += -(-nbytes(shape, kind) // 32) * 32
    head = b"GGUF" + struct.pack("<IQQ", version, len(infos), len(meta)) + pairs + table
    return head + bytes(-len(head) % 32) + bytes(at + extra)


# With the gguf package

_TOP = {"model.embed_tokens": "token_embd", "lm_head": "output", "model.norm": "output_norm"}
_IN_LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate": "ffn_gate_inp",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def place(official: str) -> tuple[str, int | None]:
    """llama.cpp's name of an official tensor, and which expert of that it is."""
    stem = official.removesuffix(".weight")
    fields = stem.split(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.weight", None
    if "experts" in fields:
        return f"blk.{fields[2]}.ffn_{fields[6].removesuffix('_proj')}_exps.weight", int(fields[5])
    return f"blk.{fields[2]}.{_IN_LAYER['.'.join(fields[3:])]}.weight", None


def as_gguf(official: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By llama.cpp's names, experts stacked."""
    found: dict[str, dict[int | None, np.ndarray]] = {}
    for name, array in official.items():
        stack, expert = place(name)
        found.setdefault(stack, {})[expert] = array
    return {n: a[None] if None in a else np.stack([a[i] for i in range(len(a))]) for n, a in found.items()}


def write(
    folder: Path, file: Path, kinds: str | Callable[[str], str], *, parts: int = 0, spread: bool = False
) -> tuple[Path, Qwen3]:
    """The model in `folder` as a GGUF by the package's own writer and quantizers, and its twin: a float32 network with
    the values that the package's dequantizers give back. `kinds`: type of the matrices, or a function of a tensor's
    name. `parts`: tensors to a file. `spread`: experts one by one. The first file is returned."""
    import gguf

    model = load_model(folder, "cpu", "float32")
    views = official_views(model.config, dict(model.named_parameters()))
    stored = as_gguf({name: view.numpy().copy() for name, view in views.items()})
    writer = gguf.GGUFWriter(file, "qwen3moe" if model.config.is_moe else "qwen3", split_max_tensors=parts)
    describe(writer, folder, model.config)
    back: dict[str, list[np.ndarray]] = {}
    for name, array in stored.items():
        chosen = kinds if isinstance(kinds, str) else kinds(name)
        plain = array.ndim == 1 or "ffn_gate_inp" in name
        kind = gguf.GGMLQuantizationType["F32" if plain else chosen]
        pieces = {name: array}
        if spread and name.endswith("_exps.weight"):
            pieces = {name.replace("_exps", f".{i}"): part for i, part in enumerate(array)}
        for piece, part in pieces.items():
            data = random_blocks(part, kind) if kind.name in _BY_HAND else gguf.quantize(part, kind)
            writer.add_tensor(piece, data, raw_dtype=kind)
            back.setdefault(name, []).append(gguf.dequantize(data, kind).reshape(part.shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for name, view in views.items():
        stack, expert = place(name)
        whole = back[stack] if spread and expert is not None else back[stack][0]
        view.copy_(torch.from_numpy(whole if expert is None else whole[expert]))
    count = -(-len(stored) // parts) if parts else 1
    return (file.with_name(part_names(f"{file.stem}-00001-of-{count:05d}.gguf")[0]) if parts else file), model


# Types for which the package has no quantizer: where the float16 scale of a block lies and that of its minima, how much
# larger the second is, so that values lie around 0, and what the integers spread by.
_BY_HAND = {
    "Q2_K": (80, 82, 1.5, 11), "Q3_K": (108, None, 0, 42), "Q4_K": (0, 2, 7.5, 210), "Q5_K": (0, 2, 15.5, 430),
    "Q6_K": (208, None, 0, 1360), "IQ4_NL": (0, None, 0, 66), "IQ4_XS": (0, None, 0, 1220),
}  # fmt: skip


def random_blocks(array: np.ndarray, kind: Any) -> np.ndarray:
    """uint8 [..., bytes of a row]: random blocks of a type that stand for weights as large as those of `array`."""
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[kind]
    at, least_at, times, spread = _BY_HAND[kind.name]
    rng = np.random.default_rng(array.size)
    count = array.size // block
    raw = rng.integers(0, 256, (count, size), dtype=np.uint8)
    scale = array.std() / spread * (0.5 + rng.random((count, 1)))
    raw[:, at : at + 2] = scale.astype(np.float16).view(np.uint8)
    if least_at is not None:
        raw[:, least_at : least_at + 2] = (times * scale).astype(np.float16).view(np.uint8)
    return raw.reshape(*array.shape[:-1], -1)


def describe(writer: Any, folder: Path, config: ModelConfig) -> None:
    """The metadata of a model with the tokenizer in `folder`."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    if config.is_moe:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_eos_token_id(config.eos_token_ids[0])
    add_tokenizer(writer, folder, config.vocab_size)


def add_tokenizer(writer: Any, folder: Path, rows: int) -> None:
    """A folder's tokenizer as converters write it: unused rows filled up, every <|…|> a control token."""
    data = json.loads((folder / "tokenizer.json").read_text())
    tokens, types = [f"[PAD{i}]" for i in range(rows)], [5] * rows
    for token, id in data["model"]["vocab"].items():
        tokens[id], types[id] = token, 1
    for added in data["added_tokens"]:
        control = added["special"] or added["content"].startswith("<|")
        tokens[added["id"]], types[added["id"]] = added["content"], 3 if control else 4
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(merge) for merge in data["model"]["merges"]])
    writer.add_add_bos_token(False)
    template = json.loads((folder / "tokenizer_config.json").read_text()).get("chat_template")
    if template:
        writer.add_chat_template(template)
