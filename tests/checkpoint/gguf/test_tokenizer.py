"""The tokenizer and template in the metadata."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from qwen3.chat import SandboxTemplate
from qwen3.checkpoint import resolve
from qwen3.checkpoint.gguf.config import gguf_config
from qwen3.checkpoint.gguf.files import open_gguf
from qwen3.checkpoint.gguf.tokenizer import gguf_template, gguf_tokenizer
from qwen3.errors import ConfigError, CorruptFileError
from qwen3.tokenizer import Tokenizer
from tests.checkpoint.gguf.build import ARRAY, add_tokenizer, build, metadata, tensors

CORPUS = [
    "", " ", "\n\n  \n", "Hello, world!", "What is 27 * 14? It's 378.", "l'été, Größe, naïve", "漢字とかな、한국어",
    "def f(x):\n\treturn x**2  # ok\r\n", "🙂🙃 👩‍👩‍👧", "e\u0301 and é", "3.14159 1,000,000", "I'LL don't WE'RE",
    "<|im_start|>user\nhi<|im_end|>\n<think>\n\n</think>\n\n<tool_call>{}</tool_call><|fim_prefix|>", "a" * 5000,
    "\u200b\ufeff\x00 \x7f", "ﬁ ① ½", "مرحبا بالعالم", "नमस्ते दुनिया", "x" + " " * 80 + "y",
]  # fmt: skip


def read(file: Path, meta: dict[str, Any], rows: int = 320) -> tuple[Tokenizer, str | None]:
    file.write_bytes(build(metadata() | meta, tensors(token_embd=((32, rows), 2))))
    model = open_gguf(file)
    return gguf_tokenizer(model, gguf_config(model))


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF with the official tokenizer, by the `gguf` package's own writer."""
    gguf = pytest.importorskip("gguf")
    folder = tmp_path_factory.mktemp("official")
    Tokenizer.from_pretrained().save(folder)
    writer = gguf.GGUFWriter(folder / "t.gguf", "qwen3")
    add_tokenizer(writer, folder, 151_936)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "t.gguf"


def test_equals_the_packaged_one(official: Path) -> None:
    class Rows:
        vocab_size = 151_936

    ours, packaged = gguf_tokenizer(open_gguf(official), Rows())[0], Tokenizer.from_pretrained()  # type: ignore[arg-type]
    assert ours.vocab_size == packaged.vocab_size == 151_669
    for text in CORPUS:
        assert ours.encode(text) == packaged.encode(text), text
        assert ours.encode_plain(text) == packaged.encode_plain(text), text
        ids = ours.encode(text)
        assert ours.decode(ids, skip_special_tokens=True) == packaged.decode(ids, skip_special_tokens=True)
    assert ours.added_tokens == packaged.added_tokens
    assert ours.special_ids == packaged.special_ids
    assert ours.control == packaged.control
    assert all(ours.token_bytes(id) == packaged.token_bytes(id) for id in range(0, 151_669, 37))
    assert gguf_template(open_gguf(official)) == "qwen3"


def small(**changed: Any) -> dict[str, Any]:
    """All bytes, one merge, and the control tokens behind them."""
    from qwen3.tokenizer.byte_level import ALPHABET
    from qwen3.tokenizer.control import CONTROL_TOKENS

    tokens = [*ALPHABET, "ab", *(text for text, _ in CONTROL_TOKENS.values()), "[PAD1]"]
    types = [1] * 257 + [3] * 26 + [5]
    meta: dict[str, Any] = {
        "model": "gpt2",
        "pre": "qwen2",
        "tokens": tokens,
        "token_type": (ARRAY, struct.pack(f"<IQ{len(types)}i", 5, len(types), *types)),
        "merges": ["a b"],
    } | changed
    return {f"tokenizer.ggml.{key}": value for key, value in meta.items() if value is not None}


def test_small_one(tmp_path: Path) -> None:
    tokenizer, doubt = read(tmp_path / "m.gguf", small())
    assert doubt is None
    assert tokenizer.vocab_size == 283
    assert tokenizer.encode("ab<think>") == [256, tokenizer.control.think]
    assert tokenizer.control.think not in tokenizer.special_ids  # whatever the converter thought
    tokenizer.save(tmp_path)
    assert Tokenizer.from_pretrained(tmp_path).encode("ab<think> ba") == tokenizer.encode("ab<think> ba")
    _, doubt = read(tmp_path / "m.gguf", small(add_bos_token=True))
    assert doubt is not None
    assert "add_bos_token" in doubt


def types(*numbers: int) -> tuple[int, bytes]:
    return ARRAY, struct.pack(f"<IQ{len(numbers)}i", 5, len(numbers), *numbers)


@pytest.mark.parametrize(
    ("changed", "message", "error"),
    [
        ({"model": "llama"}, "tokenizer.ggml.model is 'llama'; Qwen3's is 'gpt2'", ConfigError),
        ({"pre": "llama-bpe"}, "tokenizer.ggml.pre is 'llama-bpe', which splits texts otherwise", ConfigError),
        ({"pre": None}, "tokenizer.ggml.pre is 'None'", ConfigError),
        ({"tokens": None}, "tokenizer.ggml.tokens is missing", CorruptFileError),
        ({"tokens": 5}, "tokenizer.ggml.tokens must be an array of strings", CorruptFileError),
        ({"merges": None}, "tokenizer.ggml.merges is missing", CorruptFileError),
        ({"merges": ["a"]}, "merges: entry 0 is 'a', not two tokens", CorruptFileError),
        ({"merges": ["a zz"]}, "tokens and tokenizer.ggml.merges do not fit together", CorruptFileError),
        ({"token_type": None}, "token_type must be an array with a number for each of 284 tokens", CorruptFileError),
        ({"token_type": types(1, 1)}, "token_type must be an array with a number for each", CorruptFileError),
        ({"token_type": types(*[1] * 283, 6)}, r"token 283 \('\[PAD1\]'\) has the type 6", CorruptFileError),
        ({"token_type": types(3, *[1] * 282, 5)}, "stands before an ordinary token", CorruptFileError),
        ({"tokens": ["a"] * 284}, "a token stands there twice", CorruptFileError),
    ],
)
def test_refused(tmp_path: Path, changed: dict[str, Any], message: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=message):
        read(tmp_path / "m.gguf", small(**changed))


def test_more_tokens_than_rows(tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match="283 tokens, but the embedding has only 256 rows"):
        read(tmp_path / "m.gguf", small(), rows=256)


def test_none_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no tokenizer .* does not belong to a vocabulary of 320"):
        read(tmp_path / "m.gguf", {})
    tokenizer, said = read(tmp_path / "m.gguf", {}, rows=151_936)
    assert tokenizer.vocab_size == 151_669
    assert said == "m.gguf has no tokenizer: the official Qwen3 tokenizer is used"


def test_template_of_its_own(tmp_path: Path) -> None:
    meta = {"tokenizer.chat_template": "{{ eos_token }}{{ messages[0].content }}", "tokenizer.ggml.eos_token_id": 256}
    read(tmp_path / "m.gguf", small() | meta)
    template = gguf_template(open_gguf(tmp_path / "m.gguf"))
    assert isinstance(template, SandboxTemplate)
    assert template.variables == {"eos_token": "ab"}
    read(tmp_path / "m.gguf", small() | {"tokenizer.chat_template": 5})
    with pytest.raises(CorruptFileError, match="chat_template is not a text"):
        gguf_template(open_gguf(tmp_path / "m.gguf"))
    assert resolve(tmp_path / "m.gguf").name == "m"
