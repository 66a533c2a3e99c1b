"""A profile in the HTML report: the roofline picture, and each step's kernels and parts."""

from html import escape

from tokc.cost.profile import Profile, Roofs, StepProfile
from tokc.report import kernel_table, roofline_svg, units


def render(profile: Profile) -> str:
    """Return the section's content."""
    parts = [f'<div class="scroll">\n{roofline_svg.render(profile)}</div>']
    for step in profile.steps:
        parts += [
            f"<h3>{escape(kernel_table.title(step))}</h3>",
            _kernels(step, profile.roofs),
            _totals(step),
        ]
    return "\n".join(parts)


def _kernels(step: StepProfile, roofs: Roofs) -> str:
    header = "".join(f"<th>{head}</th>" for head in kernel_table.HEADS)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in kernel_table.cells(step, roofs)
    )
    return (
        '<div class="scroll"><table class="kernels">'
        f"<thead><tr>{header}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
    )


def _totals(step: StepProfile) -> str:
    whole_s = step.step_s.median
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{units.seconds(seconds)}, {seconds / whole_s:.1%} of the step; "
        f"{escape(basis)}</dd>"
        for name, seconds, basis in kernel_table.totals(step)
    )
    return f'<dl class="parts">{facts}</dl>'
