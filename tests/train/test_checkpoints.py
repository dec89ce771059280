"""Checkpoints: bitwise resumption whenever a run is killed, damaged files, other runs' files, errors that are told."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qwen3.errors import CorruptFileError, Qwen3Error
from qwen3.train.checkpoints import Checkpoints, random_state, restore_random, rewind
from tests.train import killed_run

CPU = torch.device("cpu")
KILLS, FOREVER = 20, 1_000_000


def some_tensors(value: float = 1.0) -> dict[str, Tensor]:
    return {"a": torch.full((3, 4), value), "b": torch.arange(5, dtype=torch.uint8), "c": torch.zeros(0, 2)}


def lines_of(folder: Path) -> int:
    log = folder / "log.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    """SIGKILL at random points, also while a checkpoint is written: every parameter, moment, generator and line of the
    log is that of the run nobody killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.train.killed_run"])
    rng = random.Random(0)
    folder, kills = tmp_path / "killed", 0
    while kills < KILLS:
        process = context.Process(target=killed_run.run, args=(folder, FOREVER))
        wanted = lines_of(folder) + rng.randint(0, 5)
        process.start()
        while process.is_alive() and lines_of(folder) < wanted:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.03)
        process.kill()
        process.join()
        assert process.exitcode == -9  # not finished by itself
        kills += 1
    updates = lines_of(folder) // 2 * 2 + 6
    for target in (folder, tmp_path / "whole"):
        process = context.Process(target=killed_run.run, args=(target, updates))
        process.start()
        process.join()
        assert process.exitcode == 0
    killed, whole = (p / "log.jsonl" for p in (folder, tmp_path / "whole"))
    assert killed.read_text() == whole.read_text()
    assert lines_of(folder) == updates
    last = [sorted((p / "checkpoints").glob("step-*"))[-1] / "manifest.json" for p in (folder, tmp_path / "whole")]
    assert last[0].read_text() == last[1].read_text()


def test_what_is_saved_is_what_was_there_when_save_was_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer is held up; meanwhile the tensors and the state go on changing."""
    store, go = Checkpoints(tmp_path), threading.Event()
    write = store._write
    monkeypatch.setattr(store, "_write", lambda *args: (go.wait(), write(*args)))
    tensors, state = some_tensors(), {"place": [1, 2]}
    store.save(7, tensors, state, {})
    tensors["a"].fill_(9.0)
    state["place"].append(3)
    go.set()
    store.finish()
    found = Checkpoints(tmp_path).load({})
    assert found is not None
    assert found[1] == {"place": [1, 2]}
    for name, expected in some_tensors().items():
        assert torch.equal(found[0][name], expected)
        assert found[0][name].dtype == expected.dtype


def test_the_newest_are_kept_and_a_step_saved_again_comes_last(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path, keep=2)
    for step, value in ((1, 1.0), (2, 2.0), (3, 3.0), (3, 4.0)):
        store.save(step, some_tensors(value), {"value": value}, {})
    store.finish()
    assert [folder.name for folder in store.folders()] == ["step-00000003", "step-00000003-001"]
    found = store.load({})
    assert found is not None
    assert found[1] == {"value": 4.0}


def damage(folder: Path, how: str) -> None:
    tensors, manifest = folder / "state.safetensors", folder / "manifest.json"
    if how == "a flipped bit":
        raw = bytearray(tensors.read_bytes())
        raw[-3] ^= 1
        tensors.write_bytes(raw)
    elif how == "cut off":
        tensors.write_bytes(tensors.read_bytes()[:-10])
    elif how == "no manifest":
        manifest.unlink()
    elif how == "no JSON":
        manifest.write_text("{")
    elif how == "another shape":
        manifest.write_text("[]")
    else:
        shutil.rmtree(folder)
        folder.mkdir()


@pytest.mark.parametrize("how", ["a flipped bit", "cut off", "no manifest", "no JSON", "another shape", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, how: str) -> None:
    store = Checkpoints(tmp_path)
    for step in (1, 2):
        store.save(step, some_tensors(step), {"step": step}, {})
    store.finish()
    damage(tmp_path / "step-00000002", how)
    with pytest.warns(UserWarning, match=r"step-00000002.*going back to the checkpoint before it"):
        found = store.load({})
    assert found is not None
    assert found[1] == {"step": 1}
    damage(tmp_path / "step-00000001", how)
    with (
        pytest.warns(UserWarning, match="step-00000001"),
        pytest.raises(CorruptFileError, match="all 2 checkpoints are damaged"),
    ):
        store.load({})


def test_none_is_none_and_rests_of_a_killed_writer_are_cleared(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path / "new")
    assert store.load({}) is None
    (tmp_path / "new" / ".step-00000009").mkdir(parents=True)
    assert store.load({}) is None
    store.save(1, some_tensors(), {}, {})
    store.finish()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["step-00000001"]


def test_another_runs_checkpoint_is_refused_by_field(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path)
    store.save(1, some_tensors(), {}, {"optim": {"lr": 0.1, "betas": (0.9, 0.95)}, "model": 3})
    assert store.load({"model": 3, "optim": {"betas": (0.9, 0.95), "lr": 0.1}}) is not None
    with pytest.raises(CorruptFileError, match=r"another run: optim\.lr was 0\.1, now it is 0\.2"):
        store.load({"model": 3, "optim": {"betas": (0.9, 0.95), "lr": 0.2}})


def test_a_failed_write_is_told_by_the_next_call(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Checkpoints(tmp_path / "file")
    store.save(1, some_tensors(), {}, {})
    with pytest.raises(Qwen3Error, match="the checkpoint could not be written"):
        store.save(2, some_tensors(), {}, {})
    store.finish()  # told once


def test_every_generator_goes_on_where_it_was() -> None:
    def draw() -> list[Any]:
        return [random.gauss(0, 1), np.random.standard_normal(3).tolist(), torch.randn(3).tolist()]

    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    draw()
    random.gauss(0, 1)  # one of a pair: the other half is part of the state
    numbers, tensors = random_state(CPU)
    expected = draw()
    draw()
    restore_random(CPU, json.loads(json.dumps(numbers)), {name: t.clone() for name, t in tensors.items()})
    assert draw() == expected


def test_the_log_is_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    rewind(log, 3)
    assert not log.exists()
    log.write_text('{"event": "start"}\n' + "".join(f'{{"update": {i}}}\n' for i in range(1, 6)) + '{"upda')
    rewind(log, 3)
    assert log.read_text() == '{"event": "start"}\n{"update": 1}\n{"update": 2}\n{"update": 3}\n'
