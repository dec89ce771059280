#!/usr/bin/env python3
"""The embedded model in many formats: what each weighs, how far it is from the original, what it still answers.

python tools/quality_table.py measure OUT.json --work FOLDER   # what OUT.json lacks; --only NAME, --again for some
python tools/quality_table.py speed OUT.json --work FOLDER     # all that were measured, in turn; --only NAME
python tools/quality_table.py page                   # the newest file in benchmarks/ as a table into the page
python tools/quality_table.py page --check           # changes nothing; exit code 1 if it would not stay as it is
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tools")]

from marked_page import between, renew  # noqa: E402 (the path is set above)

from qwen3 import LLM  # noqa: E402
from qwen3.checkpoint.journal import write_atomic  # noqa: E402
from qwen3.errors import Qwen3Error  # noqa: E402

PAGE, BENCHMARKS = ROOT / "docs/quantization.md", ROOT / "benchmarks"
KIND = "quality-embedded"
BEGIN, END = "<!-- quality table -->\n", "<!-- end -->\n"
REFERENCE = "embedded"


class Format(NamedTuple):
    """load: what stands behind the name's +; else words: of `qwen3 quantize MODEL`."""

    name: str
    load: str = ""
    words: tuple[str, ...] = ()


def _gguf(kind: str) -> Format:
    return Format(f"GGUF {kind}", words=("gguf", "--type", kind.lower()))


FORMATS = (
    Format("bfloat16", "bfloat16"),
    Format("`--weights int8`", "int8"),
    Format("`--weights int4`", "int4"),
    *(_gguf(kind) for kind in ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K", "Q4_0", "IQ4_NL")),
    Format("GPTQ, 4 bits", words=("gptq", "--bits", "4")),
    Format("GPTQ, 3 bits", words=("gptq", "--bits", "3")),
    Format("GPTQ, 2 bits", words=("gptq", "--bits", "2", "--samples", "32")),
    Format("AWQ, 4 bits", words=("awq", "--bits", "4", "--samples", "32")),
    Format("nearest, 4 bits", words=("rtn", "--bits", "4")),
    Format("nearest, 3 bits", words=("rtn", "--bits", "3")),
    Format("nearest, 2 bits", words=("rtn", "--bits", "2")),
    Format("W8A8", words=("w8a8", "--samples", "32")),
    Format("FP8, blocks", words=("fp8",)),
    _gguf("IQ4_XS"),
    _gguf("Q5_0"),
    Format("FP8, rows", words=("fp8", "--fp8-scale", "channel")),
    _gguf("TQ2_0"),
)


def measure(out: Path, folder: Path, formats: Sequence[Format], again: bool, command: str) -> int:
    """Writes the models into `folder`, and `out` after each of them, so that what was measured stays."""
    from qwen3.evaluate.difference import differences
    from qwen3.evaluate.measured import Settings

    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"formats": {}}
    todo = [one for one in formats if again or "error" in found["formats"].get(one.name, {"error": ""})]
    settings = Settings(problems=96, tokens=4096, max_tokens=640, speed=False)
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {line}", file=sys.stderr, flush=True)

    made: list[Format] = []

    def names() -> Iterator[str]:
        for one in todo:
            say(one.name)
            try:
                place = _place(one, folder)
                if not one.load:
                    _write(one, place)
            except Qwen3Error as error:
                say(f"{one.name}: {error}")
                _keep(found, one.name, {"error": str(error)}, out)
                continue
            made.append(one)
            yield place

    for result in differences(REFERENCE, names(), settings, say, command) if todo else ():
        row = result.to_dict()
        found.update(row.pop("head"), reference=found.get("reference", {}) | row.pop("reference"))
        row["variant"]["name"] = made[-1].name
        _keep(found, made[-1].name, row | {"load": made[-1].load, "command": _command(made[-1])}, out)
    return 1 if any("error" in row for row in found["formats"].values()) else 0


def _keep(found: dict[str, Any], name: str, row: dict[str, Any], out: Path) -> None:
    found["formats"][name] = row
    write_atomic(out, [json.dumps(found, indent=1).encode(), b"\n"])


