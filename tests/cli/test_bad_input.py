"""Whatever is wrong: one line that says what, the right exit code, no traceback."""

from __future__ import annotations

import errno
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Command

NO_HUB = "http://127.0.0.1:9"  # the discard port: nothing listens


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("run", "./nothing-here", "hi"), 3, "./nothing-here: no such file or folder"),
        (("run", "qwen3:9b", "hi"), 3, "did you mean"),
        (("run", "-m", "nope", "hi"), 3, "nope"),
        (("run", "nobody/nothing", "hi"), 3, "not in the cache"),
        (("pull", "qwen3:0.6b"), 3, "not in the cache"),
        (("show", "nobody/nothing"), 3, "nobody/nothing"),
        (("verify", "qwen3:0.6b"), 3, "qwen3"),
        (("show", "missing.gguf"), 3, "missing.gguf"),
        (("frobnicate",), 2, "frobnicate"),
        (("run", "--frobnicate"), 2, "--frobnicate"),
        (("run", "--top-k", "many", "hi"), 2, "--top-k"),
        (("run", "--top-k", "-5", "hi"), 2, "top_k=-5"),
        (("run", "--temperature", "-1", "hi"), 2, "temperature=-1"),
        (("run", "--top-p", "nan", "hi"), 2, "top_p=nan"),
        (("run", "--max-tokens", "0", "hi"), 2, "max_tokens=0"),
        (("run", "--think-budget", "-1", "hi"), 2, "budget"),
        (("run",), 2, "no prompt"),
        (("run", ""), 2, "no prompt"),
        (("run", "--json"), 2, "no prompt"),
        (("run", " \n "), 2, "no prompt"),
        (("run", "qwen3:9b"), 2, "no prompt for the model 'qwen3:9b'"),
        (("run", "./nothing-here"), 3, "./nothing-here: no such file or folder"),
        (("run", "--device", "abacus", "qwen3:8b", "hi"), 2, "device='abacus' is not a device"),
        (("run", "--dtype", "int8", "qwen3:8b", "hi"), 2, "dtype='int8' is not supported"),
        (("run", "a", "b", "c"), 2, "quotes"),
        (("run", "--tools", "/no/such/file", "hi"), 2, "/no/such/file"),
        (("pull",), 2, "MODEL"),
    ],
)
def test_wrong_names_and_flags(qwen3: Command, arguments: tuple[str, ...], code: int, said: str) -> None:
    ran = qwen3(*arguments)
    assert ran.code == code
    assert said in ran.error
    assert ran.out == "" or "--json" in arguments


@pytest.mark.parametrize(
    "flags",
    [
        ("--think", "--no-think"),
        ("--no-think", "--think-budget"),
        ("--think", "--think-budget"),
        ("--raw", "--system"),
        ("--raw", "--think"),
        ("--raw", "--hide-thinking"),
    ],
)
def test_contradictory_flags_are_both_named(qwen3: Command, flags: tuple[str, str]) -> None:
    values = {"--think-budget": ["0" if "--think" in flags else "64"], "--system": ["x"]}
    ran = qwen3("run", *(part for flag in flags for part in (flag, *values.get(flag, []))), "hi")
    assert ran.code == 2
    assert all(flag in ran.error for flag in flags)


def test_off_with_budget_zero_is_no_contradiction(qwen3: Command, model: Path) -> None:
    assert qwen3("run", model, "hi", "--no-think", "--think-budget", "0", "-n", "2").code == 0


def test_a_tool_without_a_name_is_refused(qwen3: Command, tmp_path: Path) -> None:
    file = tmp_path / "tools.json"
    for tools in ([{"name": "ok"}, {"a": 1}], [{"name": "ok"}, {"type": "function", "function": {"name": ""}}]):
        file.write_text(json.dumps(tools))
        ran = qwen3("run", "--tools", file, "hi")
        assert ran.code == 2
        assert f"{file}: entry 1 has no function name" in ran.error


def test_errors_as_json(qwen3: Command) -> None:
    ran = qwen3("run", "./nothing-here", "hi", "--json")
    assert ran.code == 3
    error = json.loads(ran.out)["error"]
    assert error == {"type": "ModelNotFoundError", "message": ran.error, "exit_code": 3}
    ran = qwen3("run", "--frobnicate", "--json")
    assert json.loads(ran.out)["error"]["exit_code"] == ran.code == 2


