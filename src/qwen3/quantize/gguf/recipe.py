"""Which type each tensor of a file gets.

A recipe is the type of most matrices and the exceptions that llama.cpp publishes under the same name: more bits for
attn_v and ffn_down of some or all layers, where an error costs most, for the head, and in small recipes for
attn_output. Vectors and routers stay float32 always. Widths that a type cannot divide get a stated larger one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from qwen3.checkpoint.gguf.types import TYPES
from qwen3.config import ModelConfig
from qwen3.errors import UsageError
from qwen3.quantize.gguf.encode import WRITTEN

_BLOCKS = {kind.name: kind.block for kind in TYPES.values()}
FALLBACK = {
    "Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "IQ4_XS": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
    "TQ1_0": "Q4_0", "TQ2_0": "Q4_0",
}  # fmt: skip
"""What a matrix gets whose width is no multiple of 256; if it is none of 32 either, F16."""


@dataclass(frozen=True)
class Layer:
    """Where a matrix stands: layer `number` of `count`; `groups` query heads share a key head; `guided`: there is an
    importance matrix."""

    number: int
    count: int
    groups: int
    guided: bool

    @property
    def early(self) -> bool:
        """In the first eighth."""
        return self.number < self.count // 8

    @property
    def chosen(self) -> bool:
        """In the first or the last eighth, or one in three between."""
        n, eighth = self.number, self.count // 8
        return n < eighth or n >= 7 * self.count // 8 or (n - eighth) % 3 == 2


Rule = Callable[[Layer], str]


@dataclass(frozen=True)
class Recipe:
    """`number`: llama.cpp's for general.file_type. head: of output, and of token_embd if there is no output; embedding:
    of token_embd otherwise (None: as `base`)."""

    base: str
    number: int
    head: str = "Q6_K"
    embedding: str | None = None
    special: dict[str, Rule] = field(default_factory=dict)


def _always(kind: str) -> Rule:
    return lambda layer: kind


def _where(test: Callable[[Layer], bool], then: str, other: str) -> Rule:
    return lambda layer: then if test(layer) else other


RECIPES = {
    **{name.lower(): Recipe(name, number, name) for name, number in (("F32", 0), ("F16", 1), ("BF16", 32))},
    "q8_0": Recipe("Q8_0", 7, "Q8_0"),
    "q4_0": Recipe("Q4_0", 2, special={"ffn_down": _where(lambda at: at.early and at.guided, "Q5_0", "Q4_0")}),
    "q4_1": Recipe("Q4_1", 3, special={"ffn_down": _where(lambda at: at.early and at.guided, "Q5_1", "Q4_1")}),
    "q5_0": Recipe("Q5_0", 8),
    "q5_1": Recipe("Q5_1", 9),
    "q2_k": Recipe("Q2_K", 10, special={
        "attn_v": _where(lambda at: at.groups >= 4, "Q4_K", "Q3_K"),
        "ffn_down": _always("Q3_K"), "attn_output": _always("Q3_K")}),
    "q3_k_s": Recipe("Q3_K", 11),
    "q3_k_m": Recipe("Q3_K", 12, special={
        "attn_v": _where(lambda at: at.number < 2, "Q5_K", "Q4_K"), "attn_output": _always("Q4_K"),
        "ffn_down": _where(lambda at: at.number < at.count // 16, "Q5_K", "Q4_K")}),
    "q3_k_l": Recipe("Q3_K", 13, special={
        name: _always("Q5_K") for name in ("attn_v", "attn_output", "ffn_down")}),
    "q4_k_s": Recipe("Q4_K", 14, special={
        "attn_v": _where(lambda at: at.number < 4, "Q5_K", "Q4_K"),
        "ffn_down": _where(lambda at: at.early, "Q5_K", "Q4_K")}),
    "q4_k_m": Recipe("Q4_K", 15, special={
        name: _where(lambda at: at.chosen, "Q6_K", "Q4_K") for name in ("attn_v", "ffn_down")}),
    "q5_k_s": Recipe("Q5_K", 16),
    "q5_k_m": Recipe("Q5_K", 17, special={
        name: _where(lambda at: at.chosen, "Q6_K", "Q5_K") for name in ("attn_v", "ffn_down")}),
    "q6_k": Recipe("Q6_K", 18),
    "iq4_nl": Recipe("IQ4_NL", 25, special={
        "attn_v": _where(lambda at: at.groups >= 4, "Q5_K", "IQ4_NL"),
        "ffn_down": _where(lambda at: at.early and not at.guided, "Q5_K", "IQ4_NL")}),
    "iq4_xs": Recipe("IQ4_XS", 30, special={
        "attn_v": _where(lambda at: at.groups >= 4, "Q5_K", "IQ4_XS"),
        "ffn_down": _where(lambda at: at.early and not at.guided, "Q5_K", "IQ4_XS")}),
    "tq1_0": Recipe("TQ1_0", 36, embedding="Q4_K"),
    "tq2_0": Recipe("TQ2_0", 37, embedding="Q4_K"),
    "mxfp4_moe": Recipe("Q8_0", 38, "Q8_0", special={
        f"ffn_{name}_exps": _always("MXFP4") for name in ("gate", "up", "down")}),
}  # fmt: skip
"""By the name that is asked for."""
_LAYER = re.compile(r"blk\.(\d+)\.((\w+?)(?:_exps)?)\.weight")


@dataclass(frozen=True)
class Choice:
    """What a tensor gets. wanted: what recipe or rule said, if its width does not allow that."""

    kind: str
    wanted: str | None = None


def recipe_named(name: str) -> Recipe:
    """Raises UsageError that lists all."""
    found = RECIPES.get(name.lower())
    if found is None:
        raise UsageError(f"--type {name} is unknown; there are {', '.join(RECIPES)}")
    return found


def parse_rules(rules: Sequence[str]) -> list[tuple[str, str]]:
    """`PATTERN=TYPE` each -> (pattern, type's name). Raises UsageError for anything else."""
    out = []
    for rule in rules:
        pattern, equals, kind = rule.rpartition("=")
        if not equals or not pattern or kind.upper() not in WRITTEN:
            raise UsageError(f"--rule {rule}: must be PATTERN=TYPE, as in blk.0.*=q8_0; types: {', '.join(WRITTEN)}")
        out.append((pattern, kind.upper()))
    return out


def choose(
    recipe: Recipe, shapes: dict[str, tuple[int, ...]], config: ModelConfig, rules: Sequence[str], guided: bool
) -> dict[str, Choice]:
    """GGUF name -> its type. `shapes`: of all tensors, outermost dimension first. Of several rules that match a tensor
    (with * and ?), the last counts; vectors and routers follow no rule.

    Raises UsageError for a rule that matches no matrix, and for a recipe of experts where there are none.
    """
    if recipe.special and all(name.endswith("_exps") for name in recipe.special) and not config.is_moe:
        raise UsageError("--type mxfp4_moe is for experts, which this model lacks: take q8_0, or --rule '*=mxfp4'")
    parsed = parse_rules(rules)
    used: set[str] = set()
    out = {}
    for name, shape in shapes.items():
        if len(shape) == 1 or ".ffn_gate_inp." in name:
            out[name] = Choice("F32")
            continue
        kind = _wanted(recipe, name, config, guided)
        for pattern, special in parsed:
            if fnmatchcase(name, pattern):
                used.add(pattern)
                kind = special
        out[name] = _fitting(kind, shape[-1])
    unused = [pattern for pattern, _ in parsed if pattern not in used]
    if unused:
        raise UsageError(f"--rule {unused[0]}=…: no matrix is called so; names are like blk.0.attn_v.weight")
    return out


def _wanted(recipe: Recipe, name: str, config: ModelConfig, guided: bool) -> str:
    if name == "output.weight" or (name == "token_embd.weight" and config.tie_word_embeddings):
        return recipe.head
    if name == "token_embd.weight":
        return recipe.embedding or recipe.base
    match = _LAYER.fullmatch(name)
    assert match is not None, name
    groups = config.num_attention_heads // config.num_key_value_heads
    rule = recipe.special.get(match[2]) or recipe.special.get(match[3])
    return recipe.base if rule is None else rule(Layer(int(match[1]), config.num_hidden_layers, groups, guided))


def _fitting(kind: str, width: int) -> Choice:
    if width % _BLOCKS[kind] == 0:
        return Choice(kind)
    other = FALLBACK.get(kind, "F16")
    return Choice(other if width % _BLOCKS[other] == 0 else "F16", kind)
