"""Does it fit? What a model takes on a machine: weights, KV cache and working memory, by the engine's own sums.

No torch, no file, no machine is asked: so it answers at once, for models and machines that are not here. The sums are
those of `checkpoint.sizes` (weights), `ModelConfig` (a token's keys and values) and `engine.budget` (all else).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from qwen3.checkpoint import sizes
from qwen3.checkpoint.sizes import Format, Sizes
from qwen3.config import ModelConfig
from qwen3.engine.budget import beside_bytes, cache_room, usual_chunk
from qwen3.errors import UsageError

GIB = 1 << 30
BLOCK = 16  # tokens, as kernels.BLOCK
DRIVER = GIB  # of a GPU: what its driver and CUDA's context take, and what a card has less than its name says
SYSTEM = 4 * GIB  # of a computer: what its system and a browser take
COPIES = 0.5  # of what a CPU has free, for copies of plain matrices, as model.threads._SHARE
KV_BYTES = {"fp8": 1, "bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class Machine:
    """memory: bytes of one device; free: of these for a model; count: devices that share it."""

    name: str
    device: sizes.Device
    memory: int
    free: int
    count: int = 1

    @classmethod
    def gpu(cls, gib: float, name: str = "", count: int = 1) -> Machine:
        """A card that is sold with so many GB, which are of 2^30 bytes."""
        memory = int(gib * GIB)
        title = f"{f'{count} × ' if count > 1 else ''}GPU, {gib:g} GB each" if count > 1 else f"GPU, {gib:g} GB"
        return cls(name or title, "cuda", memory, memory - DRIVER, count)

    @classmethod
    def cpu(cls, gib: float, name: str = "", app: float | None = None) -> Machine:
        """A computer; app: the share of its memory that one program may have (a phone's; else all but `SYSTEM`)."""
        memory = int(gib * GIB)
        free = max(memory // 4, memory - SYSTEM) if app is None else int(memory * app)
        return cls(name or f"CPU, {gib:g} GB", "cpu", memory, free)


MACHINES = (
    Machine.cpu(8, "phone, 8 GB", 0.5), Machine.cpu(12, "phone, 12 GB", 0.5), Machine.cpu(16, "laptop, 16 GB"),
    Machine.cpu(32, "laptop, 32 GB"), Machine.cpu(64, "computer, 64 GB"), Machine.gpu(24, "RTX 4090, 24 GB"),
    Machine.gpu(32, "RTX 5090, 32 GB"), Machine.gpu(48, "RTX 6000 Ada, 48 GB"), Machine.gpu(80, "H100, 80 GB"),
    Machine.gpu(96, "H20, 96 GB"), Machine.gpu(141, "H200, 141 GB"), Machine.gpu(96, "4 × H20, 96 GB", 4),
    Machine.gpu(80, "8 × H100, 80 GB", 8),
)  # fmt: skip
"""What is asked for most; the GPUs multiply FP8. A phone's system is taken to give one program half of its memory."""


@dataclass(frozen=True)
class Plan:
    """One model, format and machine; what a device holds is bytes on each of them.

    context: tokens of each of `batch` sequences. limit: the longest the model was made for. kv: of the cache, a key of
    KV_BYTES, None: the engine's choice (16 bits, but 32 beside float32 weights). Weights and KV heads are taken to be
    split evenly over several devices, KV heads at most once each.
    """

    config: ModelConfig
    format: Format
    machine: Machine
    context: int = 32768
    batch: int = 1
    kv: str | None = None
    limit: int = 0
    known: Sizes | None = None  # of files that are there

    def __post_init__(self) -> None:
        for name, value in (("context", self.context), ("batch", self.batch)):
            if value < 1:
                raise UsageError(f"{name} {value} must be at least 1")
        if self.kv is not None and self.kv not in KV_BYTES:
            raise UsageError(f"kv_dtype={self.kv!r} is not supported; use {', '.join(KV_BYTES)}")

    @property
    def sizes(self) -> Sizes:
        return self.known or sizes.sizes(self.config, self.format, self.machine.device)

    @property
    def held(self) -> bool:
        """Whether the device holds it in fewer bits than bfloat16; else it is widened to that."""
        return self.weights * self.machine.count < 2 * self.config.num_parameters()

    @property
    def weights(self) -> int:
        return -(-self.sizes.memory // self.machine.count)

    @property
    def kv_bytes_per_token(self) -> int:
        whole = self.config.kv_bytes_per_token(KV_BYTES[self.kv] if self.kv else self.sizes.cache)
        return whole // min(self.machine.count, self.config.num_key_value_heads)

    def cache(self, context: int, batch: int) -> int:
        """Bytes of the blocks of so many sequences, the scratch block included."""
        return (1 + batch * -(-context // BLOCK)) * BLOCK * self.kv_bytes_per_token

    def beside(self, batch: int) -> int:
        """Bytes of a step's working memory."""
        size, device = self.sizes.size, self.machine.device
        chunk = usual_chunk(self.config, device, size, self.machine.memory)
        return beside_bytes(self.config, device, size, rows=batch, tokens=chunk, grouped=self.sizes.grouped)

    @property
    def copies(self) -> int:
        """Bytes that a CPU spends, where they are free, on a second copy of matrices in 16 or 32 bits."""
        left = self.machine.free - self.weights
        return max(0, min(2 * self.sizes.plain, int(left * COPIES))) if self.machine.device == "cpu" else 0

    def room(self, batch: int = 1) -> int:
        """Bytes that the engine gives the cache; negative if there is no room even for a step."""
        left = self.machine.free - self.weights - self.copies
        return cache_room(self.machine.device, left, self.beside(batch)) if left > 0 else left

    @property
    def needed(self) -> int:
        """Bytes of a device from which on it fits, with no more context than the model was made for."""
        low, high = 0, 1 << 50
        if self.context > self.most:
            return replace(self, context=self.most).needed
        while low < high:
            middle = (low + high) // 2
            if replace(self, machine=replace(self.machine, free=middle)).fits:
                high = middle
            else:
                low = middle + 1
        return low

    @property
    def fits(self) -> bool:
        return self.context <= self.most and self.room(self.batch) >= self.cache(self.context, self.batch)

    @property
    def most(self) -> int:
        """The longest context of a model."""
        return self.limit or self.config.context_length

    @property
    def longest(self) -> int:
        """Tokens of the longest single sequence, 0 if not even 256 fit."""
        blocks = self.room() // (BLOCK * self.kv_bytes_per_token) - 1
        found = min(self.most, max(0, blocks * BLOCK))
        return found if found >= min(256, self.most) else 0

    def largest_batch(self, context: int) -> int:
        """Sequences of `context` tokens at once, at most 1024."""
        low, high = 0, 1024
        while low < high:
            middle = (low + high + 1) // 2
            if replace(self, context=context, batch=middle).fits:
                low = middle
            else:
                high = middle - 1
        return low

    def advice(self, formats: list[Format]) -> list[str]:
        """What to change, one thing each, so that it fits; better first. Empty if it does."""
        if self.fits:
            return []
        if self.context > self.most:
            return [f"--context {self.most}, for which it was made"]
        found = []
        if self.kv != "fp8" and replace(self, kv="fp8").fits:
            found.append("--kv-dtype fp8")
        elif self.kv is None and self.sizes.cache == 4 and replace(self, kv="bfloat16").fits:
            found.append("--kv-dtype bfloat16")
        fewer = self.largest_batch(self.context)
        if fewer:
            found.append(f"--batch {fewer}")
        blocks = self.room(self.batch) // (BLOCK * self.kv_bytes_per_token) - 1
        shorter = blocks // self.batch * BLOCK
        if shorter >= 256:
            found.append(f"--context {shorter}")
        better = next((f for f in formats if replace(self, format=f, known=None).fits), None)
        if better is not None:
            found.append(f"--format {better.name}")
        found.append(f"{self.needed / GIB:.1f} GiB free instead of {self.machine.free / GIB:.1f}")
        return found
