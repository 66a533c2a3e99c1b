"""Parts that HTML pages share: the page, bars, charts, and tables that stack on a narrow screen."""

from collections.abc import Iterable
from html import escape
from importlib.resources import files

LEAST = 0.004  # of the width, that a small change can be seen
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def page(title: str, body: str) -> str:
    """Return a page that needs nothing else: no script, no font, no network."""
    style = files("tokc.report").joinpath("style.css").read_text()
    return _PAGE.format(title=escape(title), style=style, body=body)


def figure(title: str, chart: str, caption: str = "") -> str:
    """Return a chart under its title."""
    said = f"<figcaption>{escape(caption)}</figcaption>\n" if caption else ""
    return f'<figure class="plot">\n<h3>{escape(title)}</h3>\n{chart}\n{said}</figure>\n'


def bar(
    label: str,
    value: str,
    share: float,
    mark: float | None = None,
    spread: tuple[float, float] | None = None,
) -> str:
    """Return a labelled bar; `value` is HTML, `share`, `mark` and `spread` are parts of its width."""
    shapes = [
        '<rect class="track" y="2" width="100%" height="10" rx="2"/>',
        f'<rect class="fill" y="2" width="{_part(share)}" height="10" rx="2"/>',
    ]
    if spread is not None:
        shapes.append(f'<line class="range" x1="{_part(spread[0])}" x2="{_part(spread[1])}" y1="7" y2="7"/>')
    if mark is not None:
        shapes.append(f'<rect class="mark" x="{_part(mark)}" y="-1" width="3" height="16"/>')
    return (
        f'<div class="bar"><span>{escape(label)}</span><span class="value">{value}</span>'
        f'<svg aria-hidden="true">{"".join(shapes)}</svg></div>'
    )


def floating_bar(label: str, value: str, span: tuple[float, float], kind: str) -> str:
    """Return a labelled bar over a span of the width: `whole`, or what a step took away (`less`) or added."""
    low, width = _part(span[0]), _part(max(span[1] - span[0], LEAST))
    shapes = (
        '<rect class="track" y="2" width="100%" height="10" rx="2"/>'
        f'<rect class="{kind}" x="{low}" y="2" width="{width}" height="10" rx="2"/>'
    )
    return (
        f'<div class="bar"><span>{escape(label)}</span><span class="value">{value}</span>'
        f'<svg aria-hidden="true">{shapes}</svg></div>'
    )


def table(heads: Iterable[str], rows: Iterable[str]) -> str:
    """Return a table of rows from `row`."""
    header = "".join(f"<th>{head}</th>" for head in heads)
    body = "\n".join(rows)
    content = f"<thead><tr>{header}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    return f'<div class="scroll"><table class="stack">{content}</table></div>'


def row(heads: Iterable[str], cells: Iterable[str], *, idle: bool = False) -> str:
    """Return a row of HTML cells; the first names it, the others are labelled by their heads."""
    (_, spec), *rest = zip(heads, cells, strict=True)
    others = "".join(f'<td data-label="{head}"><span>{cell}</span></td>' for head, cell in rest)
    return f'<tr{" class=idle" if idle else ""}><td class="spec">{spec}</td>{others}</tr>'


def _part(share: float) -> str:
    return f"{100 * share:.2f}%"
