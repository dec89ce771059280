"""The child process that renders a checkpoint's own chat template. Run as a script, never imported.

One JSON object per line on stdin: first {"path", "template", "max_bytes", "max_memory"}, answered by {"ready": true};
then {"variables"} each answered by {"text"} or by {"error", "kind"}. The template gets Jinja's immutable sandbox, no
loader (so no files), a memory limit, and no right to write or open files. The parent kills the process when it takes
too long.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from datetime import datetime
from typing import Any, NoReturn


def main() -> None:
    setup = json.loads(sys.stdin.readline())
    sys.path[:] = setup["path"]
    try:
        import jinja2
        import jinja2.debug
        import jinja2.ext
        from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
    except ImportError:
        answer({"error": "rendering it needs jinja2: pip install jinja2"})
        return

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    # What is loaded on first use is loaded now, before files are out of reach.
    importlib.import_module("pprint")
    env.from_string("{% set a = '\\n' %}{{ {'a': a} | tojson }}{{ strftime_now('%d %b') }}").render()
    limit_resources(setup["max_memory"])
    answer({"ready": True})
    compiled = None
    for line in sys.stdin:
        try:
            compiled = compiled or env.from_string(setup["template"])
            chunks, size = [], 0
            for chunk in compiled.generate(**json.loads(line)["variables"]):
                chunks.append(chunk)
                size += len(chunk)
                if size > setup["max_bytes"]:
                    raise OverflowError(f"it makes more than {setup['max_bytes']} characters")
            answer({"text": "".join(chunks)})
        except jinja2.TemplateSyntaxError as error:
            answer({"error": f"line {error.lineno}: {error.message}", "kind": "syntax"})
        except (SecurityError, OverflowError, MemoryError) as error:
            answer({"error": f"{error}" or type(error).__name__, "kind": "limit"})
        except Exception as error:
            answer({"error": f"{error}" or type(error).__name__, "kind": "failed"})


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def limit_resources(max_memory: int) -> None:
    """Where the system knows such limits: this much address space, no file may grow, none may be opened."""
    with contextlib.suppress(ImportError):
        import resource

        for kind, limit in (
            (resource.RLIMIT_AS, max_memory),
            (resource.RLIMIT_FSIZE, 0),
            (resource.RLIMIT_NOFILE, 3),
            (resource.RLIMIT_CORE, 0),
        ):
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(kind, (limit, limit))


def answer(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
