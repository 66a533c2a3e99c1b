"""What a compiled kernel takes of a multiprocessor, read from its code; nothing here is measured.

Registers, local memory and instructions come from the disassembler that ships with Triton (NVIDIA), or from
the notes and text of the code object (AMD).
"""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tokc.errors import TargetRefused
from tokc.targets.gpu.device import KIB, Architecture

RESERVED_SHARED = KIB  # CUDA keeps so much of the shared memory for each block
REGISTER_UNIT = 256  # registers are handed to a warp in units of so many
WIDEST_LOAD = re.compile(r"LDG\.E(?:\.\w+)*\.128|LDGSTS\.E(?:\.\w+)*\.128|UTMALDG")
SASS = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)
GCN = re.compile(r"^\s+([a-z]+_[a-z0-9_]+)", re.MULTILINE)


@dataclass(frozen=True)
class Resources:
    """State a kernel's registers a thread, spilled bytes a thread, shared bytes a block, and instructions.

    `matrix` counts matrix instructions, `wide_loads` the global loads of 16 bytes a thread of all `loads`.
    `occupancy` is the share of a multiprocessor's warps that may be resident, `limit` what bounds it.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    instructions: int
    matrix: int
    loads: int
    wide_loads: int
    occupancy: float = 0.0
    limit: str = ""

    def with_occupancy(self, warps: int, arch: Architecture) -> "Resources":
        """Return these resources with the occupancy of blocks of `warps` warps.

        Source: CUDA C++ Best Practices Guide, "Calculating Occupancy".
        """
        per_warp = -(-self.registers * arch.warp // REGISTER_UNIT) * REGISTER_UNIT
        reserved = RESERVED_SHARED if arch.backend == "cuda" else 0
        limits = {
            "warps": arch.warps // warps,
            "blocks": arch.blocks,
            "registers": arch.registers // max(per_warp * warps, 1),
            "shared": arch.shared_bytes // max(self.shared_bytes + reserved, 1),
        }
        limit = min(limits, key=lambda name: limits[name])
        return replace(self, occupancy=round(limits[limit] * warps / arch.warps, 4), limit=limit)

    def to_json(self) -> dict[str, object]:
        """Return the fields by name."""
        return asdict(self)


def nvidia_resources(cubin: bytes, ptx: str, shared_bytes: int, arch: Architecture) -> Resources:
    """Read a cubin.

    Raises: TargetRefused if the disassembler fails.
    """
    usage, sass = _tool("cuobjdump", "-res-usage", cubin), sass_of(cubin)
    found = {name: int(size) for name, size in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    opcodes = SASS.findall(sass)
    kinds = Counter(opcode.split(".")[0] for opcode in opcodes)
    spills = found.get("LOCAL", 0) + (found.get("STACK", 0) if kinds["STL"] or kinds["LDL"] else 0)
    assert "REG" in found, f"cuobjdump printed {usage[:200]!r}"
    assert ptx.count(".visible .entry") == 1, "a module holds one kernel"
    return Resources(
        registers=found["REG"],
        spill_bytes=spills,
        shared_bytes=shared_bytes,
        instructions=len(opcodes),
        matrix=sum(kinds[name] for name in arch.matrix),
        loads=kinds["LDG"] + kinds["LDGSTS"] + kinds["UTMALDG"],
        wide_loads=sum(1 for opcode in opcodes if WIDEST_LOAD.match(opcode)),
    )


def amd_resources(assembly: str, shared_bytes: int, warps: int, arch: Architecture) -> Resources:
    """Read the assembly text of a code object and its notes."""
    notes = {
        name: int(size)
        for name, size in re.findall(r"\.(\w+_count|private_segment_fixed_size):\s+(\d+)", assembly)
    }
    assert "vgpr_count" in notes, f"the assembly for {arch.name} has no notes ({warps} warps)"
    opcodes = GCN.findall(assembly)
    loads = [o for o in opcodes if o.startswith(("global_load", "buffer_load"))]
    return Resources(
        registers=notes["vgpr_count"] + notes.get("agpr_count", 0),
        spill_bytes=notes.get("private_segment_fixed_size", 0),
        shared_bytes=shared_bytes,
        instructions=len(opcodes),
        matrix=sum(1 for o in opcodes if o.startswith(arch.matrix)),
        loads=len(loads),
        wide_loads=sum(1 for o in loads if o.endswith(("dwordx4", "b128"))),
    )


def sass_of(cubin: bytes) -> str:
    """Return a cubin's instructions as text.

    Raises: TargetRefused if the disassembler fails.
    """
    return _tool("nvdisasm", "-c", cubin)


def _tool(name: str, flag: str, cubin: bytes) -> str:
    import triton.backends.nvidia

    path = Path(next(iter(triton.backends.nvidia.__path__)), "bin", name)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([path, flag, file.name], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise TargetRefused(f"'{name}' cannot read the compiled kernel: {done.stderr.strip()[-200:]}")
    return done.stdout + done.stderr
