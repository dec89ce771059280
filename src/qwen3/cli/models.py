"""`qwen3 ls`, `pull` and `verify`: the models on this disk."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

from qwen3 import family
from qwen3.checkpoint import Resolved, list_cached, resolve
from qwen3.checkpoint import verify as check
from qwen3.checkpoint.cache import is_offline
from qwen3.cli.console import colours, note, out, out_json, parameters, size, table
from qwen3.errors import CorruptFileError, ModelNotFoundError, UsageError


def list_models(everything: bool, as_json: bool) -> int:
    """Prints what is on this disk and, with `everything`, what is published."""
    cached = list_cached()
    if as_json:
        value: dict[str, Any] = {"models": [asdict(model) for model in cached]}
        if everything:
            value["published"] = [_published(member) for member in family.MODELS.values()]
        out_json(value)
        return 0
    rows = [
        (
            model.name,
            size(model.bytes),
            (model.commit or "")[:12],
            ", ".join(model.revisions),
            model.source if model.complete else f"{model.source}, incomplete: qwen3 pull {model.name}",
        )
        for model in cached
    ]
    out(table(rows, ("NAME", "SIZE", "COMMIT", "REVISION", "FROM")))
    if everything:
        here = {model.name.lower() for model in cached if model.complete}
        out("")
        published = (
            (
                member.tag,
                _counts(member),
                member.mode,
                f"{member.context:,}",
                size(member.config.weight_bytes()),
                "on this disk" if member.repo.lower() in here else "",
            )
            for member in family.MODELS.values()
        )
        out(table(published, ("TAG", "PARAMETERS", "MODE", "CONTEXT", "BFLOAT16", "")))
    return 0


def pull(model: str, as_json: bool) -> int:
    """Downloads, or brings up to date; prints the folder on stdout."""
    resolved = resolve(model, refresh=True)
    if resolved.source == "path":
        raise UsageError(
            f"{model} is already on this disk; pull takes a tag (qwen3:0.6b) or a hub id (Qwen/Qwen3-0.6B)"
        )
    if as_json:
        out_json(asdict(resolved))
    else:
        note(resolved.describe())
        out(str(resolved.path))
    return 0


def verify(model: str | None, as_json: bool) -> int:
    """Reads every byte of a model that is on this disk; prints the findings. Exit code 6 if one is an error."""
    resolved = on_disk(model)
    progress = _progress()
    try:
        report = check(resolved.path, progress=progress)
    finally:
        if progress is not None:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    if as_json:
        out_json({"model": resolved.name, "repo": resolved.repo, "revision": resolved.commit, **report.to_dict()})
        return 0 if report.ok else CorruptFileError.exit_code
    for finding in report.findings:
        out(f"{finding.severity}: {finding.check}: {finding.message}")
    counts = f"{report.tensors:,} tensors, {parameters(report.parameters)} parameters, {size(report.bytes)}"
    against = "no recorded hashes" if report.hashes == "none" else f"hashes: {report.hashes}"
    out(f"{'sound' if report.ok else 'NOT SOUND'}: {resolved.path} ({counts}; {against})")
    return 0 if report.ok else CorruptFileError.exit_code


def on_disk(name: str | None) -> Resolved:
    """`resolve` without a download; a hub model that is not here is an error that says how to get it."""
    try:
        return resolve(name, offline=True)
    except ModelNotFoundError as error:
        if is_offline() or "in the cache" not in str(error):
            raise
        raise ModelNotFoundError(f"{name} is not (wholly) on this disk; qwen3 pull {name} fetches it") from None


def _progress() -> Any:
    """A percentage on stderr, on a terminal only; verifying 16 GB takes a while."""
    if not colours(sys.stderr):
        return None
    shown = -1

    def show(what: str, done: int, total: int) -> None:
        nonlocal shown
        percent = done * 100 // max(total, 1)
        if percent != shown:
            shown = percent
            print(f"\r\x1b[K{what} {percent}%", end="", file=sys.stderr, flush=True)

    return show


def _published(member: family.FamilyMember) -> dict[str, Any]:
    return {
        "name": member.name,
        "tag": member.tag,
        "repo": member.repo,
        "mode": member.mode,
        "parameters": member.params,
        "active_parameters": member.active_params,
        "context": member.context,
        "yarn_context": member.yarn_context,
        "weight_bytes": member.config.weight_bytes(),
        "variants": member.variants,
    }


def _counts(member: family.FamilyMember) -> str:
    active = f" ({parameters(member.active_params)} active)" if member.config.is_moe else ""
    return parameters(member.params) + active
