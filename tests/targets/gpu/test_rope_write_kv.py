"""Rotation and the write into pages, against their definition in f64."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from tests.targets.gpu.interpreted import info, interpret
from tokc.errors import TargetRefused
from tokc.targets.gpu.kernels.rope_write_kv import RopeWriteKV

PAGE, PAGES, CONTEXT = 16, 7, 64
Wide = npt.NDArray[np.float64]


@dataclass
class Case:
    """Three tokens of two sequences, and a fourth row that is no part of the step."""

    kernel: RopeWriteKV
    arrays: dict[str, npt.NDArray[np.generic]]

    def run(self) -> dict[str, npt.NDArray[np.generic]]:
        interpret(self.kernel, self.arrays, {"tokens": 4})
        return self.arrays

    def rotated(self, name: str, heads: int) -> Wide:
        """Compute the rotated heads f64[3, heads, dim] from the definition."""
        dim = self.kernel.head_dim
        x = self.arrays[name][:3, : heads * dim].astype(np.float64).reshape(3, heads, dim)
        if getattr(self.kernel, f"{name}_norm"):
            x = (
                x
                / np.sqrt((x**2).mean(-1, keepdims=True) + self.kernel.epsilon)
                * self.arrays[f"{name}_norm"]
            )
        at = self.arrays["positions"][:3]
        cos, sin = (self.arrays[table][at].astype(np.float64)[:, None] for table in ("cos", "sin"))
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, first * sin + second * cos], -1)

    def places(self) -> list[tuple[int, int]]:
        """Return (page, slot) of each token."""
        tables, at = self.arrays["block_tables"], self.arrays["positions"][:3]
        return [
            (int(tables[seq, own // PAGE]), int(own % PAGE))
            for seq, own in zip(self.arrays["sequences"][:3], at, strict=True)
        ]


def case(heads: int, kv_heads: int, dim: int, dtype: str, norms: tuple[bool, bool] = (False, False)) -> Case:
    random = np.random.default_rng(5)
    strides = {"q": heads * dim + 16, "k": kv_heads * dim, "v": kv_heads * dim + 8}
    kernel = RopeWriteKV(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim,
        page=PAGE,
        q_stride=strides["q"],
        k_stride=strides["k"],
        v_stride=strides["v"],
        dtype=dtype,
        q_norm=norms[0],
        k_norm=norms[1],
        epsilon=1e-6,
        context=CONTEXT,
    )
    stored = np.float16 if dtype == "f16" else np.int8
    angles = np.outer(np.arange(CONTEXT), 1.0 / 100 ** (np.arange(dim // 2) / (dim // 2)))
    arrays: dict[str, npt.NDArray[np.generic]] = {
        **{name: random.normal(0, 2, (4, stride)).astype(np.float16) for name, stride in strides.items()},
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
        "positions": np.array([17, 18, 63, 0], np.int32),
        "sequences": np.array([0, 0, 1, 0], np.int32),
        "block_tables": np.array([[6, 2, 0, 0], [0, 0, 1, 4]], np.int32),
        "info": info(tokens=3, blocks=4),
        "q_norm": random.normal(1, 0.2, dim).astype(np.float32),
        "k_norm": random.normal(1, 0.2, dim).astype(np.float32),
        "q_out": np.full((4, heads * dim), 7, np.float16),
        "cache_key": np.full((PAGES, kv_heads, dim, PAGE), 7, stored),
        "cache_value": np.full((PAGES, kv_heads, PAGE, dim), 7, stored),
        "key_scale": np.full((PAGES, kv_heads, PAGE), 7, np.float32),
        "value_scale": np.full((PAGES, kv_heads, PAGE), 7, np.float32),
    }
    return Case(kernel, arrays)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "norms"),
    [
        (2, 2, 32, (False, False)),
        (6, 2, 64, (True, True)),
        (8, 1, 80, (False, True)),
    ],
)
@pytest.mark.parametrize("dtype", ["f16", "int8"])
def test_heads_are_rotated_and_written_at_their_place(
    heads: int, kv_heads: int, dim: int, norms: tuple[bool, bool], dtype: str
) -> None:
    made = case(heads, kv_heads, dim, dtype, norms)
    query, key = made.rotated("q", heads), made.rotated("k", kv_heads)
    value = made.arrays["v"][:3, : kv_heads * dim].astype(np.float64).reshape(3, kv_heads, dim)
    found = made.run()
    np.testing.assert_allclose(found["q_out"][:3], query.reshape(3, -1), rtol=1e-3, atol=2e-3)
    assert (found["q_out"][3] == 7).all()
    untouched = np.ones((PAGES, PAGE), bool)
    for token, (page, slot) in enumerate(made.places()):
        untouched[page, slot] = False
        key_row, value_row = found["cache_key"][page, :, :, slot], found["cache_value"][page, :, slot]
        for row, scale, wanted in (
            (key_row, found["key_scale"], key[token]),
            (value_row, found["value_scale"], value[token]),
        ):
            if dtype == "f16":
                np.testing.assert_allclose(row, wanted, rtol=1e-3, atol=2e-3)
                continue
            each = scale[page, :, slot].astype(np.float64)
            np.testing.assert_allclose(each, np.abs(wanted).max(-1) / 127, rtol=1e-6)
            assert (np.abs(row * each[:, None] - wanted) <= each[:, None] * 0.5001).all()
            assert (np.abs(row.astype(np.int32)).max(-1) == 127).all()
    assert (found["cache_key"].transpose(0, 3, 1, 2)[untouched] == 7).all()
    assert (found["cache_value"].transpose(0, 2, 1, 3)[untouched] == 7).all()
    if dtype == "int8":
        assert (found["key_scale"].transpose(0, 2, 1)[untouched] == 7).all()


def test_codes_are_rounded_half_to_even_and_zeros_have_scale_0() -> None:
    made = case(1, 1, 32, "int8")
    row = np.zeros(32, np.float16)
    row[:6] = [127, 0.5, 1.5, 2.5, -0.5, -3.5]
    made.arrays["v"][0, :32] = row
    made.arrays["v"][1] = 0
    found = made.run()
    (page, slot), (empty_page, empty_slot), _ = made.places()
    np.testing.assert_array_equal(found["cache_value"][page, 0, slot, :6], [127, 0, 2, 2, 0, -4])
    assert (found["cache_value"][empty_page, 0, empty_slot] == 0).all()
    assert found["value_scale"][empty_page, 0, empty_slot] == 0


def test_a_rotation_past_f16s_range_is_held_within_it() -> None:
    made = case(1, 1, 32, "f16")
    made.arrays["q"][0, :32] = made.arrays["k"][0, :32] = 65504
    found = made.run()
    page, slot = made.places()[0]
    assert np.isfinite(found["q_out"][0]).all()
    assert np.isfinite(found["cache_key"][page, 0, :, slot]).all()
    assert np.abs(found["q_out"][0]).max() == 65504


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"dtype": "f32"}, "no GPU kernel writes a cache of 'f32'; choose from f16, int8"),
        ({"dim": 33}, "a head of 33 columns has no halves to rotate"),
        ({"kv_heads": 3}, "4 query heads do not share 3 key heads evenly"),
    ],
)
def test_what_no_kernel_writes_is_refused(fields: dict[str, object], problem: str) -> None:
    usual: dict[str, object] = {"heads": 4, "kv_heads": 2, "dim": 32, "dtype": "f16"}
    with pytest.raises(TargetRefused, match=problem):
        case(**(usual | fields))
