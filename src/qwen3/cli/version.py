"""`qwen3 version`: printed without importing what the versions are of."""

from __future__ import annotations

import platform
from importlib import metadata

from qwen3 import __version__


def version(as_json: bool) -> int:
    """Prints the versions of qwen3, Python and PyTorch (None: not installed)."""
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = None
    python = platform.python_version()
    if as_json:
        from qwen3.cli.console import out_json

        out_json({"qwen3": __version__, "python": python, "torch": torch})
    else:
        print(f"qwen3 {__version__} (Python {python}, torch {torch or 'not installed'})")
    return 0
