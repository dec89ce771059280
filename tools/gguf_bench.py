"""How fast GGUF's tensor types become float32 here, and whether llama.cpp computes the same logits from the same file.

    python tools/gguf_bench.py [--peer PYTHON FILE.gguf ...] [--json FILE]

Speed: one thread, 1 M random weights of each type, the best of 30; beside it the floor, a copy of the float32 result.
PYTHON: one that has llama-cpp-python. Our logits for a few tokens, in float32, are compared with its own for the file
(it rounds activations to 8 bits for quantized weights: 2 to 10 %, more where that moves a router) and for the same
values written out in float32 (its cache stays float16: below 0.1 %).
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from qwen3.checkpoint.gguf.dequantize import dequantize
from qwen3.checkpoint.gguf.types import TYPES

WEIGHTS = 1 << 20
IDS = [5, 900, 77, 300, 8, 1200, 44, 2000, 17, 301]
_PEER = """
import json, sys
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=64, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False)
ids = json.loads(sys.argv[2])
model.eval(ids)
print(json.dumps(model.scores[: len(ids)].tolist()))
"""


def best_of(function: Any, times: int = 30) -> float:
    found = []
    for _ in range(times):
        started = time.perf_counter()
        function()
        found.append(time.perf_counter() - started)
    return min(found)


def speeds() -> dict[str, dict[str, float]]:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    out, twin = torch.empty(WEIGHTS), torch.empty(WEIGHTS)
    copy = best_of(lambda: twin.copy_(out))
    results = {"copy of float32": {"gigaweights_per_second": round(WEIGHTS / copy / 1e9, 2)}}
    for kind in TYPES.values():
        data = torch.randint(0, 256, (WEIGHTS // kind.block * kind.size,), dtype=torch.uint8, generator=generator)
        seconds = best_of(lambda data=data, kind=kind: dequantize(data, kind, out))
        results[kind.name] = {
            "gigaweights_per_second": round(WEIGHTS / seconds / 1e9, 2),
            "gigabytes_written_per_second": round(WEIGHTS * 4 / seconds / 1e9, 2),
            "gigabytes_read_per_second": round(len(data) / seconds / 1e9, 2),
        }
    return results


def widened(file: Path, to: Path) -> None:
    """The same model with the same values, all in float32, by the `gguf` package."""
    import gguf

    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(to, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and not field.name.startswith("general."):
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, values.reshape([int(size) for size in reversed(tensor.shape)]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def against(python: str, file: Path) -> dict[str, Any]:
    """Our logits against the peer's, of the file and of its values in float32: ‖ours - theirs‖ / ‖theirs‖ over all, and
    at how many positions both have the same first choice."""
    from qwen3.model import load_model

    def theirs(path: Path) -> torch.Tensor:
        command = [python, "-c", _PEER, str(path), json.dumps(IDS)]
        return torch.tensor(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))

    def compared(a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
        same = (a.argmax(-1) == b.argmax(-1)).float().mean()
        return {
            "relative_difference": round(float((a - b).norm() / b.norm()), 6),
            "same_first_choice": round(float(same), 3),
        }

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = load_model(file, "cpu", "float32")(torch.tensor([IDS]))[0]
    with tempfile.TemporaryDirectory() as folder:
        wide = Path(folder) / "wide.gguf"
        widened(file, wide)
        return {"their_kernels": compared(ours, theirs(file)), "same_values_in_float32": compared(ours, theirs(wide))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", metavar="PYTHON")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    report: dict[str, Any] = {
        "name": "gguf",
        "date": f"{datetime.date.today()}",
        "commit": commit.stdout.strip(),
        "command": "python tools/gguf_bench.py" + (" --peer PYTHON FILE..." if args.peer else ""),
        "machine": "2 shared EPYC cores",
        "torch": torch.__version__,
        "dequantize_one_thread": speeds(),
    }
    if args.peer:
        report["llama_cpp"] = {file.name: against(args.peer, file) for file in args.files}
    text = json.dumps(report, indent=2) + "\n"
    if args.json:
        args.json.write_text(text)
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
