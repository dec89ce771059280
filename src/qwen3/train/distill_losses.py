"""Divergences between a student's and a teacher's next-token distributions, over the whole vocabulary.

Off-policy, the teacher's distribution is stored as its k most probable tokens and the mass of all others: the forward
divergence of the two distributions over these k + 1 events, which never exceeds the one over all tokens. On-policy, the
student's own samples are judged: reverse divergence, the teacher's logits made on the spot (Agarwal et al. 2024,
"On-policy distillation", section 3; Qwen3 report, section 4.5).

Every function returns a sum over N tokens, float32, whose gradients flow into `hidden` [N, h] and `head` [V, h], the
student's, and what was seen of each token, float32 [N]: "kl", the divergence in nats; "entropy", the student's; "top",
the student's probability of the teacher's most probable token. weights: float32 [N], None: ones. temperature: both
distributions'; the sum is multiplied by its square, so that the size of gradients does not depend on it (Hinton et al.
2015, section 2). cross_entropy: how much of the sum is −log p(label) instead, at temperature 1. labels: int64 [N].
"""

from __future__ import annotations

import torch
from torch import Tensor

from qwen3.train.losses import CHUNK, linear_loss, token_logprobs

_LEAST = 1e-8  # mass of the tail, below which its logarithm says nothing
Seen = dict[str, Tensor]


def divergence(
    hidden: Tensor, head: Tensor, teacher_hidden: Tensor, teacher_head: Tensor, *, reverse: float = 1.0,
    temperature: float = 1.0, labels: Tensor | None = None, cross_entropy: float = 0.0,
    weights: Tensor | None = None, chunk: int = CHUNK,
) -> tuple[Tensor, Seen]:  # fmt: skip
    """reverse · KL(student ‖ teacher) + (1 − reverse) · KL(teacher ‖ student), that mixture as "kl".

    teacher_hidden: [N, ht]. teacher_head: [V, ht].
    """
    seen = _empty(hidden)

    @torch.no_grad()
    def part(at: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        student = (logits.float() / temperature).log_softmax(-1)
        teacher = ((teacher_hidden[at] @ teacher_head.T).float() / temperature).log_softmax(-1)
        p = student.exp()
        each, gradient = torch.zeros_like(p[:, :1]), torch.zeros_like(p)
        if reverse:
            apart = student - teacher
            back = (p * apart).sum(-1, keepdim=True)
            each, gradient = each + reverse * back, gradient + reverse * p * (apart - back)
        if reverse < 1:
            q = teacher.exp()
            ahead = (q * (teacher - student)).sum(-1, keepdim=True)
            each, gradient = each + (1 - reverse) * ahead, gradient + (1 - reverse) * (p - q)
        _note(seen, at, each, p, student, p.gather(-1, teacher.argmax(-1, keepdim=True)))
        return _mixed(at, logits, each, gradient, temperature, labels, cross_entropy, weights)

    return linear_loss(hidden, head, part, chunk), seen


def stored_divergence(
    hidden: Tensor, head: Tensor, ids: Tensor, logprobs: Tensor, tail: Tensor, *, temperature: float = 1.0,
    labels: Tensor | None = None, cross_entropy: float = 0.0, weights: Tensor | None = None, chunk: int = CHUNK,
) -> tuple[Tensor, Seen]:  # fmt: skip
    """KL(teacher ‖ student) over k tokens and "any other".

    ids: int64 [N, k], distinct in a row, the most probable first. logprobs: float32 [N, k], the teacher's at the
    temperature. tail: float32 [N], its probability of all other tokens. They are taken as shares of their sum, which
    rounding moved away from 1.
    """
    seen = _empty(hidden)

    @torch.no_grad()
    def part(at: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        student = (logits.float() / temperature).log_softmax(-1)
        known = logprobs[at].float()
        total = known.exp().sum(-1, keepdim=True) + tail[at][:, None]
        known, q_tail = known - total.log(), tail[at][:, None] / total
        q, p, chosen = known.exp(), student.exp(), student.gather(-1, ids[at])
        p_tail = p.scatter(-1, ids[at], 0.0).sum(-1, keepdim=True).clamp(min=_LEAST)
        each = (q * (known - chosen)).sum(-1, keepdim=True)
        each = each + q_tail * (q_tail.clamp(min=_LEAST).log() - p_tail.log())
        _note(seen, at, each, p, student, chosen[:, :1].exp())
        gradient = (p * (1 - q_tail / p_tail)).scatter(-1, ids[at], chosen.exp() - q)
        return _mixed(at, logits, each, gradient, temperature, labels, cross_entropy, weights)

    return linear_loss(hidden, head, part, chunk), seen


def sampled_divergence(
    hidden: Tensor, head: Tensor, teacher_hidden: Tensor, teacher_head: Tensor, labels: Tensor, *,
    weights: Tensor | None = None, chunk: int = CHUNK,
) -> tuple[Tensor, Seen]:  # fmt: skip
    """KL(student ‖ teacher) as log p − log q of the sampled tokens alone, for samples of the very student. The gradient
    (log p − log q) · ∇log p is that of the divergence on average, and noisier; no "top" is seen."""
    logprob, entropy = token_logprobs(hidden, head, labels, chunk)
    with torch.no_grad():
        apart = logprob - token_logprobs(teacher_hidden, teacher_head, labels, chunk)[0]
    each = apart + apart * (logprob - logprob.detach())  # its value is the estimate, its gradient the policy's
    return (each if weights is None else each * weights).sum(), {"kl": apart, "entropy": entropy}


def top_of(
    hidden: Tensor, head: Tensor, k: int, temperature: float = 1.0, chunk: int = CHUNK
) -> tuple[Tensor, Tensor, Tensor]:
    """What is stored of a teacher: (ids int64 [N, k], log-probabilities float32 [N, k], tail float32 [N])."""
    found = []
    for start in range(0, len(hidden), chunk):
        logprob = ((hidden[start : start + chunk] @ head.T).float() / temperature).log_softmax(-1)
        best, ids = logprob.topk(k, -1)
        found.append((ids, best, logprob.exp().scatter(-1, ids, 0.0).sum(-1)))
    every_id, every_best, every_rest = zip(*found, strict=True)
    return torch.cat(every_id), torch.cat(every_best), torch.cat(every_rest)


def _empty(hidden: Tensor) -> Seen:
    return {name: torch.empty(len(hidden), device=hidden.device) for name in ("kl", "entropy", "top")}


def _note(seen: Seen, at: slice, each: Tensor, p: Tensor, student: Tensor, top: Tensor) -> None:
    seen["kl"][at], seen["entropy"][at], seen["top"][at] = each[:, 0], -(p * student).sum(-1), top[:, 0]


def _mixed(
    at: slice, logits: Tensor, each: Tensor, gradient: Tensor, temperature: float, labels: Tensor | None,
    cross_entropy: float, weights: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(the sum, its gradient by the logits) of the divergences `each` [n, 1], whose gradient by logits / temperature is
    given, with the share of cross-entropy."""
    each, gradient = each * temperature**2, gradient * temperature
    if cross_entropy:
        assert labels is not None
        plain, label = logits.float().log_softmax(-1), labels[at][:, None]
        hard = plain.exp()
        hard.scatter_add_(-1, label, torch.full_like(each, -1.0))
        each = (1 - cross_entropy) * each - cross_entropy * plain.gather(-1, label)
        gradient = (1 - cross_entropy) * gradient + cross_entropy * hard
    if weights is not None:
        each, gradient = each * weights[at][:, None], gradient * weights[at][:, None]
    return each.sum(), gradient.to(logits.dtype)
