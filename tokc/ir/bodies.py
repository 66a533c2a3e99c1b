"""The meaning of every `tokc` op, as the body of an ONNX function in ONNX's text syntax.

Each function here returns the statements of a body for one `Call`: one way of using the op, with its
attributes, optional inputs and widths known. Only standard ops of opset 23 occur, so any ONNX runtime can run
the result. Bodies state meaning, not speed; kernels are held against them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tokc.ir import nibble_bodies
from tokc.ir.formats import activations_body, codes_body, scales_body
from tokc.ir.tree_bodies import past_of_tree

Attribute = int | float | str

F32, F16, INT8, INT64, UINT8 = 1, 10, 3, 7, 2  # onnx.TensorProto.DataType
CACHE_TYPES: Mapping[str, int] = {"f32": F32, "f16": F16, "int8": INT8, "int4": UINT8}


@dataclass(frozen=True)
class Call:
    """Hold one way of using an op: attributes, defaults filled in, and the inputs present with their shapes.

    A dimension that is not a number is None.
    """

    attributes: Mapping[str, Attribute]
    shapes: Mapping[str, tuple[int | None, ...] | None]

    def has(self, name: str) -> bool:
        """Return whether the optional input `name` is given."""
        return name in self.shapes

    def integer(self, name: str) -> int:
        """Return an integer attribute."""
        return int(self.attributes[name])

    def number(self, name: str) -> float:
        """Return a number attribute."""
        return float(self.attributes[name])

    def dim(self, name: str, axis: int) -> int:
        """Return a dimension of an input, which must be static."""
        shape = self.shapes[name]
        assert shape is not None, f"'{name}' has no shape"
        size = shape[axis]
        assert size is not None, f"dimension {axis} of '{name}' is not static"
        return size


def causal_mask(call: Call) -> str:
    """Let token s of b see position j if j <= position_ids[b, s], and within the window if there is one."""
    window = call.integer("window")
    seen = f"""
        width = Constant<value_int={window}>()
        first = Sub(position, width)
        recent = Greater(index, first)
        mask = And(past, recent)"""
    return f"""
        zero = Constant<value_int=0>()
        one = Constant<value_int=1>()
        total = Shape<start=2, end=3>(key)
        stop = Squeeze(total)
        index = Range(zero, stop, one)
        axes = Constant<value_ints=[1, 3]>()
        position = Unsqueeze(position_ids, axes)
        {"past" if window else "mask"} = LessOrEqual(index, position){seen if window else ""}"""


def block_dequantize(call: Call) -> str:
    """Compute ``w = (q - zero_point) * scale (+ offset)`` a block of the last axis."""
    return dequantized(call, "w")


def linear(call: Call) -> str:
    """Compute ``y = x @ weight.T (+ bias)``."""
    return f"""
        turned = Transpose<perm=[1, 0]>(weight)
        {_affine(call, "x", "turned")}"""


def quant_linear(call: Call) -> str:
    """Compute a Linear of a weight on a grid; activations are rounded to int8 a group, or to e4m3 a row."""
    floats = bool(call.attributes["act_format"])
    return f"""
        {dequantized(call, "weight")}
        turned = Transpose<perm=[1, 0]>(weight)
        {activations_body() if floats else rounded(call)}
        {_affine(call, "near" if floats or call.integer("act_group") else "x", "turned")}"""


def quant_embedding(call: Call) -> str:
    """Compute rows of a table on a grid."""
    return f"""
        {dequantized(call, "table")}
        rows = Gather<axis=0>(table, ids)"""


def add_rms_norm(call: Call) -> str:
    """Compute ``sum = x + residual; normed = RMSNorm(sum) * weight``."""
    return f"""
        sum = Add(x, residual)
        normed = RMSNormalization<axis=-1, epsilon={_number(call.number("epsilon"))}>(sum, weight)"""


def gated_activation(call: Call) -> str:
    """Compute ``act(gate_up[.., :I]) * gate_up[.., I:]``."""
    if call.attributes["activation"] == "silu":
        act = "half = Sigmoid(gate)\n        act = Mul(gate, half)"
    else:
        act = 'act = Gelu<approximate="tanh">(gate)'
    return f"""
        gate, up = Split<axis=-1, num_outputs=2>(gate_up)
        {act}
        y = Mul(act, up)"""


def rope_write_kv(call: Call) -> str:
    """Rotate queries and keys, and write each token's key and value at its place in the pages."""
    return f"""
        last = Constant<value_ints=[1]>()
        column = Unsqueeze(positions, last)
        {_rotated(call, "q", call.integer("heads"))}
        {_rotated(call, "k", call.integer("kv_heads"))}
        {_mixed(call, "q", "heads")}
        {_mixed(call, "k", "kv_heads")}
        flat = Constant<value_ints=[0, -1]>()
        q_rot = Reshape({_ready(call, "q")}, flat)
        {_page_of_token("cache_value", "entries" if call.has("entries") else "positions")}
        place = Concat<axis=-1>(page_column, slot_column)
        value_heads = Constant<value_ints=[0, {call.integer("kv_heads")}, -1]>()
        key_new = Reshape({_ready(call, "k")}, value_heads)
        value_new = Reshape(v, value_heads)
        {_written(call, "key", "0, 3, 1, 2", "0, 2, 3, 1")}
        {_written(call, "value", "0, 2, 1, 3", "0, 2, 1, 3")}"""


