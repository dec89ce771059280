"""`qwen3 diff`: what a variant of a model costs. The work is in `qwen3.evaluate.difference`."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwen3.cli.flags import Json
from qwen3.errors import UsageError

if TYPE_CHECKING:
    from qwen3.evaluate.difference import Difference

HELP = (
    "What variants of a model cost: size, perplexity, divergence of next-token distributions, error by layer, right "
    "answers and tokens for each of them with thinking and without, speed; with intervals. The first MODEL is the "
    "reference. NAME+int4, +int8, +fp8 rounds when it is loaded; +bfloat16, +float16, +float32 sets the numbers' type."
)


def diff(
    models: Annotated[list[str], typer.Argument(metavar="A B...", help="Folder, GGUF file, tag, hub id, 'embedded'.")],
    suite: Annotated[
        str, typer.Option("--suite", metavar="NAME", help="tasks, steps, controls, or families.")
    ] = "tasks",
    problems: Annotated[int, typer.Option("--problems", metavar="N", min=0, help="Of the tasks; 0: none.")] = 96,
    text: Annotated[
        Path | None, typer.Option("--text", metavar="FILE", help="Plain text to score; none: solved held-out problems.")
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", metavar="N", min=16, help="Of text, and of A's answers, that are compared.")
    ] = 4096,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", metavar="N", min=1, help="Of an answer, thinking included.")
    ] = 1024,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of problems, sampling and intervals.")] = 1,
    speed: Annotated[bool, typer.Option("--speed/--no-speed", help="Time one stream and eight.")] = True,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1 …; none: the best there is.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write one page with charts there.")
    ] = None,
    as_json: Json = False,
) -> int:
    if len(models) < 2:
        raise UsageError("give two models or more: the reference first, then its variants")
    check_place("--html", html)
    words = read_text(text)

    from qwen3.cli.console import note, out, out_json, table
    from qwen3.evaluate.difference import difference
    from qwen3.evaluate.difference_page import rows, verdict
    from qwen3.evaluate.measured import Settings

    settings = Settings(
        suite, problems, words, None if text is None else text.name, tokens, max_tokens, seed, speed, device
    )
    found = difference(models[0], models[1:], settings, note, shlex.join(["qwen3", *sys.argv[1:]]))
    if html is not None:
        write_page(found, html)
    if as_json:
        out_json({"differences": [one.to_dict() for one in found]})
        return 0
    out(table(rows(found), ["", found[0].reference["name"], *(one.variant["name"] for one in found)]))
    for one in found:
        for line in one.notes:
            out(f"Note: {line}")
        out(verdict(one))
    return 0


def check_place(flag: str, file: Path | None) -> None:
    """Raises UsageError for a file that could not be written, before anything is measured."""
    if file is not None and (file.is_dir() or not file.resolve().parent.is_dir()):
        raise UsageError(f"{flag} {file}: {'it is a folder' if file.is_dir() else 'there is no such folder'}")


def write_page(found: list[Difference], file: Path) -> None:
    from qwen3.checkpoint.journal import write_atomic
    from qwen3.cli.console import note
    from qwen3.evaluate.difference_page import page

    write_atomic(file, [page(found).encode()])
    note(f"written: {file}")


def report(model: str, made: Path, file: Path) -> None:
    """The page about what was quantized from `model` and written to `made`: a folder, a GGUF file, of a split one its
    name without the number, or a folder that a GGUF file was put into."""
    from qwen3.cli.console import note
    from qwen3.evaluate.difference import difference

    if not (made / "config.json").is_file() and not made.is_file():
        found = made.glob("*.gguf") if made.is_dir() else made.parent.glob(f"{made.stem}-*.gguf")
        newest = max(found, key=lambda path: path.stat().st_mtime)
        made = newest.with_name(re.sub(r"-\d{5}-of-", "-00001-of-", newest.name))
    write_page(difference(model, str(made), say=note, command=shlex.join(["qwen3", *sys.argv[1:]])), file)


def read_text(file: Path | None) -> str | None:
    """Raises UsageError for a file that is not there, or no text."""
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"--text {file} is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UsageError(f"--text {file} cannot be read: {error.strerror}") from None
