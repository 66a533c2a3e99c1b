"""Check that a program keeps the promises that passes and targets rely on."""

import onnx
import onnx_ir as ir

from tokc.errors import VerifyFailed
from tokc.ir.head import FEATURES, FEATURES_OUT
from tokc.ir.ops import DOMAIN, DOMAIN_VERSION, OPS, Op
from tokc.ir.program import OPSET, Program

BATCH_INPUTS = ("input_ids", "position_ids")
RAGGED_INPUTS = ("input_ids", "positions", "sequences", "block_tables", "logit_rows")
TREE_INPUTS = ("entries", "ancestors")  # both or none


def verify(program: Program) -> None:
    """Check order, ops, attributes, types, shapes, and the form's inputs and outputs.

    Raises: VerifyFailed naming the node and what to do.
    """
    imports = program.graph.opset_imports
    if imports.get("") != OPSET or imports.get(DOMAIN, DOMAIN_VERSION) != DOMAIN_VERSION:
        raise VerifyFailed(
            f"the program is written in opset {imports.get('')}; tokc's is {OPSET}",
            hint="convert the model's opset at import",
        )
    _verify_order(program.graph)
    for node in program.graph:
        if node.domain == DOMAIN:
            _verify_row(node)
        else:
            _verify_standard(node)
    _verify_interface(program)
    if program.draft is not None:
        verify(program.draft.program)


def _verify_order(graph: ir.Graph) -> None:
    """Check that every value is defined once, by name, and before it is read."""
    defined: set[ir.Value] = set()
    names: set[str] = set()
    for value in (*graph.inputs, *graph.initializers.values()):
        if value not in defined:
            _define(value, defined, names, "graph inputs and weights")
    for node in graph:
        for read in node.inputs:
            if read is not None and read not in defined:
                raise VerifyFailed(
                    f"'{read.name}' is read before it is defined", where=_at(node), hint=_ours(node)
                )
        for value in node.outputs:
            if value.name:
                _define(value, defined, names, _at(node))
    for value in graph.outputs:
        if value not in defined:
            raise VerifyFailed(f"output '{value.name}' is never defined", where=f"graph '{graph.name}'")


def _define(value: ir.Value, defined: set[ir.Value], names: set[str], where: str) -> None:
    name = str(value.name)
    if name in names:
        raise VerifyFailed(f"the name '{name}' is given to two values", where=where)
    names.add(name)
    defined.add(value)


def _verify_standard(node: ir.Node) -> None:
    """Check an op of the standard against the schema of its opset."""
    if not onnx.defs.has(node.op_type, OPSET, node.domain):
        raise VerifyFailed(
            f"unknown op '{node.domain or 'ai.onnx'}::{node.op_type}'",
            where=_at(node),
            hint=f"use an op of ONNX opset {OPSET} or add a row to tokc/ir/ops.py",
        )
    schema = onnx.defs.get_schema(node.op_type, OPSET, node.domain)
    for name in node.attributes:
        if name not in schema.attributes:
            raise _unknown_attribute(node, name, sorted(schema.attributes))
    if not schema.min_input <= len(node.inputs) <= schema.max_input:
        raise VerifyFailed(
            f"{node.op_type} takes {schema.min_input} to {schema.max_input} inputs, not {len(node.inputs)}",
            where=_at(node),
        )


def _verify_row(node: ir.Node) -> None:
    """Check a `tokc` op against its row."""
    op = OPS.get(node.op_type)
    if op is None:
        raise VerifyFailed(
            f"unknown op 'tokc::{node.op_type}'; choose from {', '.join(sorted(OPS))}", where=_at(node)
        )
    for name, attribute in node.attributes.items():
        if name not in op.attributes:
            raise _unknown_attribute(node, name, sorted(op.attributes))
        default = op.attributes[name]
        if not isinstance(attribute.value, type(default)):
            raise VerifyFailed(
                f"attribute '{name}' is {attribute.value!r}, not {type(default).__name__}", where=_at(node)
            )
    _verify_inputs(op, node)
    _verify_types(op, node)


