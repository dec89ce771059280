"""`qwen3 show --plan`: which model fits where, in which format, with how much context."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Any

from qwen3 import family
from qwen3.checkpoint import read_config
from qwen3.checkpoint.sizes import FORMATS, Format, formats, stored_sizes
from qwen3.cli.console import out, out_json, table
from qwen3.cli.models import on_disk
from qwen3.config import ModelConfig
from qwen3.errors import ModelNotFoundError, UsageError
from qwen3.plan import GIB, KV_BYTES, MACHINES, Machine, Plan

_MEMORY = re.compile(r"(?:(\d{1,3})\s*[x×*]\s*)?(\d{1,6}(?:\.\d+)?)\s*([MGT])?(?:i?B)?", re.IGNORECASE)
_GRID = ("bf16", "fp8", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "mlx-4bit", "gptq-int4", "Q3_K_M", "Q2_K")  # columns
_OF_VARIANT = {"fp8": ("fp8",), "awq": ("awq",), "gptq-int4": ("gptq-int4",), "gptq-int8": ("gptq-int8",),
               "gguf": ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M")}  # fmt: skip
AS_STORED = "as stored"
WIDTH = 98
USUAL = 32768  # tokens, unless asked


def plan(
    name: str | None, as_json: bool, *, memory: str | None, device: str | None, context: int | None, batch: int | None,
    kv_dtype: str | None, format: str | None,
) -> int:  # fmt: skip
    """Prints, for one model, each format on this machine and then each machine; for none, all members."""
    everywhere = name is None and memory == "all"
    machine = MACHINES[0] if everywhere else _machine(memory, device)
    asked: dict[str, Any] = {"context": context, "batch": 1 if batch is None else batch, "kv": _kv(kv_dtype)}
    only = None if format is None else _format(format)
    if everywhere:
        return _everywhere(as_json, only, asked)
    if name is None:
        plans = {m.tag: _plans(m.config, machine, _limit(m), only, asked) for m in family.MODELS.values()}
        if as_json:
            out_json({**_about(machine, asked), "models": {tag: [*map(_facts, found)] for tag, found in plans.items()}})
        else:
            _print_all(machine, plans, asked)
        return 0
    title, config, limit, chosen, path = _named(name)
    found = _plans(config, machine, limit, only, asked)
    if chosen and only is None:
        found = [plan for plan in found if plan.format.name in chosen]
    if path is not None:
        known = stored_sizes(path, config, machine.device)
        stored = Format(AS_STORED, 8 * known.file / config.num_parameters(), FORMATS["bf16"].kind, "the file")
        own = Plan(config, stored, machine, limit=limit, known=known, **_clipped(asked, limit))
        found = [own, *(() if only is None and chosen else found)]
    if as_json:
        grid = {m.name: [*map(_facts, _plans(config, m, limit, only, asked))] for m in MACHINES}
        out_json({**_about(machine, asked), "name": title, "formats": [*map(_facts, found)], "machines": grid})
    else:
        _print_one(title, config, limit, machine, found, asked)
    return 0


def _kv(name: str | None) -> str | None:
    if name is not None and name not in KV_BYTES:
        raise UsageError(f"--kv-dtype {name} is not supported; use {', '.join(KV_BYTES)}")
    return name


def _format(name: str) -> Format:
    found = {key.lower(): value for key, value in FORMATS.items()}.get(name.lower())
    if found is None:
        raise UsageError(f"--format {name} is not planned; use one of {', '.join(FORMATS)}")
    return found


def _machine(memory: str | None, device: str | None) -> Machine:
    kind = (device or "").partition(":")[0]
    if kind not in ("", "cpu", "cuda"):
        raise UsageError(f"--device {device} is not supported; use cpu or cuda")
    if memory is None:
        return _this(kind)
    match = _MEMORY.fullmatch(memory.strip())
    if match is None or float(match[2]) == 0:
        raise UsageError(
            f"--memory {memory} is no amount of memory; give 24GB, 4x96GB for several GPUs, or without a MODEL all"
        )
    gib = float(match[2]) * {"M": 1 / 1024, "G": 1.0, "T": 1024.0}[(match[3] or "G").upper()]
    count = int(match[1] or 1)
    if not count or (kind == "cpu" and count > 1):
        raise UsageError(f"--memory {memory}: several of them are GPUs; leave --device cpu out")
    return Machine.cpu(gib) if kind == "cpu" else Machine.gpu(gib, count=count)


def _this(kind: str) -> Machine:
    """What is free here now: of the first GPU, if there is one, else of the machine."""
    import torch

    from qwen3.checkpoint import available_bytes

    if kind != "cpu" and torch.cuda.is_available():
        free, memory = torch.cuda.mem_get_info(0)
        return Machine(f"this machine's {torch.cuda.get_device_name(0)}", "cuda", memory, free)
    if kind == "cuda":
        raise UsageError("--device cuda: there is none here; say how much memory it has, --memory 24GB")
    known = available_bytes()
    if known is None:
        raise UsageError("this system does not say how much memory is free; give --memory 16GB --device cpu")
    return Machine("this machine's CPU", "cpu", known, known)


def _limit(member: family.FamilyMember) -> int:
    return max(member.context, member.yarn_context)


def _named(name: str) -> tuple[str, ModelConfig, int, tuple[str, ...], Any]:
    """(title, config, longest context, formats that it is published in, path if it is here)."""
    try:
        resolved = on_disk(name)
    except ModelNotFoundError:
        member, form = family.look_up(name)
        if member is None:
            raise
        chosen = _OF_VARIANT.get(form or "", ())
        return f"{member.name}{f', {form}' if form else ''}", member.config, _limit(member), chosen, None
    config = read_config(resolved.path)
    found = family.resolve_repo(resolved.repo) if resolved.repo else None
    limit = max(config.context_length, found[0].yarn_context if found else 0)
    quantized = resolved.kind == "gguf" or config.quantization_config is not None
    return resolved.name, config, limit, (AS_STORED,) if quantized else (), resolved.path


def _plans(config: ModelConfig, machine: Machine, limit: int, only: Format | None, asked: dict[str, Any]) -> list[Plan]:
    known = formats(config, machine.device)
    if only is not None and only not in known:
        if only.only not in (None, machine.device):
            raise UsageError(f"--format {only.name} is for {only.only} alone, not for {machine.name}")
        return []
    told = _clipped(asked, limit)
    return [Plan(config, f, machine, limit=limit, **told) for f in known if only in (None, f)]


def _clipped(asked: dict[str, Any], limit: int) -> dict[str, Any]:
    """Without a context that was asked for, at most as much as the model was made for."""
    return asked if asked["context"] is not None else {**asked, "context": min(USUAL, limit)}


def _about(machine: Machine, asked: dict[str, Any]) -> dict[str, Any]:
    told = {"name": machine.name, "device": machine.device, "count": machine.count}
    told |= {"memory_bytes": machine.memory, "free_bytes": machine.free}
    return {"machine": told, "context": asked["context"] or USUAL, "batch": asked["batch"], "kv_dtype": asked["kv"]}


def _facts(plan: Plan) -> dict[str, Any]:
    """Of one format on one machine; bytes are those of each of its devices, but for the file's."""
    return {
        "format": plan.format.name,
        "file_bytes": plan.sizes.file,
        "weight_bytes": plan.weights,
        "copies_bytes": plan.copies,
        "kv_bytes_per_token": plan.kv_bytes_per_token,
        "cache_bytes": plan.cache(plan.context, plan.batch),
        "working_bytes": plan.beside(plan.batch),
        "needed_bytes": plan.needed,
        "fits": plan.fits,
        "longest_context": plan.longest,
        "largest_batch": plan.largest_batch(plan.context),
        "advice": plan.advice(formats(plan.config, plan.machine.device)),
    }


