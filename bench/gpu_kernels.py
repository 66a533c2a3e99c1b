"""Tables what the GPU kernels of known models take on every architecture: `python -m bench.gpu_kernels`.

Nothing is measured: registers, spills, shared memory, occupancy and instructions are read from the code.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.shapes import SHAPES, sparse_folder
from tokc.compiler import precision
from tokc.importers import import_model
from tokc.pipeline import Pipeline
from tokc.targets.base import Limits
from tokc.targets.gpu.codegen import Compiled, compile_kernels
from tokc.targets.gpu.device import ARCHITECTURES, Architecture
from tokc.targets.gpu.emit import emit
from tokc.targets.gpu.kernel import NARROW_TOKENS, Kernel
from tokc.targets.gpu.kernels.linear import Linear
from tokc.targets.gpu.kernels.moe_linear import MoeLinear
from tokc.targets.gpu.target import CUDA

DOCUMENT = Path("docs/targets/cuda.md")
BEGIN, END = "<!-- kernels begin -->", "<!-- kernels end -->"
CONTEXT = 8192
# Families by the beginning of their symbols, the longer first.
FAMILIES = (
    *("paged_attention_narrow", "paged_attention_wide", "paged_attention_reduce", "add_rms_norm", "rms_norm"),
    *("rope_write_kv", "quant_embedding", "embedding", "gather_rows", "gated", "linear", "arg_max"),
    *("moe_linear", "moe_scores", "moe_route", "moe_group", "moe_combine"),
)


def kernels_of(name: str, architecture: str) -> tuple[Kernel, ...]:
    """Return the kernels of a model of a known shape, with weights in int4 and the cache in f16.

    Of a model with experts those alone that a dense one does not have.
    """
    with tempfile.TemporaryDirectory() as folder:
        program = import_model(sparse_folder(name, Path(folder, name), layers=1), context=CONTEXT)
        passes = Pipeline.parse(CUDA.pipeline(precision("int4", "f16")))
        _, kernels, _ = emit(passes.run(program), architecture, Limits(context=CONTEXT))
    if "num_experts" in SHAPES[name]:
        return tuple(kernel for kernel in kernels if kernel.symbol.startswith("moe_"))
    return kernels


def title(kernel: Kernel) -> str:
    """Return what a kernel is in the table: its family and, of a product, its size and steps."""
    family = next(family for family in FAMILIES if kernel.symbol.startswith(family))
    experts = f"{kernel.experts} experts of " if isinstance(kernel, MoeLinear) else ""
    linear = kernel.linear if isinstance(kernel, MoeLinear) else kernel
    if not isinstance(linear, Linear):
        return family.replace("_", " ")
    steps = "wide" if linear.tile_rows > NARROW_TOKENS else "narrow"
    return f"linear {experts}{linear.n} x {linear.k}, {linear.bits} bits, {steps}"


def cell(kernel: Kernel, one: Compiled) -> str:
    """Return registers, shared memory, matrix instructions and occupancy of a kernel's code."""
    r = one.resources
    spill = f" **{r.spill_bytes} B spilled**" if r.spill_bytes else ""
    matrix = f" {r.matrix} mm" if kernel.tensor_cores else ""
    return f"{r.registers} r, {r.shared_bytes / 1024:.0f} K,{matrix} {r.occupancy:.0%}{spill}"


def failures(kernel: Kernel, one: Compiled, arch: Architecture) -> list[str]:
    """Return what the static gate holds against a kernel."""
    found = []
    if one.resources.spill_bytes:
        found.append(f"{arch.name} {kernel.symbol}: spills {one.resources.spill_bytes} bytes")
    if kernel.tensor_cores and not one.resources.matrix:
        found.append(f"{arch.name} {kernel.symbol}: uses no matrix instruction")
    if one.resources.shared_bytes > arch.shared_per_block:
        found.append(
            f"{arch.name} {kernel.symbol}: takes {one.resources.shared_bytes} bytes of shared memory"
        )
    if not one.resources.occupancy:
        found.append(f"{arch.name} {kernel.symbol}: does not fit a multiprocessor ({one.resources.limit})")
    return found


def table(name: str, archs: Sequence[Architecture]) -> tuple[list[str], list[str]]:
    """Return a model's table in Markdown, and what the gate holds against its kernels."""
    what = "experts in int4" if "num_experts" in SHAPES[name] else "int4, f16 cache"
    lines = [f"\n### {name}, {what}\n", "| kernel | " + " | ".join(a.name for a in archs) + " |"]
    lines.append("|---" * (len(archs) + 1) + "|")
    refused: list[str] = []
    cells: dict[str, list[str]] = {}
    for arch in archs:
        kernels = kernels_of(name, arch.name)
        for kernel, one in zip(kernels, compile_kernels(kernels, arch), strict=True):
            # An architecture may take other tiles: a row is a place in the plan, not a symbol.
            cells.setdefault(title(kernel), []).append(cell(kernel, one))
            refused += failures(kernel, one, arch)
    lines += [f"| {row} | " + " | ".join(found) + " |" for row, found in cells.items()]
    return lines, refused


def main() -> None:
    """Print the tables, or write them into the document; exit 3 if the static gate is not met."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_kernels", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--archs", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--write", action="store_true", help=f"write the tables into {DOCUMENT}")
    asked = parser.parse_args()
    lines: list[str] = []
    refused: list[str] = []
    for name in asked.models:
        more, against = table(name, [ARCHITECTURES[arch] for arch in asked.archs])
        lines, refused = lines + more, refused + against
        print("\n".join(more), flush=True)
    print("\n".join(refused) or "the static gate is met")
    if asked.write:
        text = DOCUMENT.read_text()
        head, _, rest = text.partition(BEGIN)
        _, _, tail = rest.partition(END)
        DOCUMENT.write_text(f"{head}{BEGIN}\n" + "\n".join(lines) + f"\n\n{END}{tail}")
    raise SystemExit(3 if refused else 0)


if __name__ == "__main__":
    main()
