"""Tables what the GPU kernels of known models take on every architecture: `python -m bench.gpu_kernels`.

Nothing is measured: registers, spills, shared memory, occupancy and instructions are read from the code.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.shapes import SHAPES, sparse_folder
from tokc.compiler import precision
from tokc.importers import import_model
from tokc.pipeline import Pipeline
from tokc.targets.base import Limits
from tokc.targets.gpu.codegen import Compiled, compile_kernels
from tokc.targets.gpu.device import ARCHITECTURES, Architecture
from tokc.targets.gpu.emit import emit
from tokc.targets.gpu.kernel import Kernel
from tokc.targets.gpu.target import CUDA

DOCUMENT = Path("docs/targets/cuda.md")
BEGIN, END = "<!-- kernels begin -->", "<!-- kernels end -->"
CONTEXT = 8192


def kernels_of(name: str, dtype: str = "int4", kv_dtype: str = "f16") -> tuple[Kernel, ...]:
    """Return the kernels of a model of a known shape."""
    with tempfile.TemporaryDirectory() as folder:
        program = import_model(sparse_folder(name, Path(folder, name), layers=1), context=CONTEXT)
        passes = Pipeline.parse(CUDA.pipeline(precision(dtype, kv_dtype)))
        _, kernels, _ = emit(passes.run(program), Limits(context=CONTEXT))
    return kernels


def row(kernel: Kernel, found: Mapping[str, Compiled]) -> str:
    """Return a kernel's line: registers, shared KiB, matrix instructions, occupancy by architecture."""
    cells = []
    for one in found.values():
        r = one.resources
        spill = f" **{r.spill_bytes} B spilled**" if r.spill_bytes else ""
        matrix = f" {r.matrix} mma" if kernel.tensor_cores else ""
        cells.append(f"{r.registers} r, {r.shared_bytes / 1024:.0f} K,{matrix} {r.occupancy:.0%}{spill}")
    return f"| `{kernel.symbol}` | " + " | ".join(cells) + " |"


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
    kernels = kernels_of(name)
    made = {arch.name: compile_kernels(kernels, arch) for arch in archs}
    lines = [f"\n### {name}, int4, f16 cache\n", "| kernel | " + " | ".join(made) + " |"]
    lines.append("|---" * (len(made) + 1) + "|")
    refused = []
    for at, kernel in enumerate(kernels):
        lines.append(row(kernel, {arch: found[at] for arch, found in made.items()}))
        for arch in archs:
            refused += failures(kernel, made[arch.name][at], arch)
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
