#!/usr/bin/env python3
"""The same GGUF files through this engine and through llama.cpp, turn about, on one CPU.

    python -m venv peer && peer/bin/pip install llama-cpp-python
    python tools/cpu_peer.py --peer peer/bin/python --rounds 3 --out benchmarks/DATE-cpu-peer.json

Random weights at a published shape (--size), the official vocabulary, written once to --room. Measured, each in a
process of its own, ours and the peer's one after the other so that both meet the same neighbours: `first_token_s`,
from opening the file to the first token of a one-token prompt (imports apart); `decode_tok_s`, one stream, 64 tokens
behind a prompt of 128; `streams_tok_s`, eight at once; `prefill_tok_s`, 512 tokens. The best of the rounds counts, all
are kept. llama.cpp clears the cache of its whole context first: `--first-token 4096` times that alone, with a context
of so many tokens for one stream in both. `int4` is our own rounding (groups of 128, head in 8 bits) of the same shape,
set against the peer's Q4_0. The floor is the bytes of the weights over what this machine reads, measured in the same
run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
PROMPT, OUTPUT, STREAMS, LONG = 128, 64, 8, 512
KINDS = ("Q4_0", "Q8_0", "Q4_K_M")
# bytes of a block, its elements, where its float16 scale is and that of its minima, and what its integers spread by
BLOCKS = {
    "Q4_0": (18, 32, 0, None, 4.6), "Q8_0": (34, 32, 0, None, 74), "Q4_K": (144, 256, 0, 2, 210),
    "Q6_K": (210, 256, 208, None, 1360),
}  # fmt: skip


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--peer", type=Path, required=True, help="a Python with llama-cpp-python")
    options.add_argument("--size", default="0.6B", help="of the published dense shapes")
    options.add_argument("--room", type=Path, default=Path("/var/tmp/qwen3-cpu-peer"), help="for the files (1 GB)")
    options.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS[:2])
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--first-token", type=int, default=0, metavar="CONTEXT", help="that alone, for one stream")
    options.add_argument("--threads", type=int, default=os.cpu_count())
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    chosen.room.mkdir(parents=True, exist_ok=True)
    files = {kind: chosen.room / f"{chosen.size}-{kind}.gguf" for kind in chosen.kinds}
    words = chosen.room / "tokenizer"
    if not words.exists():
        from qwen3.tokenizer import Tokenizer

        Tokenizer.from_pretrained().save(words)
    for kind, file in files.items():
        if not file.exists():
            child(Path(sys.executable), "make", chosen.size, kind, str(file))
    turns = [("llama.cpp", kind, chosen.peer, "llama", str(file)) for kind, file in files.items()]
    turns += [("qwen3", kind, Path(sys.executable), "ours", str(file)) for kind, file in files.items()]
    if "Q4_0" in files and not chosen.first_token:
        turns.append(("qwen3", "int4", Path(sys.executable), "ours", chosen.size))
    turns.sort(key=lambda turn: turn[1] != "Q4_0")
    found: dict[str, dict[str, list[dict[str, float]]]] = {"llama.cpp": {}, "qwen3": {}}
    for number in range(chosen.rounds):
        for who, kind, python, verb, what in turns:
            line = child(python, verb, what, str(chosen.threads), str(chosen.first_token))
            found[who].setdefault(kind, []).append(line)
            print(number, who, kind, {key: round(value, 3) for key, value in line.items()}, flush=True)
    result = report(chosen, found, {kind: file.stat().st_size for kind, file in files.items()})
    text = json.dumps(result, indent=1)
    print(text)
    if chosen.out:
        chosen.out.write_text(text + "\n", encoding="utf-8")
    return 0


def child(python: Path, *words: str) -> Any:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [str(python), __file__, "--child", *words], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "{}")


def report(chosen: Any, found: dict[str, Any], sizes: dict[str, int]) -> dict[str, Any]:
    import torch

    from qwen3.evaluate.machine import commit, describe, measure_ceilings

    device = torch.device("cpu")
    ceilings = measure_ceilings(device)
    best: dict[str, Any] = {}
    for who, kinds in found.items():
        for kind, lines in kinds.items():
            best[f"{who} {kind}"] = {
                key: (min if key == "first_token_s" else max)(line[key] for line in lines) for key in lines[0]
            }
    pairs = {kind: "Q4_0" if kind == "int4" else kind for kind in found["qwen3"]}
    ratios = {
        kind: {key: round(best[f"qwen3 {kind}"][key] / value, 3) for key, value in best[f"llama.cpp {peer}"].items()}
        for kind, peer in pairs.items()
    }
    return {
        "what": "one GGUF through this engine and llama.cpp on a CPU, turn about; random weights",
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit(), "size": chosen.size,
        "command": " ".join(["python tools/cpu_peer.py", *sys.argv[1:]]), "threads": chosen.threads,
        "load": os.getloadavg()[0], "machine": describe(device), "ceilings": ceilings.__dict__, "file_bytes": sizes,
        "ours_over_peer": ratios, "best": best, "rounds": found,
    }  # fmt: skip


def make(size: str, kind: str, out: str) -> None:
    """With `gguf`: blocks of random numbers, scales as of weights around 0.02, and the official vocabulary."""
    import gguf
    import numpy as np

    from qwen3 import family
    from qwen3.checkpoint.names import official_shapes
    from tests.checkpoint.gguf.build import describe, place

    config, rng = family.MODELS[f"Qwen3-{size}"].config, np.random.default_rng(0)
    writer = gguf.GGUFWriter(out, "qwen3")
    describe(writer, Path(out).parent / "tokenizer", config)
    for official, shape in official_shapes(config).items():
        name, _ = place(official)
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, dtype=np.float32))
            continue
        # as Q4_K_M has it: more bits for the embedding, and in every other layer for two matrices
        more = name == "token_embd.weight" or (
            name.endswith(("attn_v.weight", "ffn_down.weight")) and int(name.split(".")[1]) % 2 == 0
        )
        own = kind if kind != "Q4_K_M" else "Q6_K" if more else "Q4_K"
        width, block, at, least_at, spread = BLOCKS[own]
        raw = rng.integers(0, 256, (shape[0], shape[1] // block, width), dtype=np.uint8)
        scale = rng.random((shape[0], shape[1] // block, 1), dtype=np.float32) * 0.04 / spread
        raw[..., at : at + 2] = scale.astype(np.float16).view(np.uint8)
        if least_at is not None:  # values lie around 0
            raw[..., least_at : least_at + 2] = (scale * 7.5).astype(np.float16).view(np.uint8)
        writer.add_tensor(name, raw.reshape(shape[0], -1), raw_dtype=gguf.GGMLQuantizationType[own])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ours(what: str, threads: int, alone: int) -> dict[str, float]:
    import torch

    from qwen3 import LLM, SamplingParams, family
    from qwen3.tokenizer import Tokenizer

    torch.set_num_threads(threads)
    start = time.perf_counter()
    if what.endswith(".gguf"):
        llm = LLM(what, device="cpu", context=alone or 1024, max_batch=1 if alone else STREAMS, prefix_cache=False)
    else:
        model = random_int4(family.MODELS[f"Qwen3-{what}"].config)
        llm = LLM.of(model, Tokenizer.from_pretrained(), context=1024, max_batch=STREAMS, prefix_cache=False)

    def seconds(prompts: int, length: int, output: int) -> float:
        began = time.perf_counter()
        ids = [[(7 * i + j) % 9000 for j in range(length)] for i in range(prompts)]
        llm.generate(ids, SamplingParams(max_tokens=output, ignore_eos=True, temperature=0))
        return time.perf_counter() - began

    seconds(1, 1, 1)
    found = {"first_token_s": time.perf_counter() - start}
    if alone:
        return found
    seconds(1, PROMPT, 4)
    found["decode_tok_s"] = OUTPUT / (seconds(1, PROMPT, OUTPUT + 1) - seconds(1, PROMPT, 1))
    found["streams_tok_s"] = STREAMS * OUTPUT / (seconds(STREAMS, PROMPT, OUTPUT + 1) - seconds(STREAMS, PROMPT, 1))
    found["prefill_tok_s"] = LONG / min(seconds(1, LONG, 1) for _ in range(2))
    return found


def random_int4(config: Any) -> Any:
    """A network of the shape in our own 4 bits, without making its weights first."""
    import torch

    from qwen3.checkpoint.packed import fitting, hold
    from qwen3.kernels.packed import pack
    from qwen3.model import Qwen3

    model = Qwen3(config, device="meta", dtype=torch.float32)
    for name, value in list(model.named_parameters()):
        if value.dim() == 1:
            path, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(path), leaf, torch.nn.Parameter(torch.ones(value.shape)))
            continue
        bits, group = fitting(name, value.shape[1], "int4")
        q = torch.randint(0, 1 << bits, value.shape, dtype=torch.uint8)
        scale = torch.rand(value.shape[0], value.shape[1] // group) * 0.08 / (1 << bits)
        hold(model, name, pack(q, scale.half(), None, bits))
    model.rotary.to("cpu")
    return model.eval()


def llama(path: str, threads: int, alone: int) -> dict[str, float]:
    import ctypes

    import llama_cpp as api

    quiet = api.llama_log_callback(lambda *_: None)
    api.llama_log_set(quiet, ctypes.c_void_p(0))
    api.llama_backend_init()
    start = time.perf_counter()
    model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
    assert model, f"llama.cpp does not load {path}"

    def context(batch: int) -> Any:
        parameters = api.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = alone or 1024 * STREAMS, batch, batch
        parameters.n_seq_max = 1 if alone else STREAMS
        parameters.n_threads, parameters.n_threads_batch = threads, threads
        made = api.llama_init_from_model(model, parameters)
        assert made, "no context"
        return made

    ctx = context(LONG)
    size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    batch = api.llama_batch_init(LONG, 0, 1)

    def feed(tokens: list[tuple[int, int, int, bool]]) -> None:
        """(token, position, sequence, whether its logits are wanted)"""
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = sequence
        assert api.llama_decode(ctx, batch) == 0

    def best(i: int) -> int:
        import numpy as np

        return int(np.ctypeslib.as_array(api.llama_get_logits_ith(ctx, i), (size,)).argmax())

    def clear() -> None:
        api.llama_memory_clear(api.llama_get_memory(ctx), True)

    def decode(streams: int) -> float:
        clear()
        for s in range(streams):
            feed([((7 * s + j) % 9000, j, s, j == PROMPT - 1) for j in range(PROMPT)])
        last = [best(-1)] * streams
        began = time.perf_counter()
        for step in range(OUTPUT):
            feed([(token, PROMPT + step, s, True) for s, token in enumerate(last)])
            last = [best(s) for s in range(streams)]
        return streams * OUTPUT / (time.perf_counter() - began)

    feed([(1, 0, 0, True)])
    best(0)
    found = {"first_token_s": time.perf_counter() - start}
    if alone:
        return found
    found["decode_tok_s"] = decode(1)
    found["streams_tok_s"] = decode(STREAMS)
    times = []
    for _ in range(2):
        clear()
        began = time.perf_counter()
        feed([(j % 9000, j, 0, j == LONG - 1) for j in range(LONG)])
        best(-1)
        times.append(time.perf_counter() - began)
    found["prefill_tok_s"] = LONG / min(times)
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        verb, *words = sys.argv[2:]
        if verb == "make":
            make(*words)
        else:
            print(json.dumps({"llama": llama, "ours": ours}[verb](words[0], *map(int, words[1:]))))
        raise SystemExit(0)
    raise SystemExit(main())
