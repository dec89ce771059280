"""What a graph captures is the step that runs eagerly: compared without capturing, on the CPU; captured, on a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qwen3 import kernels
from qwen3.engine.graphs import Graphs
from qwen3.engine.runner import Fed, Runner
from tests.fixtures import random_model, tiny_config


def prepared(moe: bool) -> tuple[Runner, Any, list[tuple[torch.Tensor, list[int]]]]:
    """A runner in which three samples have their prompts, the state of their slots, and what is given to `sample`."""
    model = random_model(tiny_config(moe=moe))
    runner = Runner(model.stepper(), torch.device("cpu"), max_rows=6, max_len=256, blocks=64, kv_dtype=torch.float32)
    given: list[tuple[torch.Tensor, list[int]]] = []
    state = SimpleNamespace(
        last_token=torch.zeros(7, dtype=torch.int32),
        position=torch.zeros(7, dtype=torch.int32),
        sample=lambda logits, rows, out: given.append((logits.clone(), rows.tolist())),
    )
    blocks = iter(torch.randperm(60, generator=torch.Generator().manual_seed(1)).add(1).tolist())
    runner.place([(slot, i, next(blocks)) for slot in (1, 2, 3, 5) for i in range(8)])
    chunks = [Fed(1, 0, range(10, 50)), Fed(2, 0, range(100, 117)), Fed(3, 0, range(200, 201)), Fed(5, 0, range(48))]
    runner.forward((), chunks, state)
    for slot, place in ((1, 40), (2, 17), (3, 1)):
        state.last_token[slot], state.position[slot] = 300 + slot, place
    return runner, state, given


def inputs_of(graphs: Graphs, rows: int, tokens: int, slots: list[int], chunk: Fed | None, sampled: bool) -> Any:
    """What `replay` puts into a graph's inputs."""
    graph = SimpleNamespace(rows=rows, tokens=tokens, inputs=torch.zeros(500, dtype=torch.int32))
    graphs._host = lambda values: torch.tensor(values, dtype=torch.int32)  # type: ignore[method-assign]
    if chunk is None:
        graph.inputs[: len(slots)] = torch.tensor(slots, dtype=torch.int32)
    else:
        graphs._upload(graph, slots, chunk, sampled)  # type: ignore[arg-type]
    size = rows if chunk is None else rows + 2 * (rows + 1) + 3 + tokens
    return graph.inputs[:size]


@pytest.mark.parametrize("moe", [False, True])
@pytest.mark.parametrize(
    ("rows", "tokens", "slots", "size", "sampled"),
    [(4, 0, [2, 1, 3], 0, False), (4, 32, [3, 1], 21, True), (2, 32, [2, 1], 32, False), (0, 64, [], 33, True)],
)
@torch.inference_mode()
def test_a_padded_step_is_the_eager_one(
    rows: int, tokens: int, slots: list[int], size: int, sampled: bool, moe: bool
) -> None:
    with kernels.use("reference"):  # padding tokens belong to no row: the GPU's and the plain operations allow that
        check_padded_step(rows, tokens, slots, size, sampled, moe)


def check_padded_step(rows: int, tokens: int, slots: list[int], size: int, sampled: bool, moe: bool) -> None:
    runner, state, given = prepared(moe)
    chunk = Fed(5, 48, range(400, 400 + size)) if tokens else None
    graphs = Graphs(runner, state)
    out = torch.zeros(rows + (tokens > 0), 2, dtype=torch.int32)
    graphs._step(rows, tokens, inputs_of(graphs, rows, tokens, slots, chunk, sampled), out)
    found, picked = given[-1]
    eager = runner.forward(slots, [chunk] if chunk else [], state)
    ends = [*range(len(slots)), *([len(slots) + size - 1] if chunk else [])]
    expected = runner.logits(eager[ends])
    assert picked[: len(slots)] == slots
    assert picked[len(slots) :] == ([5 if sampled else 0] if chunk else []) + [0] * (rows - len(slots))
    torch.testing.assert_close(found[: len(ends)], expected, rtol=1e-4, atol=1e-4)


def test_many_rows_have_graphs_for_short_and_for_long_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    few, many = 128 // config.num_key_value_heads, 1024
    runner = Runner(random_model(config).stepper(), torch.device("cpu"), max_rows=1, max_len=8192, blocks=2,
                    kv_dtype=torch.float32)  # fmt: skip
    graphs = Graphs(runner, SimpleNamespace())  # type: ignore[arg-type]
    captured: list[tuple[int, int, int]] = []
    monkeypatch.setattr(graphs, "_capture", lambda *key: captured.append(key) or len(captured))
    assert graphs.find(few, longest=5) == graphs.find(few) == graphs.find(few, longest=8000)
    short, long = graphs.find(many, longest=4096), graphs.find(many, longest=4097)
    assert short != long == graphs.find(many)
    assert captured == [(few, 0, 8192), (many, 0, 4096), (many, 0, 8192)]
    monkeypatch.setattr(graphs, "_step", lambda *_: None)
    graphs.capture(8)
    assert [key[2] for key in captured[3:]] == [8192] * 4
    runner.invariant = True
    assert runner.reach(many, 5) == 8192


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_graph_with_a_chunk_is_captured_at_its_second_use() -> None:
    from qwen3.engine import Engine

    engine = Engine(random_model(tiny_config(head_dim=128)).cuda().bfloat16(), vocab_size=600, max_batch=8)
    assert engine.graphs.find(2, 40) is None
    with torch.inference_mode():
        graph = engine.graphs.find(2, 40)
    assert graph is not None
    assert (graph.rows, graph.tokens) == (2, 64)
    assert engine.graphs.find(2, 5000) is None
