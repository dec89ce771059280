"""The reference sampler: logits in, one token id a row out.

Randomness is counted, not drawn: the noise of a candidate is a hash of (seed, sample index, step, token id), turned
into a Gumbel variable; the row's token is the argmax of log-probability + noise, which is an exact draw from the
distribution (Gumbel-max). No generator state exists, so a token depends on its own request alone: not on the rows
beside it, on streaming, on cancelled neighbours, or on a repeated step. The hash is integer arithmetic, equal on
every device; CPU and GPU differ only where their logits differ.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from qwen3.engine.params import SamplingParams
from qwen3.errors import CorruptFileError, Qwen3Error, UsageError

_MASK32 = 0xFFFFFFFF
_MASK64 = 0xFFFFFFFFFFFFFFFF
_FEW = 1024  # candidates that top_p and min_p look at before they look at all
_Columns = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # temperature, top_k, top_p, min_p: [B, 1]


def mix64(x: int) -> int:
    """The splitmix64 finaliser (Steele, Lea and Flood 2014) on a 64-bit integer."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def noise_key(stream_key: int, step: int) -> tuple[int, int]:
    """Two 32-bit words for one step of one sample; `stream_key` is `mix64(mix64(seed) ^ index)`."""
    key = mix64(stream_key ^ step)
    return key & _MASK32, key >> 32


def _scramble(x: torch.Tensor) -> torch.Tensor:
    """A 32-bit integer hash (bijective, low bias) on int64 tensors that hold values below 2**32."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK32
    x = x ^ (x >> 15)
    x = (x * (0x846CA68B - (1 << 32))) & _MASK32  # the same product modulo 2**32, without leaving 64 bits
    return x ^ (x >> 16)


def gumbel(keys: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise [B, C] float64 for candidates `ids` [B, C] int64 (or [1, C]) under `keys` [B, 2] int64."""
    x = _scramble(ids ^ keys[:, :1])
    x = _scramble((x + keys[:, 1:]) & _MASK32)
    uniform = (x.double() + 0.5) * 2.0**-32
    return -torch.log(-torch.log(uniform))


def penalise(
    logits: torch.Tensor, counts: torch.Tensor, repetition: float, frequency: float, presence: float
) -> torch.Tensor:
    """Penalised logits [S] of the tokens that are in the prompt or were generated; counts [S]: how often generated.

    Repetition as in CTRL (arXiv 1909.05858, extended to the prompt), frequency and presence as in OpenAI's API: over
    generated tokens only.
    """
    shrunk = torch.where(logits > 0, logits / repetition, logits * repetition)
    return shrunk - frequency * counts - presence * (counts > 0)


def filtered_logprobs(
    ordered: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    total: torch.Tensor | None = None,
) -> torch.Tensor:
    """Log-probabilities [B, C] float64 of candidates with logits [B, C] in descending order; -inf = dropped.

    The parameters are [B, 1]; temperature > 0; top_k 0 = off. total [B, 1]: logsumexp of (logit - largest) /
    temperature over more tokens than the candidates, None: over the candidates kept by top_k. Every rule is a threshold
    on values, so that equal logits share one fate and the order among them cannot matter.
    """
    x = (ordered.double() - ordered[:, :1].double()) / temperature
    kth = ordered.gather(1, (top_k.long() - 1).clamp(0, ordered.shape[1] - 1))
    x = x.masked_fill((top_k > 0) & (ordered < kth), -torch.inf)
    logp = x - (torch.logsumexp(x, dim=1, keepdim=True) if total is None else total)
    p = logp.exp()
    before = p.cumsum(1) - p
    nucleus = (before < top_p).sum(1, keepdim=True) - 1  # the last candidate inside; the first always is
    smallest = torch.where(top_p < 1, p.gather(1, nucleus.clamp(min=0)), 0.0)
    keep = (p >= smallest) & (p >= min_p * p[:, :1])
    return logp.masked_fill(~keep, -torch.inf)


@dataclass
class TokenLogprob:
    """A token, its log-probability under the model's unmodified distribution, and the most probable alternatives."""

    id: int
    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list)
    forced: bool = False  # inserted (early stop of the thinking), not sampled


