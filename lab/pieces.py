"""Small parts of pages and of terminal output: tables, source, and the page around them."""

import html
import io
import keyword
import token
import tokenize
from collections.abc import Iterable, Sequence
from typing import Any

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, sans-serif; color: #1a202c; background: #fff; margin: 0 auto;
       padding: 1rem; max-width: 62rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; }  h2 { font-size: 1.25rem; margin-top: 2.4rem; }
h3 { font-size: 1.02rem; margin: 1.4rem 0 .4rem; }
a { color: #2b6cb0; }
code, pre { font: .84rem/1.45 ui-monospace, Menlo, Consolas, monospace; }
pre { background: #f7fafc; border-left: 3px solid #cbd5e0; padding: .5rem .7rem; margin: .4rem 0;
      overflow-x: auto; }
pre b { color: #2b6cb0; font-weight: 600; }  pre i { color: #2f855a; font-style: normal; }
pre u { color: #718096; text-decoration: none; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #e2e8f0; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }  th { color: #4a5568; font-weight: 600; }
td.left, th.left { text-align: left; }  td { white-space: nowrap; }
td.left { white-space: normal; }  td.left:not(:first-child) { min-width: 11rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 0 1rem; }
@media (min-width: 100rem) { .pair { margin: 0 -16rem; } }
.derivation .line { margin: .1rem 0; }  .derivation .gap { height: .6rem; }
.derivation svg.formula { max-width: 100%; overflow: visible; }
svg.figure, svg.graph { max-width: 100%; height: auto; }
details { margin: .3rem 0; }  summary { cursor: pointer; }
details details { margin-left: .8rem; border-left: 2px solid #edf2f7; padding-left: .6rem; }
.good { color: #2f855a; }  .bad { color: #c53030; }  .quiet { color: #718096; }
.bar { display: inline-block; height: .6rem; background: #2b6cb0; }
nav a { margin-right: .7rem; white-space: nowrap; }
"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body>
{body}
</body></html>
"""


def page(title: str, body: str) -> str:
    """A whole page that needs no other file."""
    return PAGE.format(title=html.escape(title), style=STYLE, body=body)


def fragment(body: str) -> str:
    """A part of a page as a notebook shows it, with its own style."""
    scoped = STYLE.replace("body {", ".lab {").replace("margin: 0 auto;", "")
    return f'<style>{scoped}</style><div class="lab">{body}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], left: Sequence[int] = (0,)) -> str:
    """An HTML table. `left`: the columns that hold words. Cells that begin with `<` are taken as HTML."""

    def cell(tag: str, column: int, value: Any) -> str:
        text = str(value)
        inner = text if text.startswith("<") else html.escape(text)
        return f"<{tag}{' class=left' if column in left else ''}>{inner}</{tag}>"

    def row(tag: str, values: Sequence[Any]) -> str:
        return f"<tr>{''.join(cell(tag, column, value) for column, value in enumerate(values))}</tr>"

    body = "\n".join(row("td", values) for values in rows)
    return f'<div class="scroll"><table>{row("th", head)}\n{body}</table></div>'


def columns(head: Sequence[str], rows: Iterable[Sequence[Any]], left: Sequence[int] = (0,)) -> str:
    """The same table in plain text."""
    lines = [[str(value) for value in row] for row in (head, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column in left else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )


def source_html(source: str) -> str:
    """Python with its words, strings and comments told apart."""
    out: list[str] = []
    row, column = 1, 0
    lines = source.splitlines(keepends=True)
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (tokenize.TokenError, SyntaxError):
        return f"<pre>{html.escape(source)}</pre>"
    for each in tokens:
        (start_row, start_column), (end_row, end_column) = each.start, each.end
        if each.type in (token.INDENT, token.DEDENT, token.ENDMARKER, token.NEWLINE, token.NL):
            continue
        while row < start_row:
            out.append(html.escape(lines[row - 1][column:]))
            row, column = row + 1, 0
        out.append(html.escape(lines[row - 1][column:start_column]))
        text = html.escape(each.string)
        tag = (
            "b" if keyword.iskeyword(each.string) else {token.STRING: "i", token.COMMENT: "u"}.get(each.type)
        )
        out.append(f"<{tag}>{text}</{tag}>" if tag else text)
        row, column = end_row, end_column
    return f"<pre>{''.join(out)}</pre>"


def side_by_side(left: str, right: str, width: int) -> str:
    """Two texts beside each other where the terminal is wide enough, else one below the other."""
    first, second = left.splitlines(), right.splitlines()
    wide = max(map(len, first), default=0)
    if wide + 3 + max(map(len, second), default=0) > width:
        return f"{left}\n\n{right}"
    longest = max(len(first), len(second))
    first += [""] * (longest - len(first))
    second += [""] * (longest - len(second))
    return "\n".join(f"{a.ljust(wide)} │ {b}".rstrip() for a, b in zip(first, second))


def bytes_text(count: float) -> str:
    """A number of bytes in the unit that suits it."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds with three digits or so."""
    return f"{1e3 * seconds:.3f}" if seconds < 0.1 else f"{1e3 * seconds:.1f}"


def shape_text(shapes: Iterable[tuple[int, ...]]) -> str:
    """Shapes in a row."""
    return " ".join("×".join(map(str, shape)) if shape else "scalar" for shape in shapes)
