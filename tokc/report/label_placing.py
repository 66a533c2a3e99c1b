"""Places labels beside points so that none covers another, a point or a line."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

Point = tuple[float, float]
DIRECTIONS = 16
CLOSE_BY = 8.0
GAPS = (3.0, *(float(gap) for gap in range(9, 400, 9)))


@dataclass(frozen=True)
class Box:
    """A rectangle: left, top, width and height in pixels."""

    left: float
    top: float
    width: float
    height: float

    @classmethod
    def around(cls, x: float, y: float, radius: float) -> "Box":
        """Return the square around a circle."""
        return cls(x - radius, y - radius, 2 * radius, 2 * radius)

    def overlaps(self, other: "Box") -> bool:
        """Return whether both share some room."""
        return (
            self.left < other.left + other.width
            and other.left < self.left + self.width
            and self.top < other.top + other.height
            and other.top < self.top + self.height
        )

    def holds(self, other: "Box") -> bool:
        """Return whether `other` lies within."""
        return (
            self.left <= other.left
            and self.top <= other.top
            and other.left + other.width <= self.left + self.width
            and other.top + other.height <= self.top + self.height
        )

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """Return the point of the rectangle that is nearest to (x, y)."""
        right, bottom = self.left + self.width, self.top + self.height
        return min(max(x, self.left), right), min(max(y, self.top), bottom)


@dataclass(frozen=True)
class Mark:
    """A circle to be labelled, and the lines of its label with their size."""

    x: float
    y: float
    radius: float
    lines: tuple[str, ...]
    width: float
    height: float

    def close_to(self, other: "Mark") -> bool:
        """Return whether no label fits between both circles."""
        return math.hypot(self.x - other.x, self.y - other.y) < self.radius + other.radius + CLOSE_BY

    def joined(self, other: "Mark") -> "Mark":
        """Return a circle around both, labelled with the lines of both."""
        away = math.hypot(other.x - self.x, other.y - self.y)
        radius = max(self.radius, other.radius, (self.radius + away + other.radius) / 2)
        part = 0.0 if away == 0 else min(1.0, max(0.0, (radius - self.radius) / away))
        x, y = self.x + part * (other.x - self.x), self.y + part * (other.y - self.y)
        width, height = max(self.width, other.width), self.height + other.height
        return Mark(x, y, radius, (*self.lines, *other.lines), width, height)


def joined(marks: Iterable[Mark]) -> list[Mark]:
    """Return the marks with those that are close to each other made one, the longest label first."""
    apart: list[Mark] = []
    for mark in marks:
        near = next((other for other in apart if other.close_to(mark)), None)
        while near is not None:
            apart.remove(near)
            mark = near.joined(mark)  # noqa: PLW2901 - it grows
            near = next((other for other in apart if other.close_to(mark)), None)
        apart.append(mark)
    return sorted(apart, key=lambda mark: (len(mark.lines), mark.radius), reverse=True)


def place(
    marks: Sequence[Mark], frame: Box, lines: Sequence[Box] = (), texts: Sequence[Box] = ()
) -> list[Box | None]:
    """Return a box for each mark's label, as near to it as is free; None where the frame has no room left.

    Labels keep away from everything; what leads to them crosses `lines`, but no mark or text if it can.
    """
    circles = [Box.around(mark.x, mark.y, mark.radius) for mark in marks]
    boxes: list[Box | None] = []
    used, barred = [*lines, *texts, *circles], [*texts, *circles]
    for mark, circle in zip(marks, circles, strict=True):
        inside = (box for box in _candidates(mark) if frame.holds(box))
        free = [box for box in inside if not _any_overlaps([box], used)]
        others = [box for box in barred if box != circle]
        clear = (box for box in free if not _any_overlaps(_led(mark, box), others))
        box = next(clear, free[0] if free else None)
        boxes.append(box)
        if box is not None:
            used += [box, *_led(mark, box)]
            barred.append(box)
    return boxes


def _any_overlaps(boxes: Iterable[Box], others: Iterable[Box]) -> bool:
    known = list(others)
    return any(box.overlaps(other) for box in boxes for other in known)


def leader(mark: Mark, box: Box) -> tuple[Point, Point] | None:
    """Return the line from a circle's edge, or from amid several, to the label; None where that is close."""
    x, y = box.nearest(mark.x, mark.y)
    away = math.hypot(x - mark.x, y - mark.y)
    if away <= mark.radius + CLOSE_BY:
        return None
    part = mark.radius / away if len(mark.lines) == 1 else 0.0
    return (mark.x + (x - mark.x) * part, mark.y + (y - mark.y) * part), (x, y)


def _led(mark: Mark, box: Box) -> list[Box]:
    line = leader(mark, box)
    return [] if line is None else along(*line)


def along(start: Point, end: Point, step: float = 5.0) -> list[Box]:
    """Return small boxes that cover a line, for labels to keep away from."""
    (x1, y1), (x2, y2) = start, end
    count = max(1, math.ceil(math.hypot(x2 - x1, y2 - y1) / step))
    points = ((x1 + (x2 - x1) * i / count, y1 + (y2 - y1) * i / count) for i in range(count + 1))
    return [Box.around(x, y, step / 2) for x, y in points]


def _candidates(mark: Mark) -> Iterator[Box]:
    """Yield boxes around a mark, the nearest first, to its right before its left."""
    for gap in GAPS:
        for turn in sorted(range(DIRECTIONS), key=lambda turn: min(turn, DIRECTIONS - turn)):
            angle = 2 * math.pi * turn / DIRECTIONS
            x = mark.x + math.cos(angle) * (mark.radius + gap + mark.width / 2)
            y = mark.y + math.sin(angle) * (mark.radius + gap + mark.height / 2)
            yield Box(x - mark.width / 2, y - mark.height / 2, mark.width, mark.height)
