"""The plain text as shards: python -m recipes.embedded_v1.text [--text runs/text] [--out runs/shards]

`fetch_text.py` wrote passages in the order of their documents. `short` holds them joined to up to 2,500 characters,
`long` to 13,000, for the far end of the context.
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from qwen3.tokenizer import Tokenizer
from qwen3.train.corpus.shards import Shards, write_shards
from recipes.embedded_v1.mixture import LENGTH, tokenizer

LENGTHS = {"short": (300, 2500), "long": (9000, 13000)}  # characters; the least of a document is drawn between these
_BATCH = 2000


@cache
def passages(folder: str) -> tuple[tuple[str, str], ...]:
    """(source, text) of all passages that `fetch_text.py` wrote."""
    found = []
    for path in sorted(Path(folder).glob("*.jsonl.xz")):
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            found += [(row["source"], row["text"]) for row in map(json.loads, lines)]
    if not found:
        raise FileNotFoundError(f"{folder} holds no *.jsonl.xz: run recipes/embedded_v1/fetch_text.py first")
    return tuple(found)


def joined(folder: str, low: int, high: int) -> Iterator[str]:
    """Passages that follow each other in a source, until a length between low and high is reached."""
    rng, parts, size, wanted, last = random.Random("joined"), list[str](), 0, low, ""
    for source, text in passages(folder):
        if parts and (size >= wanted or source != last):
            yield "\n".join(parts)
            parts, size, wanted = [], 0, rng.randint(low, high)
        parts.append(text)
        size += len(text)
        last = source
    yield "\n".join(parts)


def documents(tok: Tokenizer, texts: Iterator[str]) -> Iterator[list[int]]:
    """Their ids with `<|endoftext|>`; what does not fit the context is cut there."""
    batch: list[str] = []

    def encoded() -> Iterator[list[int]]:
        for ids in tok.encode_batch(batch):
            yield [*ids[: LENGTH - 1], tok.control.endoftext]
        batch.clear()

    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH:
            yield from encoded()
    yield from encoded()


def build(text: str, out: str | Path) -> dict[str, Shards]:
    """Both folders, or what is there already. Raises FileNotFoundError where there is no text."""
    tok, found = tokenizer(), {}
    for name, (low, high) in LENGTHS.items():
        about = {"text": "recipes/embedded_v1/fetch_text.py", "characters": [low, high]}
        found[name] = write_shards(Path(out) / name, documents(tok, joined(text, low, high)), tok, sources=about)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", default="runs/text")
    parser.add_argument("--out", default="runs/shards")
    args = parser.parse_args()
    for name, shards in build(args.text, args.out).items():
        print(f"{name}: {len(shards):,} documents, {shards.tokens:,} tokens, {shards.bytes:,} bytes of text")


if __name__ == "__main__":
    main()
