#!/usr/bin/env python3
"""The figures of docs/performance.md, from benchmarks/*.json: its tables, and charts as SVG.

    python tools/plot_performance.py            # rewrites the page between its marks, and docs/performance-*.svg
    python tools/plot_performance.py --check    # changes nothing; exit code 1 if the page is not what the files say

Ours are files whose "what" is "qwen3 bench"; of several of one model, variant and device the last date counts. The
peer's file holds a "models" object. Nothing on the page is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from qwen3.charts import chart  # noqa: E402 (the path is set above)

BENCHMARKS, DOCS = ROOT / "benchmarks", ROOT / "docs"
PAGE = DOCS / "performance.md"
BEGIN, END = "<!-- begin: made by tools/plot_performance.py -->", "<!-- end -->"
GPU = "H100"
NAMES = {
    "ready_s": "`ready_s`, caches empty",
    "full_speed_s": "`full_speed_s`, caches empty",
    "ready_warm_s": "`ready_warm_s`",
    "full_speed_warm_s": "`full_speed_warm_s`",
    "decode_b1_tok_s": "`decode_b1_tok_s`",
    "decode_b8_tok_s": "`decode_b8_tok_s`",
    "decode_b32_tok_s": "`decode_b32_tok_s`",
    "offline256": "`offline256`, output tok/s",
    "ttft_1024_ms": "`ttft_1024_ms`",
    "ttft_3500_ms": "`ttft_3500_ms`",
    "ttft_32768_ms": "`ttft_32768_ms`",
    "prefill_tok_s": "`prefill_tok_s`",
}
VARIANTS = {"": "", "kv8": "FP8 KV cache", "w8": "FP8 weights", "fp8": "FP8 weights and KV", "invariant": "invariant"}
ORDER = ("0.6B", "1.7B", "4B", "8B", "14B", "32B", "30B-A3B", "235B-A22B", "embedded")
COLOURS = {"ours": "#1565c0", "peer": "#d9730d", "floor": "#8a8a8a"}
Bench = dict[str, Any]


def variant_of(result: Bench) -> str:
    settings = result["settings"]
    kv8, w8 = settings.get("kv_dtype") == "fp8", settings.get("weights") == "fp8"
    name = "fp8" if kv8 and w8 else "kv8" if kv8 else "w8" if w8 else ""
    return "+".join(filter(None, [name, "invariant" if settings.get("invariant") else ""]))


def load(folder: Path = BENCHMARKS) -> tuple[dict[tuple[str, str, str], Bench], Bench, Bench]:
    """(ours by (device, model, variant), the peer's file, targets). Of several files of one key each figure comes from
    the last that has it."""
    ours: dict[tuple[str, str, str], Bench] = {}
    peer: Bench = {}
    found = []
    for path in sorted(folder.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        results = data.values() if path.stem.endswith("-lease") else [data]
        for result in results:
            if isinstance(result, dict) and result.get("what") == "qwen3 bench" and result.get("machine"):
                found.append((result["date"], path.name, result))
            elif isinstance(result, dict) and "models" in result and str(result.get("engine", "")).startswith("vLLM"):
                peer = result
    for _, name, result in sorted(found, key=lambda entry: entry[:2]):
        if result["model"] not in ORDER:
            continue  # somebody's own checkpoint
        key = result["machine"]["device"], result["model"], variant_of(result)
        old = ours.get(key, {})
        merged = {**old, **{k: v for k, v in result.items() if v is not None}, "file": name}
        for part in ("floor", "share", "samples", "curves", "experts"):
            if part in old or part in result:
                merged[part] = {**old.get(part, {}), **result.get(part, {})}
        ours[key] = merged
    targets = json.loads((folder / "targets.json").read_text(encoding="utf-8"))
    return ours, peer, targets


def number(value: Any) -> float | None:
    return value.get("out_tok_s") if isinstance(value, dict) else value


def shown(value: Any) -> str:
    """A number, a range, or a dash: 4.3, 25.6, 18,294, 454–501."""
    if isinstance(value, list):
        return "–".join(shown(part) for part in value)
    value = number(value)
    if value is None:
        return "–"
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def is_time(key: str) -> bool:
    return key.endswith("_ms") or (key.endswith("_s") and not key.endswith("tok_s"))


def bound(key: str, value: float | None) -> str:
    return "" if value is None else f"{'≤' if is_time(key) else '≥'} {shown(value)}"


def table(device: str, model: str, ours: dict[tuple[str, str, str], Bench], peer: Bench, targets: Bench) -> list[str]:
    """One model on one device, its variants in rows of their own."""
    gpu = GPU in device
    theirs = peer.get("models", {}).get(model, {}) if gpu else {}
    lines = ["| | ours | must | aim | vLLM | floor | share |", "|---|---|---|---|---|---|---|"]
    here = {variant: result for (d, m, variant), result in ours.items() if (d, m) == (device, model)}
    variants = [""] + [v for v in (*VARIANTS, *here) if v and (v in here or f"{model}:{v}" in targets)]
    for variant in dict.fromkeys(variants):
        result = here.get(variant, {})
        label = model if gpu else f"{model} (CPU)"
        wanted = targets.get(f"{label}:{variant}" if variant else label, {})
        for key, name in NAMES.items():
            value, goal = result.get(key), wanted.get(key)
            if value is None and goal is None and (variant or key not in theirs):
                continue
            must, aim = goal or (None, None)
            share = result.get("share", {}).get(key)
            suffix = f", {', '.join(VARIANTS.get(part, part) for part in variant.split('+'))}" if variant else ""
            cells = [
                f"{name}{suffix}",
                f"**{shown(value)}**" if value is not None else "–",
                bound(key, must),
                bound(key, aim),
                shown(theirs[key]) if key in theirs and not variant else "",
                shown(result.get("floor", {}).get(key)) if share is not None else "",
                f"{share:.0%}" if share is not None else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def notes(model: str, result: Bench) -> list[str]:
    """Lines under a table: energy, experts, the gap."""
    out = []
    joules = (result.get("offline256") or {}).get("joules_per_out_tok")
    if joules:
        out.append(f"* {joules * 1e3:,.1f} mJ an output token in `offline256`, by NVML's counter.")
    if result.get("experts"):
        parts = ", ".join(f"{value:.1f} (`{key}`)" for key, value in result["experts"].items())
        out.append(f"* Distinct experts a layer and step, counted: {parts}.")
    gap = result.get("gap")
    if gap:
        out.append(
            f"* Time between tokens of {gap['streams']} streams: {gap['median_before_ms']:.2f} ms (median); while a "
            f"prompt of {gap['prompt']:,} tokens is computed p50 {gap['p50_ms']:.2f}, p99 {gap['p99_ms']:.2f}, longest "
            f"{gap['max_ms']:.2f} ms: p99 is {gap['ratio']:.1f} × the median."
        )
    return out


def ceilings(ours: Bench, peer: Bench) -> list[str]:
    """The two machines' ceilings, and whether they are the same kind."""
    mine, theirs = ours.get("ceilings") or {}, peer.get("ceilings") or {}
    shared = [key for key in theirs if mine.get(key)]
    if not shared:
        return []
    lines = ["| ceiling | ours | the peer's machine | |", "|---|---|---|---|"]
    for key in shared:
        unit = "TB/s" if "bytes" in key else "TFLOP/s"
        ratio = mine[key] / theirs[key]
        name = key.partition("_")[0]
        lines.append(
            f"| {name} | {mine[key] / 1e12:,.2f} {unit} | {theirs[key] / 1e12:,.2f} {unit} | {ratio - 1:+.1%} |"
        )
    return [*lines, ""]


# Charts


def charts(ours: dict[tuple[str, str, str], Bench], peer: Bench) -> dict[str, str]:
    """File name -> SVG: one for each curve of each model on a GPU."""
    made: dict[str, str] = {}
    for (device, model, variant), result in ours.items():
        if variant or GPU not in device:
            continue
        theirs = peer.get("models", {}).get(model, {})
        name = model.lower().replace(".", "_")
        for kind, points in (result.get("curves") or {}).items():
            key = "streams" if kind == "streams" else "context"
            if len(points) < 2:
                continue
            series = [("ours", COLOURS["ours"], [(p[key], p["tok_s"]) for p in points])]
            floors = [(p[key], p["floor_tok_s"]) for p in points if p.get("floor_tok_s")]
            if floors:
                series.append(("floor", COLOURS["floor"], floors))
            if kind == "streams":
                marks = [(n, theirs.get(f"decode_b{n}_tok_s")) for n in (1, 8, 32)]
                known = [(n, v[-1] if isinstance(v, list) else v) for n, v in marks if v]
                if known:
                    series.append((peer["engine"], COLOURS["peer"], known))
            x_label = "streams" if kind == "streams" else "tokens in the cache, one stream"
            title = f"Qwen3-{model}, {device}: decode"
            made[f"performance-{name}-{kind}.svg"] = chart(title, x_label, "tokens/s", series)
    return made


def page(ours: dict[tuple[str, str, str], Bench], peer: Bench, targets: Bench) -> str:
    """What stands between the marks."""
    out: list[str] = []
    devices = sorted({device for device, _, _ in ours}, key=lambda name: (GPU not in name, name))
    if not any(GPU in device for device in devices):
        devices.insert(0, peer["machine"]["device"])
    drawn = charts(ours, peer)
    for device in devices:
        out += [f"## {'CPU' if device == 'cpu' else device}", ""]
        own = [result for (d, _, _), result in ours.items() if d == device]
        if own:
            last = max(own, key=lambda result: result["date"])
            machine = last["machine"]
            where = machine["cpu"] if device == "cpu" else f"driver {machine['driver']}, CUDA {machine['cuda']}"
            files = ", ".join(f"[{name}](../benchmarks/{name})" for name in sorted({r["file"] for r in own}))
            out += [f"Ours: {last['engine']}, torch {machine['torch']}, {where}. Files: {files}.", ""]
        if GPU in device:
            out += [f"Peer: {peer['engine']}, torch {peer['machine']['torch']}, {peer['date']}. {peer['how']}", ""]
            if own:
                out += ceilings(max(own, key=lambda result: result["date"]), peer)
        wanted = [model for model in ORDER if any((d, m) == (device, model) for d, m, _ in ours)]
        if GPU in device:
            wanted = [m for m in ORDER if m in wanted or m in targets]
        for model in wanted:
            out += [f"### {'Embedded model' if model == 'embedded' else f'Qwen3-{model}'}", ""]
            out += [*table(device, model, ours, peer, targets), ""]
            below = notes(model, ours.get((device, model, ""), {}))
            out += [*below, ""] if below else []
            name = model.lower().replace(".", "_")
            for file in (f"performance-{name}-{kind}.svg" for kind in ("streams", "contexts")):
                if GPU in device and file in drawn:
                    out += [f"![{model}: {file.rsplit('-', 1)[1].removesuffix('.svg')}]({file})", ""]
    return "\n".join(out).rstrip() + "\n"


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--check", action="store_true")
    check = options.parse_args().check
    ours, peer, targets = load()
    text = PAGE.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        print(f"error: {PAGE} must have one line {BEGIN} and one {END}", file=sys.stderr)
        return 1
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    wanted = {PAGE: f"{head}{BEGIN}\n{page(ours, peer, targets)}{END}{tail}"}
    wanted |= {DOCS / name: svg for name, svg in charts(ours, peer).items()}
    stale = [p for p, content in wanted.items() if not p.exists() or p.read_text(encoding="utf-8") != content]
    for path in stale:
        if not check:
            path.write_text(wanted[path], encoding="utf-8")
        print(f"{'stale' if check else 'written'}: {path.relative_to(ROOT)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
