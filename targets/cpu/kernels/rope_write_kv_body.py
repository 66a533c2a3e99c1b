"""The body of RopeWriteKV: one (token, head) at a time, so that a single token keeps several threads busy."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm.tirx.script.builder import ir as T

from tokc.targets.cpu.kernels.hadamard import turn
from tokc.targets.cpu.kernels.rope_write_kv import CACHE_TYPES, SCALE_TYPES, RopeWriteKV, stored_dim
from tokc.targets.cpu.kernels.tir import Arguments, Buffer, Expr, Registers, function, splat, zeros
from tokc.targets.cpu.kernels.vector_math import (
    I32,
    LANES,
    constant,
    fma,
    keep,
    largest,
    least,
    load,
    magnitude,
    multiply,
    nearest,
    store,
    total,
    vectors,
)

F16_LARGEST = 65504.0


def build(spec: RopeWriteKV) -> Any:
    """Return the PrimFunc of a specialization."""
    return function(spec.symbol, spec.args, lambda arguments: Body(spec, arguments).emit())


class Body:
    """Builds the kernel's statements."""

    def __init__(self, spec: RopeWriteKV, arguments: Arguments) -> None:
        """Declare buffers; a head's vectors live in `head`."""
        self.spec, self.arguments = spec, arguments
        self.vectors = spec.dim // LANES
        names = ("q", "k", "v", "cos", "sin", "q_out", *(("q_norm", "k_norm") if spec.qk_norm else ()))
        self.floats = {name: arguments.buffer(name, "float32") for name in names}
        names = ("positions", "sequences", "block_tables", *(("entries",) if spec.trees else ()), "info")
        self.integers = {name: arguments.buffer(name, "int32") for name in names}
        self.keys = arguments.buffer("cache_key", CACHE_TYPES[spec.kv_dtype])
        self.values = arguments.buffer("cache_value", CACHE_TYPES[spec.kv_dtype])
        kind = SCALE_TYPES.get(spec.kv_dtype)
        self.key_scales = arguments.buffer("key_scale", kind) if kind else None
        self.value_scales = arguments.buffer("value_scale", kind) if kind else None
        self.stored_dim = stored_dim(spec.dim, spec.kv_dtype)
        self.head = vectors(self.vectors)

    def emit(self) -> None:
        """Walk this thread's share: every token of one head, then of the next."""
        spec, rows = self.spec, self.arguments.rows
        with self.arguments.share(rows * (spec.heads + 2 * spec.kv_heads)) as index:
            head, row = keep(index // rows), keep(index % rows)
            with T.If(head < spec.heads), T.Then():
                self.rotated("q", row * spec.q_stride + head * spec.dim, row)
                for i in range(self.vectors):
                    store(
                        self.floats["q_out"], (row * spec.heads + head) * spec.dim + i * LANES, self.head[i]
                    )
            with T.If(T.And(head >= spec.heads, head < spec.heads + spec.kv_heads)), T.Then():
                kv_head = keep(head - spec.heads)
                self.rotated("k", row * spec.k_stride + kv_head * spec.dim, row)
                self.write_key(row, kv_head)
            with T.If(head >= spec.heads + spec.kv_heads), T.Then():
                kv_head = keep(head - spec.heads - spec.kv_heads)
                start = T.Bind(row * spec.v_stride + kv_head * spec.dim)
                for i in range(self.vectors):
                    self.head[i] = load(self.floats["v"], start + i * LANES)
                self.write_value(row, kv_head)

    def rotated(self, name: str, start: Expr, row: Expr) -> None:
        """Leave the head that begins at `start`, normed if asked for and rotated, in `head`."""
        for i in range(self.vectors):
            self.head[i] = load(self.floats[name], start + i * LANES)
        if self.spec.qk_norm:
            self.normed(f"{name}_norm")
        half = self.vectors // 2
        angle = keep(self.integers["positions"][row] * (self.spec.dim // 2))
        for i in range(half):
            cos, sin = (load(self.floats[table], angle + i * LANES) for table in ("cos", "sin"))
            low, high = keep(self.head[i]), keep(self.head[i + half])
            self.head[i] = fma(low, cos, multiply(keep(constant(0.0) - high), sin))
            self.head[i + half] = fma(high, cos, multiply(low, sin))
        if self.spec.kv_dtype == "int4":
            turn(self.head, self.spec.dim)

    def normed(self, weight: str) -> None:
        """Replace the head by its RMS norm."""
        squares = keep(zeros(LANES))
        for i in range(self.vectors):
            squares = fma(self.head[i], self.head[i], squares)
        mean = keep(total(squares) / T.float32(self.spec.dim))
        inverse = keep(splat(T.float32(1) / T.sqrt(mean + T.float32(self.spec.epsilon)), LANES))
        for i in range(self.vectors):
            self.head[i] = multiply(multiply(self.head[i], inverse), load(self.floats[weight], i * LANES))

    def place(self, row: Expr, kv_head: Expr) -> tuple[Expr, Expr]:
        """Return (block index, slot): the token's page and head, and its slot in the page."""
        entry = keep(self.integers["entries" if self.spec.trees else "positions"][row])
        table = T.Bind(self.integers["sequences"][row] * self.integers["info"][3])
        page = self.integers["block_tables"][table + entry // self.spec.page]
        block = keep(T.Cast("int64", page) * T.int64(self.spec.kv_heads) + T.Cast("int64", kv_head))
        return block, keep(T.Cast("int64", entry % self.spec.page))

    def write_key(self, row: Expr, kv_head: Expr) -> None:
        """Scatter the head into its page's column."""
        spec = self.spec
        block, slot = self.place(row, kv_head)
        start = keep(block * T.int64(self.stored_dim * spec.page) + slot)
        with self.stored(self.key_scales, block, slot) as head:
            for i in range(self.stored_dim // LANES):
                vector = keep(head[i])
                for lane in range(LANES):
                    element = T.Shuffle([vector], [lane])
                    T.buffer_store(self.keys, element, [start + T.int64((i * LANES + lane) * spec.page)])

    def write_value(self, row: Expr, kv_head: Expr) -> None:
        """Write the head as its page's row."""
        spec = self.spec
        block, slot = self.place(row, kv_head)
        start = keep((block * T.int64(spec.page) + slot) * T.int64(self.stored_dim))
        with self.stored(self.value_scales, block, slot) as head:
            for i in range(self.stored_dim // LANES):
                index = T.Ramp(start + T.int64(i * LANES), T.int64(1), LANES)
                T.buffer_store(self.values, head[i], [index])

    @contextmanager
    def stored(self, scales: Buffer | None, block: Expr, slot: Expr) -> Iterator[Registers | list[Expr]]:
        """Give the head in the cache's dtype, its scale written."""
        dtype = CACHE_TYPES[self.spec.kv_dtype]
        if dtype == "float32":
            yield self.head
            return
        if dtype == "float16":
            limit = constant(F16_LARGEST)
            clamped = [T.max(T.min(self.head[i], limit), constant(-F16_LARGEST)) for i in range(self.vectors)]
            yield [T.Cast(f"float16x{LANES}", keep(vector)) for vector in clamped]
            return
        if self.spec.kv_dtype == "int4":
            yield self.nibbles(scales, block, slot)
            return
        peak = keep(magnitude(self.head[0]))
        for i in range(1, self.vectors):
            peak = keep(T.max(peak, magnitude(self.head[i])))
        scale = keep(largest(peak) / T.float32(127))
        inverse = keep(T.Select(scale > T.float32(0), T.float32(1) / scale, T.float32(0)))
        T.buffer_store(scales, scale, [block * T.int64(self.spec.page) + slot])
        quants = [nearest(multiply(self.head[i], splat(inverse, LANES))) for i in range(self.vectors)]
        yield [T.Cast(f"int8x{LANES}", T.Cast(I32, quant)) for quant in quants]

    def nibbles(self, scales: Buffer, block: Expr, slot: Expr) -> list[Expr]:
        """Return the head's codes of 4 bits, two a byte, their scale written."""
        top, bottom = keep(self.head[0]), keep(self.head[0])
        for i in range(1, self.vectors):
            top, bottom = keep(T.max(top, self.head[i])), keep(T.min(bottom, self.head[i]))
        high, low = keep(largest(top)), keep(least(bottom))
        step = keep(T.Select(T.float32(0) - low > high, low, high) * T.float32(-0.125))
        limit = T.float32(F16_LARGEST)
        half = keep(T.Cast("float16", keep(T.max(T.min(step, limit), T.float32(0) - limit))))
        T.buffer_store(scales, half, [block * T.int64(self.spec.page) + slot])
        scale = keep(T.Cast("float32", half))
        inverse = keep(T.Select(scale != T.float32(0), T.float32(1) / scale, T.float32(0)))
        codes = []
        for i in range(self.vectors):
            code = keep(nearest(multiply(self.head[i], splat(inverse, LANES))) + constant(8.0))
            codes.append(keep(T.Cast(I32, keep(T.max(T.min(code, constant(15.0)), constant(0.0))))))
        count = self.vectors // 2
        pairs = zip(codes[:count], codes[count:], strict=True)
        return [T.Cast(f"uint8x{LANES}", low | (high << splat(4, LANES))) for low, high in pairs]
