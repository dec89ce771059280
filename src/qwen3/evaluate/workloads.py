"""The work that `qwen3 bench` measures, and the one class through which it meets the engine."""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qwen3 import family, kernels
from qwen3.checkpoint import read_config
from qwen3.checkpoint.fp8 import fp8_weights
from qwen3.config import DTYPE_BYTES, ModelConfig
from qwen3.engine import Engine, Request, SamplingParams
from qwen3.errors import UsageError
from qwen3.kernels.grouped import GroupWeight
from qwen3.model import Qwen3, load_model
from qwen3.model.load import quantize_model
from qwen3.model.threads import prepare_cpu

if TYPE_CHECKING:
    from qwen3 import LLM

SIZES = ("0.6B", "1.7B", "4B", "8B", "14B", "32B", "30B-A3B", "235B-A22B")
STREAMS = tuple(2**i for i in range(11))
CONTEXTS = tuple(1024 * 2**i for i in range(8))
_SEED = 0
_LARGEST_ID = 10_000


@dataclass(frozen=True)
class Scale:
    """How much of each workload a device can do in reasonable time. The definitions do not change.

    offline: sequences of the throughput batch; decode: outputs beyond the first 16, by number of streams; repeats: runs
    of a decode or prefill measurement, of which the median counts; prefill: prompts of 1,024 tokens; steady: tokens of
    each generation that looks for full speed.
    """

    offline: int
    decode: dict[int, int]
    ttft: tuple[int, ...]
    ttft_runs: int
    prefill: int
    repeats: int
    steady: int


GPU = Scale(256, {1: 256, 8: 256, 32: 256}, (1024, 3500, 32768), 5, 64, 3, 400)
SMALL_CPU = Scale(32, {1: 256, 8: 64, 32: 16}, (1024, 3500), 3, 4, 1, 100)
LARGE_CPU = Scale(2, {1: 32, 8: 8, 32: 4}, (1024,), 1, 1, 1, 16)


def scale_for(device: torch.device, config: ModelConfig) -> Scale:
    if device.type != "cpu":
        return GPU
    return SMALL_CPU if config.num_parameters() < 100_000_000 else LARGE_CPU


@dataclass(frozen=True)
class Settings:
    """What is measured: `model` is one of SIZES (random weights, made on the device) or a checkpoint folder.

    kv_dtype: None (the model's dtype) or "fp8"; weights: these, "int8" or "int4". max_len: longest sequence, None:
    34,000 or the model's context. long: stretch the context by static YaRN x4, for contexts up to 128k.
    """

    model: str
    device: str
    dtype: str | None = None
    kv_dtype: str | None = None
    weights: str | None = None
    invariant: bool = False
    max_batch: int = 256
    max_len: int | None = None
    long: bool = False

    @property
    def random(self) -> bool:
        return self.model in SIZES

    @property
    def config(self) -> ModelConfig:
        config = self._stored
        return config.with_yarn(4) if self.long and config.context_length < CONTEXTS[-1] else config

    @property
    def _stored(self) -> ModelConfig:
        if self.random:
            return family.MODELS[f"Qwen3-{self.model}"].config
        return read_config(self.model)


