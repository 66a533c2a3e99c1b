"""The roofline picture of a profile: each kernel's arithmetic intensity and rate under memory and peak lines.

Plain SVG that needs no script, font or style sheet; its classes let a page choose colours for a dark screen.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from tokc.cost.launch_work import F32, INT8
from tokc.cost.profile import KernelTime, Profile, Roofs, StepProfile
from tokc.report import kernel_table, units
from tokc.report.label_placing import Box, Mark, along, joined, leader, place

WIDTH, PANEL_HEIGHT = 800, 470
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 62, 66
TEXT_PX, TITLE_PX, CHARACTER_PX, LINE_PX = 12, 15, 7.0, 16
LEAST_RADIUS, WHOLE_RADIUS = 3.5, 26.0
FRAME = Box(LEFT + 4, TOP, WIDTH - RIGHT - LEFT - 4, PANEL_HEIGHT - BOTTOM - TOP)
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
PAPER = "#ffffff"
_COLOURS = {"ink": "#15181e", "soft": "#5b6270", "grid": "#e3e7ec", INT8: "#1f5fbf", F32: "#b8500a"}


@dataclass(frozen=True)
class Axes:
    """Logarithmic axes: FLOPs a byte to the right, FLOPs a second upward; limits are powers of ten."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    @classmethod
    def of(cls, kernels: Sequence[KernelTime], roofs: Roofs) -> "Axes":
        """Return axes that show every kernel and where the roofs meet."""
        peak = max(roofs.int8_flops_per_s, roofs.f32_flops_per_s)
        xs = [*(kernel.intensity for kernel in kernels), peak / roofs.read_bytes_per_s]
        ys = [kernel.flops_per_s for kernel in kernels]
        return cls(
            math.floor(math.log10(min(xs))),
            math.ceil(math.log10(max(xs) * 1.5)),
            math.floor(math.log10(min([*ys, peak / 100]))),
            math.log10(max([*ys, peak]) * 3.5),
        )

    def x(self, intensity: float) -> float:
        """Return pixels from the left."""
        part = (math.log10(intensity) - self.x_low) / (self.x_high - self.x_low)
        return LEFT + part * (WIDTH - LEFT - RIGHT)

    def y(self, flops_per_s: float) -> float:
        """Return pixels from the panel's top."""
        part = (math.log10(flops_per_s) - self.y_low) / (self.y_high - self.y_low)
        return PANEL_HEIGHT - BOTTOM - part * (PANEL_HEIGHT - BOTTOM - TOP)


def render(profile: Profile) -> str:
    """Return one SVG, a panel a step."""
    height = PANEL_HEIGHT * len(profile.steps)
    panels = "\n".join(
        f'<g transform="translate(0 {index * PANEL_HEIGHT})">\n{_panel(step, profile.roofs)}\n</g>'
        for index, step in enumerate(profile.steps)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="roofline" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="{FONT}" font-size="{TEXT_PX}" role="img">\n'
        f"<title>Kernels under the roofs of memory and arithmetic</title>\n"
        f'<rect class="paper" width="{WIDTH}" height="{height}" fill="{PAPER}"/>\n{panels}\n</svg>\n'
    )


def _panel(step: StepProfile, roofs: Roofs) -> str:
    names = dict(zip(step.kernels, kernel_table.labels(step.kernels), strict=True))
    drawn = [kernel for kernel in step.kernels if kernel.work.flops and kernel.kernel_s]
    drawn.sort(key=lambda kernel: kernel.share, reverse=True)
    parts = [_text(LEFT, 24, kernel_table.title(step), weight=600), _legend()]
    if drawn:
        axes = Axes.of(drawn, roofs)
        marks = [_mark(axes, kernel, _said(kernel, names[kernel])) for kernel in drawn]
        lines, covered, named = _roofs(
            axes, roofs, [Box.around(mark.x, mark.y, mark.radius) for mark in marks]
        )
        parts += [*_grid(axes), *lines]
        parts += [_circle(axes, roofs, kernel, mark) for kernel, mark in zip(drawn, marks, strict=True)]
        groups = joined(marks)
        for mark, box in zip(groups, place(groups, FRAME, covered, named), strict=True):
            parts += [] if box is None else _label(mark, box)
    idle = ", ".join(names[kernel] for kernel in step.kernels if kernel not in drawn)
    if idle:
        parts.append(_text(LEFT, PANEL_HEIGHT - 10, f"Without arithmetic: {idle}", kind="soft"))
    return "\n".join(parts)


def _legend() -> str:
    parts, x = [], float(LEFT)
    for arithmetic in (INT8, F32):
        parts.append(
            f'<circle class="{arithmetic}" cx="{x + 5:.1f}" cy="40" r="5" fill="{_COLOURS[arithmetic]}"/>'
        )
        parts.append(_text(x + 15, 44, arithmetic, kind="soft"))
        x += 60
    text = "area: share of the step; %: of the kernel's roof, which the dotted line leads to"
    return "\n".join([*parts, _text(x, 44, text, kind="soft")])


def _grid(axes: Axes) -> list[str]:
    bottom, right, parts = PANEL_HEIGHT - BOTTOM, WIDTH - RIGHT, []
    for power in range(math.ceil(axes.x_low), math.floor(axes.x_high) + 1):
        x = axes.x(10.0**power)
        parts.append(_line((x, TOP), (x, bottom), "grid"))
        parts.append(_text(x, bottom + 17, _power(power), kind="soft", anchor="middle"))
    for power in range(math.ceil(axes.y_low), math.floor(axes.y_high) + 1):
        y = axes.y(10.0**power)
        parts.append(_line((LEFT, y), (right, y), "grid"))
        parts.append(_text(LEFT - 7, y + 4, _power(power - 9), kind="soft", anchor="end"))
    parts.append(_text(right, bottom + 34, "FLOPs per byte, counted", kind="soft", anchor="end"))
    parts.append(_text(LEFT - 48, TOP - 4, "GFLOP/s", kind="soft"))
    return parts