def check_ids(params: SamplingParams, vocab_size: int) -> None:
    """Raises UsageError if parameters are not resolved, or name a token that the vocabulary does not have."""
    if None in (params.temperature, params.top_p, params.top_k, params.min_p):
        name = next(name for name in ("temperature", "top_p", "top_k", "min_p") if getattr(params, name) is None)
        raise UsageError(f"SamplingParams.{name} is None; call SamplingParams.resolved(mode) first")
    if not (params.logit_bias or params.stop_ids):
        return
    for name, largest in (
        ("logit_bias", max(params.logit_bias or {}, default=0)),
        ("stop_token_ids", max(params.stop_ids, default=0)),
    ):
        if largest >= vocab_size:
            raise UsageError(f"{name} names token {largest}, but the vocabulary ends at {vocab_size - 1}")


class RowSampler:
    """What the sampler keeps for one running sample: resolved parameters, its noise key, penalty counts when needed."""

    def __init__(
        self, params: SamplingParams, prompt_ids: Sequence[int], vocab_size: int, device: torch.device, index: int = 0
    ) -> None:
        check_ids(params, vocab_size)
        bias = params.logit_bias or {}
        self.params = params
        self.vocab_size = vocab_size
        self.seed = secrets.randbits(64) if params.seed is None else params.seed & _MASK64
        self.stream_key = mix64(mix64(self.seed) ^ index)
        self.top_k = params.top_k if params.top_k and 0 < params.top_k < vocab_size else 0
        self.filters = [
            float(params.temperature or 0),
            float(self.top_k),
            float(params.top_p or 1),
            params.min_p or 0.0,
        ]
        nucleus = self.filters[2] < 1 or self.filters[3] > 0
        self.kind = "greedy" if params.greedy else "top_k" if self.top_k else "nucleus" if nucleus else "free"
        self.bias: tuple[torch.Tensor, torch.Tensor] | None = None
        if bias:
            values = torch.tensor(list(bias.values()), device=device)
            self.bias = torch.tensor(list(bias), device=device), values
        self.penalties: list[float] | None = None
        penalties = [params.repetition_penalty, params.frequency_penalty, params.presence_penalty]
        if penalties != [1.0, 0.0, 0.0]:
            self.penalties = penalties
            self.places = {token: place for place, token in enumerate(dict.fromkeys(prompt_ids))}
            self.seen = torch.tensor(list(self.places), dtype=torch.long, device=device)
            self.counts = torch.zeros(len(self.places), device=device)

    def record(self, token: int) -> None:
        """Count a generated token, sampled or forced, for the penalties."""
        if self.penalties is None:
            return
        place = self.places.setdefault(token, len(self.places))
        if place == len(self.seen):
            self.seen = torch.cat([self.seen, self.seen.new_tensor([token])])
            self.counts = torch.cat([self.counts, self.counts.new_zeros(1)])
        self.counts[place] += 1


def sample(
    logits: torch.Tensor,
    rows: Sequence[RowSampler],
    steps: Sequence[int],
    forbidden: Sequence[Sequence[int]],
    masks: Sequence[NDArray[np.int32] | None] = (),
) -> list[int | Qwen3Error]:
    """One token id for each row of logits [B, V or more]; columns from `vocab_size` on are never sampled.

    steps[b]: how many tokens sample b already has (the noise counter). forbidden[b]: ids that may not come next.
    masks[b]: bits [ceil(V / 32)] of the ids that may, None (or no masks at all): any.
    The logits are not modified. A row that cannot be sampled (no token left, NaN) yields its error instead of an id:
    the rows beside it are not concerned.
    """
    if not rows:
        return []
    device = logits.device
    logits = logits[:, : rows[0].vocab_size].float()
    if any(r.bias or r.penalties for r in rows) or any(len(f) for f in forbidden) or any(m is not None for m in masks):
        logits = _edit(logits.clone(), rows, forbidden)
        for b, words in enumerate(masks):
            if words is not None:
                allowed = np.unpackbits(words.view(np.uint8), bitorder="little")[: logits.shape[1]]
                logits[b].masked_fill_(torch.from_numpy(allowed == 0).to(device), -torch.inf)
    ids = torch.empty(len(rows), dtype=torch.long, device=device)
    groups: dict[str, list[int]] = {}
    for b, row in enumerate(rows):
        groups.setdefault(row.kind, []).append(b)
    for kind, members in groups.items():
        whole = len(members) == len(rows)
        index = None if whole else torch.tensor(members, device=device)
        part = logits if index is None else logits[index]
        if kind == "greedy":
            chosen = part.argmax(1)
        else:
            filters = torch.tensor([rows[b].filters for b in members], dtype=torch.float64, device=device)
            keys = torch.tensor([noise_key(rows[b].stream_key, steps[b]) for b in members], device=device)
            chosen = _draw(kind, part, filters, keys, max(rows[b].top_k for b in members))
        if index is None:
            ids = chosen
        else:
            ids[index] = chosen
    largest = logits.amax(1).double()  # of a damaged row NaN or infinite, of one with every token forbidden -inf
    picked = torch.stack([ids.double(), largest]).tolist()  # one copy to the host
    return [int(i) if abs(score) < math.inf else _unsampled(score) for i, score in zip(*picked, strict=True)]


