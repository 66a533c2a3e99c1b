"""The static gate over the kernels of a known model, and the committed table of what they take."""

from pathlib import Path

import pytest

from bench.gpu_kernels import BEGIN, END, cell, failures, kernels_of, title
from tests.conftest import repository
from tokc.targets.gpu.codegen import Compiled, compile_kernels
from tokc.targets.gpu.device import ARCHITECTURES
from tokc.targets.gpu.kernel import Kernel

MODEL, EXPERTS = "smollm2-135m", "qwen3-30b-a3b"
DOCUMENT = Path("docs/targets/cuda.md")


Made = tuple[str, str, dict[Kernel, Compiled]]


@pytest.fixture(
    scope="module",
    params=[
        *((MODEL, name) for name in ("sm_90", "gfx942")),
        *(pytest.param((EXPERTS, name), marks=pytest.mark.slow) for name in ("sm_90", "gfx942")),
    ],
    ids="-".join,
)
def compiled(request: pytest.FixtureRequest) -> Made:
    model, name = request.param
    kernels = kernels_of(model, name)
    code = compile_kernels(kernels, ARCHITECTURES[name])
    return model, name, dict(zip(kernels, code, strict=True))


def test_no_kernel_spills_and_products_use_the_matrix_unit(
    compiled: Made,
) -> None:
    _, name, made = compiled
    refused = [said for kernel, one in made.items() for said in failures(kernel, one, ARCHITECTURES[name])]
    assert refused == []
    assert any(kernel.tensor_cores for kernel in made)


def test_the_committed_table_is_what_the_code_takes(compiled: Made) -> None:
    """Write it anew with `python -m bench.gpu_kernels --write` and read the difference."""
    model, name, made = compiled
    table = (repository() / DOCUMENT).read_text().partition(BEGIN)[2].partition(END)[0]
    lines = table.partition(f"### {model}")[2].partition("###")[0].strip().splitlines()
    head, *rows = [[part.strip() for part in line.strip("|").split("|")] for line in lines if "|" in line]
    stated = {row[0]: row[head.index(name)] for row in rows[1:]}
    assert {title(kernel): cell(kernel, one) for kernel, one in made.items()} == stated


def test_what_breaks_the_gate_is_said() -> None:
    (kernel, *_) = (each for each in kernels_of(MODEL, "sm_80") if each.tensor_cores)
    arch = ARCHITECTURES["sm_80"]
    one = compile_kernels([kernel], arch)[0]
    bad = one.resources.__class__(
        **{
            **one.resources.to_json(),
            "spill_bytes": 8,
            "matrix": 0,
            "shared_bytes": 1 << 20,
            "occupancy": 0.0,
        }  # type: ignore[arg-type]
    )
    said = failures(kernel, one.__class__(**{**one.__dict__, "resources": bad}), arch)
    assert [text.split(": ")[1].split(" ")[0] for text in said] == ["spills", "uses", "takes", "does"]