def _power(power: int) -> str:
    return f"{10**power:,}" if power >= 0 else f"{10.0**power:.{-power}f}"


def _roofs(axes: Axes, roofs: Roofs, circles: Sequence[Box]) -> tuple[list[str], list[Box], list[Box]]:
    """Return the lines with their names, which keep away from circles, and what lines and names cover."""
    peak, right = max(roofs.int8_flops_per_s, roofs.f32_flops_per_s), WIDTH - RIGHT
    low = max(10.0**axes.x_low, 10.0**axes.y_low / roofs.read_bytes_per_s)
    start = (axes.x(low), axes.y(low * roofs.read_bytes_per_s))
    ends = [("ink", start, (axes.x(peak / roofs.read_bytes_per_s), axes.y(peak)))]
    for arithmetic in (INT8, F32):
        rate = roofs.peak(arithmetic)
        y = axes.y(rate)
        ends.append((arithmetic, (axes.x(rate / roofs.read_bytes_per_s), y), (right, y)))
    covered = [box for _, begin, end in ends for box in along(begin, end)]
    named: list[Box] = []
    parts = [_line(begin, end, kind, width=1.6) for kind, begin, end in ends]
    for kind, begin, end in ends:
        name = _roof_name(kind, roofs)
        places = _beside(begin, end, len(name) * CHARACTER_PX)
        box = next((b for b in places if not any(b.overlaps(u) for u in (*covered, *named, *circles))), None)
        if box is not None:
            parts.append(_text(box.left, box.top + TEXT_PX, name, kind))
            named.append(box)
    return parts, covered, named


def _roof_name(kind: str, roofs: Roofs) -> str:
    if kind == "ink":
        return f"memory, {units.scaled(roofs.read_bytes_per_s, 'B/s')}"
    return f"{kind}, {units.scaled(roofs.peak(kind), 'FLOP/s')}"


def _beside(begin: tuple[float, float], end: tuple[float, float], width: float) -> Iterator[Box]:
    """Yield boxes of `width` above and below a line: along a level one from its end, left of a steep one."""
    (x1, y1), (x2, y2) = begin, end
    if y1 != y2:
        for part in (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8):
            x, y = x1 + part * (x2 - x1), y1 + part * (y2 - y1)
            if x - width - 12 > LEFT:
                yield Box(x - width - 12, y - LINE_PX, width, LINE_PX)
        return
    for part in range(10):
        left = x2 - width - part / 9 * max(0.0, x2 - x1 - width)
        yield Box(left, y1 - LINE_PX - 4, width, LINE_PX)
        yield Box(left, y1 + 4, width, LINE_PX)


def _said(kernel: KernelTime, name: str) -> str:
    return name if kernel.of_roof is None else f"{name}, {kernel.of_roof:.0%}"


def _mark(axes: Axes, kernel: KernelTime, text: str) -> Mark:
    radius = max(LEAST_RADIUS, WHOLE_RADIUS * math.sqrt(kernel.share))
    x, y = axes.x(kernel.intensity), axes.y(kernel.flops_per_s)
    return Mark(x, y, radius, (text,), len(text) * CHARACTER_PX, LINE_PX)


def _circle(axes: Axes, roofs: Roofs, kernel: KernelTime, mark: Mark) -> str:
    kind, parts = kernel.work.arithmetic, []
    roof_y = axes.y(min(kernel.intensity * roofs.read_bytes_per_s, roofs.peak(kind)))
    top = mark.y - mark.radius
    if kernel.of_roof is not None and roof_y < top:
        parts.append(_line((mark.x, roof_y), (mark.x, top), kind, dash="2 3"))
    parts.append(
        f'<circle class="{kind}" cx="{mark.x:.1f}" cy="{mark.y:.1f}" r="{mark.radius:.1f}" '
        f'fill="{_COLOURS[kind]}" fill-opacity="0.55" stroke="{_COLOURS[kind]}">'
        f"<title>{escape(_detail(kernel, mark))}</title></circle>"
    )
    return "\n".join(parts)


def _detail(kernel: KernelTime, mark: Mark) -> str:
    rate = units.scaled(kernel.flops_per_s, "FLOP/s")
    return f"{mark.lines[0]}: {rate}, {kernel.share:.1%} of the step"


def _label(mark: Mark, box: Box) -> list[str]:
    line = leader(mark, box)
    texts = [
        _text(box.left + 2, box.top + TEXT_PX + index * LINE_PX, text)
        for index, text in enumerate(mark.lines)
    ]
    return texts if line is None else [_line(*line, "soft", width=0.7), *texts]


def _line(
    start: tuple[float, float],
    end: tuple[float, float],
    kind: str,
    *,
    width: float = 1,
    dash: str = "",
) -> str:
    (x1, y1), (x2, y2) = start, end
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="{_COLOURS[kind]}" stroke-width="{width:g}"{dashed}/>'
    )


def _text(x: float, y: float, text: str, kind: str = "ink", anchor: str = "start", weight: int = 400) -> str:
    size = TITLE_PX if weight > 400 else TEXT_PX
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" fill="{_COLOURS[kind]}" text-anchor="{anchor}" '
        f'font-size="{size}" font-weight="{weight}">{escape(text)}</text>'
    )
