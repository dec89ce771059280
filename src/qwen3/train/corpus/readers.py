"""Documents from files, folders, patterns and installed packages, in an order that does not change.

    read("docs/"), read("more/*.jsonl.gz"), read("package:python"), read("package:numpy/*.md")

A text file is one document, and so is a row of a .jsonl or .parquet file (pip install 'qwen3[data]' for pyarrow).
"""

from __future__ import annotations

import fnmatch
import gzip
import importlib.metadata
import json
import lzma
import sysconfig
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from qwen3.errors import CorruptFileError, ModelNotFoundError, UsageError
from qwen3.train.corpus.documents import CODE, Document

PROSE = (".txt", ".md", ".markdown", ".rst")
ROWS = (".jsonl", ".parquet")
_OPEN: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
_PYTHON = "python"  # package:python is the standard library

Bad = Callable[[str, str], None]
"""(where, reason) of a row or file that is no document."""


@dataclass(frozen=True)
class Listing:
    """What a spec names. files: (path, the start of its documents' ids), sorted. skipped: other files, by suffix."""

    spec: str
    files: tuple[tuple[Path, str], ...]
    skipped: Mapping[str, int] = field(default_factory=dict)


def read(spec: str, *, field: str = "text", bad: Bad | None = None) -> Iterator[Document]:
    """The documents of a spec. field: that holds the text in rows. bad: told of rows without it and of files that are
    not UTF-8, which are then left out; None: the first of them is a UsageError.

    Raises ModelNotFoundError for what is not there, UsageError for a file of a suffix that is not known and for Parquet
    without pyarrow, CorruptFileError for a compressed or Parquet file that is cut off or damaged.
    """
    for path, name in expand(spec).files:
        yield from read_file(path, name, spec, field=field, bad=bad)


def read_file(path: Path, name: str, spec: str, *, field: str = "text", bad: Bad | None = None) -> Iterator[Document]:
    """The documents of one file of a spec's listing, as `read`."""
    for item in _read_file(path, name, field):
        if not isinstance(item, tuple):
            yield Document(item.text, item.id, spec, item.language, item.meta)
        elif bad is None:
            raise UsageError(f"{item[0]}: {item[1]} (bad_rows=skip leaves such out and counts them)")
        else:
            bad(*item)


def expand(spec: str) -> Listing:
    """The files of a spec: those of a folder and a pattern by their suffixes, the others counted in `skipped`."""
    if spec.startswith("package:"):
        return _package(spec)
    path = Path(spec).expanduser()
    if path.is_file():
        if not _known(path):
            raise UsageError(f"{path}: {_kind(path) or 'no suffix'} is none of {', '.join(PROSE + CODE + ROWS)}")
        return Listing(spec, ((path, path.name),))
    if path.is_dir():
        return _choose(spec, [(file, file.relative_to(path).as_posix()) for file in path.rglob("*") if file.is_file()])
    if not any(char in spec for char in "*?["):
        raise ModelNotFoundError(f"{spec}: there is no such file or folder")
    root = Path(path.anchor) if path.is_absolute() else Path()
    found = [file for file in root.glob(str(path.relative_to(root))) if file.is_file()]
    return _choose(spec, [(file, file.as_posix()) for file in found])


def _choose(spec: str, found: list[tuple[Path, str]]) -> Listing:
    """Hidden files and those in hidden folders are counted, too, where the spec does not name them."""
    named = {*spec.split("/")}
    shown = [(path, name) for path, name in found if not any(p[:1] == "." and p not in named for p in name.split("/"))]
    files = sorted(((path, name) for path, name in shown if _known(path)), key=lambda item: item[1])
    skipped = Counter(_kind(path) or "no suffix" for path, _ in shown if not _known(path))
    if len(shown) < len(found):
        skipped["hidden"] = len(found) - len(shown)
    if not files:
        raise ModelNotFoundError(f"{spec}: no file there has one of the suffixes {', '.join(PROSE + CODE + ROWS)}")
    return Listing(spec, tuple(files), dict(skipped.most_common()))


