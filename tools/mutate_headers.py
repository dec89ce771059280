"""Damages the headers of GGUF and safetensors files, again and again: each must be read, or refused in our own words.

    python tools/mutate_headers.py [--count 1000000] [--seed 0] [--kinds gguf,gptq] [--json FILE]

Every mutation of a small valid file flips bits, overwrites a number with a hostile one (2^60, -1, …), cuts, repeats,
swaps or inserts bytes. Reading it must end in a header or in a Qwen3Error, and may never take more than LIMIT bytes
beyond the process's size at the start; anything else is printed with the seed that makes it, and the exit code is 1.
Of the kinds in FOLDERS, quantized folders, config.json or the header is damaged, and all numbers are read.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import resource
import shlex
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import torch

from qwen3.checkpoint.gguf.config import gguf_config, read_config
from qwen3.checkpoint.gguf.files import Gguf
from qwen3.checkpoint.gguf.names import find_parts
from qwen3.checkpoint.gguf.reader import Strings, read_gguf
from qwen3.checkpoint.header import read_header
from qwen3.checkpoint.source import open_source
from qwen3.errors import Qwen3Error
from qwen3.evaluate.machine import commit

LIMIT = 64 << 20
HOSTILE = (0, 1, 2**60, 2**63 - 1, 2**63, 2**64 - 1, 2**31 - 1, 2**32 - 1, 255, 65535, 1 << 40, 32, 10**9)


def small_gguf() -> tuple[bytes, int]:
    """A Qwen3 of one layer in Q4_0 and F32, with a tokenizer of four tokens; 6 kB, and how many are its header."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def pair(key: str, kind: int, value: bytes) -> bytes:
        return text(key) + struct.pack("<I", kind) + value

    def number(key: str, value: int) -> bytes:
        return pair("qwen3." + key, 4, struct.pack("<I", value))

    sizes = {"block_count": 1, "embedding_length": 32, "feed_forward_length": 32, "attention.head_count": 1}
    sizes |= {"attention.head_count_kv": 1, "attention.key_length": 32, "context_length": 64}
    strings = b"".join(map(text, ("a", "b", "ab", "<|im_end|>")))
    pairs = [
        pair("general.architecture", 8, text("qwen3")),
        pair("qwen3.rope.freq_base", 6, struct.pack("<f", 1e6)),
        pair("qwen3.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-6)),
        *(number(key, value) for key, value in sizes.items()),
        pair("tokenizer.ggml.model", 8, text("gpt2")),
        pair("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 4) + strings),
        pair("tokenizer.ggml.token_type", 9, struct.pack("<IQ4i", 5, 4, 1, 1, 1, 3)),
        pair("tokenizer.ggml.add_bos_token", 7, b"\0"),
    ]
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    tensors = [("token_embd.weight", (32, 4), 2)] + [(f"blk.0.{name}.weight", (32, 32), 2) for name in names]
    tensors += [(f"blk.0.{name}.weight", (32,), 0) for name in ("attn_norm", "ffn_norm", "attn_q_norm", "attn_k_norm")]
    tensors.append(("output_norm.weight", (32,), 0))
    infos, offset = b"", 0
    for name, shape, kind in tensors:
        infos += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        rows = shape[1] if len(shape) > 1 else 1
        offset += -(-rows * (18 if kind == 2 else 128) // 32) * 32
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs) + infos
    return head + bytes(-len(head) % 32) + bytes(offset), len(head)


def small_safetensors() -> tuple[bytes, int]:
    table = {"__metadata__": {"format": "pt"}, "a.weight": {"dtype": "BF16", "shape": [4, 8], "data_offsets": [0, 64]}}
    table["b.weight"] = {"dtype": "F32", "shape": [3], "data_offsets": [64, 76]}
    head = json.dumps(table).encode()
    return struct.pack("<Q", len(head)) + head + bytes(76), 8 + len(head)


def mutate(data: bytes, header: int, chance: random.Random) -> bytes:
    """One to three damages within the first `header` bytes."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at, how = chance.randrange(min(header, len(out)) or 1), chance.randrange(8)
        if how == 0 and at < len(out):
            out[at] ^= 1 << chance.randrange(8)
        elif how == 1 and at < len(out):
            out[at] = chance.randrange(256)
        elif how in (2, 3):
            size = chance.choice((4, 8))
            out[at : at + size] = (chance.choice(HOSTILE) % (1 << 8 * size)).to_bytes(size, "little")
        elif how == 4:
            del out[chance.randrange(len(out) + 1) :]
        elif how == 5:
            del out[at : at + chance.randrange(1, 40)]
        elif how == 6:
            out[at:at] = out[at : at + chance.randrange(1, 40)]
        else:
            end = chance.randrange(len(out) + 1)
            out[at : at + 8] = out[end : end + 8]
    return bytes(out)


def read_whole_gguf(file: Path) -> None:
    """The header, everything its metadata says, the configuration, and where the official tensors are."""
    header = read_gguf(file)
    for value in header.metadata.values():
        if isinstance(value, Strings):
            list(value)
    model = Gguf(file, (header,), header.metadata, header.tensors)
    find_parts(model, gguf_config(model))


CASES: dict[str, tuple[Callable[[], tuple[bytes, int]], Callable[[Path], object]]] = {
    "gguf": (small_gguf, read_whole_gguf),
    "safetensors": (small_safetensors, read_header),
}
FOLDERS = ("gptq", "gptq-desc-act", "awq", "w4a16-zero", "w8a8", "fp8", "nf4", "mlx")


def read_folder(folder: Path) -> None:
    """All that loading reads: settings, headers, then the numbers of every matrix."""
    with closing(open_source(folder, read_config(folder))) as source:
        for stored in source.stored.values():
            assert stored.read(slice(None), torch.float32).shape == stored.shape
            if stored.form is not None:
                stored.packed(slice(0, 16))


def damaged_folder(kind: str, count: int, seed: int, folder: Path) -> Iterator[str]:
    """Damages a folder in place, `count` times; what was damaged."""
    file, config = folder / "model.safetensors", folder / "config.json"
    weights, settings = file.read_bytes(), config.read_bytes()
    header = 8 + int.from_bytes(weights[:8], "little")
    for i in range(count):
        chance = random.Random(f"{seed}-{kind}-{i}")
        of_file = chance.random() < 0.5
        file.write_bytes(mutate(weights, header, chance) if of_file else weights)
        config.write_bytes(settings if of_file else mutate(settings, len(settings), chance))
        yield f"{kind}, seed {seed}, mutation {i} ({'header' if of_file else 'config.json'})"


def campaign_of_folder(kind: str, count: int, seed: int, folder: Path) -> dict[str, int]:
    """As `campaign`, of a quantized folder, a copy of which is damaged."""
    read_folder(folder)
    start, outcome = peak(), {"read": 0, "refused": 0}
    for what in damaged_folder(kind, count, seed, folder):
        try:
            read_folder(folder)
            outcome["read"] += 1
        except Qwen3Error as error:
            outcome["refused"] += 1
            message = str(error)
            assert str(folder) in message or "model." in message, f"{what}: {message} names nothing"
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
        assert peak() - start < LIMIT, f"{what}: memory grew by {peak() - start} bytes"
    return {**outcome, "grown_bytes": peak() - start}


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def campaign(kind: str, count: int, seed: int, folder: Path) -> dict[str, int]:
    """Counts of what came of `count` mutations; raises AssertionError for the first that goes wrong."""
    build, read = CASES[kind]
    (data, header), file = build(), folder / f"m.{kind}"
    file.write_bytes(data)
    read(file)  # whole, it is fine
    start, outcome = peak(), {"read": 0, "refused": 0}
    for i in range(count):
        file.write_bytes(mutate(data, header, random.Random(f"{seed}-{kind}-{i}")))
        try:
            read(file)
            outcome["read"] += 1
        except Qwen3Error as error:
            outcome["refused"] += 1
            message = str(error)
            assert str(file) in message, f"{kind}, seed {seed}, mutation {i}: {message} names no file"
        except Exception as error:
            raise AssertionError(f"{kind}, seed {seed}, mutation {i}: {type(error).__name__}: {error}") from error
        assert peak() - start < LIMIT, f"{kind}, seed {seed}, mutation {i}: memory grew by {peak() - start} bytes"
    return {**outcome, "grown_bytes": peak() - start}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000, help="mutations of each format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", help="of these alone, with commas; else gguf and safetensors")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    memory = Path("/dev/shm")
    started, results = time.perf_counter(), {}
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        for kind in args.kinds.split(",") if args.kinds else CASES:
            if kind in CASES:
                results[kind] = campaign(kind, args.count, args.seed, Path(folder))
            else:
                sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
                from tests.checkpoint.formats.test_models import small

                made, _ = small(Path(folder), kind, "dense")
                results[kind] = campaign_of_folder(kind, args.count, args.seed, made)
                shutil.rmtree(made.parent / "wide")
                shutil.rmtree(made)
            print(kind, results[kind], flush=True)
    if args.json:
        report = {
            "what": "mutated headers",
            "command": shlex.join(["python", "tools/mutate_headers.py", *sys.argv[1:]]),
            "commit": commit(),
            "machine": "2 shared EPYC cores",
            "python": platform.python_version(),
            "mutations_of_each": args.count,
            "seconds": round(time.perf_counter() - started, 1),
            "results": results,
        }
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