def random_model(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Qwen3:
    """A network on `device` with normal(0, 0.02) weights and norms of 1, filled in place, one tensor after another."""
    model = Qwen3(config, device=device, dtype=dtype)
    torch.manual_seed(_SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, config.initializer_range)
    return model.eval()


class Subject:
    """An engine with its model, constructed when this is. `started` is when that began (time.perf_counter).

    Everything the benchmark asks of the engine is here: `add`, `advance`, `has_work`, `cancel`, `close`, and a
    request's `output` once it is done.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.started = time.perf_counter()
        self.device = torch.device(settings.device)
        config = settings.config
        if settings.random:
            dtype = getattr(torch, settings.dtype or config.dtype)
            self.model = random_model(config, self.device, dtype)
            if settings.weights is not None:
                quantize_model(self.model, settings.weights)
        else:
            self.model = load_model(settings.model, self.device, settings.dtype, quantization=settings.weights)
        prepare_cpu(self.model)
        self.config = self.model.config
        self.max_len = min(settings.max_len or 34_000, self.config.context_length)
        self.uniform_routing = settings.random and self.config.is_moe
        self.engine = Engine(
            self.model,
            max_batch=settings.max_batch,
            max_len=self.max_len,
            kv_dtype=settings.kv_dtype,
            prefix_cache=False,
            invariant=settings.invariant,
            uniform_routing=self.uniform_routing,
            vocab_size=self.config.vocab_size,
        )

    @classmethod
    def of(cls, llm: LLM) -> Subject:
        """Around an engine that is there already."""
        subject = cls.__new__(cls)
        subject.settings = Settings(llm.resolved.name if llm.resolved else "in memory", str(llm.device))
        subject.started = time.perf_counter()
        subject.device, subject.config, subject.model = llm.device, llm.config, llm.model
        subject.max_len, subject.uniform_routing, subject.engine = llm.context, False, llm.engine
        return subject

    def request(self, ids: list[int], output: int, seed: int) -> Any:
        """Tokens only: temperature 0.6, no filter, end of text ignored, as in the peer's runs."""
        params = SamplingParams(
            max_tokens=output, temperature=0.6, top_p=1.0, top_k=0, min_p=0.0, ignore_eos=True, seed=seed
        )
        return Request(ids, params, None)

    def requests(self, inputs: Sequence[int], outputs: Sequence[int], seed: int = 0) -> list[Any]:
        """Random prompts of these lengths, ids below 10,000 (or that the engine takes)."""
        rng = random.Random(seed)
        largest = min(_LARGEST_ID, self.engine.vocab_size - 1)
        prompts = [[rng.randint(0, largest) for _ in range(length)] for length in inputs]
        return [
            self.request(ids, output, (seed << 32) + i)
            for i, (ids, output) in enumerate(zip(prompts, outputs, strict=True))
        ]

    def finish(self, requests: Sequence[Any], stamps: list[float] | None = None) -> float:
        """Seconds from the first `add` to the last token. stamps: when each `advance` came back, appended."""
        start = time.perf_counter()
        for request in requests:
            self.engine.add(request)
        while self.engine.has_work:
            self.engine.advance()
            if stamps is not None:
                stamps.append(time.perf_counter())
        elapsed = time.perf_counter() - start
        for request in requests:
            error = getattr(request, "error", None)
            if error is not None:
                raise error
            if len(request.output) != request.params.max_tokens:
                raise UsageError(f"asked for {request.params.max_tokens} tokens, {len(request.output)} came")
        return elapsed

    def generate(self, inputs: Sequence[int], outputs: Sequence[int], seed: int = 0) -> float:
        return self.finish(self.requests(inputs, outputs, seed))

    def close(self) -> None:
        """Give the device's memory back, the model's too."""
        self.engine.close()
        del self.engine, self.model
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


# What is measured, by key


def offline(subject: Subject, count: int, energy: Callable[[], float | None]) -> dict[str, Any]:
    """`count` sequences at once; their lengths are the peer's draws (its 256 inputs first, then its 256 outputs)."""
    inputs, outputs = offline_lengths(count, subject.max_len)
    subject.generate(inputs[: count // 4], [8] * (count // 4))
    start = time.perf_counter()
    subject.engine.warm_up(count)  # the peer captures its graphs while it starts
    warm_up = time.perf_counter() - start
    before = energy()
    seconds = subject.generate(inputs, outputs)
    after = energy()
    joules = None if before is None or after is None else after - before
    return {
        "s": seconds,
        "warm_up_s": warm_up,
        "sequences": count,
        "out_tok": sum(outputs),
        "out_tok_s": sum(outputs) / seconds,
        "total_tok_s": (sum(inputs) + sum(outputs)) / seconds,
        "joules": joules,
        "joules_per_out_tok": None if joules is None else joules / sum(outputs),
    }


def offline_lengths(count: int, max_len: int) -> tuple[list[int], list[int]]:
    """(prompt lengths, output lengths) of the first `count` of the 256 sequences."""
    rng = random.Random(0)
    draws = [rng.randint(100, 1024) for _ in range(512)]
    if max_len < 2048:
        raise UsageError(f"this workload needs sequences of up to 2,048 tokens, but max_len is {max_len:,}")
    return draws[:count], draws[256 : 256 + count]


def decode(subject: Subject, streams: int, tokens: int, repeats: int) -> tuple[list[float], list[Any]]:
    """Tokens a second of `streams` prompts of 128 tokens: streams · tokens / (time for 16 + tokens - time for 16).

    Returns each repetition's rate and the last one's finished requests.
    """
    rates: list[float] = []
    inputs = [128] * streams
    subject.generate(inputs, [16] * streams)  # graphs and kernels of this size
    requests: list[Any] = []
    for _ in range(repeats):
        short = subject.generate(inputs, [16] * streams)
        requests = subject.requests(inputs, [16 + tokens] * streams)
        rates.append(streams * tokens / max(subject.finish(requests) - short, 1e-9))
    return rates, requests


def ttft(subject: Subject, length: int, runs: int) -> list[float]:
    """Milliseconds from `add` to the first token of one prompt, another prompt each time."""
    return [subject.generate([length], [1], seed) * 1e3 for seed in range(runs)]


def prefill(subject: Subject, prompts: int, repeats: int) -> list[float]:
    """Prompt tokens a second of `prompts` prompts of 1,024 tokens, one output token each."""
    lengths = [1024] * prompts
    subject.generate(lengths, [1] * prompts)
    return [1024 * prompts / subject.generate(lengths, [1] * prompts) for _ in range(repeats)]


def ready(subject: Subject) -> float:
    """Seconds from constructing the engine to the first token of a prompt of 128."""
    subject.generate([128], [1])
    return time.perf_counter() - subject.started


def full_speed(subject: Subject, tokens: int) -> dict[str, float]:
    """Seconds from constructing the engine until one stream decodes at 90 % of its later steady rate.

    A generation of `tokens`, then shorter ones until one is no faster than the one before; then 32 streams run
    (whatever compiles late has its occasion), and one more generation is the later rate. The first moment from which 16
    steps in a row took no longer than that rate / 0.9 allows is the answer.
    """
    stamps: list[float] = []
    rates: list[float] = []
    again = max(16, tokens // 4)
    while len(rates) < 2 or (rates[-1] > 1.05 * rates[-2] and len(rates) < 80):
        rates.append(_steady(subject, again if rates else tokens, stamps))
    subject.generate([100] * 32, [32] * 32)
    rates.append(_steady(subject, again, stamps))
    interval = 1.0 / (0.9 * rates[-1])
    window = min(16, tokens // 4)
    for first in range(len(stamps) - window):
        if stamps[first + window] - stamps[first] <= window * interval:
            return {"s": stamps[first] - subject.started, "tok_s": rates[-1]}
    return {"s": stamps[-1] - subject.started, "tok_s": rates[-1]}


def _steady(subject: Subject, tokens: int, stamps: list[float]) -> float:
    """Steps a second over the second half of one generation."""
    own: list[float] = []
    subject.finish(subject.requests([128], [tokens]), own)
    stamps += own
    late = own[len(own) // 2 :]
    return 1.0 / statistics.median(b - a for a, b in itertools.pairwise(late))


def gap(subject: Subject, streams: int = 32, length: int = 32768) -> dict[str, float]:
    """Time between tokens of `streams` running streams while one prompt of `length` tokens is computed.

    Milliseconds: the median before that prompt comes; then p50, p99 and the longest from its arrival to its first
    token. ratio: p99 over the median before. As beside streams, chunks may hold a step up by `stream_stall`. What is
    reported is the third time: a graph is captured when its size comes for the second time, as in a server's first
    minutes.
    """
    subject.engine.stall = subject.engine.stream_stall
    try:
        for _ in range(2):
            gap_once(subject, streams, length)
        return gap_once(subject, streams, length)
    finally:
        subject.engine.stall = None


def gap_once(subject: Subject, streams: int, length: int) -> dict[str, float]:
    """One measurement of `gap`."""
    crowd = subject.requests([128] * streams, [subject.max_len - 128] * streams)
    late = subject.requests([length], [1], seed=1)[0]
    engine = subject.engine
    for request in crowd:
        engine.add(request)
    stamps: list[float] = []

    def step() -> None:
        engine.advance()
        stamps.append(time.perf_counter())

    for _ in range(300):
        step()
    engine.add(late)
    while not late.done:
        step()
    for request in crowd:
        engine.cancel(request.id)
    while engine.has_work:
        engine.advance()
    if late.error is not None:
        raise late.error
    gaps = [1e3 * (b - a) for a, b in itertools.pairwise(stamps)]
    quiet, busy = statistics.median(gaps[100:299]), sorted(gaps[299:])
    p99 = busy[min(len(busy) - 1, int(0.99 * len(busy)))]
    return {
        "streams": streams,
        "prompt": length,
        "median_before_ms": quiet,
        "steps": len(busy),
        "p50_ms": statistics.median(busy),
        "p99_ms": p99,
        "max_ms": busy[-1],
        "ratio": p99 / quiet,
        "prefill_s": sum(busy) / 1e3,
    }


def streams_point(subject: Subject, streams: int, tokens: int = 64) -> float:
    """Tokens a second of `streams` streams with prompts of 128; as `decode`, once."""
    rates, _ = decode(subject, streams, tokens, 1)
    return rates[0]


def context_point(subject: Subject, length: int, tokens: int = 64) -> tuple[float, float]:
    """(milliseconds to the first token, tokens a second after it) of one stream whose prompt has `length` tokens."""
    first = subject.generate([length], [1])
    return first * 1e3, tokens / max(subject.generate([length], [1 + tokens]) - first, 1e-9)


@torch.inference_mode()
def count_experts(subject: Subject, requests: Sequence[Any], tokens: int) -> float:
    """Mean number of distinct experts a sparse layer used in a decode step over these requests.

    The choice is a hash of token, position and layer, so that it can be drawn again after the fact: for the last
    `tokens` outputs of every request, which decoded side by side.
    """
    config, device = subject.config, subject.device
    outputs = torch.tensor([request.output for request in requests], device=device)
    prompt, length = len(requests[0].ids), outputs.shape[1]
    sparse = [i for i in range(config.num_hidden_layers) if config.is_sparse_layer(i)]
    found: list[Tensor] = []
    for step in range(max(0, length - tokens - 1), length - 1):
        ids = outputs[:, step].to(torch.int32)
        positions = torch.full_like(ids, prompt + step)
        for layer in sparse[:: max(1, len(sparse) // 8)]:
            logits = kernels.uniform_logits(ids, positions, layer, config.num_experts)
            chosen = torch.topk(logits, config.num_experts_per_tok, dim=-1).indices
            used = torch.zeros(config.num_experts, device=device)
            used[chosen.reshape(-1)] = 1.0
            found.append(used.sum())
    return float(torch.stack(found).mean())


def bytes_of(subject: Subject) -> tuple[float, float, float]:
    """Bytes of one value of (layers' matrices, head, KV cache), scales and the like included."""
    plain: float = DTYPE_BYTES[str(subject.model.dtype).removeprefix("torch.")]
    layers, head = float(1 if fp8_weights(subject.model) else plain), plain
    held = {name: part for name, part in subject.model.named_modules() if isinstance(part, GroupWeight)}
    ends = [held.pop(name) for name in ("embed_tokens.weight", "lm_head.weight") if name in held]
    if ends:
        head = ends[-1].nbytes / ends[-1].shape.numel()
    if held:
        layers = sum(part.nbytes for part in held.values()) / sum(part.shape.numel() for part in held.values())
    return layers, head, (1 if subject.settings.kv_dtype == "fp8" else plain)
