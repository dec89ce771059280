"""The packaged tokenizer and, as oracle, `transformers` with the official templates."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from qwen3.chat import encode
from qwen3.tokenizer import Tokenizer
from qwen3.tokenizer.files import packaged


@pytest.fixture(scope="session")
def tok() -> Tokenizer:
    return Tokenizer.from_pretrained()


@pytest.fixture(scope="session")
def prompts(tok: Tokenizer) -> dict[str, list[int]]:
    """Prompt ids by the state they start."""
    user = [{"role": "user", "content": "Q"}]
    return {
        "start": encode(user, tokenizer=tok).ids,
        "answer": encode(user, tokenizer=tok, enable_thinking=False).ids,
        "thinking": encode(user, tokenizer=tok, template="thinking-2507").ids,
    }


@pytest.fixture(scope="session")
def templates() -> dict[str, str]:
    """The Jinja originals. Thinking-2507 differs from the hybrid one in its last block alone."""
    hybrid = json.loads(packaged("tokenizer_config.json"))["chat_template"]
    head, tail = hybrid.split("{%- if add_generation_prompt %}")
    assert "enable_thinking" in tail
    assert "enable_thinking" not in head
    thinking = head + "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n<think>\\n' }}\n{%- endif %}"
    instruct = packaged("qwen3_instruct_2507.jinja").decode()
    return {"qwen3": hybrid, "instruct-2507": instruct, "thinking-2507": thinking}


@pytest.fixture(scope="session")
def oracle(tok, templates, tmp_path_factory) -> Callable[..., str]:
    """`apply_chat_template` of transformers, without tokenizing."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("oracle")
    tok.prefix(300).save(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def apply(messages, *, template="qwen3", enable_thinking=None, **options) -> str:
        if enable_thinking is not None:
            options["enable_thinking"] = enable_thinking
        return tokenizer.apply_chat_template(
            messages, chat_template=templates[template], tokenize=False, **{"add_generation_prompt": True, **options}
        )

    return apply
