"""The roofline picture: labels that never cover each other, whatever the kernels."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.report.sample import KERNELS, PROFILE, kernel_time
from tokc.cost.profile import KernelTime, Profile, Work
from tokc.report import kernel_table, roofline_svg
from tokc.report.label_placing import Box, Mark, joined, leader, place

FRAME = Box(0, 0, 720, 340)
SPACE = "{http://www.w3.org/2000/svg}"


def mark(x: float, y: float, radius: float = 5, text: str = "QuantLinear 960x576, 94%") -> Mark:
    return Mark(x, y, radius, (text,), 7 * len(text), 16)


MARKS = st.lists(st.builds(mark, st.floats(30, 690), st.floats(30, 310), st.floats(3, 25)), max_size=14)


@given(MARKS)
@settings(max_examples=60, deadline=None)
def test_no_label_covers_a_label_or_a_circle(marks: list[Mark]) -> None:
    groups = joined(marks)
    boxes = [box for box in place(groups, FRAME) if box is not None]
    circles = [Box.around(each.x, each.y, each.radius) for each in groups]
    for index, box in enumerate(boxes):
        assert FRAME.holds(box)
        assert not any(box.overlaps(other) for other in (*boxes[:index], *circles))


@given(MARKS)
@settings(max_examples=60, deadline=None)
def test_marks_that_were_joined_keep_every_label_and_stand_apart(marks: list[Mark]) -> None:
    groups = joined(marks)
    assert sorted(line for group in groups for line in group.lines) == sorted(m.lines[0] for m in marks)
    for index, group in enumerate(groups):
        assert not any(group.close_to(other) for other in groups[:index])


def test_a_label_beside_its_circle_needs_no_line_and_one_farther_away_has_one() -> None:
    one = mark(100, 100)
    assert leader(one, Box(108, 92, 50, 16)) is None
    line = leader(one, Box(200, 92, 50, 16))
    assert line is not None
    assert line == ((105, 100), (200, 100))


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)  # noqa: S314 - it was made here


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in parsed(svg).iter(f"{SPACE}text")]


def test_every_kernel_with_arithmetic_is_drawn_and_the_others_are_named() -> None:
    svg = roofline_svg.render(PROFILE)
    found = texts(svg)
    assert "Decode, batch 1, 160 tokens of context" in found
    assert "Prefill, a chunk of 512 tokens" in found
    for name in ("QuantLinear 960x576 q4", "QuantLinear 576x576 q4", "PagedAttention", "AddRmsNorm"):
        assert sum(text.startswith(name) for text in found) == 2, name
    assert found.count("Without arithmetic: Gather") == 2
    assert "AddRmsNorm" in found, "what caches bound states no share of a roof"
    for roof in ("memory, 47.9 GB/s", "f32, 181 GFLOP/s", "int8, 724 GFLOP/s"):
        assert found.count(roof) == 2


def test_higher_rates_are_higher_and_what_is_on_the_line_is_on_the_line() -> None:
    work = Work("int8", 1e8, 4.79e7, 4.79e7)
    seconds = 1e-3  # exactly memory's bandwidth
    kernels = (kernel_time("A", "a", seconds, work, 0.5), kernel_time("B", "b", 4 * seconds, work, 0.5))
    svg = roofline_svg.render(one_step(kernels))
    drawn = parsed(svg)
    circles = [c for c in drawn.iter(f"{SPACE}circle") if float(c.attrib["cy"]) > roofline_svg.TOP]
    at = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in circles]
    assert at[0][0] == at[1][0]
    assert at[0][1] < at[1][1]
    (memory,) = (line for line in drawn.iter(f"{SPACE}line") if line.attrib["class"] == "ink")
    x1, y1, x2, y2 = (float(memory.attrib[name]) for name in ("x1", "y1", "x2", "y2"))
    assert at[0][1] == pytest.approx(y1 + (at[0][0] - x1) / (x2 - x1) * (y2 - y1), abs=0.3)


def one_step(kernels: tuple[KernelTime, ...]) -> Profile:
    return replace(PROFILE, steps=(replace(PROFILE.steps[0], kernels=kernels),))


def test_a_step_without_arithmetic_is_drawn_without_axes() -> None:
    svg = roofline_svg.render(one_step(KERNELS[-1:]))
    assert "Without arithmetic: Gather" in texts(svg)
    assert "GFLOP/s" not in texts(svg)


def test_the_picture_needs_nothing_else_and_is_800_wide() -> None:
    svg = roofline_svg.render(PROFILE)
    assert 'viewBox="0 0 800 ' in svg
    assert not re.search(r"(src|href)=|@import|url\(|<script|nan|inf\b", svg)


def test_names_tell_kernels_of_one_op_apart() -> None:
    symbols = ("quant_linear_960x576_q4", "quant_linear_960x576_q8", "quant_linear_960x576")
    kernels = [replace(KERNELS[0], kernel=symbol) for symbol in symbols]
    assert kernel_table.labels(kernels[:2]) == ["QuantLinear q4", "QuantLinear q8"]
    assert len(set(kernel_table.labels(kernels))) == 3
    assert kernel_table.labels(kernels[:1]) == ["QuantLinear"]
