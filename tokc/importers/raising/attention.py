"""Read attention out of a sample, with the cache, the heads and the products behind it."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tokc.importers.raising.blocks import linear_of, need_linear, need_norm, norm_of
from tokc.importers.raising.facts import Attention, F64Array, Heads, IndexArray, Linear
from tokc.importers.raising.mismatch import Unmatched, further
from tokc.importers.raising.rotation import HEADS_RANK, Turned, split_heads, turned
from tokc.importers.raising.sample import Array, Sample
from tokc.importers.raising.scores import OPERANDS, Core, core_of, cores
from tokc.importers.raising.walking import LINEAR, MOVES, frontier, made, noise, only, plain, probe

UNIT = 1e-5
PROBED_TOKENS = 16
TOKENS = (2, -2)  # the axis of [batch, heads, tokens, dim] that grows


@dataclass(frozen=True, eq=False)
class Attended:
    """Hold an attention, the value its layer gave it, and the keys and values that its cache takes over."""

    facts: Attention
    source: ir.Value
    presents: tuple[ir.Value, ...]


def recognized(sample: Sample) -> tuple[int, list[Unmatched]]:
    """Return how many attention layers are understood, and why the others are not."""
    count, failures = 0, list[Unmatched]()
    for value in cores(sample):
        try:
            _operands(sample, core_of(sample, value))
        except Unmatched as error:
            failures.append(error)
        else:
            count += 1
    return count, failures


def attention_of(sample: Sample, value: ir.Value) -> Attended:
    """Return the attention whose output, heads joined and projected, is `value`.

    Raises: Unmatched if `value` is none.
    """
    output, joined = need_linear(sample, value, "an attention layer's 'o_proj'")
    with further(1):
        core = core_of(sample, only(sample, joined, MOVES, lambda _: False, "heads"))
        shape = sample.shapes[core.output]
        numbers = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
        together = numbers.swapaxes(1, 2).reshape(*joined_shape(sample, shape))
        if not np.array_equal(probe(sample, joined, core.output, numbers).reshape(together.shape), together):
            raise Unmatched(joined, "heads side by side, [batch, seq, heads * dim]", 1)
        return _attended(sample, core, output)


def joined_shape(sample: Sample, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return [batch, seq, heads * dim] of [batch, heads, seq, dim]."""
    return sample.size.batch, sample.size.seq, shape[1] * shape[3]


def _attended(sample: Sample, core: Core, output: Linear) -> Attended:
    made_of = _operands(sample, core)
    heads, dim = sample.shapes[core.output][1], sample.shapes[core.output][-1]
    (q, k, v), kv_heads, scale = made_of.heads, made_of.kv_heads, made_of.scale
    facts = Attention(heads, kv_heads, dim, q, k, v, output, scale, float(core.softcap), core.mask)
    return Attended(facts, made_of.source, made_of.presents)


@dataclass(frozen=True, eq=False)
class _Operands:
    """Hold what an attention's queries, keys and values are made of."""

    heads: tuple[Heads, Heads, Heads]
    kv_heads: int
    scale: float
    source: ir.Value
    presents: tuple[ir.Value, ...]


def _operands(sample: Sample, core: Core) -> _Operands:
    heads, dim = sample.shapes[core.output][1], sample.shapes[core.output][-1]
    keys, values = _cached(sample, core.keys, 0, core), _cached(sample, core.values, 1, core)
    q, q_turn, source = _heads(sample, core.query, _Expected("queries", heads, dim))
    (k, k_turn, k_source), (v, v_turn, v_source) = keys.read, values.read
    if source is not k_source or source is not v_source:
        raise Unmatched(core.output, "queries, keys and values of one value", 6)
    unit = np.isclose(v_turn.scale * values.scale, 1, atol=UNIT)
    if values.kv_heads != keys.kv_heads or v_turn.rotation is not None or not unit:
        raise Unmatched(core.values, "values as they are, for as many heads as the keys have", 6)
    scale = float(core.scale * q_turn.scale * k_turn.scale * keys.scale)
    return _Operands((q, k, v), keys.kv_heads, scale, source, (*keys.present, *values.present))


@dataclass(frozen=True)
class _Expected:
    """State what heads should be: so many of `dim`, each `repeats` times, [.., dim, seq] if `swap`."""

    what: str
    heads: int
    dim: int
    repeats: int = 1
    swap: bool = False


