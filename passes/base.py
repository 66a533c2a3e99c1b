"""What every pass is."""

from typing import ClassVar, Protocol

from tokc.ir.program import Program


class Pass(Protocol):
    """Take a program to a program with the same meaning; its options are the fields of a frozen dataclass.

    `name` is its spelling in a pipeline. `exact` tells what "the same meaning" is: True if the logits may
    differ by the order of float operations only (1e-3 of the largest logit at most), False if the pass rounds
    something, as quantization does; then its docstring states what.
    """

    name: ClassVar[str]
    exact: ClassVar[bool]

    def run(self, program: Program) -> Program:
        """Return a new program, or the very same one if nothing matched.

        Raises: PassFailed if the program lacks what the pass needs.
        """
