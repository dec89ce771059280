"""A checkpoint of any format as a GGUF file: streamed, read back, compared, and only then put in place."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qwen3.checkpoint import read_config, resolve
from qwen3.checkpoint.gguf.files import open_gguf, part_names
from qwen3.checkpoint.gguf.names import places_of
from qwen3.checkpoint.journal import fsync
from qwen3.checkpoint.mode import find_tokenizer
from qwen3.checkpoint.names import official_shapes
from qwen3.checkpoint.source import Source, open_source
from qwen3.config import ModelConfig
from qwen3.errors import CorruptFileError, Qwen3Error, UsageError
from qwen3.quantize.compare import Agreement, compare, prompts
from qwen3.quantize.gguf.file import U16, Entry
from qwen3.quantize.gguf.metadata import describe
from qwen3.quantize.gguf.recipe import Choice, choose, recipe_named
from qwen3.quantize.gguf.stream import Progress, Stream, Tensored

if TYPE_CHECKING:
    from qwen3.quantize.imatrix import Imatrix

_WIDE = ("F32", "F16", "BF16", "F64")


@dataclass(frozen=True)
class Report:
    """What was written. `seconds` are those of quantizing and writing; agreement: of the file with the original."""

    files: tuple[Path, ...]
    kind: str
    tensors: tuple[Tensored, ...]
    nbytes: int
    weights: int
    seconds: float
    agreement: Agreement
    warnings: tuple[str, ...] = ()

    @property
    def bits_per_weight(self) -> float:
        return 8 * sum(tensor.nbytes for tensor in self.tensors) / self.weights

    @property
    def fallbacks(self) -> tuple[Tensored, ...]:
        """Tensors that did not get the type that was asked for."""
        return tuple(tensor for tensor in self.tensors if tensor.wanted is not None)

    def to_dict(self) -> dict[str, Any]:
        kinds = [tensor.kind for tensor in self.tensors]
        return {
            "files": [str(file) for file in self.files],
            "type": self.kind,
            "bytes": self.nbytes,
            "weights": self.weights,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "seconds": round(self.seconds, 2),
            "kinds": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
            "fallbacks": {tensor.name: f"{tensor.wanted} -> {tensor.kind}" for tensor in self.fallbacks},
            "agreement": asdict(self.agreement),
            "warnings": list(self.warnings),
            "tensors": [asdict(tensor) for tensor in self.tensors],
        }


@dataclass
class _Job:
    """A file's tensors, each with the official ones that it is made of, in order."""

    entries: list[Entry] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes + entry.padding for entry in self.entries)


