"""What a model on this disk can do, and which tokenizer and chat template it wants."""

from __future__ import annotations

from typing import cast

from qwen3 import family
from qwen3.chat import SandboxTemplate, template_for, template_mode
from qwen3.checkpoint.gguf.files import open_gguf
from qwen3.checkpoint.gguf.tokenizer import gguf_template, gguf_tokenizer
from qwen3.checkpoint.resolved import Resolved
from qwen3.config import ModelConfig
from qwen3.errors import ConfigError
from qwen3.family import Mode
from qwen3.tokenizer import Tokenizer


def detect_mode(
    resolved: Resolved, config: ModelConfig, endoftext: int = family.ENDOFTEXT
) -> tuple[Mode, str | SandboxTemplate, str | None]:
    """(mode, template, a warning or None): the folder's own template, else that of the published model it is.

    A published repository has the family's mode. Another folder's is read off its template, but "base" where the only
    end of its texts is the tokenizer's `endoftext` id. Raises CorruptFileError for a template that cannot be read.
    """
    own = gguf_template(open_gguf(resolved.path)) if resolved.kind == "gguf" else template_for(resolved.path)
    published = family.resolve_repo(resolved.repo) if resolved.repo else None
    if published is not None:
        return published[0].mode, own or published[0].template, None
    template = own or family.TEMPLATE_OF["hybrid"]
    base = config.eos_token_ids == (endoftext,)
    mode = "base" if base else cast(Mode, template_mode(template))
    missing = f"{resolved.name} has no chat template: that of the hybrid Qwen3 models is used"
    return mode, template, None if own else missing


def find_tokenizer(resolved: Resolved, config: ModelConfig) -> tuple[Tokenizer, str | None]:
    """The model's tokenizer, and what is doubtful about it.

    Raises ConfigError where there is none and the official one cannot be meant, CorruptFileError for a broken one.
    """
    if resolved.kind == "gguf":
        return gguf_tokenizer(open_gguf(resolved.path), config)
    if any((resolved.path / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        return Tokenizer.from_pretrained(resolved.path), None
    official = Tokenizer.from_pretrained()
    if official.vocab_size > config.vocab_size:
        raise ConfigError(
            f"{resolved.path} has no tokenizer files, and the official Qwen3 tokenizer's {official.vocab_size:,} "
            f"tokens do not belong to a vocab_size of {config.vocab_size:,}: add the model's own tokenizer.json"
        )
    return official, f"{resolved.name} has no tokenizer files: the official Qwen3 tokenizer is used"
