"""Where a suite's rows come from: a file or folder that is named, QWEN3_EVAL_DATA, an installed package, the hub.

The first of these that is there counts. All of them may hold the layout that the data set is published in, as JSON,
JSON lines, CSV, TSV (each also with .gz), Parquet or Arrow; a row is a dict, and its "_file" names the file it is from.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import importlib.util
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from qwen3.errors import UsageError
from qwen3.evaluate.types import Item, Reference, Suite

Row = dict[str, Any]
FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
FOLDER = "QWEN3_EVAL_DATA"
SIZES = ("0.6B", "1.7B", "4B", "8B", "14B", "32B", "30B-A3B", "235B-A22B")
REPORT = "Qwen3 Technical Report (arXiv 2505.09388), tables 11-20"
_SPLIT = re.compile(r"(?:^|[/._-])(train|test|validation|valid|val|dev|eval)(?=[/._-])")


class Hub(NamedTuple):
    """A data set on the hub. config, split: words of its files' paths, None: any. revision: a commit, tag or branch."""

    dataset: str
    config: str | None = None
    split: str | None = None
    revision: str = "main"


def rows(
    name: str,
    *,
    local: str | None = None,
    hub: Hub | Sequence[str | None] | None = None,
    package: tuple[str, str] | None = None,
    how: str,
) -> list[Row]:
    """The rows of suite `name`, in the order of their files' names.

    local: a file or folder. package: module and a pattern of files in its folder (it is not imported). hub: what `Hub`
    takes. config and split of `hub` choose among the files of folders, too. how: a sentence that says how to get the
    data. Raises UsageError where there is none, and for a file that is not what its name says.
    """
    where = Hub(*hub) if hub else Hub("")  # type: ignore[arg-type]
    if local is not None:
        if not (root := Path(local).expanduser()).exists():
            raise UsageError(f"{name}: there is no file or folder {local}; {how}")
        return _read(name, root, where)
    if (folder := os.environ.get(FOLDER)) and (dropped := _dropped(Path(folder).expanduser(), name)):
        return _read(name, dropped, where)
    if package and (spec := _spec(package[0])):
        base = Path(next(iter(spec)))
        if files := sorted(base.glob(package[1])):
            return [row for path in files for row in _file(path, path.relative_to(base).as_posix())]
    missing = f"the package {package[0]} " if package else ""
    why = missing and missing + (f"has no {package[1]}" if package and _spec(package[0]) else "is not installed")
    if hub:
        try:
            return _hub(name, where)
        except _NoHubError as error:
            why = f"{why}; {error}" if why else str(error)
    raise UsageError(
        f"{name}: its data is not here. {how} Or name its file or folder (--data), or put it into the folder {FOLDER}"
        f" as {name}/ or {name}.jsonl. ({why})"
    )


def field(row: Row, *names: str) -> Any:
    """The value of the first of these columns that the row has; UsageError where it has none of them."""
    for name in names:
        if name in row:
            return row[name]
    raise UsageError(f"{row.get('_file', 'a row')}: no column {names[0]!r}, only {', '.join(k for k in row)}")


def published(think: str, no_think: str, source: str = REPORT, sizes: Iterable[str] = SIZES) -> tuple[Reference, ...]:
    """References of a table's two lines, one number for each size (blanks between, "-" where there is none)."""
    return tuple(
        Reference(f"Qwen3-{size}", mode, float(value), source)
        for mode, line in (("think", think), ("no-think", no_think))
        for size, value in zip(sizes, line.split(), strict=True)
        if value != "-"
    )


