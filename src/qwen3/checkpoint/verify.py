"""Is this checkpoint what it should be? Hashes, headers, names, shapes, values, tokenizer: one finding each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qwen3.checkpoint.folder import (
    MANIFEST,
    UNSAFE_SUFFIXES,
    Fp8Format,
    find_weight_files,
    read_manifest,
    stored_format,
)
from qwen3.checkpoint.gguf.reader import is_gguf_path
from qwen3.checkpoint.header import Header, read_header, read_json
from qwen3.checkpoint.journal import JOURNAL, finish_interrupted_save
from qwen3.checkpoint.resolved import blob_name
from qwen3.config import ModelConfig
from qwen3.errors import CorruptFileError, ModelNotFoundError, Qwen3Error

if TYPE_CHECKING:
    from qwen3.chat import SandboxTemplate
    from qwen3.tokenizer import Tokenizer

# (bytes, sha256) -> the official file that has them
OFFICIAL_FILES = {
    (1_503_300_328, "f47f71177f32bcd101b7573ec9171e6a57f4f4d31148d38e382306f42996874b"): (
        "Qwen/Qwen3-0.6B model.safetensors at c1899de289a04d12100db370d81485cdf75e47ca"
    ),
}
Severity = Literal["error", "warning", "info"]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Finding:
    """One observation. `check` groups them: files, hashes, config, headers, tensors, values, tokenizer, template,
    generation."""

    severity: Severity
    check: str
    message: str


@dataclass
class Report:
    """What `verify` saw. `ok`: no finding is an error. Counts are of what could be read."""

    path: Path
    findings: list[Finding] = field(default_factory=list)
    files: int = 0
    tensors: int = 0
    parameters: int = 0
    bytes: int = 0
    hashes: Literal["manifest", "hub cache", "official", "none"] = "none"

    @property
    def ok(self) -> bool:
        return not any(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: stable keys."""
        return {**asdict(self), "path": str(self.path), "ok": self.ok}


def verify(path: str | Path, *, progress: Progress | None = None) -> Report:
    """Checks a checkpoint folder or GGUF file as far as it can be read; each problem is a finding, not an exception.

    Hashes against the manifest, else against the names a hub cache gives its blobs, else the known official ones; the
    headers; names and shapes against `config.json`; NaN and infinite values tensor by tensor; the tokenizer against the
    vocabulary; the chat template; generation settings. `progress(what, done, total)` counts bytes read. Raises
    ModelNotFoundError if there is no such folder.
    """
    folder = Path(path)
    if is_gguf_path(folder):
        from qwen3.checkpoint.gguf.check import check_gguf

        return check_gguf(folder, progress or (lambda what, done, total: None))
    if not folder.is_dir():
        raise ModelNotFoundError(f"{folder}: no such model folder")
    report = Report(folder)
    Check(report, progress or (lambda what, done, total: None)).run()
    return report