def _command(one: Format) -> str:
    return "" if one.load else shlex.join(["qwen3", "quantize", REFERENCE, *one.words])


def _place(one: Format, folder: Path) -> str:
    """What the model is called for `LLM`, or rather for `qwen3 diff`."""
    if one.load:
        return f"{REFERENCE}+{one.load}"
    return str(folder / ("-".join(word.strip("-") for word in one.words) + ".gguf" * (one.words[0] == "gguf")))


def _write(one: Format, place: str) -> None:
    words = [sys.executable, "-m", "qwen3", "quantize", REFERENCE, *one.words, "--out", place, "--force", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT / "src")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")] or [f"code {done.returncode}"]
        raise Qwen3Error(lines[-1].removeprefix("error: "))


def speed(out: Path, folder: Path, chosen: Sequence[Format], rounds: int) -> int:
    """Tokens a second, one stream, of those that `out` has: all are loaded and take turns. 64 tokens take what 80 take
    less what 16 take, each the best of all rounds, since what else the machine does only slows. A rate is the ratio to
    the reference's in this very run, times the reference's that `out` has, if any: a later run may have less of the
    machine."""
    from qwen3.evaluate.measured import meant
    from qwen3.evaluate.workloads import Subject

    found = json.loads(out.read_text(encoding="utf-8"))
    formats = [one for one in chosen if "error" not in found["formats"].get(one.name, {"error": ""})]
    subjects, seconds = [], {(i, tokens): float("inf") for i in range(len(formats) + 1) for tokens in (16, 80)}
    for place in (REFERENCE, *(_place(one, folder) for one in formats)):
        model, weights, dtype = meant(place)
        llm = LLM(
            model, "cpu", dtype, context=512, weights=weights, max_batch=8, prefix_cache=False, prefill_ahead=False
        )
        subjects.append(Subject.of(llm))
    for turn in range(rounds):
        print(f"round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
        for i, tokens in seconds:
            seconds[i, tokens] = min(seconds[i, tokens], subjects[i].generate([128], [tokens]))
    best = [64 / max(seconds[i, 80] - seconds[i, 16], 1e-9) for i in range(len(subjects))]
    if len(formats) == len(found["formats"]) or "speed" not in found["reference"]:
        found["reference"]["speed"] = {"1": best[0]}
    for one, rate in zip(formats, best[1:], strict=True):
        ratio = rate / best[0]
        found["formats"][one.name]["variant"]["speed"] = {"1": ratio * found["reference"]["speed"]["1"]}
        found["formats"][one.name]["speed"] = {"1": ratio}
    write_atomic(out, [json.dumps(found, indent=1).encode(), b"\n"])
    return 0


# The page


def table(data: dict[str, Any], name: str) -> Iterator[str]:
    """Lines of Markdown: the reference, then the formats by the bits they take, most first."""
    settings, reference = data["settings"], data["reference"]
    yield (
        f"The embedded model ({reference['parameters'] / 1e6:.1f} M weights, computed in float32 from its bfloat16 "
        f"file), {settings['problems']} held-out problems in each mode, the same seeds for all, at most "
        f"{settings['max_tokens']} tokens; KL over {settings['tokens']:,} tokens of its own answers. In brackets: 95 % "
        "intervals; *: apart from the reference by McNemar's test at 95 %. Speed: one stream, best of several rounds "
        f"in which all took turns, on a machine that others used ({data['machine'].get('cpu', '?')}, "
        f"{data['machine'].get('cores')} cores, one thread): "
        f"differences below a third are noise, and FP8 is widened here, so it runs as the reference does. "
        f"File: [{name}](../benchmarks/{name})."
    )
    yield ""
    yield (
        "| format | bits a weight | file, MB | memory, MB | perplexity | KL, mean | same token | right, thinking | "
        "right, direct | tokens thought | tokens a right answer, thinking | tok/s | written as |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    yield _row("**float32** (reference)", reference, {})
    rows = {key: row for key, row in data["formats"].items() if "error" not in row}
    for key, row in sorted(rows.items(), key=lambda item: -_bits(item[1]["variant"], item[1]["load"])):
        yield _row(key, row["variant"], row)
    failed = [f"{key} ({row['error']})" for key, row in data["formats"].items() if "error" in row]
    if failed:
        yield ""
        yield f"Not measured: {'; '.join(failed)}."


def _bits(model: dict[str, Any], load: str = "") -> float:
    """Of what was rounded when it was loaded: in memory; else in the file."""
    return float(model["memory_bits_per_weight" if load in ("int8", "int4") else "bits_per_weight"])


def _row(name: str, model: dict[str, Any], row: dict[str, Any]) -> str:
    load, tasks = row.get("load", ""), model["tasks"]
    spread = row.get("divergence", {}).get("answers")
    cells = [
        name,
        f"{_bits(model, load):.2f}",
        "" if load else f"{model['disk_bytes'] / 1e6:.1f}",
        f"{model['memory_bytes'] / 1e6:.1f}",
        _digits(model["text"]["perplexity"]),
        f"{spread['mean']:.2g}" if spread else "",
        f"{100 * spread['agreement']:.1f} %" if spread else "",
        *(_right(tasks[mode], row.get("tasks", {}).get(mode)) for mode in ("thinking", "direct")),
        f"{tasks['thinking']['thinking_tokens']:.0f}",
        _each(tasks["thinking"]),
        f"{model['speed']['1']:.0f}" if "speed" in model else "–",
        "" if load else ", ".join(f"{kind} {_share(size, model)}" for kind, size in model["stored"].items()),
    ]
    return f"| {' | '.join(cells)} |"


def _share(size: int, model: dict[str, Any]) -> str:
    return f"{size / sum(model['stored'].values()):.0%}"


def _digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}" if value < 10 else f"{value:,.0f}"


def _right(alone: dict[str, Any], pair: dict[str, Any] | None) -> str:
    low, high = alone["interval"]
    return f"{alone['percent']:.0f} % ({low:.0f} to {high:.0f}){'*' if pair and pair['p'] < 0.05 else ''}"


def _each(alone: dict[str, Any]) -> str:
    if alone["tokens_per_right"] is None:
        return "none right"
    low, high = ("∞" if bound is None else f"{bound:,.0f}" for bound in alone["tokens_per_right_interval"])
    return f"{alone['tokens_per_right']:,.0f} ({low} to {high})"


def made(text: str) -> str:
    """The page with what is between its marks made anew. Raises ValueError for a page without them."""
    files = sorted(BENCHMARKS.glob(f"20??-??-??-{KIND}.json"))
    lines = table(json.loads(files[-1].read_text(encoding="utf-8")), files[-1].name) if files else ()
    return between(PAGE, text, BEGIN, END, lines)


def page(check: bool) -> int:
    return renew(PAGE, ROOT, made(PAGE.read_text(encoding="utf-8")), check)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("measure", "speed"):
        one = verbs.add_parser(verb)
        one.add_argument("out", type=Path)
        one.add_argument("--work", type=Path, required=True, help="folder of the models that are written")
        one.add_argument("--only", action="append", help="a format's name; may be repeated")
    one.add_argument("--rounds", type=int, default=5)
    one = verbs.choices["measure"]
    one.add_argument("--again", action="store_true", help="also what OUT has")
    verbs.add_parser("page").add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.verb == "page":
        return page(options.check)
    unknown = {*(options.only or ())} - {format.name for format in FORMATS}
    if unknown:
        parser.error(f"no format {', '.join(sorted(unknown))}; there are {', '.join(f.name for f in FORMATS)}")
    chosen = [format for format in FORMATS if not options.only or format.name in options.only]
    if options.verb == "speed":
        return speed(options.out, options.work, chosen, options.rounds)
    return measure(options.out, options.work, chosen, options.again, shlex.join(["python", *sys.argv]))


if __name__ == "__main__":
    sys.exit(main())