def write_gguf(
    path: str | Path,
    out: str | Path,
    kind: str,
    *,
    imatrix: Imatrix | None = None,
    rules: Sequence[str] = (),
    strict: bool = False,
    split_size: float | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Writes the model at `path` (a folder or GGUF file, of any format that is read) to `out`, a name that ends in
    .gguf or a folder to put `NAME-KIND.gguf` into.

    kind: a name in `recipe.RECIPES`, or "stored": plain types, as they are in the checkpoint. imatrix: importance of
    the columns. rules: `PATTERN=TYPE`, of GGUF names, over the recipe. strict: a matrix whose width its type cannot
    divide is refused instead of given another (which the report lists). split_size: bytes of tensors per file, which
    are then called `…-00001-of-00003.gguf`.

    One piece of a tensor per core is in memory at a time. The files are read back and compared with the original over
    fixed prompts before they replace what was there. Raises UsageError for wrong arguments and matrices refused by
    `strict`; CorruptFileError naming a tensor that has NaN or infinite values, is zero throughout, or does not fit into
    its type; Qwen3Error if the disk is full or cannot be written; and what the checkpoint's reader raises. Nothing is
    left behind then.
    """
    started = time.perf_counter()
    model = resolve(path)
    config = read_config(model.path)
    recipe = recipe_named("bf16" if kind.lower() == "stored" else kind)
    say = progress or (lambda what, share: None)
    pieces = tensor_pieces(config)
    shapes = {name: shape for name, (shape, _) in pieces.items()}
    with closing(open_source(model.path, config)) as source:
        if imatrix is not None:
            imatrix.check(shapes)
        choices = choose(recipe, shapes, config, rules, imatrix is not None)
        if kind.lower() == "stored":
            choices = _as_stored(choices, pieces, source)
        entries = [Entry(name, choices[name].kind, shape) for name, shape in shapes.items()]
        _refuse_fallbacks(choices, shapes, strict)
        metadata, warnings = describe(model, config, recipe.number)
        if imatrix is not None:
            metadata |= imatrix.metadata()
            warnings += imatrix.warnings(shapes)
        coarse = [stored for stored in source.kinds if stored not in _WIDE]
        if coarse and any(kind not in _WIDE for kind in (choice.kind for choice in choices.values())):
            warnings.append(f"the checkpoint is quantized already ({', '.join(coarse)}): rounding it again adds errors")
        if coarse and kind.lower() == "stored":
            warnings.append(f"{', '.join(coarse)} becomes F32, which holds it exactly; bf16 takes half of that")
        jobs = _split(entries, split_size)
        target = _target(Path(out), model.name, kind, source.files, len(jobs), force)
        with _staging(target[0]) as stage:
            size = sum(job.nbytes for job in jobs)
            free = shutil.disk_usage(stage).free
            if size > free:
                raise Qwen3Error(f"{target[0].parent}: the file takes {size:,} bytes but the disk has {free:,} free")
            staged = [stage / file.name for file in target]
            done: list[Tensored] = []
            writer = Stream(source, pieces, choices, imatrix, sum(entry.nbytes for entry in entries), say)
            for number, (file, job) in enumerate(zip(staged, jobs, strict=True)):
                about = _part_metadata(metadata, number, len(jobs), len(entries))
                done += writer.write(file, about, job.entries)
            source.check_unchanged()
            seconds = time.perf_counter() - started
            agreement = _checked(
                model.path, staged[0], config, entries, prompts(find_tokenizer(model, config)[0], config), say
            )
            for file, final in zip(reversed(staged), reversed(target), strict=True):  # the first is what is opened
                os.replace(file, final)
            fsync(target[0].parent)
    weights = sum(torch.Size(shape).numel() for shape in shapes.values())
    nbytes = sum(file.stat().st_size for file in target)
    return Report(tuple(target), kind.upper(), tuple(done), nbytes, weights, seconds, agreement, tuple(warnings))


def plan_gguf(
    config: ModelConfig, kind: str, *, rules: Sequence[str] = (), strict: bool = False, guided: bool = False
) -> list[Tensored]:
    """What `write_gguf` would make of each tensor, in the order of the file; guided: with an imatrix. Raises UsageError
    as that does."""
    shapes = {name: shape for name, (shape, _) in tensor_pieces(config).items()}
    choices = choose(recipe_named(kind), shapes, config, rules, guided)
    _refuse_fallbacks(choices, shapes, strict)
    entries = [Entry(name, choices[name].kind, shape) for name, shape in shapes.items()]
    return [Tensored(e.name, e.kind, e.shape, e.nbytes, 0.0, choices[e.name].wanted) for e in entries]


def tensor_pieces(config: ModelConfig) -> dict[str, tuple[tuple[int, ...], list[str]]]:
    """GGUF name → (shape, the official tensors that it is made of, in order); embedding, layers, norm, head."""
    found: dict[str, tuple[tuple[int, ...], list[tuple[int, str]]]] = {}
    for official, shape in official_shapes(config).items():
        name, first, whole = places_of(official, shape, config.num_experts)[0]
        found.setdefault(name, (whole, []))[1].append((first, official))

    def order(name: str) -> tuple[int, int, str]:
        match = re.match(r"blk\.(\d+)\.", name)
        return (1, int(match[1]), name) if match else (0 if name == "token_embd.weight" else 2, 0, name)

    return {name: (found[name][0], [o for _, o in sorted(found[name][1])]) for name in sorted(found, key=order)}


def _as_stored(
    choices: Mapping[str, Choice], pieces: Mapping[str, tuple[tuple[int, ...], list[str]]], source: Source
) -> dict[str, Choice]:
    """Each matrix in the plain type it has; what is quantized becomes F32, which holds all that it stands for."""
    out = {}
    for name, choice in choices.items():
        kinds = {source.stored[official].kind for official in pieces[name][1]}
        plain = next(iter(kinds)) if len(kinds) == 1 else "F32"
        out[name] = Choice(plain if plain in _WIDE[:3] and choice.kind != "F32" else "F32")
    return out


def _refuse_fallbacks(choices: Mapping[str, Choice], shapes: Mapping[str, tuple[int, ...]], strict: bool) -> None:
    lost = [name for name, choice in choices.items() if choice.wanted is not None]
    if strict and lost:
        first = lost[0]
        raise UsageError(
            f"--strict: {first} has rows of {shapes[first][-1]}, which {choices[first].wanted} cannot hold (nor "
            f"{len(lost) - 1} more); without --strict it becomes {choices[first].kind}, or say so by a rule"
        )


def _split(entries: Sequence[Entry], split_size: float | None) -> list[_Job]:
    if split_size is not None and not split_size >= 1:
        raise UsageError(f"split_size is {split_size}; it must be at least one byte")
    jobs = [_Job()]
    for entry in entries:
        if split_size is not None and jobs[-1].entries and jobs[-1].nbytes + entry.nbytes > split_size:
            jobs.append(_Job())
        jobs[-1].entries.append(entry)
    return jobs


def _part_metadata(metadata: Mapping[str, Any], number: int, count: int, tensors: int) -> dict[str, Any]:
    """The first part says everything, the others whose they are."""
    if count == 1:
        return dict(metadata)
    split = {"split.no": U16(number), "split.count": U16(count), "split.tensors.count": tensors}
    return {**(metadata if number == 0 else {}), **split}


def _target(out: Path, name: str, kind: str, sources: Sequence[Path], parts: int, force: bool) -> list[Path]:
    """Names of all files to be. Raises UsageError where they cannot or must not be."""
    if out.is_dir():
        out = out / f"{name}-{kind.upper()}.gguf"
    if out.suffix != ".gguf":
        raise UsageError(f"{out}: the name of a GGUF file must end in .gguf (or give a folder that exists)")
    if not out.parent.is_dir():
        raise UsageError(f"{out}: there is no folder {out.parent}")
    if parts > 99_999:
        raise UsageError(f"{out}: {parts} parts are too many; give a larger split size")
    names = part_names(f"{out.stem}-00001-of-{parts:05d}.gguf") if parts > 1 else [out.name]
    files = [out.with_name(part) for part in names]
    real = {source.resolve() for source in sources}
    for file in files:
        if file.resolve() in real:
            raise UsageError(f"{file} is the model itself; give another name")
        if file.exists() and not force:
            raise UsageError(f"{file} exists; give another name, or --force to replace it")
    return files


class _staging:
    """A folder beside the file to be, gone at the end whatever happens; what a killed writer left there goes first."""

    def __init__(self, target: Path) -> None:
        self.folder = target.with_name(f".{target.name}.partial")

    def __enter__(self) -> Path:
        try:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
        except OSError as error:
            raise Qwen3Error(f"{self.folder.parent}: cannot be written ({error.strerror})") from None
        return self.folder

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, Qwen3Error):
            raise Qwen3Error(f"{self.folder.parent}: cannot be written ({error.strerror})") from None


def _checked(
    original: Path, written: Path, config: ModelConfig, entries: Sequence[Entry], ids: list[list[int]], say: Progress
) -> Agreement:
    """Raises CorruptFileError where what is read back is not what was meant."""
    model = open_gguf(written)
    for entry in entries:
        found = model.tensors.get(entry.name)
        if found is None or (found.type.name, found.shape) != (entry.kind, entry.shape):
            raise CorruptFileError(f"not saved: {entry.name} is read back as {found}, not as {entry.kind}")
    with closing(open_source(original, config)) as before, closing(open_source(written, read_config(written))) as after:
        for name, stored in after.stored.items():  # two rows show whether a tensor lies where it should
            for row in (0, stored.shape[0] - 1) if len(stored.shape) == 2 else (0,):
                x, y = (_some(source.stored[name], row) for source in (before, after))
                if not (x - y).norm() <= 0.9 * x.norm():
                    raise CorruptFileError(f"not saved: {name} is read back as something else")
    return compare(original, written, ids, lambda done, of: say("comparing", done / of))


def _some(stored: Any, row: int) -> Tensor:
    return stored.read(slice(None) if len(stored.shape) == 1 else slice(row, row + 1), torch.float32)
