"""One page that needs no network and no script: the frame, style and tables of reports."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

PALETTE = ("#1e78d2", "#d9730d", "#2f9e62", "#b0489e", "#c04848", "#7a6ad0", "#8a8a30", "#2a9aa8")
_STYLE = """
:root{--text:#1c1e21;--soft:#5b6068;--page:#ffffff;--card:#f5f6f8;--grid:#dcdfe4;--bad:#b3261e;--good:#1b7a43}
@media(prefers-color-scheme:dark){:root{--text:#e6e8eb;--soft:#a0a6ae;--page:#15171a;--card:#1f2226;--grid:#353a41;
--bad:#ff8a80;--good:#6fcf97}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--text);background:var(--page);margin:0 auto;max-width:1180px;
padding:1.5rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.15rem;margin:2rem 0 .6rem}p{margin:.4rem 0}.soft{color:var(--soft)}
.bad{color:var(--bad)}.good{color:var(--good)}
table{border-collapse:collapse;font-size:.9rem;width:100%}th,td{text-align:left;padding:.25rem .7rem .25rem 0;
border-bottom:1px solid var(--grid);vertical-align:top}td.n{font-variant-numeric:tabular-nums;white-space:nowrap}
.curves{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,480px),1fr));gap:1rem}
.curves svg,pre{background:var(--card);border-radius:8px}svg{width:100%;height:auto}svg text{fill:var(--text)}
svg rect{fill:none}svg line[stroke="#dddddd"]{stroke:var(--grid)}
pre{padding:.8rem;overflow-x:auto;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.85rem}
.wide{overflow-x:auto}
"""


def webpage(title: str, body: str) -> str:
    """The whole document. body: HTML; every text in it has been escaped."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><style>{_STYLE}</style></head><body>\n{body}</body></html>\n'
    )


def section(title: str, body: str) -> str:
    """Nothing where `body` is empty."""
    return f"<h2>{title}</h2>\n{body}\n" if body else ""


def preformatted(text: str) -> str:
    return f"<pre>{escape(text)}</pre>" if text.strip() else ""


def bullets(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def curves(charts: Iterable[str]) -> str:
    """SVGs side by side."""
    drawn = "".join(charts)
    return f'<div class="curves">{drawn}</div>' if drawn else ""


def table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Numbers with few digits; nothing where there are no rows."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>' if body else ""


def _cell(value: Any) -> str:
    digits = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f'<td class="n">{number(value)}</td>' if digits else f"<td>{escape(str(value))}</td>"


def number(value: float) -> str:
    """A number for people: 12,345, 1,235, 0.1235."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
