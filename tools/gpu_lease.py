#!/usr/bin/env python3
"""Benchmarks on a GPU that is lent for minutes: one child after another, inside a budget whatever happens.

    python tools/gpu_lease.py --models 0.6B,8B,30B-A3B,0.6B:kv8,8B:fp8 --out "$OUT" --budget 240
    python tools/gpu_lease.py --profile 0.6B --out "$OUT" --budget 60

A model may carry variants behind colons: kv8 (FP8 KV cache), fp8 (FP8 weights and KV cache), w8 (FP8 weights), int4 and
int8 (weights in so many bits), invariant, gap, curves; `--only` limits the keys of all of them. Each result goes to
OUT/bench-NAME.json, and all of them to OUT/lease.json. The table, the last thing printed, has ours beside must, aim,
the peer and the floor.
`--profile` prints which kernels the time of decode steps (1, 32, 256 streams) and of a prefill step goes to.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src"
sys.path.insert(0, str(SRC))
VARIANTS = {
    "kv8": ["--kv-dtype", "fp8"],
    "w8": ["--weights", "fp8"],
    "fp8": ["--kv-dtype", "fp8", "--weights", "fp8"],
    "int4": ["--weights", "int4"],
    "int8": ["--weights", "int8"],
    "invariant": ["--invariant"],
    "gap": ["--gap"],
    "curves": ["--curves"],
}
PEER = "2026-11-22-vllm-0.22.1-h100.json"
RESERVE = 6.0  # seconds kept for the table


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(SRC), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def child(command: list[str], seconds: float, log: Path) -> int | None:
    """Exit code, or None if it was ended after `seconds`; its output goes to `log`."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=environment(), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)  # lets it end its own children
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(2)
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


def tail(log: Path, lines: int = 3) -> str:
    text = log.read_text(errors="replace").splitlines() if log.exists() else []
    return " | ".join(line.strip() for line in text if line.strip())[-400:] if lines == 0 else "\n".join(text[-lines:])


def bench(spec: str, options: argparse.Namespace, left: float) -> dict[str, Any]:
    """The result object of one model and its variants; {"errors": …} if nothing came of it."""
    model, *variants = spec.split(":")
    name = spec.replace(":", "-")
    file, log = options.out / f"bench-{name}.json", options.out / f"bench-{name}.log"
    command = [sys.executable, "-m", "qwen3.evaluate.bench", model, str(file), "--budget", f"{max(5.0, left - 3):.0f}"]
    for variant in variants:
        command += VARIANTS[variant]
    only = options.only
    if only is None and set(variants) & {"gap", "curves"} and len(variants) == 1:
        only = "none"
    if only is not None:
        command += ["--only", only]
    started = time.monotonic()
    code = child(command, left, log)
    seconds = time.monotonic() - started
    try:
        result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        result = {"errors": {"bench": "ended: no time left" if code is None else tail(log, 0)}}
    result["seconds"] = round(seconds, 1)
    print(f"{spec}: {seconds:.0f} s, exit code {code}", flush=True)
    return result


def number(value: Any) -> float | None:
    """One number of a result: throughput of a batch, the better end of a peer's range."""
    if isinstance(value, dict):
        value = value.get("out_tok_s")
    if isinstance(value, list):
        value = value[-1]
    return value


def verdict(key: str, ours: float, target: float) -> bool:
    return ours <= target if is_time(key) else ours >= target


def is_time(key: str) -> bool:
    return key.endswith("_ms") or (key.endswith("_s") and not key.endswith("tok_s"))


