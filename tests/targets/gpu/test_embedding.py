"""Rows of an embedding table, plain and on a grid, are the table's own to the last bit."""

import numpy as np
import pytest

from tests.targets.gpu.interpreted import info, interpret
from tokc.targets.gpu.kernels.embedding import Embedding, QuantEmbedding
from tokc.targets.gpu.kernels.linear import Linear
from tokc.targets.gpu.packing import pack_codes, pack_groups, unpack

VOCAB = 50
IDS = np.array([49, 0, 7, 7, 31], np.int32)
COUNT = 4


def gathered(kernel: Embedding | QuantEmbedding, parts: dict[str, np.ndarray], hidden: int) -> np.ndarray:
    out = np.full((len(IDS), hidden), 7, np.float32)
    arrays = {**parts, "input_ids": IDS, "info": info(tokens=COUNT), "out": out}
    interpret(kernel, arrays, {"tokens": len(IDS)})
    assert (out[COUNT:] == 7).all(), "a row past the count was written"
    return out[:COUNT]


@pytest.mark.parametrize("hidden", [96, 1056])
def test_rows_of_a_plain_table(hidden: int) -> None:
    table = np.random.default_rng(1).normal(0, 1, (VOCAB, hidden)).astype(np.float16)
    found = gathered(Embedding(hidden, VOCAB), {"table": table}, hidden)
    assert (found == table[IDS[:COUNT]].astype(np.float32)).all()


@pytest.mark.parametrize("hidden", [128, 1152])
@pytest.mark.parametrize(
    ("bits", "symmetric", "group"), [(4, True, 32), (4, False, 32), (8, True, 32), (4, True, 128)]
)
def test_rows_of_a_table_on_a_grid(hidden: int, bits: int, symmetric: bool, group: int) -> None:
    head = Linear(VOCAB, hidden, bits, symmetric, bias=False, x_stride=hidden, y_dtype="f32", group=group)
    rng = np.random.default_rng(2)
    codes = rng.integers(*((0, 16) if bits == 4 else (-128, 128)), (VOCAB, hidden))
    groups = (VOCAB, hidden // group)
    parts = {
        "weight": pack_codes(codes, head),
        "scale": pack_groups(rng.uniform(0.01, 0.1, groups), head),
    }
    if not symmetric:
        parts["offset"] = pack_groups(rng.normal(0, 1, groups), head)
    found = gathered(QuantEmbedding(head), parts, hidden)
    # A code times an f16 is exact in f32; adding the offset rounds once.
    assert (found == unpack(parts, head)[IDS[:COUNT]].astype(np.float32)).all()


def test_the_head_and_the_embedding_name_the_same_arrays() -> None:
    head = Linear(VOCAB, 128, 4, symmetric=False, bias=True, x_stride=128, y_dtype="f32")
    assert QuantEmbedding(head).args[:3] == head.args[:3]
