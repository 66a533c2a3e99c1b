"""What a target's kernels take, said before anything is imported."""

import pytest

from tokc.compiler import precision
from tokc.errors import TargetRefused, UnknownOption
from tokc.targets.table import TARGETS, named_target


@pytest.mark.parametrize(
    ("target", "dtype", "kv_dtype", "said"),
    [
        ("cpu:x86-64-v3", "f16", None, "no kernels for weights in f16; it takes int2, int3, int4, int8, f32"),
        ("cuda:sm_80", "f32", "f16", "no kernels for weights in f32; it takes int4, int8, f16"),
        ("cuda:sm_80", "int3", None, "no kernels for weights in int3; it takes int4, int8, f16"),
        ("cuda:sm_90", "int4", "int4", "no kernels for a cache in int4; it takes f16, int8"),
        ("xla:cpu", "int4", "int4", "no kernels for a cache in int4; it takes f16, int8, f32"),
        ("rocm:gfx942", "int4", "f32", "no kernels for a cache in f32; it takes f16, int8"),
    ],
)
def test_a_form_without_kernels_is_refused_with_those_there_are(
    target: str, dtype: str, kv_dtype: str | None, said: str
) -> None:
    with pytest.raises(TargetRefused, match=said) as refused:
        named_target(target).pipeline(precision(dtype, kv_dtype))
    assert refused.value.hint


def test_the_nearest_form_of_more_bits_is_named() -> None:
    with pytest.raises(TargetRefused) as refused:
        named_target("cuda:sm_80").pipeline(precision("int2", "f16"))
    assert refused.value.hint == "the nearest is int4"


def test_every_device_takes_the_default_form() -> None:
    for kind, target in TARGETS.items():
        for device in target.devices():
            assert named_target(f"{kind}:{device.name}").pipeline(precision("int4", None))


def test_a_target_that_is_not_here_wants_its_device_named() -> None:
    absent = [kind for kind, target in TARGETS.items() if target.host_device() is None]
    assert absent, "no machine has every accelerator"
    for kind in absent:
        with pytest.raises(UnknownOption, match=f"no device of target '{kind}' to build for; choose from"):
            named_target(kind)


def test_an_unknown_architecture_lists_the_known_ones() -> None:
    with pytest.raises(
        UnknownOption, match="unknown device 'sm_75' of target 'cuda'; choose from sm_80, sm_86"
    ):
        named_target("cuda:sm_75")


def test_several_of_one_device_are_named_by_their_number() -> None:
    assert named_target("cuda:sm_90-4").name == "cuda:sm_90-4"
    assert named_target("cuda:sm_90-4").pipeline(precision("int4", None))
    for name in ("cuda:sm_90-9", "cuda:sm_90-1", "cuda:sm_90-02", "rocm:gfx942-2", "cpu:x86-64-v3-2"):
        with pytest.raises(UnknownOption, match=f"unknown device '{name.partition(':')[2]}'"):
            named_target(name)
    with pytest.raises(UnknownOption, match="several of one together are spelled NAME-N, up to sm_80-8"):
        named_target("cuda:sm_90x2")
