"""A page of HTML that loads nothing from elsewhere: its frame, figures and lists."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape as escape_markup
from typing import TYPE_CHECKING

from ..inputs.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 76rem; margin: 0 auto; padding: 1rem; }
body > * { max-width: 60rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
h1, h2, p, li, td.name, dd, pre { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; max-width: none; background:
  linear-gradient(270deg, #fff 1rem, transparent 2rem) right / 2rem 100% no-repeat local,
  linear-gradient(270deg, #afb8c1, transparent) right / .8rem 100% no-repeat scroll; } /* a shadow: there is more */
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .45rem; border-bottom: 1px solid #d0d7de; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.name { white-space: normal; min-width: min(14rem, 35vw); }
img { display: block; max-width: 100%; height: auto; margin: .5rem 0; }
pre { background: #f6f8fa; padding: .6rem; white-space: pre-wrap; }
dl { display: grid; grid-template-columns: fit-content(50%) 1fr; gap: .2rem 1rem; }
dt { color: #57606a; } dd { margin: 0; }
.note { background: #fff8c5; padding: .4rem .6rem; }
.answer { border-left: .3rem solid #0072b2; padding: .2rem .8rem; font-size: 1.1rem; }
@media print { body { padding: 0; } h2, img, table { break-inside: avoid; } .scroll { overflow: visible; } }
"""


def html_page(title: str, body: Sequence[str]) -> str:
    """Return a page.

    Args:
        title: the title, which is escaped.
        body: elements of HTML, in which everything from outside is escaped already.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style>\n</head>\n'
        "<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def html_list(entries: Mapping[str, object]) -> str:
    """Return a list of names and values, escaped."""
    rows = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in entries.items())
    return f"<dl>{rows}</dl>"


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table that scrolls sideways on a narrow screen; all cells are escaped."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    lines = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead>\n<tbody>{lines}</tbody></table></div>'


def html_image(figure: Figure, description: str) -> str:
    """Return a figure as an image with a description for those who cannot see it."""
    buffer = io.BytesIO()
    # Without date and random identifiers, so that the same numbers make the same page.
    figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img src="data:image/png;base64,{data}" alt="{escape(description)}">'


def escape(text: str) -> str:
    """Return text that is no markup and has no control characters."""
    return escape_markup(printable(text), quote=True)
