"""What a model on this disk can do, and which chat template it wants."""

from __future__ import annotations

from typing import cast

from qwen3 import family
from qwen3.chat import SandboxTemplate, template_for, template_mode
from qwen3.checkpoint.resolved import Resolved
from qwen3.config import ModelConfig
from qwen3.family import Mode


def detect_mode(
    resolved: Resolved, config: ModelConfig, endoftext: int = family.ENDOFTEXT
) -> tuple[Mode, str | SandboxTemplate, str | None]:
    """(mode, template, a warning or None): the folder's own template, else that of the published model it is.

    A published repository has the family's mode. Another folder's is read off its template, but "base" where the only
    end of its texts is the tokenizer's `endoftext` id. Raises CorruptFileError for a template that cannot be read.
    """
    own = template_for(resolved.path)
    published = family.resolve_repo(resolved.repo) if resolved.repo else None
    if published is not None:
        return published[0].mode, own or published[0].template, None
    template = own or family.TEMPLATE_OF["hybrid"]
    base = config.eos_token_ids == (endoftext,)
    mode = "base" if base else cast(Mode, template_mode(template))
    missing = f"{resolved.name} has no chat template: that of the hybrid Qwen3 models is used"
    return mode, template, None if own else missing
