"""The entry of the `qwen3` command: runs a verb and turns whatever happens into one line and an exit code.

0 ok, 1 failure, 2 usage, 3 model not found or offline miss, 4 does not fit in memory, 5 remote error, 6 corrupt or
unsafe file, 7 sandbox refused, 130 interrupted, 141 the reader of our output went away. QWEN3_DEBUG=1 shows tracebacks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from qwen3.errors import OutOfMemoryError, Qwen3Error

INTERRUPTED, BROKEN_PIPE = 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `qwen3 ARGV…` (None: the process's own arguments) and returns its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
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
    from qwen3.cli.app import app

    code = app(args=args, prog_name="qwen3", standalone_mode=False)
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


def _usage(args: list[str], error: Exception) -> int:
    message = error.format_message()  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the whole help
        print(message, file=sys.stderr)
        return 2
    command = getattr(context, "command_path", "qwen3")
    return _fail(args, "UsageError", f"{message.rstrip('.')} (see {command} -h)", 2)


def _fail(args: list[str], kind: str, message: str, code: int) -> int:
    line = " ".join(message.split())
    try:
        sys.stdout.flush()
        if "--json" in args:
            from qwen3.cli.console import out_json

            out_json({"error": {"type": kind, "message": line, "exit_code": code}})
        print(f"error: {line}", file=sys.stderr, flush=True)
    except OSError:  # nobody is listening any more
        _close_stdout()
    return code


def _close_stdout() -> None:
    """Keeps the interpreter's own flush at exit from complaining about a pipe that is gone."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(null, stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
