"""`qwen3 bench`: the speed of one model here, each number beside its floor, as one JSON object with stable keys.

    python -m qwen3.evaluate.bench MODEL OUT.json [--only key,key] [--kv-dtype fp8] [--weights fp8] [--invariant]
        [--curves] [--gap] [--device cuda] [--dtype bfloat16] [--max-batch 256] [--max-len N] [--budget SECONDS]

MODEL is a size (0.6B … 235B-A22B: random weights at the published shape), `embedded`, or a checkpoint folder. Needs
torch and nothing else of what the command line needs. Compile caches and the CUDA context belong to a process, so each
part is measured in a child of its own: one that finds empty caches, one that finds them warm and does everything else.

Keys (README of `benchmarks/` and docs/performance.md say what each measures): ready_s, full_speed_s, ready_warm_s,
full_speed_warm_s, offline256, decode_b{1,8,32}_tok_s, ttft_{1024,3500,32768}_ms, prefill_tok_s; floor and share have
the same keys (share 1.0 is the floor); experts: distinct experts a layer and step; gap; curves; errors.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from qwen3 import __version__
from qwen3.checkpoint import check_fits, resolve
from qwen3.config import DTYPE_BYTES
from qwen3.errors import Qwen3Error, UsageError
from qwen3.evaluate import workloads
from qwen3.evaluate.floors import Roofline
from qwen3.evaluate.machine import Ceilings, Energy, commit, describe, measure_ceilings
from qwen3.evaluate.workloads import CONTEXTS, SIZES, STREAMS, Scale, Settings, Subject, bytes_of, scale_for
from qwen3.model.load import QUANTIZATIONS

KEYS = (
    "ready_s", "decode_b1_tok_s", "decode_b8_tok_s", "decode_b32_tok_s", "ttft_1024_ms", "ttft_3500_ms",
    "ttft_32768_ms", "prefill_tok_s", "offline256",
)  # fmt: skip
READY_KEYS = ("ready_s", "full_speed_s", "ready_warm_s", "full_speed_warm_s")
CACHES = ("TRITON_CACHE_DIR", "CUDA_CACHE_PATH", "TORCHINDUCTOR_CACHE_DIR", "QWEN3_CACHE")
"""Environment names of every place where compiled or tuned kernels are kept between processes."""

Result = dict[str, Any]
Say = Callable[[str], None]


def measure(
    model: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    only: Sequence[str] | None = None,
    kv_dtype: str | None = None,
    weights: str | None = None,
    invariant: bool = False,
    curves: bool = False,
    gap: bool = False,
    max_batch: int = 256,
    max_len: int | None = None,
    budget: float | None = None,
    command: str = "",
    say: Say = lambda line: None,
) -> Result:
    """Measure `model` and return the result object; `say` gets a line for each part that ends.

    only: keys of KEYS (None: all, () with `curves` or `gap`: these alone). budget: seconds after which what runs is
    ended; what was measured until then is in the result and the rest in its `errors`. Raises UsageError for unknown
    names, OutOfMemoryError for a size that cannot fit, ModelNotFoundError for a folder that is not there.
    """
    keys = list(KEYS if only is None else only)
    for key in keys:
        if key not in KEYS:
            raise UsageError(f"there is no measurement {key!r}; take some of {', '.join(KEYS)}")
    for name, value, known in (("kv_dtype", kv_dtype, ("fp8",)), ("weights", weights, QUANTIZATIONS)):
        if value not in (None, *known):
            raise UsageError(f"{name}={value!r} must be {' or '.join(known)}, or left out for the model's own dtype")
    if dtype not in (None, *DTYPE_BYTES):
        raise UsageError(f"dtype={dtype!r} is not supported; use {', '.join(DTYPE_BYTES)}")
    for name, number in (("max_batch", max_batch), ("max_len", max_len), ("budget", budget)):
        if number is not None and not number > 0:
            raise UsageError(f"{name}={number} must be above 0")
    place = _place(device)
    source = model if model in SIZES else str(resolve(None if model == "embedded" else model).path)
    settings = Settings(source, str(place), dtype, kv_dtype, weights, invariant, max_batch, max_len)
    if settings.random and weights is None:
        check_fits(settings.config, getattr(torch, dtype or settings.config.dtype), place, name=f"Qwen3-{model}")
    result: Result = {
        "what": "qwen3 bench",
        "model": model,
        "weights": "random" if settings.random else "checkpoint",
        "engine": f"qwen3 {__version__}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": command,
        "settings": {k: v for k, v in asdict(settings).items() if k not in ("model", "long")},
        "machine": {},
        "ceilings": {},
        "errors": {},
    }
    deadline = time.monotonic() + budget if budget else float("inf")
    with tempfile.TemporaryDirectory(prefix="qwen3-bench-") as folder:
        caches = {name: str(Path(folder) / name.lower()) for name in CACHES} if "ready_s" in keys else {}
        if caches:
            _child(result, "cold", settings, [], Path(folder), caches, deadline, say)
        if keys or gap:
            parts = [*keys, *(["gap"] if gap else [])]
            _child(result, "main", settings, parts, Path(folder), caches, deadline, say)
        if curves:
            wide, long = replace(settings, max_batch=STREAMS[-1]), replace(settings, long=True, max_len=CONTEXTS[-1])
            _child(result, "streams", wide, ["streams"], Path(folder), caches, deadline, say)
            _child(result, "contexts", long, ["contexts"], Path(folder), caches, deadline, say)
    return result


def _place(device: str | None) -> torch.device:
    """The device that is meant, None: the best there is. UsageError if there is no such device."""
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise UsageError(f"device={device!r} is none that PyTorch knows; use cpu, cuda or cuda:N") from None
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device={device!r}: PyTorch sees {torch.cuda.device_count()} CUDA devices here")
    return place


def _child(
    result: Result, phase: str, settings: Settings, parts: list[str], folder: Path, caches: dict[str, str],
    deadline: float, say: Say,
) -> None:  # fmt: skip
    """Run one phase in a process of its own and merge what it wrote, also when it did not come to its end."""
    left = deadline - time.monotonic()
    if left < 5:
        result["errors"][phase] = "not started: the budget was used up"
        return
    file, log = folder / f"{phase}.json", folder / f"{phase}.log"
    order = {"phase": phase, "settings": asdict(settings), "parts": parts, "ceilings": result["ceilings"]}
    command = [sys.executable, "-m", "qwen3.evaluate.bench", "--child", json.dumps(order), str(file)]
    path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")]))
    environment = os.environ | caches | {"PYTHONPATH": path}
    started = time.monotonic()
    with log.open("wb") as err:
        process = subprocess.Popen(command, env=environment, stdout=err, stderr=err, start_new_session=True)
        try:
            code: int | None = process.wait(None if left == float("inf") else left)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    found: Result = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for key, value in found.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] |= value
        else:
            result[key] = value
    if code != 0:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        why = "ended: the budget was used up" if code is None else lines[-1] if lines else f"ended with code {code}"
        result["errors"][phase] = why[:500]
    say(f"{phase}: {time.monotonic() - started:.1f} s" + ("" if code == 0 else f"; {result['errors'][phase]}"))


# In the child


class _Report:
    """What a child has found so far, on disk after every part: a process that is killed keeps what it had."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: Result = {"errors": {}}

    def write(self) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(self.data), encoding="utf-8")
        fresh.replace(self.path)

    def attempt(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            if os.environ.get("QWEN3_DEBUG"):
                raise
            self.data["errors"][name] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
        self.write()


def run_child(order: dict[str, Any], path: Path) -> None:
    """One phase: "cold" (start-up alone), "main" (start-up, then `parts`), "streams" or "contexts" (a curve)."""
    settings, phase, parts = Settings(**order["settings"]), order["phase"], order["parts"]
    report = _Report(path)
    subject = Subject(settings)
    starting = phase == "cold" or (phase == "main" and "ready_s" in parts)
    suffix = "_s" if phase == "cold" else "_warm_s"
    data, scale = report.data, scale_for(subject.device, subject.config)

    def start() -> None:
        data[f"ready{suffix}"] = workloads.ready(subject)
        report.write()
        if starting:
            found = workloads.full_speed(subject, scale.steady)
            data[f"full_speed{suffix}"] = found["s"]

    report.attempt(f"ready{suffix}", start)
    if phase == "cold":
        subject.close()
        data["ceilings"] = measure_ceilings(subject.device).to_dict()  # while nothing else has the memory
        report.write()
        return
    if not starting:
        data.pop(f"ready{suffix}", None)
    ceilings = Ceilings.from_dict(order["ceilings"]) if order["ceilings"] else measure_ceilings(subject.device)
    if subject.device.type == "cuda":
        torch.cuda.empty_cache()
    data["ceilings"], data["machine"] = ceilings.to_dict(), describe(subject.device)
    _Parts(subject, scale, ceilings, report).run(phase, parts)
    subject.close()


class _Parts:
    """The parts of one child, each beside its floor."""

    def __init__(self, subject: Subject, scale: Scale, ceilings: Ceilings, report: _Report) -> None:
        self.subject, self.scale, self.report, self.data = subject, scale, report, report.data
        sizes = bytes_of(subject)
        self.roofline = Roofline(subject.config, ceilings, *sizes, distinct={})
        self.energy = Energy(subject.device)
        for name in ("floor", "share", "samples"):
            self.data[name] = {}
        if subject.config.is_moe:
            self.data["experts"] = {}

    def run(self, phase: str, parts: Sequence[str]) -> None:
        if phase in ("streams", "contexts"):
            self.data["curves"] = {phase: []}
            points = STREAMS if phase == "streams" else CONTEXTS
            point = self._streams if phase == "streams" else self._context
            for value in points:
                self.report.attempt(f"{phase}_{value}", lambda value=value: point(value))  # type: ignore[misc]
            return
        if "ready_s" not in parts:
            self.report.attempt("warm-up", lambda: void(self.subject.generate([100] * 32, [32] * 32)))
        for key in parts:
            if key != "ready_s":
                self.report.attempt(key, lambda key=key: self._part(key))  # type: ignore[misc]

    def _part(self, key: str) -> None:
        subject, scale, roofline = self.subject, self.scale, self.roofline
        if key == "gap":
            self.data["gap"] = workloads.gap(subject, length=min(32768, subject.max_len - 64))
        elif key == "offline256":
            found = workloads.offline(subject, scale.offline, self.energy.read)
            self.data[key] = found
            inputs, outputs = workloads.offline_lengths(scale.offline, subject.max_len)
            if roofline.possible:
                self._beside(key, found["out_tok_s"], sum(outputs) / roofline.batch(inputs, outputs))
        elif key == "prefill_tok_s":
            prompts = [1024] * scale.prefill
            rates = workloads.prefill(subject, scale.prefill, scale.repeats)
            floor = sum(prompts) / roofline.prefill(prompts) if roofline.possible else None
            self._median(key, rates, floor)
        elif key.startswith("decode_b"):
            streams = int(key.split("_")[1][1:])
            tokens = scale.decode[streams]
            rates, requests = workloads.decode(subject, streams, tokens, scale.repeats)
            if subject.config.is_moe and subject.uniform_routing:
                mean = workloads.count_experts(subject, requests, min(tokens, 16))
                assert roofline.distinct is not None
                roofline.distinct[streams] = self.data["experts"][key] = mean
            floor = streams * tokens / roofline.decode([128] * streams, 16, 16 + tokens) if roofline.possible else None
            self._median(key, rates, floor)
        else:
            length = int(key.split("_")[1])
            if length not in scale.ttft or length >= subject.max_len:
                self.data[key] = None  # more than this device or this model's context can do
                return
            times = workloads.ttft(subject, length, scale.ttft_runs)
            self._median(key, times, roofline.prefill([length]) * 1e3 if roofline.possible else None)

    def _streams(self, streams: int) -> None:
        if streams > 8 and self.subject.device.type == "cpu":
            return
        tokens = 64
        rate = workloads.streams_point(self.subject, streams, tokens)
        point = {"streams": streams, "tok_s": rate}
        if self.roofline.possible:
            point["floor_tok_s"] = streams * tokens / self.roofline.decode([128] * streams, 16, 16 + tokens)
        self.data["curves"]["streams"].append(point)

    def _context(self, context: int) -> None:
        tokens = 64
        length = min(context, self.subject.max_len - tokens - 1)  # the answer must fit, too
        if length < context - tokens - 1 or (context > 4096 and self.subject.device.type == "cpu"):
            return
        first, rate = workloads.context_point(self.subject, length, tokens)
        point = {"context": context, "ttft_ms": first, "tok_s": rate}
        if self.roofline.possible:
            point["floor_ttft_ms"] = self.roofline.prefill([length]) * 1e3
            point["floor_tok_s"] = tokens / self.roofline.decode([length], 1, 1 + tokens)
        self.data["curves"]["contexts"].append(point)

    def _median(self, key: str, samples: list[float], floor: float | None) -> None:
        self.data[key] = statistics.median(samples)
        self.data["samples"][key] = samples
        if floor is not None:
            self._beside(key, self.data[key], floor)

    def _beside(self, key: str, value: float, floor: float) -> None:
        self.data["floor"][key] = floor
        self.data["share"][key] = floor / value if key.endswith("_ms") else value / floor


def void(value: object) -> None:
    """Nothing: for work whose result is not wanted."""


# For people


def rows(result: Result) -> list[tuple[str, str, str, str]]:
    """(key, ours, floor, share of the floor) of everything that was measured, as text."""
    out = []
    for key in (*READY_KEYS, *(key for key in KEYS if key != "ready_s")):
        value = result.get(key)
        if isinstance(value, dict):
            value = value["out_tok_s"]
        if value is None:
            continue
        floor, share = result.get("floor", {}).get(key), result.get("share", {}).get(key)
        out.append(
            (key, figure(value), "" if floor is None else figure(floor), "" if share is None else f"{share:.0%}")
        )
    joules = (result.get("offline256") or {}).get("joules_per_out_tok")
    if joules is not None:
        out.append(("joules_per_out_tok", figure(joules), "", ""))
    for key, value in (result.get("gap") or {}).items():
        out.append((f"gap {key}", figure(value), "", ""))
    for key, value in (result.get("experts") or {}).items():
        out.append((f"experts {key}", figure(value), "", ""))
    return out


def figure(value: float) -> str:
    """Three significant digits or a whole number: 4.32, 25.6, 18,294."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(prog="python -m qwen3.evaluate.bench", description=(__doc__ or "").split("\n")[0])
    out.add_argument("model", help="0.6B … 235B-A22B, embedded, or a checkpoint folder")
    out.add_argument("out", nargs="?", help="file for the JSON object; none: stdout")
    out.add_argument("--only", help=f"comma-separated keys of {', '.join(KEYS)}; 'none' for none")
    out.add_argument("--kv-dtype", choices=["fp8"])
    out.add_argument("--weights", choices=QUANTIZATIONS)
    out.add_argument("--invariant", action="store_true", help="batch-invariant mode")
    out.add_argument("--curves", action="store_true", help="speed against streams 1-1,024 and context 1k-128k")
    out.add_argument("--gap", action="store_true", help="time between tokens while a 32k prompt is computed")
    out.add_argument("--device")
    out.add_argument("--dtype", choices=["bfloat16", "float16", "float32"])
    out.add_argument("--max-batch", type=int, default=256)
    out.add_argument("--max-len", type=int)
    out.add_argument("--budget", type=float, help="seconds after which it ends with what it has")
    return out


def keys_of(text: str | None) -> list[str] | None:
    """The keys a comma-separated list names ('none': no key); None for None."""
    return None if text is None else [] if text == "none" else [key.strip() for key in text.split(",")]


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--child"]:
        run_child(json.loads(arguments[1]), Path(arguments[2]))
        return 0
    options = parser().parse_args(arguments)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        result = measure(
            options.model,
            device=options.device,
            dtype=options.dtype,
            only=keys_of(options.only),
            kv_dtype=options.kv_dtype,
            weights=options.weights,
            invariant=options.invariant,
            curves=options.curves,
            gap=options.gap,
            max_batch=options.max_batch,
            max_len=options.max_len,
            budget=options.budget,
            command=shlex.join(["python", "-m", "qwen3.evaluate.bench", *arguments]),
            say=say,
        )
    except Qwen3Error as error:
        say(f"error: {' '.join(str(error).split())}")
        return error.exit_code
    text = json.dumps(result, indent=1)
    if options.out:
        Path(options.out).write_text(text + "\n", encoding="utf-8")
        for row in rows(result):
            say(f"{row[0]:24}{row[1]:>12}{row[2]:>12}{row[3]:>7}")
    else:
        print(text)
    for name, why in result["errors"].items():
        say(f"{name}: {why}")
    return 1 if result["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
