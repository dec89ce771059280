"""A checkpoint, walked layer by layer: weights of one layer in float32 and the activations before it are all there is.

A layer is run by the network's own modules (`model/network.py`), stage by stage: matrices that see the same inputs are
one stage. What changes in a layer's weights between two stages is seen by the later one, so that each matrix is
rounded for the inputs that its rounded predecessors give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3 import kernels
from qwen3.checkpoint import read_config
from qwen3.checkpoint.names import EMBED, HEAD, layer_views
from qwen3.checkpoint.source import open_source
from qwen3.errors import CorruptFileError
from qwen3.model.network import Layer, Qwen3
from qwen3.quantize.calibration import Calibration

BATCH = 4096  # tokens that run together


@dataclass(frozen=True)
class Stage:
    """Matrices that see the same inputs, by official names without ".weight". inputs: makes those anew, in batches
    float32 [n, K], from the layer as it is then; None where there is no calibration data. expert: its number."""

    modules: tuple[str, ...]
    inputs: Callable[[], Iterator[Tensor]] | None
    expert: int | None = None


class OpenLayer:
    """One layer's weights, float32, by official names; writing one changes what `stages` runs."""

    def __init__(self, layer: Layer, views: Mapping[str, Tensor]) -> None:
        self.layer, self.index, self.views = layer, layer.index, views
        self.prefix = f"model.layers.{layer.index}."
        self.shares: dict[str, float] = {}
        """‖out‖² / ‖state‖² of a block ("self_attn", "mlp") and the state that it has added to, the mean over tokens;
        there once it has run in `Walk.stages(advance=True)`."""

    def weight(self, module: str) -> Tensor:
        return self.views[module + ".weight"]

    def close(self) -> None:
        """Lets go of the weights."""
        del self.layer, self.views


