"""Low-rank adapters (LoRA, arXiv 2106.09685) and their files: `adapter_config.json` and `adapter_model.safetensors`.

A matrix W [out, in] with an adapter is W + scale · B @ A; scale is alpha / r, with rank stabilisation (arXiv
2312.03732) alpha / √r. The files are those of Hugging Face's PEFT: tensors are called
`base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight` [r, in] and `…lora_B.weight` [out, r]. Of experts,
either each has its own (`…mlp.experts.3.gate_proj.lora_A.weight`), or all of a layer are one tensor, gate and up
together (`…mlp.experts.base_layer.lora_A.weight` [E · r, in], `…lora_B.weight` [out, r · E], experts innermost).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qwen3.checkpoint.folder import ADAPTER_CONFIG, adapter_folder, is_adapter
from qwen3.checkpoint.header import Header, TensorEntry, read_header, read_json, stamp
from qwen3.checkpoint.journal import commit, finish_interrupted_save, staging
from qwen3.checkpoint.safetensors_io import read_chunks
from qwen3.checkpoint.save import write_shard
from qwen3.config import ModelConfig
from qwen3.errors import ConfigError, CorruptFileError, ModelNotFoundError, UnsafeFileError

CONFIG, WEIGHTS = ADAPTER_CONFIG, "adapter_model.safetensors"
_PREFIX = "base_model.model."
_TENSOR = re.compile(r"base_model\.model\.(model\.layers\.\d+\.[\w.]+)\.lora_([AB])\.weight")
_EXPERTS = re.compile(r"(.+\.mlp\.experts)(\.base_layer)?")  # all of a layer in one tensor
_PATTERN = re.compile(r"\^?[\w.\\()|\[\]-]+\$?")  # a regular expression that cannot take long
# Keys that say how it was made and not what it is; of other keys only the value that changes nothing is taken.
_HISTORY = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout", "megatron_core", "peft_type",
    "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
}  # fmt: skip
_READ = {
    "alpha_pattern", "bias", "exclude_modules", "init_lora_weights", "layers_pattern", "layers_to_transform",
    "lora_alpha", "r", "rank_pattern", "target_modules", "target_parameters", "use_rslora",
}  # fmt: skip
_OWN_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # initialisations that change the weights below


class LowRank(NamedTuple):
    """What is added to one matrix: scale · b @ a. a [r, in], b [out, r]; of experts [E, r, in] and [E, out, r]."""

    a: Tensor
    b: Tensor
    scale: float


@dataclass(frozen=True)
class Adapter:
    """parts: by official module name, experts of a layer under one (`model.layers.0.mlp.experts.gate_proj`). base: the
    model it was made for, as far as is known. source, stamp: the folder it came from, and which version of it."""

    parts: Mapping[str, LowRank]
    base: str = ""
    source: str = ""
    stamp: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        """The largest of its ranks."""
        return max(part.a.shape[-2] for part in self.parts.values())


class Site(NamedTuple):
    """One weight of the fused layout: `layers.0.self_attn.qkv_proj`, say. modules: official names of the matrices that
    it holds, one above the other, `rows` of each. experts: how many it holds of these, 0: it is no experts' weight."""

    name: str
    modules: tuple[str, ...]
    rows: tuple[int, ...]
    inputs: int
    experts: int


def sites(config: ModelConfig) -> list[Site]:
    """The weights that can be adapted: all projections, in the order of the forward pass."""
    h, d, found = config.hidden_size, config.head_dim, []
    q, k = config.num_attention_heads * d, config.num_key_value_heads * d
    for i in range(config.num_hidden_layers):
        sparse = config.is_sparse_layer(i)
        mlp, width = ("mlp.experts", config.moe_intermediate_size) if sparse else ("mlp", config.intermediate_size)
        count = config.num_experts if sparse else 0
        for home, leaf, parts, rows, inputs, experts in (
            ("self_attn", "qkv_proj", ("q_proj", "k_proj", "v_proj"), (q, k, k), h, 0),
            ("self_attn", "o_proj", ("o_proj",), (h,), q, 0),
            (mlp, "gate_up_proj", ("gate_proj", "up_proj"), (width, width), h, count),
            (mlp, "down_proj", ("down_proj",), (h,), width, count),
        ):
            path = f"layers.{i}.{home}."
            found.append(Site(path + leaf, tuple(f"model.{path}{part}" for part in parts), rows, inputs, experts))
    return found


