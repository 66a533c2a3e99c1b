"""What is known of a GPU artifact's code, and how: the wording that the artifact carries to its reader."""

from collections.abc import Mapping, Sequence

from tokc.targets.gpu.codegen import Compiled
from tokc.targets.gpu.device import Architecture

# The architectures whose PTX the tests execute in an emulator.
EMULATED = frozenset({"sm_80", "sm_90"})
RANKS = (
    "{} devices: whole steps over 2 ranks executed in tests through the interpreter, memory handed on by a "
    "transport on the host; NCCL's own calls made to a library in its place, never to NCCL"
)


def verification(compiled: Sequence[Compiled], arch: Architecture, ranks: int = 1) -> Mapping[str, str]:
    """Return, for each part, how far it is verified; nothing here was run on a device."""
    machine = "not executed: no emulator of this architecture is at hand"
    if arch.backend == "cuda":
        whose = "this architecture" if arch.name in EMULATED else "sm_80 and sm_90, not of this one"
        machine = f"PTX of {whose}, executed in tests by an emulator: values, bounds, alignment, races"
    spilled = [one.symbol for one in compiled if one.resources.spill_bytes]
    return {
        "kernels' source": "each family executed in tests by Triton's interpreter, against its formula",
        "kernels' code": machine,
        "resources": f"read from the code of this build: {len(compiled)} kernels, {len(spilled)} with spills",
        "plan": "whole steps of tiny models executed in tests through the interpreter, against the program",
        **({"ranks": RANKS.format(ranks)} if ranks > 1 else {}),
        "launches": "packed parameters compared in tests with the code's own parameter lists",
        "device": "nothing was run on a device; every figure of speed is a prediction",
    }