def paged_attention(call: Call) -> str:
    """Let each token attend to the pages of its own sequence, up to its own position or along its tree."""
    window, tree = call.integer("window"), call.has("ancestors")
    past = past_of_tree() if tree else "past = LessOrEqual(index, own)"
    recent = f"""
        width = Constant<value_int={window}>()
        first = Sub(own, width)
        late = Greater({"place" if tree else "index"}, first)
        visible = And(together, late)"""
    return f"""
        zero = Constant<value_int=0>()
        one = Constant<value_int=1>()
        axis = Constant<value_ints=[1]>()
        {_gathered(call, "key", "2, 0, 1, 4, 3")}
        {_gathered(call, "value", "2, 0, 1, 3, 4")}
        page = Shape<start=2, end=3>(cache_value)
        blocks = Shape<start=1, end=2>(block_tables)
        seqs = Shape<start=0, end=1>(block_tables)
        span = Mul(page, blocks)
        every = Mul(span, seqs)
        stop = Squeeze(every)
        flat = Range(zero, stop, one)
        index = Mod(flat, span)
        whose = Div(flat, span)
        own = Unsqueeze(positions, axis)
        mine = Unsqueeze(sequences, axis)
        same = Equal(whose, mine)
        {past}
        {"together" if window else "visible"} = And(same, past){recent if window else ""}
        first_axis = Constant<value_ints=[0]>()
        q_one = Unsqueeze(q, first_axis)
        token_count = Shape<start=0, end=1>(q)
        tail = Constant<value_ints=[{call.integer("heads")}, -1]>()
        lead = Constant<value_ints=[1]>()
        q_shape = Concat<axis=0>(lead, token_count, tail)
        q_split = Reshape(q_one, q_shape)
        q_heads = Transpose<perm=[0, 2, 1, 3]>(q_split)
        found = Attention<{_scores(call)}>(q_heads, key, value, visible)
        turned = Transpose<perm=[0, 2, 1, 3]>(found)
        flat_tail = Constant<value_ints=[-1]>()
        y_shape = Concat<axis=0>(token_count, flat_tail)
        y = Reshape(turned, y_shape)"""


def _scores(call: Call) -> str:
    """Spell how scores are scaled, and capped before the mask: ``c * tanh(s / c)``."""
    scale, cap = call.number("scale"), call.number("softcap")
    return f"scale={_number(scale)}" + (f", softcap={_number(cap)}" if cap else "")


def _affine(call: Call, x: str, weight: str) -> str:
    if call.has("bias"):
        return f"product = MatMul({x}, {weight})\n        y = Add(product, bias)"
    return f"y = MatMul({x}, {weight})"


