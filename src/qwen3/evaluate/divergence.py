"""How far apart two networks are on the same tokens: next-token distributions, and states behind each layer.

Both run as they would in the engine (weights of few bits through their own kernels), teacher-forced: neither sees a
token of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from qwen3.errors import CorruptFileError
from qwen3.evaluate.paired import Numbers
from qwen3.model import Qwen3

QUANTILES = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9, 100)
_BATCH_TOKENS = {"cuda": 8192}  # of a forward, padding included; else 1,024
_ROWS = 128  # whose logits are there at once


class Text(NamedTuple):
    """Token ids; those from number `first` (1 or more) on are scored."""

    ids: list[int]
    first: int


@dataclass(frozen=True)
class Scores:
    """Of N scored tokens. nats [models, N]: minus log-probability of the token itself; kl [models - 1, N]: divergence
    KL(first ‖ other), nats; agrees [models - 1, N]: whether both have the same likeliest token."""

    nats: Numbers
    kl: Numbers
    agrees: Numbers


@torch.inference_mode()
def score(models: Sequence[Qwen3], texts: Sequence[Text], width: int, names: Sequence[str]) -> Scores:
    """All texts through all models, the first of which is the reference. width: tokens there are; logits beyond them
    (rows of padding) count for nothing.

    Raises CorruptFileError naming a model whose logits are not finite.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for ids, places, rows in _batches(texts, models[0].device):
        hidden = [model.hidden(ids.to(model.device)).flatten(0, 1) for model in models]
        for first in range(0, len(places), _ROWS):
            at = places[first : first + _ROWS]
            logs = []
            for model, states, name in zip(models, hidden, names, strict=True):
                found = model.head(states[at.to(states.device)])[:, :width].float().to(models[0].device)
                if not torch.isfinite(found).all():
                    raise CorruptFileError(f"{name}: its logits are NaN or infinite; check its scales, or the method")
                logs.append(found.log_softmax(-1))
            nats = torch.stack([-log.gather(-1, rows[first : first + _ROWS, None])[:, 0] for log in logs])
            own = logs[0].exp()
            kl = [(own * (logs[0] - log)).sum(-1).clamp_min(0) for log in logs[1:]]
            agrees = [logs[0].argmax(-1) == log.argmax(-1) for log in logs[1:]]
            none = torch.empty(0, nats.shape[1])
            parts.append((nats, torch.stack(kl) if kl else none, torch.stack(agrees) if agrees else none))
    columns = [torch.cat([part[i].double().cpu() for part in parts], dim=1).numpy() for i in range(3)]
    return Scores(*columns)


def _batches(texts: Sequence[Text], device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(ids [B, T], flat places whose next token is scored, those tokens), short texts first. Padding comes after a text
    and is seen by none of it."""
    most = _BATCH_TOKENS.get(device.type, 1024)
    left = sorted(texts, key=lambda text: len(text.ids))
    while left:
        count = 1
        while count < len(left) and (count + 1) * len(left[count].ids) <= most:
            count += 1
        batch, left = left[:count], left[count:]
        length = len(batch[-1].ids)
        places = [i * length + k - 1 for i, text in enumerate(batch) for k in range(text.first, len(text.ids))]
        tokens = [token for text in batch for token in text.ids[text.first :]]
        rows = [[*text.ids, *[0] * (length - len(text.ids))] for text in batch]
        if tokens:
            at, wanted = torch.tensor(places, device=device), torch.tensor(tokens, device=device)
            yield torch.tensor(rows, device=device), at, wanted


def summary(kl: Numbers, agrees: Numbers) -> dict[str, Any]:
    """Of one variant's tokens: mean, median, p99 and max of KL in nats, its quantiles, and the share that agrees."""
    points = np.percentile(kl, QUANTILES)
    return {
        "tokens": len(kl),
        "mean": float(kl.mean()),
        "median": float(np.median(kl)),
        "p99": float(np.percentile(kl, 99)),
        "max": float(kl.max()),
        "agreement": float(agrees.mean()),
        "quantiles": [[q, float(value)] for q, value in zip(QUANTILES, points, strict=True)],
    }


class LayerError(NamedTuple):
    """Behind layer number `layer` (0: the embedding): mean over tokens of ‖variant − reference‖ / ‖reference‖.

    whole: of the variant's own states, so that errors add up; alone: of this layer fed with the reference's states.
    """

    layer: int
    whole: float
    alone: float


@torch.inference_mode()
def layer_errors(reference: Qwen3, variant: Qwen3, ids: Tensor) -> list[LayerError]:
    """Both networks, of one architecture, over ids [B, T]; one entry for the embedding and one for each layer."""
    wanted = _states(reference, ids)
    whole = _states(variant, ids)
    fed = [state.to(variant.device, variant.dtype) for state in wanted]
    alone = _states(variant, ids, fed)
    errors = [_error(a, b) for a, b in zip(wanted, whole, strict=True)]
    single = [errors[0], *(_error(a, b) for a, b in zip(wanted[1:], alone[1:], strict=True))]
    return [LayerError(i, *pair) for i, pair in enumerate(zip(errors, single, strict=True))]


def _error(wanted: Tensor, found: Tensor) -> float:
    wanted, found = wanted.float(), found.float().to(wanted.device)
    return float(((found - wanted).norm(dim=-1) / wanted.norm(dim=-1).clamp_min(1e-30)).mean())


def _states(model: Qwen3, ids: Tensor, fed: Sequence[Tensor] | None = None) -> list[Tensor]:
    """What goes into the first layer and what comes out of each. fed: what goes into each layer instead of that."""
    seen: list[Tensor] = []

    def enters(number: int) -> Callable[..., Any]:
        def hook(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if number == 0:
                seen.append(given[0])
            return None if fed is None else (fed[number], *given[1:])

        return hook

    with _hooked(layer.register_forward_pre_hook(enters(i)) for i, layer in enumerate(model.layers)):
        leaves = (layer.register_forward_hook(lambda module, given, out: seen.append(out)) for layer in model.layers)
        with _hooked(leaves):
            model.hidden(ids.to(model.device))
    return seen


@contextmanager
def _hooked(hooks: Iterator[Any]) -> Iterator[None]:
    handles = list(hooks)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
