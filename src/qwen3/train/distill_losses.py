"""Divergences between a student's and a teacher's next-token distributions, over the whole vocabulary.

Off-policy, the teacher's distribution is stored as its k most probable tokens and the mass of all others: the forward
divergence of the two distributions over these k + 1 events, which never exceeds the one over all tokens. On-policy, the
student's own samples are judged: reverse divergence, the teacher's logits made on the spot (Agarwal et al. 2024,
"On-policy distillation", section 3; Qwen3 report, section 4.5).
"""

from __future__ import annotations

import torch
from torch import Tensor

from qwen3.train.losses import CHUNK, linear_loss

_LEAST = 1e-8  # mass of the tail, below which its logarithm says nothing


def divergence(
    hidden: Tensor, head: Tensor, teacher_hidden: Tensor, teacher_head: Tensor, kept: Tensor, *,
    reverse: bool = True, temperature: float = 1.0, chunk: int = CHUNK,
) -> Tensor:  # fmt: skip
    """Sum over the kept tokens of KL(student ‖ teacher), if not `reverse` of KL(teacher ‖ student), in nats, float32.

    hidden: [N, h], head: [V, h], the student's; gradients flow into both. teacher_hidden: [N, ht]; teacher_head:
    [V, ht]. kept: bool [N]. temperature: of both distributions; the sum is multiplied by its square, so that the size
    of gradients does not depend on it (Hinton et al. 2015, section 2).
    """

    @torch.no_grad()
    def part(at: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        weight = kept[at].float()[:, None] * temperature
        student = (logits.float() / temperature).log_softmax(-1)
        teacher = ((teacher_hidden[at] @ teacher_head.T).float() / temperature).log_softmax(-1)
        if reverse:
            p = student.exp()
            apart = student - teacher
            each = (p * apart).sum(-1, keepdim=True)
            gradient = p * (apart - each)
        else:
            q = teacher.exp()
            each = (q * (teacher - student)).sum(-1, keepdim=True)
            gradient = student.exp() - q
        return (each * weight).sum() * temperature, (gradient * weight).to(logits.dtype)

    return linear_loss(hidden, head, part, chunk)


def stored_divergence(
    hidden: Tensor, head: Tensor, ids: Tensor, logprobs: Tensor, tail: Tensor, kept: Tensor, chunk: int = CHUNK
) -> Tensor:
    """Sum over the kept tokens of KL(teacher ‖ student) over k tokens and "any other", in nats, float32.

    hidden: [N, h], head: [V, h], the student's. ids: int64 [N, k], distinct in a row. logprobs: float32 [N, k], the
    teacher's. tail: float32 [N], its probability of all other tokens. kept: bool [N].
    """

    @torch.no_grad()
    def part(at: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        weight = kept[at].float()[:, None]
        student = logits.float().log_softmax(-1)
        q, q_tail = logprobs[at].exp(), tail[at][:, None]
        chosen = student.gather(-1, ids[at])
        p_tail = (1 - chosen.exp().sum(-1, keepdim=True)).clamp(min=_LEAST)
        each = (q * (logprobs[at] - chosen)).sum(-1, keepdim=True)
        each = each + q_tail * (q_tail.clamp(min=_LEAST).log() - p_tail.log())
        # By the logit of a token in the tail: p (Σq + q_tail − q_tail / p_tail); of one of the k: p (Σq + q_tail) − q.
        total = q.sum(-1, keepdim=True) + q_tail
        gradient = student.exp() * (total - q_tail / p_tail)
        inside = chosen.exp() * total - q
        gradient.scatter_(-1, ids[at], inside)
        return (each * weight).sum(), (gradient * weight).to(logits.dtype)

    return linear_loss(hidden, head, part, chunk)


def top_of(hidden: Tensor, head: Tensor, k: int, chunk: int = CHUNK) -> tuple[Tensor, Tensor, Tensor]:
    """What is stored of a teacher: (ids int64 [N, k], log-probabilities float32 [N, k], tail float32 [N])."""
    found = []
    for start in range(0, len(hidden), chunk):
        logprob = (hidden[start : start + chunk] @ head.T).float().log_softmax(-1)
        best, ids = logprob.topk(k, -1)
        found.append((ids, best, (1 - best.exp().sum(-1)).clamp(min=0)))
    every_id, every_best, every_rest = zip(*found, strict=True)
    return torch.cat(every_id), torch.cat(every_best), torch.cat(every_rest)
