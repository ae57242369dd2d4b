"""A page of HTML that loads nothing from elsewhere: its frame, answer box, figures, tables and lists."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape as escape_markup
from typing import TYPE_CHECKING

from ..inputs.text import printable
from .plotting import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The variables of both themes have the names of PALETTE, which the figures draw with.
_LIGHT = "; ".join(f"--{name}: {color}" for name, color in PALETTE.items())
_DARK = (
    "--ink: #e6e9ee; --muted: #9aa5b3; --line: #323a45; --paper: #14181d; --panel: #1c2229; --wash: #2b333d; "
    "--blue: #5ab4f0; --orange: #ff9a5a; --green: #3cc9a0; --pink: #e59cc4; --yellow: #f0b944; --sky: #8fd0f5; "
    "--lemon: #f2ea70"
)
# Characters that XML does not allow, such as those of terminal escapes.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_STYLE = f"""
:root {{ color-scheme: light dark; {_LIGHT} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
* {{ box-sizing: border-box; }}
body {{ font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--ink);
  background: var(--paper); max-width: 70rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }}
h1 {{ font-size: 1.65rem; line-height: 1.25; margin: 0 0 .2rem; letter-spacing: -.01em; }}
h2 {{ font-size: 1.15rem; margin: 2.4rem 0 .4rem; }}
h1, h2, p, li, td.name, dd, pre, figcaption, .tile strong {{ overflow-wrap: anywhere; }}
p, li {{ max-width: 46rem; }}
.lead, figcaption, dt, .tile span {{ color: var(--muted); }}
.lead {{ margin: 0 0 1.2rem; }}
.answer {{ background: var(--panel); border: 1px solid var(--line); border-left: .35rem solid var(--blue);
  border-radius: .5rem; padding: 1rem 1.2rem; margin: 1rem 0; }}
.answer h2 {{ margin: 0 0 .6rem; }} .answer p {{ margin: .4rem 0; max-width: none; }}
.answer p:first-of-type {{ font-size: 1.1rem; }}
.tiles {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .8rem; margin: 0 0 .9rem; }}
.tile strong {{ display: block; font-size: 1.5rem; line-height: 1.2; font-variant-numeric: tabular-nums; }}
.tile span {{ font-size: .85rem; }}
.figures {{ columns: 24rem 2; column-gap: 1rem; margin: 1rem 0; }}
figure {{ break-inside: avoid; margin: 0 0 1rem; padding: .8rem; border: 1px solid var(--line); border-radius: .5rem;
  background: var(--panel); }}
figure > strong {{ display: block; line-height: 1.3; overflow-wrap: anywhere; }}
figure svg {{ display: block; width: 100%; max-width: 38rem; height: auto; margin: .4rem auto 0; }}
figure text {{ fill: var(--ink); font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif !important; }}
figcaption {{ font-size: .9rem; margin-top: .3rem; }}
.scroll {{ overflow-x: auto; margin: .8rem 0; background:
  linear-gradient(270deg, var(--paper) 1rem, transparent 2rem) right / 2rem 100% no-repeat local,
  linear-gradient(270deg, var(--line), transparent) right / .7rem 100% no-repeat scroll; }} /* a shadow: more */
table {{ border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .4rem .5rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }}
th {{ color: var(--muted); font-weight: 600; white-space: normal; vertical-align: bottom; }}
th:first-child, td:first-child {{ text-align: left; }}
td.name {{ white-space: normal; min-width: min(14rem, 35vw); }}
pre {{ background: var(--panel); border: 1px solid var(--line); border-radius: .4rem; padding: .7rem;
  white-space: pre-wrap; }}
dl {{ display: grid; grid-template-columns: fit-content(45%) 1fr; gap: .25rem 1.2rem; }} dd {{ margin: 0; }}
.note {{ border-left: .3rem solid var(--yellow); background: var(--panel); padding: .4rem .8rem; }}
@media print {{
  body {{ max-width: none; padding: 0; font-size: 11pt; }}
  h2 {{ break-after: avoid; }} .answer, tr, pre {{ break-inside: avoid; }}
  .scroll {{ overflow: visible; background: none; }} table {{ font-size: 8.5pt; }} th, td {{ padding: .2rem .3rem; }}
  .figures {{ columns: 2; }} .tiles {{ grid-template-columns: repeat(5, 1fr); }}
}}
"""


def html_page(title: str, body: Sequence[str]) -> str:
    """Return a page, light or dark as the reader's system is.

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


def html_answer(sentences: Sequence[str], tiles: Sequence[tuple[str, str]] = ()) -> str:
    """Return the box "What this says", escaped.

    Args:
        sentences: what the page says, the most important first.
        tiles: large numbers above the sentences: a value and its name.
    """
    numbers = "".join(
        f'<div class="tile"><strong>{escape(v)}</strong><span>{escape(name)}</span></div>' for v, name in tiles
    )
    return (
        '<section class="answer"><h2>What this says</h2>'
        + (f'<div class="tiles">{numbers}</div>' if tiles else "")
        + "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
        + "</section>"
    )


def html_list(entries: Mapping[str, object]) -> str:
    """Return a list of names and values, escaped."""
    rows = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in entries.items())
    return f"<dl>{rows}</dl>"


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table that scrolls sideways on a narrow screen; all cells are escaped.

    Names in the first column can be broken behind dots and underscores.
    """
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    lines = "\n".join(
        f'<tr><td class="name">{_breakable(name)}</td>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in rows
    )
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead>\n<tbody>{lines}</tbody></table></div>'


def _breakable(name: str) -> str:
    return escape(name).replace(".", ".<wbr>").replace("_", "_<wbr>")


def html_figures(figures: Sequence[str]) -> str:
    """Return figures side by side where there is room."""
    return f'<div class="figures">{"".join(figures)}</div>'


def html_figure(figure: Figure, title: str, caption: str = "") -> str:
    """Return a figure as SVG, whose colors follow the page's theme.

    Args:
        figure: drawn with the colors of `PALETTE`.
        title: its message, which is also read to those who cannot see it.
        caption: how to read it.
    """
    import matplotlib

    buffer = io.StringIO()
    # Without date and random identifiers, so that the same numbers make the same page. Text stays text.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", facecolor="none", metadata=nothing)
    text = buffer.getvalue()
    svg = _CONTROL.sub(lambda found: repr(found.group())[1:-1], text[text.index("<svg") :])
    # matplotlib's own black and gray are those of axes and grids.
    for color, name in {"#000000": "ink", "#b0b0b0": "line", **{c: n for n, c in PALETTE.items()}}.items():
        svg = re.sub(rf"(?<=: ){color}\b", f"var(--{name})", svg)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
    note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure><strong>{escape(title)}</strong>{svg}{note}</figure>"


def escape(text: str) -> str:
    """Return text that is no markup and has no control characters."""
    return escape_markup(printable(text), quote=True)
