"""What is to be done with which matrix: a method, bits and groups, and rules for single modules."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from qwen3.checkpoint.names import EMBED, HEAD, official_shapes
from qwen3.config import ModelConfig
from qwen3.errors import UsageError

BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128, -1)
GROUPED = ("rtn", "gptq", "awq")
METHODS = (*GROUPED, "w8a8", "fp8")
FP8_SCALES = ("tensor", "channel", "block")
WITHOUT_CALIBRATION = ("rtn", "fp8")
ENDS = tuple(name.removesuffix(".weight") for name in (EMBED, HEAD))


@dataclass(frozen=True)
class Rule:
    """What differs for the modules whose official names (`model.layers.0.self_attn.q_proj`) match.

    pattern: a glob, or a regular expression after "re:"; it must match the whole name. Embedding and head are kept
    unless a rule gives `model.embed_tokens` or `lm_head` by that very name. skip: kept as they are. None: as the spec.
    """

    pattern: str
    skip: bool = False
    bits: int | None = None
    group: int | None = None
    method: str | None = None
    symmetric: bool | None = None

    def __post_init__(self) -> None:
        changes = self.changes
        if self.skip == bool(changes):
            raise UsageError(f"rule {self.pattern!r} must say skip, or what to change (bits, group, method, symmetric)")
        if self.pattern.startswith("re:"):
            try:
                re.compile(self.pattern[3:])
            except re.error as error:
                raise UsageError(f"rule {self.pattern!r} is no regular expression: {error}") from None

    @property
    def changes(self) -> dict[str, Any]:
        """Fields of `Spec` that it sets."""
        found = {name: getattr(self, name) for name in ("bits", "group", "method", "symmetric")}
        return {name: value for name, value in found.items() if value is not None}

    def matches(self, module: str) -> bool:
        if module in ENDS:
            return self.pattern == module
        if self.pattern.startswith("re:"):
            return re.fullmatch(self.pattern[3:], module) is not None
        return fnmatchcase(module, self.pattern)


@dataclass(frozen=True)
class Spec:
    """A quantization. Raises UsageError naming the field that is wrong.

    method: "rtn" (round to nearest), "gptq", "awq", "w8a8" (SmoothQuant), "fp8". bits, group (columns to a scale; -1:
    a whole row), symmetric (None: all but AWQ are) count for the first three. act_order: GPTQ takes columns by
    activation; static_groups: and groups stay as they are in the file, so that no order is stored. damp: of GPTQ's
    Hessian, in its mean diagonal. search: scales with the smallest error, not the largest value's. alpha: how much of
    the activations' spread W8A8 moves into the weights. fp8_scale: to a "tensor", "channel" (row) or "block" of
    128 × 128. rules: the first that matches counts. calibration: "qwen3" (built in), a file (.txt, .jsonl), "none"
    (rtn and fp8, which need none; their default). samples sequences of length tokens, drawn by seed. expert_tokens: an
    expert that fewer calibration tokens reach is rounded to nearest, with a warning.
    """

    method: str = "gptq"
    bits: int = 4
    group: int = 128
    symmetric: bool | None = None
    act_order: bool = True
    static_groups: bool = True
    damp: float = 0.01
    search: bool = True
    alpha: float = 0.5
    fp8_scale: str = "block"
    rules: tuple[Rule, ...] = ()
    calibration: str = ""
    samples: int = 128
    length: int = 512
    expert_tokens: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        def one_of(field: str, allowed: Sequence[Any]) -> None:
            value = getattr(self, field)
            if type(value) is not type(allowed[0]) or value not in allowed:
                raise UsageError(f"{field} must be one of {', '.join(map(str, allowed))}, not {value!r}")

        one_of("method", METHODS)
        one_of("fp8_scale", FP8_SCALES)
        if self.method in GROUPED:
            one_of("bits", BITS)
            one_of("group", GROUPS)
        if self.symmetric is None:
            object.__setattr__(self, "symmetric", self.method != "awq")
        object.__setattr__(self, "rules", tuple(self.rules))
        for rule in self.rules:
            replace(self, rules=(), **rule.changes)  # which checks them
        if not 0 < self.damp <= 1:
            raise UsageError(f"damp must be above 0 and at most 1, not {self.damp}")
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"alpha must be between 0 and 1, not {self.alpha}")
        if self.samples < 1 or self.length < 16:
            raise UsageError(f"calibration needs samples >= 1 and length >= 16, not {self.samples} and {self.length}")
        methods = {self.method, *(rule.method for rule in self.rules if rule.method)}
        if not self.calibration:
            object.__setattr__(self, "calibration", "none" if methods <= {*WITHOUT_CALIBRATION} else "qwen3")
        elif self.calibration == "none" and not methods <= {*WITHOUT_CALIBRATION}:
            raise UsageError(f"{self.method} needs calibration data: give 'qwen3' (built in), or a .txt or .jsonl file")

    def of(self, rule: Rule) -> Spec:
        """This spec with a rule's changes, for the modules that it matches."""
        return replace(self, rules=(), **rule.changes)

    def group_of(self, count: int) -> int:
        """Columns to a scale, in a matrix of so many."""
        return count if self.group == -1 else self.group

    def columns(self, module: str, count: int) -> int:
        """`group_of`. Raises UsageError naming the module if its columns are no whole groups."""
        group = self.group_of(count)
        if count % group:
            fits = [str(g) for g in GROUPS if g == -1 or count % g == 0]
            raise UsageError(f"{module} has {count} columns, no multiple of group {group}: take {' or '.join(fits)}")
        return group


def plan(spec: Spec, config: ModelConfig) -> dict[str, Spec]:
    """Official module name → what is done with it, for all modules that are quantized; those absent are kept.

    Projections are, unless a rule skips them; norms and routers never are. Raises UsageError for a rule that matches no
    module, and for groups that do not fit.
    """
    shapes: Mapping[str, tuple[int, ...]] = {
        name.removesuffix(".weight"): shape
        for name, shape in official_shapes(config).items()
        if name.endswith("_proj.weight") or name in (EMBED, HEAD)
    }
    found: dict[str, Spec] = {}
    for module, shape in shapes.items():
        rule = next((rule for rule in spec.rules if rule.matches(module)), None)
        if (rule is None and module in ENDS) or (rule is not None and rule.skip):
            continue
        mine = spec if rule is None else spec.of(rule)
        if mine.method in GROUPED:
            mine.columns(module, shape[1])
        found[module] = mine
    for rule in spec.rules:
        if not any(rule.matches(module) for module in shapes):
            example = "model.layers.0.self_attn.q_proj"
            raise UsageError(f"rule {rule.pattern!r} matches no module that can be quantized (they are as {example})")
    return found
