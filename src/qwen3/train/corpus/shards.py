"""Tokenised documents on disk: ids end to end in files that are mapped into memory, never read whole.

A folder holds, for shard 00000, 00001, …: `N.tokens`, the ids as little-endian uint16 or uint32 (by the vocabulary);
`N.index`, little-endian int64: where documents begin in it [documents + 1], then their UTF-8 bytes [documents]. And
`manifest.json`, written last, with the size and SHA-256 of each file: a folder without it is unfinished.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3.checkpoint.journal import write_atomic
from qwen3.errors import CorruptFileError, ModelNotFoundError, UsageError
from qwen3.tokenizer import Tokenizer
from qwen3.train.manifests import MANIFEST, begun, clear_marks, fingerprint, finish, mark_done, read_json

FORMAT = "qwen3-shards-1"
_CHUNK = 1 << 22

Ids = Sequence[int] | NDArray[np.int32]
Documents = Iterable[Ids] | Callable[[int], Iterable[Ids]]
"""The ids of each document in order; or a function that gives them from document number n on, so that a run which goes
on need not make those again that are on disk."""


def write_shards(
    folder: str | Path,
    documents: Documents,
    tokenizer: Tokenizer,
    *,
    sources: Mapping[str, Any] | None = None,
    shard_tokens: int = 1 << 24,
    tell: Callable[[int, int], None] | None = None,
) -> Shards:
    """Write the documents, or go on behind the last whole shard of a call that was killed: the bytes are the same.

    The ids are stored as given: end a document with `<|endoftext|>` to have it there. Bytes are counted by the ids:
    what their tokens spell, control tokens none. sources: JSON that says what the documents are; kept in the manifest.
    shard_tokens: a shard ends with the document that reaches so many. tell(documents, tokens): after each shard.

    Raises UsageError for a document without ids, with an id outside the vocabulary, where there is no document, and for
    a folder that holds shards, whole or begun, of another tokenizer, `sources` or size.
    """
    folder, lengths = Path(folder), _token_bytes(tokenizer)
    about = {
        "format": FORMAT, "dtype": "uint16" if len(lengths) <= 1 << 16 else "uint32", "vocabulary": len(lengths),
        "tokenizer": tokenizer_fingerprint(tokenizer), "shard_tokens": shard_tokens,
        "sources": json.loads(json.dumps(sources or {})),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    done = begun(folder, about, "shards that were made with", _read_manifest)
    if (folder / MANIFEST).exists():
        clear_marks(folder)
        return Shards(folder)
    first = sum(entry["documents"] for entry in done)
    tokens = sum(entry["tokens"] for entry in done)
    rest = iter(documents(first) if callable(documents) else islice(documents, first, None))
    while (entry := _write_shard(folder, len(done), first, rest, about, lengths)) is not None:
        done.append(entry)
        first, tokens = first + entry["documents"], tokens + entry["tokens"]
        if tell is not None:
            tell(first, tokens)
    if not done:
        raise UsageError(f"{folder}: there is no document to write")
    whole = about | {name: sum(entry[name] for entry in done) for name in ("documents", "tokens", "bytes")}
    finish(folder, whole | {"shards": done})
    clear_marks(folder)
    return Shards(folder)


class Shards(Sequence[NDArray[np.int32]]):
    """Documents by number: int32 [n], a copy. Opening reads the manifest and the indexes; processes that are given a
    `Shards` open it anew.

    tokens, bytes: of all documents; bits per byte divide by the latter. fingerprint: changes with any byte of any file.
    Raises ModelNotFoundError for a folder without shards; CorruptFileError naming the file that is unfinished, of the
    wrong size, or altered (token files are compared with their SHA-256 by `verify`); UsageError where `tokenizer` is
    given and is not the one that made them.
    """

    def __init__(self, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
        self.folder = Path(folder)
        about = self.about = _read_manifest(self.folder)
        if tokenizer is not None and about["tokenizer"] != tokenizer_fingerprint(tokenizer):
            raise UsageError(
                f"{self.folder} was made with another tokenizer (vocabulary {about['vocabulary']:,}) than "
                f"{tokenizer!r}: make the shards anew with the model's own"
            )
        self.tokens, self.bytes = int(about["tokens"]), int(about["bytes"])
        self.vocabulary = int(about["vocabulary"])
        self._dtype = np.dtype(about["dtype"]).newbyteorder("<")
        self.fingerprint = fingerprint(about)
        self._offsets: list[NDArray[np.int64]] = []
        sizes = []
        for entry in about["shards"]:
            _check_size(self._path(entry, "tokens"), entry["tokens"] * self._dtype.itemsize)
            offsets, own = self._index(entry)
            self._offsets.append(offsets)
            sizes.append(own)
        self.byte_counts: NDArray[np.int64] = np.concatenate(sizes)
        """UTF-8 bytes of each document, int64 [documents]."""
        self.lengths: NDArray[np.int64] = np.concatenate([np.diff(offsets) for offsets in self._offsets])
        """Tokens of each document, int64 [documents]."""
        self._firsts = np.cumsum([0, *(len(own) for own in sizes)])
        if len(self) != about["documents"] or self.lengths.sum() != self.tokens or self.byte_counts.sum() != self.bytes:
            raise CorruptFileError(f"{self.folder / MANIFEST}: its sums are not those of its shards; make them anew")

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        at = int(number) + (len(self) if number < 0 else 0)
        if not 0 <= at < len(self):
            raise IndexError(f"document {number} of {len(self):,}")
        shard = int(np.searchsorted(self._firsts, at, side="right")) - 1
        start, stop = self._offsets[shard][at - self._firsts[shard] :][:2]
        return self._maps[shard][start:stop].astype(np.int32)

    def __reduce__(self) -> tuple[Any, ...]:
        return Shards, (self.folder,)

    def verify(self) -> None:
        """Read all of it: SHA-256 of each token file, and its ids within the vocabulary. Raises CorruptFileError."""
        for entry, ids in zip(self.about["shards"], self._maps, strict=True):
            path, digest = self._path(entry, "tokens"), hashlib.sha256()
            for start in range(0, len(ids), _CHUNK):
                part = np.asarray(ids[start : start + _CHUNK])
                digest.update(part.tobytes())
                if part.max() >= self.vocabulary:
                    raise CorruptFileError(f"{path}: id {part.max()} is outside the vocabulary of {self.vocabulary:,}")
            if digest.hexdigest() != entry["sha256"]["tokens"]:
                raise CorruptFileError(f"{path}: altered since it was written (its SHA-256 differs); make it anew")

    @cached_property
    def _maps(self) -> list[NDArray[Any]]:
        return [np.memmap(self._path(entry, "tokens"), self._dtype, "r") for entry in self.about["shards"]]

    def _path(self, entry: Mapping[str, Any], what: str) -> Path:
        return self.folder / f"{entry['name']}.{what}"

    def _index(self, entry: Mapping[str, Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        path, count = self._path(entry, "index"), entry["documents"]
        _check_size(path, 8 * (2 * count + 1))
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != entry["sha256"]["index"]:
            raise CorruptFileError(f"{path}: altered since it was written (its SHA-256 differs); make it anew")
        values = np.frombuffer(data, "<i8").astype(np.int64)
        return values[: count + 1], values[count + 1 :]


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """Of the bytes of every token, in order: what ids mean."""
    digest = hashlib.sha256()
    for token in _all_tokens(tokenizer):
        digest.update(len(token).to_bytes(4, "little") + token)
    return digest.hexdigest()[:16]


def _all_tokens(tokenizer: Tokenizer) -> Iterator[bytes]:
    for id in range(tokenizer.vocab_size):
        try:
            yield tokenizer.token_bytes(id)
        except UsageError:  # a gap
            yield b""


def _token_bytes(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """UTF-8 bytes by id [vocabulary]; of control tokens 0: no text holds them."""
    lengths = np.fromiter(map(len, _all_tokens(tokenizer)), np.int64, tokenizer.vocab_size)
    lengths[list(tokenizer.added_tokens)] = 0
    return lengths


def _write_shard(
    folder: Path, number: int, first: int, rest: Iterator[Ids], about: Mapping[str, Any],
    lengths: NDArray[np.int64],
) -> dict[str, Any] | None:  # fmt: skip
    """The next shard's entry of the manifest, or None where no document is left. first: its first document's number."""
    dtype, offsets, sizes = np.dtype(about["dtype"]).newbyteorder("<"), array("q", [0]), array("q")
    digest = hashlib.sha256()

    def parts() -> Iterator[bytes]:
        for document in rest:
            ids = np.asarray(document, dtype=np.int64)
            if ids.ndim != 1 or not len(ids):
                raise UsageError(f"document {first + len(sizes):,} has no ids: leave it out")
            if ids.min() < 0 or ids.max() >= len(lengths):
                raise UsageError(
                    f"document {first + len(sizes):,} has an id outside the vocabulary of {len(lengths):,}"
                )
            sizes.append(int(lengths[ids].sum()))
            offsets.append(offsets[-1] + len(ids))
            data = ids.astype(dtype).tobytes()
            digest.update(data)
            yield data
            if offsets[-1] >= about["shard_tokens"]:
                return

    name = f"{number:05d}"
    write_atomic(folder / f"{name}.tokens", parts())
    if not sizes:
        (folder / f"{name}.tokens").unlink()
        return None
    index = np.array([*offsets, *sizes], dtype="<i8").tobytes()
    write_atomic(folder / f"{name}.index", [index])
    entry = {
        "name": name, "documents": len(sizes), "tokens": offsets[-1], "bytes": sum(sizes),
        "sha256": {"tokens": digest.hexdigest(), "index": hashlib.sha256(index).hexdigest()},
    }  # fmt: skip
    mark_done(folder, number, about, entry)
    return entry


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.exists():
        if not folder.is_dir():
            raise ModelNotFoundError(f"{folder}: there is no such folder of shards")
        begun = any(folder.glob("[0-9]*.tokens")) or any(folder.glob("[0-9]*.done"))
        if begun:
            raise CorruptFileError(f"{folder}: its shards are unfinished (no {MANIFEST}); run what writes them again")
        raise ModelNotFoundError(f"{folder}: no shards here (no {MANIFEST})")
    about = read_json(path)
    fields = {"dtype", "vocabulary", "tokenizer", "documents", "tokens", "bytes", "shards"}
    if about.get("format") != FORMAT or not fields <= about.keys() or about["dtype"] not in ("uint16", "uint32"):
        raise CorruptFileError(f"{path}: not a manifest of {FORMAT}")
    return about


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise CorruptFileError(f"{path}: missing; its manifest lists it: make the shards anew") from None
    if found != size:
        raise CorruptFileError(f"{path}: {found:,} bytes instead of {size:,}, truncated or altered; make it anew")
