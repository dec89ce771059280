"""One model, one optimiser: batches in, better parameters out. What to train on and when belongs to the stages.

The parameters stay where they are: an engine over the same model (`LLM.of`) samples from what was trained last.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from qwen3.config import ModelConfig
from qwen3.errors import UsageError
from qwen3.model import Qwen3
from qwen3.train.checkpoints import Checkpoints, random_state, restore_random
from qwen3.train.forward import AttentionKind, BatchTensors, Checkpointing, Compiling, Forward, to_tensors
from qwen3.train.fp8 import Fp8
from qwen3.train.losses import chunk_for, linear_cross_entropy, token_logprobs
from qwen3.train.moe import RouterSums, added, balance_loss, load_statistics, router_sums
from qwen3.train.optim import OptimConfig, Optimizer, is_sharded, process, processes
from qwen3.train.packing import IGNORED, PackedBatch

_RANDOM = "random/"  # and the number of the process: its generators' tensors in a checkpoint
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16, by the vendor's data sheets


class LossFn(Protocol):
    """What is minimised: the sum over an update's tokens, divided by the sum of its batches' normalisers."""

    def normaliser(self, batch: PackedBatch) -> float:
        """What this batch adds to the divisor; known before any forward."""
        ...

    def __call__(self, hidden: Tensor, head: Tensor, tensors: BatchTensors) -> tuple[Tensor, dict[str, Tensor]]:
        """(the sum, metrics as sums over trained tokens). hidden: [rows · length, h]. head: [V, h]."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """Next-token loss over trained places, each times its "weight" where the samples have one."""

    def normaliser(self, batch: PackedBatch) -> float:
        """Trained tokens, or the sum of their weights."""
        weights = batch.streams.get("weight")
        return float(batch.trained_tokens if weights is None else weights[batch.labels != IGNORED].sum())

    def __call__(self, hidden: Tensor, head: Tensor, tensors: BatchTensors) -> tuple[Tensor, dict[str, Tensor]]:
        labels, weights = tensors.labels.flatten(), tensors.streams.get("weight")
        if weights is not None:
            weights = weights.flatten()
        if len(tensors.places) < 0.9 * len(labels):  # the head for trained places alone
            hidden, labels = hidden[tensors.places], labels[tensors.places]
            weights = None if weights is None else weights[tensors.places]
        return linear_cross_entropy(hidden, head, labels, weights, chunk_for(head)), {}


class Metrics(Mapping[str, float]):
    """Numbers of one update by name. They are on their way from the device at once, and waited for when first looked
    at, so that the next update can be prepared and launched while this one runs."""

    def __init__(self, known: Mapping[str, float], pending: Mapping[str, Tensor]) -> None:
        self._known = dict(known)
        self._names = tuple(pending)
        self._there: torch.cuda.Event | None = None
        if pending:
            values = torch.stack([t.detach().double() for t in pending.values()])
            self._values = values.to("cpu", non_blocking=True)  # from a GPU: into pinned memory
            if values.is_cuda:
                self._there = torch.cuda.Event()
                self._there.record()

    def _all(self) -> dict[str, float]:
        if self._names:
            if self._there is not None:
                self._there.synchronize()
            self._known |= dict(zip(self._names, self._values.tolist(), strict=True))
            self._names = ()
        return self._known

    def __getitem__(self, name: str) -> float:
        return self._known[name] if name in self._known else self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._known) + len(self._names)

    def __repr__(self) -> str:
        return f"Metrics({self._all()})"


class Shares(Protocol):
    """An engine that samples from the trained parameters."""

    def update_weights(self, tensors: Mapping[str, Tensor]) -> None: ...


class Trainer:
    """optim, forward options (see `Forward`): as their classes say. Only parameters with `requires_grad` are trained;
    the others cost nothing. balance: weight of the load-balancing loss of sparse layers (None: the model config's
    `router_aux_loss_coef`; reinforcement learning wants 0). balance_counts: see `moe`. seed: of Python's, numpy's and
    torch's generators, which are set here.

    engines: whose weights' version is raised after every update (`LLM.of(model, …).engine`).
    """

    def __init__(
        self,
        model: Qwen3,
        optim: OptimConfig | None = None,
        *,
        seed: int = 0,
        attention: AttentionKind | None = None,
        checkpointing: Checkpointing = "none",
        compiling: Compiling | None = None,
        fp8: Fp8 = False,
        balance: float | None = None,
        balance_counts: Literal["exact", "running"] = "exact",
        engines: Sequence[Shares] = (),
    ) -> None:
        if balance_counts not in ("exact", "running"):
            raise UsageError(f"balance_counts={balance_counts!r} must be exact or running")
        self.model = model
        self.optim = optim or OptimConfig()
        self.device = model.device
        if compiling is None:
            compiling = "layers" if self.device.type == "cuda" else "none"
        self.forward = Forward(model, attention=attention, checkpointing=checkpointing, compiling=compiling, fp8=fp8)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = Optimizer(trained, model.config, self.optim)
        self.balance = model.config.router_aux_loss_coef if balance is None else balance
        self.balance_counts = balance_counts
        self.fp8 = fp8
        self.engines = list(engines)
        self.updates = 0
        self._checkpoints: dict[Path, Checkpoints] = {}
        self._last = 0.0
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)

    @property
    def head(self) -> Tensor:
        """[V, h]."""
        weight: Any = (self.model.embed_tokens if self.model.lm_head is None else self.model.lm_head).weight
        if not is_sharded(weight):
            return weight
        from torch.distributed.tensor import Partial

        return weight.full_tensor(grad_placements=[Partial()] * weight.device_mesh.ndim)

    def update(self, batches: Sequence[PackedBatch], loss: LossFn, lr_scale: float = 1.0) -> Metrics:
        """One step of the optimiser on the gradients of all `batches`, learning rates times `lr_scale`.

        Metrics: loss (the sum over the normaliser), the loss's own (means over trained tokens), norm, tokens (places
        of the batches), trained, seconds (since the last update ended), tokens_per_second, mfu (where the GPU's peak
        is known), memory (GB at most since the start); with sparse layers balance and the load's statistics. A gradient
        that is not finite changes nothing; norm says so. Raises UsageError when no token is trained.
        """
        started = self._last or time.perf_counter()
        tokens, filled, trained, normaliser = self._everywhere(
            sum(batch.ids.size for batch in batches),
            sum(int((batch.documents > 0).sum()) for batch in batches),
            sum(batch.trained_tokens for batch in batches),
            math.fsum(loss.normaliser(batch) for batch in batches),
        )
        if not normaliser > 0 or not trained:
            raise UsageError(f"an update with {trained:.0f} trained tokens, whose normaliser is {normaliser}")
        whole = self._count_routes(batches)
        total = torch.zeros((), dtype=torch.float32, device=self.device)
        sums: dict[str, Tensor] = {}
        routed: list[RouterSums] = []
        for batch in batches:
            tensors = to_tensors(batch, self.device)
            hidden, routers = self.forward(tensors)
            part, metrics = loss(hidden.flatten(0, 1), self.head, tensors)
            total += part.detach()
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0) + value.detach()
            if routers:
                now = router_sums(routers, tensors.documents)
                routed.append(added([now]))
                if self.balance:
                    counts = self._summed(added(routed)).counts if whole is None else whole
                    part = part + self.balance * normaliser * balance_loss(now.probabilities, counts, filled)
            part.backward()  # of the sum: bf16 has float32's range, and the optimiser divides in float32
            self.optimizer.collect()
        norm = self.optimizer.step(lr_scale, 1 / normaliser)
        self.updates += 1
        for engine in self.engines:
            engine.update_weights({})
        if self.updates == 1:  # what lives now lives on: the collector need not look at it again
            gc.collect()
            gc.freeze()
        self._add_across(total, *sums.values())
        pending = {"loss": total / normaliser, "norm": norm} | {name: value / trained for name, value in sums.items()}
        if routed:
            pending |= _routing(self._summed(added(routed)), filled)
        work = self._everywhere(sum(flops(self.model.config, batch) for batch in batches))[0]
        return Metrics({"tokens": tokens, "trained": trained} | self._speed(tokens, work, started), pending)

    def _count_routes(self, batches: Sequence[PackedBatch]) -> Tensor | None:
        """The choices [L, E] of the whole update, where they must be known before its first gradient."""
        config = self.model.config
        sparse = any(config.is_sparse_layer(i) for i in range(config.num_hidden_layers))
        if not sparse or not self.balance or len(batches) == 1 or self.balance_counts == "running":
            return None
        return self._summed(added([self._routed(to_tensors(batch, self.device)) for batch in batches])).counts

    def _routed(self, tensors: BatchTensors) -> RouterSums:
        return added([router_sums(self.forward(tensors)[1], tensors.documents)])

    def _everywhere(self, *numbers: float) -> list[float]:
        """Their sums over all processes."""
        if processes() == 1:
            return [float(n) for n in numbers]
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        self._add_across(tensor)
        return [float(n) for n in tensor.tolist()]

    @staticmethod
    def _add_across(*tensors: Tensor) -> None:
        if processes() > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def _summed(self, sums: RouterSums) -> RouterSums:
        self._add_across(*sums)
        return sums

    def _speed(self, tokens: float, work: float, started: float) -> dict[str, float]:
        """work: floating-point operations of all processes."""
        self._last = time.perf_counter()
        seconds = self._last - started
        known = {"seconds": seconds, "tokens_per_second": tokens / seconds}
        if self.device.type == "cuda":
            known["memory"] = torch.cuda.max_memory_allocated(self.device) / 1e9
            name = torch.cuda.get_device_name(self.device)
            peak = next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)
            if peak:
                known["mfu"] = work / seconds / peak / processes()
        return known

    def logprobs(self, batch: PackedBatch, temperature: float = 1.0) -> Tensor:
        """log p(label) of each place, float32 [rows, length] on the CPU, 0 where the label is -100. The very forward
        of training, gradients' preparations included, so that the numbers are the same to the last bit."""
        tensors = to_tensors(batch, self.device)
        with torch.enable_grad():
            hidden = self.forward(tensors)[0].detach().flatten(0, 1)
        with torch.no_grad():
            labels, head = tensors.labels.flatten(), self.head
            found, _ = token_logprobs(hidden, head, labels, chunk_for(head), temperature)
        return found.view(tensors.labels.shape).cpu()

    def save(self, folder: str | Path, position: Mapping[str, Any], keep: int = 3) -> None:
        """Begin a checkpoint of everything a resumed run needs, `position` (any JSON) with it; see `Checkpoints`. It
        is complete when the next `save` or `finish` returns. Of several processes, all must ask and the first writes;
        the checkpoint is whole, and any number of processes may go on from it."""
        found = [random_state(self.device)]
        if processes() > 1:
            found = [found[0]] * processes()
            dist.all_gather_object(found, found[process()])
        state = {"updates": self.updates, "steps": self.optimizer.step_count, "position": dict(position)}
        state["random"] = [numbers for numbers, _ in found]
        tensors = {f"{_RANDOM}{i}/{name}": t for i, (_, part) in enumerate(found) for name, t in part.items()}
        tensors |= self.optimizer.state()
        if process() == 0:
            self._store(folder, keep).save(self.updates, tensors, state, self.config())

    def load(self, folder: str | Path) -> dict[str, Any] | None:
        """Go on from the newest whole checkpoint in `folder`; returns its position, None where there is none.

        Raises CorruptFileError if it is another run's (the field that differs is named) or all are damaged; nothing is
        changed then.
        """
        found = self._store(folder, 3).load(self.config())
        if found is None:
            return None
        tensors, state = found
        self.optimizer.load_state({n: t for n, t in tensors.items() if not n.startswith(_RANDOM)}, state["steps"])
        mine = process() % len(state["random"])
        own = {n.rpartition("/")[2]: t for n, t in tensors.items() if n.startswith(f"{_RANDOM}{mine}/")}
        restore_random(self.device, state["random"][mine], own)
        self.updates = state["updates"]
        for engine in self.engines:
            engine.update_weights({})
        return dict(state["position"])

    def carry(self, folder: str | Path, wanted: Callable[[Mapping[str, Any]], bool]) -> bool:
        """Take masters and moments from the newest checkpoint of another stage, where there is one, its position is
        wanted and its optimiser is of this kind; says whether. Updates are counted anew. Raises CorruptFileError where
        all its checkpoints are damaged."""
        found = self._store(folder, 3).load(None)
        if found is None or not wanted(found[1]["position"]):
            return False
        tensors, state = found
        try:
            self.optimizer.load_state({n: t for n, t in tensors.items() if not n.startswith(_RANDOM)}, state["steps"])
        except ValueError:
            return False
        return True

    def finish(self) -> None:
        """Wait until all checkpoints are on the disk. Raises what their writing raised."""
        for store in self._checkpoints.values():
            store.finish()
        if processes() > 1:
            dist.barrier()

    def config(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be resumed."""
        own = {"model": self.model.config.to_dict(), "optim": asdict(self.optim), "balance": self.balance}
        return own | ({"fp8": self.fp8} if self.fp8 else {})

    def _store(self, folder: str | Path, keep: int) -> Checkpoints:
        path = Path(folder)
        store = self._checkpoints.setdefault(path, Checkpoints(path))
        store.keep = keep
        return store


def _routing(sums: RouterSums, tokens: float) -> dict[str, Tensor]:
    balance = balance_loss(sums.probabilities, sums.counts, tokens) / len(sums.counts)
    return {"balance": balance, "router_entropy": sums.entropy.mean() / tokens} | load_statistics(sums.counts)


def flops(config: ModelConfig, batch: PackedBatch) -> float:
    """Of a forward and backward pass, recomputation not counted: 6 for each active weight of a product and token, and
    6 · layers · heads · head_dim · length² for the causal attention of each document."""
    weights = config.num_parameters(active=True)
    if not config.tie_word_embeddings:
        weights -= config.vocab_size * config.hidden_size  # looking an embedding up is no product
    lengths = np.diff(batch.bounds()).astype(np.float64)
    pairs = config.num_hidden_layers * config.num_attention_heads * config.head_dim * float((lengths**2).sum())
    return 6.0 * (weights * batch.ids.size + pairs)
