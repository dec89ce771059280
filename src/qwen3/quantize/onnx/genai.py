"""What makes an exported folder one that onnxruntime-genai runs as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from qwen3 import family
from qwen3.checkpoint.header import read_json
from qwen3.checkpoint.mode import detect_mode, find_tokenizer
from qwen3.checkpoint.resolved import Resolved
from qwen3.config import ModelConfig
from qwen3.quantize.folder import COPIED
from qwen3.quantize.onnx.graph import LEVEL, MODEL
from qwen3.tokenizer import Tokenizer

GENAI = "genai_config.json"


def write_sidecars(
    stage: Path, source: Resolved, config: ModelConfig, *, shared: bool, context: int, level: int
) -> Tokenizer:
    """The tokenizer's files with the chat template, config.json and genai_config.json; the tokenizer.

    shared: whether past and present may be one buffer. context: tokens it may hold. level: as
    `export`'s accuracy_level.
    """
    tokenizer = find_tokenizer(source, config)[0]
    for path in sorted({path for pattern in COPIED for path in source.path.glob(pattern) if path.is_file()}):
        shutil.copyfile(path, stage / path.name)  # none beside a GGUF file
    if not (stage / "tokenizer.json").is_file():
        tokenizer.save(stage)
    generation = stage / "generation_config.json"
    found = read_json(generation) if generation.is_file() else {}
    defaults: dict[str, Any] = found if isinstance(found, dict) else {}
    _write(stage / "config.json", config.to_dict())
    told = defaults.get("eos_token_id", [])
    ends = [*config.eos_token_ids, *(told if isinstance(told, list) else [told]), *tokenizer.eos_ids]
    search = _search(source, config, defaults)
    _write(stage / GENAI, genai_config(config, search, list(dict.fromkeys(ends)), shared, context, level))
    return tokenizer


def genai_config(
    config: ModelConfig, search: dict[str, Any], ends: list[int], shared: bool, context: int, level: int
) -> dict[str, Any]:
    """The content of genai_config.json. Keys: onnxruntime-genai's `src/config.h`."""
    return {
        "model": {
            "type": "qwen3",
            "vocab_size": config.vocab_size,
            "context_length": context,
            **({} if config.bos_token_id is None else {"bos_token_id": config.bos_token_id}),
            "eos_token_id": ends,
            "pad_token_id": ends[0] if config.pad_token_id is None else config.pad_token_id,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": [], LEVEL: str(level)},
                "filename": MODEL,
                "head_size": config.head_dim,
                "hidden_size": config.hidden_size,
                "num_attention_heads": config.num_attention_heads,
                "num_hidden_layers": config.num_hidden_layers,
                "num_key_value_heads": config.num_key_value_heads,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "max_length": context,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "repetition_penalty": 1.0,
            "past_present_share_buffer": shared,
            **search,
        },
    }


def _search(source: Resolved, config: ModelConfig, generation: dict[str, Any]) -> dict[str, Any]:
    """How tokens are chosen unless told: as generation_config.json says, else as Qwen recommends for the model."""
    published = family.sampling_defaults(detect_mode(source, config)[0])
    search = {"temperature": published.temperature, "top_p": published.top_p, "top_k": published.top_k}
    search |= {name: generation[name] for name in (*search, "repetition_penalty") if name in generation}
    return {"do_sample": bool(generation.get("do_sample", search["temperature"] > 0)), **search}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
