"""Write the embedded model's card from measured files: python -m recipes.embedded_v1.card --parts OUT"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen3.tasks import FAMILIES
from recipes.embedded_v1.campaign import PARTS

FOLDER = Path("src/qwen3/data/embedded")


def cell(entry: Mapping[str, Any]) -> str:
    low, high = entry["interval"]
    return f"{entry['percent']:.1f} ({low:.1f} to {high:.1f})"


def card(evaluation: Mapping[str, Any], parts: Sequence[Mapping[str, Any]], corpus: Mapping[str, Any]) -> str:
    e = evaluation
    rows = []
    for name, row in e["families"].items():
        by_level = (" ".join(f"{v:.0f}" for v in row["levels"][mode]) for mode in ("thinking", "direct"))
        cells = (name, cell(row["thinking"]), cell(row["direct"]), f"{row['auto']['percent']:.1f}", *by_level,
                 f"{row['thinking_tokens']:.0f}")  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    means = " | ".join(f"{e['mean'][mode]:.1f}" for mode in ("thinking", "direct", "auto"))
    points = e["curve"]["points"]
    head = " | ".join("no limit" if p["budget"] is None else str(p["budget"]) for p in points)
    sources = [
        f"| {s['source']} | {s['characters'] / 1e6:.1f} | {s['license']} |" for s in corpus["sources"] if s["passages"]
    ]
    trained = [
        (name, stage) for part in parts for name, stage in part["stages"].items() if stage and stage.get("tokens")
    ]
    stages = "\n".join(f"| {name} | {s['tokens'] / 1e6:.0f} | {s['seconds'] / 60:.1f} |" for name, s in trained)
    minutes = sum(part["seconds"] for part in parts) / 60
    what = "\n".join(f"* {name}: {(type(task).__doc__ or '').splitlines()[0]}" for name, task in FAMILIES.items())
    return f"""# Wren, the embedded demonstration model, v1

18.4M parameters in the Qwen3 architecture (d 512, 6 layers, 4 query and 2 key/value heads of 128, FFN 1,024, tied),
vocabulary: the first 8,192 ranks of the Qwen3 tokenizer and its 26 control tokens; context 4,096. Trained by this
project, so that every feature of the package can be tried without a network. For real work: `qwen3 run qwen3:0.6b`.

## What it can do

{what}
* tool calls in the Hermes form, numbers as JSON, small talk, and about three thousand small facts.

Accuracy in percent with 95 % intervals (Wilson) on {e["problems"]:,} held-out problems, one sample each at temperature
0.6, top-p 0.95, top-k 20; the same problems in all modes. Levels: from easy to hard. Tokens: mean length of a thought.

| family | thinking | direct | auto | thinking by level | direct by level | tokens |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}
| mean | {means} | | | |

Accuracy by thinking budget, {points[0]["of"]:,} problems each:

| {head} |
|{"---|" * len(points)}
| {" | ".join(f"{p['percent']:.1f}" for p in points)} |

| property | percent |
|---|---|
| thinking closes by itself | {cell(e["closes"])} |
| `/think` and `/no_think` are obeyed | {100 * e["obedience"]["obeyed"]:.1f} |
| facts of single digits, thinking; all of them occur in training | {cell(e["facts"]["thinking"])} |
| facts of single digits, direct | {cell(e["facts"]["direct"])} |
| `auto`: of thinking's accuracy | {100 * e["auto"]["accuracy"]:.1f} |
| `auto`: of thinking's tokens | {100 * e["auto"]["tokens"]:.1f} |
| small talk (64 prompts, both modes, lenient checks; many of them occur in training) | {cell(e["talk"])} |
| held-out tool calls, name and arguments exact | {cell(e["tools"])} |
| a number as JSON, asked for | {cell(e["json"])} |
| a number under a schema, without being told | {cell(e["schema"])} |

## What it cannot do

Anything else: world knowledge, other languages, writing, code, word problems, numbers larger than in the families.
Outside its skills it makes things up, or says that it is small. Without a thought it knows easy problems and guesses at
hard ones. Do not rely on its answers.

## Data and cost

Problems and worked traces are generated while training runs; a hash of the problem keeps 2 % of all problems for
evaluation, in every wording and family (facts of single digits apart: all are trained). Dialogue and tool conversations
come from templates written for this project. Plain text, {corpus["characters"] / 1e6:.1f} million characters:

| source | million characters | licence |
|---|---|---|
{chr(10).join(sources)}

| stage | million tokens | minutes |
|---|---|---|
{stages}

One {parts[0]["machine"]["device"]}, {minutes:.1f} minutes in all, compilation and measuring included. Recipe:
`recipes/embedded_v1/`. Measured files: `benchmarks/`. Licence of the weights: Apache-2.0.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=Path, required=True, help="folder with part-A.json … and evaluation.json")
    parser.add_argument("--corpus", type=Path, default=Path("runs/text/report.json"))
    parser.add_argument("--out", type=Path, default=FOLDER / "README.md")
    args = parser.parse_args()
    parts = [json.loads((args.parts / f"part-{name}.json").read_text()) for name in PARTS]
    evaluation = json.loads((args.parts / "evaluation.json").read_text())
    args.out.write_text(card(evaluation, parts, json.loads(args.corpus.read_text())))


if __name__ == "__main__":
    main()
