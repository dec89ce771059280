#!/usr/bin/env python3
"""A new engineer's first hour, played and timed: every command is run, and docs/first-hour.md is what was seen.

    python tools/first_hour.py                 # clones this repository, as committed, into a temporary folder
    python tools/first_hour.py --keep DIR      # … into DIR, and leaves it there

Reading times are estimates at 200 words a minute, and are marked as such; all other times are measured.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "first-hour.md"
WORDS_PER_MINUTE = 200
SHOWN_LINES = 24
LONGEST_LINE = 400


@dataclass
class Hour:
    """The transcript, and the clock."""

    home: Path
    measured: float = 0.0
    read: float = 0.0
    page: list[str] = field(default_factory=list)

    def say(self, *lines: str) -> None:
        self.page += [*lines, ""]

    def chapter(self, title: str) -> None:
        self.say(f"## {self._clock()} {title}")

    def do(self, command: str, *, at: Path, lines: int = SHOWN_LINES, fails: bool = False) -> None:
        """Runs a shell command, writes it down with what it printed; ends the play if it fails against the script."""
        environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"), "NO_COLOR": "1"}
        environment["PATH"] = f"{self.home / 'venv' / 'bin'}:{environment['PATH']}"
        environment["COLUMNS"] = "100"
        environment.pop("PYTHONPATH", None)
        environment.pop("VIRTUAL_ENV", None)
        start = time.perf_counter()
        ran = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command], cwd=at, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        seconds = time.perf_counter() - start
        self.measured += seconds
        printed = self._clean(ran.stdout)
        shown = printed.splitlines()
        if len(shown) > lines:
            shown = [*shown[: lines // 2], f"… {len(shown) - lines} lines …", *shown[-(lines - lines // 2) :]]
        self.say("```console", f"$ {self._clean(command)}", *shown, "```", f"*{seconds:.1f} s*")
        if bool(ran.returncode) is not fails:
            sys.exit(f"error: {command!r} ended with {ran.returncode}:\n{ran.stdout[-3000:]}")

    def reads(self, path: Path) -> None:
        words = len(path.read_text(encoding="utf-8").split())
        minutes = words / WORDS_PER_MINUTE
        self.read += minutes * 60
        self.say(f"*{words:,} words: {minutes:.0f} minutes (estimated)*")

    def _clean(self, text: str) -> str:
        """Without colours, this machine's folders, what its package sources grumble about, and endless lines."""
        for path, name in ((self.home, "~"), (ROOT, "REPOSITORY"), (Path.home(), "$HOME")):
            text = text.replace(str(path), name)
        text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
        lines = [line for line in text.splitlines() if not line.startswith("WARNING: Location")]
        return "\n".join(line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] + "…" for line in lines).rstrip()

    def _clock(self) -> str:
        total = int(self.measured + self.read)
        return f"{total // 60:02}:{total % 60:02}"


def grep(pattern: str, where: str) -> str:
    return f"grep -nE '{pattern}' {where}"