def gib(count: int) -> str:
    """Three figures."""
    value = count / GIB
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def tokens(count: int) -> str:
    """32k; - for none."""
    return f"{count // 1024}k" if count >= 1024 else str(count or "-")


def grid(configs: Sequence[tuple[str, Sequence[Plan]]], columns: Sequence[str], corner: str) -> str:
    """The longest context of one sequence: a row each, a column for each format."""
    rows = []
    for title, plans in configs:
        cells = {plan.format.name: tokens(plan.longest) for plan in plans}
        rows.append((title, *(cells.get(name, "") for name in columns)))
    return table(rows, (corner, *columns))


def _told(asked: dict[str, Any]) -> str:
    many = f"{asked['batch']} sequences of " if asked["batch"] > 1 else ""
    return f"{many}{asked['context'] or USUAL:,} tokens"


def _columns(device: str, plans: Sequence[Plan]) -> list[str]:
    """What is worth a column of its own: bf16, and what takes less there."""
    return [
        plan.format.name for plan in plans if plan.format.name == "bf16" or (plan.held and plan.format.name in _GRID)
    ]


def _best(plans: Sequence[Plan]) -> Plan:
    """The format that keeps most of those that fit; of none, the one that needs least."""
    return next((plan for plan in plans if plan.fits), None) or min(plans, key=lambda plan: plan.needed)


