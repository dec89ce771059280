"""Tokenizer files in and out: the packaged official ones, `tokenizer.json`, and the `vocab.json` + `merges.txt` pair.

The official vocabulary is its merge list: 256 bytes, then one token per merge in rank order. So the package carries
`merges.txt` alone (xz, 0.6 MB) and the four official files are rebuilt from it byte for byte.
"""

from __future__ import annotations

import json
import lzma
import os
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models

from qwen3.errors import CorruptFileError, ModelNotFoundError
from qwen3.tokenizer.byte_level import ALPHABET
from qwen3.tokenizer.control import CONTROL_TOKENS

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLIT = {"type": "Split", "pattern": {"Regex": _PATTERN}, "behavior": "Isolated", "invert": False}
_PIPELINE: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [_SPLIT, _BYTE_LEVEL]},
    "post_processor": _BYTE_LEVEL,
    "decoder": _BYTE_LEVEL,
    "model": {"type": "BPE", "vocab": {}, "merges": []},
}
"""The official `tokenizer.json` without its vocabulary. (The library's own constructors cannot say all of it.)"""

SIDECARS = ("tokenizer_config.json", "chat_template.jinja")
_MAX_BYTES = 512 << 20

Merge = tuple[str, str]


def packaged(name: str) -> bytes:
    """The bytes of a packaged tokenizer file (`tokenizer_config.json`, a template)."""
    return resources.files("qwen3").joinpath("data", "tokenizer", name).read_bytes()


def official() -> tokenizers.Tokenizer:
    """The official Qwen3 tokenizer, 151,669 tokens."""
    lines = lzma.decompress(packaged("merges.txt.xz")).decode().split("\n")[1:-1]
    merges: list[Any] = [tuple(line.split(" ")) for line in lines]
    tokens = [*ALPHABET, *(left + right for left, right in merges)]
    return build(dict(zip(tokens, range(len(tokens)), strict=True)), merges, official_added(len(tokens)))


def official_added(first_id: int) -> dict[int, AddedToken]:
    """The 26 control tokens with consecutive ids from `first_id`."""
    return {
        first_id + i: AddedToken(text, special=special, normalized=False)
        for i, (text, special) in enumerate(CONTROL_TOKENS.values())
    }


def build(vocab: dict[str, int], merges: list[Merge], added: dict[int, AddedToken]) -> tokenizers.Tokenizer:
    """A tokenizer with the official pipeline (NFC, split, byte level) around this vocabulary.

    Added tokens get the ids after the vocabulary in the order of `added`, whose ids must say so.
    """
    tok = tokenizers.Tokenizer.from_str(json.dumps(_PIPELINE))
    tok.model = models.BPE(vocab=vocab, merges=merges, continuing_subword_prefix="", end_of_word_suffix="")
    tok.add_tokens([added[id] for id in sorted(added)])
    return tok


def read_folder(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, bytes]]:
    """The tokenizer at `path` (a folder or a `tokenizer.json`) and the files beside it that `save` hands on.

    Raises ModelNotFoundError when there is none, CorruptFileError when it cannot be read.
    """
    if not path.exists():
        raise ModelNotFoundError(f"{path}: no such tokenizer file or folder")
    folder = path if path.is_dir() else path.parent
    file = path / "tokenizer.json" if path.is_dir() else path
    sidecars = {name: _read(folder / name) for name in SIDECARS if (folder / name).is_file()}
    config = parse_json(sidecars.get("tokenizer_config.json", b"{}"), folder / "tokenizer_config.json")
    if file.is_file():
        return _read_tokenizer_json(file), sidecars
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _read_pair(folder, config), sidecars
    raise ModelNotFoundError(
        f"{folder}: neither tokenizer.json nor vocab.json with merges.txt; copy them from the model"
    )


def parse_json(data: bytes, file: Path) -> dict[str, Any]:
    """A JSON object, or CorruptFileError naming `file` and the place."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{file}: not valid JSON ({error}); fetch the file again") from None
    if not isinstance(value, dict):
        raise CorruptFileError(f"{file}: holds {type(value).__name__}, not a JSON object; fetch the file again")
    return value


def _read(file: Path) -> bytes:
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise CorruptFileError(f"{file}: larger than {_MAX_BYTES >> 20} MiB, so not a tokenizer file")
        return file.read_bytes()
    except OSError as error:
        raise CorruptFileError(f"{file}: cannot be read ({error.strerror})") from None


def _read_tokenizer_json(file: Path) -> tokenizers.Tokenizer:
    data = _read(file)
    try:
        tok = tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises plain Exception
        parse_json(data, file)
        raise CorruptFileError(f"{file}: not a tokenizer.json ({error}); fetch the file again") from None
    if not isinstance(tok.model, models.BPE) or not isinstance(tok.decoder, decoders.ByteLevel):
        raise CorruptFileError(f"{file}: not a byte-level BPE tokenizer, so not one of Qwen3")
    # A saved truncation or padding setting would silently change prompts.
    tok.no_truncation()
    tok.no_padding()
    return tok


def _read_pair(folder: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    """`vocab.json` + `merges.txt`; control tokens from `tokenizer_config.json`, else the official ones after them."""
    file = folder / "merges.txt"
    vocab = parse_json(_read(folder / "vocab.json"), folder / "vocab.json")
    try:
        lines = _read(file).decode().split("\n")
        merges: list[Any] = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
        added = {int(id): AddedToken(**fields) for id, fields in config.get("added_tokens_decoder", {}).items()}
        added = added or official_added(len(vocab))
        tok = build(vocab, merges, added)
    except CorruptFileError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise CorruptFileError(f"{folder}: vocab.json and merges.txt do not fit together ({error})") from None
    for id, token in added.items():
        if tok.token_to_id(token.content) != id:
            raise CorruptFileError(
                f"{folder}/tokenizer_config.json: added_tokens_decoder gives {token.content} id {id}, "
                f"but vocab.json leaves it {tok.token_to_id(token.content)}"
            )
    return tok


def renumbered_config(config: dict[str, Any], tok: tokenizers.Tokenizer) -> bytes:
    """`config` as `tokenizer_config.json` with `added_tokens_decoder` saying what `tok` has."""
    added = {
        str(id): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for id, token in sorted(tok.get_added_tokens_decoder().items())
    }
    return (json.dumps({**config, "added_tokens_decoder": added}, ensure_ascii=False, indent=2) + "\n").encode()


def write(folder: Path, tok: tokenizers.Tokenizer, sidecars: dict[str, bytes]) -> None:
    """`tokenizer.json`, `vocab.json`, `merges.txt` and `sidecars` into `folder`, each atomically."""
    text = tok.to_str(pretty=True)
    model = json.loads(text)["model"]
    vocab = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "tokenizer.json": text.encode(),
        "vocab.json": json.dumps(vocab, ensure_ascii=False, separators=(",", ":")).encode(),
        "merges.txt": f"#version: 0.2\n{merges}".encode(),
        **sidecars,
    }
    for name, data in files.items():
        _write_atomically(folder / name, data)


def _write_atomically(file: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