def _verify_inputs(op: Op, node: ir.Node) -> None:
    if len(node.inputs) > len(op.inputs):
        raise VerifyFailed(
            f"{op.name} takes at most {len(op.inputs)} inputs, not {len(node.inputs)}", where=_at(node)
        )
    for index, name in enumerate(op.inputs):
        given = index < len(node.inputs) and node.inputs[index] is not None
        if not given and not name.endswith("?"):
            raise VerifyFailed(f"{op.name} lacks its input '{name}'", where=_at(node), hint=_ours(node))
    if len(node.outputs) > len(op.outputs):
        raise VerifyFailed(
            f"{op.name} has {len(op.outputs)} outputs, not {len(node.outputs)}", where=_at(node)
        )


def _verify_types(op: Op, node: ir.Node) -> None:
    """Check that what an output is said to be agrees with the op's rule."""
    for value, (dtype, shape) in zip(node.outputs, op.shape(node), strict=False):
        if value.name and value.dtype is not None and value.dtype != dtype:
            raise VerifyFailed(
                f"'{value.name}' is said to be {value.dtype}, but {op.name} makes {dtype}", where=_at(node)
            )
        if value.shape is not None and shape is not None and not _agree(value.shape, shape):
            raise VerifyFailed(
                f"'{value.name}' is said to have shape {value.shape}, but {op.name} makes {shape}",
                where=_at(node),
            )


def _agree(stated: ir.Shape, made: ir.Shape) -> bool:
    """Return whether two shapes may be the same; a symbol may be any size."""
    if len(stated) != len(made):
        return False
    pairs = zip(stated, made, strict=True)
    return all(one == other for one, other in pairs if isinstance(one, int) and isinstance(other, int))


def _verify_interface(program: Program) -> None:
    """Check the inputs and outputs that the form promises; a graph without logits is a fragment."""
    outputs = [str(value.name) for value in program.graph.outputs]
    if "logits" not in outputs:
        return
    outputs = [name for name in outputs if name != FEATURES]  # which a program may have
    inputs = [str(value.name) for value in program.graph.inputs]
    layers, drafts = range(program.config.layers), FEATURES in inputs
    if program.form == "batch":
        kinds = [(layer, kind) for layer in layers for kind in ("key", "value")]
        expected = [*BATCH_INPUTS, *(f"past_key_values.{layer}.{kind}" for layer, kind in kinds)]
        made = ["logits", *(f"present.{layer}.{kind}" for layer, kind in kinds)]
    else:
        if program.kv is None:
            raise VerifyFailed("a ragged program states no layout of its cache", hint="run kv-layout")
        scales = ("key_scale", "value_scale") if program.kv.scaled else ()
        caches = [f"kv.{layer}.{kind}" for layer in layers for kind in ("key", "value", *scales)]
        trees = TREE_INPUTS if set(TREE_INPUTS) & set(inputs) else ()
        expected = [*RAGGED_INPUTS, *caches, *trees]
        made = ["logits", *(f"{name}.out" for name in caches)]
    if drafts:  # without a cache one reads neither tokens nor positions
        tokens = (*BATCH_INPUTS, *RAGGED_INPUTS[:-1])
        expected = [name for name in expected if layers or name not in tokens]
        expected, made = [*expected, FEATURES], [*made, *([FEATURES_OUT] if layers else [])]
    for kind, found, wanted in (("input", inputs, expected), ("output", outputs, made)):
        missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
        if missing:
            raise VerifyFailed(f"the {program.form} form promises {kind} '{missing[0]}', which is missing")
        if extra:
            raise VerifyFailed(f"the {program.form} form has no {kind} '{extra[0]}'")


def _unknown_attribute(node: ir.Node, name: str, accepted: list[str]) -> VerifyFailed:
    known = f"it has {', '.join(accepted)}" if accepted else "it has none"
    return VerifyFailed(f"unknown attribute '{name}' of {node.op_type}; {known}", where=_at(node))


def _at(node: ir.Node) -> str:
    made = ", ".join(f"'{value.name}'" for value in node.outputs)
    return f"node '{node.name}', {node.op_type}, which makes {made}"


def _ours(node: ir.Node) -> str:
    return f"the pass that made this {node.op_type} is at fault; bisect with --dump-ir"