def module_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Official name of every matrix that can be adapted → its shape [out, in], experts' [E, out, in]."""
    return {
        module: (site.experts, rows, site.inputs) if site.experts else (rows, site.inputs)
        for site in sites(config)
        for module, rows in zip(site.modules, site.rows, strict=True)
    }


# Reading


def adapter_stamp(folder: str | Path) -> tuple[int, ...]:
    """Changes when an adapter is written again; () where there is none."""
    file = adapter_folder(folder) / WEIGHTS
    return stamp(file.stat()) if file.exists() else ()


def read_adapter(folder: str | os.PathLike[str], config: ModelConfig) -> Adapter:
    """An adapter's tensors in float32 on the CPU, checked against the model it is for. folder: the adapter's, or what a
    trainer left, with an `adapter` in it.

    Raises ModelNotFoundError without an adapter in the folder, UnsafeFileError where it is a pickle, ConfigError for a
    kind of adapter that is not supported, naming the key, CorruptFileError listing every tensor that is missing, extra,
    misshapen or not finite.
    """
    given = Path(folder).expanduser()
    for place in (given, given / "adapter"):
        finish_interrupted_save(place)
    folder = adapter_folder(given)
    if not is_adapter(folder):
        what = "is a model, not an adapter" if (folder / "config.json").exists() else "holds no adapter"
        what = f"{what} (there is no {CONFIG})" if folder.is_dir() else "no such folder"
        raise ModelNotFoundError(f"{folder}: {what}")
    if not (folder / WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
        raise UnsafeFileError(
            f"{folder} holds only adapter_model.bin, a pickle that can run code and is never opened; save the adapter "
            "with safe_serialization=True"
        )
    told = _read_config(folder / CONFIG)
    header = read_header(folder / WEIGHTS)
    shapes = module_shapes(config)
    found, problems = _sorted_out(header, shapes, config)
    missing = sorted(_wanted(told, shapes) - {_plain(module) for module in found})
    problems += [f"missing {module} (lora_A and lora_B)" for module in missing]
    parts = {}
    for module, shape in shapes.items():
        names = [module] if len(shape) == 2 else [_expert(module, e) for e in range(shape[0])]
        own = [found.pop(name, {}) for name in names]
        if not any(own):
            continue
        lacking = [f"{n}.lora_{x}" for n, pair in zip(names, own, strict=True) for x in "AB" if x not in pair]
        problems += [f"missing {name}" for name in lacking]
        if lacking:
            continue
        rank, scale = _strength(told, names[0], folder)
        for pair, name in zip(own, names, strict=True):
            problems += _misshapen(pair, name, rank, *shape[-2:])
        if not problems:
            a, b = (torch.stack([_read(pair[x]) for pair in own]) for x in "AB")
            parts[module] = LowRank(a, b, scale) if len(shape) == 3 else LowRank(a[0], b[0], scale)
    for name, pair in found.items():  # all experts of a layer in one
        problems += _stacked(name, pair, told, config, shapes, folder, parts)
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise CorruptFileError(f"{folder}: this is no adapter for this model: {'; '.join(problems[:8])}{more}")
    if not parts:
        raise CorruptFileError(f"{folder / WEIGHTS}: holds no tensors")
    for module, part in parts.items():
        if not (bool(part.a.isfinite().all()) and bool(part.b.isfinite().all())):
            raise CorruptFileError(f"{folder / WEIGHTS}: {module} has NaN or infinite values")
    base = str(told.get("base_model_name_or_path") or "")
    return Adapter(parts, base, str(given.resolve()), header.stamp)


def _read_config(path: Path) -> dict[str, Any]:
    told = read_json(path, limit=1 << 20)
    if not isinstance(told, dict):
        raise ConfigError(f"{path}: not a JSON object")
    if told.get("peft_type") != "LORA":
        raise ConfigError(f"{path}: peft_type is {str(told.get('peft_type'))[:60]!r}; only 'LORA' is supported")
    for key, value in told.items():
        if key in _HISTORY or key in _READ or value in (None, False, "", [], {}):
            continue
        raise ConfigError(f"{path}: {key[:60]} is {str(value)[:60]!r}, which is not supported; train without it")
    if told.get("bias", "none") != "none":
        raise ConfigError(f"{path}: bias is {str(told['bias'])[:60]!r}, but this network has none; train with 'none'")
    start = told.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_OWN_BASE):
        raise ConfigError(
            f"{path}: init_lora_weights {start[:60]!r} changed the base weights; convert it to plain LoRA"
        )
    rank, alpha = told.get("r"), told.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise ConfigError(f"{path}: r is {str(rank)[:60]!r}; it must be a whole number from 1")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise ConfigError(f"{path}: lora_alpha is {str(alpha)[:60]!r}; it must be a number")
    for key in ("rank_pattern", "alpha_pattern"):
        table = told.get(key) or {}
        if not isinstance(table, dict) or not all(_PATTERN.fullmatch(name) for name in table):
            raise ConfigError(f"{path}: {key} must map names of modules to numbers")
    return told


