"""Tables under headings, written once: for a terminal, and as Markdown for a pull request."""

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

FOLDED_ROWS = 12


@dataclass(frozen=True)
class Section:
    """A table; `note` stands below it, or in its place if it has no rows. Without both it is not shown.

    Columns are aligned to the right, those in `left` to the left.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str | None = None
    left: tuple[int, ...] = (0,)


def terminal(headline: str, sections: Iterable[Section]) -> Group:
    """Return the tables for a rich console; figures to the right."""
    parts: list[RenderableType] = [Text(headline, style="bold")]
    for section in _shown(sections):
        table = Table(title=section.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for index, column in enumerate(section.columns):
            table.add_column(column, justify="left" if index in section.left else "right", header_style="dim")
        for row in section.rows:
            table.add_row(*(Text(cell) for cell in row))
        parts.append(table if section.rows else Text(section.title, style="bold"))
        if section.note:
            parts.append(Text(section.note, style="dim"))
    return Group(*(Padding(part, (0, 0, 1, 0)) for part in parts))


def markdown(headline: str, sections: Iterable[Section]) -> str:
    """Return the tables as Markdown; long ones are folded."""
    lines = [f"### {headline}", ""]
    for section in _shown(sections):
        folded = len(section.rows) > FOLDED_ROWS
        lines += [f"<details><summary>{section.title}</summary>" if folded else f"**{section.title}**", ""]
        if section.rows:
            lines.append(f"| {' | '.join(section.columns)} |")
            marks = (":--" if index in section.left else "--:" for index in range(len(section.columns)))
            lines.append(f"|{'|'.join(marks)}|")
            lines += [f"| {' | '.join(map(_escaped, row))} |" for row in section.rows]
            lines.append("")
        lines += [section.note.replace("\n", "\n\n"), ""] if section.note else []
        lines += ["</details>", ""] if folded else []
    return "\n".join(lines).rstrip() + "\n"


def _shown(sections: Iterable[Section]) -> list[Section]:
    return [section for section in sections if section.rows or section.note]


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")
