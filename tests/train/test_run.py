"""The loop of all stages: numbers read late or at once, losses that leave their course, a disk that is full."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from qwen3.errors import CorruptFileError, Qwen3Error, UsageError
from qwen3.train import run as run_module
from qwen3.train.optim import OptimConfig
from qwen3.train.packing import PackedBatch
from qwen3.train.run import Run, TrainingError, ended_stages, loop
from qwen3.train.trainer import CrossEntropy, Metrics, Trainer
from tests.fixtures import random_model, tiny_config
from tests.train.recorder import Recorder
from tests.train.test_forward import batch_of


class Scripted:
    """A trainer whose losses are given. reads: at which update the numbers of which were looked at."""

    def __init__(self, losses: Sequence[float]) -> None:
        self.device = torch.device("cpu")
        self.losses, self.made, self.saved, self.reads = losses, 0, [], []  # type: ignore[var-annotated]

    def load(self, folder: Path) -> None:
        return None

    def update(self, batches: Sequence[PackedBatch], loss: Any, scale: float) -> Metrics:
        self.made += 1
        outer, mine = self, self.made

        class Read(Metrics):
            def _all(self) -> dict[str, float]:
                if self._names:
                    outer.reads.append((mine, outer.made))
                return super()._all()

        known = {"tokens": 8.0, "trained": 8.0, "seconds": 1.0, "tokens_per_second": 8.0}
        return Read(known, {"loss": torch.tensor(self.losses[mine - 1]), "norm": torch.tensor(1.0)})

    def save(self, folder: Path, position: Mapping[str, Any]) -> None:
        assert len(self.reads) == self.made, "a checkpoint is written of what was looked at"
        self.saved.append(position["update"])

    def finish(self) -> None:
        pass


def batches(update: int) -> list[PackedBatch]:
    return [batch_of([30, 17, 9, 20, 5], rows=2, seed=update)]


def scripted(folder: Path, losses: Sequence[float], late: bool, **options: Any) -> tuple[Recorder, Scripted]:
    run, trainer = Recorder(folder), Scripted(losses)
    loop(run, trainer, "s", len(losses), batches, CrossEntropy(), lambda i: 1.0, late=late, **options)  # type: ignore[arg-type]
    return run, trainer


def test_numbers_are_read_one_update_late_and_before_checkpoints(tmp_path: Path) -> None:
    losses = [3.0, 2.5, 2.0, 1.5, 1.2]
    now, soon = (scripted(tmp_path / str(late), losses, late, save_every=3) for late in (False, True))
    assert now[1].reads == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]
    assert soon[1].reads == [(1, 2), (2, 3), (3, 3), (4, 5), (5, 5)]
    assert now[1].saved == soon[1].saved == [3, 5]
    assert [line["update"] for line in soon[0].logged] == [1, 2, 3, 4, 5]
    assert [line["loss"] for line in soon[0].logged] == [line["loss"] for line in now[0].logged] == losses


@pytest.mark.parametrize("late", [False, True])
def test_a_loss_that_is_not_finite_keeps_its_own_batch(tmp_path: Path, late: bool) -> None:
    with pytest.raises(TrainingError, match="update 3 has a loss of nan") as found:
        scripted(tmp_path, [3.0, 2.0, math.nan, math.nan, 1.0], late)
    kept = np.load(next(tmp_path.glob("*.npz")))
    assert "s-3-batches.npz" in str(found.value)
    assert (kept["0/ids"] == batches(2)[0].ids).all()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == [1, 2]


@pytest.mark.parametrize("late", [False, True])
def test_three_spikes_in_a_row_stop_a_run_that_is_watched(tmp_path: Path, late: bool) -> None:
    losses = [2.0] * 20 + [40.0, 2.0, 40.0, 40.0, 40.0, 40.0]
    with pytest.raises(TrainingError, match=r"the loss is 40 at update 25, its running mean \d\.\d+; .*s-25-batches"):
        scripted(tmp_path / "watched", losses, late)
    scripted(tmp_path / "free", losses, late, watch=False)


def test_what_was_made_is_logged_when_the_next_batch_fails(tmp_path: Path) -> None:
    """And a loss that was not finite is told instead of what followed from it."""

    def failing(update: int) -> list[PackedBatch]:
        if update == 2:
            raise UsageError("no more data")
        return batches(update)

    for losses, error in (([3.0, 2.0, 1.0], "no more data"), ([3.0, math.inf, 1.0], "update 2 has a loss of inf")):
        run = Recorder(tmp_path / error)
        with pytest.raises(Qwen3Error, match=error):
            loop(run, Scripted(losses), "s", 3, failing, CrossEntropy(), lambda i: 1.0, late=True)  # type: ignore[arg-type]
        assert [line["update"] for line in run.logged] == ([1, 2] if losses[1] == 2.0 else [1])


def test_late_or_not_stopped_or_not_the_weights_are_the_same(tmp_path: Path) -> None:
    def trained(folder: str, late: bool, *stops: int) -> dict[str, torch.Tensor]:
        for stop in (*stops, 10**9):
            trainer = Trainer(random_model(tiny_config(num_hidden_layers=1)), OptimConfig(), seed=1)
            run = Recorder(tmp_path / folder, stop)
            loop(
                run, trainer, "s", 6, batches, CrossEntropy(), lambda i: 1 - i / 6,
                save_every=2, late=late, after=lambda update: {"twice": 2 * update},
            )  # fmt: skip
        lines = [json.loads(line) for line in (tmp_path / folder / "log.jsonl").read_text().splitlines()]
        assert [(line["update"], line["twice"]) for line in lines] == [(i, 2 * i) for i in range(1, 7)]
        return dict(trainer.model.named_parameters())

    whole = trained("whole", False)
    for name, late, stops in (("late", True, ()), ("parts", True, (1, 2))):
        found = trained(name, late, *stops)
        assert all(torch.equal(p, found[n]) for n, p in whole.items()), name


def test_going_on_drops_lines_of_its_own_stage_alone(tmp_path: Path) -> None:
    Run(tmp_path, say=print).log(stage="before", update=900, loss=1.0)
    for stop in (3, 10**9):
        trainer = Trainer(random_model(tiny_config(num_hidden_layers=1)), OptimConfig(), seed=1)
        run = Recorder(tmp_path, stop)
        loop(run, trainer, "s", 4, batches, CrossEntropy(), lambda i: 1.0, save_every=0)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["update"]) for line in lines] == [("before", 900), *(("s", i) for i in (1, 2, 3, 4))]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(Qwen3Error, match=r"log\.jsonl could not be written \(No space left on device\)"):
        Run(tmp_path, say=print).log(update=1)


def test_stages_that_have_ended_are_read_or_named_as_damaged(tmp_path: Path) -> None:
    assert ended_stages(tmp_path) == {}
    Run(tmp_path, say=print).mark_done("one", {"finished": True})
    assert ended_stages(tmp_path) == {"one": {"finished": True}}
    (tmp_path / "done.json").write_text('{"one": ')
    with pytest.raises(CorruptFileError, match=r"done\.json is no JSON"):
        ended_stages(tmp_path)


def test_tensorboard_takes_each_stages_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Any] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            written.append((Path(folder).relative_to(tmp_path).as_posix(), purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            written.append("closed")

    fake = ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    run = Run(tmp_path, say=print, tensorboard=True)
    run.log(stage="s", update=4, loss=2.0, note="text")
    run.log(event="stage", stage="s", seconds=1.0)
    run.close()
    assert written == [("tensorboard/s", 4), ("loss", 2.0, 4), "closed"]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # an import of it fails
    with pytest.raises(UsageError, match=r"pip install 'qwen3\[train\]'"):
        Run(tmp_path, tensorboard=True)
    Run(tmp_path)  # nobody asked


def test_only_the_first_process_speaks_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "process", lambda: 1)
    said: list[str] = []
    run = Run(tmp_path, say=said.append)
    run.say("x")
    run.log(update=1)
    run.mark_done("s", {})
    assert (said, list(tmp_path.iterdir())) == ([], [])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpus_numbers_are_the_same_late_or_not(tmp_path: Path) -> None:
    losses = []
    for late in (True, False):
        model = random_model(tiny_config(num_hidden_layers=1)).to("cuda", torch.bfloat16)
        run = Recorder(tmp_path / str(late))
        trainer = Trainer(model, OptimConfig(kind="adamw"), seed=1, compiling="none")
        loop(run, trainer, "s", 5, batches, CrossEntropy(), lambda i: 1.0, save_every=2, late=late)
        losses.append([line["loss"] for line in run.logged])
    assert losses[0] == losses[1]
