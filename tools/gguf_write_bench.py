"""What our GGUF types and recipes lose beside llama.cpp's own quantizer, how large files are, and how fast it goes.

    python tools/gguf_write_bench.py [--json FILE] [--recipes q4_k_m,...] [--parts Q4_K,...] [--no-types]

Run with a Python that has llama-cpp-python, whose library quantizes the same weights with the same importance in the
same process (`ggml_quantize_chunk`, which `llama_model_quantize` calls). Types: relative squared error over matrices of
the embedded model, by the importance or, without one, of all weights alike; speed in processor time of one thread, the
best of three. Recipes: bytes of the tensors, and the KL divergence from the original's next-token distributions over
held-out text, with importance from the built-in calibration text and without; of single types also part by part, since
the divergence of one model rounded whole differs by some percent between roundings that are equally good.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwen3.checkpoint import official_views, read_config, resolve
from qwen3.checkpoint.gguf.dequantize import dequantize
from qwen3.model import load_model
from qwen3.quantize.calibration import load_calibration
from qwen3.quantize.gguf.encode import BY_NAME, encode
from qwen3.quantize.gguf.recipe import RECIPES
from qwen3.quantize.gguf.round import PLANS
from qwen3.quantize.gguf.write import plan_gguf, tensor_pieces
from qwen3.quantize.imatrix import Imatrix, collect_imatrix

Encode = Callable[[str, Tensor, Tensor | None], Tensor]
WEIGHTS = 1 << 20


def their_encoder() -> Encode:
    package: Any = importlib.import_module("llama_cpp")
    quantize = ctypes.CDLL(str(Path(package.__file__).parent / "lib" / "libggml-base.so")).ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    quantize.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]

    def encoder(kind: str, x: Tensor, importance: Tensor | None) -> Tensor:
        code, form = BY_NAME[kind]
        out = torch.empty(len(x), x.shape[1] // form.block * form.size, dtype=torch.uint8)
        given = None if importance is None else importance.data_ptr()
        quantize(code, x.data_ptr(), out.data_ptr(), 0, *x.shape, given)
        return out

    return encoder


def back(kind: str, data: Tensor, like: Tensor) -> Tensor:
    out = torch.empty_like(like)
    dequantize(data.view(-1), BY_NAME[kind][1], out)
    return out


def types(matrices: dict[str, Tensor], imatrix: Imatrix, encoders: dict[str, Encode]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for kind in ("Q8_0", *PLANS):
        row: dict[str, Any] = {"bits": 8 * BY_NAME[kind][1].size / BY_NAME[kind][1].block}
        for guided in (False, True):
            label = "with importance" if guided else "plain"
            found = {}
            for who, encoder in encoders.items():
                wrong = whole = 0.0
                for name, x in matrices.items():
                    w = imatrix.of(name, 0) if guided else None
                    square = (x - back(kind, encoder(kind, x, w), x)).square()
                    wrong += float((square * (1 if w is None else w)).sum())
                    whole += float((x.square() * (1 if w is None else w)).sum())
                found[who] = wrong / whole
            row[label] = {**{who: f"{value:.4e}" for who, value in found.items()},
                          "ratio": round(found["qwen3"] / found["llama.cpp"], 4)}  # fmt: skip
            x = next(iter(matrices.values())).repeat(8, 1).view(-1, 512)[: WEIGHTS // 512].contiguous()
            w = imatrix.of(next(iter(matrices)), 0) if guided else None
            row[label]["million weights per second"] = {
                who: round(len(x) * 512 / best_of(encoder, kind, x, w) / 1e6, 1) for who, encoder in encoders.items()
            }
        out[kind] = row
        print(kind, json.dumps(row), file=sys.stderr, flush=True)
    return out


def best_of(encoder: Encode, kind: str, x: Tensor, w: Tensor | None) -> float:
    seconds = []
    for _ in range(3):
        started = time.process_time()
        encoder(kind, x, w)
        seconds.append(time.process_time() - started)
    return min(seconds)


class Trial:
    """The network with some of its matrices rounded, and what that does to its next-token distributions."""

    @torch.no_grad()
    def __init__(self, path: Path, imatrix: Imatrix) -> None:
        self.imatrix, self.config = imatrix, read_config(path)
        self.network = load_model(path, "cpu", "float32")
        self.views = official_views(self.config, dict(self.network.named_parameters()))
        self.originals = {name: view.clone() for name, view in self.views.items()}
        self.ids = load_calibration(path, "qwen3", samples=8, length=256, seed=99).ids
        self.base = self.network(self.ids).log_softmax(-1)

    @torch.no_grad()
    def divergence(self, kinds: dict[str, str], guided: bool, encoder: Encode) -> tuple[float, float]:
        """kinds: GGUF name → type, of what is rounded. (KL in nats, share of the same next token)."""
        places = {name: official for name, (_, (official, *_)) in tensor_pieces(self.config).items()}
        for name, kind in kinds.items():
            x = self.originals[places[name]]
            data = encoder(kind, x, self.imatrix.of(name, 0) if guided else None)
            self.views[places[name]].copy_(back(kind, data, x))
        new = self.network(self.ids).log_softmax(-1)
        for name in kinds:
            self.views[places[name]].copy_(self.originals[places[name]])
        kl = float((self.base.exp() * (self.base - new)).sum(-1).mean())
        return kl, float((self.base.argmax(-1) == new.argmax(-1)).float().mean())


def recipes(trial: Trial, names: list[str], encoders: dict[str, Encode]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name in names:
        row: dict[str, Any] = {}
        for guided in (False, True):
            plan = plan_gguf(trial.config, name, guided=guided)
            row["bytes"] = sum(tensor.nbytes for tensor in plan)
            kinds = {tensor.name: tensor.kind for tensor in plan if tensor.kind != "F32"}
            for who, encoder in encoders.items():
                kl, same = trial.divergence(kinds, guided, encoder)
                label = "with importance" if guided else "plain"
                row.setdefault(label, {})[who] = {"kl": round(kl, 5), "same next token": round(same, 4)}
        out[name] = row
        print(name, json.dumps(row), file=sys.stderr, flush=True)
    return out


def parts(trial: Trial, kinds: list[str], encoders: dict[str, Encode]) -> dict[str, Any]:
    """KL of each layer's attention and of each layer's MLP rounded alone: many small trials instead of one large."""
    out: dict[str, Any] = {}
    matrices = [name for name, (shape, _) in tensor_pieces(trial.config).items() if len(shape) > 1]
    for kind in kinds:
        row: dict[str, Any] = {}
        for guided in (False, True):
            found: dict[str, list[float]] = {who: [] for who in encoders}
            for layer in range(trial.config.num_hidden_layers):
                for block in ("attn", "ffn"):
                    some = {name: kind for name in matrices if name.startswith(f"blk.{layer}.{block}_")}
                    for who, encoder in encoders.items():
                        found[who].append(trial.divergence(some, guided, encoder)[0])
            better = sum(a < b for a, b in zip(found["qwen3"], found["llama.cpp"], strict=True))
            row["with importance" if guided else "plain"] = {
                **{who: round(sum(values), 5) for who, values in found.items()},
                "ratio": round(sum(found["qwen3"]) / sum(found["llama.cpp"]), 4),
                "better": f"{better} of {len(found['qwen3'])}",
            }
        out[kind] = row
        print(kind, json.dumps(row), file=sys.stderr, flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    known = [name for name in RECIPES if name not in ("f32", "f16", "bf16", "mxfp4_moe", "tq1_0", "tq2_0")]
    parser.add_argument("--recipes", default=",".join(known))
    parser.add_argument("--parts", default="Q4_K,IQ4_XS")
    parser.add_argument("--no-types", action="store_true")
    told = parser.parse_args()
    torch.set_num_threads(1)
    path = resolve("embedded").path
    calibration = load_calibration(path, "qwen3", samples=32, length=512)
    imatrix = collect_imatrix(path, calibration)
    encoders: dict[str, Encode] = {"qwen3": encode, "llama.cpp": their_encoder()}
    trial = Trial(path, imatrix)
    some = [name for name in imatrix.means if name.startswith(("blk.0.", "blk.3."))]
    matrices = {name: trial.originals[tensor_pieces(trial.config)[name][1][0]] for name in some}
    commit = subprocess.run(("git", "rev-parse", "--short", "HEAD"), capture_output=True, text=True).stdout.strip()
    result = {
        "name": "gguf-write",
        "what": "GGUF types and recipes: error, divergence, size and speed beside llama.cpp's own quantizer",
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", "tools/gguf_write_bench.py", *sys.argv[1:]]),
        "machine": "2 shared EPYC cores",
        "commit": commit,
        "peer": "llama-cpp-python 0.3.36, ggml_quantize_chunk",
        "model": "embedded",
        "importance": str(calibration),
        "types": {} if told.no_types else types(matrices, imatrix, encoders),
        "recipes": recipes(trial, [name for name in told.recipes.split(",") if name], encoders),
        "parts": parts(trial, [kind for kind in told.parts.split(",") if kind], encoders),
    }
    if told.json:
        told.json.write_text(json.dumps(result, indent=1) + "\n")
    else:
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
