"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations


def warmup_stable_decay(step: int, total: int, *, warmup: int, decay: int, floor: float = 0.0) -> float:
    """Warmup–stable–decay multiplier in [floor, 1] for `step` in [0, total).

    Linear warmup over `warmup` steps, constant, linear decay to `floor` over the last `decay` steps
    (Hu et al. 2024, "MiniCPM", section 4).
    """
    if step < warmup:
        return (step + 1) / warmup
    left = total - step
    if left <= decay:
        return floor + (1.0 - floor) * left / decay
    return 1.0
