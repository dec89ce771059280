"""What a GGUF file says of a model beside its tensors: the inverse of `checkpoint.gguf.config` and `.tokenizer`.

Keys: docs/gguf.md of ggml-org/ggml, and what llama.cpp reads for `qwen3` and `qwen3moe`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from qwen3.checkpoint.mode import find_tokenizer
from qwen3.checkpoint.resolved import Resolved
from qwen3.config import ModelConfig
from qwen3.errors import ConfigError
from qwen3.tokenizer import Tokenizer

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
# tokens at which llama.cpp ends a text whatever the metadata say
_ENDS = ("<|im_end|>", "<|endoftext|>")


def describe(model: Resolved, config: ModelConfig, file_type: int) -> tuple[dict[str, Any], list[str]]:
    """Key → value as `file.header` takes them, and warnings.

    Raises ConfigError for what the format cannot say: RoPE parameters of its own, a tokenizer larger than the
    embedding.
    """
    tokenizer, doubt = find_tokenizer(model, config)
    if tokenizer.vocab_size > config.vocab_size:
        raise ConfigError(f"{model.path}: {tokenizer.vocab_size} tokens, but vocab_size is {config.vocab_size}")
    about = {
        "general.architecture": config.model_type.replace("_", ""),
        "general.type": "model",
        "general.name": model.name,
        "general.quantization_version": 2,
        "general.file_type": file_type,
    }
    warnings = [] if doubt is None else [doubt]
    network, more = _network(config)
    words, also = _words(tokenizer, config)
    return about | network | words, warnings + more + also


def _network(config: ModelConfig) -> tuple[dict[str, Any], list[str]]:
    prefix = config.model_type.replace("_", "")
    values: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(config.rope_theta),
    }
    warnings = []
    scaling = config.rope_scaling
    if scaling is not None:
        if scaling.attention_factor is not None or not scaling.truncate:
            raise ConfigError("rope_scaling.attention_factor and truncate have no place in a GGUF; leave them out")
        values |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(scaling.factor),
            "rope.scaling.original_context_length": scaling.original_max_position_embeddings,
            "rope.scaling.yarn_beta_fast": float(scaling.beta_fast),
            "rope.scaling.yarn_beta_slow": float(scaling.beta_slow),
        }
    if config.is_moe:
        values |= {
            "expert_count": config.num_experts,
            "expert_used_count": config.num_experts_per_tok,
            "expert_feed_forward_length": config.moe_intermediate_size,
            "expert_weights_norm": config.norm_topk_prob,
        }
        if not config.norm_topk_prob:
            warnings.append("norm_topk_prob is false: llama.cpp scales the experts' weights to 1 all the same")
        dense = [i for i in range(config.num_hidden_layers) if not config.is_sparse_layer(i)]
        if dense:
            warnings.append(f"layers {dense} are dense: llama.cpp loads no such qwen3moe file")
    return {f"{prefix}.{key}": value for key, value in values.items()}, warnings


def _words(tokenizer: Tokenizer, config: ModelConfig) -> tuple[dict[str, Any], list[str]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save(folder)
        data = json.loads((folder / "tokenizer.json").read_bytes())
        beside = json.loads((folder / "tokenizer_config.json").read_bytes())
        jinja = folder / "chat_template.jinja"
        template = jinja.read_text() if jinja.exists() else beside.get("chat_template")
    rows = config.vocab_size
    tokens, types = [f"[PAD{i}]" for i in range(rows)], [_UNUSED] * rows
    for token, id in data["model"]["vocab"].items():
        tokens[id], types[id] = token, _NORMAL
    for added in data["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], _CONTROL if added["special"] else _USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in data["model"]["merges"]]
    values: dict[str, Any] = {
        "model": "gpt2", "pre": "qwen2", "tokens": tokens, "token_type": types, "merges": merges,
        "add_bos_token": False,
    }  # fmt: skip
    ends = config.eos_token_ids
    ids = {"bos": config.bos_token_id, "eos": ends[0] if ends else None}
    ids["padding"] = _named(beside.get("pad_token"), tokens) if config.pad_token_id is None else config.pad_token_id
    values |= {f"{key}_token_id": id for key, id in ids.items() if id is not None}
    out = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    if isinstance(template, list):  # several by name
        template = next((one["template"] for one in template if one.get("name") == "default"), None)
    if isinstance(template, str):
        out["tokenizer.chat_template"] = template
    lost = [tokens[id] for id in ends[1:] if tokens[id] not in _ENDS]
    return out, [f"a GGUF names one end of text: {', '.join(lost)} will not end one"] if lost else []


def _named(token: Any, tokens: list[str]) -> int | None:
    content = token.get("content") if isinstance(token, dict) else token
    return tokens.index(content) if content in tokens else None
