"""Checkpoints with FP8 weights, and models that keep their weights so.

Format (Qwen's FP8 repositories): a projection's `X.weight` is float8_e4m3fn, beside it `X.weight_scale_inv` of shape
[⌈N/128⌉, ⌈K/128⌉] in bfloat16 or float32; the weight is value times scale of its block. Embedding, head, norms and
router stay as they were. Block scales survive the fused layout where the parts' rows are whole blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, nn

from qwen3.checkpoint.folder import Fp8Format
from qwen3.checkpoint.names import fused_name, fused_shapes, official_shapes
from qwen3.config import ModelConfig
from qwen3.errors import ConfigError
from qwen3.kernels.fp8 import Fp8Weight, quantize_fp8

SCALE = "_scale_inv"  # of `X.weight`


class HasModules(Protocol):
    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...


def fp8_names(config: ModelConfig, stored: Fp8Format) -> set[str]:
    """Official names of the weights that such a checkpoint stores in FP8.

    Raises ConfigError when `modules_to_not_convert` names a module that the network does not have.
    """
    shapes = official_shapes(config)
    found = {name for name in shapes if name.endswith("_proj.weight")}
    for module in stored.skip:
        inside = {name for name in shapes if name.startswith(module + ".")}
        if not inside and not (module == "lm_head" and config.tie_word_embeddings):
            raise ConfigError(f"quantization_config.modules_to_not_convert names {module!r}, which is no module here")
        found -= inside
    return found


def scale_shape(shape: tuple[int, ...], stored: Fp8Format) -> tuple[int, int]:
    """Of the scales beside an FP8 weight of `shape`."""
    return -(-shape[0] // stored.block), -(-shape[1] // stored.block)


def parameters_to_hold(config: ModelConfig, stored: Fp8Format | None) -> tuple[set[str], set[str]]:
    """(our parameters that can be kept in FP8, those that cannot because their parts do not line up with the blocks).

    stored None: the checkpoint is not quantized, and every projection can be (with a scale per row).
    """
    shapes = official_shapes(config)
    projections = {name for name in fused_shapes(config) if name.removesuffix(".weight").endswith("_proj")}
    if stored is None:
        return projections, set()
    kept = fp8_names(config, stored)
    some = {fused_name(name) for name in kept}
    uneven = set()
    for name, shape in shapes.items():
        ours = fused_name(name)
        whole = ours.endswith(("o_proj.weight", "down_proj.weight", "down_proj"))
        if ours in some and (name not in kept or (shape[0] % stored.block and not whole)):
            uneven.add(ours)
    return some - uneven, uneven


def hold_fp8(model: nn.Module, names: set[str], block: int) -> None:
    """Puts an Fp8Weight where each of these parameters was, one after the other; what is not on "meta" is quantized."""
    for name in sorted(names):
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        old: Tensor = getattr(module, leaf).detach()
        new = Fp8Weight.empty(tuple(old.shape), block, old.device)
        if not old.is_meta:
            new.assign(old)
        delattr(module, leaf)
        setattr(module, leaf, new)


def fp8_weights(model: HasModules) -> dict[str, Fp8Weight]:
    """What a model keeps in FP8, by our parameter names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Fp8Weight)}


def scales_of(weight: Fp8Weight, part: Tensor) -> Tensor:
    """The scales of `part`, rows of `weight.data`, as a view."""
    rows, width = weight.shape[-2:]
    expert, first = divmod(part.storage_offset() // width, rows)
    step = weight.block or 1
    scale = weight.scale.view(-1, *weight.scale.shape[-2:])[expert]
    return scale[first // step : -(-(first + part.shape[0]) // step)]


def convert(chunks: Iterator[Tensor], scale: Tensor | None, place: Tensor, weight: Fp8Weight | None) -> None:
    """One official matrix on its way: FP8 or not in the file, FP8 or not in memory.

    chunks: its elements in order, each a multiple of 128 rows (but the last). scale: the file's, None if it is not FP8.
    place: where it goes, part of `weight.data` if `weight` is given.
    """
    scales = None if weight is None else scales_of(weight, place)
    first, width = 0, place.shape[1]
    for chunk in chunks:
        rows = chunk.view(-1, width).to(place.device)
        last = first + len(rows)
        if scale is not None:
            own = scale[first // 128 : -(-last // 128)].to(place.device)
            rows = Fp8Weight(rows, own, 128).dequantize(place.dtype if weight is None else own.dtype)
        if weight is None or scales is None:
            place[first:last].copy_(rows)
        else:
            found, step = quantize_fp8(rows, weight.block), weight.block or 1
            place[first:last].copy_(found.data)
            scales[first // step : -(-last // step)].copy_(found.scale)
        first = last
