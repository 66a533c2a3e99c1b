"""Which weights take more bytes in a program than in the file that they came from, type by type.

Files pack codes of 2, 3, 5 and 6 bits, and scales of 6 bits within scales; kernels read codes of 2, 3, 4 and
8 bits and scales of 16 bits, in groups of 32 or more. What a pass puts on a wider grid than it was stored on
is read at the wider grid's bytes with every token.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from tokc.ir.costs import constant_bytes
from tokc.ir.program import Program
from tokc.ir.rewrite import STORED_AS, made_by

MEGA = 1e6


@dataclass(frozen=True)
class Widened:
    """State how many weights of a file's type grew, and their bytes in the file and in the program."""

    kind: str
    weights: int
    file_bytes: float
    program_bytes: float

    def __str__(self) -> str:
        """Return this as a phrase."""
        before, after = self.file_bytes / MEGA, self.program_bytes / MEGA
        return f"{self.weights} of {self.kind} from {before:.2f} MB to {after:.2f} MB"


def widened(before: Program, after: Program) -> tuple[Widened, ...]:
    """Return the types of which a pass took weights to more bytes than their file has them in."""
    found: dict[str, Widened] = {}
    for kind, file_bytes, program_bytes in _moved(before, after):
        if program_bytes > file_bytes:
            known = found.get(kind, Widened(kind, 0, 0.0, 0.0))
            found[kind] = Widened(
                kind, known.weights + 1, known.file_bytes + file_bytes, known.program_bytes + program_bytes
            )
    return tuple(found[kind] for kind in sorted(found))


def _moved(before: Program, after: Program) -> Iterator[tuple[str, float, float]]:
    """Yield the type of each weight that left the form it came in, and its bytes then and now."""
    now = after.graph.initializers
    for node in before.graph:
        if (node.domain, node.op_type) != ("tokc", "BlockDequantize") or node.inputs[0] is None:
            continue
        codes, name = node.inputs[0].const_value, str(node.outputs[0].name)
        stored = None if codes is None else codes.meta.get(STORED_AS)
        made = now.get(f"{name}.q")
        if stored is None or codes is None or made is None or _as_it_came(made):
            continue
        kind, bits = stored
        parts = [now[part] for part in (f"{name}.q", f"{name}.scale", f"{name}.offset") if part in now]
        yield kind, codes.size * bits / 8, sum(constant_bytes(part) for part in parts)


def _as_it_came(codes: ir.Value) -> bool:
    readers = [node for node, _ in codes.uses()]
    return any(made_by(node.outputs[0], "BlockDequantize", "tokc") is not None for node in readers)
