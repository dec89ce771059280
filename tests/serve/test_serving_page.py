"""docs/serving.md and docs/deploy keep their word: examples run, flags and metrics are those there are, times fit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytest.importorskip("fastapi", reason="the server is an extra: pip install 'qwen3[serve]'")

from qwen3.cli.app import app
from qwen3.serve.metrics import Metrics
from qwen3.serve.settings import Settings, flag
from tests.serve.conftest import Running

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "serving.md").read_text(encoding="utf-8")
DEPLOY = {path.name: path.read_text(encoding="utf-8") for path in (DOCS / "deploy").iterdir()}
EXAMPLES = re.findall(r"<!-- test: client ?([\w-]*) -->\n```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
CLIENTS = os.environ.get("QWEN3_CLIENTS", "")


def program(language: str, client: str, folder: Path) -> list[str]:
    """What runs an example, its text apart."""
    if language == "js":
        (folder / "node_modules").symlink_to(Path(CLIENTS, "node", "node_modules"))
        return ["node", "--input-type=module", "--eval"]
    if language == "sh":
        return ["bash", "-euo", "pipefail", "-c"]
    return [str(Path(CLIENTS, client, "bin", "python")) if client else sys.executable, "-c"]


@pytest.mark.parametrize(
    ("client", "language", "text"), EXAMPLES, ids=[f"{i} {who or what}" for i, (who, what, _) in enumerate(EXAMPLES)]
)
def test_examples_run(client: str, language: str, text: str, server: Running, tmp_path: Path) -> None:
    if client and not CLIENTS:
        pytest.skip("QWEN3_CLIENTS is not set; tools/client_envs.py makes the environments")
    if language == "sh" and not shutil.which("curl"):
        pytest.skip("curl is not here")
    command = [*program(language, client, tmp_path), text.replace("http://127.0.0.1:8000", server.url)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()
    assert ('"error":{' in ran.stdout) == ("hot" in text), ran.stdout


def flags_of(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))


def test_flags_are_those_there_are() -> None:
    import typer

    verb = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    known = {name for option in verb.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
    said = flags_of(re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)) | flags_of((DOCS / "security.md").read_text())
    said |= {name for line in PAGE.splitlines() if line.startswith("qwen3 serve") for name in flags_of(line)}
    said |= flags_of("".join(re.findall(r"(?:ExecStart=|ENTRYPOINT|args:)(?:.*\\\n)*.*", "\n".join(DEPLOY.values()))))
    assert said - known == set()


def test_limits_are_the_defaults() -> None:
    table = " ".join(PAGE.partition("## Limits and errors")[2].split())
    for name, shown in (
        ("max_queue", "256"), ("max_per_key", "64"), ("max_body", "32 MiB"), ("max_header", "64 KiB"),
        ("max_file", "256 MiB"), ("max_connections", "1024"),
        ("body_timeout", "60 s"), ("write_timeout", "60 s"), ("header_timeout", "10 s"),
    ):  # fmt: skip
        number, _, unit = shown.partition(" ")
        assert getattr(Settings(), name) == int(number) << {"MiB": 20, "KiB": 10}.get(unit, 0), name
        assert f"`{flag(name)}` ({shown})" in table, name


def test_metrics_are_those_there_are() -> None:
    table = PAGE.partition("<!-- metrics -->")[2].partition("<!-- /metrics -->")[0]
    there = set(re.findall(r"^# TYPE (qwen3_\w+)", Metrics().text().decode(), re.MULTILINE))
    assert set(re.findall(r"`(qwen3_\w+)`", table)) == {name for name in there if not name.endswith("_created")}


def test_whoever_stops_the_server_waits_for_its_drain() -> None:
    def number(pattern: str, name: str) -> int:
        found = re.search(pattern, DEPLOY[name], re.MULTILINE)
        assert found, pattern
        return int(found[1])

    unit, pods = "qwen3.service", "kubernetes.yaml"
    assert number(r"^TimeoutStopSec=(\d+)", unit) >= number(r"--drain (\d+)", unit) + 10
    grace, first = number(r"terminationGracePeriodSeconds: (\d+)", pods), number(r'\[sleep, "(\d+)"\]', pods)
    assert grace >= first + number(r'"--drain", "(\d+)"', pods) + 10
    assert "KillMode=mixed" in DEPLOY[unit]  # its engine must live on while answers end
    assert "proxy_buffering         off" in DEPLOY["nginx.conf"]


def test_the_lock_covers_what_the_server_needs() -> None:
    """Every dependency, and theirs as far as they are installed here, at a version that fits, by hash and nothing else:
    no index, no path, no address."""
    text = re.sub(r"^#.*\n", "", DEPLOY["requirements.lock"], flags=re.MULTILINE)
    entry = r"[a-z0-9-]+==[\w.]+(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n"
    assert re.fullmatch(f"(?:{entry})+", text)
    locked = dict(re.findall(r"^([a-z0-9-]+)==([\w.]+)", text, re.MULTILINE))
    locked |= re.findall(r"pip install (torch)==([\d.]+) ", DEPLOY["Containerfile"])
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    place = {"python_version": "3.12", "python_full_version": "3.12.0", "sys_platform": "linux", "extra": ""}
    for needed in map(Requirement, (*project["dependencies"], *project["optional-dependencies"]["serve"])):
        assert locked[canonicalize_name(needed.name)] in needed.specifier, needed
    for name in locked.keys() - {"torch"}:  # its GPU builds bring more
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        here = metadata.version(name) == locked[name]
        for needed in map(Requirement, needs if here else ()):
            if needed.marker is None or needed.marker.evaluate(place):
                assert locked.get(canonicalize_name(needed.name), "") in needed.specifier, (name, needed)
    assert "--require-hashes" in DEPLOY["Containerfile"]
