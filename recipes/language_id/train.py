"""Trains the language model from what `fetch.py` gathered, on a CPU within minutes, and writes it.

    python -m recipes.language_id.train [--texts runs/language/texts.jsonl.xz] [--out runs/language/model.npz]

Per script with several languages: snippets of 20 to 240 characters, as many per language and spread over its sources;
the n-grams that say most about the language are selected; a multinomial logistic regression over them, begun from
their log-ratios, is fitted by full-matrix Adam; weights become signed bytes. Length scaling (temperature) is fitted on
the "tune" documents, which neither the selection nor the regression saw.
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from qwen3.train.corpus.language import _NUMBER, BITS, GROUPS, LANGUAGES, UND, features, prepare

SNIPPETS = 2400  # of a language, at most
OTHERS = 6  # times as many for "und", which is hundreds of languages
ROWS = {"Latn": 60_000, "Cyrl": 24_000, "Arab": 24_000, "Deva": 20_000, "Beng": 5_000, "Hebr": 5_000, "Hani": 16_000}
# Less weight: "und", because it is rarer in real text than in ours; Arabic's dialects and Dari, because their
# translators often wrote the standard language.
RARER = {UND: 0.5, "apc": 0.4, "arz": 0.4, "ary": 0.4, "acm": 0.4, "aeb": 0.25, "prs": 0.4}
STEP = {"Latn": 0.5}  # of the signed bytes, in units of the weights; coarser compresses better
SCRIPTS = {
    language.code: (*language.scripts.split(","), "Hani" if language.code == "ja" else "") for language in LANGUAGES
}


def snippets(path: Path, split: str, count: int, seed: int = 0) -> dict[str, list[str]]:
    """By language, so many texts of consecutive strings of a document, at most so often as the text holds.

    A source's share of a language is the square root of its size, so that large ones do not drown the others.
    """
    documents: dict[str, dict[str, list[list[str]]]] = defaultdict(lambda: defaultdict(list))
    seen: dict[str, set[str]] = defaultdict(set)
    with lzma.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if row["split"] != split:
                continue
            known = seen[row["language"]]
            fresh = [text for text in dict.fromkeys(row["strings"]) if text not in known]
            known.update(fresh)
            if fresh:
                documents[row["language"]][row["source"]].append(fresh)
    rng = random.Random(seed)
    found: dict[str, list[str]] = {}
    for language, sources in sorted(documents.items()):
        sizes = {name: sum(len(text) for document in texts for text in document) for name, texts in sources.items()}
        total = sum(size**0.5 for size in sizes.values())
        wanted = count * (OTHERS if language == UND else 1)
        found[language] = []
        for name, texts in sorted(sources.items()):
            share = min(round(wanted * sizes[name] ** 0.5 / total), sizes[name] // 30)
            weights = np.cumsum([sum(map(len, document)) for document in texts]).tolist()
            for document in rng.choices(texts, cum_weights=weights, k=share):
                found[language].append(snippet(document, rng, int(20 * 12 ** rng.random())))
    return found


def snippet(document: list[str], rng: random.Random, length: int) -> str:
    """About so many characters from somewhere in the document, cut at blanks where there are any."""
    start = rng.randrange(len(document))
    text = " ".join(document[start : start + 12])
    begin = rng.randrange(max(1, len(text) - length))
    begin = text.find(" ", begin, begin + 20) + 1 if begin else 0
    end = text.rfind(" ", begin + length // 2, begin + length)
    return text[begin : end if end > 0 and len(text) > begin + length else begin + length]


class Sparse:
    """Counts of n-grams, a row a text, as compressed rows."""

    def __init__(self, texts: list[str], script: str) -> None:
        buckets, owners = [], []
        for start in range(0, len(texts), 2000):
            found, texts_of = features(prepare(texts[start : start + 2000]), script)
            pairs, counts = np.unique((texts_of + start) << BITS | found, return_counts=True)
            buckets.append(np.stack([pairs & (2**BITS - 1), counts]).astype(np.int32))
            owners.append((pairs >> BITS).astype(np.int32))
        self.columns, self.counts = np.concatenate(buckets, 1)
        self.bounds = np.searchsorted(np.concatenate(owners), np.arange(len(texts) + 1))

    def select(self, keys: np.ndarray) -> None:
        """Only these buckets stay, numbered in their order."""
        place = np.full(2**BITS, -1, np.int32)
        place[keys] = np.arange(len(keys))
        columns = place[self.columns]
        before = np.concatenate([[0], np.cumsum(columns >= 0)])
        self.counts, self.columns = self.counts[columns >= 0], columns[columns >= 0]
        self.bounds = before[self.bounds]

    def rows(self, which: np.ndarray, width: int, power: float) -> torch.Tensor:
        """A sparse matrix of the texts' rows, each scaled by its number of n-grams to the power."""
        lengths = self.bounds[which + 1] - self.bounds[which]
        pointers = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(pointers[-1]) + np.repeat(self.bounds[which] - pointers[:-1], lengths)
        values = self.counts[places].astype(np.float32)
        total = np.add.reduceat(np.append(values, 0), pointers[:-1]) * (lengths > 0)
        values *= np.repeat(np.maximum(total, 1) ** -power, lengths).astype(np.float32)
        return torch.sparse_csr_tensor(
            torch.from_numpy(pointers), torch.from_numpy(self.columns[places].astype(np.int64)),
            torch.from_numpy(values), (len(which), width),
        )  # fmt: skip


