"""All instructions by opcode."""

from collections.abc import Mapping

from tests.ptx.decoding import Decoder, Decoding, Run
from tests.ptx.faults import Unsupported
from tests.ptx.instructions import (
    arithmetic,
    async_copy,
    conversion,
    logic,
    matrix,
    memory,
    synchronization,
    warp,
    warpgroup,
)
from tests.ptx.syntax import Instruction

KINDS = (arithmetic, logic, conversion, memory, async_copy, matrix, warpgroup, warp, synchronization)
DECODERS: Mapping[str, Decoder] = {
    opcode: decoder for kind in KINDS for opcode, decoder in kind.DECODERS.items()
}
# Opcodes that are counted with their first modifier, as `ld.global`.
CLASSED = {"ld": 1, "st": 1, "wgmma": 1, "cp": 2}


def decode(instruction: Instruction) -> Run:
    """Return what an instruction does, or raise Unsupported."""
    site = instruction.site
    decoder = DECODERS.get(instruction.opcode)
    if decoder is None:
        raise Unsupported(f"instruction '{instruction.opcode}' is not executed", site.line, site.text)
    return decoder(Decoding(instruction))


def class_of(instruction: Instruction) -> str:
    """Return the class that an instruction is counted in."""
    kept = instruction.modifiers[: CLASSED.get(instruction.opcode, 0)]
    if (
        instruction.opcode == "cp"
        and kept[-1:]
        and kept[-1] not in {"commit_group", "wait_group", "wait_all"}
    ):
        kept = kept[:1]
    return ".".join((instruction.opcode, *kept))
