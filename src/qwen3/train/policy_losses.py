"""Advantages and losses of group-relative policy optimisation, as pure functions.

GRPO: Shao et al. 2024, "DeepSeekMath", section 4.1. Dr.GRPO: Liu et al. 2025, "Understanding R1-Zero-like training",
section 3.2. DAPO: Yu et al. 2025, sections 3.1 to 3.3. GSPO: Zheng et al. 2025, section 4. CISPO: MiniMax 2025,
"MiniMax-M1", section 3.1. KL: the estimator k3 of Schulman 2020, "Approximating KL divergence".

All tokens of a call lie in one row of N, whatever sequences they belong to; `sequence` says which. A loss is a sum;
what it is to be divided by is known from the lengths alone (`normaliser`), so that an update may come in any number of
parts and is still one mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qwen3.errors import UsageError

Kind = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"]
KINDS: tuple[Kind, ...] = ("grpo", "dr_grpo", "dapo", "gspo", "cispo")
_CLIPS = {"grpo": (0.2, 0.2), "dr_grpo": (0.2, 0.2), "dapo": (0.2, 0.28), "gspo": (3e-4, 4e-4), "cispo": (1.0, 4.0)}
_TINY = 1e-6


@dataclass(frozen=True)
class PolicyLoss:
    """kind: see the module. clip_low, clip_high: the ratio of probabilities counts within 1 − low … 1 + high; None: as
    published for the kind (CISPO bounds it above only). length: tokens a sequence may have, which Dr.GRPO divides by.
    kl: weight of the divergence from the reference policy, 0: none.

    Raises UsageError for an unknown kind, bounds below 0, or Dr.GRPO without a length.
    """

    kind: Kind = "dapo"
    clip_low: float | None = None
    clip_high: float | None = None
    length: int | None = None
    kl: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"kind={self.kind!r} must be one of {', '.join(KINDS)}")
        for name, value in (("clip_low", self.clip_low), ("clip_high", self.clip_high), ("kl", self.kl)):
            if value is not None and value < 0:
                raise UsageError(f"{name}={value} must be 0 or more")
        if self.kind == "dr_grpo" and not self.length:
            raise UsageError("kind='dr_grpo' divides by a constant: give length, the most tokens a completion may have")

    @property
    def clip(self) -> tuple[float, float]:
        low, high = _CLIPS[self.kind]
        return (low if self.clip_low is None else self.clip_low, high if self.clip_high is None else self.clip_high)

    def normaliser(self, lengths: Tensor) -> float:
        """What the losses of an update are divided by. lengths: int64, the trained tokens of each of its sequences."""
        if self.kind in ("dapo", "cispo"):
            return float(lengths.sum())
        sequences = float((lengths > 0).sum())
        return sequences * (self.length or 1) if self.kind == "dr_grpo" else sequences

    def __call__(
        self, logprob: Tensor, old: Tensor, advantage: Tensor, sequence: Tensor, reference: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(the sum to be divided by `normaliser`, metrics as sums over tokens).

        logprob: float [N], of the sampled tokens under the policy that learns; gradients flow through it. old: under
        the policy that sampled them. advantage: [N]. sequence: int64 [N], 0 … S−1. reference: [N], for `kl`.
        """
        shift = logprob - old
        lengths = torch.bincount(sequence).clamp(min=1).to(logprob.dtype)
        share = 1 / lengths[sequence]
        ratio = self._ratio(shift, logprob, sequence, lengths)
        low, high = self.clip
        if self.kind == "cispo":
            each = -ratio.detach().clamp(1 - low, 1 + high) * advantage * logprob
            clipped = (ratio < 1 - low) | (ratio > 1 + high)
        else:
            each = -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
            clipped = torch.where(advantage > 0, ratio > 1 + high, ratio < 1 - low)
        metrics = {
            "ratio": ratio.detach(),
            "clipped": clipped.to(logprob.dtype),
            # Of the policy that sampled, seen from the one that learns: k3 is never negative, and it is unbiased.
            "kl_old": (shift.exp() - 1 - shift).detach(),
        }
        if reference is not None:
            back = reference - logprob
            divergence = back.exp() - back - 1
            metrics["kl_reference"] = divergence.detach()
            each = each + self.kl * divergence
        elif self.kl:
            raise UsageError(f"kl={self.kl} needs the reference policy's log-probabilities")
        if self.kind in ("grpo", "gspo"):
            each = each * share
        return each.sum(), {name: values.sum() for name, values in metrics.items()}

    def _ratio(self, shift: Tensor, logprob: Tensor, sequence: Tensor, lengths: Tensor) -> Tensor:
        if self.kind != "gspo":
            return shift.exp()
        total = torch.zeros_like(lengths).index_add(0, sequence, shift.detach())
        # The sequence's ratio by value; its gradient goes through each token on its own (GSPO-token, equation 14).
        return (total / lengths).exp()[sequence] * (logprob - logprob.detach()).exp()


def advantages(rewards: Tensor, kind: Kind) -> Tensor:
    """Of each sample beside its group. rewards: float [groups, samples]. Dr.GRPO does not divide by the spread. A group
    whose rewards are all equal has none: see `informative`."""
    centred = rewards - rewards.mean(1, keepdim=True)
    if kind == "dr_grpo":
        return centred
    spread = rewards.std(1, correction=0, keepdim=True)
    return torch.where(spread > _TINY, centred / spread.clamp(min=_TINY), 0.0)


def informative(rewards: Tensor) -> Tensor:
    """Which groups say anything: bool [groups]. The others' samples have no gradient (DAPO, section 3.2)."""
    return rewards.max(1).values - rewards.min(1).values > _TINY


def overlong_penalty(lengths: Tensor, longest: int, margin: int) -> Tensor:
    """Soft punishment of length, 0 … −1: none up to longest − margin tokens, −1 from `longest` on (DAPO, equation 13).
    lengths: [N], tokens."""
    return -((lengths - (longest - margin)) / max(1, margin)).clamp(0, 1)
