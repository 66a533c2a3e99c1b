"""Let the hidden states that the head reads be an output, for drafts to go on from."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from tokc.errors import PassFailed
from tokc.ir.head import FEATURES, head_of, output_named
from tokc.ir.program import Program


@dataclass(frozen=True)
class ExposeFeatures:
    """Make the hidden states behind the last norm an output beside the logits.

    Before: ``x = RMSNormalization(h, w); logits = MatMul(x, head)``; the outputs are logits and cache
    After:  the same nodes; the outputs are logits, cache and ``features = x``

    Features are f32 [batch, seq, hidden], of every token; [tokens, hidden] once kv-layout has run. They are
    what drafts read and are trained on (Li et al. 2024, EAGLE, arXiv:2401.15077; Cai et al. 2024, Medusa,
    arXiv:2401.10774). Runs before kv-layout. Costs nothing but the buffer. Exact, bit by bit.
    """

    name: ClassVar[str] = "expose-features"
    exact: ClassVar[bool] = True

    def run(self, program: Program) -> Program:
        if output_named(program.graph, FEATURES) is not None:
            return program
        if program.form != "batch":
            raise PassFailed(
                "expose-features reads programs in batch form",
                hint="name it before kv-layout in the pipeline",
            )
        copy = program.copy()
        features = head_of(copy.graph).inputs[0]
        assert features is not None, "a head reads something"
        features.name, features.type = FEATURES, ir.TensorType(ir.DataType.FLOAT)
        features.shape = ir.Shape(["batch", "seq", program.config.hidden])
        copy.graph.outputs.append(features)
        return copy
