"""The `tokc` ops, a row each: signature, meaning, shape rule and price.

The meaning is an ONNX function over standard ops (`tokc.ir.bodies`). ONNX functions have no optional inputs
worth the name, so `expand_functions` gives each way of using an op a function of its own; in a Program the
node is plain.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx.parser
import onnx_ir as ir

from tokc.ir import bodies, costs, draft_ops, expert_bodies, expert_rules, shapes
from tokc.ir.bodies import Attribute, Call
from tokc.ir.costs import Cost, CostRule, Step
from tokc.ir.program import OPSET, Program
from tokc.ir.shapes import ShapeRule

DOMAIN = "tokc"
DOMAIN_VERSION = 1


@dataclass(frozen=True)
class Op:
    """Describe one op; a name that ends in "?" is optional; an output so named comes with its input."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]
    body: Callable[[Call], str]
    shape: ShapeRule
    flops: CostRule
    bytes: CostRule

    @property
    def required(self) -> tuple[str, ...]:
        """Return the inputs that must be given."""
        return tuple(name for name in self.inputs if not name.endswith("?"))


_GRID: Mapping[str, Attribute] = {
    "zero_point": 0,
    "block_size": 32,
    "bits": 0,
    "scale_bits": 16,
    "format": "",
    "block_rows": 1,
}
_HEADS: Mapping[str, Attribute] = {"heads": 1, "kv_heads": 1}

OPS: Mapping[str, Op] = {
    op.name: op
    for op in (
        Op(
            "CausalMask",
            inputs=("position_ids", "key"),
            outputs=("mask",),
            attributes={"window": 0},
            body=bodies.causal_mask,
            shape=shapes.causal_mask_shape,
            flops=costs.per_element(1.0),
            bytes=lambda node, step: costs.value_bytes(node.outputs[0], step),
        ),
        Op(
            "BlockDequantize",
            inputs=("q", "scale", "offset?", "tensor_scale?"),
            outputs=("w",),
            attributes=_GRID,
            body=bodies.block_dequantize,
            shape=shapes.block_dequantize_shape,
            flops=costs.per_element(2.0),
            bytes=costs.all_bytes,
        ),
        Op(
            "Linear",
            inputs=("x", "weight", "bias?"),
            outputs=("y",),
            attributes={},
            body=bodies.linear,
            shape=shapes.linear_shape,
            flops=costs.linear_flops,
            bytes=costs.all_bytes,
        ),
        Op(
            "QuantLinear",
            inputs=("x", "q", "scale", "offset?", "bias?", "tensor_scale?"),
            outputs=("y",),
            attributes={**_GRID, "act_group": 32, "act_format": ""},
            body=bodies.quant_linear,
            shape=shapes.linear_shape,
            flops=costs.linear_flops,
            bytes=costs.all_bytes,
        ),
        Op(
            "QuantEmbedding",
            inputs=("ids", "q", "scale", "offset?", "tensor_scale?"),
            outputs=("rows",),
            attributes=_GRID,
            body=bodies.quant_embedding,
            shape=shapes.embedding_shape,
            flops=costs.per_element(2.0),
            bytes=costs.embedding_bytes,
        ),
        Op(
            "AddRmsNorm",
            inputs=("x", "residual", "weight"),
            outputs=("sum", "normed"),
            attributes={"epsilon": 1e-5},
            body=bodies.add_rms_norm,
            shape=shapes.add_rms_norm_shape,
            flops=costs.per_element(5.0),
            bytes=costs.all_bytes,
        ),
        Op(
            "GatedActivation",
            inputs=("gate_up",),
            outputs=("y",),
            attributes={"activation": "silu"},
            body=bodies.gated_activation,
            shape=shapes.gated_activation_shape,
            flops=costs.per_element(6.0),
            bytes=costs.all_bytes,
        ),
        Op(
            "ResidualSilu",
            inputs=("x", "y"),
            outputs=("out",),
            attributes={"joint": 1},
            body=draft_ops.residual_silu,
            shape=draft_ops.residual_silu_shape,
            flops=costs.per_element(6.0),
            bytes=costs.all_bytes,
        ),
        Op(
            "MoeRouter",
            inputs=("x", "weight"),
            outputs=("experts", "weights"),
            attributes={"top_k": 1, "normalize": 0, "shared": 0},
            body=expert_bodies.moe_router,
            shape=expert_rules.moe_router_shape,
            flops=expert_rules.moe_router_flops,
            bytes=expert_rules.router_bytes,
        ),
        Op(
            "MoeLinear",
            inputs=("x", "weight", "experts"),
            outputs=("y",),
            attributes={"experts": 1},
            body=expert_bodies.moe_linear,
            shape=expert_rules.moe_linear_shape,
            flops=expert_rules.moe_linear_flops,
            bytes=expert_rules.moe_linear_bytes,
        ),
        Op(
            "QuantMoeLinear",
            inputs=("x", "q", "scale", "offset?", "experts"),
            outputs=("y",),
            attributes={**_GRID, "act_group": 32, "experts": 1},
            body=expert_bodies.quant_moe_linear,
            shape=expert_rules.moe_linear_shape,
            flops=expert_rules.moe_linear_flops,
            bytes=expert_rules.moe_linear_bytes,
        ),
        Op(
            "MoeCombine",
            inputs=("y", "weights", "shared?"),
            outputs=("out",),
            attributes={},
            body=expert_bodies.moe_combine,
            shape=expert_rules.moe_combine_shape,
            flops=expert_rules.moe_combine_flops,
            bytes=costs.all_bytes,
        ),
        Op(
            "RopeWriteKV",
            inputs=(
                *("q", "k", "v", "cos", "sin", "positions", "sequences", "block_tables"),
                *("cache_key", "cache_value", "key_scale?", "value_scale?", "q_norm?", "k_norm?", "entries?"),
            ),
            outputs=("q_rot", "cache_key_out", "cache_value_out", "key_scale_out?", "value_scale_out?"),
            attributes={**_HEADS, "epsilon": 1e-5, "dtype": "f32"},
            body=bodies.rope_write_kv,
            shape=shapes.rope_write_kv_shape,
            flops=costs.rope_write_flops,
            bytes=costs.rope_write_bytes,
        ),
        Op(
            "PagedAttention",
            inputs=(
                *("q", "cache_key", "cache_value", "key_scale?", "value_scale?"),
                *("positions", "sequences", "block_tables", "entries?", "ancestors?"),
            ),
            outputs=("y",),
            attributes={**_HEADS, "scale": 1.0, "window": 0, "bits": 0, "softcap": 0.0},
            body=bodies.paged_attention,
            shape=shapes.paged_attention_shape,
            flops=costs.paged_attention_flops,
            bytes=costs.paged_attention_bytes,
        ),
    )
}


