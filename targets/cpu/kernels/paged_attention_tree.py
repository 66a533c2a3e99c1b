"""PagedAttention in steps that hold trees: nodes beside the tokens that continue their sequence.

Token t is a node where entries[t], the entry of the cache that holds its key and value, is not its position
p. With n bits set in ancestors[t] it sees the entries before its tree, which begins at entry p - n, those
that the bits name, bit i being entry i of the tree, and its own. A node whose entry is its position has every
entry before it as its past, and is a token like any other.

A node's ancestors, in ascending order, have the positions from p - n on. The blocks before the tree are those
of any token, and nodes beside each other share their reads. From where the tree begins, a node's block is put
together in the scratch: its positions are those of the node's path, wherever their entries lie, so that all
operations and their order are those of the path as a sequence of its own: so are the bits.

Shapes: entries, ancestors i32[rows] (32 bits); all else as in paged_attention.py.
"""

from dataclasses import dataclass, replace
from typing import Any

from tvm.tirx.script.builder import ir as T

from tokc.targets.cpu.kernels.paged_attention import BLOCK, BLOCK_PAGES, FEW_TOKENS, PagedAttention
from tokc.targets.cpu.kernels.paged_attention_body import Body, Run, Unit
from tokc.targets.cpu.kernels.paged_attention_tile import Decode, Pages, Prefill, Source, split
from tokc.targets.cpu.kernels.rope_write_kv import PAGE
from tokc.targets.cpu.kernels.tir import Arguments, Buffer, Expr, function, intrinsic
from tokc.targets.cpu.kernels.vector_math import LANES, keep, load, store


def build(spec: PagedAttention) -> Any:
    """Return the PrimFunc of a specialization with trees."""
    return function(spec.symbol, spec.args, lambda arguments: TreeBody(spec, arguments).emit())


def bits_set(mask: Expr) -> Expr:
    """Return how many bits of a u32 are set, i32."""
    return T.Cast("int32", intrinsic("uint32", "llvm.ctpop.i32", mask))


@dataclass(frozen=True)
class StepRun(Run):
    """A run of a step with trees: nodes of the tree that begins at entry `root` if `nodes` is 1."""

    nodes: Expr
    root: Expr

    @property
    def chain(self) -> Run:
        """Return the run where it is none of nodes."""
        return Run(self.token, self.count, self.position, self.position + self.count - 1, self.table)


