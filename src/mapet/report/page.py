"""The page: a little HTML, everything in it escaped, and nothing outside it needed."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from html import escape

from mapet.report.drawing import Picture


def text(content: str, css: str = "") -> str:
    """A paragraph; what stands between backticks is code."""
    with_code = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(content))
    return f"<p{_class(css)}>{with_code}</p>"


def left_out(reason: object) -> str:
    """The sentence in place of what cannot be shown."""
    return text(f"Not shown: {reason}", "left-out")


def heading(content: str, level: int) -> str:
    """A heading."""
    return f"<h{level}>{escape(content)}</h{level}>"


def figures(pictures: Iterable[Picture]) -> str:
    """Pictures side by side where there is room for it."""
    return f'<div class="figures">{"".join(map(_figure, pictures))}</div>'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], marked: Sequence[str] = ()) -> str:
    """A table whose first column names the rows; rows named in `marked` stand out."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(_row(row, row[0] in marked) for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def section(title: str, *content: str) -> str:
    """A section under its title."""
    return f"<section>{heading(title, 2)}{''.join(content)}</section>"


def page(title: str, content: Iterable[str]) -> str:
    """The whole document."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(content)
        + "\n</main>\n</body>\n</html>\n"
    )


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(picture.alt)}" width="{picture.width}" '
        f'height="{picture.height}"><figcaption>{escape(picture.caption)}</figcaption></figure>'
    )


def _row(cells: Sequence[str], marked: bool) -> str:
    name, *values = (escape(cell) for cell in cells)
    name = name.replace(".", ".<wbr>")
    return f'<tr{_class("marked" if marked else "")}><th scope="row">{name}</th>{"".join(f"<td>{v}</td>" for v in values)}</tr>'


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d8dee4; --accent: #0072b2; --page: #fff;
  --code: #f3f5f7; --marked: #fff7e6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9da7b3; --line: #3a424b; --accent: #56b4e9;
  --page: #14181d; --code: #242a31; --marked: #3a3220; } img { border-radius: 4px; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .4em; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.4em 0 .5em; padding-top: .9em; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6em 0 .3em; overflow-wrap: anywhere; }
p { margin: .4em 0 .8em; max-width: 46em; overflow-wrap: anywhere; }
p.verdict { font-size: 1.125rem; border-left: 4px solid var(--accent); padding: .1em 0 .1em .8em; margin: .8em 0 1.2em; }
p.left-out { color: var(--soft); border: 1px dashed var(--line); border-radius: 6px; padding: .6em .9em; }
code { font: .9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; background: var(--code); padding: .1em .3em; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); align-items: start;
  gap: 20px 32px; }
figure { margin: .4em 0 .6em; break-inside: avoid; min-width: 0; max-width: 520px; }
img { display: block; width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .875rem; line-height: 1.45; margin-top: .5em; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .6em 0 1em; }
table { border-collapse: collapse; font-size: .875rem; line-height: 1.45; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .32em .9em .32em 0; border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; }
tbody th { font-weight: 400; color: var(--soft); white-space: nowrap; }
th:first-child { position: sticky; left: 0; background: var(--page); }
td { min-width: 8em; max-width: 44em; overflow-wrap: anywhere; }
tr:has(td:nth-child(6)) td { min-width: 2em; max-width: none; white-space: nowrap; }
tr.marked th, tr.marked td { font-weight: 600; color: var(--ink); background: var(--marked); }
footer { color: var(--soft); font-size: .875rem; margin-top: 3em; }
@media (max-width: 560px) { body { font-size: 15px; } main { padding: 20px 14px 40px; } h1 { font-size: 1.4rem; }
  tbody th { white-space: normal; min-width: 7em; overflow-wrap: anywhere; } td { min-width: 9em; } }
@media print { :root { --ink: #1f2328; --soft: #59636e; --line: #d8dee4; --page: #fff; --code: #f3f5f7; --marked: #fff7e6; }
  main { max-width: none; padding: 0; } body { font-size: 10pt; } h2, h3, h2 + p, h3 + p { break-after: avoid; }
  .figures { grid-template-columns: 1fr 1fr; gap: 10px 18px; } .scroll { overflow: visible; }
  table { font-size: 7.5pt; } tbody th { white-space: normal; }
  td, tr:has(td:nth-child(6)) td { min-width: 0; padding-right: .6em; white-space: normal; }
  th:first-child { position: static; } tr, figure, p { break-inside: avoid; } }
"""