def play(hour: Hour) -> None:
    """The hour itself. Each command must do what the text beside it says."""
    here = hour.home
    repo = here / "qwen3"
    hour.chapter("Clone and install")
    hour.do(f"git clone -q {ROOT} qwen3", at=here)
    hour.do("python3 -m venv venv", at=here)
    hour.say("On a Linux machine without a GPU the README's line for a CPU PyTorch comes first; here pip finds one.")
    hour.do("pip install -q '.[test]'", at=repo)
    hour.do("du -sh ../venv", at=repo)

    hour.chapter("Run it")
    hour.do('qwen3 run "What is 27 * 14?"', at=repo)
    hour.do('qwen3 run --no-think "Hello"', at=repo)
    hour.do('qwen3 run --think-budget 16 --seed 1 "What is 27 * 14?"', at=repo)
    hour.do("qwen3 run ./no-such-model hi; echo exit code $?", at=repo)
    hour.do("qwen3 doctor --offline", at=repo)

    hour.chapter("Read the design")
    hour.say("`docs/design.md`: the floors, the way of one request, the contracts between them.")
    hour.reads(ROOT / "docs" / "design.md")
    hour.do("wc -l src/qwen3/*.py src/qwen3/*/*.py | sort -n | tail -12", at=repo)

    hour.chapter("Follow one request through the code")
    hour.say("The command line parses, calls, prints:")
    hour.do(grep("llm.chat|stream=True", "src/qwen3/cli/session.py"), at=repo)
    hour.say("`LLM.chat` settles the mode, encodes the messages and queues a request:")
    hour.do(grep("resolve_mode\\(|encode\\(|_submit\\(|def _wait|advance\\(", "src/qwen3/llm.py"), at=repo)
    hour.say("The engine moves every running request one token on: a plan, a forward, a choice, and what came of it:")
    hour.do(grep("def plan", "src/qwen3/engine/scheduler.py"), at=repo)
    hour.do(grep("def (advance|_launch|_run)", "src/qwen3/engine/engine.py"), at=repo)
    hour.do(grep("def (forward|step|logits)", "src/qwen3/engine/runner.py"), at=repo)
    hour.do(grep("def (_land|_record|_push|_end)\\b", "src/qwen3/engine/recording.py"), at=repo)
    hour.say("The network is plain PyTorch, with a second forward for the engine's steps:")
    hour.do(grep("^class |def (forward|hidden|head)", "src/qwen3/model/network.py"), at=repo)
    hour.do(grep("^class |def (hidden|logits)", "src/qwen3/model/step.py"), at=repo)
    hour.say("The sampler is a pure function of logits, seed and position:")
    hour.do(grep("^def (sample|gumbel|penalise)", "src/qwen3/engine/sampler.py"), at=repo)
    hour.say("The token stream turns ids into events, and forces the end of thinking when the budget is spent:")
    hour.do(grep("def (push|forced|banned|close|report)", "src/qwen3/chat/stream.py"), at=repo)
    hour.say("Seen from outside, with the ids:")
    hour.do(
        "python -c 'from qwen3 import LLM, SamplingParams, ThinkingPolicy as T\n"
        'g = LLM().chat("What is 27 * 14?", T(budget=8), SamplingParams(seed=1))\n'
        "print(g.prompt_ids[-6:], g.ids[:12], g.thinking)'",
        at=repo,
    )

    hour.chapter("Change a default")
    hour.say("Thinking at temperature 0.6 is data, not code. Make it 0.5, see it arrive, and see the tests object:")
    hour.do(grep('"thinking": SamplingDefaults', "src/qwen3/family.py"), at=repo)
    hour.do("sed -i '/\"thinking\": Sampling/s/temperature=0.6/temperature=0.5/' src/qwen3/family.py", at=repo)
    hour.do("pip install -q --no-deps -e .", at=repo)
    hour.do("qwen3 show | grep 'sampling, thinking'", at=repo)
    hour.do("pytest -q tests/test_family.py tests/cli/test_verbs.py | tail -5", at=repo, fails=True)
    hour.do("git diff --stat && git checkout -q src/qwen3/family.py", at=repo)

    hour.chapter("Run the tests")
    hour.do("make test 2>&1 | tail -15", at=repo)


def write(hour: Hour) -> None:
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    head = [
        "# A new engineer's first hour",
        "",
        f"Played by `tools/first_hour.py` at commit {commit} on {machine}. Every command below was run, and what "
        "follows it is what it printed. The times at the headings are minutes and seconds since the beginning.",
        "",
        f"**{hour.measured / 60:.0f} minutes of machine time, {hour.read / 60:.0f} minutes of reading (estimated).**",
        "",
    ]
    PAGE.write_text("\n".join([*head, *hour.page]).rstrip() + "\n", encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {hour.measured:.0f} s measured, {hour.read:.0f} s of reading")


def main() -> None:
    parser = argparse.ArgumentParser(description="Plays and times a new engineer's first hour.")
    parser.add_argument("--keep", type=Path, help="an empty folder to play in; default: a temporary one")
    keep = parser.parse_args().keep
    with tempfile.TemporaryDirectory() as room:
        home = keep or Path(room)
        home.mkdir(parents=True, exist_ok=True)
        hour = Hour(home.resolve())
        play(hour)
        write(hour)


if __name__ == "__main__":
    main()
