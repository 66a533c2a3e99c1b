"""A small chart on logarithmic axes: lines, points and a band, as SVG that a page's style sheet colours.

Texts keep apart on the right edge, where lines are named; the picture scales to the width of a phone.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 320
LEFT, RIGHT, TOP, BOTTOM = 62, 84, 26, 46
LINE_PX = 16
STEPS = (1, 2, 5)
SERIES = 5  # that the style sheet has colours for

Point = tuple[float, float]
Label = Callable[[float], str]


@dataclass(frozen=True)
class Line:
    """A named line with its points marked; without `drawn` there are only points."""

    name: str
    points: tuple[Point, ...]
    drawn: bool = True


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis from `low` to `high`; `label` writes a value, `ticks` are where it does."""

    title: str
    low: float
    high: float
    label: Label
    ticks: tuple[float, ...]

    @classmethod
    def over(
        cls, title: str, values: Sequence[float], label: Label, ticks: Sequence[float] | None = None
    ) -> "Axis":
        """Return an axis that shows all values, which are positive, with a little room around them."""
        low, high = min(values), max(values)
        room = (high / low) ** 0.04 * 1.02
        low, high = low / room, high * room
        marks = _ticks(low, high) if ticks is None else [one for one in ticks if low <= one <= high]
        return cls(title, low, high, label, tuple(marks))

    def part(self, value: float) -> float:
        """Return where a value lies: 0 at the low end, 1 at the high one."""
        return math.log(value / self.low) / math.log(self.high / self.low)


def render(x: Axis, y: Axis, lines: Sequence[Line], title: str, band: float | None = None) -> str:
    """Return the chart; `band` draws the diagonal, where y is x, and so much of it to either side."""
    parts = [*_grid(x, y), *([] if band is None else _diagonal(x, y, band))]
    ends = _names(y, [line for line in lines if line.points])
    for index, line in enumerate(lines):
        parts += _line(x, y, line, index % SERIES)
    parts += ends
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>\n'
        + "\n".join(parts)
        + "\n</svg>"
    )


def _ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [step * 10.0**power for power in powers for step in STEPS]
    found = [one for one in every if low <= one <= high]
    most = 8
    return found if len(found) <= most else [one for one in found if _is_power(one)]


def _is_power(value: float) -> bool:
    return math.isclose(math.log10(value) % 1, 0, abs_tol=1e-6) or math.isclose(math.log10(value) % 1, 1)


def _across(axis: Axis, value: float) -> float:
    return LEFT + axis.part(value) * (WIDTH - LEFT - RIGHT)


def _up(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.part(value) * (HEIGHT - BOTTOM - TOP)


def _grid(x: Axis, y: Axis) -> Iterator[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for value in x.ticks:
        at = _across(x, value)
        yield f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>'
        yield _text(at, bottom + 17, x.label(value), "middle")
    for value in y.ticks:
        at = _up(y, value)
        yield f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>'
        yield _text(LEFT - 7, at + 4, y.label(value), "end")
    yield _text(right, HEIGHT - 8, x.title, "end")
    yield _text(4, 14, y.title, "start")


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="soft" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _diagonal(x: Axis, y: Axis, band: float) -> Iterator[str]:
    """Yield the band around the diagonal, cut at the frame, and the diagonal itself."""
    low, high = max(x.low, y.low), min(x.high, y.high)
    if low >= high:
        return
    upper, lower = 1 + band, 1 - band
    corners = [
        (low, low * lower), (high, high * lower), (high, high * upper), (low, low * upper)
    ]  # fmt: skip
    inside = [(one, min(max(other, y.low), y.high)) for one, other in corners]
    shape = " ".join(f"{_across(x, one):.1f},{_up(y, other):.1f}" for one, other in inside)
    yield f'<polygon class="band" points="{shape}"/>'
    ends = (_across(x, low), _up(y, low), _across(x, high), _up(y, high))
    yield '<line class="soft" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>'.format(*ends)


def _line(x: Axis, y: Axis, line: Line, series: int) -> Iterator[str]:
    points = [(_across(x, one), _up(y, other)) for one, other in line.points]
    if line.drawn and len(points) > 1:
        path = " ".join(f"{one:.1f},{other:.1f}" for one, other in points)
        yield f'<polyline class="s{series}" points="{path}"/>'
    for (one, other), value in zip(points, line.points, strict=True):
        said = escape(f"{line.name}: {x.label(value[0])}, {y.label(value[1])}")
        place = f'cx="{one:.1f}" cy="{other:.1f}" r="4"'
        yield f'<circle class="s{series}" {place}><title>{said}</title></circle>'


def _names(y: Axis, lines: Sequence[Line]) -> Iterator[str]:
    """Yield each line's name beside its end, pushed down where two would cover each other."""
    wanted = sorted((_up(y, line.points[-1][1]), index) for index, line in enumerate(lines))
    at = TOP - LINE_PX * 1.0
    for height, index in wanted:
        at = max(height, at + LINE_PX)
        name = escape(lines[index].name)
        yield f'<text class="s{index % SERIES}" x="{WIDTH - RIGHT + 8}" y="{at + 4:.1f}">{name}</text>'
