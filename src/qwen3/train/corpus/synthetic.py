"""Texts that a model writes from texts: said in other words, as questions and answers, as a chapter of a textbook.

    report = synthesize(llm, read("docs/"), "textbook.jsonl", style="textbook")
    qwen3 train corpus sources=docs,textbook.jsonl …

The ideas are those of WRAP (Maini et al. 2024, arXiv 2401.16380: rephrasing in several styles), of Cosmopedia and phi-1
(Gunasekar et al. 2023, arXiv 2306.11644: textbooks), and of the Qwen3 report (arXiv 2505.09388, section 3.1: textbooks,
questions and answers made by earlier models). What the model made is a source like any other: it goes through the
filters, and is weighed against real text by the mixture.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qwen3.chat import ThinkingPolicy
from qwen3.checkpoint.journal import write_atomic
from qwen3.engine.params import SamplingParams
from qwen3.errors import UsageError
from qwen3.llm import LLM, Generation
from qwen3.train.corpus.documents import Document
from qwen3.train.corpus.exact import document_hash, paragraphs
from qwen3.train.parts import all_rows, begin_parts, missing_parts, write_rows
from qwen3.train.run import duration

STYLES = {
    "rephrase": "Say the following text in other words, in clear and well-written prose. Keep every fact and add none. "
    "Reply with the new text alone.\n\n{text}",
    "questions": "Write questions about the following text, each followed by its answer, so that a reader learns what "
    "the text says. The answers must follow from the text. Reply with the questions and answers alone, as lines that "
    "begin with `Question:` and `Answer:`.\n\n{text}",
    "textbook": "Write a section of a textbook that teaches what the following text is about: define the terms, "
    "explain step by step, give an example, end with a short exercise and its solution. Reply with the section alone."
    "\n\n{text}",
}
VERDICTS = ("accepted", "empty", "cut", "copied", "refused")
"""accepted: written. empty: no visible text. cut: ended from outside (length, budget, loop). copied: the passage
itself. refused: by `check`."""

Check = Callable[[Document, str], bool]
"""(the passage it was made from, the model's text) -> whether it is good."""


@dataclass(frozen=True)
class Synthesis:
    """documents, passages: that were read. verdicts: of all answers. tokens: sampled. seconds: of this call."""

    path: Path
    documents: int
    passages: int
    verdicts: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        said = ", ".join(f"{name} {self.verdicts[name]:,}" for name in VERDICTS if self.verdicts.get(name))
        return f"{self.path}: {self.documents:,} documents, {self.passages:,} passages; {said}; {self.tokens:,} tokens"


def synthesize(
    llm: LLM,
    documents: Iterable[Document],
    path: str | Path,
    style: str = "rephrase",
    *,
    samples: int = 1,
    check: Check | None = None,
    passage: int = 4000,
    thinking: bool = False,
    sampling: SamplingParams | None = None,
    seed: int = 0,
    chunk: int = 64,
    adapter: str | None = None,
    tell: Callable[[str], None] | None = None,
) -> Synthesis:
    """Write a JSONL of the accepted texts, in the form that `readers.read` reads, `….rejected.jsonl` of the others, and
    `….report.json`.

    style: one of STYLES, or a prompt of your own with `{text}` in it. samples: texts for each passage. passage: most
    characters of a prompt's text; a longer document becomes several, cut between paragraphs, lines or words. check:
    judges what the model wrote. thinking: whether it may think before. chunk: passages that are in work at once, and
    are lost where the process is killed: a call with the same arguments goes on. The files appear when all is done.

    Raises UsageError for what is wrong in the arguments, and where an unfinished run has others.
    """
    path, began = Path(path), time.monotonic()
    for name, value in (("samples", samples), ("passage", passage), ("chunk", chunk)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{name} must be a whole number from 1, not {value!r}")
    template = STYLES.get(style, style)
    if "{text}" not in template:
        raise UsageError(f"style is one of {', '.join(STYLES)}, or a prompt with {{text}} in it, not {style!r}")
    found = list(documents)
    cut = [part for document in found for part in passages(document, passage)]
    if not cut:
        raise UsageError("there is no text in the documents to write from")
    digest = hashlib.sha256("\0".join(f"{part.id}\0{part.text}" for part in cut).encode()).hexdigest()[:16]
    params = replace(sampling or SamplingParams(), n=samples)
    parts = begin_parts(path.with_name(path.name + ".parts"), {
        "documents": digest, "template": template, "samples": samples, "passage": passage, "thinking": thinking,
        "sampling": repr(params), "seed": seed, "chunk": chunk, "adapter": adapter,
    })  # fmt: skip
    policy, made = ThinkingPolicy(mode="on" if thinking else "off"), 0
    label = style if style in STYLES else "own"
    for number, file, group in missing_parts(parts, cut, chunk):
        prompts = [[{"role": "user", "content": template.replace("{text}", part.text)}] for part in group]
        own = replace(params, seed=random.Random(f"{seed}/{number}").getrandbits(53))
        answers = llm.chat_batch(prompts, policy, own, adapter=adapter)
        write_rows(file, (
            _row(part, answer, i, label, check)
            for part, given in zip(group, answers, strict=True)
            for i, answer in enumerate(given if isinstance(given, list) else [given])
        ))  # fmt: skip
        made += len(group)
        if tell is not None:
            done, gone = number * chunk + len(group), time.monotonic() - began
            left = duration(gone / made * (len(cut) - done))
            tell(f"{done:,} of {len(cut):,} passages · {duration(gone)} gone · {left} left")
    return _join(path, parts, len(found), len(cut), began)


def passages(document: Document, longest: int) -> Iterator[Document]:
    """The document in pieces of at most so many characters, cut between paragraphs, else lines, else words, else
    anywhere; their ids end in #1, #2, … where there are several."""
    pieces: list[str] = []
    for part in _pieces(paragraphs(document.text), "\n\n", longest):
        if pieces and len(pieces[-1]) + 2 + len(part) <= longest:
            pieces[-1] += "\n\n" + part
        else:
            pieces.append(part)
    for number, piece in enumerate(pieces, 1):
        yield replace(document, text=piece, id=f"{document.id}#{number}" if len(pieces) > 1 else document.id)


def _pieces(parts: list[str], joint: str, longest: int) -> Iterator[str]:
    finer = {"\n\n": "\n", "\n": " "}
    for part in parts:
        if len(part) <= longest:
            yield part
        elif joint not in finer:
            yield from (part[i : i + longest] for i in range(0, len(part), longest))
        else:
            line, joint_below = "", finer[joint]
            for piece in _pieces(part.split(joint_below), joint_below, longest):
                if line and len(line) + len(joint_below) + len(piece) > longest:
                    yield line
                    line = piece
                else:
                    line = f"{line}{joint_below}{piece}" if line else piece
            if line:
                yield line


def _row(part: Document, answer: Generation, sample: int, style: str, check: Check | None) -> dict[str, Any]:
    text = answer.content.strip()
    return {
        "text": text, "id": f"{style}:{part.id}:{sample}", "from": part.id, "source": part.source, "style": style,
        "verdict": _verdict(part, answer, text, check), "tokens": len(answer.ids),
    }  # fmt: skip


def _verdict(part: Document, answer: Generation, text: str, check: Check | None) -> str:
    ended_by = answer.thinking.ended_by if answer.thinking else None
    if answer.finish_reason != "stop" or ended_by not in ("natural", None):
        return "cut"
    if not text:
        return "empty"
    if document_hash(text) == document_hash(part.text):
        return "copied"
    return "accepted" if check is None or check(part, text) else "refused"


def _join(path: Path, parts: Path, documents: int, passages: int, began: float) -> Synthesis:
    verdicts: Counter[str] = Counter()
    tokens = 0
    for row in all_rows(parts):
        verdicts[row["verdict"]] += 1
        tokens += row["tokens"]
    made = Synthesis(path, documents, passages, dict(verdicts), tokens, time.monotonic() - began)
    report = {"documents": documents, "passages": passages, "verdicts": made.verdicts, "tokens": tokens}
    write_atomic(path.with_suffix(".report.json"), [json.dumps(report, indent=1).encode() + b"\n"])
    for name, accepted in ((path.with_suffix(".rejected.jsonl"), False), (path, True)):
        write_rows(name, (row for row in all_rows(parts) if (row["verdict"] == "accepted") is accepted))
    shutil.rmtree(parts)
    return made
