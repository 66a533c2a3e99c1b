"""Every family through whole pipelines, each pass checked against the program before it."""

import pytest

from tests.tiny_models import FAMILIES, tiny_folder
from tokc.importers import import_model
from tokc.instruments import Instruments
from tokc.ir.program import Program
from tokc.pipeline import Pipeline

FUSE = "fold-constants,eliminate-dead-code,fuse-linear,fuse-attention"
MERGE = "fuse-qkv,fuse-gate-up"


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def imported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Program:
    """Return a tiny program of each family."""
    pytest.importorskip("torch")
    family = str(request.param)
    return import_model(tiny_folder(family, tmp_path_factory.mktemp("models") / family))


@pytest.mark.parametrize("merge", [f",{MERGE}", ""])
def test_an_unquantized_program_answers_alike_in_the_end(imported: Program, merge: str) -> None:
    instruments = Instruments()
    text = f"{FUSE}{merge},fuse-add-rms-norm,kv-layout{{page=4 dtype=f32}},eliminate-dead-code"
    program = instruments.run(Pipeline.parse(text), imported)
    assert program.form == "ragged"
    assert instruments.final is not None
    assert instruments.final.max_abs_logit_diff < 1e-4
    assert instruments.final.top1_agree == 1.0


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ("bits=4", "f16"),
        ("bits=4 symmetric=false head_bits=4", "int8"),
        pytest.param("bits=8", "int8", marks=pytest.mark.slow),
        ("bits=3", "int4"),
    ],
)
def test_a_quantized_program_stays_within_the_bounds_of_its_passes(
    imported: Program, options: str, dtype: str
) -> None:
    text = f"{FUSE},{MERGE},quantize-weights{{{options}}},fuse-add-rms-norm,kv-layout{{page=4 dtype={dtype}}}"
    instruments = Instruments()
    program = instruments.run(Pipeline.parse(text), imported)
    assert not {"Linear", "MatMul", "Gather"} & {
        node.op_type for node in program.graph if node.inputs[-1] not in program.graph.inputs
    }
    assert instruments.final is not None
    assert instruments.final.kl_mean < 1
