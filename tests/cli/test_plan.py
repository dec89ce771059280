"""`qwen3 show --plan`: one command, no file, no torch, and every line readable in a window of 100 columns."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from qwen3 import family
from qwen3.checkpoint.sizes import FORMATS
from qwen3.plan import MACHINES
from tests.cli.conftest import Command
from tests.fixtures import random_checkpoint, tiny_config

ASKED = [
    (), ("--memory", "24GB"), ("--memory", "16GB", "--device", "cpu"), ("--memory", "4x96GB"),
    ("--memory", "24GB", "--context", "131072", "--batch", "8", "--kv-dtype", "fp8"),
    ("--memory", "64", "--format", "fp8"),
]  # fmt: skip


@pytest.mark.parametrize("asked", ASKED, ids=" ".join)
@pytest.mark.parametrize("model", [None, "qwen3:8b", "qwen3:235b"])
def test_it_reads_well(qwen3: Command, model: str | None, asked: tuple[str, ...]) -> None:
    ran = qwen3("show", *([model] if model else []), "--plan", *asked)
    assert ran.code == 0, ran.err
    assert max(map(len, ran.out.splitlines())) <= 100
    assert "LONGEST" in ran.out


def test_a_card_of_24_gb(qwen3: Command) -> None:
    """Which Qwen3 can I run, with how much context, in which format?"""
    lines = qwen3("show", "--plan", "--memory", "24GB").out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("qwen3:") and " fits  " in line}
    assert rows["qwen3:8b"][:2] == ["bf16", "15.3"]
    assert rows["qwen3:14b"][0] == "mlx-8bit"
    assert any(line.startswith("qwen3:235b-a22b") and "GiB free instead of 23.0" in line for line in lines)


def test_the_announcements(qwen3: Command) -> None:
    """235B on 4 cards of 96 GB, 32B on one card, 4B on a phone."""
    ran = qwen3("show", "--plan", "--memory", "all", "--context", "4096", "--kv-dtype", "fp8")
    head, *rows = ran.out.splitlines()[2:]
    members = head.split()
    split = [re.split(r"\s{2,}", row) for row in rows]
    cells = {name: dict(zip(members, formats, strict=True)) for name, *formats in split}
    assert list(cells) == [machine.name for machine in MACHINES]
    assert cells["4 × H20, 96 GB"]["235b-a22b"] == "Q8_0"
    assert cells["H20, 96 GB"]["235b-a22b"] == "-"
    assert cells["RTX 6000 Ada, 48 GB"]["32b"] == "Q8_0"
    assert cells["phone, 8 GB"]["4b"] == "Q5_K_M"
    assert cells["phone, 8 GB"]["0.6b"] == "bf16"
    assert max(map(len, rows)) <= 100
    told = json.loads(qwen3("show", "--plan", "--memory", "all", "--format", "fp8", "--json").out)["machines"]
    assert told["H20, 96 GB"]["qwen3:235b-a22b"] is None
    assert told["4 × H20, 96 GB"]["qwen3:235b-a22b"]["longest_context"] == 131072
    assert told["RTX 6000 Ada, 48 GB"]["qwen3:32b"]["format"] == "fp8"


def test_json_has_every_member_and_format(qwen3: Command) -> None:
    told = json.loads(qwen3("show", "--plan", "--memory", "24GB", "--json").out)
    assert list(told["models"]) == [member.tag for member in family.MODELS.values()]
    assert told["machine"] == {
        "name": "GPU, 24 GB", "device": "cuda", "count": 1, "memory_bytes": 24 << 30, "free_bytes": 23 << 30,
    }  # fmt: skip
    eight = {found["format"]: found for found in told["models"]["qwen3:8b"]}
    assert set(eight) == {name for name, form in FORMATS.items() if form.only != "cpu"}
    assert eight["bf16"]["weight_bytes"] == 2 * 8_190_735_360
    assert eight["bf16"]["kv_bytes_per_token"] == 147_456
    assert eight["fp8"]["fits"]
    assert eight["fp8"]["longest_context"] > 65536
    assert told["models"]["qwen3:4b-instruct-2507"][0]["longest_context"] > 65536
    one = json.loads(qwen3("show", "qwen3:235b", "--plan", "--memory", "4x96GB", "--json").out)
    assert list(one["machines"]) == [machine.name for machine in MACHINES]
    assert {found["format"] for found in one["formats"] if found["fits"]} >= {"fp8"}
    assert all(found["advice"] for found in one["formats"] if not found["fits"])


def test_this_machine(qwen3: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("qwen3.checkpoint.memory.available_bytes", lambda device=None: 7 << 30)
    told = json.loads(qwen3("show", "--plan", "--json").out)
    assert told["machine"]["device"] == "cpu"
    assert told["machine"]["free_bytes"] == 7 << 30
    assert "there is none here" in qwen3("show", "--plan", "--device", "cuda").error


def test_what_is_on_this_disk(qwen3: Command, model: Path, tmp_path: Path) -> None:
    told = json.loads(qwen3("show", model, "--plan", "--memory", "16GB", "--device", "cpu", "--json").out)
    stored = told["formats"][0]
    size = (model / "model.safetensors").stat().st_size
    assert stored["format"] == "as stored"
    assert 0 <= size - stored["file_bytes"] < 20_000  # the header
    assert stored["longest_context"] == 512
    moe = random_checkpoint(tmp_path / "moe", tiny_config(moe=True))
    assert "as stored" in qwen3("show", moe, "--plan", "--memory", "16GB").out


def test_published_forms(qwen3: Command) -> None:
    out = qwen3("show", "Qwen/Qwen3-8B-AWQ", "--plan", "--memory", "16GB", "--device", "cpu", "--json").out
    assert [found["format"] for found in json.loads(out)["formats"]] == ["awq"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--plan", "--memory", "lots"), 2, "--memory lots is no amount of memory; give 24GB, 4x96GB for"),
        (("--plan", "--memory", "0GB"), 2, "no amount of memory"),
        (("qwen3:8b", "--plan", "--memory", "all"), 2, "without a MODEL all"),
        (("--plan", "--memory", "2x16GB", "--device", "cpu"), 2, "several of them are GPUs"),
        (("--plan", "--memory", "24GB", "--device", "tpu"), 2, "--device tpu is not supported"),
        (("--plan", "--memory", "24GB", "--format", "q9"), 2, "--format q9 is not planned; use one of bf16, fp8"),
        (("--plan", "--memory", "24GB", "--device", "cpu", "--format", "fp8-rows"), 2, "fp8-rows is for cuda alone"),
        (("--plan", "--memory", "24GB", "--kv-dtype", "int8"), 2, "--kv-dtype int8 is not supported"),
        (("--plan", "--memory", "24GB", "--context", "0"), 2, "context 0 must be at least 1"),
        (("--plan", "--memory", "24GB", "--batch", "-1"), 2, "batch -1 must be at least 1"),
        (("nobody/nothing", "--plan", "--memory", "24GB"), 3, "nobody/nothing"),
        (("--memory", "24GB"), 2, "--memory is of the planner: say --plan, too"),
    ],
)
def test_refused(qwen3: Command, words: tuple[str, ...], code: int, message: str) -> None:
    ran = qwen3("show", *words)
    assert ran.code == code
    assert message in ran.error


def test_the_page_shows_what_is_printed(qwen3: Command) -> None:
    page = (Path(__file__).parents[2] / "docs" / "quantization.md").read_text(encoding="utf-8")
    shown = re.findall(r"<!-- plan -->\n```console\n\$ qwen3 (.*)\n((?:.*\n)*?)```\n", page)
    assert len(shown) == 2
    for words, printed in shown:
        assert qwen3(*shlex.split(words)).out.rstrip("\n") + "\n" == printed


def test_without_torch() -> None:
    check = "import sys; from qwen3.cli.main import main; main(['show', '--plan', '--memory', '24GB'])\n"
    check += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
