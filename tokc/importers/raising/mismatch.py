"""What is said of a subgraph that does not match."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import onnx_ir as ir

from tokc.errors import ImportRefused

DEPTH = 3  # nodes from the one that failed back to its operands, in an error


class Unmatched(Exception):
    """Say which value is not what a decoder has there; `progress` counts what matched before it."""

    def __init__(self, value: ir.Value | None, expected: str, progress: int = 0) -> None:
        super().__init__(expected)
        self.value = value
        self.expected = expected
        self.progress = progress

    def refusal(self, origin: str, heading: str) -> ImportRefused:
        """Return the error for a user, with the nearest subgraph by node names and ops."""
        found = subgraph(self.value)
        return ImportRefused(
            f"{heading}; the nearest subgraph that did not match: expected {self.expected}, found {found}",
            where=f"{origin}, {location(self.value)}",
            hint="export the model unchanged by Optimum or torch.onnx.export(dynamo=True), or import its "
            "Hugging Face folder",
        )


@contextmanager
def further(progress: int) -> Iterator[None]:
    """Let mismatches inside count as having matched so much more."""
    try:
        yield
    except Unmatched as error:
        error.progress += progress
        raise


def nearest(mismatches: Sequence[Unmatched]) -> Unmatched:
    """Return the mismatch before which most had matched."""
    return max(mismatches, key=lambda mismatch: mismatch.progress)


def location(value: ir.Value | None) -> str:
    """Name the node that makes a value, or the value if it is an input or a constant."""
    node = None if value is None else value.producer()
    if node is None:
        return "nothing" if value is None else f"value '{value.name}'"
    return f"node '{node.name or node.outputs[0].name}'"


def subgraph(value: ir.Value | None) -> str:
    """Print how a value is made: ``Mul(Add(x, w), 2)``, a few nodes deep."""
    return "nothing" if value is None else "".join(_printed(value, DEPTH))


def _printed(value: ir.Value, depth: int) -> Iterator[str]:
    node = value.producer()
    if node is None or depth == 0 or node.op_type == "Constant":
        yield f"'{value.name}'"
        return
    yield f"{node.op_type}("
    for index, operand in enumerate(node.inputs):
        yield ", " if index else ""
        yield from iter(["-"]) if operand is None else _printed(operand, depth - 1)
    yield ")"