def test_a_hub_that_cannot_be_reached(qwen3: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", NO_HUB)
    for arguments in (("run", "qwen3:0.6b", "hi"), ("pull", "Qwen/Qwen3-0.6B")):
        ran = qwen3(*arguments)
        assert ran.code == 5
        assert "127.0.0.1:9" in ran.error


def header(size: int, table: bytes = b"{}") -> bytes:
    return struct.pack("<Q", size) + table


@pytest.mark.parametrize("verb", ["run", "verify"])
@pytest.mark.parametrize("damage", ["empty", "truncated", "huge", "junk"])
def test_broken_safetensors(qwen3: Command, plain_copy: Path, damage: str, verb: str) -> None:
    file = plain_copy / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(
        {
            "empty": b"",
            "truncated": whole[: len(whole) // 2],
            "huge": header(2**60),
            "junk": header(16, b"not really JSON!"),
        }[damage]
    )
    ran = qwen3(verb, plain_copy, *(["hi"] if verb == "run" else []))
    assert ran.code == 6
    assert "model.safetensors" in ran.out + ran.err
    assert "Traceback" not in ran.err
    if verb == "run":
        assert "model.safetensors" in ran.error


def test_a_flipped_bit_is_found_by_verify(qwen3: Command, copy: Path) -> None:
    assert qwen3("verify", copy).code == 0
    file = copy / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    ran = qwen3("verify", copy, "--json")
    report = json.loads(ran.out)
    assert ran.code == 6
    assert report["ok"] is False
    assert any(f["severity"] == "error" and "model.safetensors" in f["message"] for f in report["findings"])


def test_nan_weights_are_found_by_verify(qwen3: Command, plain_copy: Path) -> None:
    file = plain_copy / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4:] = struct.pack("<f", float("nan"))
    file.write_bytes(data)
    ran = qwen3("verify", plain_copy)
    assert ran.code == 6
    assert "NOT SOUND" in ran.out
    assert "NaN" in ran.out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "llama"}, "llama"),
        ({"sliding_widow": 4}, "sliding_widow"),
        ({"num_attention_heads": 3}, "num_attention_heads"),
        ({"num_experts_per_tok": 4}, "num_experts_per_tok"),
        ({"vocab_size": "many"}, "vocab_size"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "show"])
def test_wrong_config(qwen3: Command, plain_copy: Path, verb: str, change: dict[str, Any], said: str) -> None:
    file = plain_copy / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    ran = qwen3(verb, plain_copy, *(["hi"] if verb == "run" else []))
    assert ran.code == 6
    assert said in ran.error


def test_config_that_is_no_json(qwen3: Command, plain_copy: Path) -> None:
    (plain_copy / "config.json").write_text("{")
    ran = qwen3("run", plain_copy, "hi")
    assert ran.code == 6
    assert "config.json" in ran.error


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickles_are_refused_unopened(qwen3: Command, plain_copy: Path, name: str) -> None:
    (plain_copy / "model.safetensors").rename(plain_copy / name)
    for target in (plain_copy, plain_copy / name):
        ran = qwen3("run", target, "hi")
        assert ran.code == 6
        assert name in ran.error
        assert "safetensors" in ran.error


def test_larger_than_memory_is_refused_with_the_numbers(
    qwen3: Command, plain_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen3.checkpoint.memory.available_bytes", lambda device=None: 1000)
    ran = qwen3("run", plain_model, "hi")
    assert ran.code == 4
    assert "1,000" in ran.error


def test_a_published_model_larger_than_memory_is_not_downloaded_first(
    qwen3: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", NO_HUB)  # asking it would be exit code 5
    monkeypatch.setattr("qwen3.checkpoint.memory.available_bytes", lambda device=None: 8 * 10**9)
    for name in ("qwen3:32b", "Qwen/Qwen3-32B@main", "qwen3:30b-a3b"):
        ran = qwen3("run", name, "hi")
        assert ran.code == 4
        assert "8,000,000,000 free" in ran.error
    assert qwen3("run", "qwen3:0.6b", "hi").code == 5
    assert qwen3("pull", "qwen3:32b").code == 5  # to have it here is no reason to run it here


def test_a_prompt_longer_than_the_context(qwen3: Command, model: Path) -> None:
    ran = qwen3("run", model, "word " * 2000)
    assert ran.code == 2
    assert "512" in ran.error


def test_a_full_disk_behind_stdout(qwen3: Command, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("qwen3.cli.session.out", full)
    ran = qwen3("run", model, "hi", "--no-think", "-n", "3")
    assert ran.code == 1
    assert ran.error == "No space left on device"


def test_a_bug_is_one_line_too(qwen3: Command, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oh\nno")

    monkeypatch.setattr("qwen3.cli.session.LLM", broken)
    ran = qwen3("run", model, "hi")
    assert ran.code == 1
    assert ran.error == "ZeroDivisionError: oh no (this is a bug in qwen3; QWEN3_DEBUG=1 shows where)"
    monkeypatch.setenv("QWEN3_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        qwen3("run", model, "hi")
