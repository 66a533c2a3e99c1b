"""Read a whole decoder out of a sample, from the logits back to the embedding."""

from collections.abc import Iterator
from itertools import permutations
from typing import NamedTuple

import onnx_ir as ir

from tokc.importers.raising.attention import Attended, attention_of
from tokc.importers.raising.blocks import feed_forward_of, need_linear, need_norm, norm_of
from tokc.importers.raising.facts import Decoder, FeedForward, Layer, Norm, Ref
from tokc.importers.raising.mismatch import Unmatched, further, nearest
from tokc.importers.raising.sample import Sample
from tokc.importers.raising.walking import capped, made, operand, plain

STREAM = "a residual sum, Add(stream, branch), or the embedding"


class Raised(NamedTuple):
    """Hold a decoder and the keys and values of its cache, layer by layer."""

    decoder: Decoder
    presents: tuple[ir.Value, ...]


class _Branch(NamedTuple):
    """Hold what is added to the residual stream: ``scale * post_norm(body(norm(source)))``.

    `normed` is what the body reads.
    """

    body: FeedForward | Attended
    norm: Norm | None
    post_norm: Norm | None
    scale: float
    source: ir.Value
    normed: ir.Value


def decoder_of(sample: Sample, logits: ir.Value, ids: ir.Value) -> Raised:
    """Return the decoder that makes `logits` of token `ids`.

    Raises: Unmatched at the first part that is no decoder's.
    """
    product, scale, cap = _logits(sample, logits)
    head, normed = need_linear(sample, product, "the head")
    norm, stream = need_norm(sample, normed, "the last norm")
    stream, layers, presents = plain(sample, stream), list[Layer](), list[ir.Value]()
    while _embedding(sample, stream, ids) is None:
        with further(10 * len(layers)):
            layer, attended, stream = _layer(sample, stream)
        layers.insert(0, layer)
        presents[:0] = attended.presents
    found = _embedding(sample, stream, ids)
    assert found is not None, "the loop ends at the embedding"
    decoder = Decoder(*found, tuple(layers), norm, head, scale, cap)
    return Raised(decoder, tuple(presents))


def _logits(sample: Sample, value: ir.Value) -> tuple[ir.Value, float, float]:
    """Split logits into the head's product, its scale and its cap."""
    node = made(plain(sample, value), "Mul")
    found = None if node is None else capped(sample, node)
    value, cap = (value, 0.0) if found is None else found
    value, scale = _unscaled(sample, value)
    return value, scale, cap


def _layer(sample: Sample, value: ir.Value) -> tuple[Layer, Attended, ir.Value]:
    """Read one layer; return it, its attention and the stream before it.

    Raises: Unmatched with what came nearest of all ways to take the sum apart.
    """
    failures: list[Unmatched] = []
    for branch, rest in _sums(sample, value):
        try:
            fed = _branch(sample, branch, feed_forward=True)
            if fed.source is rest:
                with further(5):
                    return _sequential(sample, fed, rest)
            with further(5):
                return _parallel(sample, fed, rest)
        except Unmatched as error:
            failures.append(error)
    for branch, (one, other) in _nested(sample, value):
        try:
            fed = _branch(sample, branch, feed_forward=True)
            with further(5):
                return _joined(sample, fed, one, other)
        except Unmatched as error:
            failures.append(error)
    raise nearest(failures) if failures else Unmatched(value, STREAM)


