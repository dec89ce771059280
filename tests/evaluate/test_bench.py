"""`qwen3 bench`: the definitions, the floors' arithmetic, children, budget, bad input."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qwen3 import family, kernels
from qwen3.checkpoint import save_checkpoint
from qwen3.errors import ModelNotFoundError, OutOfMemoryError, UsageError
from qwen3.evaluate import bench, workloads
from qwen3.evaluate.floors import Roofline, distinct_experts
from qwen3.evaluate.machine import Ceilings, Energy, measure_ceilings
from qwen3.evaluate.workloads import GPU, SIZES, Settings
from tests.fixtures import random_model, tiny_config

H100 = Ceilings(copy=3.03e12, read=3.1e12, bf16=804e12, fp8=1473e12, attention=579e12)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "tiny"
    save_checkpoint(path, random_model(tiny_config()))
    return path


# Definitions


def test_the_batch_is_the_peers_batch() -> None:
    inputs, outputs = workloads.offline_lengths(256, 34_000)
    rng = random.Random(0)
    assert inputs == [rng.randint(100, 1024) for _ in range(256)]
    assert outputs == [rng.randint(100, 1024) for _ in range(256)]
    read = sum(out * inp + out * (out - 1) // 2 for inp, out in zip(inputs, outputs, strict=True))
    assert 132.2e6 < read < 132.8e6  # keys and values read, in tokens
    small = workloads.offline_lengths(32, 34_000)
    assert small == (inputs[:32], outputs[:32])
    with pytest.raises(UsageError, match="max_len is 512"):
        workloads.offline_lengths(32, 512)


def test_sizes_are_the_eight_published_ones() -> None:
    assert {f"Qwen3-{size}" for size in SIZES} == {m.name for m in family.MODELS.values() if m.mode == "hybrid"}


def test_random_weights_have_the_scale_they_should() -> None:
    model = workloads.random_model(tiny_config(moe=True), CPU, torch.float32)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert (parameter == 1).all(), name
        else:
            assert 0.017 < parameter.std() < 0.023, name


# Floors


@pytest.mark.parametrize(
    ("size", "decode", "offline"),
    [("0.6B", (2580, 16000, 45000), 26200), ("8B", (205, 1600, 6000), 10300), ("30B-A3B", (500, 952, 1840), 5900)],
)
def test_floors_agree_with_those_worked_out_by_hand(size: str, decode: tuple[int, ...], offline: int) -> None:
    floor = Roofline(family.MODELS[f"Qwen3-{size}"].config, H100)
    for streams, wanted in zip((1, 8, 32), decode, strict=True):
        rate = streams * 256 / floor.decode([128] * streams, 16, 272)
        assert rate == pytest.approx(wanted, rel=0.08)
    inputs, outputs = workloads.offline_lengths(256, 34_000)
    assert sum(outputs) / floor.batch(inputs, outputs) == pytest.approx(offline, rel=0.02)


def test_floors_of_fp8_and_of_long_prompts() -> None:
    inputs, outputs = workloads.offline_lengths(256, 34_000)
    eight = Roofline(family.MODELS["Qwen3-8B"].config, H100, weight_bytes=1, kv_bytes=1)
    assert sum(outputs) / eight.batch(inputs, outputs) == pytest.approx(20_000, rel=0.02)
    small = Roofline(family.MODELS["Qwen3-0.6B"].config, H100)
    assert small.prefill([32768]) == pytest.approx(0.250, rel=0.02)
    flash = Roofline(small.config, replace(H100, attention=292e12))
    assert flash.prefill([32768]) == pytest.approx(0.460, rel=0.02)


def test_counted_experts_replace_the_expected_number() -> None:
    config = family.MODELS["Qwen3-30B-A3B"].config
    expected = distinct_experts(128, 8, 8)
    plain, counted = Roofline(config, H100), Roofline(config, H100, distinct={8: expected / 2})
    assert counted.decode_step(8, 1000) < 0.7 * plain.decode_step(8, 1000)
    assert counted.decode_step(32, 1000) == plain.decode_step(32, 1000)


def test_uniform_routing_uses_as_many_experts_as_expected() -> None:
    """And `count_experts` draws the same choice again."""
    requests = [SimpleNamespace(ids=[1] * 5, output=[100 * i + j for j in range(40)]) for i in range(8)]
    config = tiny_config(moe=True, num_experts=128, num_experts_per_tok=8)
    subject: Any = SimpleNamespace(config=config, device=CPU)
    mean = workloads.count_experts(subject, requests, 32)
    assert mean == pytest.approx(distinct_experts(128, 8, 8), rel=0.03)
    ids, positions = torch.tensor([138], dtype=torch.int32), torch.tensor([43], dtype=torch.int32)
    first = kernels.uniform_logits(ids, positions, 0, 128)
    assert torch.equal(first, kernels.uniform_logits(ids, positions, 0, 128))
    assert not torch.equal(first, kernels.uniform_logits(ids, positions, 1, 128))


def test_ceilings_of_this_machine() -> None:
    found = measure_ceilings(CPU, elements=1 << 20)
    assert found.read is not None
    assert 1e8 < found.read < 1e13
    assert found.float32 is not None
    assert found.fp8 is None
    assert Ceilings.from_dict(found.to_dict()) == found
    assert Energy(CPU).read() is None


# Workloads, on a clock that only the engine moves


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class FakeEngine:
    """A step costs `step` seconds, ten times as much before `warm`, and 1 ms for every 1,024 prompt tokens it feeds."""

    stall: float | None = None
    stream_stall = 0.004
    vocab_size = 151_936

    def warm_up(self, rows: int) -> None:
        assert rows > 0

    def __init__(self, clock: Clock, step: float = 0.01, warm: float = 0.0, chunk: int = 4096) -> None:
        self.clock, self.step, self.warm, self.chunk = clock, step, warm, chunk
        self.live: list[Any] = []
        self.left: dict[int, int] = {}  # tokens of a request's prompt
        self.made: dict[int, list[int]] = {}

    def add(self, request: Any) -> None:
        request.id = id(request)
        self.left[request.id], self.made[request.id] = len(request.ids), []
        self.live.append(request)

    @property
    def has_work(self) -> bool:
        return bool(self.live)

    def cancel(self, request_id: int) -> None:
        self.live = [request for request in self.live if request.id != request_id]

    def advance(self) -> None:
        budget, fed = self.chunk, 0
        for request in self.live:
            part = min(budget, self.left[request.id])
            self.left[request.id], budget, fed = self.left[request.id] - part, budget - part, fed + part
            if not self.left[request.id]:
                self.made[request.id].append(7)
        self.clock.now += self.step * (10 if self.clock.now < self.warm else 1) + fed / 1024e3
        for request in [r for r in self.live if len(self.made[r.id]) == r.params.max_tokens]:
            request.tokens[:], request.finish_reason = self.made[request.id], "length"
            self.live.remove(request)


@pytest.fixture
def subject(monkeypatch: pytest.MonkeyPatch) -> workloads.Subject:
    clock = Clock()
    monkeypatch.setattr(workloads, "time", clock)
    made = object.__new__(workloads.Subject)
    made.settings = Settings("0.6B", "cpu")
    made.started, made.device, made.max_len = 0.0, CPU, 34_000
    made.config = family.MODELS["Qwen3-0.6B"].config
    made.engine = FakeEngine(clock)  # type: ignore[assignment]
    return made


def test_decode_and_prefill_rates(subject: workloads.Subject) -> None:
    rates, requests = workloads.decode(subject, 8, 256, 2)
    assert rates == pytest.approx([800.0, 800.0])
    assert [len(request.output) for request in requests] == [272] * 8
    assert workloads.prefill(subject, 64, 2) == pytest.approx([65536 / (16 * 0.01 + 0.064)] * 2)
    assert workloads.ttft(subject, 1024, 3) == pytest.approx([11.0] * 3)
    assert workloads.streams_point(subject, 4) == pytest.approx(400.0)
    first, rate = workloads.context_point(subject, 8192)
    assert (first, rate) == pytest.approx((28.0, 100.0))


def test_prompts_are_the_peers_prompts(subject: workloads.Subject) -> None:
    first, second = subject.requests([3, 4], [1, 1], seed=5)
    rng = random.Random(5)
    assert first.ids == [rng.randint(0, 10000) for _ in range(3)]
    assert second.ids == [rng.randint(0, 10000) for _ in range(4)]
    assert (first.params.temperature, first.params.ignore_eos, first.params.top_p) == (0.6, True, 1.0)
    assert first.stream is None


def test_full_speed_is_when_the_slow_steps_end(subject: workloads.Subject) -> None:
    subject.engine.warm = 5.0  # type: ignore[attr-defined]
    assert workloads.ready(subject) == pytest.approx(0.1, abs=0.01)
    found = workloads.full_speed(subject, 100)
    assert found["s"] == pytest.approx(5.0, abs=0.2)
    assert found["tok_s"] == pytest.approx(100.0)


def test_gap_is_seen_while_the_long_prompt_runs(subject: workloads.Subject) -> None:
    found = workloads.gap(subject, streams=4, length=32768)
    assert found["median_before_ms"] == pytest.approx(10.0)
    assert found["max_ms"] == pytest.approx(14.0)
    assert found["ratio"] == pytest.approx(1.4)
    assert found["steps"] == 8
    assert not subject.engine.has_work


def test_offline_counts_energy(subject: workloads.Subject) -> None:
    counter = iter((100.0, 400.0))
    found = workloads.offline(subject, 32, lambda: next(counter))
    assert found["joules"] == 300.0
    assert found["joules_per_out_tok"] == pytest.approx(300.0 / found["out_tok"])
    assert found["out_tok_s"] == pytest.approx(found["out_tok"] / found["s"])


# The whole, in processes of its own


def test_the_entry_measures_and_writes_stable_keys(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    keys = "ready_s,decode_b1_tok_s,decode_b8_tok_s,ttft_1024_ms,ttft_32768_ms"
    command = [sys.executable, "-m", "qwen3.evaluate.bench", str(folder), str(out), "--only", keys, "--device", "cpu"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(out.read_text(encoding="utf-8"))
    for key in (*bench.READY_KEYS, "decode_b1_tok_s", "decode_b8_tok_s", "ttft_1024_ms"):
        assert result[key] > 0, key
    assert result["ttft_32768_ms"] is None  # beyond the model's context
    assert result["errors"] == {}
    for key in ("decode_b1_tok_s", "ttft_1024_ms"):
        assert result["floor"][key] > 0
        assert result["share"][key] > 0
        assert result["samples"][key]
    assert result["machine"]["torch"] == torch.__version__
    assert result["ceilings"]["read_bytes_s"] > 0
    assert result["command"].startswith("python -m qwen3.evaluate.bench")
    assert "decode_b1_tok_s" in ran.stderr


def test_what_was_measured_survives_the_end_of_the_budget(folder: Path) -> None:
    found = bench.measure(str(folder), device="cpu", only=["decode_b1_tok_s", "offline256"], budget=6.0, gap=True)
    assert "budget" in found["errors"]["main"] or found["offline256"]["s"] < 6
    none = bench.measure(str(folder), device="cpu", budget=1.0)
    assert none["errors"] == {"cold": "not started: the budget was used up", "main": none["errors"]["main"]}


def test_needs_nothing_but_torch() -> None:
    script = (
        "import sys, qwen3.evaluate.bench; print([n for n in ('typer', 'rich', 'huggingface_hub') if n in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == "[]", ran.stderr


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"only": ["speed"]}, UsageError, "no measurement 'speed'"),
        ({"kv_dtype": "int4"}, UsageError, "kv_dtype='int4'"),
        ({"weights": "int3"}, UsageError, "weights='int3'"),
        ({"dtype": "int8"}, UsageError, "dtype='int8'"),
        ({"device": "toaster"}, UsageError, "device='toaster'"),
        ({"device": "cuda:99"}, UsageError, "cuda:99"),
        ({"max_batch": 0}, UsageError, "max_batch=0"),
        ({"budget": float("nan")}, UsageError, "budget=nan"),
        ({"model": "/nowhere/at/all"}, ModelNotFoundError, "/nowhere/at/all"),
        ({"model": "235B-A22B", "device": "cpu"}, OutOfMemoryError, "Qwen3-235B-A22B needs"),
    ],
)
def test_bad_input_is_one_line_before_anything_runs(change: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        bench.measure(**({"model": "embedded"} | change))  # type: ignore[arg-type]


def test_rows_and_figures() -> None:
    result = {
        "ready_s": 4.321,
        "decode_b1_tok_s": 1234.5,
        "offline256": {"out_tok_s": 20000.0, "joules_per_out_tok": 0.0321},
        "ttft_1024_ms": None,
        "floor": {"decode_b1_tok_s": 2469.0},
        "share": {"decode_b1_tok_s": 0.5},
    }
    assert bench.rows(result) == [
        ("ready_s", "4.32", "", ""),
        ("decode_b1_tok_s", "1,234", "2,469", "50%"),
        ("offline256", "20,000", "", ""),
        ("joules_per_out_tok", "0.0321", "", ""),
    ]
    assert GPU.decode == {1: 256, 8: 256, 32: 256}
