"""Chooses the tiles of the GPU's matrix products: `make gpu-tiles`, or `python -m bench.gpu_tiles`.

Nothing is measured. Each candidate is compiled for the architecture; one that spills, uses no matrix
instruction or does not fit a multiprocessor is out. The rest are ordered by a predicted time, from what the
code takes and from the data sheet of the architecture's first device:

    a multiprocessor holds `resident` programs; an iteration of all their loops takes the longest of
      memory  the bytes of their tiles, at the multiprocessor's share of the bandwidth, or at what the bytes
              in flight allow (Little 1961: bytes in flight over latency) where that is less
      issue   the loop's instructions a warp, at one a clock from each of four schedulers
      matrix  the tile's products, at the multiprocessor's share of the peak
    a launch takes as many waves of programs as it needs, and each waits once for memory.

A wide step reads weights from the second-level cache, all but once. Narrow and wide tiles are chosen in pairs
that agree in the order of sums, by the sum of how much slower each is than the fastest of its kind.
"""

import argparse
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tokc.cost.sheet import Sheet, device_sheet
from tokc.targets.gpu.codegen import Compiled, compile_kernels
from tokc.targets.gpu.device import ARCHITECTURES, Architecture, architectures
from tokc.targets.gpu.kernel import NARROW_TOKENS
from tokc.targets.gpu.kernels.linear import WIDE_ROWS, Linear, default_splits, default_tile
from tokc.targets.gpu.resources import sass_of
from tokc.targets.gpu.tiles import TABLE, Row, Tile, shipped_rows, table_text

