"""Parts of the cache ops' bodies that a cache of 4 bits needs, in ONNX's text syntax."""

F16, F32, UINT8 = 10, 1, 2  # onnx.TensorProto.DataType


def mixed(name: str, heads: int, dim: int) -> str:
    """Spell `name`_mixed of `name`_turned [tokens, heads, 1, dim]: each head times a Hadamard matrix.

    Products of queries and keys stay as they are, and a key's large elements are spread over all of it
    (Ashkboos et al. 2024, arXiv:2404.00456). A dim that is no power of two is mixed in equal parts that are.
    """
    part, stride, lines, value = dim & -dim, 1, [], f"{name}_turned"
    while stride < part:
        at = f"{name}_mix{stride}"
        lines.append(f"""
        {at}_pairs = Constant<value_ints=[-1, 2, {stride}]>()
        {at}_split = Reshape({value}, {at}_pairs)
        {at}_low, {at}_high = Split<axis=1, num_outputs=2>({at}_split)
        {at}_sum = Add({at}_low, {at}_high)
        {at}_difference = Sub({at}_low, {at}_high)
        {at} = Concat<axis=1>({at}_sum, {at}_difference)""")
        value, stride = at, 2 * stride
    return (
        "".join(lines)
        + f"""
        {name}_mix_shape = Constant<value_ints=[-1, {heads}, 1, {dim}]>()
        {name}_mix_whole = Reshape({value}, {name}_mix_shape)
        {name}_mix_norm = Constant<value_float={part**-0.5}>()
        {name}_mixed = Mul({name}_mix_whole, {name}_mix_norm)"""
    )


def nibbles(part: str) -> str:
    """Spell `part`_row, two codes a byte, and `part`_each, an f16 scale a head: (code - 8) * scale.

    The element furthest from zero is code 0, so the scale has either sign, as weights of 4 bits have it.
    """
    new, out = f"{part}_new", f"{part}_nibble"
    return f"""
        {part}_axis = Constant<value_ints=[2]>()
        {out}_top = ReduceMax<keepdims=1>({new}, {part}_axis)
        {out}_bottom = ReduceMin<keepdims=1>({new}, {part}_axis)
        {out}_depth = Neg({out}_bottom)
        {out}_below = Greater({out}_depth, {out}_top)
        {out}_extreme = Where({out}_below, {out}_bottom, {out}_top)
        {out}_eighth = Constant<value_float=-0.125>()
        {out}_step = Mul({out}_extreme, {out}_eighth)
        {out}_most = Constant<value_float=65504.0>()
        {out}_least = Constant<value_float=-65504.0>()
        {out}_finite = Clip({out}_step, {out}_least, {out}_most)
        {part}_each = Cast<to={F16}>({out}_finite)
        {out}_scale = Cast<to={F32}>({part}_each)
        {out}_0 = Constant<value_float=0.0>()
        {out}_1 = Constant<value_float=1.0>()
        {out}_none = Equal({out}_scale, {out}_0)
        {out}_safe = Where({out}_none, {out}_1, {out}_scale)
        {out}_inverse = Div({out}_1, {out}_safe)
        {out}_scaled = Mul({new}, {out}_inverse)
        {out}_whole = Round({out}_scaled)
        {out}_8 = Constant<value_float=8.0>()
        {out}_15 = Constant<value_float=15.0>()
        {out}_shifted = Add({out}_whole, {out}_8)
        {out}_codes = Clip({out}_shifted, {out}_0, {out}_15)
        {out}_low, {out}_high = Split<axis=2, num_outputs=2>({out}_codes)
        {out}_16 = Constant<value_float=16.0>()
        {out}_moved = Mul({out}_high, {out}_16)
        {out}_bytes = Add({out}_low, {out}_moved)
        {part}_row = Cast<to={UINT8}>({out}_bytes)"""


def codes_of_nibbles(part: str) -> str:
    """Spell `part`_plain, the codes less 8 of bytes [.., dim / 2] that hold two each, [.., dim]."""
    return f"""
        {part}_bytes = Cast<to={F32}>({part}_turned)
        {part}_16 = Constant<value_float=16.0>()
        {part}_shifted = Div({part}_bytes, {part}_16)
        {part}_high = Floor({part}_shifted)
        {part}_moved = Mul({part}_high, {part}_16)
        {part}_low = Sub({part}_bytes, {part}_moved)
        {part}_codes = Concat<axis=-1>({part}_low, {part}_high)
        {part}_8 = Constant<value_float=8.0>()
        {part}_plain = Sub({part}_codes, {part}_8)"""
