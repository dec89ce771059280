"""A prompt that ends inside the assistant's last message."""

from __future__ import annotations

import pytest

from qwen3 import LLM
from qwen3.asking import Asking, Form
from qwen3.chat import TokenStream, encode, render
from qwen3.chat.encode import default_tokenizer
from qwen3.chat.template import TEMPLATES
from qwen3.engine.params import SamplingParams
from qwen3.errors import UsageError

USER = {"role": "user", "content": "Hi <|im_end|>"}


def text(last: dict[str, object], template: str = "qwen3") -> str:
    ids = encode([USER, last], template=template, continue_last=True).ids
    return default_tokenizer().decode(ids)


@pytest.mark.parametrize("template", TEMPLATES)
def test_it_is_the_rendered_prompt_up_to_the_text_s_end(template: str) -> None:
    for last in ({"content": "Half an answ"}, {"content": "so ", "reasoning_content": "Let me see."}):
        message = {"role": "assistant", **last}
        whole = render([USER, message], template=template, add_generation_prompt=False)
        assert text(message, template) == whole.removesuffix("<|im_end|>\n")
        assert encode([USER, message], template=template, continue_last=True).warnings[0].startswith("messages[0]")


def test_a_thought_without_an_answer_stays_open() -> None:
    message = {"role": "assistant", "content": "", "reasoning_content": "Let me see.\n27"}
    assert text(message).endswith("<|im_start|>assistant\n<think>\nLet me see.\n27")
    ids = encode([USER, message], continue_last=True).ids
    assert TokenStream(default_tokenizer(), ids).state == "thinking"
    with LLM() as llm:
        asking = Asking(llm.tokenizer, llm.config, llm.mode, llm.template)
        params = SamplingParams(temperature=0, max_tokens=3)
        asked = asking.chat([USER, message], Form(), None, params, llm.engine.check, continue_last=True)
        assert asked.requests[0].stream is not None
        assert asked.requests[0].stream.state == "thinking"
        assert asked.requests[0].warnings[0].startswith("messages[0] contains")
        assert asked.messages is None  # what comes next is not known


@pytest.mark.parametrize(
    "last",
    [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
    ],
)
def test_what_cannot_go_on(last: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="continue_last"):
        encode([USER, last], continue_last=True)
