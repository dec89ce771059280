"""The entry of the `qwen3` command: runs a verb and turns whatever happens into one line and an exit code.

0 ok, 1 failure, 2 usage, 3 model not found or offline miss, 4 does not fit in memory, 5 remote error, 6 corrupt or
unsafe file, 7 sandbox refused, 130 interrupted, 141 the reader of our output went away. QWEN3_DEBUG=1 shows tracebacks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from qwen3.errors import OutOfMemoryError, Qwen3Error

INTERRUPTED, BROKEN_PIPE = 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `qwen3 ARGV…` (None: the process's own arguments) and returns its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us (>&-): as good as /dev/null
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character is no failure
    try:
        code = _run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _fail(args, "Interrupted", "interrupted", INTERRUPTED)
    except BrokenPipeError:
        _close_stdout()
        return BROKEN_PIPE
    except Exception as error:
        if os.environ.get("QWEN3_DEBUG"):
            raise
        return _explain(args, error)


def _run(args: list[str]) -> int:
    if args and args[0] in ("version", "--version") and set(args[1:]) <= {"--json"}:
        from qwen3.cli.version import version  # without the 0.2 s that the parser of all other verbs takes

        return version("--json" in args)
    import typer

    from qwen3.cli.app import app

    if "_QWEN3_COMPLETE" in os.environ:
        app(prog_name="qwen3")  # a shell asks for completions: prints them and leaves
    command = typer.main.get_command(app)
    try:  # not app(args): that keeps Ctrl-C and broken pipes to itself
        with command.make_context("qwen3", args) as context:
            code = command.invoke(context)
    except typer.Exit as leaving:
        return leaving.exit_code
    return code if isinstance(code, int) else 0


def _explain(args: list[str], error: Exception) -> int:
    kind = type(error).__name__
    if isinstance(error, Qwen3Error):
        return _fail(args, kind, str(error), error.exit_code)
    if hasattr(error, "format_message"):  # a parse error; typer carries its own click in some releases, so no class
        return _usage(args, error)
    if kind == "Abort":
        return _fail(args, "Interrupted", "interrupted", INTERRUPTED)
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError":  # Python's own, or torch's on a device
        return _fail(args, kind, f"out of memory: {error}", OutOfMemoryError.exit_code)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(args, kind, f"{where}{error.strerror}", 1)
    hint = "this is a bug in qwen3; QWEN3_DEBUG=1 shows where"
    return _fail(args, kind, f"{kind}: {error} ({hint})", 1)


def _usage(args: list[str], error: Any) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message(), flush=True)
        return 2
    command = getattr(context, "command_path", "qwen3")
    return _fail(args, "UsageError", f"{error.format_message().rstrip('.')} (see {command} -h)", 2)


def _fail(args: list[str], kind: str, message: str, code: int) -> int:
    line = " ".join(message.split())
    try:
        if "--json" in args:
            from qwen3.cli.console import out_json

            out_json({"error": {"type": kind, "message": line, "exit_code": code}})
        sys.stdout.flush()
    except OSError:  # nobody reads it, or the disk is full
        _close_stdout()
    with suppress(OSError):
        print(f"error: {line}", file=sys.stderr, flush=True)
    return code


def _close_stdout() -> None:
    """Keeps the interpreter's own flush at exit from complaining about a pipe that is gone."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
