"""The needle test: one fact in a long text, asked for at its end (Kamradt 2023), at given lengths and depths.

    python -m qwen3.train.needle MODEL --length 2048 --length 8192 --factor 4

An answer is right when every token of it is the model's first choice behind the text and the tokens before it, which
is what greedy decoding would have given; one forward pass tells. The texts are plain English that a small model can
have learned, and answers are digits drawn anew for each, which it cannot know from elsewhere.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from qwen3.checkpoint import resolve
from qwen3.checkpoint.mode import find_tokenizer
from qwen3.config import ModelConfig, RopeScaling
from qwen3.errors import UsageError
from qwen3.model import Qwen3, load_model
from qwen3.model.load import best_device
from qwen3.model.rope import Rotary
from qwen3.tasks.base import interval
from qwen3.tokenizer import Tokenizer
from qwen3.train.forward import BatchTensors, Forward, to_tensors
from qwen3.train.packing import IGNORED, PackedBatch, pack
from qwen3.train.samples import TokenSample, completion_sample

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
_DIGITS = 5
_NAMES = (
    "Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gwen", "Hugo", "Ida", "Jon", "Kate", "Leo", "Mia", "Ned", "Olga",
    "Paul", "Rosa", "Sam", "Tess", "Vera",
)  # fmt: skip
_WHO = ("The cat", "A boy", "My sister", "The old man", "Our dog", "The teacher", "A bird", "His friend", "The girl")
_DOES = ("saw", "found", "likes", "lost", "wants", "took", "watched", "painted", "carried", "forgot")
_WHAT = ("a red ball", "the door", "some bread", "the river", "a green hat", "two stones", "the moon", "a small boat")
_WHEN = ("today", "in the morning", "at night", "last week", "after lunch", "in the rain", "by the sea", "at home")


def set_rope(
    model: Qwen3, *, theta: float | None = None, context: int | None = None, scaling: RopeScaling | None = None
) -> None:
    """Change a network's positions in place: the base, the length it is made for, YaRN (None: none). Its config says so
    from then on, and what is saved of it."""
    model.config = replace(
        model.config, rope_theta=theta or model.config.rope_theta, rope_scaling=scaling,
        max_position_embeddings=context or model.config.max_position_embeddings,
    )  # fmt: skip
    model.rotary = Rotary(model.config, model.device)


@contextmanager
def stretched(model: Qwen3, factor: float, original: int | None = None) -> Iterator[None]:
    """The network under static YaRN for a while. original: the length it was trained at, None: what its config says."""
    config, rotary = model.config, model.rotary
    if factor > 1:
        set_rope(model, scaling=RopeScaling(factor, original or config.max_position_embeddings))
    try:
        yield
    finally:
        model.config, model.rotary = config, rotary


@lru_cache(4)
def _pool(tokenizer: Tokenizer) -> tuple[list[int], ...]:
    """Sentences of filler, as ids, in an order of no meaning."""
    rng = random.Random("needle")
    texts = {f" {rng.choice(_WHO)} {rng.choice(_DOES)} {rng.choice(_WHAT)} {rng.choice(_WHEN)}." for _ in range(600)}
    return tuple(tokenizer.encode_plain(text) for text in sorted(texts))


def needle(tokenizer: Tokenizer, rng: random.Random, length: int, depth: float) -> tuple[list[int], list[int]]:
    """(prompt, answer): `length` tokens together, or a sentence less. depth: where the fact stands, from 0, the start,
    to 1, the end. Raises UsageError for a length in which there is no room for a fact and a question."""
    name, code = rng.choice(_NAMES), "".join(rng.choices("0123456789", k=_DIGITS))
    fact = tokenizer.encode_plain(f" The secret code of {name} is {code}.")
    asked = tokenizer.encode_plain(
        f" Question: what is the secret code of {name}? Answer: the secret code of {name} is"
    )
    answer = tokenizer.encode_plain(f" {code}.")
    room, filler = length - len(fact) - len(asked) - len(answer), []  # type: int, list[list[int]]
    if room < 0:
        raise UsageError(f"a needle of {length} tokens: its fact and question alone have {length - room}")
    while len(sentence := rng.choice(_pool(tokenizer))) <= room:
        filler.append(sentence)
        room -= len(sentence)
    at = round(depth * len(filler))
    parts = [*filler[:at], fact, *filler[at:], asked]
    return [id for part in parts for id in part], answer


@dataclass(frozen=True)
class NeedleDraw:
    """A `mixture.Source`'s draw: needles of random depths to learn from. lengths: from … to, spread evenly in their
    logarithm. answers: only they are trained, else the whole text is."""

    tokenizer: Tokenizer
    lengths: tuple[int, int]
    answers: bool = True

    def __call__(self, rng: random.Random) -> TokenSample:
        shortest, longest = self.lengths
        length = int(shortest * (longest / shortest) ** rng.random())
        prompt, answer = needle(self.tokenizer, rng, length - 1, rng.random())
        answer = [*answer, self.tokenizer.control.endoftext]
        if not self.answers:
            prompt, answer = [], [*prompt, *answer]
        return completion_sample(prompt, answer, source="needle")


Predict = Callable[[PackedBatch], Any]
"""Rows of one document each -> int [n], the first choice at each place whose label counts, in order."""


def choices(model: Qwen3, forward: Callable[[BatchTensors], Any] | None = None) -> Predict:
    run, head = forward or Forward(model), (model.embed_tokens if model.lm_head is None else model.lm_head).weight

    @torch.no_grad()
    def predict(batch: PackedBatch) -> Any:
        tensors = to_tensors(batch, model.device)
        hidden = run(tensors)[0].flatten(0, 1)[tensors.places]
        return (hidden @ head.T).argmax(-1).cpu().numpy()

    return predict


def needle_test(
    predict: Predict,
    tokenizer: Tokenizer,
    lengths: Sequence[int],
    depths: Sequence[float] = DEPTHS,
    count: int = 20,
    seed: int = 0,
) -> dict[str, Any]:
    """{"accuracy", "interval": (low, high) of 95 %, "of", "lengths": {length: {depth: share}}}; `count` needles at each
    length and depth. The needles depend on seed, length and depth alone. Raises UsageError as `needle`."""
    cells: dict[str, dict[str, float]] = {}
    right = 0
    for length in lengths:
        cells[str(length)] = {}
        for depth in depths:
            found = sum(
                _right(predict, *needle(tokenizer, random.Random(f"{seed}/{length}/{depth}/{i}"), length, depth))
                for i in range(count)
            )
            cells[str(length)][f"{depth:g}"] = found / count
            right += found
    of = len(lengths) * len(depths) * count
    return {"accuracy": right / of, "interval": interval(right, of), "of": of, "lengths": cells}


def _right(predict: Predict, prompt: list[int], answer: list[int]) -> bool:
    sample = completion_sample(prompt, answer)
    batch = pack([sample], 1, len(sample), 0)[0]
    return bool((np.asarray(predict(batch)) == batch.labels[batch.labels != IGNORED]).all())


def long_claim(
    model: Qwen3,
    tokenizer: Tokenizer,
    base: int,
    *,
    times: int = 4,
    factor: float = 4.0,
    count: int = 20,
    seed: int = 0,
) -> dict[str, Any]:
    """The claim of the long stage: needles found at `times` the length `base` of general pretraining, to which the long
    stage trained, and at `factor` times more under YaRN; {"native", "yarn"} as `needle_test`, and "holds": whether both
    are at least 0.95."""
    predict, trained = choices(model), base * times
    native = needle_test(predict, tokenizer, [trained], count=count, seed=seed)
    with stretched(model, factor, trained):
        yarn = needle_test(predict, tokenizer, [int(trained * factor)], count=count, seed=seed)
    return {"native": native, "yarn": yarn, "holds": min(native["accuracy"], yarn["accuracy"]) >= 0.95}


def main(words: Sequence[str] | None = None) -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder, tag or hub id")
    parser.add_argument("--length", type=int, action="append", help="tokens of a text; may stand there several times")
    parser.add_argument(
        "--base", type=int, help="instead: length of general pretraining, for the claim of the long stage"
    )
    parser.add_argument("--depth", type=float, action="append", help="from 0 to 1 (default: five of them)")
    parser.add_argument("--factor", type=float, default=1.0, help="of YaRN; 1: none (with --base: 4)")
    parser.add_argument("--original", type=int, help="length that YaRN starts from (default: the config's)")
    parser.add_argument("--count", type=int, default=20, help="texts for each length and depth")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    if bool(args.length) is bool(args.base):
        parser.error("give --length or --base")
    found = resolve(args.model)
    device = best_device()
    model = load_model(found.path, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    tokenizer, _ = find_tokenizer(found, ModelConfig.from_pretrained(found.path))
    if args.base:
        factor = args.factor if args.factor > 1 else 4.0
        result = long_claim(model, tokenizer, args.base, factor=factor, count=args.count, seed=args.seed)
    else:
        with stretched(model, args.factor, args.original):
            depths = args.depth or DEPTHS
            result = needle_test(choices(model), tokenizer, args.length, depths, args.count, args.seed)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