def dequantized(call: Call, result: str) -> str:
    """Spell ``result = (q - zero_point) * scale (+ offset)``; q [N, K], scale [N, ceil(K / block_size)]."""
    block, width = call.integer("block_size"), call.dim("q", -1)
    if width % block:
        wide = f"""
        columns = Constant<value_ints=[{", ".join(str(column // block) for column in range(width))}]>()
        scale_wide = Gather<axis=-1>(scale_f32, columns)"""
        offset_wide = "offset_wide = Gather<axis=-1>(offset_f32, columns)"
        blocks = "code_blocks = Identity(code)"
    else:
        wide = """
        inner = Constant<value_ints=[-1]>()
        scale_wide = Unsqueeze(scale_f32, inner)"""
        offset_wide = "offset_wide = Unsqueeze(offset_f32, inner)"
        blocks = f"""
        blocked = Constant<value_ints=[0, {width // block}, {block}]>()
        code_blocks = Reshape(code, blocked)"""
    if call.has("offset"):
        finish = f"""
        offset_f32 = Cast<to={F32}>(offset)
        {offset_wide}
        weight_blocks = Add(product_blocks, offset_wide)"""
    else:
        finish = "\n        weight_blocks = Identity(product_blocks)"
    return f"""
        {codes_body(str(call.attributes["format"]))}
        zero_point = Constant<value_float={_number(call.number("zero_point"))}>()
        code = Sub(code_raw, zero_point)
        {_scales(call)}
        {wide}
        {blocks}
        product_blocks = Mul(code_blocks, scale_wide)
        {finish}
        unblocked = Constant<value_ints=[0, {width}]>()
        {result} = Reshape(weight_blocks, unblocked)"""


def _scales(call: Call) -> str:
    if not call.attributes["format"]:
        return f"scale_f32 = Cast<to={F32}>(scale)"
    return scales_body(
        str(call.attributes["format"]),
        tensor_scale=call.has("tensor_scale"),
        rows=call.dim("q", 0),
        block_rows=call.integer("block_rows"),
    )


