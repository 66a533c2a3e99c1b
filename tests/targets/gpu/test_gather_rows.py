"""The gather of the rows whose logits are wanted."""

import numpy as np
import pytest

from tests.targets.gpu.interpreted import DTYPES, info, interpret
from tokc.targets.gpu.kernels.gather_rows import GatherRows


@pytest.mark.parametrize(
    ("width", "stride", "dtype"), [(96, 96, "f16"), (1100, 1104, "f16"), (40, 64, "f32")]
)
def test_it_copies_the_rows_and_leaves_those_past_the_count(width: int, stride: int, dtype: str) -> None:
    x = np.random.default_rng(1).normal(0, 1, (9, stride)).astype(DTYPES[dtype])
    rows = np.array([8, 0, 3, 99999], np.int32)
    out = np.full((4, width), 7, x.dtype)
    arrays = {"x": x, "logit_rows": rows, "info": info(tokens=9, rows=3), "out": out}
    interpret(GatherRows(width, stride, dtype), arrays, {"rows": 4})
    assert (out[:3] == x[rows[:3], :width]).all()
    assert (out[3] == 7).all()
