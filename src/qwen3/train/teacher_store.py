"""A teacher, and what it said: for each trained token its k most probable tokens and the mass of all others.

A store is a folder of shards (safetensors, mapped into memory, read sample by sample) and `manifest.json`, written
last. A shard holds of n samples with t tokens, m of them trained: `bounds` int64 [n + 1], where samples begin; `ids`
[t]; `trained` uint8 [t]; `places` int64 [n + 1], where their trained tokens begin; `top_ids` [m, k], the most probable
first; `top_logprobs` float16 [m, k]; `tail` float16 [m]. Ids are uint16 where the vocabulary allows, else uint32.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from qwen3.checkpoint import resolve
from qwen3.checkpoint.journal import write_atomic
from qwen3.checkpoint.mode import find_tokenizer
from qwen3.config import ModelConfig
from qwen3.errors import CorruptFileError, ModelNotFoundError, UsageError
from qwen3.model import Qwen3, load_model
from qwen3.tokenizer import Tokenizer
from qwen3.train.corpus.shards import tokenizer_fingerprint
from qwen3.train.distill_losses import top_of
from qwen3.train.feeds import Feed, micro_batches
from qwen3.train.forward import BatchTensors, Forward, to_tensors
from qwen3.train.losses import chunk_for
from qwen3.train.manifests import MANIFEST, begun, clear_marks, fingerprint, finish, mark_done, read_json
from qwen3.train.packing import IGNORED
from qwen3.train.samples import TokenSample

FORMAT = "qwen3-teacher-1"
_NUMBER = "number"  # stream: which sample of a batch a place is of


@dataclass(eq=False)
class Teacher:
    """A network that is never trained. name: for messages."""

    model: Qwen3
    tokenizer: Tokenizer
    name: str = "a network in memory"

    def __post_init__(self) -> None:
        self._forward = Forward(self.model)

    @classmethod
    def load(cls, source: str, device: torch.device) -> Teacher:
        """A checkpoint, by folder, tag, hub id or "embedded", in bf16 on a GPU and float32 elsewhere. Raises what
        `load_model` raises."""
        found = resolve(None if source == "embedded" else source)
        config = ModelConfig.from_pretrained(found.path)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        model = load_model(found.path, device, dtype).requires_grad_(False)
        return cls(model, find_tokenizer(found, config)[0], source)

    @cached_property
    def hash(self) -> str:
        """Of the weights as float32, so that it is the same wherever bf16 weights are loaded."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.named_parameters()):
            digest.update(f"{name} {list(tensor.shape)}".encode())
            for part in tensor.detach().flatten().split(1 << 24):
                digest.update(part.float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def fits(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        """Raises UsageError where its distributions are not over a student's tokens. vocabulary: the student's rows."""
        if tokenizer_fingerprint(self.tokenizer) != tokenizer_fingerprint(tokenizer):
            raise UsageError(
                f"the teacher {self.name} has another tokenizer ({self.tokenizer.vocab_size:,} tokens) than the "
                f"student ({tokenizer.vocab_size:,}): distillation compares token by token and needs the same one"
            )
        if self.model.config.vocab_size < vocabulary:
            raise UsageError(
                f"the teacher {self.name} has {self.model.config.vocab_size:,} rows of vocabulary, fewer than the "
                f"student's {vocabulary:,}: make the student with as many"
            )

    def head(self, rows: int) -> Tensor:
        """[rows, h]: padding rows that the student has not are left out."""
        return (self.model.embed_tokens if self.model.lm_head is None else self.model.lm_head).weight[:rows]

    @torch.no_grad()
    def hidden(self, tensors: BatchTensors) -> Tensor:
        """[rows · length, h], by the forward of training. Experts are the teacher's own choice."""
        return self._forward(replace(tensors, routes=None))[0].flatten(0, 1)

    @torch.no_grad()
    def top(
        self, samples: Sequence[TokenSample], rows: int, k: int, temperature: float, length: int, fixed: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
        """(ids [m, k], log-probabilities [m, k], tail [m]) of the samples' m trained tokens, in their order. rows: of
        the vocabulary. length, fixed: of the packed rows, see `micro_batches`."""
        numbered = [
            TokenSample(s.ids, s.trained, {_NUMBER: np.full(len(s), i, np.float32)}) for i, s in enumerate(samples)
        ]
        found: list[tuple[NDArray[Any], ...]] = []
        for batch in micro_batches(iter(numbered), length, self.tokenizer.control.endoftext, fixed):
            kept = batch.labels != IGNORED
            if not kept.any():
                continue
            tensors, head = to_tensors(batch, self.model.device), self.head(rows)
            top = top_of(self.hidden(tensors)[tensors.places], head, k, temperature, chunk_for(head))
            found.append((batch.streams[_NUMBER][kept], batch.positions[kept], *(t.cpu().numpy() for t in top)))
        if not found:
            return np.zeros((0, k), np.int64), np.zeros((0, k), np.float32), np.zeros(0, np.float32)
        number, position, ids, logprobs, tail = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.lexsort((position, number))
        return ids[order], logprobs[order], tail[order]


def write_store(
    folder: str | Path,
    chunks: int,
    samples: Callable[[int], Sequence[TokenSample]],
    teacher: Teacher,
    tokenizer: Tokenizer,
    *,
    data: Mapping[str, Any],
    rows: int,
    k: int = 64,
    temperature: float = 1.0,
    length: int = 1024,
    tell: Callable[[int, int], None] | None = None,
    over: Callable[[], bool] = lambda: False,
) -> TeacherStore | None:
    """Write a shard for each of the `chunks` of samples, or go on behind the last one of a call that was stopped: the
    bytes are the same. None where `over` said so before all were there.

    samples(i): those of chunk i, always the same; asked for once each, chunks that are on disk not at all. data: JSON
    that says what they are. rows: of the student's vocabulary. k, temperature: of the distributions. length: tokens
    computed at once. tell(shards, samples): after each shard.

    Raises UsageError for a folder with a store, whole or begun, of another teacher, tokenizer, temperature or data, and
    where there is no sample with a trained token.
    """
    folder = Path(folder)
    teacher.fits(tokenizer, rows)
    if not 0 < k < rows or not temperature > 0:
        raise UsageError(f"k={k} must be from 1 to below the vocabulary's {rows:,}, temperature={temperature} above 0")
    about = {
        "format": FORMAT, "teacher": teacher.hash, "tokenizer": tokenizer_fingerprint(tokenizer), "vocabulary": rows,
        "k": k, "temperature": temperature, "data": json.loads(json.dumps(data)), "chunks": chunks,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    done, whole = begun(folder, about, "a teacher's store with", _read_manifest), (folder / MANIFEST).exists()
    for number in range(len(done), 0 if whole else chunks):
        if over():
            return None
        entry = _write_shard(folder, number, samples(number), teacher, rows, k, temperature, length)
        done.append(entry)
        mark_done(folder, number, about, entry)
        if tell is not None:
            tell(number + 1, sum(one["samples"] for one in done))
    if not whole:
        _finish(folder, about, done)
    clear_marks(folder)
    return TeacherStore(folder, tokenizer)


def _finish(folder: Path, about: Mapping[str, Any], done: Sequence[Mapping[str, Any]]) -> None:
    sums = {name: sum(entry[name] for entry in done) for name in ("samples", "tokens", "trained")}
    if not sums["trained"]:
        raise UsageError(f"{folder}: no sample has a trained token; there is nothing to learn from")
    finish(folder, {**about, **sums, "shards": done})


class TeacherStore(Sequence[TokenSample]):
    """Samples by number, with the streams "teacher_ids" [n, k], "teacher_logprobs" [n, k] and "teacher_tail" [n].

    about: the manifest. fingerprint: changes with any byte of any shard. Raises ModelNotFoundError for a folder without
    a store, CorruptFileError naming a file that is unfinished, missing or altered, and UsageError where it was made
    with another tokenizer.
    """

    def __init__(self, folder: str | Path, tokenizer: Tokenizer) -> None:
        self.folder = Path(folder)
        about = self.about = _read_manifest(self.folder)
        if about["tokenizer"] != tokenizer_fingerprint(tokenizer):
            raise UsageError(
                f"{self.folder} was made with another tokenizer than {tokenizer!r}: make the store anew with a teacher "
                "that has the student's"
            )
        for entry in about["shards"]:
            path = self.folder / f"{entry['name']}.safetensors"
            if not path.is_file() or path.stat().st_size != entry["size"]:
                raise CorruptFileError(f"{path}: missing or of another size than {entry['size']:,} bytes; make it anew")
        self.fingerprint = fingerprint(about)
        self._firsts = np.cumsum([0, *(entry["samples"] for entry in about["shards"])])

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        at = int(number) + (len(self) if number < 0 else 0)
        if not 0 <= at < len(self):
            raise IndexError(f"sample {number} of {len(self):,}")
        shard = int(np.searchsorted(self._firsts, at, side="right")) - 1
        file, bounds, places = self._shards[shard]
        one = at - self._firsts[shard]
        whole, part = slice(*bounds[one : one + 2]), slice(*places[one : one + 2])
        trained = file.get_slice("trained")[whole].astype(bool)
        streams = {}
        for name, of in (("ids", "top_ids"), ("logprobs", "top_logprobs"), ("tail", "tail")):
            values = file.get_slice(of)[part].astype(np.float32)
            streams[f"teacher_{name}"] = np.zeros((len(trained), *values.shape[1:]), np.float32)
            streams[f"teacher_{name}"][trained] = values
        return TokenSample(file.get_slice("ids")[whole].astype(np.int32), trained, streams)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sample."""
        return max(int(np.diff(bounds).max(initial=0)) for _, bounds, _ in self._shards)

    def feed(self, seed: int) -> Feed:
        """Samples without end, in a new order every time around."""

        def numbers() -> Iterator[int]:
            for epoch in range(1 << 62):
                yield from Random(f"{seed}/store/{epoch}").sample(range(len(self)), len(self))

        return lambda first, total: (self[i] for i in islice(numbers(), first, total))

    def verify(self) -> None:
        """Raises CorruptFileError for a shard whose SHA-256 is not the manifest's."""
        for entry in self.about["shards"]:
            path = self.folder / f"{entry['name']}.safetensors"
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                    raise CorruptFileError(f"{path}: altered since it was written (its SHA-256 differs); make it anew")

    @cached_property
    def _shards(self) -> list[tuple[Any, NDArray[np.int64], NDArray[np.int64]]]:
        found = []
        for entry in self.about["shards"]:
            path = self.folder / f"{entry['name']}.safetensors"
            try:
                file = safe_open(path, "np")
                found.append((file, file.get_tensor("bounds"), file.get_tensor("places")))
            except SafetensorError as error:
                raise CorruptFileError(f"{path}: no shard of a store ({error}); make it anew") from None
        return found


def _write_shard(
    folder: Path, number: int, samples: Sequence[TokenSample], teacher: Teacher, rows: int, k: int, temperature: float,
    length: int,
) -> dict[str, Any]:  # fmt: skip
    """The shard's entry of the manifest."""
    length = max([length, *map(len, samples)])
    ids, logprobs, tail = teacher.top(samples, rows, k, temperature, length, teacher.model.device.type != "cpu")
    small = np.uint16 if rows <= 1 << 16 else np.uint32
    trained = [sample.trained for sample in samples]
    data = save({
        "bounds": np.cumsum([0, *map(len, samples)], dtype=np.int64),
        "ids": np.concatenate([np.zeros(0, np.int32), *(sample.ids for sample in samples)]).astype(small),
        "trained": np.concatenate([np.zeros(0, bool), *trained]).astype(np.uint8),
        "places": np.cumsum([0, *(int(kept.sum()) for kept in trained)], dtype=np.int64),
        "top_ids": ids.astype(small),
        "top_logprobs": logprobs.astype(np.float16),
        "tail": tail.astype(np.float16),
    })  # fmt: skip
    name = f"{number:05d}"
    write_atomic(folder / f"{name}.safetensors", [data])
    return {
        "name": name, "samples": len(samples), "tokens": sum(map(len, samples)), "trained": len(ids),
        "size": len(data), "sha256": hashlib.sha256(data).hexdigest(),
    }  # fmt: skip


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.exists():
        if any(folder.glob("[0-9]*.done")):
            raise CorruptFileError(f"{folder}: this store is unfinished; run what writes it again")
        raise ModelNotFoundError(f"{folder}: there is no teacher's store here (no {MANIFEST})")
    about = read_json(path)
    if about.get("format") != FORMAT or not {"teacher", "tokenizer", "k", "temperature", "shards"} <= about.keys():
        raise CorruptFileError(f"{path}: not a manifest of {FORMAT}")
    return about
