"""Write the embedded model's card from measured files: python -m recipes.embedded_v0.card"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from qwen3.tasks import FAMILIES

FOLDER = Path("src/qwen3/data/embedded")


def cell(entry: dict[str, Any]) -> str:
    low, high = entry["interval"]
    return f"{entry['percent']:.1f} ({low:.1f} to {high:.1f})"


def card(evaluation: dict[str, Any], training: dict[str, Any], corpus: dict[str, Any]) -> str:
    e = evaluation
    rows = []
    for name, row in e["families"].items():
        kind = "steps" if row["needs_steps"] else "control"
        by_level = " ".join(f"{v:.0f}" for v in e["levels"][name]["on"])
        cells = (name, kind, cell(row["thinking"]), cell(row["direct"]), by_level, f"{row['thinking_tokens']:.0f}")
        rows.append(f"| {' | '.join(cells)} |")
    sources = [
        f"| {s['source']} | {s['characters'] / 1e6:.1f} | {s['license']} |" for s in corpus["sources"] if s["passages"]
    ]
    minutes = sum(phase["seconds"] for phase in training["phases"]) / 60
    tokens = sum(phase["tokens"] for phase in training["phases"])
    touched = ", ".join(f"{n} {c}" for n, c in e["overlap"]["with_shared_run"].items())
    what = "\n".join(f"* {name}: {(type(task).__doc__ or '').splitlines()[0]}" for name, task in FAMILIES.items())
    return f"""# Wren, the embedded demonstration model

18.4M parameters in the Qwen3 architecture (d 512, 6 layers, 4 query and 2 key/value heads of 128, FFN 1,024, tied),
vocabulary: the first 8,192 ranks of the Qwen3 tokenizer and its 26 control tokens; context 4,096. Trained by this
project, so that every feature of the package can be tried without a network. For real work: `qwen3 run qwen3:0.6b`.

## What it can do

{what}
* tool calls in the Hermes form, small talk, and about three thousand small facts.

Accuracy in percent with 95 % intervals (Wilson) on {e["problems"]:,} held-out problems, one sample each at temperature
0.6, top-p 0.95, top-k 20; the same problems in both modes. Levels: thinking, from easy to hard. Tokens: mean length of
the thought.

| family | kind | thinking | direct | thinking by level | tokens |
|---|---|---|---|---|---|
{chr(10).join(rows)}
| mean | | {e["mean"]["thinking"]:.1f} | {e["mean"]["direct"]:.1f} | | |
| mean of step tasks | | {e["steps"]["thinking"]:.1f} | {e["steps"]["direct"]:.1f} | | |
| mean of controls | | {e["controls"]["thinking"]:.1f} | {e["controls"]["direct"]:.1f} | | |

| property | percent |
|---|---|
| thinking closes by itself | {cell(e["thinking_closes"])} |
| thinks when nothing is said | {cell(e["switch_obeyed"]["default thinks"])} |
| answers at once when thinking is off | {cell(e["switch_obeyed"]["off answers at once"])} |
| small talk (64 prompts, both modes, lenient checks; many of them occur in training) | {cell(e["talk"])} |
| held-out tool calls, name and arguments exact | {cell(e["tools"])} |

## What it cannot do

Anything else: world knowledge, other languages, writing, code, word problems, numbers larger than in the families.
Outside its skills it makes things up, or says that it is small. 4×4 sudoku and short reachability it often solves
without a thought, so thinking gains little there. It adds and subtracts three-digit numbers in one step and often slips
(chain, level 1); without a thought even 2 + 2 comes out wrong, since the direct answers it was trained on are those of
long problems; and about one small fact in ten is wrong. Do not rely on its answers.

## Data and cost

Problems and worked traces are generated while training runs; a hash of the problem keeps 2 % of all problems for
evaluation, in every wording. Of {e["problems"]:,} held-out problems {e["overlap"]["same_problem"]} occur among
{e["overlap"]["drawn"]:,} drawn training problems. Held-out problems that share a run of 13 tokens of their statement
with one of those (statements of sudokus and circuits are long and made of few tokens): {touched}.
Dialogue and tool conversations come from templates written for this project. Plain text,
{corpus["characters"] / 1e6:.1f} million characters:

| source | million characters | licence |
|---|---|---|
{chr(10).join(sources)}

{tokens / 1e9:.2f} billion tokens on one {training["device"]} in {minutes:.1f} minutes, compilation included. Recipe:
`recipes/embedded_v0/`. Measured files: `benchmarks/`. Licence of the weights: Apache-2.0.
{training["note"]}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluation", type=Path, required=True)
    parser.add_argument("--training", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True, help="report.json that fetch_text.py wrote")
    args = parser.parse_args()
    read = [json.loads(path.read_text()) for path in (args.evaluation, args.training, args.corpus)]
    (FOLDER / "README.md").write_text(card(*read))


if __name__ == "__main__":
    main()
