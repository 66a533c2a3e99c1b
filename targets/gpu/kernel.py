"""What a GPU kernel is: a specialization of a Triton function that takes pointers and nothing else.

Every size that does not change with a step is a constexpr. What does change is read on the device from
`info`, i32[8], so that a launch recorded in a graph may be replayed for other steps of its bucket:
`INFO` names its entries; those `padded` are of the grid, the step's own rounded up. Pointers are aligned to
16 bytes. A program of the grid past the step's own rows, tiles or splits must write nothing.

A sum over columns or over cached tokens is taken in an order that depends on neither the number of tokens in
the step nor on how they are dealt to programs, so that a token's result has the same bits in every batch.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from tokc.targets.plan import Grid

INFO = ("tokens", "rows", "seqs", "blocks", "tiles", "splits", "padded_tokens", "padded_rows")
INFO_SIZE = 8
# A step of at most so many tokens runs the narrow kernels.
NARROW_TOKENS = 16


class Kernel(Protocol):
    """A specialization of one kernel family: what to compile, how to call it, and over which grid."""

    @property
    def symbol(self) -> str:
        """Return a name that is unique for the specialization, a C identifier."""
        ...

    @property
    def args(self) -> tuple[tuple[str, str], ...]:
        """Return the pointer arguments in order: the Triton function's name and the element's dtype.

        Dtypes are those of Plan buffers (f32, f16, i32, i8, u8), and fp8 for e4m3 in the device's own form.
        """
        ...

    @property
    def grid(self) -> Grid:
        """Return up to three axes."""
        ...

    @property
    def constants(self) -> Mapping[str, int | float | bool | str | None]:
        """Return the constexpr arguments by name; a pointer that the form does not take is one of them."""
        ...

    @property
    def warps(self) -> int:
        """Return the number of warps of a program."""
        ...

    @property
    def stages(self) -> int:
        """Return the depth of the software pipeline of its loops."""
        ...

    @property
    def tensor_cores(self) -> bool:
        """Return whether it multiplies matrices, so that its code must use the matrix units."""
        ...

    def function(self) -> Any:
        """Return the `triton.jit` function; importing Triton waits until here."""
        ...