def _sorted_out(
    header: Header, shapes: Mapping[str, tuple[int, ...]], config: ModelConfig
) -> tuple[dict[str, dict[str, TensorEntry]], list[str]]:
    """(module as the file has it → "A", "B" → tensor, what does not belong here)."""
    known = {_plain(module) for module in shapes}
    found: dict[str, dict[str, TensorEntry]] = {}
    problems = []
    for name, entry in header.tensors.items():
        match = _TENSOR.fullmatch(name)
        one = match and re.fullmatch(r"(.*\.experts)\.(\d+)\.(\w+)", match[1])
        plain = f"{one[1]}.{one[3]}" if one and int(one[2]) < config.num_experts else match and match[1]
        stacked = match and _EXPERTS.fullmatch(match[1])
        if not match or not (plain in known or (stacked and f"{stacked[1]}.down_proj" in known)):
            problems.append(f"unexpected {name} {list(entry.shape)}")
        elif entry.dtype not in ("F32", "BF16", "F16"):
            problems.append(f"{name} is stored as {entry.dtype}, but it must be F32, BF16 or F16")
        else:
            found.setdefault(match[1], {})[match[2]] = entry
    return found, problems


def _plain(module: str) -> str:
    """Without an expert's number."""
    return re.sub(r"\.experts\.\d+\.", ".experts.", module)


def _expert(module: str, number: int) -> str:
    return module.replace(".experts.", f".experts.{number}.")


