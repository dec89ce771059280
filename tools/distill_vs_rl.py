"""Does a student learn more from its teacher than from rewards? Both from one point, at equal seconds of the device.

    python tools/distill_vs_rl.py OUT --minutes 25          # tiny models and a task of single digits, on a CPU
    python tools/distill_vs_rl.py OUT --real --minutes 8    # the embedded model teaches a student of 5M on a GPU

What happens, each step once, wherever the last call stopped: (tiny) a teacher is trained on worked answers; a store of
its answers is written; students of several seeds learn from it off-policy until they answer `START` of the held-out
questions rightly; learning rates of both methods are tried on another seed of sampling, the same number for each; then
every student goes on twice, with reinforcement learning and with on-policy distillation, for the same seconds. Seconds
are the device's (on a CPU the process's own), evaluation left out. Rates are constant after ten updates, so that any
point of a curve is an end.

OUT/result.json has the curves, accuracy at temperature 1 with 95 % intervals, pass@16 before and after, and a verdict:
whether distillation at half (a quarter) of the seconds is at least where rewards end.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwen3.chat import encode
from qwen3.checkpoint import save_checkpoint
from qwen3.llm import LLM
from qwen3.tasks.base import is_eval
from qwen3.train.cold_start import Question, sample_questions
from qwen3.train.distill import Distill
from qwen3.train.optim import OptimConfig
from qwen3.train.questions import Asker
from qwen3.train.recipe import Recipe
from qwen3.train.rl import RL
from qwen3.train.rollout import rollouts
from qwen3.train.run import Run
from qwen3.train.samples import completion_sample
from qwen3.train.sft import SFT, Lora
from qwen3.train.start import Job, prepare
from qwen3.train.teacher_store import Teacher

PARTS = ("students", "pilots", "rl", "opd")
METHODS = ("rl", "opd")
T_975 = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776}  # Student's t by degrees of freedom


@dataclass(frozen=True)
class Setup:
    """One size of the experiment. Seconds are of the device."""

    teacher: str | dict[str, int]  # a model, or the shape of one that is trained here
    student: dict[str, int]
    families: tuple[str, ...]  # none: the task of single digits
    max_prompt: int
    max_tokens: int
    teacher_updates: int
    answers: int
    off_updates: int
    off_prompts: int
    near: float  # nats a token from the teacher, above which a student is not yet asked
    off_every: int  # updates between its evaluations then
    start: float  # held-out questions answered rightly, where the off-policy phase ends
    seconds: float  # of each arm
    pilot: float  # of each learning rate that is tried
    rl: dict[str, Any]
    opd: dict[str, Any]
    rates: tuple[float, ...]
    questions: int  # of an evaluation
    every: int  # updates between evaluations


TINY = Setup(
    teacher={"hidden_size": 96, "num_hidden_layers": 3, "intermediate_size": 256, "num_attention_heads": 4},
    student={"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 160, "num_attention_heads": 4},
    families=(), max_prompt=48, max_tokens=56, teacher_updates=200, answers=2048, off_updates=1500, off_prompts=16,
    near=0.12, off_every=2, start=0.25, seconds=45.0, pilot=12.0,
    rl={"prompts_per_update": 16, "samples_per_prompt": 8, "loss": "dapo", "refills": 0},
    opd={"prompts_per_update": 32, "samples_per_prompt": 2},
    rates=(3e-4, 1e-3, 3e-3), questions=64, every=8,
)  # fmt: skip
REAL = Setup(
    teacher="embedded",
    student={"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 768, "num_attention_heads": 2,
             "num_key_value_heads": 1, "head_dim": 128},
    families=("chain", "multiply", "gcd"), max_prompt=128, max_tokens=384, teacher_updates=0, answers=65_536,
    off_updates=3000, off_prompts=64, near=0.3, off_every=25, start=0.25, seconds=75.0, pilot=15.0,
    rl={"prompts_per_update": 128, "samples_per_prompt": 16, "loss": "dapo", "refills": 1},
    opd={"prompts_per_update": 256, "samples_per_prompt": 4},
    rates=(3e-5, 1e-4, 3e-4), questions=512, every=4,
)  # fmt: skip


# The task of single digits: 3a+5b*2 is ((3 + 5) * 2) mod 7, one labelled step after the other

_MODULUS, _STEPS = 7, (2, 6)


def digits(rng: random.Random, split: str = "train") -> Question:
    """A question with its worked trace; split: by the hash of the problem."""
    while True:
        value = rng.randrange(_MODULUS)
        text, trace = str(value), ""
        for i in range(rng.randint(*_STEPS)):
            sign, operand = rng.choice("+*"), rng.randrange(1, _MODULUS)
            before, value = value, (value + operand if sign == "+" else value * operand) % _MODULUS
            text += f"{'abcdefgh'[i]}{sign}{operand}"
            trace += f"{'abcdefgh'[i]}{before}{sign}{operand}={value}"
        if is_eval(text) == (split == "eval"):
            return Question(text, text, partial(_is, str(value)), "digits", 0, trace, str(value))


def _is(reply: str, said: str) -> bool:
    return said.strip() == reply


def worked(tokenizer: Any, template: Any) -> Callable[[int, int], Iterator[Any]]:
    """Endless worked samples; number i depends on i alone."""

    def sample(number: int) -> Any:
        question = digits(random.Random(f"worked/{number}"))
        messages = [{"role": "user", "content": question.prompt}]
        prompt = encode(messages, tokenizer=tokenizer, enable_thinking=True, template=template).ids
        text = f"<think>\n{question.trace}\n</think>\n\n{question.reply}<|im_end|>"
        return completion_sample(prompt, tokenizer.encode(text))

    return lambda first, total: (sample(i) for i in range(first, total))


# Runs


class Timed(Run):
    """Over when the device's seconds are spent, when `reached` says so, or when the call's time is up."""

    def __init__(self, folder: Path, until: float, budget: float = math.inf, reached: float = math.inf) -> None:
        super().__init__(folder, say=lambda line: None)
        self.until, self.budget, self.reached = until, budget, reached
        lines = (folder / "log.jsonl").read_text().splitlines() if (folder / "log.jsonl").exists() else []
        self.lines = [line for line in map(json.loads, lines) if "update" in line]

    def log(self, **fields: Any) -> None:
        super().log(**fields)
        if "update" in fields:
            self.lines = [line for line in self.lines if line["update"] < fields["update"]] + [fields]

    @property
    def complete(self) -> bool:
        spent = self.lines[-1].get("device_seconds", 0) if self.lines else 0
        return spent >= self.budget or any(line.get("accuracy", -1) >= self.reached for line in self.lines)

    @property
    def over(self) -> bool:
        return self.complete or time.monotonic() > self.until


class _Steady:
    """The learning rate rises over ten updates and stays."""

    @property
    def learning(self) -> Callable[[int], float]:
        return lambda i: min(1.0, (i + 1) / 10)


class SteadyRL(_Steady, RL):
    pass


class SteadyDistill(_Steady, Distill):
    pass


class TimeUp(Exception):
    pass


@dataclass
class Experiment:
    """folder: of everything. until: monotonic time when the call ends. parts: what this call does of PARTS. pilots:
    of which methods."""

    setup: Setup
    folder: Path
    until: float
    seeds: Sequence[int]
    parts: Sequence[str]
    pilots: Sequence[str] = METHODS

    def job(self, folder: Path, model: Any, seed: int, **run: Any) -> tuple[Job, Timed]:
        made = Timed(folder, self.until, **run)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return prepare(Recipe(folder.name, model, (), seed=seed), made, device, []), made

    def config(self, shape: Mapping[str, int]) -> dict[str, Any]:
        rows, ranks = (8320, 8192) if self.setup.families else (544, 512)
        common = {
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32, "num_key_value_heads": 2,
            "vocab_size": rows, "max_position_embeddings": 1024, "tie_word_embeddings": True, "rms_norm_eps": 1e-6,
            "rope_theta": 10_000.0, "hidden_act": "silu", "bos_token_id": ranks, "eos_token_id": ranks + 2,
        }  # fmt: skip
        return common | dict(shape)

    # Evaluation: fresh questions of the held-out split, temperature 1

    def questions(self, count: int) -> list[Question]:
        if self.setup.families:
            return sample_questions(count, 0, dict.fromkeys(self.setup.families, 1.0), split="eval")
        rng = random.Random("held out")
        found = {q.key: q for q in (digits(rng, "eval") for _ in range(8 * count))}
        return list(islice(found.values(), count))

    def right(self, llm: LLM, job: Job, samples: int, count: int, seed: str) -> np.ndarray:
        """bool [questions, samples]."""
        asker, questions = Asker(self.common("eval", Distill), job), self.questions(count)
        prompts = [asker.prompt(question, True) for question in questions]
        found = rollouts(
            llm.engine, prompts, samples, seed, max_tokens=self.setup.max_tokens, tenant="held out"
        )  # fmt: skip
        return np.array([[asker.right(q, one) for one in group] for q, group in zip(questions, found, strict=True)])

    def evaluate(self, job: Job) -> Callable[[LLM], dict[str, float]]:
        count = self.setup.questions

        def measure(llm: LLM) -> dict[str, float]:
            right = self.right(llm, job, 2, count, f"accuracy/{llm.engine.version}").mean(1)
            return {"accuracy": float(right.mean()), "error": float(1.96 * right.std() / math.sqrt(count))}

        return measure

    def passes(self, job: Job) -> dict[str, float]:
        """pass@1 and pass@16 on half of an evaluation's questions."""
        stage = replace(self.common("passes", Distill), prompts_per_update=64)
        with stage.llm(job) as llm:
            right = self.right(llm, job, 16, self.setup.questions // 2, "passes")
        return {"pass_1": float(right.mean()), "pass_16": float(right.any(1).mean())}

    def common(self, name: str, kind: Any, **keys: Any) -> Any:
        setup = self.setup
        return kind(
            name=name, families=setup.families, source=None if setup.families else digits, max_prompt=setup.max_prompt,
            max_tokens=setup.max_tokens, max_batch=1024 if torch.cuda.is_available() else 128, updates=100_000,
            evaluate_every=setup.every, **keys,
        )  # fmt: skip

    def optim(self, rate: float, kind: Any = "adamw") -> OptimConfig:
        return OptimConfig(kind=kind, matrix_lr=rate, vector_lr=rate, betas=(0.9, 0.99), weight_decay=0.0)

    # The steps

    def teacher(self) -> str:
        if isinstance(self.setup.teacher, str):
            return self.setup.teacher
        folder = self.folder / "teacher"
        if not (folder / "model").is_dir():
            job, _ = self.job(folder, self.config(self.setup.teacher), 0)
            stage = SFT(
                "sft", source=lambda renderer: worked(job.tokenizer, job.template), updates=self.setup.teacher_updates,
                prompts_per_update=64, tokens_per_micro_batch=4096, lora=Lora(rank=0), optim=OptimConfig(),
                warmup=0.05,
            )  # fmt: skip
            self.finish(stage.run(job)["finished"])
            note(folder / "passes.json", self.passes(job))
            save_checkpoint(folder / "model", job.model, tokenizer=job.tokenizer)
        tell(f"teacher: {read(folder / 'passes.json')}")
        return str(folder / "model")

    def student(self, seed: int) -> Path:
        """The point from which both arms start."""
        folder, store = self.folder / f"student-{seed}", self.folder / "store"
        if not (folder / "model").is_dir():
            whole = (store / "manifest.json").exists()
            job, run = self.job(folder, self.config(self.setup.student), seed, reached=self.setup.start)
            stage = self.common(
                "off-policy", SteadyDistill, mode="off-policy", teacher="" if whole else self.teacher(),
                store=str(store), answers=self.setup.answers, prompts_per_update=self.setup.off_prompts,
                samples_per_prompt=4, optim=replace(OptimConfig(), matrix_lr=0.01), evaluate=self.evaluate(job),
            )  # fmt: skip
            measure = stage.evaluate

            def near(llm: LLM) -> dict[str, float]:  # the skill comes all at once, at the end of a long slope
                return measure(llm) if run.lines and run.lines[-1]["kl"] < self.setup.near else {}

            stage = replace(stage, updates=self.setup.off_updates, evaluate_every=self.setup.off_every, evaluate=near)
            summary = stage.run(job)
            self.finish(summary["finished"] or run.complete)
            note(folder / "passes.json", self.passes(job) | {
                "updates": summary["update"], "device_seconds": run.lines[-1]["device_seconds"],
            })  # fmt: skip
            save_checkpoint(folder / "model", job.model, tokenizer=job.tokenizer)
        tell(f"student {seed}: {read(folder / 'passes.json')}")
        return folder / "model"

    def arm(self, method: str, seed: int, rate: float, pilot: bool) -> dict[str, Any]:
        """A student goes on with one method; its curve."""
        name = f"{method}-{rate:g}-pilot" if pilot else f"{method}-{seed}"
        folder, start = self.folder / name, self.student(seed)
        budget = self.setup.pilot if pilot else self.setup.seconds
        if not (folder / "arm.json").exists():
            job, run = self.job(folder, str(start), 1000 + seed if pilot else seed, budget=budget)
            keys = {"optim": self.optim(rate), "evaluate": self.evaluate(job)}
            if method == "rl":
                stage = self.common(method, SteadyRL, **keys, **self.setup.rl)
            else:
                teacher = Teacher.load(self.teacher(), job.model.device)
                stage = self.common(method, SteadyDistill, teacher=teacher, mode="on-policy", **keys, **self.setup.opd)
            stage.run(job)
            self.finish(run.complete)
            with stage.llm(job) as llm:
                last = {"update": run.lines[-1]["update"], "device_seconds": run.lines[-1]["device_seconds"]}
                run.lines.append(last | self.evaluate(job)(llm))
            names = ("update", "device_seconds", "accuracy", "error")
            curve = [{n: line[n] for n in names} for line in run.lines if "accuracy" in line]
            rows = [line for line in run.lines if "tokens" in line]
            passes = {} if pilot else self.passes(job)
            note(folder / "arm.json", {
                "method": method, "seed": seed, "rate": rate, "curve": curve, **passes,
                "updates": rows[-1]["update"], "rollouts": rows[-1]["update"] * self.rollouts(method),
                "kl": [line["kl"] for line in rows][:: max(1, len(rows) // 20)] if method == "opd" else [],
                "length": [line["length"] for line in rows][:: max(1, len(rows) // 20)],
                "entropy": [line.get("entropy", 0.0) for line in rows][:: max(1, len(rows) // 20)],
                "seconds_by": {
                    n: round(sum(line.get(f"seconds/{n}", 0.0) for line in rows), 2)
                    for n in ("sample", "judge", "check", "teacher", "train")
                },
            })  # fmt: skip
        found = read(folder / "arm.json")
        tell(f"{name}: {found['curve'][-1]} pass_16 {found.get('pass_16')} {found['seconds_by']}")
        return found

    def rollouts(self, method: str) -> int:
        keys = self.setup.rl if method == "rl" else self.setup.opd
        return int(keys["prompts_per_update"] * keys["samples_per_prompt"])

    def finish(self, done: bool) -> None:
        if not done:
            raise TimeUp

    def run(self) -> dict[str, Any]:
        """Everything, as far as the time goes; what there is of the result."""
        self.folder.mkdir(parents=True, exist_ok=True)
        pilots: list[dict[str, Any]] = []
        starts: dict[str, Any] = {}
        rates: dict[str, float] = {}
        try:
            self.teacher()
            for seed in self.seeds if "students" in self.parts else ():
                self.student(seed)
            for method in self.pilots if "pilots" in self.parts else ():
                for rate in self.setup.rates:
                    self.arm(method, self.seeds[0], rate, True)
            pilots = [read(path) for path in sorted(self.folder.glob("*-pilot/arm.json"))]
            for method in METHODS:
                tried = [one for one in pilots if one["method"] == method]
                if len(tried) == len(self.setup.rates):
                    rates[method] = max(tried, key=lambda one: area(one, self.setup.pilot))["rate"]
            tell(f"learning rates: {rates}")
            for seed in self.seeds:
                for method in METHODS:
                    if method in self.parts and method in rates:
                        self.arm(method, seed, rates[method], False)
        except TimeUp:
            tell("the time is up; call again to go on")
        arms = [read(path) for path in sorted(self.folder.glob("*-[0-9]/arm.json"))]
        for seed in self.seeds:
            if (self.folder / f"student-{seed}" / "passes.json").exists():
                starts[str(seed)] = read(self.folder / f"student-{seed}" / "passes.json")
        return {"starts": starts, "pilots": pilots, "rates": rates, "arms": arms, **self.verdict(starts, arms)}

    def verdict(self, starts: Mapping[str, Any], arms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Means over the seeds that have both arms, with 95 % intervals."""
        by = {(arm["method"], arm["seed"]): arm for arm in arms}
        seeds = [seed for seed in self.seeds if ("rl", seed) in by and ("opd", seed) in by]
        if not seeds:
            return {"finished": False}
        first = {seed: starts[str(seed)]["pass_1"] for seed in seeds}
        end = self.setup.seconds
        shares = [i / 16 for i in range(1, 17)]
        curves = {
            method: [{"seconds": end * share, **interval([at(by[method, s], end * share, first[s]) for s in seeds])}
                     for share in shares] for method in ("rl", "opd")
        }  # fmt: skip
        apart = {
            name: interval([at(by["opd", s], end * part, first[s]) - at(by["rl", s], end, first[s]) for s in seeds])
            for name, part in (("same", 1.0), ("half", 0.5), ("quarter", 0.25), ("tenth", 0.1))
        }
        needed = [reach(by["opd", s], at(by["rl", s], end, first[s])) for s in seeds]
        return {
            "finished": len(seeds) == len(self.seeds), "curves": curves, "opd_minus_rl_at_its_end": apart,
            "share_of_seconds_until_opd_is_where_rl_ends": [None if n is None else n / end for n in needed],
            "holds_at_half": apart["half"]["mean"] >= 0, "holds_at_half_beyond_the_interval": apart["half"]["low"] >= 0,
            "holds_at_quarter": apart["quarter"]["mean"] >= 0,
        }  # fmt: skip


def at(arm: Mapping[str, Any], seconds: float, start: float) -> float:
    """Accuracy at a time: between the two evaluations around it, in a line."""
    times = [0.0] + [point["device_seconds"] for point in arm["curve"]]
    return float(np.interp(seconds, times, [start] + [point["accuracy"] for point in arm["curve"]]))


def area(arm: Mapping[str, Any], seconds: float) -> float:
    """Mean accuracy over the second half: one evaluation alone is noise."""
    return float(np.mean([at(arm, seconds * share, 0.0) for share in np.linspace(0.5, 1, 11)]))


def reach(arm: Mapping[str, Any], accuracy: float) -> float | None:
    """Seconds until two evaluations in a row are there."""
    points = arm["curve"]
    for now, following in zip(points, [*points[1:], points[-1]], strict=True):
        if min(now["accuracy"], following["accuracy"]) >= accuracy:
            return float(now["device_seconds"])
    return None


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean and the 95 % interval of Student's t over seeds."""
    mean, count = float(np.mean(values)), len(values)
    half = T_975.get(count - 1, 2.0) * float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else math.inf
    low, high = (mean - half, mean + half) if math.isfinite(half) else (None, None)
    return {"mean": mean, "low": low if low is not None else -1.0, "high": high, "values": list(values)}


def note(path: Path, value: Any) -> None:
    draft = path.with_suffix(".partial")
    draft.write_text(json.dumps(value, indent=1))
    draft.replace(path)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def tell(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=math.inf, help="of this call")
    parser.add_argument("--real", action="store_true", help="the embedded model teaches, on a GPU")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed: several calls may share the work")
    parser.add_argument("--parts", default=",".join(PARTS), help="of the work, for the same reason; all: %(default)s")
    parser.add_argument("--pilots", default=",".join(METHODS), help="of which methods; all: %(default)s")
    parser.add_argument("--machine", default=platform.processor() or platform.machine())
    args = parser.parse_args()
    setup = REAL if args.real else TINY
    experiment = Experiment(
        setup,
        args.out,
        time.monotonic() + 60 * args.minutes,
        range(args.first, args.first + args.seeds),
        args.parts.split(","),
        args.pilots.split(","),
    )
    result = experiment.run()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else args.machine
    note(args.out / "result.json", {
        "name": "on-policy distillation or reinforcement learning, from one student, at equal seconds",
        "command": " ".join(["python", *sys.argv]), "date": time.strftime("%Y-%m-%d"), "machine": device,
        "commit": commit.stdout.strip(), "threads": torch.get_num_threads(), "setup": asdict(setup), **result,
    })  # fmt: skip
    tell(f"result: {args.out / 'result.json'}")


if __name__ == "__main__":
    main()
