"""The documents keep their word: commands and code that are marked run, links lead somewhere, tables are the facts."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from qwen3 import family
from qwen3.cli.console import parameters
from tests.cli.conftest import EMBEDDED, Command

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")
needs_model = pytest.mark.skipif(not EMBEDDED.is_dir(), reason="the embedded model is not in this checkout")


def blocks(text: str, mark: str) -> list[str]:
    """The code blocks that follow `<!-- test: mark -->`."""
    return re.findall(rf"<!-- test: {mark} -->\n```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


COMMANDS = [
    pytest.param(line, id=f"{page.stem}: {line}")
    for page in PAGES
    for block in blocks(page.read_text(encoding="utf-8"), "commands")
    for line in block.splitlines()
    if line and not line.startswith("#")
]
PROGRAMS = [
    pytest.param(block, id=f"{page.stem} {i}")
    for page in PAGES
    for i, block in enumerate(blocks(page.read_text(encoding="utf-8"), "python"))
]


def test_something_is_marked() -> None:
    assert len(COMMANDS) >= 10
    assert PROGRAMS


@needs_model
@pytest.mark.parametrize("line", COMMANDS)
def test_commands_run(qwen3: Command, line: str) -> None:
    line = line.partition("   #")[0]
    left, bar, command = line.rpartition(" | ")
    piped = subprocess.run(left, shell=True, check=True, capture_output=True, cwd=ROOT).stdout if bar else b""
    words = shlex.split(command)
    assert words[0] == "qwen3"
    ran = qwen3(*words[1:], stdin=piped)
    assert ran.code == 0, ran.err
    assert ran.out.strip()


@needs_model
def test_the_first_thing_anybody_asks_is_answered_right(qwen3: Command) -> None:
    answers = [qwen3("run", "--seed", seed, "What is 27 * 14?").out for seed in range(5)]
    assert sum("378" in answer for answer in answers) >= 3, answers


@needs_model
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_run(program: str) -> None:
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()


def test_the_install_commands_fit_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    torch = next(name for name in project["dependencies"] if name.startswith("torch"))
    assert f'pip install "{torch}" --index-url' in README
    assert blocks(README, "install-and-run") == ['pip install . && qwen3 run "What is 27 * 14?"\n']
    assert blocks(README, "install-and-test") == ["pip install '.[test]' && make test\n"]
    assert "test" in project["optional-dependencies"]
    assert re.search(r"^test:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_family_table_is_the_family() -> None:
    rows = {}
    for line in README.splitlines():
        if line.startswith("| `qwen3:"):
            tag, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            rows[tag.strip("`")] = cells
    hybrid = [member for member in family.MODELS.values() if member.mode == "hybrid"]
    assert list(rows) == [member.tag for member in hybrid]
    for member in hybrid:
        count, active, modes, context, siblings = rows[member.tag]
        assert count == parameters(member.params)
        assert active == (parameters(member.active_params) if member.config.is_moe else "")
        assert modes == "thinking, non-thinking"
        assert context == f"{member.context:,}"
        others = [m for m in family.MODELS.values() if m.tag.startswith(member.tag + "-") and m.mode != "hybrid"]
        assert siblings == ", ".join(m.tag.removeprefix(member.tag + "-") for m in others)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert (page.parent / target).exists(), target
