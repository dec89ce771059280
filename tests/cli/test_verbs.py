"""`show`, `ls`, `pull`, `verify`, `doctor`, `version` and the help."""

from __future__ import annotations

import json
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from qwen3 import __version__, family
from qwen3.cli import doctor
from tests.checkpoint.fake_hub import FakeHub
from tests.cli.conftest import Command
from tests.fixtures import random_checkpoint, tiny_config

REPO = "Qwen/Qwen3-0.6B"


@pytest.fixture
def hub(plain_model: Path, qwen3: Command, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that has Qwen3-0.6B; what it serves is the tiny model."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with FakeHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hub.add(REPO, {path.name: path.read_bytes() for path in plain_model.iterdir()})
        yield hub


def test_pull_then_everything_works_offline(
    qwen3: Command, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pulled = qwen3("pull", "qwen3:0.6b")
    assert pulled.code == 0
    folder = Path(pulled.out.strip())
    assert (folder / "model.safetensors").is_file()
    assert folder.is_relative_to(tmp_path / "hf")
    assert REPO in pulled.err
    again = json.loads(qwen3("pull", "qwen3:0.6b", "--json").out)
    assert again["source"] == "cache"
    assert Path(again["path"]) == folder

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ran = qwen3("run", "qwen3:0.6b", "hi", "--json", "-n", "3")
    assert json.loads(ran.out)["model"]["repo"] == REPO
    assert again["commit"] in ran.err
    listed = json.loads(qwen3("ls", "--json").out)["models"]
    assert [model["name"] for model in listed if model["source"] == "huggingface"] == [REPO]
    assert f"{REPO}  " in qwen3("ls").out
    assert "on this disk" in qwen3("ls", "--all").out
    facts = json.loads(qwen3("show", "qwen3:0.6b", "--json").out)
    assert facts["path"] == str(folder)
    assert facts["revision"] == again["commit"]
    assert qwen3("verify", "qwen3:0.6b").code == 0


def test_pull_refuses_what_is_no_hub_name(qwen3: Command, model: Path) -> None:
    ran = qwen3("pull", model)
    assert ran.code == 2
    assert "already on this disk" in ran.error


def test_a_cache_that_cannot_be_written(
    qwen3: Command, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file" / "below"))  # not even root can write there
    ran = qwen3("pull", "qwen3:0.6b")
    assert ran.code == 1
    assert "HF_HOME" in ran.error
    cache = {c["name"]: c for c in json.loads(qwen3("doctor", "--offline", "--json").out)["checks"]}["cache"]
    assert cache["status"] == "warn"
    assert "HF_HOME" in cache["detail"]


@pytest.mark.parametrize("name", ["qwen3:8b", "Qwen/Qwen3-8B", "Qwen/Qwen3-8B@main", "QWEN3:8B"])
def test_show_knows_the_family_without_a_file(qwen3: Command, name: str) -> None:
    facts = json.loads(qwen3("show", name, "--json").out)
    member = family.MODELS["Qwen3-8B"]
    assert facts["path"] is None
    assert facts["parameters"] == member.params == 8_190_735_360
    assert facts["kv_bytes_per_token"] == 147_456
    assert facts["modes"] == ["thinking", "non-thinking"]
    assert facts["sampling"]["thinking"] == {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0}
    text = qwen3("show", name).out
    assert "8.19B (8,190,735,360)" in text
    assert "qwen3 pull qwen3:8b" in text


def test_show_says_what_cannot_think_and_what_must(qwen3: Command) -> None:
    assert json.loads(qwen3("show", "qwen3:4b-instruct-2507", "--json").out)["modes"] == ["non-thinking"]
    assert json.loads(qwen3("show", "qwen3:4b-thinking-2507", "--json").out)["modes"] == ["thinking"]
    assert "3.35B active" in qwen3("show", "qwen3:30b").out


def test_show_of_a_folder(qwen3: Command, model: Path, tmp_path: Path) -> None:
    facts = json.loads(qwen3("show", model, "--json").out)
    assert facts["name"] == "tiny"
    assert facts["context"] == 512
    assert facts["template"] == "qwen3"
    assert {file["name"] for file in facts["files"]} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert "file model.safetensors" in qwen3("show", model).out
    moe = random_checkpoint(tmp_path / "moe", tiny_config(moe=True))
    assert "8 experts, 2 active" in qwen3("show", moe).out


def test_ls_all_lists_every_published_model(qwen3: Command) -> None:
    published = json.loads(qwen3("ls", "--all", "--json").out)["published"]
    assert [model["tag"] for model in published] == [member.tag for member in family.MODELS.values()]
    text = qwen3("ls", "--all").out
    assert all(member.tag in text for member in family.MODELS.values())


def test_verify_says_what_it_read(qwen3: Command, model: Path) -> None:
    ran = qwen3("verify", model)
    assert ran.code == 0
    assert ran.out.splitlines()[-1].startswith(f"sound: {model} (24 tensors")
    value = json.loads(qwen3("verify", model, "--json").out)
    assert value["ok"] is True
    assert value["tensors"] == 24


def test_doctor_checks_every_part(qwen3: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    value = json.loads(qwen3("doctor", "--json").out)
    checks = {check["name"]: check for check in value["checks"]}
    assert list(checks) == [
        "python", "torch", "device", "kernels", "memory", "cache", "disk", "hub", "tokenizer", "embedded",
    ]  # fmt: skip
    assert checks["hub"]["detail"].endswith("(HF_HUB_OFFLINE is set)")
    assert checks["tokenizer"]["status"] == "ok"
    assert len(qwen3("doctor", "--offline").out.splitlines()) == 10
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    hub = {c["name"]: c for c in json.loads(qwen3("doctor", "--json").out)["checks"]}["hub"]
    assert hub["status"] == "warn"
    assert "127.0.0.1:9" in hub["detail"]


def test_doctor_fails_on_a_changed_tokenizer(qwen3: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MERGES_SHA256", "0" * 64)
    ran = qwen3("doctor", "--offline")
    assert ran.code == 1
    assert re.search(r"^fail  tokenizer .* reinstall qwen3$", ran.out, re.MULTILINE)


@pytest.fixture
def embedded(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model in the embedded one's place, with a card."""
    folder = tmp_path / "package" / "data" / "embedded"
    shutil.copytree(model, folder)
    (folder / "README.md").write_text("# Wren\n\nIt can **add**.\n")
    package = SimpleNamespace(files=lambda _: tmp_path / "package")
    monkeypatch.setattr("qwen3.checkpoint.resolved.resources", package)
    return folder


def test_without_a_model_it_is_the_embedded_one_which_says_what_it_is(qwen3: Command, embedded: Path) -> None:
    for arguments in (("run", "hi"), ("run", "embedded", "hi"), ("run", "-m", "embedded", "-p", "hi")):
        ran = qwen3(*arguments, "-n", "3")
        assert ran.code == 0
        first = ran.err.splitlines()[0]
        assert first.startswith("model: embedded, sha256 ")
        assert first.endswith("a demonstration model; for real work: qwen3 run qwen3:0.6b")
    assert qwen3("show").out.endswith("# Wren\n\nIt can **add**.\n")
    assert json.loads(qwen3("show", "embedded", "--json").out)["card"].startswith("# Wren")
    assert qwen3("ls").out.splitlines()[1].startswith("embedded")
    assert qwen3("verify").code == 0


def test_a_terminal_gets_the_card_rendered(qwen3: Command, embedded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = SimpleNamespace(stdout=SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("qwen3.cli.show.sys", terminal)
    card = qwen3("show").out
    assert "Wren" in card
    assert "It can add." in card


def test_doctor_knows_a_damaged_embedded_model(qwen3: Command, embedded: Path) -> None:
    assert qwen3("doctor", "--offline").code == 0
    file = embedded / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    ran = qwen3("doctor", "--offline")
    assert ran.code == 1
    assert "model.safetensors is not what was packaged" in ran.out


def test_version_and_help(qwen3: Command) -> None:
    for arguments in (("version",), ("--version",)):
        assert qwen3(*arguments).out.startswith(f"qwen3 {__version__} (Python {platform.python_version()}, torch ")
    assert json.loads(qwen3("version", "--json").out)["qwen3"] == __version__
    everything = qwen3("-h")
    verbs = ("run", "show", "ls", "pull", "verify", "doctor", "version")
    assert everything.code == 0
    for verb in verbs:
        assert verb in everything.out
        for flag in ("-h", "--help"):
            ran = qwen3(verb, flag)
            assert ran.code == 0
            assert f"Example: qwen3 {verb}" in ran.out
            assert "--json" in ran.out
    nothing = qwen3()
    assert nothing.code == 2
    assert "Usage: qwen3" in nothing.out
    assert nothing.err.strip() == ""
