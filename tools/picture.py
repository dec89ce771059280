#!/usr/bin/env python3
"""Runs README's first command on a terminal of its own and puts the picture into docs/run.svg and README.md.

python tools/picture.py [--seed N]      # the seed makes the run repeatable; choose one that shows well
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "What is 27 * 14?"
WIDTH = 100
MARKS = re.compile(r"(<!-- picture:.*?-->\n).*?(<!-- /picture -->)", re.DOTALL)


def run(seed: int) -> str:
    """What the command printed, in order, with its colours."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "qwen3.cli.main", "run", "--seed", str(seed), PROMPT]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(WIDTH), "NO_COLOR": ""}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # Linux says so when the other side has closed
            break
        if not data:
            break
        seen += data
    if process.wait():
        sys.exit(f"error: the command ended with {process.returncode}:\n{seen.decode(errors='replace')}")
    return seen.decode("utf-8").replace("\r\n", "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="A picture of a real run for README.md.")
    parser.add_argument("--seed", type=int, default=1)
    seed = parser.parse_args().seed
    # Every token arrives in its own colour codes; one span a run keeps the letters on the viewer's own grid.
    output = run(seed).replace("\x1b[0m\x1b[2m", "")
    printed = Text.from_ansi(f'$ qwen3 run "{PROMPT}"\n' + output)
    console = Console(record=True, width=WIDTH, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    console.print(printed)
    svg = console.export_svg(title="qwen3", unique_id="run")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # the viewer's own font; nothing is fetched
    (ROOT / "docs" / "run.svg").write_text(svg, encoding="utf-8")
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    picture = "![A run: the thinking is dim, the answer follows](docs/run.svg)\n"
    changed, count = MARKS.subn(lambda match: match[1] + picture + match[2], text)
    if count != 1:
        sys.exit("error: README.md has no picture marks")
    readme.write_text(changed, encoding="utf-8")
    print(printed.plain)


if __name__ == "__main__":
    main()