def short(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(results: dict[str, dict[str, Any]]) -> str:
    """Ours beside must, aim, peer and floor, a line for each figure."""
    targets = json.loads((ROOT / "benchmarks" / "targets.json").read_text(encoding="utf-8"))
    peer = json.loads((ROOT / "benchmarks" / PEER).read_text(encoding="utf-8"))["models"]
    lines = [f"{'':34}{'ours':>9} {'must':>8} {'aim':>8} {'peer':>8} {'floor':>8} share"]
    for spec, result in results.items():
        model = spec.partition(":")[0]
        wanted = targets.get(spec, targets.get(model, {}) if spec == model else {})
        floors, shares = result.get("floor", {}), result.get("share", {})
        keys = [k for k in ("ready_s", "full_speed_s", "ready_warm_s", "full_speed_warm_s") if k in result]
        keys += [k for k in result if k.startswith(("decode_", "ttft_", "prefill_", "offline"))]
        for key in keys:
            ours = number(result[key])
            if ours is None:
                continue
            must, aim = wanted.get(key) or (None, None)
            mark = "" if must is None else "ok" if verdict(key, ours, must) else "MISS"
            mark += "+" if aim is not None and verdict(key, ours, aim) else ""
            theirs = number(peer.get(model, {}).get(key)) if key in peer.get(model, {}) else None
            share = f"{shares[key]:.0%}" if key in shares else ""
            cells = [short(ours), short(must), short(aim), short(theirs), short(floors.get(key))]
            widths = (9, 8, 8, 8, 8)
            row = " ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
            lines.append(f"{spec[:17]:17} {key[:17]:16}{row} {share:>5} {mark}")
        joules = (result.get("offline256") or {}).get("joules_per_out_tok")
        if joules:
            lines.append(f"{spec[:17]:17} J/token {joules:.3f}")
        if result.get("gap"):
            gap = result["gap"]
            lines.append(
                f"{spec[:17]:17} gap ms: before {gap['median_before_ms']:.2f}, p50 {gap['p50_ms']:.2f}, "
                f"p99 {gap['p99_ms']:.2f}, max {gap['max_ms']:.2f}, ratio {gap['ratio']:.2f}, "
                f"{gap['steps']} steps, prefill {gap['prefill_s']:.2f} s"
            )
        for name, points in (result.get("curves") or {}).items():
            key = "streams" if name == "streams" else "context"
            listed = ", ".join(f"{point[key]}: {short(point['tok_s'])}" for point in points)
            lines.append(f"{spec[:17]:17} {name}: {listed}")
        if result.get("ceilings"):
            made = {k.partition("_")[0]: v for k, v in result["ceilings"].items() if v}
            lines.append(f"{spec[:17]:17} ceilings " + ", ".join(f"{k} {v / 1e12:.3g}T" for k, v in made.items()))
        if result.get("experts"):
            lines.append(f"{spec[:17]:17} experts { ({k: round(v, 1) for k, v in result['experts'].items()}) }")
        for name, error in result.get("errors", {}).items():
            lines.append(f"{spec[:17]:17} ERROR {name}: {error[:220]}")
    return "\n".join(lines)


# Which kernels the time goes to


def profile(spec: str, out: Path, top: int) -> None:
    """Runs in a child. Prints, for each kind of step, wall time, time on the device and the longest kernels."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    from qwen3.evaluate.workloads import Settings, Subject

    model, *variants = spec.split(":")
    fp8 = {"kv_dtype": "fp8"} if {"fp8", "kv8"} & set(variants) else {}
    w8 = {"weights": next((kind for kind in ("int4", "int8") if kind in variants), "fp8")}
    w8 = w8 if {"fp8", "w8", "int4", "int8"} & set(variants) else {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = model
    if model == "embedded":
        from qwen3.checkpoint import resolve

        source = str(resolve(None).path)
    subject = Subject(Settings(source, device, invariant="invariant" in variants, **fp8, **w8))
    cuda = device == "cuda"
    activities = [ProfilerActivity.CUDA] if cuda else [ProfilerActivity.CPU]
    found: dict[str, Any] = {}

    def synchronize() -> None:
        if cuda:
            torch.cuda.synchronize()

    def steps(name: str, count: int) -> None:
        engine = subject.engine
        synchronize()
        start = time.perf_counter()
        for _ in range(count):
            engine.advance()
        synchronize()
        wall = (time.perf_counter() - start) / count
        with profiler(activities=activities) as recorded:
            for _ in range(count):
                engine.advance()
            synchronize()
        rows = []
        for event in recorded.key_averages():
            total = event.self_device_time_total if cuda else event.self_cpu_time_total
            if total > 0:
                rows.append((total / count, event.count / count, total / event.count, event.key))
        rows.sort(reverse=True)
        busy = sum(row[0] for row in rows)
        kernels = sum(row[1] for row in rows)
        print(f"\n{spec} {name}: {wall * 1e6:,.0f} us a step, {busy:,.0f} us on the device, {kernels:,.0f} kernels")
        for us, calls, each, key in rows[:top]:
            print(f"{us:10,.1f} us {us / busy:5.1%} {calls:7.1f} x {each:8.2f} us  {key[:88]}")
        sys.stdout.flush()
        found[name] = {"wall_us": wall * 1e6, "device_us": busy, "kernels": kernels, "rows": rows}
        (out / f"profile-{spec.replace(':', '-')}.json").write_text(json.dumps(found, indent=1) + "\n")

    def drain(requests: list[Any]) -> None:
        for request in requests:
            subject.engine.cancel(request.id)
        while subject.engine.has_work:
            subject.engine.advance()

    sizes = (1, 32, 256) if cuda else (1, 4)
    for streams in sizes:
        requests = subject.requests([128] * streams, [512] * streams)
        for request in requests:
            subject.engine.add(request)
        for _ in range(24):
            subject.engine.advance()
        steps(f"decode b{streams}", 16 if cuda else 4)
        drain(requests)
    length, prompts = (1024, 64) if cuda else (256, 4)
    subject.generate([length] * prompts, [1] * prompts)
    requests = subject.requests([length] * prompts, [1] * prompts, seed=3)
    for request in requests:
        subject.engine.add(request)
    steps("prefill", 1)
    drain(requests)


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--models", default="", help="comma-separated, each with :variants")
    options.add_argument("--profile", default="", help="comma-separated models (with :variants) to profile first")
    options.add_argument("--only", help="keys for all models")
    options.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")))
    options.add_argument("--budget", type=float, default=240, help="seconds for everything")
    options.add_argument("--limit", type=float, default=150, help="seconds for one model")
    options.add_argument("--top", type=int, default=14, help="kernels listed for each step")
    options.add_argument("--profile-child", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    if chosen.profile_child:
        profile(chosen.profile_child, chosen.out, chosen.top)
        return 0
    for spec in filter(None, chosen.models.split(",")):
        for variant in spec.split(":")[1:]:
            if variant not in VARIANTS:
                options.error(f"{spec}: no variant {variant!r}; take some of {', '.join(VARIANTS)}")
    deadline = time.monotonic() + chosen.budget - RESERVE
    results: dict[str, dict[str, Any]] = {}
    printed: list[str] = []
    try:
        for spec in filter(None, chosen.profile.split(",")):
            left = min(chosen.limit, deadline - time.monotonic())
            log = chosen.out / f"profile-{spec.replace(':', '-')}.log"
            again = [sys.executable, str(Path(__file__)), "--profile-child", spec, "--out", str(chosen.out)]
            if left > 5:
                code = child([*again, "--top", str(chosen.top)], left, log)
                printed.append(tail(log, 4 * (chosen.top + 2) + 4) + ("" if code == 0 else f"\nexit code {code}"))
        for spec in filter(None, chosen.models.split(",")):
            left = min(chosen.limit, deadline - time.monotonic())
            results[spec] = bench(spec, chosen, left) if left > 8 else {"errors": {"bench": "no time left"}}
            (chosen.out / "lease.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    print("\n".join(printed))
    if results:
        print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
