"""The whole of v1 on one GPU, in parts that fit a lease. For each: check → train → measure → JSON and pieces.

    python -m recipes.embedded_v1.campaign A --out OUT             # general                       ≤ 7 min
    python -m recipes.embedded_v1.campaign B --out OUT             # reason, long, cold            ≤ 8 min
    python -m recipes.embedded_v1.campaign C --out OUT             # rl, sampled                   ≤ 6 min
    python -m recipes.embedded_v1.campaign D --out OUT --before V0 # fusion, polish, the verdict   ≤ 5 min
    python -m recipes.embedded_v1.campaign all --out OUT --before V0 # one after the other, as far as it comes
    python -m recipes.embedded_v1.campaign release --out OUT       # the model out of part D's pieces, anywhere
    python -m recipes.embedded_v1.campaign --tiny --out OUT        # all of it in toy size, on a CPU

The run lives in `--run` (runs/embedded_v1); a part that was cut off goes on there, from its last checkpoint, when the
same command is given again. OUT gets `part-X.json`, `log-X.jsonl.xz` and the weights after the part as
`part-X.000`, … of at most 15 MiB, with their SHA-256 in the JSON. On a machine that has no run, `--start OUT` takes
the part before from its pieces: what is lost is only the optimiser's state, which no part takes over from another.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import io
import json
import lzma
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from qwen3 import LLM
from qwen3.checkpoint import save_checkpoint
from qwen3.checkpoint.journal import write_atomic
from qwen3.errors import CorruptFileError, UsageError
from qwen3.evaluate.machine import commit, describe
from qwen3.model.load import best_device
from qwen3.train.run import Run
from qwen3.train.start import prepare, train
from recipes.embedded_v1.evaluate import Scale, measure, modes, skills, table, verdict, write
from recipes.embedded_v1.stages import FULL, GENERATION, TINY, Size, build
from recipes.embedded_v1.text import build as build_text

PARTS = {"A": ("general",), "B": ("reason", "long", "cold"), "C": ("rl", "sampled"), "D": ("fusion", "polish")}
LAST = "D"
MINUTES = {"A": 7.0, "B": 8.0, "C": 6.0, "D": 5.0}
PIECE = 15 << 20
QUICK = Scale(family=24, curve=0, obedience=40, conversations=40, facts=100)
TINY_SCALE = Scale(family=1, curve=0, obedience=2, conversations=2, facts=2, max_tokens=8)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Campaign:
    """out: what comes back. run: the recipe's folder. text: passages of `fetch_text.py`; None: none."""

    out: Path
    run: Path
    size: Size = FULL
    text: str | None = "runs/text"
    device: str = ""
    say: Say = print

    @property
    def tiny(self) -> bool:
        return self.size is TINY

    def part(self, name: str, minutes: float | None = None, before: Path | None = None) -> dict[str, Any]:
        """Run a part; returns its report, which is written, too. Raises UsageError where the part before is missing."""
        began = time.monotonic()
        self.out.mkdir(parents=True, exist_ok=True)
        self.check(name)
        shards = None
        if self.text is not None:
            shards = self.run.with_name(self.run.name + "-shards")  # `train` wants a folder of its own
            build_text(self.text, shards)
        recipe = build(self.size, shards, self.run, device=self.device, max_minutes=minutes)
        wanted = [stage for part in list(PARTS)[: list(PARTS).index(name) + 1] for stage in PARTS[part]]
        stages = tuple(stage for stage in recipe.stages if stage.name in wanted)
        self.say(f"part {name} after {time.monotonic() - began:.0f} s: {', '.join(PARTS[name])}")
        result = train(replace(recipe, stages=stages), self.say)
        found: dict[str, Any] = {
            "what": f"embedded model v1, part {name}", "commit": commit(), "date": time.strftime("%Y-%m-%d"),
            "command": f"python -m recipes.embedded_v1.campaign {name}",
            "machine": describe(torch.device(self.device) if self.device else best_device()),
            "finished": result["finished"], "stages": {s: result["stages"].get(s) for s in PARTS[name]},
        }  # fmt: skip
        if result["finished"]:
            found |= self.measured(name, str(result["model"]), before)
        found["seconds"] = round(time.monotonic() - began, 1)
        write(self.run / f"part-{name}.json", found)  # later parts want it, wherever OUT is by then
        found["pieces"] = self.pieces(name, wanted)
        write_atomic(self.out / f"log-{name}.jsonl.xz", [lzma.compress((self.run / "log.jsonl").read_bytes())])
        write(self.out / f"part-{name}.json", found)
        self.say(f"part {name}: {found['seconds']:.0f} s, {'finished' if result['finished'] else 'give it again'}")
        return found

    def check(self, name: str) -> None:
        done = Run(self.run, say=self.say).done()
        earlier = [stage for part in list(PARTS)[: list(PARTS).index(name)] for stage in PARTS[part]]
        if missing := [stage for stage in earlier if not done.get(stage, {}).get("finished")]:
            raise UsageError(
                f"{self.run} has no finished stage {missing[0]}: give --start with the pieces before {name}"
            )
        if not self.tiny and not torch.cuda.is_available():
            raise UsageError("no CUDA device: in full size this takes days on a CPU; --tiny tries the wiring")
        if self.text is not None and not list(Path(self.text).glob("*.jsonl.xz")):
            raise UsageError(f"{self.text} holds no text: run recipes/embedded_v1/fetch_text.py first")

    def measured(self, name: str, model: str, before: Path | None) -> dict[str, Any]:
        """Parts before the last: a quick look, and what RL is to raise. The last: everything, and the verdict."""
        last = name == LAST
        scale = TINY_SCALE if self.tiny else Scale() if last else QUICK
        questions = self.size.held_out if self.tiny else 400
        if last:
            model = self.publish()
        found: dict[str, Any]
        with LLM(model, device=self.device or None, max_batch=self.size.max_batch) as llm:
            if not last:
                found = skills(llm, questions, max_tokens=min(512, scale.max_tokens))
                return {"skills": found, "quick": self.quick(llm, scale)}
            found = measure(llm, scale, f"campaign {name}", self.say)
        self.say(table(found))
        write(self.out / "evaluation.json", found)
        if before is None:
            return {"evaluation": "evaluation.json"}
        judged = verdict(json.loads(before.read_text()), found, self.around_rl())
        write(self.out / "verdict.json", judged)
        for text in judged["failed"]:
            self.say(f"failed: {text}")
        self.say("released" if judged["pass"] else "not released")
        return {"evaluation": "evaluation.json", "verdict": judged}

    def quick(self, llm: LLM, scale: Scale) -> dict[str, Any]:
        """Thinking and direct by family: shares alone."""
        found = modes(llm, scale, self.say)
        rows = {
            n: {m: row[m]["percent"] for m in ("thinking", "direct", "auto")} for n, row in found["families"].items()
        }
        return {"mean": found["mean"], "auto": found["auto"], "families": rows}

    def around_rl(self) -> dict[str, float] | None:
        """pass@1 before and after RL, in percent, from the parts' files."""
        parts = {name: self.run / f"part-{name}.json" for name in "BC"}
        if not all(path.exists() for path in parts.values()):
            return None
        before, after = (100 * json.loads(parts[name].read_text())["skills"]["held_out"] for name in "BC")
        return {"before": before, "after": after}

    def publish(self) -> str:
        """The result with the published sampling, in `run/embedded`: what the package takes over."""
        recipe = build(self.size, None, self.run, device=self.device)
        job = prepare(recipe, Run(self.run, say=self.say), best_device(), ["polish"])
        folder = self.run / "embedded"
        save_checkpoint(folder, job.model, tokenizer=job.tokenizer, generation_config=GENERATION)
        return str(folder)

    # Pieces

    def pieces(self, name: str, stages: list[str]) -> dict[str, str]:
        """What the next part begins with, in files of at most PIECE bytes: {name: SHA-256}."""
        done = Run(self.run, say=self.say).done()
        ended = [stage for stage in stages if done.get(stage, {}).get("finished")]
        if not ended:
            return {}
        published, after = self.run / "embedded", self.run / f"after-{ended[-1]}"
        folder = after if after.is_dir() else self.run / "model"  # as `train` calls its last stage's
        inside = after.name
        if name == LAST and published.is_dir():
            folder, inside = published, published.name
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                tar.add(path, f"{inside}/{path.relative_to(folder)}")
            for extra in ("done.json", "log.jsonl", "traces.jsonl", *(f"part-{part}.json" for part in PARTS)):
                if (self.run / extra).exists():
                    tar.add(self.run / extra, extra)
        data, found = packed.getvalue(), {}
        for i in range(0, len(data), PIECE):
            piece = data[i : i + PIECE]
            path = self.out / f"part-{name}.{i // PIECE:03d}"
            write_atomic(path, [piece])
            found[path.name] = hashlib.sha256(piece).hexdigest()
        return found

    def restore(self, start: Path, before: str) -> None:
        """The run as the part `before` left it, from its pieces in `start`. Raises CorruptFileError."""
        pieces: Mapping[str, str] = json.loads((start / f"part-{before}.json").read_text())["pieces"]
        data = b""
        for piece, digest in sorted(pieces.items()):
            part = (start / piece).read_bytes()
            if hashlib.sha256(part).hexdigest() != digest:
                raise CorruptFileError(f"{start / piece} is damaged: its SHA-256 is not the one in part-{before}.json")
            data += part
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            tar.extractall(self.run, filter="data")
        self.say(f"{self.run}: as part {before} left it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=(*PARTS, "all", "release"), help="needed unless --tiny")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--run", type=Path, default=Path("runs/embedded_v1"))
    parser.add_argument("--start", type=Path, help="folder with the pieces of the part before")
    parser.add_argument("--text", default="runs/text")
    parser.add_argument("--before", type=Path, help="JSON that evaluate.py wrote of the packaged model")
    parser.add_argument("--minutes", type=float, help="of training in this part; then it ends with a checkpoint")
    parser.add_argument("--stacks", type=float, metavar="S", help="print what every thread does, each S seconds")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if args.stacks:
        faulthandler.dump_traceback_later(args.stacks, repeat=True)
    say: Say = lambda line: print(line, flush=True)  # noqa: E731
    if args.tiny:
        run_tiny(args.out, say)
        return
    if not args.part:
        raise UsageError(f"which part: {', '.join(PARTS)}?")
    campaign = Campaign(args.out, args.run, text=args.text, say=say)
    if args.part == "release":
        campaign.restore(args.start or args.out, LAST)
        say(f"{args.run / 'embedded'} is what goes to src/qwen3/data/embedded, with card.py's README.md")
        return
    if args.start and args.part == "all":
        raise UsageError("all begins with A: --start is for one part, with the pieces of the part before")
    if args.start and args.part != "A":
        campaign.restore(args.start, chr(ord(args.part) - 1))
    for name in PARTS if args.part == "all" else (args.part,):
        if not campaign.part(name, args.minutes or MINUTES[name], args.before)["finished"]:
            sys.exit(3)


def run_tiny(out: Path, say: Say) -> dict[str, Any]:
    """All parts in toy size on a CPU, the third from the pieces of the second; the last one's report."""
    found: dict[str, Any] = {}
    for name in PARTS:
        run = out / ("second" if name in "CD" else "first")
        campaign = Campaign(out, run, TINY, None, "cpu", say)
        if name == "C":
            campaign.restore(out, "B")
        found = campaign.part(name)
    return found


if __name__ == "__main__":
    main()