_HEADER = ("FORMAT", "FILE", "WEIGHTS", "CACHE", "NEEDED", "", "LONGEST", "AT ONCE")


def _cells(plan: Plan) -> tuple[str, ...]:
    cache, at_once = plan.cache(plan.context, plan.batch), plan.largest_batch(plan.context)
    verdict = "fits" if plan.fits else "too long" if plan.context > plan.most else "too much"
    return (
        plan.format.name, gib(plan.sizes.file), gib(plan.weights), gib(cache), gib(plan.needed),
        verdict, tokens(plan.longest), str(at_once or "-"),
    )  # fmt: skip


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _legend(machine: Machine, asked: dict[str, Any]) -> str:
    kv = asked["kv"] or ("16 bits" if machine.device == "cuda" else "16 bits (32 where a small model runs in float32)")
    told = (
        f"In GiB (2^30 bytes). FILE: its tensors. CACHE: keys and values in {kv}. NEEDED: free memory"
        f"{' of each device' if machine.count > 1 else ''}, working memory included. LONGEST: one sequence. "
        f"AT ONCE: sequences of {asked['context'] or USUAL:,}."
    )
    if machine.device == "cpu":
        told += " On a CPU the engine leaves half of what is free beside the weights to others."
    else:
        told += " A GPU holds 3, 5 and 6 bits in 4 and 8. FP8 wants Ada, Hopper or later, and is widened before."
    if machine.count > 1:
        told += " This engine runs on one device: here weights and KV heads are split evenly over all."
    return _wrapped(told)


def _advise(title: str, plan: Plan, known: list[Format]) -> None:
    if not plan.fits:
        out(_wrapped(f"{title} {plan.format.name} fits with: {', or '.join(plan.advice(known))}"))


def _print_all(machine: Machine, plans: dict[str, list[Plan]], asked: dict[str, Any]) -> None:
    hybrid = [(tag, found) for tag, found in plans.items() if family.resolve_tag(tag).mode == "hybrid"]  # type: ignore[union-attr]
    each = " on each" if machine.count > 1 else ""
    out(f"{machine.name}: {machine.free / GIB:.1f} GiB for a model{each}. Longest context of one sequence:\n")
    columns = _columns(machine.device, hybrid[-1][1]) if hybrid[-1][1] else []
    out(grid(hybrid, columns, "MODEL"))
    out(f"\nThe format that keeps most, for {_told(asked)}:\n")
    best = [(tag, _best(found)) for tag, found in hybrid if found]
    out(table([(tag, *_cells(plan)) for tag, plan in best], ("MODEL", *_HEADER)))
    out(f"\n{_legend(machine, asked)}")
    out("Instruct-2507 and Thinking-2507 (4b, 30b-a3b, 235b-a22b) take the same, and go up to 256k tokens.")
    for tag, plan in best:
        _advise(tag, plan, [p.format for p in plans[tag]])


