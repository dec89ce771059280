"""`qwen3 serve`: settings checked, a socket bound, one application run; and `--make-key`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from qwen3 import __version__
from qwen3.cli.console import note, out, out_json, warn
from qwen3.errors import Qwen3Error

NEEDS = ("fastapi", "uvicorn", "httptools", "pydantic", "python_multipart", "prometheus_client", "cryptography")


def make_key(name: str, path: Path | None, as_json: bool) -> int:
    """Prints a new key once; its line, which has only the hash, goes into the file or is printed as well."""
    from qwen3.serve.keys import add_key, new_key

    key, line = new_key(name)
    if path is not None:
        add_key(path, line)
    if as_json:
        out_json({"id": name, "key": key, "line": line, "file": None if path is None else str(path)})
        return 0
    out(key)
    if path is None:
        note(f"the line for the file of --api-key-file: {line}")
    else:
        note(f"{path} has its hash now; the key itself is not kept anywhere")
    return 0


def serve(models: list[str], as_json: bool, given: dict[str, Any]) -> int:
    """given: fields of Settings; None where the default holds. Returns the exit code."""
    from importlib.util import find_spec

    if missing := [name for name in NEEDS if find_spec(name) is None]:
        raise Qwen3Error(
            f"the server needs packages that are not here ({', '.join(missing)}): pip install 'qwen3[serve]'"
        )
    from qwen3.serve.settings import Settings, adapted, named

    fields = {name: value for name, value in given.items() if value is not None}
    fields["adapters"] = adapted(given["adapters"])
    if models:
        fields["models"] = named(models)
    settings = Settings(**fields)

    from qwen3.serve import logs
    from qwen3.serve.run import bind, run, url_of

    logs.setup(settings.log_format, settings.log_level)
    listener = bind(settings.host, settings.port)
    try:
        from qwen3.serve.app import create_app

        app = create_app(settings)
        keys = app.state.server.keys
        url = url_of(settings, listener)
        for text in keys.warnings if keys is not None else ():
            warn(text)
        _say(settings, url, None if keys is None else len(keys))
        started = time.monotonic()

        def ready() -> None:
            note(f"ready after {time.monotonic() - started:.1f} s; Ctrl-C ends it")
            if as_json:
                _line({
                    "url": url, "host": settings.host, "port": listener.getsockname()[1], "pid": os.getpid(),
                    "models": [name for name, _ in settings.models], "keys": 0 if keys is None else len(keys),
                    "version": __version__,
                })  # fmt: skip

        return run(app, listener, ready)
    finally:
        listener.close()


def _say(settings: Any, url: str, keys: int | None) -> None:
    """What a person wants to know while the model loads."""
    models = ", ".join(name if name == spec else f"{name} ({spec})" for name, spec in settings.models)
    if keys is not None:
        access = f"{keys} {'key' if keys == 1 else 'keys'} of {settings.api_key_file}"
    elif settings.public:
        access = "no keys: everybody who reaches this address may use it"
    else:
        access = "no keys: everybody on this machine may use it"
    note(f"model   {models}")
    for name, folder in settings.adapters:
        note(f"adapter {name} ({folder})")
    if settings.page:
        note(f"chat    {url}")
    note(f"API     {url}/v1 (OpenAI), {url} (Anthropic, Ollama)")
    note(f"access  {access}")


def _line(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)