def rounded(call: Call) -> str:
    """Spell ``near``: what the int8 codes of x stand for; one scale, absmax / 127, a row and group."""
    group = call.integer("act_group")
    if not group:
        return ""
    width = call.dim("q", -1)
    groups = -(-width // group)
    if width % group == 0:
        split = f"""
        grouped = Constant<value_ints=[-1, {groups}, {group}]>()
        x_groups = Reshape(x, grouped)"""
    else:
        pads = ", ".join(["0", "0", "0", str(groups * group - width)])
        split = f"""
        matrix = Constant<value_ints=[-1, {width}]>()
        x_matrix = Reshape(x, matrix)
        pads = Constant<value_ints=[{pads}]>()
        x_padded = Pad(x_matrix, pads)
        grouped = Constant<value_ints=[-1, {groups}, {group}]>()
        x_groups = Reshape(x_padded, grouped)"""
    unpad = f"""
        whole = Constant<value_ints=[-1, {groups * group}]>()
        near_padded = Reshape(near_groups, whole)
        starts = Constant<value_ints=[0]>()
        ends = Constant<value_ints=[{width}]>()
        cut_axis = Constant<value_ints=[1]>()
        near_matrix = Slice(near_padded, starts, ends, cut_axis)"""
    return f"""
        {split}
        group_axis = Constant<value_ints=[2]>()
        {_codes("x_groups", "near_codes", "near_scale", "group_axis")}
        near_groups = Mul(near_codes, near_scale)
        {unpad}
        x_shape = Shape(x)
        near = Reshape(near_matrix, x_shape)"""


def _codes(x: str, codes: str, scale: str, axis: str) -> str:
    """Spell int8 codes (still f32) and their scale, absmax / 127 over `axis`; a row of zeros has codes 0."""
    return f"""
        {codes}_abs = Abs({x})
        {codes}_max = ReduceMax<keepdims=1>({codes}_abs, {axis})
        {codes}_127 = Constant<value_float=127.0>()
        {scale} = Div({codes}_max, {codes}_127)
        {codes}_0 = Constant<value_float=0.0>()
        {codes}_1 = Constant<value_float=1.0>()
        {codes}_none = Equal({scale}, {codes}_0)
        {codes}_safe = Where({codes}_none, {codes}_1, {scale})
        {codes}_inverse = Div({codes}_1, {codes}_safe)
        {codes}_scaled = Mul({x}, {codes}_inverse)
        {codes} = Round({codes}_scaled)"""


def _rotated(call: Call, name: str, heads: int) -> str:
    """Spell `name`_turned [tokens, heads, 1, dim]: the heads, normed if asked, rotated by position."""
    norm = ""
    ready = f"{name}_heads"
    if call.has(f"{name}_norm"):
        epsilon = _number(call.number("epsilon"))
        norm = f"{name}_ready = RMSNormalization<axis=-1, epsilon={epsilon}>({ready}, {name}_norm)"
        ready = f"{name}_ready"
    return f"""
        {name}_split = Constant<value_ints=[0, {heads}, 1, -1]>()
        {name}_heads = Reshape({name}, {name}_split)
        {norm}
        {name}_turned = RotaryEmbedding({ready}, cos, sin, column)"""


def _ready(call: Call, name: str) -> str:
    return f"{name}_mixed" if call.attributes["dtype"] == "int4" else f"{name}_turned"


def _mixed(call: Call, name: str, heads: str) -> str:
    if call.attributes["dtype"] != "int4":
        return ""
    return nibble_bodies.mixed(name, call.integer(heads), 2 * call.dim("cache_value", 3))


def _page_of_token(cache: str, entries: str) -> str:
    """Spell page_column and slot_column [tokens, 1]: the place of each token's entry in the pages."""
    return f"""
        page = Shape<start=2, end=3>({cache})
        block = Div({entries}, page)
        slot = Mod({entries}, page)
        block_column = Unsqueeze(block, last)
        slot_column = Unsqueeze(slot, last)
        table = Gather<axis=0>(block_tables, sequences)
        page_column = GatherElements<axis=1>(table, block_column)"""


def _written(call: Call, part: str, outer: str, back: str) -> str:
    """Spell cache_`part`_out: the pages with each token's row [kv_heads, dim] in its slot."""
    stored = CACHE_TYPES[str(call.attributes["dtype"])]
    row, scales = f"{part}_row", ""
    convert = f"{row} = Cast<to={stored}>({part}_new)"
    if stored == UINT8:
        convert = nibble_bodies.nibbles(part)
    if stored == INT8:
        convert = f"""
        {part}_axis = Constant<value_ints=[2]>()
        {_codes(f"{part}_new", f"{part}_codes", f"{part}_each", f"{part}_axis")}
        {row} = Cast<to={INT8}>({part}_codes)"""
    if stored in {INT8, UINT8}:
        scales = f"""
        {part}_flat = Squeeze({part}_each, {part}_axis)
        {part}_scale_open = Transpose<perm=[0, 2, 1]>({part}_scale)
        {part}_scale_set = ScatterND({part}_scale_open, place, {part}_flat)
        {part}_scale_out = Transpose<perm=[0, 2, 1]>({part}_scale_set)"""
    return f"""
        {convert}
        {part}_open = Transpose<perm=[{outer}]>(cache_{part})
        {part}_set = ScatterND({part}_open, place, {row})
        cache_{part}_out = Transpose<perm=[{back}]>({part}_set)
        {scales}"""


def _gathered(call: Call, part: str, perm: str) -> str:
    """Spell `part` f32 [1, kv_heads, seqs * blocks * page, dim]: the pages of every sequence in turn."""
    axes = "2, 0, 1, 3"
    raw, scales, plain = f"{part}_plain", "", f"{part}_plain = Cast<to={F32}>({part}_turned)"
    if call.integer("bits") == 4:
        plain = nibble_bodies.codes_of_nibbles(part)
    if call.has(f"{part}_scale"):
        raw = f"{part}_scaled"
        scales = f"""
        {part}_scale_pages = Gather<axis=0>({part}_scale, block_tables)
        {part}_scale_turned = Transpose<perm=[{axes}]>({part}_scale_pages)
        {part}_scale_axis = Constant<value_ints=[-1]>()
        {part}_scale_last = Unsqueeze({part}_scale_turned, {part}_scale_axis)
        {part}_scale_f32 = Cast<to={F32}>({part}_scale_last)
        {part}_scaled = Mul({part}_plain, {part}_scale_f32)"""
    return f"""
        {part}_pages = Gather<axis=0>(cache_{part}, block_tables)
        {part}_turned = Transpose<perm=[{perm}]>({part}_pages)
        {plain}
        {scales}
        {part}_shape = Constant<value_ints=[1, {call.integer("kv_heads")}, -1]>()
        {part}_width = Shape<start=-1>({raw})
        {part}_whole = Concat<axis=0>({part}_shape, {part}_width)
        {part} = Reshape({raw}, {part}_whole)"""


def _number(value: float) -> str:
    """Print a float so that ONNX's parser reads the same float back."""
    text = repr(float(value))
    return text if any(mark in text for mark in ".e") else f"{text}.0"
