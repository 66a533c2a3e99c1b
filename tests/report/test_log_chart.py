"""Charts on logarithmic axes: everything within the frame, names apart, nothing from elsewhere."""

import itertools
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokc.report import units
from tokc.report.log_chart import HEIGHT, LEFT, LINE_PX, RIGHT, TOP, WIDTH, Axis, Line, render

positive = st.floats(1e-6, 1e6)
lines = st.lists(
    st.lists(st.tuples(positive, positive), min_size=1, max_size=5), min_size=1, max_size=5
)  # fmt: skip


def chart(points: list[list[tuple[float, float]]], band: float | None = None) -> ElementTree.Element:
    every = [point for line in points for point in line]
    x = Axis.over("across", [one for one, _ in every], units.figures)
    y = Axis.over("up", [other for _, other in every], units.figures)
    found = [Line(f"line {index}", tuple(line)) for index, line in enumerate(points)]
    return ElementTree.fromstring(render(x, y, found, "A chart", band=band))  # noqa: S314 - it is ours


@settings(deadline=None, max_examples=50)
@given(lines)
def test_points_lie_within_the_frame_and_names_apart(points: list[list[tuple[float, float]]]) -> None:
    root = chart(points)
    for circle in root.iter("circle"):
        assert LEFT <= float(circle.attrib["cx"]) <= WIDTH - RIGHT
        assert TOP <= float(circle.attrib["cy"]) <= HEIGHT
    named = (text for text in root.iter("text") if text.attrib["class"] != "soft")
    names = sorted(float(text.attrib["y"]) for text in named)
    assert len(names) == len(points)
    assert all(later - earlier >= LINE_PX - 0.2 for earlier, later in itertools.pairwise(names))


def test_axes_mark_what_they_are_told_to() -> None:
    axis = Axis.over("tokens", [128, 8192], units.figures, [64, 128, 1024, 8192])
    assert axis.ticks == (128, 1024, 8192)
    assert axis.part(axis.low) == 0
    assert axis.part(axis.high) == pytest.approx(1)


def test_the_band_is_around_the_diagonal() -> None:
    root = chart([[(1.0, 1.0), (10.0, 10.0)]], band=0.2)
    (band,) = root.iter("polygon")
    assert len(band.attrib["points"].split()) == 4


def test_texts_are_escaped() -> None:
    axis = Axis.over("a < b", [1.0, 2.0], units.figures)
    text = render(axis, axis, [Line("x & y", ((1.0, 2.0),))], "<t>")
    assert "a &lt; b" in text
    assert "x &amp; y" in text
    assert not re.search(r"https?:", text)
