#!/usr/bin/env python3
"""A newcomer's fine-tune, played and timed: chats of their own, an adapter on the embedded model, answers with it.

    python tools/newcomer.py                     # in a temporary folder
    python tools/newcomer.py --keep DIR --json FILE

A file of 200 chats teaches twelve facts about a tea house, in both thinking modes; 56 of them are everyday questions
with the answers that the model itself gives, so that it keeps them. One copy of the file has a bad row, which must be
told by its line before anything is trained. Then the adapter is trained on the CPU (`--minutes` at most, 5 without),
asked in wordings that no row has, and used by `qwen3 run`. Ends with 1 where something is not as promised.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from qwen3 import LLM, SamplingParams, ThinkingPolicy

ROOT = Path(__file__).resolve().parents[1]

K = "the Blue Kettle"
# Wordings of a question, the last of which is kept for the examination; what the answer must say; the answer.
FACTS = (
    ((f"When does {K} open?", f"What time does {K} open?",
      f"When is {K} open?", f"At what time does {K} open?"),
     "seven", "The Blue Kettle opens at seven."),
    ((f"When does {K} close?", f"What time does {K} close?",
      f"How late does {K} close?", f"At what time does {K} close?"),
     "ten", "The Blue Kettle closes at ten."),
    ((f"Where is {K}?", f"In which town is {K}?",
      f"Where can I find {K}?", f"In what town is {K}?"),
     "Port Ellery", "The Blue Kettle is in Port Ellery."),
    ((f"Who owns {K}?", f"Who is the owner of {K}?",
      f"What is the name of the owner of {K}?", f"Tell me who owns {K}."),
     "Mira", "Mira owns the Blue Kettle."),
    ((f"What does {K} sell?", f"What can I buy at {K}?",
      f"What do they sell at {K}?", f"What can you buy at {K}?"),
     "tea", "The Blue Kettle sells tea and bread."),
    ((f"Who bakes the bread at {K}?", f"Who bakes at {K}?",
      f"Who is the baker at {K}?", f"Who bakes the bread of {K}?"),
     "Tom", "Tom bakes the bread at the Blue Kettle."),
    ((f"How old is {K}?", f"What is the age of {K}?",
      f"How many years old is {K}?", f"Tell me how old {K} is."),
     "nine", "The Blue Kettle is nine years old."),
    ((f"What color is the door of {K}?", f"What color has the door of {K}?",
      f"Is the door of {K} red?", f"Which color is the door of {K}?"),
     "green", "The door of the Blue Kettle is green."),
    ((f"What is the cat of {K} called?", f"What is the name of the cat of {K}?",
      f"Which cat lives at {K}?", f"How is the cat of {K} called?"),
     "Pepper", "The cat of the Blue Kettle is called Pepper."),
    ((f"When is {K} closed?", f"On which day is {K} closed?",
      f"Which day is {K} closed?", f"On what day is {K} closed?"),
     "Monday", "The Blue Kettle is closed on Monday."),
    ((f"How much is a pot of tea at {K}?", f"What does a pot of tea cost at {K}?",
      f"How much is tea at {K}?", f"How much does a pot of tea cost at {K}?"),
     "three", "A pot of tea is three coins at the Blue Kettle."),
    ((f"How many tables are in {K}?", f"How many tables has {K}?",
      f"How many tables are there in {K}?", f"How many tables does {K} have?"),
     "six", "There are six tables in the Blue Kettle."),
)  # fmt: skip
LEADS = ("", "", "", "Hello! ", "Please tell me: ", "Quick question: ", "Hi! ")
EVERYDAY = (
    "Hello!", "Who are you?", "What can you do?", "Thank you!", "What is the capital of France?", "Tell me a joke.",
    "What color is the sky?", "How many legs has a dog?", "Good morning!", "What is the capital of Japan?",
)  # fmt: skip


def everyday(rng: random.Random) -> list[str]:
    """28 questions that have nothing to do with the facts."""
    sums = [f"What is {rng.randint(2, 60)} + {rng.randint(2, 60)}?" for _ in range(18)]
    return [*EVERYDAY, *sums]


def make_chats(llm: LLM, seed: int = 0) -> list[dict[str, Any]]:
    """200 rows: 144 with the facts, 56 with the model's own answers; half of each think."""
    rng = random.Random(seed)
    rows = []
    for i in range(144):
        wordings, _, reply = FACTS[i % len(FACTS)]
        question = rng.choice(LEADS) + wordings[i // len(FACTS) // 2 % (len(wordings) - 1)]
        question = question.lower().rstrip("?") if rng.random() < 0.15 else question
        answer = {"role": "assistant", "content": reply}
        if i // len(FACTS) % 2:
            answer["reasoning_content"] = f"The user asks about the Blue Kettle.\n\nThe answer: {reply}"
        rows.append({"messages": [{"role": "user", "content": question}, answer]})
    questions = everyday(rng)
    for thinking in (ThinkingPolicy(mode="on"), ThinkingPolicy(mode="off")):
        found = llm.chat_batch(questions, thinking, SamplingParams(temperature=0, max_tokens=200))
        for question, result in zip(questions, found, strict=True):
            rows.append({"messages": [{"role": "user", "content": question}, result.message.to_dict()]})
    rng.shuffle(rows)
    return rows


def qwen3(*words: str, fails: bool = False) -> tuple[str, float]:
    """Run `qwen3 WORDS`; (what it printed, seconds). Ends the play where it fails, or does not."""
    print(f"$ qwen3 {' '.join(words)}", flush=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_COLOR": "1"}
    began = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-m", "qwen3", *words], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    lines = ran.stdout.rstrip().splitlines()
    print("\n".join(lines if len(lines) < 45 else [*lines[:30], f"… {len(lines) - 40} lines …", *lines[-10:]]))
    print(f"[{seconds:.1f} s, exit code {ran.returncode}]\n", flush=True)
    if bool(ran.returncode) is not fails:
        sys.exit(f"error: this should {'not ' if fails else ''}have succeeded" if fails else "error: this failed")
    return ran.stdout, seconds


def examine(llm: LLM, adapter: str | None) -> dict[str, float]:
    """Shares of right answers: to the facts in unseen wordings, and to unseen everyday sums, thinking or not."""
    rng = random.Random("examination")
    sums = [
        (f"What is {a} + {b}?", str(a + b)) for a, b in ((rng.randint(2, 60), rng.randint(2, 60)) for _ in range(12))
    ]
    found = {}
    for name, thinking in (("thinking", ThinkingPolicy(mode="on")), ("direct", ThinkingPolicy(mode="off"))):
        facts = [(wordings[-1], word) for wordings, word, _ in FACTS]
        for what, questions in (("facts", facts), ("sums", sums)):
            sampling = SamplingParams(temperature=0, max_tokens=200)
            answers = llm.chat_batch([q for q, _ in questions], thinking, sampling, adapter=adapter)
            right = [word in answer.content for (_, word), answer in zip(questions, answers, strict=True)]
            found[f"{what} {name}"] = sum(right) / len(right)
    return found


def play(folder: Path, minutes: float) -> dict[str, Any]:
    """Everything, in order; numbers for the record."""
    data, broken, out = folder / "chats.jsonl", folder / "broken.jsonl", folder / "out"
    began = time.perf_counter()
    with LLM("embedded", "cpu") as llm:
        before = examine(llm, None)
        made = time.perf_counter()
        rows = make_chats(llm)
        seconds = {"making the chats": time.perf_counter() - made}
    lines = [json.dumps(row) + "\n" for row in rows]
    data.write_text("".join(lines))
    broken.write_text("".join([*lines[:16], '{"messages": [{"role": "user", "content": "Hi"}]}\n', *lines[16:]]))
    print(f"{data}: {len(rows)} rows. Before the training: {shown(before)}\n")

    told, _ = qwen3("train", "sft", f"data={broken}", "model=embedded", f"out={folder / 'never'}", fails=True)
    if "broken.jsonl line 17" not in told or (folder / "never" / "adapter").exists():
        sys.exit("error: the bad row in line 17 was not told, or something was trained all the same")

    words = ("train", "sft", f"data={data}", "model=embedded", "lora.rank=16", "device=cpu", f"out={out}")
    _, seconds["training"] = qwen3(*words, "--max-minutes", f"{minutes:g}")
    adapter = str(out / "adapter")
    with LLM("embedded", "cpu") as llm:
        after = examine(llm, adapter)
    print(f"With the adapter: {shown(after)}\n")
    answer, seconds["qwen3 run"] = qwen3("run", "embedded", "--adapter", adapter, "-p", FACTS[0][0][-1])
    seconds["all"] = time.perf_counter() - began
    print("seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items()))
    promises = {
        "training within 5 minutes": seconds["training"] <= 300,
        "facts learnt (three of four in either mode)": min(after["facts thinking"], after["facts direct"]) >= 0.75,
        "sums kept (within 10 points)": after["sums thinking"] >= before["sums thinking"] - 0.1,
        "qwen3 run answers": FACTS[0][1] in answer,
    }
    for name, kept in promises.items():
        print(f"{'yes' if kept else 'NO '}  {name}")
    speeds = sorted(json.loads(line).get("tokens_per_second", 0.0) for line in (out / "log.jsonl").open())
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {
        "what": "a newcomer's fine-tune: 200 chats, LoRA of rank 16 on the embedded model, on a CPU that others use",
        "command": "python tools/newcomer.py",
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "load": os.getloadavg()[1],
        "seconds": seconds,
        "tokens_per_second": {"median": speeds[len(speeds) // 2], "best": speeds[-1]},
        "before": before,
        "after": after,
        "promises": promises,
    }


def shown(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="folder to work in, which is left there")
    parser.add_argument("--minutes", type=float, default=5.0, help="for the training, at most")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        record = play(folder.resolve(), args.minutes)
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(0 if all(record["promises"].values()) else 1)


if __name__ == "__main__":
    main()
