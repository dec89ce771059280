"""Saving: what the official layout is, byte for byte, and what a kill leaves."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3.checkpoint import load_weights, official_views, resolve, save_checkpoint, verify
from qwen3.checkpoint.folder import find_weight_files, read_manifest
from qwen3.checkpoint.journal import JOURNAL, finish_interrupted_save, staging
from qwen3.config import ModelConfig
from qwen3.errors import CorruptFileError, Qwen3Error, UsageError
from qwen3.model import load_model
from tests import fixtures
from tests.checkpoint.builders import meta_model, random_model


@pytest.mark.parametrize("kind", ["dense", "moe", "sharded"])
def test_save_load_save_is_byte_identical(made: dict[str, Path], tmp_path: Path, kind: str) -> None:
    model = meta_model("moe" if kind == "moe" else "dense")
    load_weights(model, made[kind])
    generation = {"eos_token_id": [1, 2], "temperature": 0.6} if kind == "dense" else None
    shard = 30_000 if kind == "sharded" else 5e9
    save_checkpoint(tmp_path / "again", model, generation_config=generation, max_shard_bytes=shard)
    names = sorted(path.name for path in made[kind].iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in names:
        assert (made[kind] / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_bytes_are_those_of_the_safetensors_library(made: dict[str, Path], tmp_path: Path) -> None:
    model = random_model("moe")
    save_file(official_views(model.config, dict(model.named_parameters())), tmp_path / "a", metadata={"format": "pt"})
    assert (tmp_path / "a").read_bytes() == (made["moe"] / "model.safetensors").read_bytes()


def test_layout_of_shards(made: dict[str, Path]) -> None:
    index = json.loads((made["sharded"] / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in made["sharded"].glob("*.safetensors"))
    assert files == [f"model-{i:05d}-of-00005.safetensors" for i in range(1, 6)]
    assert index["metadata"] == {
        "total_size": sum(t.nbytes for f in files for t in load_file(made["sharded"] / f).values())
    }
    assert list(index["weight_map"]) == sorted(index["weight_map"])
    for name, file in index["weight_map"].items():
        assert name in load_file(made["sharded"] / file)
    assert "lm_head.weight" not in index["weight_map"]
    assert all((made["sharded"] / f).stat().st_size < 30_000 + 30_720 + 4096 for f in files)


@pytest.mark.parametrize("kind", ["dense", "moe", "sharded"])
def test_transformers_loads_what_we_save(made: dict[str, Path], kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(made[kind], dtype=torch.float32)
    ours = load_model(made[kind], "cpu", torch.float32)
    ids = torch.randint(0, 320, (2, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want, got = theirs(ids).logits, ours(ids)
    assert torch.linalg.vector_norm(want - got) <= 1e-5 * torch.linalg.vector_norm(want)


def test_manifest_config_and_extras(tmp_path: Path) -> None:
    config = fixtures.tiny_config()
    model = fixtures.random_model(config, dtype=torch.float16)
    tokenizer = fixtures.tiny_tokenizer(config)
    report = save_checkpoint(tmp_path / "m", model, tokenizer=tokenizer, extra_files={"card.md": "# ü", "b": b"\0"})
    written = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    manifest = read_manifest(tmp_path / "m")
    assert manifest == report.files
    assert set(written) == {*report.files, "qwen3.manifest.json"}
    assert all(
        (len(written[name]), hashlib.sha256(written[name]).hexdigest()) == entry for name, entry in report.files.items()
    )
    assert "tokenizer.json" in written
    assert (written["card.md"], written["b"]) == ("# ü".encode(), b"\0")
    assert ModelConfig.from_pretrained(tmp_path / "m").dtype == "float16"  # the weights', not the config's float32
    assert verify(tmp_path / "m").ok
    assert resolve(tmp_path / "m").sha256 == report.files["model.safetensors"][1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_is_refused_and_nothing_is_written(tmp_path: Path, value: float) -> None:
    model = random_model()
    with torch.no_grad():
        model.layers[1].mlp.gate_up_proj.weight[83, 5] = value
        model.layers[1].mlp.gate_up_proj.weight[159, 47] = value
    with pytest.raises(CorruptFileError, match=r"not saved: model.layers.1.mlp.up_proj.weight has 2 NaN or infinite"):
        save_checkpoint(tmp_path / "m", model)
    assert not (tmp_path / "m").exists()


def test_large_finite_values_are_fine(tmp_path: Path) -> None:
    model = random_model(dtype=torch.float32)
    with torch.no_grad():
        model.norm.weight.fill_(3e38)  # their sum overflows
    save_checkpoint(tmp_path / "m", model)
    assert verify(tmp_path / "m").findings[0].severity != "error"


def test_wrong_arguments(tmp_path: Path) -> None:
    model = random_model()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        save_checkpoint(tmp_path / "file", model)
    with pytest.raises(UsageError, match="max_shard_bytes is 0"):
        save_checkpoint(tmp_path / "m", model, max_shard_bytes=0)
    for name in ("../x", "config.json", "model.safetensors", "qwen3.manifest.json", ".hidden", ""):
        with pytest.raises(UsageError, match="plain file name"):
            save_checkpoint(tmp_path / "m", model, extra_files={name: "x"})
    with pytest.raises(UsageError, match="has no values"):
        save_checkpoint(tmp_path / "m", meta_model())
    with pytest.raises(Qwen3Error, match="cannot make this folder"):
        save_checkpoint(tmp_path / "file" / "m", model)
    assert not (tmp_path / "m").exists()


def test_full_disk_is_said_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(Qwen3Error, match=r"the weights take [\d,]+ bytes but the disk has 1,000 free"):
        save_checkpoint(tmp_path / "m", random_model())
    assert not (tmp_path / "m").exists()


def test_overwriting_replaces_the_old_files(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    save_checkpoint(folder, random_model(seed=1), max_shard_bytes=30_000, extra_files={"old.md": "x"})
    (folder / "notes.txt").write_text("the user's own")
    save_checkpoint(folder, random_model(seed=2))
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.safetensors", "config.json", "qwen3.manifest.json", "notes.txt"}
    assert which(folder) == 2


def test_two_writers(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "m", random_model(seed=1))
    with staging(tmp_path / "m"), pytest.raises(Qwen3Error, match="another process is writing"):
        save_checkpoint(tmp_path / "m", random_model(seed=2))
    assert which(tmp_path / "m") == 1


def which(folder: Path) -> int:
    """The seed of the model a folder holds, after finishing what was cut off; every parameter must agree."""
    finish_interrupted_save(folder)
    model = meta_model()
    load_weights(model, folder)
    ModelConfig.from_pretrained(folder)
    for seed in (1, 2):
        if all(
            torch.equal(a, b) for a, b in zip(model.parameters(), random_model(seed=seed).parameters(), strict=True)
        ):
            return seed
    raise AssertionError("neither the old weights nor the new ones")


def seen_by_others(folder: Path) -> None:
    """What a program that knows nothing of our journal sees: no model, or one set of weights entire."""
    if not (folder / "config.json").exists():
        return
    views = [official_views(m.config, dict(m.named_parameters())) for m in (random_model(seed=1), random_model(seed=2))]
    try:
        files = find_weight_files(folder)
    except Qwen3Error:
        return
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert any(set(v) == set(tensors) and all(torch.equal(v[n], tensors[n]) for n in v) for v in views)


STEPS = ("replace", "fsync", "unlink", "mkdir", "rmdir")


def killed_save(folder: Path, at: int, **options: Any) -> bool:
    """Saves seed 2 over `folder` in a child that dies right before its `at`-th change to the file system."""
    child = os.fork()
    if child == 0:
        left = at

        def dying(real: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    os._exit(9)
                return real(*args, **kwargs)

            return call

        for name in STEPS:
            setattr(os, name, dying(getattr(os, name)))
        try:
            save_checkpoint(folder, random_model(seed=2), **options)
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that it has written, so these tests need not wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.mark.usefixtures("quick_disk")
@pytest.mark.parametrize("shard", [5e9, 30_000])
def test_a_kill_leaves_the_old_model_or_the_new(tmp_path: Path, shard: float) -> None:
    """Killed before every single step of overwriting a sharded model, the folder holds one of the two."""
    save_checkpoint(tmp_path / "old", random_model(seed=1), max_shard_bytes=30_000)
    found = []
    for at in range(200):
        folder = tmp_path / f"at{at}"
        shutil.copytree(tmp_path / "old", folder)
        killed = killed_save(folder, at, max_shard_bytes=shard)
        seen_by_others(folder)
        found.append(which(folder))
        manifest = read_manifest(folder)
        assert manifest is not None
        for name, (_, digest) in manifest.items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
        assert not (folder / JOURNAL).exists()
        save_checkpoint(folder, random_model(seed=1))  # and it can be saved into again
        assert not list(folder.glob(".saving-*"))
        shutil.rmtree(folder)
        if not killed:
            break
    assert found[0] == 1
    assert found[-1] == 2
    assert found == sorted(found)  # one moment at which the new model takes over
    assert len(found) > 15


@pytest.mark.usefixtures("quick_disk")
def test_a_kill_in_a_new_folder_leaves_nothing_that_loads(tmp_path: Path) -> None:
    loaded = 0
    for at in range(200):
        folder = tmp_path / f"at{at}"
        killed = killed_save(folder, at, max_shard_bytes=30_000)
        try:
            loaded += which(folder) == 2
        except Qwen3Error:
            assert killed
        if not killed:
            break
    assert loaded > 2


def test_a_journal_cannot_reach_outside(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "m", random_model(seed=1))
    (tmp_path / "victim").write_text("x")
    for bad in (
        {"staging": ".saving-1", "move": [], "remove": ["../victim"]},
        {"staging": "../x", "move": ["config.json"], "remove": []},
        {"staging": ".saving-1", "move": [3], "remove": []},
        {"staging": ".saving-1", "move": "config.json", "remove": []},
        [],
    ):
        (tmp_path / "m" / JOURNAL).write_text(json.dumps(bad))
        with pytest.raises(CorruptFileError, match="not a journal"):
            load_weights(meta_model(), tmp_path / "m")
    (tmp_path / "m" / JOURNAL).write_text(json.dumps({"staging": ".saving-1", "move": ["ghost"], "remove": []}))
    with pytest.raises(CorruptFileError, match="lost ghost"):
        load_weights(meta_model(), tmp_path / "m")
    assert (tmp_path / "victim").exists()
