"""The table of tiles, and what it was chosen by."""

from dataclasses import replace

import pytest

from bench.gpu_tiles import Candidate, chosen, loop_instructions, predicted_s, sheet_of
from tests.targets.gpu.test_linear import linear
from tokc.targets.gpu.codegen import Compiled
from tokc.targets.gpu.device import ARCHITECTURES
from tokc.targets.gpu.kernels.linear import WIDE_ROWS, default_tile
from tokc.targets.gpu.resources import Resources
from tokc.targets.gpu.tiles import TABLE, Tile, class_of, shipped, shipped_rows, table_text

SEARCHED = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
CLASSES = {"fewest": 1024, "few": 2048, "middle": 4096, "many": 28672}
RESOURCES = Resources(64, 0, 1 << 15, 500, 8, 20, 10, occupancy=0.25)
SASS = """
.L_x_0:
        /*0010*/                   LDG.E R1, [R2] ;
        /*0020*/              @!P5 BRA `(.L_x_0) ;
.L_x_1:
        /*0030*/                   MOV R1, R2 ;
        /*0040*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
        /*0050*/               @P0 BRA `(.L_x_1) ;
        /*0060*/                   EXIT ;
.L_x_2:
        /*0070*/                   BRA `(.L_x_2) ;
"""


def candidate(*, rows: int = 16, stages: int = 3, loop: int = 300, **resources: object) -> Candidate:
    kernel = linear(4096, 4096, 4, tile=Tile(64, 128, 4, stages), tile_rows=rows)
    used = replace(RESOURCES, **resources)  # type: ignore[arg-type]
    return Candidate(kernel, Compiled("k", "k", 4, 128, (), 2, {}, used), loop)


def predicted(of: Candidate, n: int = 4096) -> float:
    arch = ARCHITECTURES["sm_90"]
    return predicted_s(of, (n, 4096), arch, sheet_of(arch))


@pytest.mark.parametrize("architecture", SEARCHED)
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_a_searched_architecture_has_tiles_for_every_class_of_weights(architecture: str, bits: int) -> None:
    for name, n in CLASSES.items():
        assert class_of(n) == name
        row = shipped(architecture, bits, n)
        assert row is not None
        assert row.narrow.block_k == row.wide.block_k
        assert default_tile(linear(n, 4096, bits, architecture=architecture)).block_n == row.narrow.block_n
        wide = linear(n, 4096, bits, architecture=architecture, tile_rows=WIDE_ROWS)
        assert default_tile(wide).stages == row.wide.stages


def test_columns_that_a_tile_does_not_divide_are_left_to_the_rule() -> None:
    assert default_tile(linear(4096, 96, 4, architecture="sm_89")) == default_tile(linear(4096, 96, 4))
    assert shipped("gfx942", 4, 4096) is None


def test_the_table_is_what_its_maker_writes() -> None:
    assert table_text(shipped_rows()) == TABLE.read_text()
    assert {row.architecture for row in shipped_rows()} == set(SEARCHED)


def test_the_loop_that_multiplies_is_found() -> None:
    assert loop_instructions(SASS, ("HMMA",)) == 3
    assert loop_instructions(SASS, ("HGMMA",)) == 7


def test_a_prediction_is_bounded_by_what_is_scarce() -> None:
    narrow = candidate()
    assert predicted(narrow) < predicted(candidate(loop=3000))
    assert predicted(candidate(stages=2)) > predicted(narrow), "fewer bytes are in flight"
    assert predicted(narrow, n=65536) > 8 * predicted(narrow)
    assert predicted(candidate(rows=64), n=65536) > 4 * predicted(narrow, n=65536), "a prompt is 512 tokens"


@pytest.mark.slow
def test_the_table_is_what_the_search_finds() -> None:
    """Of one architecture and width; `make gpu-tiles` makes all of it."""
    assert chosen(ARCHITECTURES["sm_89"], 16) == [shipped("sm_89", 16, n) for n in CLASSES.values()]