def _package(spec: str) -> Listing:
    """package:NAME or package:NAME/PATTERN. NAME: of installed distributions (* and ? allowed), or python."""
    wanted, _, pattern = spec.removeprefix("package:").partition("/")
    found: list[tuple[Path, str]] = []
    if wanted == _PYTHON:
        root = Path(sysconfig.get_path("stdlib"))
        # Its own tests have files in many encodings.
        inside = (
            f for f in root.rglob("*") if "site-packages" not in f.parts and f.relative_to(root).parts[0] != "test"
        )
        found = [(file, f"{_PYTHON}/{file.relative_to(root).as_posix()}") for file in inside if file.is_file()]
    else:
        for package in importlib.metadata.distributions():
            name = package.metadata["Name"] or ""
            if fnmatch.fnmatchcase(_plain(name), _plain(wanted)):
                files = ((Path(str(package.locate_file(file))), file) for file in package.files or ())
                found += [(path, f"{name}/{file.as_posix()}") for path, file in files if path.is_file()]
    if not found:
        raise ModelNotFoundError(f"{spec}: no package {wanted} is installed here (python is the standard library)")
    if pattern:
        found = [item for item in found if fnmatch.fnmatchcase(item[1].partition("/")[2], pattern)]
    return _choose(spec, sorted(set(found)))


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _kind(path: Path) -> str:
    """The suffix that says what a file holds, without that of its compression."""
    return (path.with_suffix("") if path.suffix in _OPEN else path).suffix.lower()


def _known(path: Path) -> bool:
    kind = _kind(path)
    return kind in PROSE + CODE + ROWS and not (kind == ".parquet" and path.suffix in _OPEN)


def _read_file(path: Path, name: str, field: str) -> Iterator[Document | tuple[str, str]]:
    """Its documents, and (where, reason) for what is none."""
    try:
        if _kind(path) == ".parquet":
            yield from _parquet(path, name, field)
            return
        with _OPEN.get(path.suffix, open)(path, "rb") as file:
            if _kind(path) == ".jsonl":
                yield from _jsonl(file, name, field)
                return
            data = file.read()
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise CorruptFileError(f"{path}: cut off or damaged ({error or type(error).__name__}); fetch it anew") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from None
    try:
        yield Document(data.decode("utf-8-sig"), name)
    except UnicodeDecodeError as error:
        yield name, f"not UTF-8 at byte {error.start + 1}"


def _jsonl(file: IO[bytes], name: str, field: str) -> Iterator[Document | tuple[str, str]]:
    for number, line in enumerate(file, 1):
        if not (line := line.removeprefix(b"\xef\xbb\xbf").strip()):
            continue
        where = f"{name}:{number}"
        try:
            row = json.loads(line)
        except UnicodeDecodeError as error:
            yield where, f"not UTF-8 at byte {error.start + 1}"
        except (ValueError, RecursionError) as error:
            yield where, f"not JSON: {error}"
        else:
            yield _row(row, where, field)


def _row(row: Any, where: str, field: str) -> Document | tuple[str, str]:
    if not isinstance(row, dict):
        return where, f"a row must be a JSON object, not {type(row).__name__}"
    text, own, language = row.get(field), row.get("id"), row.get("language")
    if not isinstance(text, str):
        has = f"it has {', '.join(row)[:200]}" if row.get(field) is None else f"it is of type {type(text).__name__}"
        return where, f"no text in the field {field!r} ({has}); field=… names another"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return where, f"a lone surrogate in the field {field!r} at character {error.start}: not valid Unicode"
    rest = {key: value for key, value in row.items() if key not in (field, "id", "language")}
    known = own if isinstance(own, (str, int)) and own != "" else where
    return Document(text, str(known), "", language if isinstance(language, str) else "", rest)


def _parquet(path: Path, name: str, field: str) -> Iterator[Document | tuple[str, str]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError(f"{path}: Parquet needs pyarrow: pip install 'qwen3[data]'") from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if field not in columns:
                raise UsageError(f"{path}: no column {field!r}, only {', '.join(columns)[:200]}; field=… names another")
            wanted = [column for column in (field, "id", "language") if column in columns]
            for batch in file.iter_batches(1024, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield _row(row, f"{name}:{number}", field)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, UsageError):
            raise
        raise CorruptFileError(f"{path}: cut off or damaged ({str(error).splitlines()[0]}); fetch it anew") from None
