"""Whether a written checkpoint is what was meant, and what it says beside the original.

Two checks. Each matrix that is read back, times a fixed vector, must be what it was in memory: an error in any row,
column or scale shows. And both models are run over fixed prompts, side by side, one layer of each at a time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwen3 import kernels
from qwen3.chat import encode
from qwen3.checkpoint import read_config
from qwen3.checkpoint.names import EMBED, HEAD, layer_views
from qwen3.checkpoint.source import Source, Stored, open_source
from qwen3.config import ModelConfig
from qwen3.errors import CorruptFileError
from qwen3.model.network import Layer, Qwen3
from qwen3.quantize.calibration import conversations
from qwen3.quantize.types import Float8, Grouped, Rounded
from qwen3.tokenizer import Tokenizer

NUMBERS = 1 << 22  # of a matrix that are widened at a time
PROMPTS, TOKENS = 8, 64  # solved problems of the held-out split, small talk, tool calls; tokens of each at most


@dataclass(frozen=True)
class Agreement:
    """tokens: over which it is taken. kl: of the original's distributions against the other's, mean in nats. top1:
    share of tokens after which both name the same next one. layers: how far each layer's output is from the
    original's, as a share of its size."""

    tokens: int
    kl: float
    top1: float
    layers: tuple[float, ...]


def probe(tensor: Tensor | Rounded) -> Tensor:
    """A matrix [N, K] times a fixed vector, float32 [N]; any other tensor itself."""
    if isinstance(tensor, Tensor):
        if tensor.dim() != 2:
            return tensor.float()
        return _probe(lambda rows: tensor[rows].float(), *tensor.shape)
    data = tensor.q if isinstance(tensor, Grouped) else tensor.data
    return _probe(lambda rows: _rows(tensor, rows).dequantize(), *data.shape)


def probe_stored(stored: Stored) -> Tensor:
    """The same of a tensor in a file."""
    if len(stored.shape) != 2:
        return stored.read(slice(None), torch.float32)
    whole: Any = stored
    if getattr(stored, "by_column", False):
        whole = whole.whole()
    return _probe(lambda rows: whole.read(rows, torch.float32), *stored.shape)


