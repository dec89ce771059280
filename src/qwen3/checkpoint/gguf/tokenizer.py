"""The tokenizer and chat template that a GGUF file carries. Keys: `tokenizer.*` in docs/gguf.md of ggml-org/ggml."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken

from qwen3.chat import SandboxTemplate
from qwen3.chat.sandbox_template import recognise
from qwen3.checkpoint.gguf.files import Gguf
from qwen3.checkpoint.gguf.reader import Strings
from qwen3.config import ModelConfig
from qwen3.errors import ConfigError, CorruptFileError
from qwen3.tokenizer import Tokenizer
from qwen3.tokenizer.control import CONTROL_TOKENS
from qwen3.tokenizer.files import build

_TOKENS, _TYPES, _MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
# converters take every <|…|> for special; Qwen3's own files know better
_SPECIAL = dict(CONTROL_TOKENS.values())
_OFFICIAL_ROWS = (151_669, 151_936)  # the official vocabulary without and with its padding


def gguf_tokenizer(model: Gguf, config: ModelConfig) -> tuple[Tokenizer, str | None]:
    """The tokenizer in the metadata, and what is doubtful about it. A file without one gets the official tokenizer if
    its vocabulary has exactly as many rows.

    Raises ConfigError for a tokenizer of another kind, or where there is none and the official one cannot be meant;
    CorruptFileError where tokens, types and merges contradict each other.
    """
    kind = model.metadata.get("tokenizer.ggml.model")
    if kind in (None, "none", "no_vocab") and _TOKENS not in model.metadata:
        if config.vocab_size not in _OFFICIAL_ROWS:
            raise ConfigError(
                f"{model.path} has no tokenizer ({_TOKENS}), and the official Qwen3 tokenizer does not belong to a "
                f"vocabulary of {config.vocab_size:,}: take a file that was converted with its tokenizer"
            )
        return Tokenizer.from_pretrained(), f"{model.path.name} has no tokenizer: the official Qwen3 tokenizer is used"
    if kind != "gpt2":
        raise ConfigError(
            f"{model.path}: tokenizer.ggml.model is {str(kind)[:40]!r}; Qwen3's is 'gpt2' (byte-level BPE)"
        )
    pre = model.metadata.get("tokenizer.ggml.pre")
    if pre != "qwen2":
        raise ConfigError(
            f"{model.path}: tokenizer.ggml.pre is {str(pre)[:40]!r}, which splits texts otherwise than 'qwen2' does; "
            "take a newer conversion of the model"
        )
    tokenizer = _build(model)
    if tokenizer.vocab_size > config.vocab_size:
        raise CorruptFileError(
            f"{model.path}: {tokenizer.vocab_size} tokens, but the embedding has only {config.vocab_size} rows"
        )
    if model.metadata.get("tokenizer.ggml.add_bos_token"):
        return tokenizer, f"{model.path.name} asks for a token before every text (add_bos_token): Qwen3 takes none"
    return tokenizer, None


def _build(model: Gguf) -> Tokenizer:
    tokens, merges = _strings(model, _TOKENS), _strings(model, _MERGES)
    types = model.metadata.get(_TYPES)
    if not isinstance(types, memoryview) or len(types) != len(tokens):
        raise CorruptFileError(
            f"{model.path}: {_TYPES} must be an array with a number for each of {len(tokens)} tokens"
        )
    vocab: dict[str, int] = {}
    added: dict[int, AddedToken] = {}
    unknown = None
    for id, (token, kind) in enumerate(zip(tokens, types.tolist(), strict=True)):
        if kind == _NORMAL:
            vocab[token] = id
        elif kind in (_CONTROL, _USER_DEFINED):
            added[id] = AddedToken(token, special=_SPECIAL.get(token, kind == _CONTROL), normalized=False)
        elif kind != _UNUSED:
            unknown = unknown or f"token {id} ({token[:40]!r}) has the type {kind}, which Qwen3's vocabulary lacks"
    if unknown is None and len(vocab) + len(added) + types.tolist().count(_UNUSED) != len(tokens):
        unknown = "a token stands there twice"
    if unknown:
        raise CorruptFileError(f"{model.path}: {_TOKENS}: {unknown}")
    pairs: list[Any] = [tuple(merge.split(" ")) for merge in merges]
    wrong = next((i for i, pair in enumerate(pairs) if len(pair) != 2), None)
    if wrong is not None:
        raise CorruptFileError(f"{model.path}: {_MERGES}: entry {wrong} is {merges[wrong][:40]!r}, not two tokens")
    try:
        tok = build(vocab, pairs, added)
    except Exception as error:  # the library raises plain Exception
        raise CorruptFileError(f"{model.path}: {_TOKENS} and {_MERGES} do not fit together ({error})") from None
    for id, control in added.items():
        if tok.token_to_id(control.content) != id:
            raise CorruptFileError(f"{model.path}: {_TOKENS}: {control.content} stands before an ordinary token")
    template = model.metadata.get("tokenizer.chat_template")
    sidecars = {"chat_template.jinja": template.encode()} if isinstance(template, str) else {}
    return Tokenizer(tok, sidecars, str(model.path))


def _strings(model: Gguf, key: str) -> list[str]:
    value = model.metadata.get(key)
    if not isinstance(value, Strings):
        what = "is missing" if value is None else "must be an array of strings"
        raise CorruptFileError(f"{model.path}: {key} {what}; take a newer conversion of the model")
    return list(value)


def gguf_template(model: Gguf) -> str | SandboxTemplate | None:
    """The chat template in the metadata: the name of the official one it equals, else a SandboxTemplate; None: none.

    Raises CorruptFileError if it is not a text.
    """
    text = model.metadata.get("tokenizer.chat_template")
    if text is None:
        return None
    if not isinstance(text, str):
        raise CorruptFileError(f"{model.path}: tokenizer.chat_template is not a text")
    return recognise(text, str(model.path), lambda: _named_tokens(model))


def _named_tokens(model: Gguf) -> dict[str, Any]:
    """`eos_token` and its like, which a template may print."""
    named = {}
    tokens: list[str] | None = None
    for name, key in (("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding"), ("unk_token", "unknown")):
        id = model.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if type(id) is int and isinstance(model.metadata.get(_TOKENS), Strings):
            tokens = tokens or _strings(model, _TOKENS)
            if 0 <= id < len(tokens):
                named[name] = tokens[id]
    return named
