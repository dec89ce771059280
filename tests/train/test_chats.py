"""Users' rows: every shape they come in, and every way in which one may be wrong, told by its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3.errors import ModelNotFoundError, UsageError
from qwen3.tokenizer import Tokenizer
from qwen3.train.chats import BadRow, BadRowsError, Chat, ChatData, load_chats, preview, read_chats
from qwen3.train.conversations import Renderer

TOK = Tokenizer.from_pretrained().prefix(8192)
RENDERER = Renderer(TOK)
GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def load(path: Path, **options: Any) -> ChatData:
    return load_chats([path], RENDERER, options.pop("context", 4096), **options)


def texts(data: ChatData) -> list[str]:
    return [TOK.decode(sample.ids.tolist()) for sample in data.samples]


EXCHANGE = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4."}]
CALL = {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {"a": 1}}]}


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": EXCHANGE}, EXCHANGE),
        (
            {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4."}], "system": "Be."},
            [{"role": "system", "content": "Be."}, *EXCHANGE],
        ),
        (
            {
                "conversations": [
                    {"from": "user", "value": "2 + 2?"},
                    {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
                    {"from": "observation", "value": "4"},
                    {"from": "assistant", "value": "4."},
                ]
            },
            [EXCHANGE[0], CALL, {"role": "tool", "content": "4"}, EXCHANGE[1]],
        ),
        ({"conversations": EXCHANGE}, EXCHANGE),
        ({"instruction": "2 + 2?", "input": "", "output": "4."}, EXCHANGE),
        (
            {"instruction": "Add.", "input": "2, 2", "output": "4."},
            [{"role": "user", "content": "Add.\n\n2, 2"}, EXCHANGE[1]],
        ),
        (
            {"instruction": "2 + 2?", "output": "4.", "history": [["Hi", "Hello!"]]},
            [*GOOD["messages"], *EXCHANGE],
        ),
        ({"prompt": "2 + 2?", "completion": "4."}, EXCHANGE),
        ({"prompt": EXCHANGE[:1], "completion": EXCHANGE[1:]}, EXCHANGE),
        ({"prompt": EXCHANGE[:1], "completion": "4."}, EXCHANGE),
    ],
)  # fmt: skip
def test_rows_of_every_shape(tmp_path: Path, row: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    (chat,) = read_chats(write(tmp_path / "a.jsonl", row))
    assert isinstance(chat, Chat)
    assert chat.messages == messages
    assert chat.where == "a.jsonl line 1"
    assert load(tmp_path / "a.jsonl").rows == 1


def test_options_of_a_row_reach_the_prompt(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    thought = {**EXCHANGE[1], "reasoning_content": "Two and two."}
    path = write(
        tmp_path / "a.jsonl",
        {"messages": EXCHANGE, "tools": tools},
        {"messages": EXCHANGE, "tools": json.dumps(tools)},
        {"messages": [EXCHANGE[0], thought], "enable_thinking": True, "category": "sums", "id": 3},
        {"messages": EXCHANGE, "enable_thinking": False, "category": None},
    )
    data = load(path)
    first, second, third, fourth = texts(data)
    assert first == second
    assert '<tools>\n{"type": "function"' in first
    assert "<think>\nTwo and two.\n</think>\n\n4.<|im_end|>" in third
    assert "<think>\n\n</think>\n\n4.<|im_end|>" in fourth
    assert (data.thinking, data.direct, data.duplicates) == (1, 3, 1)
    assert data.unused == {"category": 1, "id": 1}
    assert "columns that are not used: category (1 row), id (1 row)" in data.report()


BAD = [
    ('{"messages": [', "not JSON: expecting value at column 15"),
    ("[1]", "a row must be a JSON object, not a list"),
    ({"text": "Hi"}, "messages, conversations, instruction or prompt; this one has only text"),
    ({"messages": EXCHANGE, "prompt": "Hi"}, "both messages and prompt"),
    ({"messages": "Hi"}, "messages must be a list of messages, not a text"),
    ({"messages": ["Hi"]}, r"messages\[0\] must be an object, not a text"),
    ({"messages": EXCHANGE[:1]}, "not user's: nothing would be trained"),
    ({"messages": [EXCHANGE[0], {"role": "bot", "content": "4."}]}, "must be the assistant's, not bot's"),
    ({"messages": [{"role": "human", "content": "Hi"}, EXCHANGE[1]]}, r"messages\[0\].role must be one of"),
    ({"messages": [{"role": "user", "content": 3}, EXCHANGE[1]]}, r"messages\[0\].content must be a string, not int"),
    ({"messages": [EXCHANGE[0], {"role": "assistant", "content": ""}]}, r"messages\[1\] is empty"),
    ({"messages": [EXCHANGE[0], {"role": "assistant", "contnet": "4."}]}, r"messages\[1\].contnet is not a field"),
    ({"messages": EXCHANGE, "tools": "{"}, "tools is a text that is not JSON"),
    ({"messages": EXCHANGE, "tools": {}}, "tools must be a list of JSON schemas, not an object"),
    ({"messages": EXCHANGE, "enable_thinking": "yes"}, "enable_thinking must be true or false, not 'yes'"),
    ({"messages": EXCHANGE, "enable_thinking": True}, "no reasoning_content, but enable_thinking"),
    (
        {"messages": [EXCHANGE[0], {**EXCHANGE[1], "thinking": "Two."}], "enable_thinking": False},
        r"enable_thinking is false, but messages\[1\] has reasoning",
    ),
    ({"messages": EXCHANGE, "verdict": "wrong"}, "only accepted answers are trained"),
    ({"conversations": [{"from": "alien", "value": "Hi"}]}, r"conversations\[0\] must have value, and from"),
    ({"conversations": [{"from": "function_call", "value": "add"}]}, "is a function_call, but not JSON"),
    ({"instruction": "Add."}, "output must be a text, not missing"),
    ({"instruction": "Add.", "output": "4.", "history": [["a"]]}, "history must be a list of"),
    ({"prompt": "Hi", "completion": 4}, "completion must be a text, not 4"),
    ({"prompt": EXCHANGE[:1]}, "completion must be a list of messages, not null"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_a_bad_row_is_told_by_its_line(tmp_path: Path, row: Any, reason: str) -> None:
    path = write(tmp_path / "a.jsonl", GOOD, "", row, GOOD)
    with pytest.raises(
        BadRowsError, match=rf"(?s)1 bad row of 3; nothing is trained:\n  a.jsonl line 3: .*{reason}"
    ) as told:
        load(path)
    assert "bad_rows=skip" in str(told.value)
    data = load(path, bad_rows="skip")
    assert (data.rows, len(data.samples), len(data.bad)) == (3, 2, 1)
    assert "skipped 1 bad row, the first: a.jsonl line 3" in data.report()


def test_all_bad_rows_are_told_at_once_and_the_rest_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD, *["{"] * 30)
    with pytest.raises(BadRowsError, match=r"30 bad rows of 31(?s:.)*a.jsonl line 21: (?s:.)*… and 10 more") as told:
        load(path)
    assert "line 22" not in str(told.value)
    assert [row.where for row in told.value.bad][-1] == "a.jsonl line 31"
    write(path, "{", "{")
    with pytest.raises(UsageError, match=r"nothing to train on: all 2 rows are bad, the first: a.jsonl line 1"):
        load(path, bad_rows="skip")


def test_bytes_that_are_no_text_and_nesting_without_end(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b'\r\n{"prompt": "\xff"}\n' + b"[" * 100_000 + b"\n")
    found = list(read_chats(path))
    assert isinstance(found[0], Chat)
    assert all(isinstance(row, BadRow) for row in found[1:])
    assert [str(row).split(":")[1].strip() for row in found[1:]] == [
        "not UTF-8 at byte 13",
        "not JSON that can be read",
    ]
    surrogate = write(path, '{"prompt": "\\ud800", "completion": "a"}')
    with pytest.raises(BadRowsError, match=r"messages\[0\].content"):
        load(surrogate)


def test_a_json_file_may_be_one_list(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([GOOD, {"prompt": "Hi"}]))
    with pytest.raises(BadRowsError, match=r"a.json row 2: completion must be a text, not missing"):
        load(path)
    path.write_text("[1, ")
    with pytest.raises(UsageError, match=r"a.json: not JSON"):
        load(path)
    with pytest.raises(UsageError, match=r"read from .jsonl files"):
        list(read_chats(tmp_path / "a.csv"))
    with pytest.raises(ModelNotFoundError, match="no such file"):
        load(tmp_path / "b.jsonl")


def test_what_does_not_fit_is_an_error_or_is_dropped_and_never_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD, {"prompt": "Hi", "completion": "word " * 100})
    with pytest.raises(BadRowsError, match=r"line 2: 1\d\d tokens; the context holds 64"):
        load(path, context=64)
    data = load(path, context=64, too_long="drop")
    assert (len(data.samples), data.too_long) == (1, 1)
    assert "dropped 1 sample longer than the context" in data.report()
    for options in ({"bad_rows": "keep"}, {"too_long": "cut"}, {"turns": "first"}):
        with pytest.raises(UsageError, match=next(iter(options))):
            load(path, **options)


def test_weights_are_streams_of_all_samples_or_of_none(tmp_path: Path) -> None:
    heavy = {"messages": [EXCHANGE[0], {**EXCHANGE[1], "weight": 2}]}
    assert not load(write(tmp_path / "a.jsonl", GOOD, GOOD)).samples[0].streams
    data = load(write(tmp_path / "a.jsonl", GOOD, heavy))
    for sample, weight in zip(data.samples, (1, 2), strict=True):
        np.testing.assert_array_equal(sample.streams["weight"], sample.trained * np.float32(weight))


def test_the_report_and_the_preview(tmp_path: Path) -> None:
    forged = {"prompt": "Hi <|im_end|>", "completion": "Hello \x1b[31m!"}
    path = write(
        tmp_path / "a.jsonl", {"messages": [EXCHANGE[0], {**EXCHANGE[1], "reasoning_content": "Two."}]}, forged
    )
    data = load(path)
    report = data.report()
    assert "2 rows, 2 samples (1 think, 1 do not)" in report
    assert "a.jsonl line 2: messages[0] contains the control string '<|im_end|>'" in report
    shown = preview(data.samples[0], TOK)
    assert shown == (
        "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n⟦<think>\nTwo.\n</think>\n\n4.<|im_end|>⟧"
    )
    assert preview(data.samples[0], TOK, color=True).endswith("\x1b[32m<think>\nTwo.\n</think>\n\n4.<|im_end|>\x1b[0m")
    assert "\x1b" not in preview(data.samples[1], TOK)
