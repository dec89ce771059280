"""The training loop: one model, one stream of packed batches, one optimiser. Readable top to bottom."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from qwen3.model import Qwen3
from qwen3.train.data import Batch
from qwen3.train.optim import OptimConfig, Optimizer
from qwen3.train.schedule import warmup_stable_decay
from qwen3.train.state import load_state, save_state


@dataclass(frozen=True)
class TrainConfig:
    """What the loop does; everything else is derived and printed."""

    steps: int  # of the schedule
    stop_at: int | None = None  # end after so many steps, in the middle of the schedule
    warmup: int = 100
    decay: float = 0.45  # share of the steps spent decaying
    floor: float = 0.0
    optim: OptimConfig = field(default_factory=OptimConfig)
    log_every: int = 50
    save_every: int = 0  # steps between training states; 0: none


def init_weights(model: Qwen3, seed: int) -> None:
    """Normal(0, 1/sqrt(inputs)) matrices, zero output projections (so that every layer starts as the identity),
    embedding of `initializer_range`, norms at one."""
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:
                p.fill_(1.0)
            elif name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
                p.zero_()
            else:
                std = model.config.initializer_range if "embed" in name else p.shape[-1] ** -0.5
                p.copy_(torch.randn(p.shape, generator=generator) * std)


def document_mask(documents: Tensor) -> BlockMask:
    """Causal attention within documents. documents: [B, T] integers."""
    rows, length = documents.shape

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (documents[b, q] == documents[b, k])

    return create_block_mask(visible, rows, None, length, length, device=documents.device)


def packed_hidden(model: Qwen3, ids: Tensor, positions: Tensor, documents: Tensor, mask: BlockMask | None) -> Tensor:
    """Hidden states of packed rows, [B, T, h]. With a mask through FlexAttention, else through the network's dense
    reference; FlexAttention has no backward pass on a CPU."""
    if mask is None:
        return model.hidden(ids, positions, doc_ids=documents)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
        assert isinstance(out, Tensor)
        return out

    return model.hidden(ids, positions, attention=attend)


def next_token_loss(
    model: Qwen3, ids: Tensor, labels: Tensor, positions: Tensor, documents: Tensor, mask: BlockMask | None = None
) -> Tensor:
    """Mean cross-entropy over trained places, in nats. All tensors [B, T] int64; label -100 is skipped."""
    logits = model.head(packed_hidden(model, ids, positions, documents, mask))
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)


def to_device(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ids, labels, positions, documents as int64 tensors on the device."""
    arrays = (batch.ids, batch.labels, batch.positions, batch.documents)
    return tuple(torch.from_numpy(a.astype("int64")).to(device, non_blocking=True) for a in arrays)  # type: ignore[return-value]


def train(
    model: Qwen3,
    batches: Callable[[int], Iterator[Batch]],
    config: TrainConfig,
    folder: Path,
    *,
    evaluate: Callable[[int], dict[str, Any]] | None = None,
    evaluate_every: int = 0,
) -> dict[str, Any]:
    """Train in place. `batches(first)` yields the batches from step `first` on; `folder` gets log.jsonl and state.

    A `state.safetensors` in the folder is resumed from (CorruptFileError if it is another model's). `evaluate(steps
    done)` goes into the log every `evaluate_every` steps (0: never) and at the end. Returns the summary that is also
    the log's last line. Raises FloatingPointError when the loss is no longer finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = next(model.parameters()).device
    params = dict(model.named_parameters())
    optimizer = Optimizer(params, model.config, config.optim)
    state_file = folder / "state.safetensors"
    first = load_state(state_file, optimizer) if state_file.exists() else 0
    fast = device.type == "cuda"
    compute_loss = torch.compile(next_token_loss) if fast else next_token_loss
    make_mask = torch.compile(document_mask) if fast else None

    def write(**fields: Any) -> None:
        line = json.dumps(fields)
        print(line, flush=True)
        with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    count = sum(p.numel() for p in params.values())
    write(event="start", step=first, parameters=count, device=str(device), config=asdict(config))
    begin = window = time.perf_counter()
    tokens = window_tokens = 0
    losses: list[Tensor] = []  # since the last log line, on the device
    step, last = first - 1, config.stop_at or config.steps
    source = batches(first)
    for step in range(first, last):
        ids, labels, positions, documents = to_device(next(source), device)
        mask = make_mask(documents) if make_mask else None
        loss = compute_loss(model, ids, labels, positions, documents, mask)
        loss.backward()
        scale = warmup_stable_decay(
            step, config.steps, warmup=config.warmup, decay=int(config.decay * config.steps), floor=config.floor
        )
        norm = float(optimizer.step(scale))
        for p in params.values():
            p.grad = None
        losses.append(loss.detach())
        tokens += ids.numel()
        window_tokens += ids.numel()
        if step == first or (step + 1) % config.log_every == 0 or step + 1 == last:
            mean = float(torch.stack(losses).mean())
            if not math.isfinite(mean):
                raise FloatingPointError(f"the loss is {mean} at step {step}")
            now = time.perf_counter()
            rate = window_tokens / (now - window)
            left = (last - step - 1) * (now - begin) / (step + 1 - first)
            write(step=step + 1, of=last, loss=round(mean, 4), lr=round(scale, 4), norm=round(norm, 3),
                  tokens_per_second=int(rate), seconds=round(now - begin, 1), eta=int(left))  # fmt: skip
            losses.clear()
            window, window_tokens = now, 0
        if evaluate and evaluate_every and (step + 1) % evaluate_every == 0 and step + 1 < last:
            write(event="evaluation", step=step + 1, **evaluate(step + 1))
        if config.save_every and (step + 1) % config.save_every == 0:
            save_state(state_file, optimizer, step + 1)
    summary: dict[str, Any] = {"event": "end", "step": step + 1, "tokens": tokens}
    summary["seconds"] = round(time.perf_counter() - begin, 1)
    if evaluate:
        summary["evaluation"] = evaluate(step + 1)
    write(**summary)
    return summary