def _sums(sample: Sample, value: ir.Value) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Yield the two ways to see a sum: a branch, and what it is added to."""
    add = made(plain(sample, value), "Add")
    one, other = (None, None) if add is None else add.inputs
    if one is not None and other is not None and {one, other} <= sample.active:
        yield one, plain(sample, other)
        yield other, plain(sample, one)


def _nested(sample: Sample, value: ir.Value) -> Iterator[tuple[ir.Value, tuple[ir.Value, ir.Value]]]:
    """Yield each way to see a sum of three, of which two are added first."""
    for one, rest in _sums(sample, value):
        for two, three in _sums(sample, rest):
            terms = (one, two, three)
            for index in range(len(terms)):
                others = [term for place, term in enumerate(terms) if place != index]
                yield terms[index], (others[0], others[1])


def _sequential(sample: Sample, fed: _Branch, stream: ir.Value) -> tuple[Layer, Attended, ir.Value]:
    failures: list[Unmatched] = []
    for branch, rest in _sums(sample, stream):
        try:
            attended = _branch(sample, branch, feed_forward=False)
            if attended.source is not rest:
                raise Unmatched(attended.source, "attention that reads the stream it is added to", 8)
            return *_made(fed, attended, parallel=False), rest
        except Unmatched as error:
            failures.append(error)
    raise nearest(failures) if failures else Unmatched(stream, STREAM)


def _parallel(sample: Sample, fed: _Branch, rest: ir.Value) -> tuple[Layer, Attended, ir.Value]:
    """Read ``(stream + attention) + feed_forward``, both of the same stream."""
    pairs = [pair for pair in _sums(sample, rest) if pair[1] is fed.source]
    if not pairs:
        raise Unmatched(fed.source, "a feed-forward layer that reads the stream it is added to", 2)
    return _joined(sample, fed, *pairs[0])


def _joined(sample: Sample, fed: _Branch, one: ir.Value, other: ir.Value) -> tuple[Layer, Attended, ir.Value]:
    """Read attention and stream, in either order, beside a feed-forward layer."""
    failures: list[Unmatched] = []
    for branch, rest in permutations((one, other)):
        try:
            attended = _branch(sample, branch, feed_forward=False)
            stream = plain(sample, rest)
            if attended.source is not stream or fed.source is not stream:
                raise Unmatched(rest, "a stream that attention and feed-forward layer read", 3)
            if fed.normed is attended.normed:
                fed = fed._replace(norm=None)
            return *_made(fed, attended, parallel=True), stream
        except Unmatched as error:
            failures.append(error)
    raise nearest(failures)


def _made(fed: _Branch, attended: _Branch, *, parallel: bool) -> tuple[Layer, Attended]:
    assert isinstance(fed.body, FeedForward), "a branch holds what it read"
    assert isinstance(attended.body, Attended), "a branch holds what it read"
    layer = Layer(
        parallel,
        attended.norm, attended.body.facts, attended.post_norm, attended.scale,
        fed.norm, fed.body, fed.post_norm, fed.scale,
    )  # fmt: skip
    return layer, attended.body


def _branch(sample: Sample, value: ir.Value, *, feed_forward: bool) -> _Branch:
    value, scale = _unscaled(sample, value)
    post = norm_of(sample, value)
    inner = value if post is None else post[1]
    body: FeedForward | Attended
    if feed_forward:
        body, source = feed_forward_of(sample, inner)
    else:
        body = attention_of(sample, inner)
        source = body.source
    normed = plain(sample, source)
    norm = norm_of(sample, normed)
    stream = normed if norm is None else plain(sample, norm[1])
    return _Branch(
        body, None if norm is None else norm[0], None if post is None else post[0], scale, stream, normed
    )


def _unscaled(sample: Sample, value: ir.Value) -> tuple[ir.Value, float]:
    value = plain(sample, value)
    node = made(value, "Mul", "Div")
    parts = None if node is None else operand(sample, node)
    if node is None or parts is None or (node.op_type == "Div" and parts[0] is not node.inputs[0]):
        return value, 1.0
    return plain(sample, parts[0]), parts[1] if node.op_type == "Mul" else 1 / parts[1]


def _embedding(sample: Sample, value: ir.Value, ids: ir.Value) -> tuple[Ref, float, Ref | None] | None:
    """Return the embedding, its scale, and the positions that are added to it; None if `value` is none."""
    tokens, scale = _unscaled(sample, value)
    table = _rows(sample, tokens, ids)
    if table is not None:
        return table, scale, None
    for one, other in _sums(sample, value):
        tokens, scale = _unscaled(sample, one)
        table, positions = _rows(sample, tokens, ids), _rows(sample, other, None)
        if table is not None and positions is not None:
            return table, scale, positions
    return None


def _rows(sample: Sample, value: ir.Value, ids: ir.Value | None) -> Ref | None:
    """Return the weight whose rows are taken, by token `ids` or, without them, by the sample's positions."""
    node = made(value, "Gather")
    table, index = (None, None) if node is None else node.inputs
    if node is None or table is None or index is None or node.attributes.get_int("axis", 0) != 0:
        return None
    if not sample.is_weight(table):
        return None
    if ids is None:
        return Ref(table) if sample.at_positions(index) else None
    index = plain(sample, index)
    cast = made(index, "Cast")  # to another width of integer
    source = index if cast is None else cast.inputs[0]
    return Ref(table) if source is not None and plain(sample, source) is ids else None
