"""Keep the embedding and the head of a draft those of its backbone, whatever a pass made of them."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from tokc.ir.head import head_of
from tokc.ir.ops import OPS, make_node, named_inputs
from tokc.ir.program import Draft, Program
from tokc.ir.rewrite import drop, initializer

ROWS_OF = "rows of"  # in a tensor's meta: the tensor whose rows it holds
ONE_OF_ALL = frozenset({"tensor_scale"})


def shared(backbone: Program, draft: Draft) -> Draft:
    """Return the draft with the codes and scales that the backbone's embedding and head have now.

    Rows of a head are picked when they are read. The very same draft is returned where nothing changed.
    """
    program = draft.program.copy()
    changed = _share_head(backbone.graph, program.graph, draft)
    ids = next((value for value in program.graph.inputs if value.name == "input_ids"), None)
    if ids is not None:
        changed |= _share_embedding(backbone.graph, program.graph)
    return draft.running(program) if changed else draft


def _share_head(backbone: ir.Graph, graph: ir.Graph, draft: Draft) -> bool:
    mine, theirs = head_of(graph), head_of(backbone)
    weight = mine.inputs[1]
    if weight is not None and not _is_shared(str(weight.name), backbone, draft):
        return False  # a head of its own
    return _follow(graph, mine, theirs, None if draft.vocabulary is None else draft.vocabulary.tolist())


def _is_shared(name: str, backbone: ir.Graph, draft: Draft) -> bool:
    head = head_of(backbone).inputs[1]
    assert head is not None, "a head has a weight"
    return name.startswith("draft.lm_head.") or (draft.vocabulary is None and not name.startswith("draft."))


def _share_embedding(backbone: ir.Graph, graph: ir.Graph) -> bool:
    mine, theirs = (_lookup(one) for one in (graph, backbone))
    return mine is not None and theirs is not None and _follow(graph, mine, theirs, None)


def _lookup(graph: ir.Graph) -> ir.Node | None:
    ids = next(value for value in graph.inputs if value.name == "input_ids")
    found = [use.node for use in ids.uses() if use.node.op_type in {"Gather", "QuantEmbedding"}]
    return found[0] if found else None


def _follow(graph: ir.Graph, mine: ir.Node, theirs: ir.Node, rows: Sequence[int] | None) -> bool:
    """Put a node like `theirs`, of its constants or some rows of them, in the place of `mine`."""
    if theirs.domain != "tokc" or theirs.op_type not in {"QuantLinear", "QuantEmbedding"}:
        return False  # as it was imported
    op = OPS[theirs.op_type]
    names = [name.removesuffix("?") for name in op.inputs]
    given = dict(named_inputs(op, theirs))
    old = dict(named_inputs(OPS[mine.op_type], mine)) if mine.op_type in OPS else {}
    activation = "x" if theirs.op_type == "QuantLinear" else "ids"
    source = mine.inputs[1] if mine.op_type == "Gather" else mine.inputs[0]
    operands: dict[str, ir.Value | None] = {activation: source}
    for name in names:
        if name == activation or name not in given:
            continue
        kept = None if name in ONE_OF_ALL else rows
        operands[name] = _constant(graph, given[name], kept, old.get(name))
    if mine.op_type == theirs.op_type and all(operands.get(name) is old.get(name) for name in names):
        return False
    attributes = {name: attribute.value for name, attribute in theirs.attributes.items()}
    node = make_node(theirs.op_type, [operands.get(name) for name in names], attributes)
    _replace(graph, mine, node)
    return True


def _constant(
    graph: ir.Graph, theirs: ir.Value, rows: Sequence[int] | None, mine: ir.Value | None
) -> ir.Value:
    """Return the draft's value for a constant of the backbone; the one it has where that is the same."""
    tensor = theirs.const_value
    assert tensor is not None, f"'{theirs.name}' is a constant"
    name = str(theirs.name) if rows is None else f"draft.lm_head.weight.{str(theirs.name).rpartition('.')[2]}"
    for known in (mine, graph.initializers.get(name)):
        has = None if known is None else known.const_value
        if known is not None and has is not None and (has is tensor or has.meta.get(ROWS_OF) is tensor):
            return known
    if name in graph.initializers:  # what the pass made of the draft's own copy
        graph.initializers[name].name = f"{name}.before"
    made = initializer(tensor if rows is None else _picked(tensor, rows), name)
    graph.register_initializer(made)
    return made


def _picked(tensor: ir.TensorProtocol, rows: Sequence[int]) -> ir.LazyTensor:
    index = np.asarray(rows, np.int64)
    shape = ir.Shape([len(rows), *[int(dim) for dim in tensor.shape.numpy()[1:]]])

    def pick() -> ir.TensorProtocol:
        return ir.tensor(np.asarray(tensor.numpy())[index], dtype=tensor.dtype)

    picked = ir.LazyTensor(pick, dtype=tensor.dtype, shape=shape)
    picked.meta[ROWS_OF] = tensor
    return picked


def _replace(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    made, value = new.outputs[0], old.outputs[0]
    made.name, made.type, made.shape = value.name, value.type, value.shape
    operands = list(old.inputs)
    graph.insert_before(old, new)
    graph.outputs[:] = [made if output is value else output for output in graph.outputs]
    ir.convenience.replace_all_uses_with(value, made)
    graph.remove(old, safe=True)
    for operand in operands:
        drop(graph, operand)
