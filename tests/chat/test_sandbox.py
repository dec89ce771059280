"""A checkpoint's own template: recognised, or rendered within limits."""

from __future__ import annotations

import json
import os
import random
import threading
import time

import pytest

from qwen3.chat import SandboxTemplate, encode, render, template_for, template_mode
from qwen3.chat.sandbox_template import MAX_TEMPLATE
from qwen3.errors import CorruptFileError, ModelNotFoundError, SandboxError, UsageError
from qwen3.tokenizer import CONTROL_TOKENS
from tests.chat.random_chat import conversation, tool

CHAT = [{"role": "user", "content": "Q"}]


@pytest.fixture(scope="module")
def own(templates) -> dict[str, SandboxTemplate]:
    """The official templates as if they were unknown."""
    return {name: SandboxTemplate(text) for name, text in templates.items()}


def test_templates_are_recognised(tok, templates, tmp_path):
    tok.prefix(256).save(tmp_path)
    assert template_for(tmp_path) == "qwen3"
    (tmp_path / "chat_template.jinja").write_text(templates["instruct-2507"] + "\n")
    assert template_for(str(tmp_path)) == "instruct-2507"
    (tmp_path / "chat_template.jinja").write_text("{{ eos_token }}{{ messages[0].content }}")
    unknown = template_for(tmp_path)
    assert isinstance(unknown, SandboxTemplate)
    assert render(CHAT, template=unknown) == "<|im_end|>Q"


def test_templates_in_a_config(tmp_path):
    with pytest.raises(ModelNotFoundError, match="no such folder"):
        template_for(tmp_path / "missing")
    assert template_for(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(
        json.dumps({"chat_template": [{"name": "default", "template": "x"}], "eos_token": {"content": "e"}})
    )
    assert render(CHAT, template=template_for(tmp_path)) == "x"
    for bad in ("{", "[]", '{"chat_template": 5}'):
        config.write_text(bad)
        with pytest.raises(CorruptFileError, match=str(tmp_path)):
            template_for(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    config.write_text("{}")
    with pytest.raises(CorruptFileError, match="the chat template cannot be read"):
        template_for(tmp_path)


def test_unknown_templates_render_as_in_transformers(own, oracle):
    rng = random.Random(3)
    for _ in range(150):
        messages, name = conversation(rng), rng.choice(list(own))
        tools = [tool(rng, True)] if rng.random() < 0.3 else None
        thinking = rng.choice([None, True, False])
        expected = oracle(messages, tools=tools, enable_thinking=thinking, template=name)
        assert render(messages, tools=tools, enable_thinking=thinking, template=own[name]) == expected


def test_ids_are_those_of_the_own_renderer(own, tok):
    rng = random.Random(31)
    equal = 0
    for _ in range(200):
        messages, name = conversation(rng, tags=False), rng.choice(list(own))
        ours, theirs = (encode(messages, tokenizer=tok, template=template) for template in (name, own[name]))
        if not ours.warnings:
            assert theirs == ours
            equal += 1
    assert equal > 100


def test_no_injection_through_an_unknown_template(tok):
    template = SandboxTemplate(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{{ m.name }}<|im_end|>\n{% endfor %}"
        "{{ tools | tojson }}{{ tools | tojson(ensure_ascii=True) }}"
    )
    for control, _ in CONTROL_TOKENS.values():
        messages = [{"role": "user", "content": f"é{control}<|im_", "name": "end|>"}]
        tools = [{"a": control, control: [control]}]
        encoded = encode(messages, tokenizer=tok, tools=tools, template=template)
        assert [id for id in encoded.ids if id >= 151_643] == [151_644, 151_645]
        assert tok.decode(encoded.ids) == render(messages, tools=tools, template=template)
        assert [warning.split(" ")[0] for warning in encoded.warnings] == ["messages[0]", "tools[0]"]


def test_modes(own):
    assert {name: template.mode for name, template in own.items()} == {
        "qwen3": "hybrid",
        "instruct-2507": "instruct",
        "thinking-2507": "thinking",
    }
    assert [template_mode(name) for name in own] == ["hybrid", "instruct", "thinking"]
    assert SandboxTemplate("x{# </think> #}").mode == "hybrid"
    assert SandboxTemplate("x<think>\n\n</think>\n\n").mode == "instruct"
    assert own["qwen3"].switchable
    assert not own["thinking-2507"].switchable


@pytest.mark.parametrize(
    ("text", "error", "kind"),
    [
        ("{{ 'a' * 10**10 }}", "MemoryError", SandboxError),
        (
            "{% for i in range(90000) %}{{ 'a' * 1000 }}{% endfor %}",
            "it makes more than 16777216 characters",
            SandboxError,
        ),
        ("{{ ''.__class__.__mro__ }}", "unsafe", SandboxError),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "unsafe", SandboxError),
        ("{{ messages.append(1) }}", "unsafe", SandboxError),
        ("{% include '/etc/passwd' %}", "no loader", UsageError),
        ("{% import 'os' as os %}", "no loader", UsageError),
        ("{{ x.y.z }}", "'x' is undefined", UsageError),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate", UsageError),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion", UsageError),
        ("line\n{% for %}", "line 2: ", CorruptFileError),
        ("{{ x", "line 1: ", CorruptFileError),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big", SandboxError),
    ],
)
def test_bad_templates_are_refused(text, error, kind):
    with pytest.raises(kind, match=error) as caught:
        SandboxTemplate(text, "model/chat_template.jinja").render(CHAT)
    assert str(caught.value).startswith("model/chat_template.jinja: the chat template cannot be rendered: ")


def test_a_loop_without_end_is_killed():
    loop = "{% for i in range(99999) %}" * 4 + "{% endfor %}" * 4
    template = SandboxTemplate(f"{{% if messages[0].content == 'slow' %}}{loop}{{% endif %}}ok")
    assert template.render(CHAT) == "ok"
    worker = template._worker
    begin = time.perf_counter()
    with pytest.raises(SandboxError, match="it takes longer than 2 s"):
        template.render([{"role": "user", "content": "slow"}])
    assert time.perf_counter() - begin < 10
    assert worker.poll() is not None
    assert template.render(CHAT) == "ok"  # in a new process


def test_size_limit():
    with pytest.raises(UsageError, match="more than 1048576"):
        SandboxTemplate("x" * (MAX_TEMPLATE + 1))


def test_the_process_ends_with_its_template():
    template = SandboxTemplate("ok")
    template.render(CHAT)
    pid = template._worker.pid
    del template
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_threads_share_a_template():
    template = SandboxTemplate("{{ messages[0].content }}")
    results = {}

    def work(i: int) -> None:
        results[i] = [template.render([{"role": "user", "content": f"{i}-{j}"}]) for j in range(20)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: [f"{i}-{j}" for j in range(20)] for i in range(4)}
