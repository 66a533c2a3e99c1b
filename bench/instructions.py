"""Counts the instructions of the hot loops of every instruction set, from the disassembly of their kernels.

    python -m bench.instructions [--isa NAME ...] [--out FILE]

Prints a markdown table; needs no machine that runs the code. Kernels are those of SmolLM2-135M: a projection
of int4 weights, and attention over an f16 cache.
"""

import argparse
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.disassembly import (
    BRANCH,
    DOT_PRODUCT,
    MULTIPLY_ADD,
    ROUND,
    SHIFT_BYTES,
    Instruction,
    Loop,
    disassemble,
    innermost_loops,
    parse_objdump,
)
from tokc.targets.cpu.codegen import compile_kernels
from tokc.targets.cpu.isa import ISAS, Isa
from tokc.targets.cpu.kernels.paged_attention import PagedAttention
from tokc.targets.cpu.kernels.quant_linear import QuantLinear

Functions = dict[str, list[Instruction]]
KINDS = ("total", "products", "loads", "stores", "converts", "spills")
PREFETCH = re.compile(r"prefetch\w*|prfm")
COLUMNS = ("loop", "ISA", *KINDS, "share", "MACs an instruction")


@dataclass(frozen=True)
class HotLoop:
    """A loop to look for: `packed` says whether it unpacks what it multiplies, or reads a cache ahead."""

    name: str
    kernel: str
    products: re.Pattern[str]
    packed: bool
    fewest: bool = False

    def find(self, functions: Functions) -> Loop | None:
        """Return the loop with the most products, or the fewest, of those that do so."""
        names = [name for name in functions if name.startswith(self.kernel)]
        found = [loop for name in names for loop in innermost_loops(functions[name]) if self.fits(loop)]
        if not found:
            return None
        ordered = sorted(
            found, key=lambda loop: (loop.counts(self.products).products, -len(loop.instructions))
        )
        return ordered[0 if self.fewest else -1]

    def fits(self, loop: Loop) -> bool:
        """Return whether the loop multiplies, and unpacks or converts as wanted."""
        counts = loop.counts(self.products)
        if self.kernel == "quant_linear":
            return counts.products > 0 and (loop.number(SHIFT_BYTES) > 0) == self.packed
        # Attention multiplies in its exponential, which rounds, and where it merges parts, which stores. Its
        # products of one token ask for the next pages on the way; those of many read a block many times, and
        # ask on the first, by a branch.
        plain = loop.number(ROUND) == 0 and counts.stores == 0
        always = loop.number(PREFETCH) > 0 and loop.number(BRANCH) == 1
        return counts.products > 0 and plain and always == self.packed


HOT_LOOPS = (
    HotLoop("quant_linear, 1 row", "quant_linear", DOT_PRODUCT, packed=True, fewest=True),
    HotLoop("quant_linear, few rows", "quant_linear", DOT_PRODUCT, packed=True),
    HotLoop("quant_linear, many rows", "quant_linear", DOT_PRODUCT, packed=False),
    HotLoop("attention, decode", "paged_attention", MULTIPLY_ADD, packed=True),
    HotLoop("attention, prefill", "paged_attention", MULTIPLY_ADD, packed=False),
)


def hot_kernels(isa: Isa) -> tuple[Any, ...]:
    """Return the kernels whose loops are counted."""
    linear = QuantLinear(isa, 576, 576, 4, symmetric=True, bias=False, y_stride=576)
    return linear, PagedAttention(isa, 9, 3, 64, 16, "f16", 0.125, 0, 4096, quantize=True, keep_float=False)


def row(hot: HotLoop, isa: Isa, functions: Functions) -> list[str]:
    """Return a line of the table."""
    loop = hot.find(functions)
    if loop is None:
        return [hot.name, isa.name, *["–"] * (len(COLUMNS) - 2)]
    counts = loop.counts(hot.products)
    per_instruction = loop.multiply_adds(hot.products) / counts.total
    figures = [str(getattr(counts, kind)) for kind in KINDS]
    return [hot.name, isa.name, *figures, f"{counts.share:.0%}", f"{per_instruction:.3g}"]


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    rule = ["---", "---", *["---:"] * (len(COLUMNS) - 2)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (COLUMNS, rule, *rows))


def main() -> None:
    """Compile, disassemble, count, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--isa", nargs="+", choices=list(ISAS), default=list(ISAS))
    parser.add_argument("--out", type=Path, help="also write the table there")
    options = parser.parse_args()
    functions: dict[str, Functions] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.isa:
            code = Path(folder, f"{name}.o")
            functions[name] = {}
            for each in compile_kernels(hot_kernels(ISAS[name]), ISAS[name]):
                code.write_bytes(each)
                try:
                    functions[name] |= parse_objdump(disassemble(code, ISAS[name].triple.split("-")[0]))
                except FileNotFoundError as error:
                    parser.error(str(error))
    table = markdown(row(hot, ISAS[name], functions[name]) for hot in HOT_LOOPS for name in options.isa)
    print(table)
    if options.out:
        options.out.write_text(table + "\n")


if __name__ == "__main__":
    main()
