"""What tests of stages run in: a run that remembers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qwen3.train import questions
from qwen3.train.run import Run


class Recorder(Run):
    """A run that keeps what it is told, and is over after so many updates."""

    def __init__(self, folder: Path, stop_after: int = 10**9) -> None:
        self.said: list[str] = []
        self.logged: list[dict[str, Any]] = []
        self.stop_after = stop_after
        super().__init__(folder, say=self.said.append)

    def log(self, **fields: Any) -> None:
        self.logged.append(fields)
        super().log(**fields)

    @property
    def over(self) -> bool:
        return len(self.logged) >= self.stop_after


def change_model_after_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was sampled is then not of the policy that is trained."""
    real = questions.rollouts

    def perturbed(engine: Any, *args: Any, **options: Any) -> Any:
        found = real(engine, *args, **options)
        with torch.no_grad():
            engine.model.norm.weight.mul_(1.2)
        return found

    monkeypatch.setattr(questions, "rollouts", perturbed)
