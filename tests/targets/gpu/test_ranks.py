"""What a rank makes of the parts of all ranks."""

import numpy as np
import pytest

from tests.targets.gpu.interpreted import info, interpret
from tokc.targets.gpu.kernels.ranks import RankJoin, RankSum


@pytest.mark.parametrize(("ranks", "width"), [(2, 64), (4, 1100), (3, 40)])
def test_parts_are_added_in_the_order_of_ranks_and_other_rows_left(ranks: int, width: int) -> None:
    x = np.random.default_rng(1).normal(0, 1, (ranks, 4, width)).astype(np.float32)
    y = np.full((4, width), 7, np.float32)
    sizes = info(tokens=3, padded_tokens=4)
    interpret(RankSum(ranks, width), {"x": x, "info": sizes, "y": y}, {"tokens": 4})
    expected = x[0]
    for part in x[1:]:
        expected = expected + part
    assert (y[:3] == expected[:3]).all()
    assert (y[3] == 7).all()


@pytest.mark.parametrize(("ranks", "width"), [(2, 48), (4, 1100)])
def test_columns_are_put_beside_each_other(ranks: int, width: int) -> None:
    x = np.random.default_rng(2).normal(0, 1, (ranks, 4, width)).astype(np.float32)
    y = np.full((3, ranks * width), 7, np.float32)
    sizes = info(rows=2, padded_rows=4)
    interpret(RankJoin(ranks, width, "rows"), {"x": x, "info": sizes, "y": y}, {"rows": 3})
    assert (y[:2] == x.transpose(1, 0, 2).reshape(4, -1)[:2]).all()
    assert (y[2] == 7).all()
