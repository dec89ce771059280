"""The tokenizer: a thin, strict front on the `tokenizers` library.

Two encoders share one BPE model. `encode` is the official pipeline: a control string in the text becomes its control
id. `encode_plain` knows no added tokens, so nothing typed in a text can become a control id; untrusted text goes there.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

from qwen3.errors import CorruptFileError, UsageError
from qwen3.tokenizer import byte_level, files
from qwen3.tokenizer.control import ControlIds

_LONG = 4096  # characters; above, a batch of one is encoded: only that lets other threads of Python run meanwhile


class Tokenizer:
    """Byte-level BPE of the Qwen3 family. Ids are plain Python ints. Safe to share between threads."""

    def __init__(self, tok: tokenizers.Tokenizer, sidecars: dict[str, bytes], source: str):
        """Not for callers: use `from_pretrained` or `prefix`.

        `sidecars` are the files (`tokenizer_config.json`, `chat_template.jinja`) that `save` writes as they are;
        `source` is what error messages call this tokenizer.
        """
        self._tok = tok
        self._sidecars = sidecars
        self.source = source
        self._added = {id: token.content for id, token in tok.get_added_tokens_decoder().items()}
        self._bytes: dict[int, bytes] = {id: text.encode() for id, text in self._added.items()}
        self._special = frozenset(id for id, token in tok.get_added_tokens_decoder().items() if token.special)
        # Highest id + 1; equal to the number of tokens unless a checkpoint leaves gaps.
        self.vocab_size: int = max(tok.get_vocab_size(with_added_tokens=True), max(self._added, default=-1) + 1)
        """Ids at or above this are no tokens (embedding rows are padded beyond it) and are never sampled."""

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str] | None = None) -> Tokenizer:
        """The packaged official tokenizer (None), or that of a checkpoint folder or a `tokenizer.json` file.

        A folder without `tokenizer.json` may hold `vocab.json` and `merges.txt` instead. Raises ModelNotFoundError
        (nothing there) or CorruptFileError (unreadable, or not byte-level BPE).
        """
        if path is None:
            config = files.packaged("tokenizer_config.json")
            return cls(files.official(), {"tokenizer_config.json": config}, "the packaged Qwen3 tokenizer")
        tok, sidecars = files.read_folder(Path(path))
        return cls(tok, sidecars, str(path))

    # Text to ids

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, control strings parsed into control ids: the official pipeline. Nothing is added around."""
        return self._encode(self._tok, text)

    def encode_plain(self, text: str) -> list[int]:
        """Ids of `text` as ordinary text: no control id can come out, whatever the text holds."""
        return self._encode(self._plain, text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        for text in texts:
            _check_text(text)
        return [encoding.ids for encoding in self._tok.encode_batch_fast(list(texts), add_special_tokens=False)]

    @staticmethod
    def _encode(tok: tokenizers.Tokenizer, text: str) -> list[int]:
        _check_text(text)
        if len(text) > _LONG:
            encoding = tok.encode_batch_fast([text], add_special_tokens=False)[0]
        else:
            encoding = tok.encode(text, add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """The same model (shared, not copied) and pipeline with no added tokens."""
        plain = tokenizers.Tokenizer(self._tok.model)
        plain.normalizer = self._tok.normalizer
        plain.pre_tokenizer = self._tok.pre_tokenizer
        plain.decoder = self._tok.decoder
        return plain

    # Ids to text

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD.

        `skip_special_tokens` drops only tokens the file flags `special`, which `<think>`, `<tool_call>` and the like
        are not. Raises UsageError for an id that is no token.
        """
        if skip_special_tokens:
            ids = (id for id in ids if id not in self._special)
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def token_bytes(self, id: int) -> bytes:
        """The raw bytes of one token, possibly part of a character. Raises UsageError for an id that is no token."""
        try:
            return self._bytes[id]
        except KeyError:
            id = operator.index(id)  # a NumPy or torch integer is as good as an int
        token = self._tok.id_to_token(id) if 0 <= id < self.vocab_size else None
        if token is None:
            raise UsageError(f"token id {id} is not in the vocabulary (0 … {self.vocab_size - 1} of {self.source})")
        try:
            data = byte_level.to_bytes(token)
        except KeyError:
            raise CorruptFileError(f"{self.source}: token {token!r} is not written in the byte alphabet") from None
        self._bytes[id] = data
        return data

    # What there is

    @cached_property
    def control(self) -> ControlIds:
        """Ids of the 26 control tokens. Raises CorruptFileError naming those the file lacks."""
        by_text = {text: id for id, text in self._added.items()}
        return ControlIds.lookup(by_text.get, self.source)

    @property
    def added_tokens(self) -> dict[int, str]:
        """Id -> string of every added token: what `encode` parses and `encode_plain` does not."""
        return dict(self._added)

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids whose tokens the file flags `special`: those `decode(skip_special_tokens=True)` drops."""
        return self._special

    @property
    def eos_ids(self) -> tuple[int, int]:
        """The ids that end a generation: `<|im_end|>`, `<|endoftext|>`."""
        return self.control.im_end, self.control.endoftext

    @property
    def sidecars(self) -> dict[str, bytes]:
        """File name -> bytes of the files that came with this tokenizer and are saved with it."""
        return dict(self._sidecars)

    def __len__(self) -> int:
        return self.vocab_size

    def __repr__(self) -> str:
        return f"Tokenizer({self.source}, {self.vocab_size} tokens)"

    # New ones

    def prefix(self, n: int) -> Tokenizer:
        """The tokenizer of the first `n` ranks (256 bytes included) and the 26 control tokens at n … n+25.

        It is a valid BPE: ids below n mean what they mean here, and a text whose ids here are all below n has the same
        ids there. Raises UsageError if `n` is below 256 or above the number of ranks, CorruptFileError if the ranks
        of this tokenizer are not in merge order.
        """
        model = files.parse_json(self._tok.to_str().encode(), Path(self.source))["model"]
        vocab: dict[str, int] = model["vocab"]
        if isinstance(n, bool) or not isinstance(n, int) or not 256 <= n <= len(vocab):
            raise UsageError(f"prefix: n must be a whole number from 256 to {len(vocab)} (the ranks), not {n!r}")
        kept = {token: id for token, id in vocab.items() if id < n}
        merges = [(left, right) for left, right in model["merges"] if vocab[left + right] < n]
        complete = len(kept) == n and all(char in kept for char in byte_level.ALPHABET)
        if not complete or any(left not in kept or right not in kept for left, right in merges):
            raise CorruptFileError(f"{self.source}: ids are not in merge order: the first {n} are no tokenizer")
        tok = files.build(kept, merges, files.official_added(n))
        config = files.parse_json(self._sidecars.get("tokenizer_config.json", b"{}"), Path("tokenizer_config.json"))
        sidecars = {**self._sidecars, "tokenizer_config.json": files.renumbered_config(config, tok)}
        return Tokenizer(tok, sidecars, f"first {n} ranks of {self.source}")

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `tokenizer.json`, `vocab.json`, `merges.txt` and `tokenizer_config.json` (with the chat template).

        For the packaged tokenizer these are the official files byte for byte. Each file is replaced atomically.
        """
        sidecars = dict(self._sidecars)
        if "tokenizer_config.json" not in sidecars:
            config = files.parse_json(files.packaged("tokenizer_config.json"), Path("tokenizer_config.json"))
            del config["chat_template"]  # this tokenizer came without one
            sidecars["tokenizer_config.json"] = files.renumbered_config(config, self._tok)
        files.write(Path(folder), self._tok, sidecars)


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise UsageError(f"text must be a string, not {type(text).__name__}")
    check_unicode(text, "text")


def check_unicode(text: str, where: str) -> None:
    """Raise UsageError naming `where` if `text` holds a lone surrogate, which no UTF-8 can say."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise UsageError(
            f"{where} holds the lone surrogate {code} at character {error.start}: not valid Unicode"
        ) from None
