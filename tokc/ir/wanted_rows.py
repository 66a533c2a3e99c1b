"""Compute the rows that are asked for only, from the last node on that looks at other rows."""

import onnx_ir as ir


def pick_rows(graph: ir.Graph, rows: ir.Value) -> None:
    """Put a Gather by `rows` between what attention needs of every token and what follows, in place.

    Values that cross there, and per-token inputs that only the wanted rows read, are gathered once each.
    """
    needed = _leading_to([node for node in graph if node.op_type == "PagedAttention"])
    picked: dict[ir.Value, ir.Value] = {}
    per_token = {value for value in graph.inputs if value.shape is not None and _by_token(value)}
    for node in [node for node in graph if node not in needed]:
        for index, value in enumerate(node.inputs):
            if value is None or not (value.producer() in needed or value in per_token):
                continue
            if value not in picked:
                gather = ir.node("Gather", [value, rows], {"axis": 0})
                picked[value] = made = gather.outputs[0]
                made.name, made.type = f"{value.name}.rows", value.type
                if value.shape is not None:
                    made.shape = ir.Shape(["rows", value.shape[-1]])
                graph.insert_before(node, gather)
            node.replace_input_with(index, picked[value])


def _by_token(value: ir.Value) -> bool:
    assert value.shape is not None, "the caller has looked"
    return str(value.shape[0]) in {"tokens", "batch"}


def _leading_to(nodes: list[ir.Node]) -> set[ir.Node]:
    """Return the nodes and all that they depend on."""
    found: set[ir.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [maker for one in node.inputs if one is not None and (maker := one.producer())]
    return found
