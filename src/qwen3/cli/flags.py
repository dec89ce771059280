"""Flags that several verbs share; apart from `console`, which must not bring the parser along."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout and nothing else there.")]
