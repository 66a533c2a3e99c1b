"""Kernels that were compiled before are found again, and nothing else is taken for them."""

import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tests.targets.cpu.test_link import every_kernel
from tokc.targets.cpu import kernel_cache
from tokc.targets.cpu.codegen import Kernel, compile_kernels
from tokc.targets.cpu.isa import ISAS, Isa
from tokc.targets.cpu.kernel_cache import KernelCache, key_of
from tokc.targets.cpu.kernels.arg_max import ArgMax
from tokc.targets.cpu.kernels.elementwise import Add, Multiply
from tokc.targets.cpu.kernels.rms_norm import RmsNorm

ISA = ISAS["x86-64-v3"]
KERNELS = (
    ArgMax(ISA, 77, 96),
    Add(ISA, 64, 64, 64),
    Multiply(ISA, 64, 64, 64),
    RmsNorm(ISA, 64, 64, 1e-5, False, True, True),
)


@pytest.fixture(scope="module")
def fresh() -> tuple[bytes, ...]:
    return compile_kernels(KERNELS, ISA)


@pytest.fixture
def asked(fresh: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch) -> list[tuple[Kernel, ...]]:
    """Return what is given to the compiler from now on; it answers with what it made before."""
    made = dict(zip(KERNELS, fresh, strict=True))
    given: list[tuple[Kernel, ...]] = []

    def answer(kernels: Sequence[Kernel], _: Isa) -> tuple[bytes, ...]:
        given.append(tuple(kernels))
        return tuple(made[kernel] for kernel in kernels)

    monkeypatch.setattr(kernel_cache, "compile_kernels", answer)
    return given


def test_a_kernel_has_the_same_bytes_alone_and_among_others(fresh: tuple[bytes, ...]) -> None:
    assert compile_kernels(KERNELS[-1:], ISA) == fresh[-1:]


def test_only_what_is_new_is_compiled(
    fresh: tuple[bytes, ...], asked: list[tuple[Kernel, ...]], tmp_path: Path
) -> None:
    cache = KernelCache(tmp_path / "kernels")
    assert cache.compile(KERNELS[:2], ISA) == fresh[:2]
    assert cache.compile(KERNELS, ISA) == fresh
    assert cache.compile(KERNELS[::-1], ISA) == fresh[::-1]
    assert asked == [KERNELS[:2], KERNELS[2:]]


def test_a_damaged_object_is_compiled_again(
    fresh: tuple[bytes, ...], asked: list[tuple[Kernel, ...]], tmp_path: Path
) -> None:
    cache = KernelCache(tmp_path)
    cache.compile(KERNELS[:1], ISA)
    path = tmp_path / key_of(KERNELS[0], ISA)
    path.write_bytes(path.read_bytes()[:-1])
    assert cache.compile(KERNELS[:1], ISA) == fresh[:1]
    assert asked == [KERNELS[:1], KERNELS[:1]]


def test_what_was_not_used_for_longest_goes_first(asked: list[tuple[Kernel, ...]], tmp_path: Path) -> None:
    cache = KernelCache(tmp_path)
    cache.compile(KERNELS[:3], ISA)
    for age, kernel in enumerate(KERNELS[:3]):
        os.utime(tmp_path / key_of(kernel, ISA), (1000 - age, 1000 - age))
    kept = sum(path.stat().st_size for path in tmp_path.iterdir())
    KernelCache(tmp_path, limit_bytes=kept).compile((KERNELS[0], KERNELS[3]), ISA)
    names = {path.name for path in tmp_path.iterdir()}
    assert key_of(KERNELS[0], ISA) in names
    assert key_of(KERNELS[2], ISA) not in names


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(
    fresh: tuple[bytes, ...], asked: list[tuple[Kernel, ...]], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    assert KernelCache(tmp_path / "file").compile(KERNELS[:1], ISA) == fresh[:1]


@pytest.mark.parametrize("name", ISAS)
def test_a_key_says_every_field_and_the_instruction_set(name: str) -> None:
    kernels: list[Any] = every_kernel(ISAS[name])
    keys = {key_of(kernel, ISAS[name]) for kernel in kernels}
    assert len(keys) == len({kernel.symbol for kernel in kernels})
    assert all(field.repr for kernel in kernels for field in fields(kernel))
    others = [isa for other, isa in ISAS.items() if other != name]
    assert not keys & {key_of(kernel, isa) for isa in others for kernel in every_kernel(isa)}
