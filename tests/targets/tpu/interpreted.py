"""Pallas kernels in Pallas' interpreter, on this machine's processor."""

import functools
import importlib

import jax._src.literals
import pytest

from tokc.targets.tpu import products

ATTENTION = "jax.experimental.pallas.ops.tpu.ragged_paged_attention.kernel"


def interpret_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every kernel of a step be interpreted until the test ends."""
    for pallas in {products.pl, importlib.import_module(ATTENTION).pl}:
        interpreted = functools.partial(pallas.pallas_call, interpret=True)
        monkeypatch.setattr(pallas, "pallas_call", interpreted)
    # The interpreter asks constants of an index for a shape, which those of this version lack.
    monkeypatch.setattr(jax._src.literals.TypedInt, "shape", (), raising=False)