class Walk:
    """Raises as `open_source`; CorruptFileError naming a tensor that is not finite."""

    def __init__(self, path: str | Path, calibration: Calibration | None, device: torch.device | str = "cpu") -> None:
        self.config = read_config(Path(path))
        self.source = open_source(path, self.config)
        self.device = torch.device(device)
        self.dtype: torch.dtype = getattr(torch, self.config.dtype)
        self._network = Qwen3(self.config, "meta", torch.float32)  # for its masks and positions
        self._data = calibration
        self._x: Tensor | None = None

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with closing(self.source):
            if kind is None:
                self.source.check_unchanged()

    def ends(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors before and behind the layers, those before first; from the embedding, activations begin."""
        table = self._read(EMBED)
        if self._data is not None:
            self._x = table[self._data.ids].to(self.device, torch.float32)
        yield EMBED, table
        del table
        for name in ("model.norm.weight", HEAD):
            if name in self.source.stored:
                yield name, self._read(name)

    def _read(self, name: str) -> Tensor:
        return self._finite(name, self.source.stored[name].read(slice(None), self.dtype))

    def _finite(self, name: str, tensor: Tensor) -> Tensor:
        if not torch.isfinite(tensor).all():
            raise CorruptFileError(f"{self.source.path}: tensor {name} has a value that is NaN or infinite")
        return tensor

    def layers(self) -> Iterator[OpenLayer]:
        """Each layer, once; to be run to its end (`stages`) before the next is asked for."""
        for i in range(self.config.num_hidden_layers):
            layer = Layer(self.config, i, "meta", torch.float32).to_empty(device=self.device).requires_grad_(False)
            params = {f"layers.{i}.{name}": parameter for name, parameter in layer.named_parameters()}
            views = layer_views(self.config, i, params)
            for name, view in views.items():
                self.source.stored[name].fill(view)
                self._finite(name, view)
            opened = OpenLayer(layer, views)
            del layer, params, views, view
            yield opened
            opened.close()  # before the next one takes as much memory

    def stages(self, opened: OpenLayer, *, advance: bool) -> Iterator[Stage]:
        """A layer's stages in the order in which they run. advance: afterwards, its outputs are the next's inputs."""
        p, layer, x = opened.prefix, opened.layer, self._x
        attention = f"{p}self_attn."
        if x is None:
            yield Stage(tuple(f"{attention}{n}_proj" for n in "qkv"), None)
            yield Stage((f"{attention}o_proj",), None)
            for expert in range(self.config.num_experts) if layer.sparse else [None]:
                yield from self._mlp_stages(opened, expert, None)
            return
        cuts = self._cuts(x)
        yield Stage(
            tuple(f"{attention}{n}_proj" for n in "qkv"),
            lambda: (layer.input_layernorm(x[cut]).flatten(0, 1) for cut in cuts),
        )
        yield Stage((f"{attention}o_proj",), lambda: (self._attention(layer, x, cut)[0] for cut in cuts))
        y = x if advance else torch.empty_like(x)
        normed = torch.empty_like(x)
        shares = []
        for cut in cuts:
            out = self._attention(layer, x, cut)[1]
            y[cut] = x[cut] + out
            shares.append(_share(out, y[cut]))
            normed[cut] = layer.post_attention_layernorm(y[cut])
        opened.shares["self_attn"] = float(torch.cat(shares).mean())
        if layer.sparse:
            flat, mlp = normed.flatten(0, 1), layer.mlp
            chosen = torch.cat([self._route(mlp, part) for part in flat.split(BATCH)])
            for expert in range(self.config.num_experts):
                reached = (chosen == expert).any(1).nonzero().flatten()
                yield from self._mlp_stages(opened, expert, _lazily(flat, reached))
        else:
            yield from self._mlp_stages(opened, None, lambda: (normed[cut].flatten(0, 1) for cut in cuts))
        if advance:
            shares = []
            for cut in cuts:
                made: Any = layer.mlp(normed[cut])
                y[cut] += (out := made[0] if layer.sparse else made)
                shares.append(_share(out, y[cut]))
            opened.shares["mlp"] = float(torch.cat(shares).mean())

    def _mlp_stages(
        self, opened: OpenLayer, expert: int | None, inputs: Callable[[], Iterator[Tensor]] | None
    ) -> Iterator[Stage]:
        base = opened.prefix + ("mlp." if expert is None else f"mlp.experts.{expert}.")
        gate, up, down = (f"{base}{name}_proj" for name in ("gate", "up", "down"))

        def inner() -> Iterator[Tensor]:
            assert inputs is not None
            return (F.silu(F.linear(x, opened.weight(gate))) * F.linear(x, opened.weight(up)) for x in inputs())

        yield Stage((gate, up), inputs, expert)
        yield Stage((down,), None if inputs is None else inner, expert)

    def _route(self, mlp: Any, flat: Tensor) -> Tensor:
        return kernels.route(mlp.gate(flat), mlp.top_k, mlp.normalise)[1]

    def _cuts(self, x: Tensor) -> list[slice]:
        step = max(1, BATCH // x.shape[1])
        return [slice(first, first + step) for first in range(0, len(x), step)]

    def _attention(self, layer: Layer, x: Tensor, cut: slice) -> tuple[Tensor, Tensor]:
        """(inputs of o_proj [n, H·D], the block's output [b, T, h])."""
        assert self._data is not None
        ids, positions, documents = (
            t[cut].to(self.device) for t in (self._data.ids, self._data.positions, self._data.documents)
        )
        seen: list[Tensor] = []
        hook = layer.self_attn.o_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            cos, sin = self._network.rotary(positions, torch.float32)
            attend = self._network._attend_uncached(ids, positions, documents, None)
            out = layer.self_attn(layer.input_layernorm(x[cut]), cos, sin, attend)
        finally:
            hook.remove()
        return seen[0].flatten(0, 1), out


def _share(out: Tensor, state: Tensor) -> Tensor:
    """[..., h] both -> of each token, flat."""
    return (out.square().sum(-1) / state.square().sum(-1).clamp_min(1e-30)).flatten()


def _lazily(flat: Tensor, rows: Tensor) -> Callable[[], Iterator[Tensor]]:
    """Some rows, gathered batch by batch whenever they are asked for: of 128 experts' inputs, no two are kept."""
    return lambda: (flat[part] for part in rows.split(BATCH))
