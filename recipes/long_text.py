"""Long text at 5M parameters: needles found at 4 × the length of general pretraining, and 4 × more under YaRN.

    qwen3 train recipes/long_text.py text=package:python out=runs/long
    python -m qwen3.train.needle runs/long/model --base 512

The third stage of Qwen3's pretraining (arXiv 2505.09388, section 3.2) in small: rows of 512 tokens and a rotary base of
10⁴, then rows of 2,048 and 10⁶. Text alone teaches so small a model no retrieval, so a quarter of the tokens are needle
texts that fit the stage's rows; their answers are digits drawn anew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from qwen3.tokenizer import Tokenizer
from qwen3.train.mixture import Source
from qwen3.train.needle import NeedleDraw
from qwen3.train.pretrain import SHAPES, Pretrain
from qwen3.train.recipe import Recipe, key

SHORT, LONG = 512, 2048
NEEDLES = 0.25  # of the tokens


@dataclass(frozen=True)
class LongText(Recipe):
    """text is a source of both stages."""

    text: str = key("package:python", "folder of shards, or texts")

    def __post_init__(self) -> None:
        tokenizer = Tokenizer.from_pretrained().prefix(8192)

        def sources(stage: Any) -> tuple[Source, ...]:
            draw = NeedleDraw(tokenizer, (96, stage.length))
            return Source("text", 1 - NEEDLES, self.text, kept=8), Source("needles", NEEDLES, draw)

        object.__setattr__(self, "stages", tuple(replace(stage, sources=sources(stage)) for stage in self.stages))


def recipe() -> LongText:
    return LongText(
        "long-text",
        SHAPES["tiny"] | {"max_position_embeddings": SHORT},
        (
            Pretrain("general", tokens=150_000_000, decay=0.0, length=SHORT, needle=(SHORT,)),
            Pretrain("long", tokens=100_000_000, warmup=0.0, decay=1.0, length=LONG, rope_theta=1e6,
                     needle=(LONG, 4 * LONG), yarn=4.0),
        ),
    )  # fmt: skip