def _wanted(told: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Modules that the configuration says are adapted, as far as it is a list of names."""
    targets, skipped = told.get("target_modules"), told.get("exclude_modules") or ()
    if not isinstance(targets, list) or isinstance(skipped, str) or told.get("target_parameters"):
        return set()
    layers = told.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers

    def named(module: str, names: Any) -> bool:
        return any(f".{module}".endswith(f".{name}") for name in names)

    return {
        module
        for module in shapes
        if named(module, targets)
        and not named(module, skipped)
        and (layers is None or int(module.split(".")[2]) in layers)
    }


def _strength(told: Mapping[str, Any], module: str, folder: Path) -> tuple[int, float]:
    """(rank, scale) of a module; patterns match whole names from a dot on, the first one counts."""

    def of(key: str, usual: Any) -> Any:
        table = told.get(key) or {}
        return next((v for k, v in table.items() if re.match(rf"(.*\.)?({k})$", module)), usual)

    try:
        rank, alpha = int(of("rank_pattern", told["r"])), float(of("alpha_pattern", told["lora_alpha"]))
        return rank, alpha / (math.sqrt(rank) if told.get("use_rslora") else rank)
    except (TypeError, ValueError, ZeroDivisionError, re.error):
        raise ConfigError(f"{folder / CONFIG}: rank_pattern or alpha_pattern is wrong for {module}") from None


def _misshapen(pair: Mapping[str, TensorEntry], name: str, rank: int, rows: int, inputs: int) -> list[str]:
    wanted = {"A": (rank, inputs), "B": (rows, rank)}
    return [
        f"{name}.lora_{x} has shape {list(pair[x].shape)} instead of {list(wanted[x])}"
        for x in "AB"
        if pair[x].shape != wanted[x]
    ]


def _stacked(
    name: str, pair: Mapping[str, TensorEntry], told: Mapping[str, Any], config: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]], folder: Path, parts: dict[str, LowRank],
) -> list[str]:  # fmt: skip
    """Tensors of all experts of a layer into `parts`: gate and up with one A, or down. What they are for, their shapes
    say. Returns what is wrong."""
    if lacking := [f"missing {name}.lora_{x}" for x in "AB" if x not in pair]:
        return lacking
    home = name.removesuffix(".base_layer")
    count, width, h = shapes[f"{home}.gate_proj"]
    gate_up = pair["A"].shape[1:] == (h,) and pair["B"].shape[:1] == (2 * width,)
    leaf, inputs, rows = ("gate_up_proj", h, 2 * width) if gate_up else ("down_proj", width, h)
    rank, scale = _strength(told, f"{home}.{leaf}", folder)
    if problems := _misshapen(pair, name, rank * count, rows, inputs):
        return problems
    a = _read(pair["A"]).view(count, rank, inputs)
    b = _read(pair["B"]).view(rows, rank, count).permute(2, 0, 1).contiguous()
    if gate_up:
        parts[f"{home}.gate_proj"] = LowRank(a, b[:, :width].contiguous(), scale)
        parts[f"{home}.up_proj"] = LowRank(a, b[:, width:].contiguous(), scale)
    else:
        parts[f"{home}.down_proj"] = LowRank(a, b, scale)
    return []


def _read(entry: TensorEntry) -> Tensor:
    found, done = torch.empty(entry.shape, dtype=torch.float32, device="cpu"), 0
    with entry.file.open("rb") as file:
        for chunk in read_chunks(file.fileno(), entry):
            found.view(-1)[done : done + len(chunk)].copy_(chunk)
            done += len(chunk)
    return found


# Writing


def write_adapter(folder: str | Path, adapter: Adapter, config: ModelConfig) -> None:
    """Writes an adapter in PEFT's format, float32, all of it or nothing; experts each under their own names.

    Raises CorruptFileError for values that are not finite (nothing is written then), Qwen3Error for a folder that
    cannot be written.
    """
    shapes, folder = module_shapes(config), Path(folder)
    tensors: dict[str, Tensor] = {}
    modules: dict[str, list[str]] = {}  # of each part, as the file has them
    for module, part in adapter.parts.items():
        names = [module] if part.a.dim() == 2 else [_expert(module, e) for e in range(len(part.a))]
        modules[module] = names
        a, b = (t.float().cpu().reshape(len(names), *t.shape[-2:]) for t in (part.a, part.b))
        for i, name in enumerate(names):
            tensors[f"{_PREFIX}{name}.lora_A.weight"] = a[i].contiguous()
            tensors[f"{_PREFIX}{name}.lora_B.weight"] = b[i].contiguous()
    strengths = {module: (part.a.shape[-2], part.scale * part.a.shape[-2]) for module, part in adapter.parts.items()}
    (rank, alpha), _ = Counter(strengths.values()).most_common(1)[0]
    leaves = {module.rpartition(".")[2] for module in shapes}
    targets = []
    for leaf in sorted(leaves):
        there = [module for module in adapter.parts if module.endswith(f".{leaf}")]
        whole = len(there) == sum(module.endswith(f".{leaf}") for module in shapes)
        targets += [leaf] if whole else [name for module in there for name in modules[module]]

    def unusual(which: int, usual: float) -> dict[str, float]:
        return {n: s[which] for module, s in strengths.items() if s[which] != usual for n in modules[module]}

    told = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base or None,
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": targets,
        "rank_pattern": unusual(0, rank),
        "alpha_pattern": unusual(1, alpha),
        "use_rslora": False,  # the scale is in lora_alpha
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "layers_to_transform": None,
    }
    with staging(folder) as stage:
        write_shard(stage / WEIGHTS, tensors)
        (stage / CONFIG).write_text(json.dumps(told, indent=2) + "\n")
        commit(folder, stage, order=[WEIGHTS, CONFIG], remove=[])