def select(data: Sparse, labels: np.ndarray, classes: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The buckets that say most, sorted, and their log-ratios [rows, classes].

    An n-gram's worth is how much its frequencies in the languages differ from their mean: the mutual information of
    n-gram and language, languages taken as equally frequent. It must occur in at least three texts.
    """
    lengths = np.diff(data.bounds)
    label = np.repeat(labels, lengths)
    seen = np.bincount(data.columns, minlength=2**BITS)
    candidates = np.flatnonzero(seen >= 3)
    place = np.full(2**BITS, -1, np.int64)
    place[candidates] = np.arange(len(candidates))
    inside = place[data.columns] >= 0
    flat = place[data.columns[inside]] * classes + label[inside]
    table = np.bincount(flat, minlength=len(candidates) * classes).reshape(-1, classes).astype(np.float32)
    share = table / np.maximum(np.bincount(labels, minlength=classes), 1)  # of a language's texts
    mean = share.mean(1, keepdims=True)
    worth = (share * np.log(np.maximum(share, 1e-9) / mean)).sum(1)
    best = np.sort(np.argsort(-worth, kind="stable")[:rows])
    ratio = np.log((table[best] + 0.3) / (np.bincount(labels, minlength=classes) + 1))
    return candidates[best], ratio - ratio.mean(1, keepdims=True)


def fit(data: Sparse, labels: np.ndarray, start: np.ndarray, rarer: np.ndarray, *, power: float, epochs: int,
        decay: float, seconds: float) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Weights [n-grams, classes] and bias of a logistic regression; stops early when the time is over."""
    generator = np.random.default_rng(0)
    keys, classes = start.shape
    weights = torch.from_numpy(start).float() * 0.5
    bias = torch.zeros(classes)
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in (weights, bias)]
    frequency = np.bincount(labels, minlength=classes)
    importance = torch.from_numpy((frequency.mean() / np.maximum(frequency, 1)) ** 0.5 * rarer).float()
    begun, step, size = time.monotonic(), 0, 1024
    total = epochs * (len(labels) // size + 1)
    while step < total and time.monotonic() - begun < seconds:
        order = generator.permutation(len(labels))
        loss_sum = 0.0
        for first in range(0, len(order), size):
            step += 1
            which = order[first : first + size]
            rows = data.rows(which, keys, power)
            target = torch.from_numpy(labels[which])
            logits = rows @ weights + bias
            log_p = torch.log_softmax(logits, 1)
            weight = importance[target]
            loss_sum += float(-(log_p[torch.arange(len(which)), target] * weight).sum())
            error = log_p.exp()
            error[torch.arange(len(which)), target] -= 1
            error *= (weight / len(which))[:, None]
            gradient = torch.sparse.mm(rows.to_sparse_csc().transpose(0, 1).to_sparse_csr(), error)
            rate = 0.05 * max(0.02, 1 - step / total)
            for parameter, gradient_of, (first_moment, second_moment) in zip(
                (weights, bias), (gradient, error.sum(0)), moments, strict=True
            ):
                first_moment.lerp_(gradient_of, 0.1)
                second_moment.mul_(0.99).addcmul_(gradient_of, gradient_of, value=0.01)
                corrected = (second_moment / (1 - 0.99**step)).sqrt_().add_(1e-8)
                parameter.addcdiv_(first_moment / (1 - 0.9**step), corrected, value=-rate)
            weights.mul_(1 - rate * decay)
        print(f"   step {step}/{total}, loss {loss_sum / len(order):.4f}, {time.monotonic() - begun:.0f} s", flush=True)
    return weights, bias


def calibrate(logits: np.ndarray, numbers: np.ndarray, labels: np.ndarray, power: float) -> tuple[float, float]:
    """Factor and power for which sum * n**-power * factor has the least log-loss; logits are with the given power."""
    best = (np.inf, 1.0, power)
    for new in np.arange(0.2, 1.01, 0.1):
        rescaled = logits * (np.maximum(numbers, 1) ** (power - new))[:, None]
        for factor in 2.0 ** np.arange(-4, 5, 0.25):
            z = rescaled * factor
            z = z - z.max(1, keepdims=True)
            loss = float((np.log(np.exp(z).sum(1)) - z[np.arange(len(labels)), labels]).mean())
            best = min(best, (loss, float(factor), float(new)))
    return best[1], best[2]


def train_script(script: str, texts: dict[str, list[str]], tune: dict[str, list[str]], *, power: float = 0.5,
                 epochs: int = 6, decay: float = 0.02, seconds: float = 300.0) -> dict[str, np.ndarray]:  # fmt: skip
    codes = [code for code, found in texts.items() if len(_in_script(found, code, script)) >= 40]
    pairs = [(text, k) for k, code in enumerate(codes) for text in _in_script(texts[code], code, script)]
    labels = np.array([k for _, k in pairs])
    data = Sparse([text for text, _ in pairs], script)
    keys, start = select(data, labels, len(codes), ROWS[script])
    data.select(keys)
    print(
        f"{script}: {len(codes)} languages, {len(pairs)} texts, {len(keys)} n-grams, {len(data.columns)} counts",
        flush=True,
    )
    rarer = np.array([RARER.get(code, 1.0) for code in codes])
    weights, bias = fit(data, labels, start, rarer, power=power, epochs=epochs, decay=decay, seconds=seconds)
    weights = weights - weights.mean(1, keepdim=True)
    step = STEP.get(script, 0.25)
    quantised = torch.clamp((weights / step).round(), -127, 127).to(torch.int8)
    checks = [(text, k) for k, code in enumerate(codes) for text in _in_script(tune.get(code, []), code, script)]
    held = Sparse([text for text, _ in checks], script)
    held.select(keys)
    which, answers = np.arange(len(checks)), np.array([k for _, k in checks])
    plain = (held.rows(which, len(keys), power) @ (quantised.float() * step)).numpy()
    exact = (held.rows(which, len(keys), power) @ weights).numpy()
    counts = np.concatenate([[0], np.cumsum(held.counts)])
    numbers = counts[held.bounds[1:]] - counts[held.bounds[:-1]]
    factor, new = calibrate(plain + bias.numpy(), numbers, answers, power)
    right = [float(((scores + bias.numpy()).argmax(1) == answers).mean()) for scores in (exact, plain)]
    print(f"   tune accuracy {right[0]:.4f}, as bytes {right[1]:.4f}; factor {factor:.2f}, power {new:.1f}", flush=True)
    return {
        f"{script}.codes": np.array(codes), f"{script}.keys": keys.astype(np.uint32),
        f"{script}.weights": quantised.numpy(), f"{script}.bias": (bias.numpy() * factor).astype(np.float32),
        f"{script}.scale": np.array([step * factor, new], np.float32),
    }  # fmt: skip


def _in_script(texts: list[str], code: str, script: str) -> list[str]:
    """Those mostly in this script, where the language is written in it."""
    if code != UND and script not in SCRIPTS[code]:
        return []
    if not texts:
        return []
    letters = prepare(texts).letters
    least = 0.1 if code == "ja" else 0.6
    number = _NUMBER[script]
    return [
        text for text, row in zip(texts, letters, strict=True) if row[number] >= 4 and row[number] >= least * row.sum()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=Path, default=Path("runs/language/texts.jsonl.xz"))
    parser.add_argument("--out", type=Path, default=Path("runs/language/model.npz"))
    parser.add_argument("--snippets", type=int, default=SNIPPETS)
    parser.add_argument("--seconds", type=float, default=300.0, help="for fitting one script, at most")
    parser.add_argument("--only", nargs="*", default=GROUPS, help="scripts, for trying things out")
    args = parser.parse_args()
    if not args.texts.is_file():
        raise SystemExit(f"{args.texts}: not there; run recipes.language_id.fetch first")
    texts = snippets(args.texts, "train", args.snippets)
    tune = snippets(args.texts, "tune", 200)
    arrays: dict[str, np.ndarray] = {}
    for script in args.only:
        arrays |= train_script(script, texts, tune, seconds=args.seconds)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    part = args.out.with_suffix(".part.npz")
    np.savez_compressed(part, **arrays)  # type: ignore[arg-type]
    part.replace(args.out)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
