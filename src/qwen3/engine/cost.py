"""How long a prompt chunk holds up those who are decoding: what the scheduler weighs chunks by."""

from __future__ import annotations

from qwen3.config import ModelConfig

# Sustained rates of the matrix units (FLOP/s), in and out of attention, and of memory (bytes/s). Measured on an H100;
# on a CPU only the ratios matter.
_RATES = {"cuda": (6.0e14, 3.0e14, 2.8e12)}
_CPU_RATES = (1.0e11, 4.0e10, 1.0e10)
_SHARE = {"cuda": 1.5}  # a step with chunks may take this many times a step that reads all weights once
_FLOOR = {"cuda": 4.0e-3}  # seconds that a step with chunks may always add


class StepCost:
    """Seconds that `size` tokens at `position` add to a step, by arithmetic; `budget`: how many a step may add."""

    def __init__(self, config: ModelConfig, device: str) -> None:
        matrix, attention, memory = _RATES.get(device, _CPU_RATES)
        active = config.num_parameters(active=True)
        self.per_token = 2 * active / matrix
        width = config.num_attention_heads * config.head_dim
        self.per_pair = 4 * width * config.num_hidden_layers / attention
        weights = config.num_parameters() * 2 / memory
        self.budget = max(_SHARE.get(device, 2.0) * weights, _FLOOR.get(device, 0.05))

    def __call__(self, size: int, position: int) -> float:
        return size * (self.per_token + self.per_pair * (position + size / 2))