class Check:
    def __init__(self, report: Report, progress: Progress) -> None:
        self.report, self.folder, self.progress = report, report.path, progress

    def add(self, severity: Severity, check: str, message: str) -> None:
        self.report.findings.append(Finding(severity, check, message))

    def attempt(self, check: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The function's value; a failure becomes a finding and None."""
        try:
            return function(*args, **kwargs)
        except Qwen3Error as error:
            self.add("error", check, str(error))
        except OSError as error:
            self.add("error", check, f"{error.filename or self.folder}: cannot be read ({error.strerror})")
        return None

    def run(self) -> None:
        self.attempt("files", finish_interrupted_save, self.folder)
        config: ModelConfig | None = self.attempt("config", ModelConfig.from_pretrained, self.folder)
        stored: Fp8Format | None = None
        if config is not None and config.quantization_config:
            before = len(self.report.findings)
            stored = self.attempt("config", stored_format, self.folder)
            readable = len(self.report.findings) == before
        else:
            readable = config is not None
        weights: list[Path] = self.attempt("files", find_weight_files, self.folder) or []
        self.strays(weights)
        self.hashes(weights)
        headers = [header for file in weights if (header := self.attempt("headers", read_header, file))]
        self.report.files = len(headers)
        self.report.tensors = sum(len(header.tensors) for header in headers)
        self.report.bytes = sum(header.size for header in headers)
        if config is not None and readable and weights and len(headers) == len(weights):
            self.tensors(config, stored)
        for header in headers:
            self.values(header)
        if config is not None:
            self.report.parameters = config.num_parameters()
            self.tokenizer(config)
            self.generation(config)
        self.template()

    def strays(self, weights: list[Path]) -> None:
        """Weight files beside the model that nothing reads."""
        for path in sorted(self.folder.iterdir()):
            if path.name.endswith(UNSAFE_SUFFIXES):
                self.add("warning", "files", f"{path} is a pickle, which is never opened; it can be deleted")
            elif path.suffix == ".safetensors" and path not in weights and weights:
                self.add("warning", "files", f"{path} belongs to no index and is not read")

    def hashes(self, weights: list[Path]) -> None:
        manifest = self.attempt("hashes", read_manifest, self.folder)
        if manifest is not None:
            self.report.hashes = "manifest"
            expected: dict[Path, str] = {}
            for name, (size, digest) in manifest.items():
                file = self.folder / name
                if not file.is_file():
                    self.add("error", "hashes", f"{file} is in {MANIFEST} but missing")
                elif file.stat().st_size != size:
                    self.add("error", "hashes", f"{file} has {file.stat().st_size} bytes, {MANIFEST} says {size}")
                else:
                    expected[file] = digest
            known = {*manifest, MANIFEST, JOURNAL}
            extra = [p.name for p in sorted(self.folder.iterdir()) if p.name not in known and p.suffix == ".json"]
            if extra:
                self.add("warning", "hashes", f"{MANIFEST} does not vouch for {', '.join(extra)}")
        else:
            expected = {file: blob for file in sorted(self.folder.iterdir()) if (blob := blob_name(file))}
            if expected:
                self.report.hashes = "hub cache"
        self.compare(expected)
        if manifest is None and not expected:
            self.official(weights)

    def compare(self, expected: dict[Path, str]) -> None:
        """Files with the hashes they should have."""
        for file, digest in expected.items():
            found = self.attempt("hashes", self.digest, file, "sha256" if len(digest) == 64 else "git")
            if found is not None and found != digest:
                self.add("error", "hashes", f"{file} has hash {found} instead of {digest}; it was damaged or altered")

    def official(self, weights: list[Path]) -> None:
        """Without recorded hashes, at least the files whose official hash is known can be named."""
        sizes = {size for size, _ in OFFICIAL_FILES}
        for file in weights:
            if not file.is_file() or file.stat().st_size not in sizes:
                continue
            found = self.attempt("hashes", self.digest, file, "sha256")
            name = OFFICIAL_FILES.get((file.stat().st_size, found or ""))
            if name:
                self.report.hashes = "official"
                self.add("info", "hashes", f"{file} is {name}, byte for byte")
            else:
                self.add("warning", "hashes", f"{file} has an official file's size but not its hash: other weights")
        if self.report.hashes == "none":
            self.unknown(f"no {MANIFEST}")

    def unknown(self, why: str) -> None:
        self.add("info", "hashes", f"no hashes are recorded here ({why}); the bytes cannot be vouched for")

    def digest(self, file: Path, kind: Literal["sha256", "git"]) -> str:
        """sha256, or the SHA-1 git gives a blob (hub caches name small files by it)."""
        size = file.stat().st_size
        state = hashlib.sha256() if kind == "sha256" else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        done = 0
        with file.open("rb") as handle:
            while block := handle.read(1 << 22):
                state.update(block)
                done += len(block)
                self.progress(f"hashing {file.name}", done, size)
        return state.hexdigest()

    def tensors(self, config: ModelConfig, stored: Fp8Format | None) -> None:
        from qwen3.checkpoint.folder import read_headers
        from qwen3.checkpoint.formats.detect import find_layout
        from qwen3.checkpoint.names import official_shapes
        from qwen3.checkpoint.safetensors_io import check_complete, check_tied_copy, official_entries

        headers = self.attempt("tensors", read_headers, self.folder)
        if headers is None:
            return
        entries = official_entries(headers, config)
        shapes, layout = official_shapes(config), find_layout(self.folder)
        found = self.attempt("tensors", check_complete, self.folder, entries, shapes, config, stored, layout)
        if found is not None:
            self.attempt("tensors", check_tied_copy, found[0], config)

    def values(self, header: Header) -> None:
        from qwen3.checkpoint.safetensors_io import TORCH_DTYPES, read_chunks
        from qwen3.checkpoint.values import count_nan_inf

        done = 0
        with header.file.open("rb") as handle:
            for name, entry in header.tensors.items():
                if entry.dtype not in TORCH_DTYPES:
                    continue  # reported by the tensor check
                nan = inf = 0
                zero = True
                try:
                    for chunk in read_chunks(handle.fileno(), entry):
                        chunk_nan, chunk_inf = count_nan_inf(chunk)
                        nan, inf, zero = nan + chunk_nan, inf + chunk_inf, zero and not chunk.any()
                        done += chunk.nbytes
                        self.progress(f"scanning {header.file.name}", done, header.size)
                except CorruptFileError as error:
                    self.add("error", "values", str(error))
                    return
                if nan or inf:
                    self.add("error", "values", f"{header.file}: {name} has {nan} NaN and {inf} infinite values")
                elif zero and entry.end > entry.begin:
                    self.add("warning", "values", f"{header.file}: {name} is all zeros")

    def tokenizer(self, config: ModelConfig) -> None:
        from qwen3.tokenizer import Tokenizer

        names = ("tokenizer.json", "vocab.json", "merges.txt")
        if not any((self.folder / name).is_file() for name in names):
            self.add("warning", "tokenizer", f"{self.folder} has no tokenizer; the packaged one will be used")
            if config.vocab_size < Tokenizer.from_pretrained().vocab_size:
                message = f"config.json has vocab_size {config.vocab_size}, below the packaged tokenizer's 151669"
                self.add("error", "tokenizer", f"{message}; add the model's own tokenizer.json")
            return
        tok = self.attempt("tokenizer", Tokenizer.from_pretrained, self.folder)
        if tok is not None:
            self.vocabulary(tok, config)

    def vocabulary(self, tok: Tokenizer, config: ModelConfig) -> None:
        """A tokenizer against the rows of the embedding and the ids that end a text."""
        control = self.attempt("tokenizer", getattr, tok, "control")
        if tok.vocab_size > config.vocab_size:
            message = f"the tokenizer has {tok.vocab_size} ids but the embedding only {config.vocab_size} rows"
            self.add("error", "tokenizer", message)
        elif tok.vocab_size < config.vocab_size:
            rows = f"rows {tok.vocab_size} to {config.vocab_size - 1}"
            message = f"{rows} of the embedding ({config.vocab_size - tok.vocab_size}) are no tokens and never sampled"
            self.add("info", "tokenizer", message)
        if control is not None:
            for id in config.eos_token_ids:
                if id not in tok.eos_ids:
                    message = f"the configuration has eos_token_id {id}, but the tokenizer's are {list(tok.eos_ids)}"
                    self.add("error", "tokenizer", message)

    def template(self) -> None:
        """A chat template that is none of the official ones must render a plain conversation in the sandbox."""
        from qwen3.chat import SandboxTemplate, template_for

        found = self.attempt("template", template_for, self.folder)
        if isinstance(found, SandboxTemplate):
            self.own_template(found)

    def own_template(self, found: SandboxTemplate) -> None:
        if self.attempt("template", getattr, found, "mode") is not None:
            message = f"{found.source}: not one of the official chat templates; it is rendered in a sandbox"
            self.add("info", "template", message)

    def generation(self, config: ModelConfig) -> None:
        path = self.folder / "generation_config.json"
        if not path.is_file():
            return
        data = self.attempt("generation", read_json, path, limit=1 << 20)
        if data is None:
            return
        if not isinstance(data, dict):
            self.add("error", "generation", f"{path}: not a JSON object")
            return
        for key in ("eos_token_id", "bos_token_id", "pad_token_id"):
            for id in _ids(data.get(key)):
                if type(id) is not int or not 0 <= id < config.vocab_size:
                    self.add("error", "generation", f"{path}: {key} {id!r} is outside the vocabulary")


def _ids(value: Any) -> Iterator[Any]:
    if value is not None:
        yield from value if isinstance(value, list) else [value]
