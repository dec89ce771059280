"""Rounds of guessing as CUDA graphs: the guesses of a draft model, the step that verifies them, and what the sampler
makes of it, in one launch. Nothing comes back to the host in between.

A round over R rows and K guesses is a step of R chunks of K + 1 tokens: each row's last token and its guesses. Its keys
and values are written as if all guesses were right; where a row takes fewer, its next tokens are written over them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qwen3.engine.device_sampler import DeviceSampler
from qwen3.engine.draft import DraftModel
from qwen3.engine.graphs import Graph, Key, current
from qwen3.engine.pickers import DevicePicked, Drafted, Sample, outcome
from qwen3.engine.runner import Prompts, Runner
from qwen3.errors import Qwen3Error

_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64)
MOST_ROWS = _ROWS[-1]


class Round(DevicePicked):
    """What came of a round, on its way to the host: iterating waits for it. told [rows, 3 K + 2] int32: a row's `out`
    as `DeviceSampler.verify` leaves it, flat, then its guesses; logits [rows, K + 1, rows of the head]."""

    def __init__(self, items: Sequence[Sample], told: Tensor, logits: Tensor) -> None:
        super().__init__(told, len(items))
        self.items, self.logits = items, logits

    def __iter__(self) -> Iterator[Drafted]:
        for i, (item, row) in enumerate(zip(self.items, self._rows().tolist(), strict=True)):
            most = len(row) // 3
            guesses = row[2 * most + 2 :]
            count = guesses.index(-1) if -1 in guesses else most
            drafted = Drafted(item, tuple(guesses[:count]), self.logits[i, : count + 1])
            drafted.read = partial(self.read_pair, row)
            yield drafted

    @staticmethod
    def read_pair(row: list[int], place: int) -> tuple[int | Qwen3Error, int]:
        return outcome(*row[2 * place : 2 * place + 2])


class Rounds:
    """The captured rounds of one runner, whose samples' state `sampler` keeps. draft: who guesses, None: the host."""

    def __init__(self, runner: Runner, sampler: DeviceSampler, draft: DraftModel | None = None) -> None:
        self.runner, self.sampler, self.draft = runner, sampler, draft
        self._graphs: dict[Key, Graph] = {}
        self._pool: Any = None
        self._span = torch.arange(MOST_ROWS + 1, dtype=torch.int32, device=runner.device)

    def fits(self, rows: int, count: int, longest: int) -> bool:
        """Whether there are not too many rows for so many guesses, and none is at the end of its context. longest: keys
        of a row before the round, the last token's included."""
        return rows <= MOST_ROWS and longest + count <= self.runner.max_len

    def replay(self, items: Sequence[Sample], guesses: Sequence[Sequence[int]], longest: int) -> Round | None:
        """Verify guesses of samples that have blocks for them: the host's, or where there is a draft model as many of
        its own; none is a plain step. None: nothing was run, it does not fit."""
        count = max(map(len, guesses))
        if not self.fits(len(items), count, longest):
            return None
        size = next(size for size in _ROWS if size >= len(items))
        key = size, count, self.runner.variant, self.runner.reach(size, longest + count)
        if key not in self._graphs:
            self._graphs = current(self._graphs, key[2][1])
            self._graphs[key] = self._capture(size, count, key[-1])
        graph, rest = self._graphs[key], size - len(items)
        told = [item.row.slot for item in items] + [0] * rest
        for row in guesses:
            told += [*row, *[-1] * (count - len(row))]
        told += [-1] * (rest * count)
        self.runner.uploads.copy(graph.inputs, torch.tensor(told, dtype=torch.int32))
        graph.graph.replay()
        return Round(items, graph.out, graph.logits)

    def _capture(self, rows: int, count: int, longest: int) -> Graph:
        from qwen3.kernels.gpu.launch import collect, compile_all

        inputs = torch.zeros(rows * (count + 1), dtype=torch.int32, device=self.runner.device)
        inputs[rows:] = -1
        with collect() as jobs:
            self.run(rows, count, inputs, longest)
        compile_all(jobs)
        self.run(rows, count, inputs, longest)  # libraries allocate their workspaces before the capture
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            out, logits = self.run(rows, count, inputs, longest)
        self._pool = graph.pool()
        return Graph(rows, rows * (count + 1), graph, inputs, logits, out)

    def run(self, rows: int, count: int, given: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """The round itself: `told` and `logits` of a `Round`. given int32: slots [rows], guesses [rows, count], -1 for
        none; a draft model replaces the others."""
        runner, sampler = self.runner, self.sampler
        slots, guesses = given[:rows], given[rows:].view(rows, count)
        if self.draft is not None:
            guesses = torch.where(guesses < 0, guesses, self.draft.draft_on_device(slots, count, longest))
        ids = torch.cat([sampler.last_token.index_select(0, slots).unsqueeze(1), guesses], 1)
        first = sampler.position.index_select(0, slots)
        positions = (first.unsqueeze(1) + self._span[: count + 1]).view(-1)
        owners = slots.unsqueeze(1).expand(-1, count + 1).reshape(-1)
        real = torch.cat([torch.ones_like(guesses[:, :1]), guesses], 1).view(-1) >= 0
        places = torch.where(real, runner.places(owners, positions), 0)
        tables = runner.tables.index_select(0, slots)
        prompts = Prompts(ids.clamp(min=0).view(-1), positions, places, first + count + 1, tables, owners)
        starts = self._span[: rows + 1] * (count + 1)
        hidden = runner.step(slots[:0], starts, sampler, prompts, max_query=count + 1, longest=longest)
        logits = runner.logits(hidden).view(rows, count + 1, -1)
        out = torch.zeros(rows, count + 1, 2, dtype=torch.int32, device=given.device)
        sampler.verify(logits, slots, guesses, out)
        if self.draft is not None:
            self.draft.follow(sampler, slots)
        return torch.cat([out.flatten(1), guesses], 1), logits
