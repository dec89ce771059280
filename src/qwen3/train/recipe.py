"""Recipes: what a training run does, as frozen dataclasses that say what each key means.

A recipe is a Python function without arguments that returns a `Recipe`; its stages run in order. On the command line a
key is changed with `name=value`: of the recipe itself (`out=…`), or of a stage (`sft.matrix_lr=1e-3`, and without the
stage's name where there is only one). A key that does not exist is an error that names the nearest ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from qwen3.errors import UsageError


def key(default: Any, text: str, *, shared: bool = False) -> Any:
    """A field of a stage: its default (a dataclass: its class) and what it means. shared: without a stage's name, it is
    set in all stages that have it."""
    about = {"help": text, "shared": shared}
    if default is MISSING:
        return dataclasses.field(metadata=about)
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=about)
    return dataclasses.field(default=default, metadata=about)


@dataclass(frozen=True)
class Recipe:
    """name: of the run. model: what is trained: a checkpoint (folder, tag, hub id, "embedded") or a config as a dict,
    for fresh weights. stages: dataclasses with a `name` each, see `pretrain`, `sft`, `rl`, `distill`."""

    name: str
    model: Any = key(MISSING, "what is trained: a folder, a tag such as qwen3:0.6b, a hub id, or embedded")
    stages: tuple[Any, ...] = key(MISSING, "what is done, in order")
    out: str = key("", "folder for checkpoints, logs and the result; empty: runs/NAME")
    seed: int = key(0, "of initial weights, the order of data and sampling")
    tokenizer: str = key("", "folder whose tokenizer is used; empty: the model's own")
    max_minutes: float | None = key(None, "end after so many minutes, with a checkpoint to go on from")
    device: str = key("", "cpu or cuda; empty: the best there is")
    tensorboard: bool = key(False, "numbers go to OUT/tensorboard, too: pip install 'qwen3[train]'")

    @property
    def folder(self) -> Path:
        return Path(self.out or f"runs/{self.name}")


def override(recipe: Recipe, words: Sequence[str]) -> Recipe:
    """The recipe with each `key=value` of `words` set. Raises UsageError naming the word, and keys that come near."""
    for word in words:
        name, sign, text = word.partition("=")
        if not sign or not name:
            raise UsageError(f"{word!r} is no key=value")
        recipe = _set(recipe, name, text)
    return recipe


def _set(recipe: Recipe, name: str, text: str) -> Recipe:
    own = {field.name for field in dataclasses.fields(recipe)} - {"stages"}
    if name in own:
        return _replaced(recipe, [name], text, name)
    first, _, rest = name.partition(".")
    named = [i for i, stage in enumerate(recipe.stages) if stage.name == first]
    if named and rest:
        path, at = rest.split("."), named[0]
    else:
        holders = [i for i, stage in enumerate(recipe.stages) if _has(stage, name.split("."))]
        if not holders:
            known = [key for key, _ in keys(recipe)]
            near = difflib.get_close_matches(name, known, 3, 0.5) or [k for k in known if k.endswith(f".{name}")][:3]
            hint = f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(known)}"
            raise UsageError(f"{name} is no key of the recipe {recipe.name}{hint}")
        if len(holders) > 1:
            stages = [recipe.stages[i] for i in holders]
            if all(type(stage).__dataclass_fields__[first].metadata.get("shared") for stage in stages):
                return override(recipe, [f"{stage.name}.{name}={text}" for stage in stages])
            places = ", ".join(f"{stage.name}.{name}" for stage in stages)
            raise UsageError(f"{name} is a key of several stages: say which, {places}")
        path, at = name.split("."), holders[0]
    stage = _replaced(recipe.stages[at], path, text, name)
    return dataclasses.replace(recipe, stages=(*recipe.stages[:at], stage, *recipe.stages[at + 1 :]))


def _has(owner: Any, path: Sequence[str]) -> bool:
    for name in path:
        if not dataclasses.is_dataclass(owner) or name not in {f.name for f in dataclasses.fields(owner)}:
            return False
        owner = getattr(owner, name)
    return path[0] != "name"


def _replaced(owner: Any, path: Sequence[str], text: str, whole: str) -> Any:
    name, *rest = path
    fields = {f.name for f in dataclasses.fields(owner)} - {"name"} if dataclasses.is_dataclass(owner) else set()
    if name not in fields:
        near = difflib.get_close_matches(name, fields, 3, 0.5) or sorted(fields)
        raise UsageError(f"{whole}: there is no key {name}; there are {', '.join(near)}")
    if rest:
        value = _replaced(getattr(owner, name), rest, text, whole)
    else:
        value = parse(text, typing.get_type_hints(type(owner))[name], whole)
    return dataclasses.replace(owner, **{name: value})


def parse(text: str, kind: Any, name: str) -> Any:
    """`text` as a value of an annotation: str, int, float, bool, a Literal, tuples of these (with commas), or None."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if type(None) in options and text in ("none", "None", ""):
            return None
        wanted = []
        for option in options:
            if option is not type(None):
                try:
                    return parse(text, option, name)
                except UsageError as error:
                    wanted.append(str(error).partition(" must be ")[2])
        raise UsageError(f"{name}={text!r} must be {', or '.join(wanted)}")
    if origin is typing.Literal:
        for option in options:
            if text == str(option):
                return option
        raise UsageError(f"{name}={text!r} must be {'one of ' * (len(options) > 1)}{', '.join(map(str, options))}")
    if origin is tuple:
        return tuple(parse(part.strip(), options[0], name) for part in text.split(",") if part.strip())
    if kind is bool:
        if text.lower() in ("true", "false", "yes", "no", "1", "0", "on", "off"):
            return text.lower() in ("true", "yes", "1", "on")
        raise UsageError(f"{name}={text!r} must be true or false")
    if kind in (int, float):
        try:
            return kind(text.replace("_", ""))
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise UsageError(f"{name}={text!r} must be {what}") from None
    if kind in (str, Any):
        return text
    raise UsageError(f"{name} cannot be set on the command line: change it in the recipe")


def keys(recipe: Recipe) -> Iterator[tuple[str, tuple[Any, str]]]:
    """(name, (value, meaning)) of everything that can be set."""
    for field in dataclasses.fields(recipe):
        if field.name not in ("name", "stages"):
            yield field.name, (getattr(recipe, field.name), field.metadata.get("help", ""))
    for stage in recipe.stages:
        yield from _keys(stage, stage.name)


def plain(recipe: Recipe) -> dict[str, Any]:
    """The keys' values where JSON has them: what can be told, and compared with another run's."""
    found = {}
    for name, (value, _) in keys(recipe):
        with contextlib.suppress(TypeError):
            found[name] = json.loads(json.dumps(value))
    return found


def _keys(owner: Any, prefix: str) -> Iterator[tuple[str, tuple[Any, str]]]:
    for field in dataclasses.fields(owner):
        value = getattr(owner, field.name)
        if dataclasses.is_dataclass(value):
            yield from _keys(value, f"{prefix}.{field.name}")
        elif field.name != "name":
            yield f"{prefix}.{field.name}", (value, field.metadata.get("help", ""))


def described(recipe: Recipe) -> str:
    """All keys, one a line: value and meaning."""
    lines = [(name, "none" if value is None else str(value), text) for name, (value, text) in keys(recipe)]
    width = max(len(name) for name, _, _ in lines)
    return "\n".join(f"{name:{width}}  {value[:40]:40}  {text}" for name, value, text in lines)
