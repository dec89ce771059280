"""A checkpoint's own chat template: recognised as an official one, or rendered in a sandbox with limits.

An unknown template is a stranger's program. It runs in Jinja's immutable sandbox inside a child process that can open
no file and is killed when it takes longer than TIME_LIMIT seconds; template and output have size limits.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from qwen3.chat.messages import plain_messages
from qwen3.chat.template import Piece, apart, plain_tools
from qwen3.errors import CorruptFileError, ModelNotFoundError, Qwen3Error, SandboxError, UsageError

TIME_LIMIT = 2.0
MAX_TEMPLATE = 1 << 20
MAX_OUTPUT = 1 << 24
MAX_MEMORY = 1 << 30
_START_LIMIT = 60.0
_ERRORS: dict[str, type[Qwen3Error]] = {"syntax": CorruptFileError, "limit": SandboxError}

KNOWN = {
    "a55ee1b1660128b7098723e0abcd92caa0788061051c62d51cbe87d9cf1974d8": "qwen3",
    "64f85b198065d0fba2a81f37e10ed68161ce2c19a754c7100e67e0ca2ee9c326": "instruct-2507",
}
"""sha256 of the official templates, with no newline at the end, and our names for them."""


class SandboxTemplate:
    """A template that is none of the official ones. `render`, `encode` take it in place of a template's name.

    `variables` are further names the template may use (`eos_token`, …). Safe to share between threads; the child
    process starts with the first rendering and ends with this object.
    """

    def __init__(self, text: str, source: str = "chat template", variables: dict[str, Any] | None = None):
        """`source` is what error messages call it. Raises UsageError if it is larger than MAX_TEMPLATE characters."""
        if len(text) > MAX_TEMPLATE:
            raise UsageError(f"{source}: the chat template has {len(text)} characters, more than {MAX_TEMPLATE}")
        self.text = text
        self.source = source
        self.variables = variables or {}
        self._lock = threading.Lock()
        self._worker: subprocess.Popen[str] | None = None

    def render(
        self,
        messages: Any,
        *,
        tools: Any = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool | None = None,
    ) -> str:
        """The prompt text. Raises CorruptFileError for a template that is none, SandboxError for one that reaches for
        what it may not or goes over a limit, UsageError if it refuses or fails on these messages."""
        variables: dict[str, Any] = {
            **self.variables,
            "messages": plain_messages(messages),
            "tools": plain_tools(tools) or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        if enable_thinking is not None:
            variables["enable_thinking"] = enable_thinking
        try:
            request = json.dumps({"variables": variables})
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"messages or tools have no JSON form: {error}") from None
        with self._lock:
            reply = self._ask(self._running_worker(), request, TIME_LIMIT)
        if "text" not in reply:
            kind = _ERRORS.get(reply.get("kind", ""), UsageError)
            raise kind(f"{self.source}: the chat template cannot be rendered: {reply.get('error')}")
        text: str = reply["text"]
        return text

    def pieces(
        self,
        messages: Any,
        *,
        tools: Any = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool | None = None,
        control: tuple[str, ...],
    ) -> list[Piece]:
        """As `template.pieces`: the template's own text apart from what was given.

        While rendering, every given character that begins a control string ("<") is replaced by a private one, so that
        a control string in the output is the template's. Think blocks inside assistant content are split off before,
        since the template could no longer see them.
        """
        turns, schemas = apart(plain_messages(messages)), plain_tools(tools)
        used = json.dumps([turns, schemas, self.variables, self.text], ensure_ascii=False)
        unused = (chr(code) for code in range(0xE000, 0xF900) if chr(code) not in used)
        firsts = {next((char for char in text if not char.isalnum()), text[0]) for text in control}
        private = {first: next(unused) for first in sorted(firsts)}
        hide = str.maketrans(private)
        text = self.render(
            [{key: _translate(value, hide) for key, value in turn.items()} for turn in turns],
            tools=_translate(schemas, hide),
            add_generation_prompt=add_generation_prompt,
            enable_thinking=enable_thinking,
        )
        given = {char: first for first, char in private.items()}
        given |= {f"\\u{ord(char):04x}": first for char, first in list(given.items())}  # as tojson may escape it
        pieces = [Piece(text)]
        for mark, first in given.items():
            pieces = [part for piece in pieces for part in _split(piece, mark, first)]
        return pieces

    @cached_property
    def switchable(self) -> bool:
        """Whether `enable_thinking=False` changes the prompt."""
        return self._probe() != self._probe(enable_thinking=False)

    @cached_property
    def mode(self) -> str:
        """What the template is made for: "hybrid", "thinking" (it opens the think block) or "instruct"."""
        if self.switchable:
            return "hybrid"
        prompt = self._probe().rstrip()
        if prompt.endswith("<think>"):
            return "thinking"
        return "hybrid" if "</think>" in self.text and not prompt.endswith("</think>") else "instruct"

    def _probe(self, enable_thinking: bool | None = None) -> str:
        try:
            return self.render([{"role": "user", "content": "x"}], enable_thinking=enable_thinking)
        except UsageError as error:  # nothing is wrong with these messages
            raise CorruptFileError(str(error)) from None

    def _running_worker(self) -> subprocess.Popen[str]:
        if self._worker is not None and self._worker.poll() is None:
            return self._worker
        worker = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("sandbox_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="ascii",
        )
        weakref.finalize(self, _end, worker)
        limits = {"max_bytes": MAX_OUTPUT, "max_memory": MAX_MEMORY}
        setup = json.dumps({"path": sys.path, "template": self.text, **limits})
        reply = self._ask(worker, setup, _START_LIMIT)
        if "ready" not in reply:
            raise UsageError(f"{self.source}: the chat template is none of the official ones; {reply.get('error')}")
        self._worker = worker
        return worker

    def _ask(self, worker: subprocess.Popen[str], request: str, seconds: float) -> dict[str, Any]:
        """One line there, one line back; the child is killed if that takes longer than `seconds`."""
        assert worker.stdin is not None
        assert worker.stdout is not None
        killed = threading.Event()

        def kill() -> None:
            killed.set()
            worker.kill()

        timer = threading.Timer(seconds, kill)
        timer.start()
        line = ""
        try:
            worker.stdin.write(request + "\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
        except OSError:
            pass  # it died: there is no line
        finally:
            timer.cancel()
        if line.endswith("\n"):
            reply: dict[str, Any] = json.loads(line)
            return reply
        _end(worker)
        if killed.is_set():
            return {"error": f"it takes longer than {seconds:g} s", "kind": "limit"}
        return {"error": "its process ended, probably for lack of memory", "kind": "limit"}


def _end(worker: subprocess.Popen[str]) -> None:
    worker.kill()
    worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        try:
            if pipe:
                pipe.close()
        except OSError:
            pass  # what was not yet sent to a dead process


def _translate(value: Any, table: dict[int, str]) -> Any:
    if isinstance(value, str):
        return value.translate(table)
    if isinstance(value, dict):
        return {_translate(key, table): _translate(item, table) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_translate(item, table) for item in value]
    return value


def _split(piece: Piece, mark: str, first: str) -> list[Piece]:
    """`piece` cut at `mark`, which becomes the given character `first`."""
    if piece.source is not None:
        return [piece]
    parts: list[Piece] = []
    for i, text in enumerate(piece.text.split(mark)):
        parts += [Piece(first, "message")] * (i > 0) + [Piece(text)]
    return parts


def template_for(folder: str | os.PathLike[str]) -> str | SandboxTemplate | None:
    """The template of a checkpoint folder: the name of the official one it equals, else a SandboxTemplate.

    Read from `chat_template.jinja`, else from `tokenizer_config.json`; None where neither has one. Raises
    ModelNotFoundError without such a folder, CorruptFileError if the file cannot be read.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ModelNotFoundError(f"{path}: no such folder")
    file, config_file = path / "chat_template.jinja", path / "tokenizer_config.json"
    try:
        config = json.loads(config_file.read_bytes()) if config_file.is_file() else {}
        text = file.read_text(encoding="utf-8") if file.is_file() else None
    except (OSError, ValueError) as error:
        raise CorruptFileError(f"{path}: the chat template cannot be read ({error}); fetch the file again") from None
    if not isinstance(config, dict):
        raise CorruptFileError(f"{config_file}: holds {type(config).__name__}, not a JSON object")
    if text is None:
        file, text = config_file, config.get("chat_template")
    if isinstance(text, list):
        named = {item.get("name"): item.get("template") for item in text if isinstance(item, dict)}
        text = named.get("default")
    if text is None:
        return None
    if not isinstance(text, str):
        raise CorruptFileError(f"{file}: chat_template is not a text")
    return recognise(text, str(file), lambda: _special_tokens(config))


def recognise(
    text: str, source: str = "chat template", variables: Callable[[], dict[str, Any]] = dict
) -> str | SandboxTemplate:
    """The name of the official template that `text` is, else a SandboxTemplate with `variables()`."""
    digest = hashlib.sha256(text.rstrip("\n").encode("utf-8", "surrogatepass")).hexdigest()
    return KNOWN.get(digest) or SandboxTemplate(text, source, variables())


def template_mode(template: str | SandboxTemplate) -> str:
    """ "hybrid", "thinking" or "instruct"."""
    if isinstance(template, SandboxTemplate):
        return template.mode
    return {"instruct-2507": "instruct", "thinking-2507": "thinking"}.get(template, "hybrid")


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    tokens = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            tokens[name] = value
    return tokens
