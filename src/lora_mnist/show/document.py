"""A document of HTML that needs nothing but itself: one file, no script or font from elsewhere.

It follows the reader's light or dark colours and fits a telephone. Whatever comes from files goes
through :func:`text`; only what this package writes itself is markup.
"""

import base64
import re
import zlib
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from struct import pack
from typing import Any

#: Markup, to tell it from text.
Html = str

_STYLE = """
:root { color-scheme: light dark; --ink: #1b2733; --faint: #5b6875; --line: #d9dee3;
  --page: #fff; --card: #f4f6f8; --good: #1c7c46; --bad: #b8324a; --mark: #fff3cf; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ee; --faint: #9aa7b4; --line: #36414c;
  --page: #12181e; --card: #1b232b; --good: #5fd08f; --bad: #ff8296; --mark: #3a3318; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 64rem; color: var(--ink); background: var(--page);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.35rem; line-height: 1.35; margin: .2rem 0 .6rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
p { margin: .4rem 0; }
.good { color: var(--good); } .bad { color: var(--bad); } .faint { color: var(--faint); }
.advice, code, pre { font-family: ui-monospace, monospace; font-size: .92em; }
code { overflow-wrap: anywhere; }
pre { overflow-x: auto; padding: .7rem; background: var(--card); border-radius: .4rem; }
.facts { display: flex; flex-wrap: wrap; gap: .5rem; padding: 0; list-style: none; }
.facts li { background: var(--card); border-radius: .4rem; padding: .35rem .7rem; }
.facts b { display: block; font-size: 1.15rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .45rem; text-align: right; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } th:first-child, td:first-child { text-align: left; }
td { white-space: nowrap; }
tr.mark td { background: var(--mark); font-weight: 600; }
tfoot td { font-weight: 600; border-top: 2px solid var(--line); }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid; }
th[aria-sort=ascending] button::after { content: " ↑"; }
th[aria-sort=descending] button::after { content: " ↓"; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr));
  gap: 1rem; align-items: start; }
figure { margin: 0; } figure svg { width: 100%; height: auto; max-width: 34rem; }
svg text { font-family: system-ui, sans-serif !important; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(4.2rem, 1fr)); gap: .5rem;
  max-width: 48rem; }
.gallery figcaption { text-align: center; font-size: .85rem; overflow-wrap: anywhere; }
.gallery img { width: 100%; display: block; image-rendering: pixelated; border-radius: .25rem; }
summary { cursor: pointer; }
@media (max-width: 32rem) { table { font-size: .8rem; } th, td { padding: .25rem .15rem; } }
footer { margin-top: 2.5rem; color: var(--faint); font-size: .9rem; }
"""

#: Sorts a table by the column whose heading is clicked: numbers by value, all else by text.
_SORT = """
for (const button of document.querySelectorAll("th button")) button.onclick = () => {
  const th = button.parentElement, body = th.closest("table").tBodies[0], at = th.cellIndex;
  const up = th.getAttribute("aria-sort") === "descending";
  for (const other of th.parentElement.children) other.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => row.cells[at].dataset.value ?? row.cells[at].textContent;
  const order = (a, b) => { const x = key(a), y = key(b), m = parseFloat(x), n = parseFloat(y);
    if (isNaN(m) || isNaN(n)) return isNaN(m) - isNaN(n) || x.localeCompare(y);
    return up ? m - n : n - m; };
  body.append(...[...body.rows].sort(order));
};
"""


def document(title: str, parts: Iterable[Html], sorts: bool = False) -> Html:
    """A whole document; ``sorts`` adds what lets :func:`table` with ``sortable`` be sorted."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{text(title)}</title><style>{_STYLE}</style></head><body>",
            *parts,
            *([f"<script>{_SORT}</script>"] if sorts else []),
            "</body></html>\n",
        ]
    )


def text(value: Any) -> Html:
    """``value`` as text, whatever is in it."""
    return escape(str(value), quote=True)


def code_in(sentence: str) -> Html:
    """A sentence as text, with what stands between backticks set as code."""
    pieces = sentence.split("`")
    if len(pieces) % 2 == 0:
        return text(sentence)
    shown = (f"<code>{text(p)}</code>" if at % 2 else text(p) for at, p in enumerate(pieces))
    return "".join(shown)


def facts(items: Iterable[tuple[str, Any]]) -> Html:
    """Small boxes, each with a value and what it is."""
    boxes = (f"<li><b>{text(value)}</b>{text(name)}</li>" for name, value in items)
    return f'<ul class="facts">{"".join(boxes)}</ul>'


def table(
    titles: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    marked: Iterable[int] = (),
    foot: Sequence[Any] | None = None,
    sortable: bool = False,
) -> Html:
    """A table; text in the first column, numbers in the others.

    A cell is a value or a pair of one and its class, such as ``good``.

    Args:
        titles: of the columns.
        rows: cells of each row.
        marked: the rows that stand out, by number.
        foot: a last row, apart from the others.
        sortable: whether a click on a title sorts.
    """
    marked = set(marked)
    button = "<button>{}</button>" if sortable else "{}"
    head = "".join(f'<th scope="col">{button.format(text(title))}</th>' for title in titles)
    body = "".join(
        f"<tr{' class=mark' if number in marked else ''}>{_cells(row)}</tr>\n"
        for number, row in enumerate(rows)
    )
    end = f"<tfoot><tr>{_cells(foot)}</tr></tfoot>" if foot else ""
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody>{end}</table></div>"
    )


def _cells(row: Sequence[Any]) -> Html:
    return "".join(map(_cell, row))


def _cell(cell: Any) -> Html:
    value, kind = cell if isinstance(cell, tuple) else (cell, "")
    attributes = f' class="{text(kind)}"' if kind else ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        attributes += f' data-value="{value}"'
        value = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
    return f"<td{attributes}>{text(value)}</td>"


def drawing(path: Path, label: str, ink: str) -> Html:
    """An SVG file as part of the page, its ink in the page's colour; nothing where it is missing.

    Args:
        path: the file, drawn by this package.
        label: what it shows, for who cannot see it.
        ink: the colour to replace.
    """
    if not path.is_file():
        return ""
    svg = path.read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :].replace(ink, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Several drawings stand in one page: each needs names of its own.
    svg = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\1{path.stem}-", svg)
    size = re.compile(r'<svg ([^>]*?)height="[^"]*"([^>]*?)width="[^"]*"', re.DOTALL)
    svg = size.sub(rf'<svg role="img" aria-label="{text(label)}" \1\2', svg, count=1)
    return f"<figure>{svg}</figure>"


def gallery(pictures: Iterable[tuple[Any, str]]) -> Html:
    """Small pictures, each a uint8 array (height, width, 3) with a caption."""
    shown = (
        f'<figure><img alt="" src="data:image/png;base64,{base64.b64encode(png(pixels)).decode()}">'
        f"<figcaption>{text(caption)}</figcaption></figure>"
        for pixels, caption in pictures
    )
    return f'<div class="gallery">{"".join(shown)}</div>'


def png(pixels: Any) -> bytes:
    """A PNG file of a uint8 array (height, width, 3)."""
    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    chunks = (
        (b"IHDR", pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        pack(">I", len(data)) + name + data + pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
