"""Draws the figures of `docs/languages.md` from the newest measurement.

python -m recipes.language_id.page [--figures benchmarks/2026-11-22-language-id.json] [--page docs/languages.md]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from qwen3.train.corpus.language import LANGUAGES

FIGURES = Path("benchmarks/2026-11-22-language-id.json")
PAGE = Path("docs/languages.md")
NAMES = {
    "declaration": "Declaration, held-out articles",
    "mediawiki": "MediaWiki, held-out parts",
    "firefox": "Firefox strings (nothing learned from)",
    "help": "LibreOffice help (nothing learned from)",
    "not learned from": "the last two together",
    "all": "all four",
}
CLOSE = ("hr bs sr sl", "id ms min bjn", "nb da nn sv", "ar apc arz ary acm aeb", "fa prs", "hi awa bho mag mai hne ne",
         "cs sk", "es gl pt ast", "zh-Hans zh-Hant yue", "tt ba kk", "war ceb tl")  # fmt: skip


def _table(head: list[str], rows: list[list[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def drawn(figures: dict[str, Any]) -> str:
    """The part of the page that comes from the measurement, as Markdown."""
    found = figures["collections"]
    parts = [
        "**Macro-F1** (the most probable language, passages of 200 characters at most):",
        _table(
            ["text", "languages", "passages", "macro-F1", "languages at 0.9 or more"],
            [
                [NAMES[n], r["languages"], r["texts"], f"{r['macro_f1']:.3f}", r["at_least_0.9"]]
                for n, r in found.items()
            ],
        ),
        "**Beside other detectors**, each on the languages it knows, ours answering among all of its own; "
        "varieties the other does not tell apart count as one:",
        _table(
            ["detector", "text", "languages", "its macro-F1", "ours", "its texts per CPU second"],
            [
                [
                    name,
                    NAMES[domain],
                    r["languages"],
                    f"{r['macro_f1']:.3f}",
                    f"{r['ours_macro_f1']:.3f}",
                    row["texts_per_second"],
                ]
                for name, row in figures.get("compared", {}).items()
                for domain, r in row.items()
                if isinstance(r, dict)
            ],
        ),
        "**By length** (macro-F1 of passages cut to so many characters):",
        _table(
            ["text", "20", "50", "100", "200"],
            [
                [NAMES[n], *(f"{r[k]['ours']:.3f}" for k in ("20", "50", "100", "200"))]
                for n, r in figures["lengths"].items()
            ],
        ),
        "**Calibration** (all four collections; in bins of the first answer's probability):",
        _table(
            ["said", "right", "passages"],
            [[f"{r['said']:.2f}", f"{r['right']:.2f}", r["texts"]] for r in figures["calibration"]],
        ),
        _sentences(figures),
        "**Close languages** (passages of all four collections, how often one was called another):",
        _close(found["all"]["confusions"]),
        "**Every language** (F1; a dash where there are fewer than five passages):",
        _languages(found),
    ]
    return "\n\n".join(parts)


def _sentences(figures: dict[str, Any]) -> str:
    label, speed = figures["label"], figures["speed"]
    return (
        f"`label` (threshold 0.5) answers {label['answered']:.1%} of the passages and is right in "
        f"{label['right_of_answered']:.1%} of its answers; of {label['other_languages_texts']} passages in languages "
        f'outside the list it calls {label["other_languages_called_und"]:.1%} "und".\n\n'
        f"**Speed**, per second of CPU time ({figures['machine']}): "
        f"{speed['texts_per_second_in_batches']:,} such passages in "
        f"batches ({speed['mb_per_second_batches']} MB/s), {speed['texts_per_second_one_by_one']:,} one by one; a "
        f"100 kB document at {speed['mb_per_second_default_of_100_kb_document']} MB/s (four pieces are read), "
        f"{speed['mb_per_second_whole_100_kb_document']} MB/s when read whole. The model is "
        f"{figures['model_bytes'] / 1e6:.2f} MB and loads in {speed['load_ms']} ms."
    )


def _close(confusions: list[list[Any]]) -> str:
    rows: list[list[object]] = []
    for group in CLOSE:
        codes = group.split()
        inside = [f"{a} → {b} {n}" for a, b, n in confusions if a in codes and b in codes]
        rows.append([", ".join(codes), "; ".join(inside) or "none among the commonest"])
    return _table(["languages", "text in → called, times"], rows)


def _languages(found: dict[str, Any]) -> str:
    domains = ("declaration", "mediawiki", "firefox", "help", "all")
    rows: list[list[object]] = []
    for language in LANGUAGES:
        cells = [found[domain]["per_language"].get(language.code) for domain in domains]
        figures = [f"{cell[0]:.2f}" if cell else "–" for cell in cells]
        rows.append(
            [f"`{language.code}`", language.name, language.family, language.scripts.replace(",", ", "), *figures]
        )
    return _table(["code", "language", "family", "script", "Decl.", "MediaWiki", "Firefox", "help", "all"], rows)


def filled(page: str, figures: dict[str, Any]) -> str:
    """The page with its drawn part replaced. Raises ValueError when it has no markers."""
    before, _, rest = page.partition("<!-- drawn -->\n")
    _, mark, after = rest.partition("<!-- end of drawn -->")
    if not mark:
        raise ValueError("the page has no <!-- drawn --> and <!-- end of drawn -->")
    return f"{before}<!-- drawn -->\n{drawn(figures)}\n{mark}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--figures", type=Path, default=FIGURES)
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    args.page.write_text(filled(args.page.read_text("utf-8"), json.loads(args.figures.read_text("utf-8"))), "utf-8")


if __name__ == "__main__":
    main()