def _everywhere(as_json: bool, only: Format | None, asked: dict[str, Any]) -> int:
    """The usual machines by the family: the format that keeps most of those that fit."""
    hybrid = [member for member in family.MODELS.values() if member.mode == "hybrid"]
    found: dict[tuple[str, str], Plan | None] = {}
    for machine in MACHINES:
        for member in hybrid:
            known = _plans(member.config, machine, _limit(member), None, asked)
            wanted = [p for p in known if (p.format is only if only else p.format.name in _GRID)]
            fitting = (p for p in wanted if p.fits and (p.held or p.format.name == "bf16"))
            found[machine.name, member.tag] = next(fitting, None)
    if as_json:
        told = {m.name: {n.tag: (p := found[m.name, n.tag]) and _facts(p) for n in hybrid} for m in MACHINES}
        out_json(
            {"context": asked["context"] or USUAL, "batch": asked["batch"], "kv_dtype": asked["kv"], "machines": told}
        )
        return 0
    kv = f", KV cache in {asked['kv']}" if asked["kv"] else ""
    out(f"The format that keeps most, for {_told(asked)}{kv}; - for none:\n")
    rows = []
    for machine in MACHINES:
        cells = (found[machine.name, member.tag] for member in hybrid)
        rows.append((machine.name, *(plan.format.name if plan else "-" for plan in cells)))
    out(table(rows, ("", *(member.tag.removeprefix("qwen3:") for member in hybrid))))
    return 0


def _print_one(
    title: str, config: ModelConfig, limit: int, machine: Machine, plans: list[Plan], asked: dict[str, Any]
) -> None:
    out(f"{title} on {machine.name}, {machine.free / GIB:.1f} GiB for a model; {_told(asked)}:\n")
    shown = [plan for plan in plans if plan.held or plan.format.name in ("bf16", AS_STORED)]
    out(table([_cells(plan) for plan in shown or plans], _HEADER))
    out(f"\n{_legend(machine, asked)}")
    if plans:
        _advise(title + " in", _best(plans), [plan.format for plan in plans])
    out("\nKV cache, GiB, in 16 bits (fp8: half)\n")
    out(cache_table(config, limit))
    out("\nLongest context of one sequence, machine by machine\n")
    out(machines_table(config, limit, asked["kv"]))


def cache_table(config: ModelConfig, limit: int) -> str:
    """Rows of contexts, columns of batches."""
    each = [length for length in (4096, 32768, 131072) if length <= max(limit, 4096)]
    rows = [
        (f"{length:,} tokens", *(gib(config.kv_bytes_per_token() * length * batch) for batch in (1, 8, 32)))
        for length in each
    ]
    return table(rows, ("", "× 1", "× 8", "× 32"))


def machines_table(config: ModelConfig, limit: int, kv: str | None) -> str:
    """A row for each of `plan.MACHINES`, a column for each format of `_GRID`; empty: widened there."""
    columns = [name for name in _GRID if name in {f.name for d in ("cuda", "cpu") for f in formats(config, d)}]
    rows = []
    for machine in MACHINES:
        plans = {p.format.name: p for p in _plans(config, machine, limit, None, {"kv": kv, "context": None})}
        cells = [tokens(p.longest) if (p := plans.get(name)) and (p.held or name == "bf16") else "" for name in columns]
        rows.append((machine.name, *cells))
    return table(rows, ("", *columns))