# A weight of each class of `tokc.targets.gpu.tiles`: rows, columns.
CLASSES: Mapping[str, tuple[int, int]] = {
    "fewest": (768, 1024),
    "few": (2048, 2048),
    "middle": (6144, 4096),
    "many": (28672, 4096),
}
PROMPT = 512  # tokens of a wide step
CLOCK_HZ = 1.7e9  # about what all of them run at
SCHEDULERS = 4
# Assumptions, the same for all: memory's latency under load, and the second-level cache's rate over memory's.
LATENCY_S = 700e-9
CACHE_RATE = 2.5
LOOP = re.compile(
    r"^(\.L_x_\d+):|/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(?:[^\n]*?`\((\.L_x_\d+)\))?",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Candidate:
    """A tile with its code, for steps of one kind."""

    kernel: Linear
    code: Compiled
    loop: int


def candidates(bits: int, *, wide: bool) -> tuple[Linear, ...]:
    """Return one projection in the tiles worth compiling; what the code takes is the same for every size."""
    base = Linear(8192, 4096, bits, symmetric=True, bias=False, x_stride=4096, y_dtype="f16")
    columns = 64 if bits == 16 else 128
    made = []
    for block_n, warps in ((32, 4), (64, 4), (64, 8), (128, 8)):
        for stages in (2, 3) if wide else (3, 5):
            tile = Tile(block_n, columns, warps, stages)
            made.append(replace(base, tile_rows=WIDE_ROWS if wide else NARROW_TOKENS, tile=tile))
    return tuple(made)


def loop_instructions(sass: str, matrix: tuple[str, ...]) -> int:
    """Return the length of the shortest loop that multiplies matrices; all instructions if none does."""
    at, found, labels, products = 0, [], {}, []
    for label, opcode, to in LOOP.findall(sass):
        if label:
            labels[label] = at
            continue
        at += 1
        if opcode.split(".")[0] in matrix:
            products.append(at)
        if opcode == "BRA" and to in labels and any(labels[to] < each <= at for each in products):
            found.append(at - labels[to])
    return min(found, default=at)


def predicted_s(candidate: Candidate, size: tuple[int, int], arch: Architecture, sheet: Sheet) -> float:
    """Return the time of a launch for a weight of `size` (rows, columns): of one token, or of a prompt."""
    kernel, used = candidate.kernel, candidate.code.resources
    (n, k), tile = size, kernel.shape
    wide = kernel.tile_rows > NARROW_TOKENS
    splits = default_splits(replace(kernel, n=n, k=k), tile.block_n)
    programs = math.ceil(n / tile.block_n) * (math.ceil(PROMPT / kernel.tile_rows) if wide else splits)
    iterations = math.ceil(k / tile.block_k) / (1 if wide else splits)
    resident = max(1, int(used.occupancy * arch.warps / tile.warps))
    together = min(resident, math.ceil(programs / sheet.units))
    weight_bytes = tile.block_n * tile.block_k * kernel.bits / 8
    row_bytes = kernel.tile_rows * tile.block_k * 2
    moved = together * (weight_bytes + (row_bytes if wide else 0))
    share = sheet.read_bytes_per_s / sheet.units * (CACHE_RATE if wide else 1)
    in_flight = together * (tile.stages - 1) * (weight_bytes + row_bytes)
    memory_s = moved / min(share, in_flight / LATENCY_S)
    issue_s = together * tile.warps * candidate.loop / SCHEDULERS / CLOCK_HZ
    products = 2 * tile.block_n * tile.block_k * kernel.tile_rows * together
    matrix_s = products / (sheet.f16_flops_per_s / sheet.units)
    waves = math.ceil(programs / (sheet.units * resident))
    meeting_s = 2 * LATENCY_S if splits > 1 and not wide else 0.0  # ranges meet in memory
    return waves * (iterations * max(memory_s, issue_s, matrix_s) + LATENCY_S) + meeting_s


def compiled(kernels: Iterable[Linear], arch: Architecture) -> list[Candidate]:
    """Compile candidates; return those that the gate lets pass."""
    asked = tuple(kernels)
    found = []
    for kernel, one in zip(asked, compile_kernels(asked, arch), strict=True):
        used = one.resources
        if used.spill_bytes or not used.matrix or not used.occupancy:
            continue
        if used.shared_bytes > arch.shared_per_block:
            continue
        found.append(Candidate(kernel, one, loop_instructions(sass_of(one.files["cubin"]), arch.matrix)))
    return found


def sheet_of(arch: Architecture) -> Sheet:
    """Return the data sheet of the architecture's first device."""
    target = f"cuda:{arch.name}"
    return next(sheet for sheet in device_sheet().values() if target in sheet.targets)


def chosen(arch: Architecture, bits: int) -> list[Row]:
    """Return the best pair of tiles for each class of weights."""
    sheet = sheet_of(arch)
    narrow, wide = (compiled(candidates(bits, wide=form), arch) for form in (False, True))
    rows = []
    for name, size in CLASSES.items():
        times = {each.kernel: predicted_s(each, size, arch, sheet) for each in (*narrow, *wide)}
        best = [min(times[each.kernel] for each in form) for form in (narrow, wide)]
        pairs = [
            (
                times[a.kernel] / best[0] + times[b.kernel] / best[1],
                str((a.kernel.shape, b.kernel.shape)),
                a,
                b,
            )
            for a in narrow
            for b in wide
            if a.kernel.order == b.kernel.order
        ]
        _, _, a, b = min(pairs, key=lambda pair: pair[:2])
        before = [predicted_s(_default(form, a.kernel, size), size, arch, sheet) for form in (narrow, wide)]
        row = Row(arch.name, bits, name, a.kernel.shape, b.kernel.shape)
        rows.append(row)
        gains = [f"{old / times[new.kernel] - 1:+.0%}" for old, new in zip(before, (a, b), strict=True)]
        print(
            f"{arch.name} {bits:2} bits, {name:6}: narrow {gains[0]}, wide {gains[1]} faster (predicted)",
            flush=True,
        )
    return rows


def _default(found: list[Candidate], kernel: Linear, size: tuple[int, int]) -> Candidate:
    """Return the candidate nearest to the tile that a weight gets without the table."""
    asked = replace(kernel, n=size[0], k=size[1], tile=None, tile_rows=found[0].kernel.tile_rows)
    rule = default_tile(asked)

    def distance(each: Candidate) -> tuple[int, ...]:
        tile = each.kernel.shape
        return (
            abs(tile.block_n - rule.block_n),
            abs(tile.block_k - rule.block_k),
            abs(tile.warps - rule.warps),
            abs(tile.stages - rule.stages),
        )

    return min(found, key=distance)


def main() -> None:
    """Search, and write the table."""
    names = [arch.name for arch in architectures("cuda")]
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_tiles", description=__doc__.splitlines()[0])
    parser.add_argument("--archs", nargs="+", choices=names, default=names)
    parser.add_argument(
        "--out", type=Path, default=TABLE, help="the table (default: the one that builds read)"
    )
    asked = parser.parse_args()
    kept = [row for row in shipped_rows() if row.architecture not in asked.archs]
    found = [row for name in asked.archs for bits in (4, 8, 16) for row in chosen(ARCHITECTURES[name], bits)]
    asked.out.write_text(table_text(sorted(kept + found, key=lambda row: names.index(row.architecture))))


if __name__ == "__main__":
    main()