class SharedPast(Prefill):
    """Nodes beside each other over a block before their tree; they may be at any positions behind it."""

    def __init__(self, source: Source, run: StepRun, positions: Buffer) -> None:
        """Keep the run."""
        super().__init__(source, run.count)
        self.run, self.positions = run, positions

    def limit(self, row: Expr, first: Expr) -> Expr:
        """Return the last index that a row attends to; `first` is that of the lowest position."""
        node = T.min(row // self.spec.group, self.run.count - 1)
        return first + self.positions[self.run.token + node] - self.run.position


class OwnPath(Prefill):
    """One node at a time over a block in the scratch, which holds the positions of its path."""

    def __init__(self, shared: SharedPast) -> None:
        """Take over where the pages of the block lie."""
        super().__init__(shared.source, shared.count)
        self.blocks, self.ahead, self.run = shared.blocks, shared.ahead, shared.run
        self.in_scratch = False

    def key_scales(self, index: Expr) -> Expr:
        """Return the scales of the keys of the block's page `index`."""
        if not self.in_scratch:
            return super().key_scales(index)
        return load(self.scratch, self.at["key_scales"] + index * PAGE)

    def copy_past(self, start: Expr, lowest: Expr) -> None:
        """Put into the scratch what the block holds of the positions from `lowest` to the tree's begin."""
        run, first = self.run, start // PAGE
        present = (
            keep(T.max(lowest // PAGE - first, 0)),
            keep(T.min((run.root + PAGE - 1) // PAGE - first, BLOCK_PAGES)),
        )
        self.copy_keys(present)
        self.copy_values(present, (keep(T.max(lowest - start, 0)), keep(run.root - start)))
        self.copy_value_scales(present, keep(run.root - start))
        if self.spec.scaled:
            with T.serial(*present) as index:
                store(self.scratch, self.at["key_scales"] + index * PAGE, super().key_scales(index))

    def copy_entry(self, entry: Expr, kv_head: Expr, place: Expr) -> None:
        """Put an entry of the tree at index `place` of the block in the scratch."""
        spec, source, scratch = self.spec, self.source, self.scratch
        block = source.block(self.run.table, keep(entry // PAGE), kv_head)
        begin, slot = keep(block * T.int64(spec.stored_dim * PAGE)), keep(entry % PAGE)
        halves = spec.dim // spec.stored_dim
        with T.serial(0, spec.stored_dim) as item:
            code = source.keys[begin + T.Cast("int64", item * PAGE + slot)]
            for half, key in enumerate(source.widened(code)):
                index = self.at["keys"] + (item + half * spec.stored_dim) * BLOCK + place
                T.buffer_store(scratch, key, [index])
        assert len(source.widened(code)) == halves, "a cached item holds as many elements of the head"
        for column in range(0, spec.stored_dim, LANES):
            values = source.cached(source.values, begin, keep(slot * spec.stored_dim + column))
            for half, value in enumerate(values):
                index = self.at["values"] + place * spec.dim + half * spec.stored_dim + column
                store(scratch, keep(index), value)
        for name, scales in source.scales.items():
            scale = T.Cast("float32", scales[block * T.int64(PAGE) + T.Cast("int64", slot)])
            T.buffer_store(scratch, scale, [self.at[f"{name}s"] + place])

    def attend(self, node: Expr, limit: Expr, first: Expr) -> None:
        """Add the block to the results of a node; it attends to the indexes from `first` to `limit`."""
        spec, row, end = self.spec, keep(node * self.spec.group), keep(T.min(limit + 1, BLOCK))
        self.in_scratch = True
        for head, heads in split(spec.group, spec.vectors):
            at_once = max(size for size in (1, 2, 4) if size * heads <= max(spec.vectors, heads))
            for page in range(0, BLOCK_PAGES, at_once):
                rows = keep(row + head), heads
                self.score_tile(rows, range(page, page + at_once), copied=True)
        with T.serial(0, spec.group) as head:
            self.mask(row + head, limit)
            self.softmax(row + head)
        present = (keep(first // PAGE), keep((end + PAGE - 1) // PAGE))
        for head, heads in split(spec.group, spec.vectors):
            self.value_tile((keep(row + head), heads), present, (first, end), copied=True)
        self.in_scratch = False


class TreeBody(Body):
    """Builds the kernel's statements, a third variant for nodes among them."""

    def __init__(self, spec: PagedAttention, arguments: Arguments) -> None:
        """Declare the buffers of trees."""
        super().__init__(spec, arguments)
        self.integers["entries"] = arguments.buffer("entries", "int32")
        self.ancestors = arguments.buffer("ancestors", "uint32")

    def run_at(self, token: Expr) -> StepRun:
        """Return the run that begins at a token: as without trees, or nodes of one tree."""
        positions, sequences, entries = (
            self.integers[name] for name in ("positions", "sequences", "entries")
        )
        rows, most = self.arguments.rows, self.most[0]
        position, sequence = keep(positions[token]), keep(sequences[token])
        nodes = keep(T.Select(entries[token] == position, T.int32(0), T.int32(1)))
        root = keep(position - bits_set(self.ancestors[token]))
        ends = T.And(rows > FEW_TOKENS, nodes == 0)
        end = keep(T.min(token + T.Select(ends, most - position % most, most), rows))
        found = T.alloc_buffer((3,), "int32", scope="global")  # tokens, lowest and highest position
        for index, value in enumerate((1, position, position)):
            T.buffer_store(found, value, [index])
        other = T.min(token + found[0], end - 1)
        on = T.And(entries[other] == positions[other], positions[other] == position + found[0])
        beside = T.And(
            entries[other] != positions[other], positions[other] - bits_set(self.ancestors[other]) == root
        )
        follows = T.And(sequences[other] == sequence, T.Select(nodes == 0, on, beside))
        for growth in self.spec.part_growths:
            both = T.And(positions[other] >= growth, position >= growth)
            follows = T.And(follows, T.Or(both, T.max(positions[other], position) < growth))
        with T.While(T.And(token + found[0] < end, follows)):
            at = keep(positions[token + found[0]])
            T.buffer_store(found, found[0] + 1, [0])
            T.buffer_store(found, T.min(found[1], at), [1])
            T.buffer_store(found, T.max(found[2], at), [2])
        count, lowest, highest = (keep(found[index]) for index in range(3))
        table = keep(sequence * self.integers["info"][3])
        return StepRun(token, count, lowest, highest, table, nodes, root)

    def attend_run(self, unit: Unit) -> None:
        """Compute one unit, by the variant for nodes if its run is of them."""
        run = unit.run
        assert isinstance(run, StepRun), "runs of a step with trees say whether they are nodes"
        with T.If(run.nodes == 1):
            with T.Then():
                self.attend(unit)
            with T.Else():
                super().attend_run(replace(unit, run=run.chain))

    def walk(self, run: Run) -> Decode | Prefill:
        """Return the products of a run over a block."""
        if isinstance(run, StepRun):
            return SharedPast(self.source, run, self.integers["positions"])
        return super().walk(run)

    def block(self, walk: Decode | Prefill, unit: Unit, pages: Pages, place: tuple[Expr, Expr]) -> None:
        """Add a block to the part in the scratch, for nodes together or each over its own path."""
        if not isinstance(walk, SharedPast):
            super().block(walk, unit, pages, place)
            return
        _, start = place
        with T.If(start + BLOCK <= walk.run.root):
            with T.Then():
                self.past_block(walk, unit, start, pages)
            with T.Else():
                self.tree_block(walk, unit, start)

    def past_block(self, walk: SharedPast, unit: Unit, start: Expr, pages: Pages) -> None:
        """Add a block before the tree."""
        window, run, lowest = self.spec.window, walk.run, unit.parts.lowest
        present = keep(T.max(pages[0] - start // PAGE, 0)), BLOCK_PAGES
        walk.copy_value_scales(present, BLOCK)
        edge = start <= run.last - window if window else T.int32(1) < T.int32(0)
        walk.scores(present, keep(run.position - start), edge)
        walk.weighted_values(present, (keep(T.max(lowest - start, 0)) if window else 0, BLOCK))

    def tree_block(self, walk: SharedPast, unit: Unit, start: Expr) -> None:
        """Add a block that nodes of the tree lie in, to each node that reaches it."""
        run, path, lowest = walk.run, OwnPath(walk), unit.parts.lowest
        first = keep(T.max(lowest - start, 0))
        for buffer in (self.source.keys, self.source.values):
            walk.fetch_next(buffer)
        path.copy_past(start, lowest)
        left = T.alloc_buffer((1,), "uint32", scope="global")
        with T.serial(0, run.count) as node:
            token = keep(run.token + node)
            limit = keep(self.integers["positions"][token] - start)
            with T.If(limit >= 0), T.Then():
                depth = keep(limit + start - run.root)
                T.buffer_store(left, self.ancestors[token], [0])
                with T.serial(0, depth + 1) as step:
                    rest = keep(left[0] & (left[0] - T.uint32(1)))
                    ancestor = keep(bits_set((left[0] ^ rest) - T.uint32(1)))
                    T.buffer_store(left, rest, [0])
                    own = self.integers["entries"][token]
                    entry = keep(T.Select(step < depth, run.root + ancestor, own))
                    place = keep(run.root + step - start)
                    with T.If(T.And(place >= 0, place < BLOCK)), T.Then():
                        path.copy_entry(entry, unit.kv_head, place)
                path.attend(node, limit, first)
