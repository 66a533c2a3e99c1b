"""The meaning of the ops of mixture-of-experts layers, as bodies of ONNX functions (see `tokc.ir.bodies`).

A weight of all experts is one matrix: expert e has rows [e * N, (e + 1) * N). A body computes every expert
for every token and picks, which an ONNX runtime does without loops; kernels compute what is picked.
"""

from tokc.ir.bodies import Call, dequantized, rounded


def moe_router(call: Call) -> str:
    """Choose the `top_k` experts of the largest scores, on a tie the lower index, and weigh them.

    Weights are a softmax of all scores, or with `normalize` of the chosen ones, which is the same as dividing
    by their sum. With `shared` the last row of the weight is the gate of an expert that every token takes.
    """
    experts = call.dim("weight", 0) - call.integer("shared")
    scores = chosen = ""
    if call.integer("shared"):
        scores = f"""
        parts = Constant<value_ints=[{experts}, 1]>()
        scores, gate = Split<axis=-1>(every, parts)"""
        chosen = """
        own = Sigmoid(gate)
        weights = Concat<axis=-1>(picked, own)"""
    picked = "picked" if call.integer("shared") else "weights"
    every = "every" if call.integer("shared") else "scores"
    weigh = f"""
        likely = Softmax<axis=-1>(scores)
        {picked} = GatherElements<axis=-1>(likely, experts)"""
    if call.integer("normalize"):
        weigh = f"{picked} = Softmax<axis=-1>(best)"
    return f"""
        turned = Transpose<perm=[1, 0]>(weight)
        {every} = MatMul(x, turned)
        {scores}
        count = Constant<value_ints=[{call.integer("top_k")}]>()
        best, experts = TopK<axis=-1>(scores, count)
        {weigh}
        {chosen}"""


def moe_linear(call: Call) -> str:
    """Compute ``y[.., j] = x @ weight[experts[.., j]].T``; x has an axis of slots or is the same in each."""
    return f"""
        turned = Transpose<perm=[1, 0]>(weight)
        {_picked(call, "x", call.dim("weight", 0))}"""


def quant_moe_linear(call: Call) -> str:
    """Compute a MoeLinear of weights on a grid and of activations rounded to int8 a group of columns."""
    return f"""
        {dequantized(call, "weight")}
        turned = Transpose<perm=[1, 0]>(weight)
        {rounded(call)}
        {_picked(call, "near" if call.integer("act_group") else "x", call.dim("q", 0))}"""


def moe_combine(call: Call) -> str:
    """Compute ``out = sum over j of weights[.., j] * y[.., j] (+ weights[.., k] * shared)``."""
    routed, split, add = "weights", "", ""
    total = "out"
    if call.has("shared"):
        routed, total = "routed", "summed"
        split = f"""
        parts = Constant<value_ints=[{call.dim("y", -2)}, 1]>()
        routed, own = Split<axis=-1>(weights, parts)"""
        add = """
        scaled_shared = Mul(shared, own)
        out = Add(summed, scaled_shared)"""
    return f"""
        {split}
        last = Constant<value_ints=[-1]>()
        column = Unsqueeze({routed}, last)
        scaled = Mul(y, column)
        slots = Constant<value_ints=[-2]>()
        {total} = ReduceSum<keepdims=0>(scaled, slots)
        {add}"""


def _picked(call: Call, x: str, rows: int) -> str:
    """Spell y [.., k, N]: of every expert's result the chosen ones."""
    experts, slots = call.integer("experts"), call.dim("experts", -1)
    given, chosen = call.shapes["x"], call.shapes["experts"]
    assert given is not None, "'x' has no shape"
    assert chosen is not None, "'experts' has no shape"
    index = "-1, 1" if len(given) > len(chosen) else f"-1, {slots}, 1"
    return f"""
        every = MatMul({x}, turned)
        apart = Constant<value_ints=[-1, {experts}, {rows // experts}]>()
        by_expert = Reshape(every, apart)
        index_shape = Constant<value_ints=[{index}]>()
        index = Reshape(experts, index_shape)
        found = GatherND<batch_dims=1>(by_expert, index)
        lead = Shape(experts)
        width = Constant<value_ints=[{rows // experts}]>()
        y_shape = Concat<axis=0>(lead, width)
        y = Reshape(found, y_shape)"""
