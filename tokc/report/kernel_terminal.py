"""A profile on a terminal: a table of kernels and the parts of each step."""

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tokc.cost.profile import Profile, Roofs, StepProfile
from tokc.report import kernel_table, units


def render(profile: Profile) -> Group:
    """Return the profile for a rich console."""
    parts: list[RenderableType] = []
    for step in profile.steps:
        parts += [_kernels(step, profile.roofs), _totals(step)]
    parts.append(Text(f"{kernel_table.NOTE}\n{kernel_table.roofs_stated(profile)}.", style="dim"))
    return Group(*(Padding(part, (0, 0, 1, 0)) for part in parts))


def _kernels(step: StepProfile, roofs: Roofs) -> Table:
    table = Table(
        title=kernel_table.title(step),
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for index, head in enumerate(kernel_table.HEADS):
        table.add_column(head, justify="right" if index else "left", header_style="dim")
    for row in kernel_table.cells(step, roofs):
        table.add_row(*row)
    return table


def _totals(step: StepProfile) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for justify in ("left", "right", "right", "left"):
        table.add_column(justify=justify)
    whole_s = step.step_s.median
    for name, seconds, basis in kernel_table.totals(step):
        table.add_row(name, units.seconds(seconds), f"{seconds / whole_s:.1%}", Text(basis, style="dim"))
    return table
