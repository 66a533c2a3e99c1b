"""Packed weights: what comes back is what went in, at the places that the kernels read."""

from dataclasses import replace

import numpy as np
import pytest

from tokc.errors import TargetRefused
from tokc.targets.gpu import packing
from tokc.targets.gpu.kernels.linear import Linear
from tokc.targets.gpu.packing import pack_codes, pack_dense, pack_groups, part_bytes, unpack

DTYPES = {np.dtype(np.float16): "f16", np.dtype(np.int8): "i8", np.dtype(np.uint8): "u8"}


def linear(n: int, k: int, bits: int, group: int = 32, *, symmetric: bool = True) -> Linear:
    return Linear(n, k, bits, symmetric, bias=False, x_stride=k, y_dtype="f16", group=group)


@pytest.mark.parametrize(
    ("bits", "symmetric", "group"),
    [(4, True, 32), (4, False, 32), (4, True, 128), (8, True, 32), (8, True, 64)],
)
def test_unpacking_gives_the_grid_back_exactly(
    bits: int, symmetric: bool, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "SLAB_ELEMENTS", 256 * 7)
    rng = np.random.default_rng(bits + group)
    kernel = linear(37, 256, bits, group, symmetric=symmetric)
    q = rng.integers(0, 16, (37, 256)) if bits == 4 else rng.integers(-128, 128, (37, 256))
    scale = rng.uniform(0.01, 0.1, (37, 256 // group)).astype(np.float16)
    offset = None if symmetric else rng.normal(0, 0.3, scale.shape).astype(np.float16)
    parts = {"weight": pack_codes(q, kernel), "scale": pack_groups(scale, kernel)}
    zero = 8 if bits == 4 and symmetric else 0
    expected = (q - zero) * np.repeat(scale.astype(np.float64), group, axis=1)
    if offset is not None:
        parts["offset"] = pack_groups(offset, kernel)
        expected += np.repeat(offset.astype(np.float64), group, axis=1)
    assert (unpack(parts, kernel) == expected).all()
    assert [(name, DTYPES[a.dtype], a.shape) for name, a in parts.items()] == list(kernel.parts)
    assert {name: array.nbytes for name, array in parts.items()} == part_bytes(kernel)


def test_a_shifted_word_holds_two_neighbours_sixteen_bits_apart() -> None:
    q = np.random.default_rng(1).integers(0, 16, (1, 64))
    words = pack_codes(q, linear(1, 64, 4)).view("<u4")
    assert words.shape == (1, 8)
    for quarter in range(4):
        shifted = words[0, 4:] >> (4 * quarter)
        pairs = np.stack((shifted & 0xF, shifted >> 16 & 0xF), axis=1).reshape(-1)
        assert (pairs == q[0, 32 + 8 * quarter : 40 + 8 * quarter]).all()


def test_a_byte_of_eight_bits_holds_a_code_above_128_and_words_hold_halves_of_a_group() -> None:
    q = np.random.default_rng(1).integers(-128, 128, (1, 64))
    pairs = pack_codes(q, linear(1, 64, 8)).astype(int).reshape(2, 16, 2)
    assert (pairs[1, :, 0] - 128 == q[0, 32:48]).all()
    assert (pairs[1, :, 1] - 128 == q[0, 48:64]).all()


def test_scales_of_larger_blocks_are_repeated() -> None:
    scale = np.arange(6, dtype=np.float32).reshape(3, 2)
    packed = pack_groups(scale, linear(3, 128, 4))
    assert packed.shape == (4, 16)
    assert (packed[:, :3] == np.repeat(scale, 2, axis=1).T).all()
    assert (packed[:, 3:] == 0).all()


def test_a_dense_weight_is_held_within_f16() -> None:
    w = np.zeros((2, 32), np.float32)
    w[0, 0], w[1, 1] = 1e6, -1e6
    packed = pack_dense(w, linear(2, 32, 16))
    assert packed[0, 0] == 65504
    assert packed[1, 1] == -65504
    assert (unpack({"weight": packed}, linear(2, 32, 16)) == packed).all()


def test_what_the_grid_does_not_have_is_refused() -> None:
    kernel = linear(2, 64, 4)
    with pytest.raises(TargetRefused, match="holds codes from 16 to 16"):
        pack_codes(np.full((2, 64), 16), kernel)
    with pytest.raises(TargetRefused, match="do not fit 2 rows of 2 groups of 32"):
        pack_groups(np.ones((2, 4)), kernel)
    with pytest.raises(TargetRefused, match="f16 cannot hold"):
        pack_groups(np.full((2, 2), np.nan), kernel)
    with pytest.raises(TargetRefused, match="does not fill groups of 128"):
        replace(kernel, group=128)
