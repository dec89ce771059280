"""`qwen3 show`: what a model is. A published one is described from the family table even if it is not on this disk."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

from qwen3 import family
from qwen3.chat import SandboxTemplate
from qwen3.checkpoint import Resolved, read_config
from qwen3.checkpoint.gguf.files import open_gguf
from qwen3.checkpoint.mode import detect_mode
from qwen3.cli.console import exact_parameters, out, out_json, parameters, size, table
from qwen3.cli.models import on_disk
from qwen3.config import ModelConfig
from qwen3.errors import ModelNotFoundError, UsageError

CARD = "README.md"
MAX_CARD_BYTES = 1 << 20


def show(name: str | None, as_json: bool, of_plan: Mapping[str, Any]) -> int:
    """Prints the facts, then the model's card for the embedded model. of_plan: flags that mean nothing here."""
    given = next((flag for flag, value in of_plan.items() if value is not None), None)
    if given is not None:
        raise UsageError(f"--{given.replace('_', '-')} is of the planner: say --plan, too")
    facts = gather(name)
    if as_json:
        out_json(facts)
        return 0
    out(table(_rows(facts)))
    if facts["card"]:
        _print_card(facts["card"])
    return 0


def _print_card(text: str) -> None:
    """Markdown, rendered where there is a terminal to render it for."""
    out("")
    if not sys.stdout.isatty():
        out(text.strip())
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(text))


def gather(name: str | None) -> dict[str, Any]:
    """Everything known about a model without loading it; the object of `qwen3 show --json`.

    Raises what `resolve` raises for a name that is neither on this disk nor in the family.
    """
    try:
        resolved = on_disk(name)
    except ModelNotFoundError:
        member, _form = family.look_up(name or "")
        if member is None:
            raise
        return _facts(member.config, member.mode, member.template, member) | {
            "name": member.name,
            "repo": member.repo,
        }
    config = read_config(resolved.path)
    published = family.resolve_repo(resolved.repo) if resolved.repo else None
    member = published[0] if published else None
    mode, template, _ = detect_mode(resolved, config)
    named = "the checkpoint's own, in a sandbox" if isinstance(template, SandboxTemplate) else template
    return _facts(config, mode, named, member) | {
        "name": resolved.name,
        "path": str(resolved.path),
        "repo": resolved.repo,
        "revision": resolved.commit or resolved.revision,
        "sha256": resolved.sha256,
        "stored": _stored(resolved),
        "files": _files(resolved),
        "card": _card(resolved),
    }


def _facts(config: ModelConfig, mode: family.Mode, template: str, member: family.FamilyMember | None) -> dict[str, Any]:
    thinks = {"hybrid": (True, False), "thinking": (True,)}.get(mode, (False,))
    kv = config.kv_bytes_per_token()
    return {
        "name": None,
        "path": None,
        "repo": None,
        "revision": None,
        "sha256": None,
        "architecture": config.architecture,
        "parameters": config.num_parameters(),
        "active_parameters": config.num_parameters(active=True),
        "dtype": config.dtype,
        "weight_bytes": config.weight_bytes(),
        "context": config.context_length,
        "yarn_context": member.yarn_context if member else 0,
        "kv_bytes_per_token": kv,
        "kv_bytes_full_context": kv * config.context_length,
        "mode": mode,
        "modes": ["thinking" if thinking else "non-thinking" for thinking in thinks],
        "template": template,
        "sampling": {
            "thinking" if thinking else "non-thinking": vars(family.sampling_defaults(mode, thinking))
            for thinking in thinks
        },
        "config": config.to_dict(),
        "variants": member.variants if member else {},
        "stored": None,
        "files": None,
        "card": None,
    }


def _stored(resolved: Resolved) -> dict[str, int] | None:
    """Of a GGUF file: tensor type -> bytes, the most first."""
    if resolved.kind != "gguf":
        return None
    found: Counter[str] = Counter()
    for tensor in open_gguf(resolved.path).tensors.values():
        found[tensor.type.name] += tensor.end - tensor.begin
    return dict(found.most_common())


def _files(resolved: Resolved) -> list[dict[str, Any]]:
    if resolved.kind == "gguf":
        folder, found = resolved.path.parent, [header.file for header in open_gguf(resolved.path).headers]
    else:
        folder, found = resolved.path, sorted(path for path in resolved.path.rglob("*") if path.is_file())
    return [{"name": str(path.relative_to(folder)), "bytes": path.stat().st_size} for path in found]


def _card(resolved: Resolved) -> str | None:
    """The text of the embedded model's card. Of others the card is the hub's page, markup and all: not shown."""
    path = resolved.path / CARD
    if resolved.kind != "embedded" or not path.is_file() or path.stat().st_size > MAX_CARD_BYTES:
        return None
    return path.read_text(encoding="utf-8")


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    config, here = facts["config"], facts["path"]
    rows = [("model", facts["name"])]
    if facts["repo"]:
        rows.append(("repository", facts["repo"] + (f" @ {facts['revision']}" if facts["revision"] else "")))
    rows.append(("path", here or f"not on this disk; qwen3 pull {_tag(facts)} fetches it"))
    if facts["sha256"]:
        rows.append(("sha256", f"{facts['sha256']} (weights)"))
    shape = f"{config['num_hidden_layers']} layers of {config['hidden_size']}, {config['num_attention_heads']} query "
    shape += f"and {config['num_key_value_heads']} KV heads of {config['head_dim']}"
    if config.get("num_experts"):
        shape += f", {config['num_experts']} experts, {config['num_experts_per_tok']} active"
    count = exact_parameters(facts["parameters"])
    if facts["active_parameters"] != facts["parameters"]:
        count += f", {parameters(facts['active_parameters'])} active for a token"
    yarn = f", {facts['yarn_context']:,} with YaRN" if facts["yarn_context"] else ""
    full = size(facts["kv_bytes_full_context"])
    rows += [
        ("architecture", f"{facts['architecture']}: {shape}"),
        ("parameters", count),
        ("weights", _weights(facts)),
        ("context", f"{facts['context']:,} tokens{yarn}"),
        ("KV cache", f"{facts['kv_bytes_per_token']:,} bytes a token in 16 bits, {full} for the whole context"),
        ("mode", f"{facts['mode']}: {' and '.join(facts['modes'])}"),
        ("template", facts["template"]),
    ]
    for mode, values in facts["sampling"].items():
        rows.append((f"sampling, {mode}", ", ".join(f"{key} {value:g}" for key, value in values.items())))
    for form, repo in facts["variants"].items():
        rows.append((f"variant {form}", repo))
    for file in facts["files"] or ():
        rows.append((f"file {file['name']}", f"{file['bytes']:,} bytes"))
    return rows


def _weights(facts: dict[str, Any]) -> str:
    widened = f"{size(facts['weight_bytes'])} in {facts['dtype']}"
    if not facts["stored"]:
        return widened
    kinds = ", ".join(f"{size(count)} {kind}" for kind, count in facts["stored"].items())
    return f"{kinds} in the file; {widened}"


def _tag(facts: dict[str, Any]) -> str:
    return str(family.MODELS[facts["name"]].tag)
