"""Speed of each part of the corpus pipeline, near duplicates at scale, and what a run dropped, as one JSON.

    PYTHONPATH=src python tools/corpus_bench.py OUT.json [--corpus RUN] [--documents N]

Parts are timed one by one on the standard library's sources and the installed packages' prose, in one process.
--corpus: the folder of a finished run of the recipe corpus, whose table is copied. --documents: made-up texts for the
near duplicates, a tenth of them edited copies.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import resource
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from qwen3.tokenizer import Tokenizer
from qwen3.train.corpus.clean import clean
from qwen3.train.corpus.decontaminate import Decontaminator, load_items
from qwen3.train.corpus.documents import Document
from qwen3.train.corpus.exact import document_hash
from qwen3.train.corpus.minhash import MinHash
from qwen3.train.corpus.pipeline import Corpus
from qwen3.train.corpus.readers import read


def some_documents(megabytes: float) -> list[Document]:
    """Prose first, then code."""
    found, size = [], 0
    for spec in ("package:*/*.md", "package:python/*.txt", "package:python/[a-h]*.py"):
        for document in read(spec, bad=lambda where, reason: None):
            found.append(document)
            size += len(document.text.encode())
            if size > megabytes * 1e6:
                return found
    return found


def speeds() -> dict[str, float]:
    """MB of UTF-8 per second of processor time. Filters for prose are timed on prose, that for code on code."""
    found = some_documents(8.0)
    texts = [clean(document.text)[0] for document in found]
    near, against = MinHash(), Decontaminator(load_items("tasks"))
    tokenizer = Tokenizer.from_pretrained()
    tokenizer.encode_plain("begin")
    kinds = {True: [d for d in found if d.is_code], False: [d for d in found if not d.is_code]}

    def rate(call: Callable[[Any], Any], items: list[Any], length: Callable[[Any], int]) -> float:
        began = time.process_time()
        for item in items:
            call(item)
        return round(sum(map(length, items)) / 1e6 / (time.process_time() - began), 1)

    def of_text(text: str) -> int:
        return len(text.encode())

    rates = {"clean": rate(clean, [document.text for document in found], of_text)}
    for judge in (*Corpus().judges, Corpus().c4, Corpus().language):
        items = kinds[judge.name == "code"]
        rates[f"filter {judge.name}"] = rate(judge, items, lambda document: of_text(document.text))
    for name, call in (
        ("exact hash", document_hash), ("MinHash signature", near.signature), ("decontaminate", against.find),
        ("tokenise", tokenizer.encode_plain),
    ):  # fmt: skip
        rates[name] = rate(call, texts, of_text)
    return rates


def near_duplicates(count: int) -> dict[str, Any]:
    """Texts of about 1 kB: nine tenths made up, one tenth copies with 1 % of the words changed."""
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(20_000)]
    near, size, texts = MinHash(), 0, []
    began, signing = time.process_time(), 0.0
    signatures = np.empty((count, near.permutations), dtype=np.uint32)
    copies = 0
    for i in range(count):
        if i % 10 == 9:
            words = [rng.choice(vocabulary) if rng.random() < 0.01 else word for word in rng.choice(texts)]
            copies += 1
        else:
            words = rng.choices(vocabulary, k=160)
            if i % 10 == 0:
                texts.append(words)
        text = " ".join(words)
        size += len(text)
        began = time.process_time()
        signatures[i] = near.signature(text)
        signing += time.process_time() - began
    began = time.process_time()
    groups = near.groups(signatures)
    return {
        "documents": count, "megabytes": round(size / 1e6, 1), "copies": copies,
        "found": int((groups != np.arange(count)).sum()), "bands": list(near.bands),
        "seconds": {"signatures": round(signing, 1), "groups": round(time.process_time() - began, 1)},
        "signature_megabytes": round(signatures.nbytes / 1e6, 1),
        "peak_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 0),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--documents", type=int, default=100_000)
    asked = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result: dict[str, Any] = {
        "name": "the corpus pipeline: speed of its parts, near duplicates at scale, what a run dropped",
        "command": "PYTHONPATH=src OMP_NUM_THREADS=1 python tools/corpus_bench.py OUT.json --corpus RUN",
        "machine": "2 shared EPYC cores", "commit": commit,
        "python": platform.python_version(), "numpy": np.__version__,
        "megabytes_per_cpu_second": speeds(), "near_duplicates": near_duplicates(asked.documents),
    }  # fmt: skip
    if asked.corpus is not None:
        log = (asked.corpus / "log.jsonl").read_text(encoding="utf-8").splitlines()
        result["run"] = {
            "command": json.loads(log[0])["command"],
            "summary": json.loads((asked.corpus / "done.json").read_text(encoding="utf-8"))["corpus"],
            "stats": json.loads((asked.corpus / "corpus" / "stats.json").read_text(encoding="utf-8")),
        }
    asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: result[name] for name in ("megabytes_per_cpu_second", "near_duplicates")}, indent=1))


if __name__ == "__main__":
    main()
