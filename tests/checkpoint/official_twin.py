"""A random-weight twin of the official Qwen3-0.6B folder: same files, same sizes, same header, other weights."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from qwen3 import family
from qwen3.checkpoint.names import EMBED, HEAD, official_shapes
from qwen3.tokenizer import Tokenizer

FILE_BYTES, HEADER_BYTES, TENSORS = 1_503_300_328, 35_552, 311
GENERATION_CONFIG = {
    "bos_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "pad_token_id": 151643,
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
    "transformers_version": "4.51.0",
}


def build(folder: str | Path, seed: int = 0) -> Path:
    """Writes the twin (1.5 GB) into `folder`, which is made: config, tokenizer files, one safetensors file.

    As in the original, `lm_head.weight` is stored although the embeddings are tied. Norm weights are 1, the rest is
    normal with standard deviation 0.02; the same seed gives the same bytes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = family.MODELS["Qwen3-0.6B"].config
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(GENERATION_CONFIG, indent=4) + "\n")
    Tokenizer.from_pretrained().save(folder)
    shapes = official_shapes(config)
    shapes[HEAD] = shapes[EMBED]
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in sorted(shapes.items()):
        end = position + 2 * math.prod(shape)
        table[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name, shape in sorted(shapes.items()):
            generator = torch.Generator().manual_seed(seed + len(EMBED if name == HEAD else name) * 1000)
            if len(shape) == 1:
                file.write(torch.ones(shape, dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes())
                continue
            # one block of noise, repeated: a gigabyte of normal numbers would take longer than all the rest
            block = (torch.randn(1 << 20, generator=generator) * 0.02).bfloat16().view(torch.uint8).numpy().tobytes()
            left = 2 * math.prod(shape)
            while left:
                left -= file.write(block[:left])
    return folder
