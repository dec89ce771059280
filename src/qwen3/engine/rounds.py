"""Rounds of guessing as CUDA graphs: the guesses of a draft model, the step that verifies them, and what the sampler
makes of it, in one launch. Nothing comes back to the host in between.

A round over R rows and K guesses is a step of R chunks of K + 1 tokens: each row's last token and its guesses. Its keys
and values are written as if all guesses were right; where a row takes fewer, its next tokens are written over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qwen3.engine.device_sampler import DeviceSampler
from qwen3.engine.draft import DraftModel
from qwen3.engine.graphs import Graph
from qwen3.engine.runner import Prompts, Runner

_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64)
MOST_ROWS = _ROWS[-1]


class Rounds:
    """The captured rounds of one runner, whose samples' state `sampler` keeps. draft: who guesses, None: the host."""

    def __init__(self, runner: Runner, sampler: DeviceSampler, draft: DraftModel | None = None) -> None:
        self.runner, self.sampler, self.draft = runner, sampler, draft
        self._graphs: dict[tuple[int, int, bool, int], Graph] = {}
        self._pool: Any = None
        self._span = torch.arange(MOST_ROWS + 1, dtype=torch.int32, device=runner.device)

    def replay(self, slots: Sequence[int], guesses: Sequence[Sequence[int]], longest: int) -> Graph | None:
        """Verify guesses, equally many a row: the host's, or where there is a draft model 0 for its own; -1: none, as
        behind those that a row has no blocks for. longest: of the rows, keys before the round, its last token included.

        The graph, whose `out` [rows or more, K + 1, 2] is as `DeviceSampler.verify` leaves it, and whose `logits` are
        [rows or more, K + 1, rows of the head]. None: nothing was run, there are too many rows or too few places.
        """
        count = len(guesses[0])
        size = next((size for size in _ROWS if size >= len(slots)), None)
        if size is None or longest + count > self.runner.max_len:
            return None
        key = size, count, self.runner.custom_experts > 0, self.runner.reach(size, longest + count)
        if key not in self._graphs:
            self._graphs[key] = self._capture(size, count, key[-1])
        graph, rest = self._graphs[key], size - len(slots)
        told = [*slots, *[0] * rest, *(guess for row in guesses for guess in row), *[-1] * (rest * count)]
        graph.inputs.copy_(torch.tensor(told, dtype=torch.int32).pin_memory(), non_blocking=True)
        graph.graph.replay()
        return graph

    def _capture(self, rows: int, count: int, longest: int) -> Graph:
        from qwen3.kernels.gpu.launch import collect, compile_all

        inputs = torch.zeros(rows * (count + 1), dtype=torch.int32, device=self.runner.device)
        inputs[rows:] = -1
        out = inputs.new_zeros(rows, count + 1, 2)
        with collect() as jobs:
            self.run(rows, count, inputs, out, longest)
        compile_all(jobs)
        self.run(rows, count, inputs, out, longest)  # libraries allocate their workspaces before the capture
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = self.run(rows, count, inputs, out, longest)
        self._pool = graph.pool()
        return Graph(rows, rows * (count + 1), graph, inputs, logits, out)

    def run(self, rows: int, count: int, told: Tensor, out: Tensor, longest: int) -> Tensor:
        """The round itself. told int32: slots [rows], guesses [rows, count]; its logits [rows, count + 1, …]."""
        runner, sampler = self.runner, self.sampler
        slots, guesses = told[:rows], told[rows:].view(rows, count)
        if self.draft is not None:
            guesses = torch.where(guesses < 0, guesses, self.draft.draft_on_device(slots, count, longest))
        ids = torch.cat([sampler.last_token.index_select(0, slots).unsqueeze(1), guesses], 1)
        first = sampler.position.index_select(0, slots)
        positions = (first.unsqueeze(1) + self._span[: count + 1]).view(-1)
        owners = slots.repeat_interleave(count + 1)
        real = torch.cat([torch.ones_like(guesses[:, :1]), guesses], 1).view(-1) >= 0
        places = torch.where(real, runner.places(owners, positions), 0)
        tables = runner.tables.index_select(0, slots)
        prompts = Prompts(ids.clamp(min=0).view(-1), positions, places, first + count + 1, tables, owners)
        starts = self._span[: rows + 1] * (count + 1)
        hidden = runner.step(slots[:0], starts, sampler, prompts, max_query=count + 1, longest=longest)
        logits = runner.logits(hidden).view(rows, count + 1, -1)
        sampler.verify(logits, slots, guesses, out)
        if self.draft is not None:
            self.draft.follow(sampler, slots)
        return logits