def settings(name: str, text: str | None, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What a generated suite is asked for in place of a file: "count=100,seed=2,lengths=4096+8192". Each value has its
    default's type; lists are joined by "+". Raises UsageError for an unknown name and a wrong value."""
    found = dict(defaults)
    for part in filter(None, (text or "").split(",")):
        key, mark, value = (word.strip() for word in part.partition("="))
        if key not in defaults or not mark:
            known = ", ".join(
                f"{k}={'+'.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in defaults.items()
            )
            raise UsageError(f"{name}: {part!r} is no setting; this suite is generated from {known}")
        default, parts = defaults[key], value.split("+")
        one = default[0] if isinstance(default, tuple) else default
        if isinstance(one, int) and not all(word.isascii() and word.isdecimal() for word in parts):
            raise UsageError(f"{name}: {key}={value!r} is not a whole number, 0 or more")
        values = tuple(int(word) if isinstance(one, int) else word for word in parts)
        if not isinstance(default, tuple) and len(values) > 1:
            raise UsageError(f"{name}: {key} takes one value, not {value!r}")
        found[key] = values if isinstance(default, tuple) else values[0]
    return found


def in_sample(key: str, share: int = 10) -> bool:
    """Whether a row belongs to the sample of one in `share`, by a hash of its key: the same rows everywhere."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % share == 0


def tenth_and_all(suite: Suite, load: Callable[[str | None, bool], list[Item]]) -> tuple[Suite, Suite]:
    """Two suites: the tenth of the questions that `in_sample` draws, as the report drew one, and NAME_full of all of
    them, which no published value is of. load: (source, whether all are wanted)."""
    tenth = replace(suite, title=f"{suite.title}, a tenth", load=lambda local: load(local, False))
    whole = replace(suite, name=f"{suite.name}_full", load=lambda local: load(local, True), references=(), notes="")
    return tenth, whole


def pick(name: str, paths: Iterable[str], where: Hub) -> list[str]:
    """The data files among `paths` (with "/") that are of this config and split, sorted."""
    data = sorted(path for path in paths if _format(path) and not PurePosixPath(path).name.startswith("."))
    chosen = data
    if where.config is not None and len(data) > 1:
        word = re.compile(rf"(?:^|[/._-]){re.escape(where.config)}(?=[/._-])")
        chosen = [path for path in data if word.search(path)]
    if where.split is not None and any(_SPLIT.search(path) for path in chosen):
        chosen = [path for path in chosen if where.split in _SPLIT.findall(path)]
    if data and not chosen:
        raise UsageError(
            f"{name}: no file of {where.config or 'any config'}, {where.split or 'any split'} among "
            f"{', '.join(data[:6])}{' …' if len(data) > 6 else ''}"
        )
    return chosen


class _NoHubError(Exception):
    """The hub has nothing to give here, and why."""


def _dropped(folder: Path, name: str) -> Path | None:
    if (folder / name).is_dir():
        return folder / name
    return next((path for path in sorted(folder.glob(f"{name}.*")) if _format(path.name)), None)


def _spec(module: str) -> Sequence[str] | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return list(spec.submodule_search_locations or ()) or None if spec else None


def _hub(name: str, where: Hub) -> list[Row]:
    """Files come through the hub's cache; without a network, what the cache holds of the revision is taken."""
    try:
        import huggingface_hub as lib
    except ImportError:
        raise _NoHubError("huggingface_hub is not installed: pip install 'qwen3[eval]'") from None
    kind: dict[str, Any] = {"repo_type": "dataset", "revision": where.revision}
    try:
        about: Any = lib.HfApi().dataset_info(where.dataset, revision=where.revision, timeout=10)
        chosen = pick(name, (file.rfilename for file in about.siblings or ()), where)
        root = Path(lib.snapshot_download(where.dataset, allow_patterns=chosen, **kind))
    except UsageError:
        raise
    except Exception as error:  # its HTTP layer changes between versions: what is in the cache decides
        try:
            root = Path(lib.snapshot_download(where.dataset, local_files_only=True, **kind))
        except Exception:
            text = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise _NoHubError(f"{where.dataset} at {where.revision!r} on the hub: {text}") from None
    return _read(name, root, where)


def _read(name: str, root: Path, where: Hub) -> list[Row]:
    if root.is_file():
        return list(_file(root, root.name))
    paths = pick(name, (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()), where)
    if not paths:
        raise UsageError(f"{name}: no data file ({', '.join(FORMATS)}) in {root}")
    return [row for path in paths for row in _file(root / path, path)]


def _format(path: str) -> str | None:
    return next((form for form in FORMATS if path.lower().removesuffix(".gz").endswith(form)), None)


def _file(path: Path, label: str) -> Iterator[Row]:
    form = _format(path.name)
    if form is None:
        raise UsageError(f"{path}: not one of {', '.join(FORMATS)}")
    try:
        if form in (".parquet", ".arrow"):
            found: Iterable[Any] = _columns(path, form)
        else:
            raw = gzip.decompress(path.read_bytes()) if path.name.lower().endswith(".gz") else path.read_bytes()
            text = raw.decode("utf-8-sig")
            found = _table(text, "\t" if form == ".tsv" else ",") if form in (".csv", ".tsv") else _json(text, path)
    except (OSError, UnicodeDecodeError, csv.Error, EOFError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from None
    for i, row in enumerate(found, 1):
        if not isinstance(row, dict):
            raise UsageError(f"{path}: row {i} is not an object of fields")
        yield {**row, "_file": label}


def _columns(path: Path, form: str) -> list[Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UsageError(f"{path}: reading it needs pyarrow: pip install 'qwen3[eval]'") from None
    try:
        if form == ".parquet":
            return pq.ParquetFile(path).read().to_pylist()
        return pa.ipc.open_stream(path.read_bytes()).read_all().to_pylist()
    except pa.ArrowInvalid as error:
        raise UsageError(f"{path}: not {form[1:]} ({str(error).splitlines()[0]})") from None


def _table(text: str, mark: str) -> list[Row]:
    csv.field_size_limit(1 << 24)
    found = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=mark, strict=True))
    for i, row in enumerate(found, 1):
        if None in row or None in row.values():
            raise csv.Error(f"row {i} has not as many fields as the heading")
    return found


def _json(text: str, path: Path) -> list[Any]:
    """A list of rows, one object, {"data": rows}, the hub's {"rows": [{"row": …}]}, or one object a line whatever the
    file's name is."""
    try:
        whole = json.loads(text)
    except ValueError:
        return list(_lines(text, path))
    if isinstance(whole, dict):
        for key in ("data", "rows"):
            if isinstance(whole.get(key), list):
                whole = whole[key]
                break
    if not isinstance(whole, list):
        return [whole]
    return [row["row"] if isinstance(row, dict) and isinstance(row.get("row"), dict) else row for row in whole]


def _lines(text: str, path: Path) -> Iterator[Any]:
    for i, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise UsageError(f"{path}: line {i} is not JSON ({error})") from None