def _unsampled(score: float) -> Qwen3Error:
    if score == -math.inf:
        return UsageError("every token is forbidden (logit_bias, min_tokens, grammar): nothing to sample from")
    return CorruptFileError(f"the model's logits are {score}: its weights are damaged, see `qwen3 verify`")


def _draw(kind: str, logits: torch.Tensor, filters: torch.Tensor, keys: torch.Tensor, largest_k: int) -> torch.Tensor:
    """Gumbel-max over the filtered rows, all of one kind: "top_k", "nucleus" (no top_k) or "free". Ids [B] int64."""
    columns = (filters[:, 0:1], filters[:, 1:2], filters[:, 2:3], filters[:, 3:4])
    if kind == "top_k":
        values, ids = torch.topk(logits, largest_k, dim=1)
        kth = values.gather(1, columns[1].long() - 1)
        # Logits equal to a row's k-th stay in, however many they are; but not those that a mask has ruled out.
        tied = int((logits >= kth.clamp(min=torch.finfo(logits.dtype).min)).sum(1).max())
        if tied > largest_k:
            values, ids = torch.topk(logits, tied, dim=1)
        scores = filtered_logprobs(values, *columns)
    elif kind == "nucleus":
        ids, scores = _nucleus(logits, columns)
    else:
        ids = torch.arange(logits.shape[1], device=logits.device).unsqueeze(0)
        scores = (logits.double() - logits.amax(1, keepdim=True).double()) / columns[0]
    best = (scores + gumbel(keys, ids)).argmax(1, keepdim=True)
    return ids.expand_as(scores).gather(1, best).squeeze(1)


def _nucleus(logits: torch.Tensor, columns: _Columns) -> tuple[torch.Tensor, torch.Tensor]:
    """Candidates and log-probabilities under top_p and min_p: among the best few, or all where these do not suffice."""
    size = logits.shape[1]
    if size > _FEW:
        values, ids = torch.topk(logits, _FEW, dim=1)
        total = torch.logsumexp((logits.double() - values[:, :1].double()) / columns[0], dim=1, keepdim=True)
        scores = filtered_logprobs(values, *columns, total=total)
        if bool((scores[:, -1] == -torch.inf).all()):  # every row's border, ties included, lies among the few
            return ids, scores
    values, ids = torch.topk(logits, size, dim=1)
    return ids, filtered_logprobs(values, *columns)


def _edit(logits: torch.Tensor, rows: Sequence[RowSampler], forbidden: Sequence[Sequence[int]]) -> torch.Tensor:
    """Bias, penalties and forbidden ids, in place on a copy."""
    for b, row in enumerate(rows):
        if row.bias is not None:
            logits[b, row.bias[0]] += row.bias[1]
        if row.penalties is not None and len(row.seen):
            logits[b, row.seen] = penalise(logits[b, row.seen], row.counts, *row.penalties)
    for b, ids in enumerate(forbidden):
        if len(ids):
            logits[b, list(ids)] = -torch.inf
    return logits
