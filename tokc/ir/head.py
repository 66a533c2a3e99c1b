"""Find the vocabulary projection of a graph, and the hidden states that it reads."""

import onnx_ir as ir

from tokc.errors import PassFailed

FEATURES = "features"  # the output that the head reads where it is exposed, and the input of drafts
FEATURES_OUT = "features.out"  # what a draft makes for its next step
PROJECTIONS = frozenset({"Linear", "QuantLinear", "MatMul"})


def head_of(graph: ir.Graph) -> ir.Node:
    """Return the linear layer behind `logits`, past what scales or caps them.

    Raises: PassFailed if there is none.
    """
    head = graph.outputs[0].producer()
    while head is not None and head.op_type not in PROJECTIONS:
        head = next((one.producer() for one in head.inputs if one and one.producer()), None)
    if head is None or head.inputs[0] is None:
        raise PassFailed("the program has no linear layer that makes the logits")
    return head


def output_named(graph: ir.Graph, name: str) -> ir.Value | None:
    """Return an output by its name, None if the graph has none of that name."""
    return next((value for value in graph.outputs if value.name == name), None)
