"""What is done to a part of a corpus by itself, in a worker process or here: files in, files and tallies out.

`prepare` cleans, filters and hashes documents; once duplicates are known among all parts, `finish` drops them, looks
for evaluation sets and makes tokens. A part's `.json` is written last: with it, the part is done.
"""

from __future__ import annotations

import dataclasses
import io
import json
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3.checkpoint.journal import write_atomic
from qwen3.errors import Qwen3Error, UsageError
from qwen3.tokenizer import Tokenizer
from qwen3.train.corpus.clean import clean
from qwen3.train.corpus.decontaminate import Decontaminator
from qwen3.train.corpus.documents import Document, Filter
from qwen3.train.corpus.exact import document_hash, paragraph_hashes, without_paragraphs
from qwen3.train.corpus.minhash import MinHash
from qwen3.train.corpus.tally import Tally

_STORED = ("text", "id", "source", "language")


@dataclass(frozen=True)
class Work:
    """folder: of the parts, with `tokenizer/`. near: None: near duplicates are not looked for. paragraphs: whether
    those are compared, too."""

    folder: Path
    filters: tuple[Filter, ...]
    exact: bool
    paragraphs: bool
    near: MinHash | None
    against: Decontaminator | None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_pretrained(self.folder / "tokenizer")

    def path(self, number: int, what: str) -> Path:
        return self.folder / f"{number:06d}.{what}"

    def prepare(self, number: int, documents: Sequence[Document]) -> None:
        """Writes the part's documents that stay, their hashes, and its tally."""
        tally = Tally(["clean", *(judge.name for judge in self.filters)])
        kept = [found for document in documents if (found := self._judge(document, tally)) is not None]
        arrays: dict[str, NDArray[Any]] = {"bytes": np.array([_size(found) for found in kept], dtype=np.int64)}
        if self.exact:
            hashes = b"".join(document_hash(found.text) for found in kept)
            arrays["exact"] = np.frombuffer(hashes, np.uint8).reshape(-1, 16)
        if self.paragraphs:
            own = [paragraph_hashes(found.text) for found in kept]
            arrays["paragraphs"] = np.concatenate([np.zeros(0, np.uint64), *own])
            arrays["paragraph_counts"] = np.array([len(hashes) for hashes in own], dtype=np.int64)
        if self.near is not None:
            signatures = [self.near.signature(found.text) for found in kept]
            arrays["near"] = np.array(signatures, dtype=np.uint32).reshape(len(kept), self.near.permutations)
        rows = ({name: getattr(found, name) for name in _STORED} for found in kept)
        write_atomic(self.path(number, "jsonl"), (json.dumps(row).encode() + b"\n" for row in rows))
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        write_atomic(self.path(number, "npz"), [buffer.getvalue()])
        write_atomic(self.path(number, "json"), [json.dumps(tally.to_dict()).encode()])

    def _judge(self, document: Document, tally: Tally) -> Document | None:
        step, size = tally.steps["clean"], _size(document)
        step.take(size)
        text, counts = clean(document.text)
        for name, count in counts.items():
            tally.count(name, count)
        if not text:
            step.drop("empty", size, document.id)
            return None
        step.changed += bool(counts)
        found: Document | str = dataclasses.replace(document, text=text)
        for judge in self.filters:
            assert isinstance(found, Document)
            before, step = found, tally.steps[judge.name]
            size = _size(before)
            step.take(size)
            found = judge(before)
            if isinstance(found, str):
                step.drop(found, size, document.id)
                return None
            step.changed += found.text != before.text
        assert isinstance(found, Document)
        return found

    def documents(self, number: int) -> Iterator[Document]:
        with self.path(number, "jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                yield Document(**json.loads(line))

    def finish(
        self, number: int, keep: NDArray[np.bool_], paragraphs: Sequence[NDArray[np.bool_]] | None
    ) -> tuple[list[NDArray[np.int32]], dict[str, Any]]:
        """keep: which of its documents are no duplicates; paragraphs: of each of its documents, which stay. Returns the
        ids of the documents that are left, each ended by `<|endoftext|>`, and {"tally", "hits"}."""
        names = ["paragraphs"] * self.paragraphs + ["decontaminate"] * (self.against is not None)
        tally = Tally([*names, "kept"])
        ids, hits, end = [], [], self.tokenizer.control.endoftext
        for i, document in enumerate(self.documents(number)):
            if not keep[i]:
                continue
            text, size = document.text, _size(document)
            if paragraphs is not None:
                step = tally.steps["paragraphs"]
                step.take(size)
                text = without_paragraphs(text, paragraphs[i])
                if not text:
                    step.drop("nothing left", size, document.id)
                    continue
                step.changed += text != document.text
                size = len(text.encode())
            if self.against is not None:
                step = tally.steps["decontaminate"]
                step.take(size)
                if (hit := self.against.find(text)) is not None:
                    step.drop(f"holds {hit.item.set}", size, document.id)
                    hits.append({"document": document.id, "source": document.source, "set": hit.item.set,
                                 "item": hit.item.id, "overlap": round(hit.overlap, 4), "by": hit.by})  # fmt: skip
                    continue
            tally.steps["kept"].take(size)
            tally.count(f"bytes kept of {document.source}", size)
            ids.append(np.array([*self.tokenizer.encode_plain(text), end], dtype=np.int32))
        return ids, {"tally": tally.to_dict(), "hits": hits, "documents": len(ids)}


def _size(document: Document) -> int:
    return len(document.text.encode())


# Worker processes

_work: Work | None = None


def _begin(work: Work) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is one of us for each core
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(name: str, arguments: tuple[Any, ...]) -> Any:
    assert _work is not None
    return getattr(_work, name)(*arguments)


Mapper = Callable[[str, Iterable[tuple[Any, ...]]], Iterator[Any]]
"""(method of Work, arguments of each call) -> results in order, calls begun a few ahead."""


@contextmanager
def mapper(work: Work, workers: int) -> Iterator[Mapper]:
    """workers: processes; 1: all is done here."""
    if workers == 1:
        yield lambda name, calls: (getattr(work, name)(*arguments) for arguments in calls)
        return
    try:
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (work,))
    except (OSError, ValueError) as error:
        raise UsageError(f"workers={workers}: no processes can be started ({error}); workers=1 does without") from None

    def ahead(name: str, calls: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        waiting: deque[Future[Any]] = deque()
        for arguments in calls:
            waiting.append(pool.submit(_call, name, arguments))
            if len(waiting) > workers + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    try:
        yield ahead
    except BrokenProcessPool:
        raise Qwen3Error(
            "a worker process ended by itself, perhaps for want of memory: start the run again, with fewer workers or "
            "smaller part_bytes if it happens again"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