def op_of(node: ir.Node) -> Op | None:
    """Return the row of a `tokc` node, None for a node of another domain."""
    return OPS[node.op_type] if node.domain == DOMAIN else None


def make_node(
    name: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Attribute] | None = None
) -> ir.Node:
    """Make a `tokc` node; its outputs have the types and shapes that the op's rule gives."""
    op = OPS[name]
    operands = list(inputs)
    while operands and operands[-1] is None:
        operands.pop()
    count = sum(not output.endswith("?") for output in op.outputs)
    node = ir.node(name, operands, attributes or {}, domain=DOMAIN, num_outputs=count)
    for value, (dtype, shape) in zip(node.outputs, op.shape(node), strict=False):
        value.type, value.shape = ir.TensorType(dtype), shape
    return node


def node_cost(node: ir.Node, tokens: int, context: int, sequences: int | None = None) -> Cost:
    """Return the FLOPs and bytes of a node in a step of `tokens`, each attending to `context` cached tokens.

    `sequences` defaults to `tokens`, a decode step; a prefill chunk has one sequence.
    """
    step = Step(tokens=tokens, context=context, sequences=tokens if sequences is None else sequences)
    op = op_of(node)
    return costs.standard_cost(node, step) if op is None else Cost(op.flops(node, step), op.bytes(node, step))


def program_cost(program: Program, tokens: int, context: int, sequences: int | None = None) -> Cost:
    """Return the FLOPs and bytes of a whole step; shapes that are not known yet are worked out."""
    from tokc.ir.inference import annotate_shapes  # which reads OPS

    annotate_shapes(program.graph)
    total = Cost(0.0, 0.0)
    for node in program.graph:
        total += node_cost(node, tokens, context, sequences)
    return total


def expand_functions(model: ir.Model) -> ir.Model:
    """Return the model with every `tokc` node calling an ONNX function that says what it means.

    Weights are shared with the given model. Raises: KeyError if a `tokc` op has no row.
    """
    expanded = model.clone()
    functions: dict[str, ir.Function] = {}
    for node in list(expanded.graph):
        op = op_of(node)
        if op is None:
            continue
        text, name = _function_text(op, node)
        if name not in functions:
            functions[name] = _parse_function(text)
        operands = [value for value in node.inputs if value is not None]
        outputs = _outputs(op, node)
        call = ir.node(name, operands, domain=DOMAIN, num_outputs=len(outputs), name=node.name)
        kept = node.outputs[: len(outputs)]
        ir.convenience.replace_nodes_and_values(expanded.graph, node, [node], [call], kept, call.outputs)
    for function in functions.values():
        expanded.functions[function.identifier()] = function
    expanded.graph.opset_imports.update({"": OPSET, DOMAIN: DOMAIN_VERSION})
    return expanded


def _outputs(op: Op, node: ir.Node) -> tuple[str, ...]:
    given = {name for name, _ in named_inputs(op, node)}
    return tuple(
        output.removesuffix("?")
        for output in op.outputs
        if not output.endswith("?") or output.removesuffix("?").removesuffix("_out") in given
    )


def named_inputs(op: Op, node: ir.Node) -> Iterable[tuple[str, ir.Value]]:
    """Return the given inputs of a node with their names in the op's row."""
    pairs = zip(op.inputs, node.inputs, strict=False)
    return [(name.removesuffix("?"), value) for name, value in pairs if value is not None]


def attributes_of(op: Op, node: ir.Node) -> dict[str, Attribute]:
    """Return a node's attributes, defaults filled in."""
    return {**op.attributes, **{name: attribute.value for name, attribute in node.attributes.items()}}


def _function_text(op: Op, node: ir.Node) -> tuple[str, str]:
    """Return the function of one node and its name, which is unique to the text."""
    given = dict(named_inputs(op, node))
    body = op.body(Call(attributes_of(op, node), {name: _static(value) for name, value in given.items()}))
    lines = "\n".join(f"  {line.strip()}" for line in body.splitlines() if line.strip())
    signature = f"({', '.join(given)}) => ({', '.join(_outputs(op, node))})"
    digest = hashlib.sha256((signature + lines).encode()).hexdigest()[:8]
    name = f"{op.name}_{digest}"
    return f'<domain: "{DOMAIN}", opset_import: ["": {OPSET}]>\n{name} {signature} {{\n{lines}\n}}', name


def _parse_function(text: str) -> ir.Function:
    return ir.serde.deserialize_function(onnx.parser.parse_function(text))


def _static(value: ir.Value) -> tuple[int | None, ...] | None:
    if value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else None for dim in value.shape)
