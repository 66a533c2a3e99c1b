"""Bytes that each kernel's PTX moves over the least that it could: `python -m tests.targets.gpu.ptx.traffic`.

Counted by the emulator, a sector of 32 bytes once a block: what a block reads again is in its shared memory
or the first-level cache, what another reads again is counted again. The least is each operand once.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import numpy as np

from tests.ptx import Counts
from tests.ptx.compile import Compiler, compiler
from tests.targets.gpu import (
    test_gated_activation,
    test_linear,
    test_moe,
    test_moe_linear,
    test_rms_norm,
    test_sampling,
)
from tests.targets.gpu import test_paged_attention as test_attention
from tests.targets.gpu.interpreted import Array
from tests.targets.gpu.ptx.emulated import emulate
from tokc.targets.gpu.kernel import Kernel
from tokc.targets.gpu.kernels.moe import MoeCombine
from tokc.targets.gpu.kernels.moe_linear import MoeLinear
from tokc.targets.gpu.kernels.rms_norm import RmsNorm
from tokc.targets.gpu.tiles import Tile

DOCUMENT = Path("docs/targets/cuda.md")
BEGIN, END = "<!-- traffic begin -->", "<!-- traffic end -->"
ARCHITECTURES = ("sm_80", "sm_90")


@dataclass(frozen=True)
class Case:
    """A launch: what runs it, by way of `module.interpret`, and the bytes of its operands."""

    module: ModuleType
    run: Callable[[], int]


def gated() -> int:
    """Three tokens of 600 columns."""
    test_gated_activation.test_it_computes_the_gate_and_leaves_other_rows("silu", 600, 1216)
    return 3 * 3 * 600 * 2


def norm() -> int:
    """One token of 2048 columns, after a residual add, for a product and for the residual stream."""
    x = np.ones((1, 2048), np.float32)
    kernel = RmsNorm(2048, 2048, 1e-5, add=True, keep_float=False)
    test_rms_norm.run(kernel, x, x, np.ones(2048, np.float32), rows=1)
    return 2048 * (4 + 4 + 4 + 4 + 2)


def linear(bits: int) -> int:
    """One token through a weight of 256 rows and 2048 columns, a tile of a decode step."""
    kernel = test_linear.linear(256, 2048, bits, tile=Tile(64, 64 if bits == 16 else 128, 4, 3))
    parts, x = test_linear.weight(kernel), test_linear.activations(kernel, 1)
    y = test_linear.run(kernel, parts, x, 1)
    return sum(part.nbytes for part in parts.values()) + x.nbytes + y.nbytes


def experts() -> int:
    """One token through two of four experts of 128 rows and 2048 columns."""
    one = test_linear.linear(128, 2048, 4, tile=Tile(64, 128, 4, 3))
    kernel = MoeLinear(one, 4, 2, by_token=True, most_tokens=16)
    parts = test_linear.weight(test_moe_linear.every(kernel))
    x = test_moe_linear.inputs(kernel, 1)
    y = test_moe_linear.run(kernel, parts, x, np.array([[3, 1]], np.int32))
    return sum(part.nbytes for part in parts.values()) // 2 + x.nbytes + y.nbytes


def combine() -> int:
    """One token of three slots and a shared expert."""
    test_moe.test_slots_are_summed_by_weight(shared=True)
    kernel = MoeCombine(600, 3, 608)
    return 3 * 4 * kernel.width * (kernel.top_k + 2)


def attention() -> int:
    """A token a sequence at two contexts of whole pages, grouped heads."""
    step = test_attention.Step(6, 2, 64, contexts=(256, 512), counts=(1, 1))
    kernel = step.kernel(wide=True, rows=64, block=64, split=128)
    found = step.run(kernel, step.tiles(kernel.tile))
    return 2 * sum(step.contexts) * step.kv_heads * 64 * 2 + 2 * found.nbytes


def likeliest() -> int:
    """Three rows of a vocabulary of 9001."""
    test_sampling.test_the_largest_logit_within_the_vocabulary_is_chosen(9001)
    return 3 * 4 * 9001


CASES: Mapping[str, Case] = {
    "product, 4 bits, one token": Case(test_linear, lambda: linear(4)),
    "product, 8 bits, one token": Case(test_linear, lambda: linear(8)),
    "product, f16, one token": Case(test_linear, lambda: linear(16)),
    "experts, 4 bits, one token": Case(test_moe_linear, experts),
    "sum of experts": Case(test_moe, combine),
    "attention, a token a sequence": Case(test_attention, attention),
    "residual add and norm": Case(test_rms_norm, norm),
    "gated activation": Case(test_gated_activation, gated),
    "likeliest token": Case(test_sampling, likeliest),
}


@contextmanager
def counting(module: ModuleType, compiled: Compiler, architecture: str) -> Iterator[list[Counts]]:
    """Let a module's launches execute PTX; gives what each counted."""
    found: list[Counts] = []

    def execute(kernel: Kernel, arrays: Mapping[str, Array], sizes: Mapping[str, int]) -> None:
        found.append(emulate(kernel, compiled(kernel, architecture), arrays, sizes))

    with patch.object(module, "interpret", execute):
        yield found


def moved_over_least(name: str, compiled: Compiler, architecture: str) -> float:
    """Return the bytes that a case's last launch moves over the least."""
    case = CASES[name]
    with counting(case.module, compiled, architecture) as counts:
        least = case.run()
    return counts[-1].moved_bytes / least


def main() -> None:
    """Write the table into the document."""
    lines = ["| kernel | " + " | ".join(ARCHITECTURES) + " |", "|---" * (1 + len(ARCHITECTURES)) + "|"]
    with compiler() as compiled:
        for name in CASES:
            cells = [f"{moved_over_least(name, compiled, each):.2f}" for each in ARCHITECTURES]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    head, _, rest = DOCUMENT.read_text().partition(BEGIN)
    _, _, tail = rest.partition(END)
    DOCUMENT.write_text(f"{head}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{tail}")


if __name__ == "__main__":
    main()