def _probe(read: Callable[[slice], Tensor], rows: int, columns: int) -> Tensor:
    vector = torch.randn(columns, generator=torch.Generator().manual_seed(columns))
    step = max(128, NUMBERS // columns // 128 * 128)  # blocks of FP8 have 128 rows
    return torch.cat([read(slice(first, min(first + step, rows))) @ vector for first in range(0, rows, step)])


def _rows(rounded: Rounded, rows: slice) -> Rounded:
    changes: dict[str, Any] = {}
    blocks = slice(rows.start // 128, -(-rows.stop // 128))
    for name in ("q", "data", "scale", "zero"):
        part = getattr(rounded, name, None)
        if part is not None and part.dim() == 2:
            in_blocks = isinstance(rounded, Float8) and name == "scale" and part.shape != (len(rounded.data), 1)
            changes[name] = part[blocks if in_blocks else rows]
    return replace(rounded, **changes)


def check_written(path: Path, config: ModelConfig, wanted: Mapping[str, Tensor], loss: float) -> None:
    """wanted: official name → `probe`; loss: how far they may be away, as a share of their size.

    Raises CorruptFileError naming the first that is not what it was, and whatever the loader raises.
    """
    with closing(open_source(path, config)) as source:
        for name, stored in source.stored.items():
            found, meant = probe_stored(stored), wanted[name]
            if not (found - meant).norm() <= loss * meant.norm():
                far = float((found - meant).norm() / meant.norm())
                raise CorruptFileError(f"not saved: {name} is read back as something else (off by {far:.2g} of itself)")


def prompts(tokenizer: Tokenizer | None, config: ModelConfig) -> list[list[int]]:
    """Ids of fixed texts; without a tokenizer, or with one that has no control tokens, of any tokens."""
    try:
        known = tokenizer is not None and tokenizer.control.im_end < config.vocab_size
    except CorruptFileError:
        known = False
    if not known:
        generator = torch.Generator().manual_seed(0)
        return [torch.randint(config.vocab_size, (32,), generator=generator).tolist() for _ in range(PROMPTS)]
    documents = islice(conversations(random.Random(1), split="eval"), PROMPTS)
    return [
        encode(each["messages"], tokenizer=tokenizer, tools=each.get("tools"), add_generation_prompt=False).ids[:TOKENS]
        for each in documents
    ]


@torch.no_grad()
def compare(
    original: Path, written: Path, texts: Sequence[Sequence[int]], progress: Callable[[int, int], None] | None = None
) -> Agreement:
    """Peak memory: a layer of each in float32, and a few megabytes. progress: layers done, of so many.

    Raises CorruptFileError where the written one gives no numbers.
    """
    with closing(_Run(original, texts)) as a, closing(_Run(written, texts)) as b:
        layers = []
        for i, (x, y) in enumerate(zip(a.layers(), b.layers(), strict=True)):
            layers.append(float((x - y).norm() / x.norm()))
            if progress is not None:
                progress(i + 1, a.config.num_hidden_layers)
        kl, same, count = 0.0, 0, 0
        for p, q in zip(a.log_probabilities(), b.log_probabilities(), strict=True):
            kl += float((p.exp() * (p - q)).sum())
            same += int((p.argmax(-1) == q.argmax(-1)).sum())
            count += len(p)
    if not kl < float("inf"):
        raise CorruptFileError("not saved: the quantized model gives no numbers for a prompt (NaN or infinite)")
    return Agreement(count, max(kl, 0.0) / count, same / count, tuple(layers))


class _Run:
    """One checkpoint over a few texts, a layer at a time."""

    def __init__(self, path: Path, texts: Sequence[Sequence[int]]) -> None:
        self.config = read_config(path)
        self.source: Source = open_source(path, self.config)
        self.network = Qwen3(self.config, "meta", torch.float32)  # for its masks and positions
        self.ids = torch.tensor([id for text in texts for id in text])[None]
        self.documents = torch.tensor([i for i, text in enumerate(texts) for _ in text])[None]
        self.positions = torch.tensor([i for text in texts for i in range(len(text))])[None]
        self.ends = [len(text) for text in texts]
        self.close = self.source.close
        self.x = self._embedded()

    def _embedded(self) -> Tensor:
        table = self.source.stored[EMBED]
        rows = {id: table.read(slice(id, id + 1), torch.float32) for id in self.ids.unique().tolist()}
        return torch.cat([rows[id] for id in self.ids[0].tolist()])[None]

    def layers(self) -> Iterator[Tensor]:
        """Each layer's output [T, h]."""
        cos, sin = self.network.rotary(self.positions, torch.float32)
        attend = self.network._attend_uncached(self.ids, self.positions, self.documents, None)
        for i in range(self.config.num_hidden_layers):
            layer = Layer(self.config, i, "meta", torch.float32).to_empty(device="cpu")
            parameters = {f"layers.{i}.{name}": parameter for name, parameter in layer.named_parameters()}
            for name, view in layer_views(self.config, i, parameters).items():
                self.source.stored[name].fill(view)
            self.x = layer(self.x, cos, sin, attend)
            del layer
            yield self.x[0]

    def log_probabilities(self) -> Iterator[Tensor]:
        """float32 [T, V] of each text."""
        norm = self.source.stored["model.norm.weight"].read(slice(None), torch.float32)
        hidden = kernels.rms_norm(self.x[0], norm, self.config.rms_norm_eps)
        head = self.source.stored[EMBED if self.config.tie_word_embeddings else HEAD]
        rows, columns = head.shape
        whole: Any = head
        if getattr(head, "by_column", False):
            whole = whole.whole()
        logits = torch.empty(len(hidden), rows)
        step = max(128, NUMBERS // columns)
        for first in range(0, rows, step):
            part = slice(first, min(first + step, rows))
            logits[:, part] = hidden @ whole.read(part, torch.float32).T
        yield from (part.log_softmax(-1) for part in logits.split(self.ends))