@dataclass(frozen=True, eq=False)
class _Cached:
    """Hold keys or values: of how many heads, scaled by what, and how the new ones are made."""

    kv_heads: int
    scale: float
    read: tuple[Heads, Turned, ir.Value]
    present: tuple[ir.Value, ...]


def _cached(sample: Sample, value: ir.Value, which: int, core: Core) -> _Cached:
    """Read keys (0) or values (1) back over the repeat of heads and the cache's growth."""
    what = ("keys", "values")[which]
    swap = which == 0 and core.turned_keys
    heads = sample.shapes[core.output][1]
    if core.past is not None:
        if core.past[which] not in sample.graph.inputs:
            raise Unmatched(core.past[which], f"past {what}, an input of the graph", 3)
        _, kv_heads, _, dim = sample.shapes[value]
        read = _heads(sample, value, _Expected(what, kv_heads, dim))
        return _Cached(kv_heads, 1.0, read, core.presents[which : which + 1])
    base = only(sample, value, LINEAR, lambda v: _grows(sample, v) or _ends(sample, v), what)
    if _grows(sample, base):
        return _grown(sample, value, base, _Expected(what, heads, 0, swap=swap))
    if sample.size.past:
        raise Unmatched(base, f"{what} appended to those of the cache, Concat(past, new)", 3)
    dim = sample.shapes[value][-2 if swap else -1]
    own = max(sample.shapes[_projection(sample, value, what)[0]][-1] // dim, 1)
    kv_heads = heads if heads % own else own  # a product that q, k and v share has more columns
    read = _heads(sample, value, _Expected(what, kv_heads, dim, heads // kv_heads, swap))
    return _Cached(kv_heads, 1.0, read, ())


def _grown(sample: Sample, value: ir.Value, base: ir.Value, expected: _Expected) -> _Cached:
    """Read the cache with the new keys or values appended, `base`, of which `value` is made."""
    _, kv_heads, _, dim = sample.shapes[base]
    given, tokens = _cache_probe(sample.shapes[base])
    got = sample.compute(value, {base: given}).astype(np.float64)
    got = got.swapaxes(-1, -2) if expected.swap and got.ndim == HEADS_RANK else got
    x = given[:, :, tokens].astype(np.float64)
    got = got[:, :, tokens] if got.ndim == HEADS_RANK and got.shape[2] == given.shape[2] else got
    want = np.repeat(x, expected.heads // kv_heads, axis=1) if got.shape[1] == expected.heads else x
    found = turned(got, want) if got.shape == want.shape and expected.heads % kv_heads == 0 else None
    if found is None or found.rotation is not None:
        what = f"{expected.what} of the cache, each head repeated for its group of queries"
        raise Unmatched(value, what, 4)
    node = base.producer()
    new = None if node is None else node.inputs[1]
    assert new is not None, "a cache grows by something"
    read = _heads(sample, new, _Expected(expected.what, kv_heads, dim))
    return _Cached(kv_heads, found.scale, read, (base,))


def _cache_probe(shape: tuple[int, ...]) -> tuple[Array, IndexArray]:
    """Return numbers for a cache, and the tokens to look at.

    A long one is the same numbers for each token, in no memory: the order of tokens shows in a short one.
    """
    tokens = np.unique(np.linspace(0, shape[2] - 1, PROBED_TOKENS).astype(np.int64))
    wide = shape if shape[2] <= PROBED_TOKENS else (*shape[:2], 1, shape[3])
    return np.broadcast_to(noise(wide).astype(np.float32), shape), tokens


def _grows(sample: Sample, value: ir.Value) -> bool:
    """Return whether a value is Concat(past, new) along the tokens of [batch, heads, tokens, dim]."""
    node = made(value, "Concat")
    return (
        node is not None
        and len(node.inputs) == OPERANDS
        and node.inputs[0] in sample.graph.inputs
        and node.attributes.get_int("axis", 0) in TOKENS
        and len(sample.shapes[value]) == HEADS_RANK
    )


def _ends(sample: Sample, value: ir.Value) -> bool:
    return linear_of(sample, value) is not None or norm_of(sample, value) is not None


def _projection(sample: Sample, value: ir.Value, what: str) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Return the product, what `value` is linear in, and what a norm in between reads."""
    base = only(sample, value, LINEAR, lambda v: _ends(sample, v), what)
    normed = norm_of(sample, base)
    if linear_of(sample, base) is not None or normed is None:
        return base, base, base
    product = only(sample, normed[1], MOVES, lambda v: linear_of(sample, v) is not None, what)
    return product, base, normed[1]


def _heads(sample: Sample, value: ir.Value, expected: _Expected) -> tuple[Heads, Turned, ir.Value]:
    """Read how heads [batch, heads, seq, dim] are made: of a product, by a norm and a rotation if any."""
    what, heads, dim = expected.what, expected.heads, expected.dim
    product, base, inner = _projection(sample, value, what)
    linear, x = need_linear(sample, product, f"a projection to {what}")
    columns = np.arange(heads * dim)
    if sample.shapes[product][-1] != heads * dim:
        columns = _columns(sample, value, product, expected)
        linear = linear.part(_ranges(columns))
    numbers = noise(sample.shapes[product])
    given, norm = numbers, None
    if base is not product:
        norm, _ = need_norm(sample, base, f"a norm of {what}")
        given = _each_head(sample, inner, product, numbers, (dim, heads * dim))
    y = probe(sample, value, base, given.reshape(sample.shapes[base]))
    y = y.swapaxes(-1, -2) if expected.swap else y
    own = numbers.reshape(sample.size.batch, sample.size.seq, -1)[..., columns]
    want = np.repeat(split_heads(own, heads), expected.repeats, axis=1)
    turn = turned(y, want) if y.shape == want.shape else None
    if turn is None:
        raise Unmatched(value, f"{what} split into {heads} heads of {dim} and rotated by their positions", 5)
    return Heads(linear, norm, turn.rotation), turn, plain(sample, x)


def _columns(sample: Sample, value: ir.Value, product: ir.Value, expected: _Expected) -> IndexArray:
    """Return which columns of a product that others share heads are made of, [heads * dim]."""
    heads, dim, size = expected.heads, expected.dim, sample.size
    count = size.batch * size.seq * heads * dim

    def whole(candidate: ir.Value) -> bool:
        same = np.prod(sample.shapes[candidate]) == count
        return same and frontier(sample, candidate, MOVES, lambda v: v is product) == [product]

    taken = only(sample, value, LINEAR, whole, expected.what)
    width = sample.shapes[product][-1]
    index = np.arange(np.prod(sample.shapes[product]), dtype=np.float64).reshape(sample.shapes[product])
    found = probe(sample, taken, product, index).astype(np.int64)
    token = np.arange(size.batch * size.seq).reshape(size.batch, 1, size.seq, 1)
    heads_first = found.reshape(size.batch, heads, size.seq, dim)
    tokens_first = found.reshape(size.batch, size.seq, heads, dim).swapaxes(1, 2)
    for by_head in (heads_first, tokens_first):
        columns = by_head % width
        if (by_head // width == token).all() and (columns == columns[:1, :, :1]).all():
            return np.asarray(columns[0, :, 0].reshape(-1))
    raise Unmatched(taken, f"{expected.what}, the same columns of a product for every token", 5)


def _ranges(columns: IndexArray) -> tuple[tuple[int, int], ...]:
    """Return columns as ranges."""
    runs = np.split(columns, np.flatnonzero(np.diff(columns) != 1) + 1)
    return tuple((int(run[0]), int(run[-1]) + 1) for run in runs)


def _each_head(
    sample: Sample, inner: ir.Value, product: ir.Value, numbers: F64Array, widths: tuple[int, int]
) -> F64Array:
    """Return `numbers` as a norm reads them, which must be over whole heads, one or all."""
    index = np.arange(numbers.size, dtype=np.float64).reshape(numbers.shape)
    width = sample.shapes[inner][-1]
    moved = probe(sample, inner, product, index).astype(np.int64).reshape(-1, width)
    whole = width in widths and (moved[:, 0] % width == 0).all()
    if not whole or not np.array_equal(moved, moved[:, :1] + np.arange(width)):
        raise Unmatched(inner, "a norm over each head, or over all", 5)
    return numbers.reshape(-1)[moved]
