"""Steps as CUDA graphs: rows that decode, and at most one chunk of a prompt beside them.

A graph is captured for a number of rows and a number of chunk tokens, both rounded up, and for many rows also for
whether one of them is long (`Runner.reach`). What is missing is filled with slot 0, whose state never changes and whose
keys go to scratch block 0. Decode-only graphs are captured when their size first comes, those with a chunk when it
comes for the second time: until then, and for what no graph fits, steps run eagerly, with the host as the limit for
small models (some 10 ms for 28 layers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from qwen3.engine.runner import Fed, Prompts, Runner, State

_ROWS = (1, 2, 4, 8, 16, 24, *range(32, 257, 16), 320, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
_TOKENS = (32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
_MOST_MIXED = 48  # graphs with a chunk; each holds a few megabytes
_FRESH = 2100  # prompt tokens of a first step, from which on it takes kernels of its own
Key = tuple[int, int, tuple[bool, int], int]


class Sampling(State, Protocol):
    """Such a state that also picks: one token of each row of logits, into out [R, 2]."""

    def sample(self, logits: Tensor, rows: Tensor, out: Tensor) -> None: ...


@dataclass
class Graph:
    """A captured step. inputs int32: see `Graphs._upload`; logits, out: of its rows, then of the chunk's last token."""

    rows: int
    tokens: int
    graph: torch.cuda.CUDAGraph
    inputs: Tensor
    logits: Tensor  # [rows (+ 1 with a chunk), rows of the head]
    out: Tensor  # int32 [the same, 2]
    slots: tuple[int, ...] | None = None  # that a decode-only graph's inputs name now


def current(graphs: dict[Any, Graph], layout: int) -> dict[Any, Graph]:
    """Without those of former layouts of the adapters. Of keys, number 2 is `Runner.variant`."""
    return {key: graph for key, graph in graphs.items() if not layout or key[2][1] in (0, layout)}


