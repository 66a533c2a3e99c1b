"""The sheet of devices that are not here."""

import pytest

from tokc.cost.roofline import OpWork, StepWork, predict
from tokc.cost.sheet import device_sheet, sheet_for
from tokc.errors import UnknownOption


def test_every_row_has_positive_rates_and_a_source() -> None:
    for name, row in device_sheet().items():
        assert name == row.name
        assert row.read_bytes_per_s > 1e11
        assert row.f16_flops_per_s > 1e13
        assert row.memory_bytes > 1e8
        assert row.source
        assert not row.host().measured


def test_a_target_takes_its_first_row_unless_told_otherwise() -> None:
    first = sheet_for("cuda:sm_90")
    assert first is not None
    assert first.name == "h100-sxm"
    other = sheet_for("cuda:sm_90", "h200-sxm")
    assert other is not None
    assert other.read_bytes_per_s == 4.8e12


def test_a_cpu_has_no_row() -> None:
    assert sheet_for("cpu:avx2") is None


def test_an_unknown_device_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownOption, match="unknown device 'h300'; choose from a100-sxm-80gb"):
        sheet_for("cuda:sm_90", "h300")


def test_a_device_of_another_target_is_refused() -> None:
    with pytest.raises(UnknownOption, match="'mi300x' runs rocm:gfx942, the artifact is for cuda:sm_90"):
        sheet_for("cuda:sm_90", "mi300x")


def test_several_devices_are_one_with_all_of_their_rates_and_links() -> None:
    one, two = sheet_for("cuda:sm_90"), sheet_for("cuda:sm_90-2", "h100-sxm")
    assert one is not None
    assert two is not None
    assert (two.title, two.summary) == ("2 x h100-sxm", f"2 x {one.summary}")
    assert (two.memory_bytes, two.read_bytes_per_s) == (2 * one.memory_bytes, 2 * one.read_bytes_per_s)
    assert two.host().link_bytes_per_s == 2 * 450e9
    assert "450 GB/s leave each device for others" in two.host().how
    unknown = sheet_for("cuda:sm_120-4")
    assert unknown is not None
    assert "the time that devices take to meet left out" in unknown.host().how
    assert sheet_for("tpu:v5e-4") is None


def test_each_launch_takes_what_an_empty_kernel_does() -> None:
    sheet = sheet_for("cuda:sm_90")
    assert sheet is not None
    step = StepWork(1, 1, (OpWork("QuantLinear", 100, flops=0.0, bytes=3.35e9),))
    assert predict(step, sheet.host()).seconds == pytest.approx(1e-3 + 100 * 1.3e-6)
