"""The stage that makes a corpus: raw texts in, shards of tokens out, and a table of what was left out and why.

    qwen3 train corpus sources=docs,more.jsonl,package:python against=tasks out=./text

Documents are read in order and cut into parts; each is cleaned, filtered and hashed by itself. Then duplicates are
found among all, and what is left is compared with evaluation sets, tokenised and written. `OUT/corpus/` has the shards,
`stats.json` and `contamination.jsonl`. A run that was killed goes on to the same bytes, whatever the number of workers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from qwen3.checkpoint.journal import write_atomic
from qwen3.errors import UsageError
from qwen3.tokenizer import Tokenizer
from qwen3.train.corpus.decontaminate import Decontaminator, load_items
from qwen3.train.corpus.documents import Document, Filter
from qwen3.train.corpus.exact import first_documents, first_paragraphs
from qwen3.train.corpus.filters.c4 import C4
from qwen3.train.corpus.filters.code import Code
from qwen3.train.corpus.filters.fineweb import FineWeb
from qwen3.train.corpus.filters.gopher import Gopher
from qwen3.train.corpus.filters.heuristics import Heuristics
from qwen3.train.corpus.filters.language import Language
from qwen3.train.corpus.filters.private import Private
from qwen3.train.corpus.filters.repetition import Repetition
from qwen3.train.corpus.filters.sanity import Sanity
from qwen3.train.corpus.filters.urls import Urls
from qwen3.train.corpus.minhash import MinHash
from qwen3.train.corpus.readers import expand, read_file
from qwen3.train.corpus.shards import Shards, tokenizer_fingerprint, write_shards
from qwen3.train.corpus.tally import SAMPLES, Step, Tally
from qwen3.train.corpus.work import Mapper, Work, mapper
from qwen3.train.manifests import MANIFEST
from qwen3.train.parts import begin_parts, write_rows
from qwen3.train.recipe import Recipe, key
from qwen3.train.run import Run, duration

if TYPE_CHECKING:
    from qwen3.train.start import Job

_MANY = 32 << 20  # bytes of sources from which worker processes are worth their start
_EVERY = 5.0  # seconds between lines of progress


@dataclass(frozen=True)
class Corpus:
    """The stage. Raises UsageError for the first key that is wrong."""

    name: str = "corpus"
    sources: tuple[str, ...] = key((), "files, folders, patterns, package:NAME, package:python; read in this order")
    field: str = key("text", "field that holds the text in rows of .jsonl and .parquet")
    bad_rows: Literal["stop", "skip"] = key("stop", "rows and files without a text: an error, or skipped and counted")
    filters: tuple[str, ...] = key(
        ("sanity", "gopher", "repetition", "fineweb", "private", "urls", "code", "heuristics"),
        "in this order; also language, and c4 for web pages; empty: none",
    )
    sanity: Sanity = key(Sanity, "unreadable characters, encoded data")
    language: Language = key(Language, "languages to keep: language.keep=de,en; best placed before gopher")
    gopher: Gopher = key(Gopher, "length, words, symbols")
    repetition: Repetition = key(Repetition, "lines, paragraphs, n-grams that come again")
    c4: C4 = key(C4, "lines that are no sentences")
    fineweb: FineWeb = key(FineWeb, "lists and menus")
    private: Private = key(Private, "e-mail and IP addresses")
    urls: Urls = key(Urls, "secrets in addresses, documents of addresses")
    code: Code = key(Code, "generated and minified source files")
    heuristics: Heuristics = key(Heuristics, "variety, capitals, compression")
    own: tuple[Filter, ...] = key((), "in Python: filters of your own, after the others")
    exact: bool = key(True, "drop documents that are there already")
    paragraphs: bool = key(False, "drop paragraphs of 40 characters or more that are there already")
    near: float | None = key(0.8, "drop documents so similar (Jaccard, 5 words) to one before; none: keep them")
    permutations: int = key(128, "length of a MinHash signature: 4 bytes of memory each, for every document")
    against: tuple[str, ...] = key((), "evaluation sets that no document may hold: FILE, FILE#FIELD, tasks, tasks:NAME")
    vocabulary: int | None = key(None, "tokenise with the first so many ids alone, control tokens among them")
    shard_tokens: int = key(1 << 24, "tokens of a shard")
    part_bytes: int = key(2 << 20, "text that is worked on at once, and is lost where the run is killed")
    workers: int | None = key(None, "processes; none: all cores where the sources are large, else this one")

    def __post_init__(self) -> None:
        for name in ("permutations", "vocabulary", "shard_tokens", "part_bytes", "workers"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UsageError(f"{self.name}.{name} must be a whole number from 1, not {value!r}")
        known = [field.name for field in dataclasses.fields(self) if callable(getattr(self, field.name))]
        if unknown := [name for name in self.filters if name not in known]:
            raise UsageError(f"{self.name}.filters: {unknown[0]} is none of {', '.join(known)}")
        if len({judge.name for judge in self.judges}) < len(self.judges):
            raise UsageError(
                f"{self.name}.filters: two have one name, {', '.join(judge.name for judge in self.judges)}"
            )
        if self.near is not None:
            MinHash(self.near)

    @property
    def judges(self) -> tuple[Filter, ...]:
        return (*(getattr(self, name) for name in self.filters), *self.own)

    def run(self, job: Job) -> dict[str, Any]:
        return run_corpus(self, job)


def recipe() -> Recipe:
    return Recipe("corpus", None, (Corpus(),))


def run_corpus(stage: Corpus, job: Job) -> dict[str, Any]:
    """Make the corpus, or go on where an earlier run stopped. Raises UsageError for wrong keys and where the folder has
    an unfinished run with others, and what `read` raises."""
    if not stage.sources:
        raise UsageError(f"{stage.name}.sources is missing: sources=FOLDER, FILE, 'docs/*.md' or package:NAME")
    folder = job.run.folder / stage.name
    if not (folder / MANIFEST).exists() or not (folder / "stats.json").exists():
        made = _Making(stage, job.run, folder, job.tokenizer)
        if not made.make():
            return {"finished": False}
    shutil.rmtree(_parts(folder), ignore_errors=True)
    stats = json.loads((folder / "stats.json").read_text(encoding="utf-8"))
    shards = Shards(folder)
    job.run.say(f"{folder}: {len(shards):,} documents, {shards.tokens:,} tokens, {shards.bytes / 1e6:,.1f} MB")
    return {"finished": True, "documents": len(shards), "tokens": shards.tokens, "bytes": shards.bytes,
            "read": stats["documents"], "shards": str(folder)}  # fmt: skip


def _parts(folder: Path) -> Path:
    return folder.with_name(folder.name + ".parts")


class _Making:
    """One run of the stage."""

    def __init__(self, stage: Corpus, run: Run, folder: Path, tokenizer: Tokenizer) -> None:
        self.stage, self.run, self.folder = stage, run, folder
        if stage.vocabulary is not None:
            tokenizer = tokenizer.prefix((stage.vocabulary - 26) // 256 * 256)
        self.tokenizer = tokenizer
        self.listings = [expand(spec) for spec in stage.sources]
        files = [(name, path.stat()) for listing in self.listings for path, name in listing.files]
        self.total = sum(about.st_size for _, about in files)
        # Of two runs that differ in these, parts are alike: a bad row ends a run that may not skip it.
        unseen = {"name", "workers", "shard_tokens", "bad_rows", *(judge.name for judge in stage.judges)}
        names = [field.name for field in dataclasses.fields(stage) if field.name not in unseen]
        self.keys = {name: repr(getattr(stage, name)) for name in names} | {"filters": repr(stage.judges)}
        digest = hashlib.sha256(repr([(name, at.st_size, at.st_mtime_ns) for name, at in files]).encode()).hexdigest()
        told = {"files": digest[:16], "tokenizer": tokenizer_fingerprint(tokenizer)}
        self.parts = begin_parts(_parts(folder), self.keys | told)
        tokenizer.save(self.parts / "tokenizer")
        near = MinHash(stage.near, stage.permutations) if stage.near is not None else None
        self.work = Work(self.parts, stage.judges, stage.exact, stage.paragraphs, near, self._sets())
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.workers = stage.workers or (min(8, cores) if self.total >= _MANY else 1)
        self.said = time.monotonic()

    def _sets(self) -> Decontaminator | None:
        if not self.stage.against:
            return None
        found = Decontaminator(item for spec in self.stage.against for item in load_items(spec))
        short = ", ".join(f"{count:,} of {name}" for name, count in found.unchecked.items() if count)
        self.run.say(
            f"{len(found.items):,} items of evaluation sets are looked for"
            + (f"; too short for that: {short}" if short else "")
        )
        return found

    def make(self) -> bool:
        """Whether it is finished; not where the run is over before."""
        with mapper(self.work, self.workers) as calls:
            return self._prepare(calls) and self._finish(calls)

    # Reading, cleaning, filtering

    def _prepare(self, calls: Mapper) -> bool:
        if not (self.parts / "read.json").exists():
            self.run.say(
                f"{self.total / 1e6:,.1f} MB in files; {self.workers} {'processes' * (self.workers > 1) or 'process'}"
            )
            tally = Tally(["read"])
            for listing in self.listings:
                for kind, count in listing.skipped.items():
                    tally.count(f"files skipped ({kind})", count)
            for _ in calls("prepare", self._parts_of(self._read(tally))):
                pass
            if self.run.over:
                return False
            if not self._count:
                raise UsageError(f"{self.stage.name}.sources: there is no document in {', '.join(self.stage.sources)}")
            self._write("read.json", {"parts": self._count, "tally": tally.to_dict()})
        self.count = int(self._load("read.json")["parts"])
        return True

    def _parts_of(self, documents: Iterator[Document]) -> Iterator[tuple[int, list[Document]]]:
        """(number, documents) of the parts that are not there yet."""
        self._count = 0
        while not self.run.over:
            part, size = [], 0
            for document in documents:
                part.append(document)
                size += len(document.text.encode())
                if size >= self.stage.part_bytes:
                    break
            if not part:
                return
            if not self.work.path(self._count, "json").exists():
                yield self._count, part
            self._count += 1

    def _read(self, tally: Tally) -> Iterator[Document]:
        step, began, before = tally.steps["read"], time.monotonic(), 0

        def bad(where: str, reason: str) -> None:
            step.take(0)
            step.drop("bad row", 0, f"{where}: {reason}")

        for listing in self.listings:
            for path, name in listing.files:
                size, inside = path.stat().st_size, 0
                skip = bad if self.stage.bad_rows == "skip" else None
                for document in read_file(path, name, listing.spec, field=self.stage.field, bad=skip):
                    own = len(document.text.encode())
                    step.take(own)
                    inside += own
                    self._progress("reading", (before + min(inside, size)) / self.total, step, began)
                    yield document
                before += size

    def _progress(self, what: str, share: float, step: Step, began: float) -> None:
        now = time.monotonic()
        if now - self.said >= _EVERY:
            self.said, gone = now, now - began
            self.run.say(
                f"{self.stage.name}: {what} {share:.0%} · {step.documents:,} documents · {step.bytes / 1e6:,.1f} MB · "
                f"{step.bytes / 1e6 / max(gone, 1e-9):.2f} MB/s · {duration(gone)} gone · "
                f"{duration(gone * (1 - share) / max(share, 1e-9))} left"
            )

    # Duplicates

    def _duplicates(self) -> tuple[list[NDArray[np.bool_]], list[list[NDArray[np.bool_]]] | None]:
        """Of each part: bool [documents], which stay; and of each of its documents, which paragraphs do."""
        parts = [self._arrays(number) for number in range(self.count)]
        sizes = np.concatenate([part["bytes"] for part in parts])
        ends = np.cumsum([len(part["bytes"]) for part in parts])
        keep = np.ones(len(sizes), dtype=bool)
        tally = Tally([])

        def drop(step: str, reason: str, gone: NDArray[np.int64], first: NDArray[np.int64] | None = None) -> None:
            found = tally.steps[step] = Step(int(keep.sum()), int(sizes[keep].sum()))
            for i, at in enumerate(gone.tolist()):
                shown = len(found.dropped.get(reason, {"samples": ()})["samples"]) < SAMPLES
                like = f" ~ {self._id(int(first[i]), ends)}" if shown and first is not None else ""
                found.drop(reason, int(sizes[at]), self._id(at, ends) + like if shown else "")
            keep[gone] = False

        if self.stage.exact:
            first = first_documents(np.concatenate([part["exact"] for part in parts]))
            drop("exact", "is there already", np.flatnonzero(~first))
        if self.work.near is not None:
            kept = np.flatnonzero(keep)
            groups = self.work.near.groups(np.concatenate([part["near"] for part in parts])[kept])
            again = np.flatnonzero(groups != np.arange(len(kept)))
            drop("near", "is like one before", kept[again], kept[groups[again]])
        self._write("duplicates.json", tally.to_dict())
        if not keep.any():
            self.run.say(self._tally().table())
            raise UsageError(f"{self.stage.name}: every document was dropped; the table above says why")
        paragraphs = None
        if self.stage.paragraphs:
            counts = np.concatenate([part["paragraph_counts"] for part in parts])
            flat = np.concatenate([part["paragraphs"] for part in parts])
            flat[np.repeat(~keep, counts)] = 0  # what is not kept makes nothing a duplicate
            each = first_paragraphs(np.split(flat, np.cumsum(counts)[:-1]))
            paragraphs = [each[start:end] for start, end in zip((0, *ends[:-1]), ends, strict=True)]
        return np.split(keep, ends[:-1]), paragraphs

    def _arrays(self, number: int) -> dict[str, NDArray[Any]]:
        with np.load(self.work.path(number, "npz"), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    def _id(self, at: int, ends: NDArray[np.int64]) -> str:
        part = int(np.searchsorted(ends, at, side="right"))
        start = int(ends[part - 1]) if part else 0
        return next(islice(self.work.documents(part), at - start, None)).id

    # Tokens

    def _finish(self, calls: Mapper) -> bool:
        keep, paragraphs = self._duplicates()
        left, began = int(sum(own.sum() for own in keep)), time.monotonic()
        step = Step()

        def documents(first: int) -> Iterator[NDArray[np.int32]]:
            number = 0
            while (path := self.work.path(number, "done")).exists() and (
                first >= (own := int(json.loads(path.read_text())["documents"]))
            ):
                first, number = first - own, number + 1
            rest = range(number, self.count)
            arguments = ((n, keep[n], paragraphs[n] if paragraphs is not None else None) for n in rest)
            before = sum(int(own.sum()) for own in keep[:number])
            for n, (ids, about) in zip(rest, calls("finish", arguments), strict=True):
                self._write(self.work.path(n, "done").name, about)
                kept = about["tally"]["steps"]["kept"]
                step.documents, step.bytes = step.documents + kept["documents"], step.bytes + kept["bytes"]
                before += int(keep[n].sum())
                self._progress("tokenising", before / left, step, began)
                yield from ids[first:]
                first = 0
                if self.run.over:
                    raise _OverError

        about = {name: value for name, value in self.keys.items() if name not in ("sources", "part_bytes")}
        try:
            write_shards(
                self.folder, documents, self.tokenizer,
                sources={"sources": list(self.stage.sources), "keys": about}, shard_tokens=self.stage.shard_tokens,
            )  # fmt: skip
        except _OverError:
            return False
        tally = self._tally()
        found = [json.loads(self.work.path(number, "done").read_text()) for number in range(self.count)]
        write_rows(self.folder / "contamination.jsonl", (hit for part in found for hit in part["hits"]))
        stats = {"documents": tally.steps["read"].documents, **tally.to_dict()}
        self.run.say(tally.table())
        write_atomic(self.folder / "stats.json", [json.dumps(stats, indent=1).encode() + b"\n"])
        return True

    def _tally(self) -> Tally:
        """Of all that is done."""
        tally = Tally([])
        tally.add(self._load("read.json")["tally"])
        for number in range(self.count):
            tally.add(self._load(self.work.path(number, "json").name))
        tally.add(self._load("duplicates.json"))
        for number in range(self.count):
            if (path := self.work.path(number, "done")).exists():
                tally.add(self._load(path.name)["tally"])
        return tally

    def _load(self, name: str) -> Any:
        return json.loads((self.parts / name).read_text(encoding="utf-8"))

    def _write(self, name: str, value: Any) -> None:
        write_rows(self.parts / name, [value])


class _OverError(Exception):
    """The run is to end: its time is up, or somebody asked."""