class Graphs:
    """The captured steps of one runner, whose samples' state `state` keeps."""

    def __init__(self, runner: Runner, state: Sampling) -> None:
        self.runner, self.state = runner, state
        self._graphs: dict[Key, Graph] = {}
        self._seen: set[Key] = set()
        self._pool: Any = None
        self._span = torch.arange(max(*_TOKENS, *_ROWS) + 1, dtype=torch.int32, device=runner.device)

    def replay(
        self, slots: Sequence[int], chunk: Fed | None = None, sampled: bool = False, longest: int | None = None
    ) -> Graph | None:
        """Run one token of each slot, and `chunk`, after which a token is sampled too if `sampled`. The graph, whose
        `out` and `logits` have a row for each slot, then the chunk's; None: nothing was run, do it otherwise.

        longest: no sample has more keys then, its new tokens included; None: any length. Too low a figure costs speed
        alone."""
        graph = self.find(len(slots), 0 if chunk is None else len(chunk.ids), longest)
        if graph is None:
            return None
        if chunk is not None:
            self._upload(graph, slots, chunk, sampled)
        elif graph.slots != (key := tuple(slots)):
            padded = [*slots, *[0] * (graph.rows - len(slots))]
            self.runner.uploads.copy(graph.inputs, torch.tensor(padded, dtype=torch.int32))
            graph.slots = key
        graph.graph.replay()
        return graph

    def find(self, rows: int, tokens: int = 0, longest: int | None = None) -> Graph | None:
        """The graph for so many rows and chunk tokens; it may be captured for that."""
        size = next((size for size in _ROWS if size >= rows), None) if rows else 0
        width = next((width for width in _TOKENS if width >= tokens), None) if tokens else 0
        if size is None or width is None or not (size or width):
            return None
        reach = self.runner.reach(size, longest)
        key = (size, width, self.runner.variant, reach)
        if key in self._graphs:
            return self._graphs[key]
        if width and (key not in self._seen or sum(k[1] > 0 for k in self._graphs) >= _MOST_MIXED):
            self._seen.add(key)
            return None
        self._graphs = current(self._graphs, key[2][1])
        self._graphs[key] = self._capture(size, width, reach)
        return self._graphs[key]

    def warm(self, chunk: int = _FRESH) -> None:
        """Compile, in parallel, what first prompts, short and long, and a lone decoding sample need: a dry run of all,
        on slot 0. chunk: most prompt tokens of a step."""
        from qwen3.kernels.gpu.launch import collect, compile_all

        inputs, out = self._blank(1), self._blank(1, 2)
        with collect() as jobs:
            for size in (128, _FRESH):
                if size == 128 or size <= min(chunk, self.runner.max_len):
                    hidden = self.runner.forward((), [Fed(0, 0, [0] * size)], self.state)
            self.state.sample(self.runner.logits(hidden[-1:]), inputs, out)
            self._step(1, 0, inputs, out)
        compile_all(jobs)

    def capture(self, rows: int) -> None:
        """Capture the decode-only graphs for up to `rows` rows, none of them long, now instead of when they are first
        needed: what they lack is compiled side by side first."""
        from qwen3.kernels.gpu.launch import collect, compile_all

        sizes = sorted({*(size for size in _ROWS if size < rows), *[s for s in _ROWS if s >= rows][:1]})
        with collect() as jobs:
            for size in sizes:
                self._step(size, 0, self._blank(size), self._blank(size, 2), self.runner.reach(size, 1))
        compile_all(jobs)
        for size in sizes:
            self.find(size, longest=1)

    def _blank(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.int32, device=self.runner.device)

    def _upload(self, graph: Graph, slots: Sequence[int], chunk: Fed, sampled: bool) -> None:
        """Slots, padded; slots that sample, padded; which row of the states each of these is; the chunk's slot, start
        and size; its ids, padded. The chunk samples right behind the slots."""
        rest = [0] * (graph.rows - len(slots))
        size = len(chunk.ids)
        values = [*slots, *rest, *slots, chunk.slot if sampled else 0, *rest]
        values += [*range(len(slots)), graph.rows + size - 1, *rest, chunk.slot, chunk.start, size, *chunk.ids]
        self.runner.uploads.copy(graph.inputs[: len(values)], torch.tensor(values, dtype=torch.int32))

    def _capture(self, rows: int, tokens: int, longest: int) -> Graph:
        from qwen3.kernels.gpu.launch import collect, compile_all

        picked = rows + (tokens > 0)
        inputs = self._blank(rows + 2 * picked + 3 + tokens if tokens else rows)
        if tokens:
            inputs[rows + 2 * picked + 2] = tokens  # of size: as many as there can be
        out = self._blank(picked, 2)
        with collect() as jobs:
            self._step(rows, tokens, inputs, out, longest)
        compile_all(jobs)
        self._step(rows, tokens, inputs, out, longest)  # libraries allocate their workspaces before the capture
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = self._step(rows, tokens, inputs, out, longest)
        self._pool = graph.pool()
        return Graph(rows, tokens, graph, inputs, logits, out)

    def _step(self, rows: int, tokens: int, inputs: Tensor, out: Tensor, longest: int | None = None) -> Tensor:
        """The step itself, from the samples' state back into it; logits of the rows that sample."""
        own, starts = inputs[:rows], self._span[: rows + 1]
        picked, places, prompts = own, None, None
        if tokens:
            picked, places, rest = inputs[rows:].split([rows + 1, rows + 1, 3 + tokens])
            starts = torch.cat([starts, rest[2:3] + rows])
            prompts = self._prompts(rest)
        hidden = self.runner.step(own, starts, self.state, prompts, max_query=tokens, longest=longest)
        logits = self.runner.logits(hidden if places is None else hidden.index_select(0, places))
        self.state.sample(logits, picked, out)
        return logits

    def _prompts(self, told: Tensor) -> Prompts:
        """From slot, start, size and ids of a chunk; tokens from `size` on go to scratch."""
        slot, start, size, ids = told[0:1], told[1:2], told[2:3], told[3:]
        span = self._span[: len(ids)]
        real, owners = span < size, slot.expand(len(ids))
        positions = torch.where(real, start + span, 0)
        places = torch.where(real, self.runner.places(owners, positions), 0)
        return Prompts(ids, positions, places, start + size, self.runner.tables[slot], owners)
