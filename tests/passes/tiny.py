"""One tiny decoder layer as the fusing passes leave it, in several shapes."""

import logging

import numpy as np
import onnx_ir as ir

from tokc.ir.program import ModelConfig, Program

HIDDEN, HEADS, KV_HEADS, DIM, VOCAB, CONTEXT = 64, 4, 2, 16, 96, 64

CONFIG = ModelConfig(
    family="tiny",
    hidden=HIDDEN,
    layers=1,
    heads=HEADS,
    kv_heads=KV_HEADS,
    head_dim=DIM,
    intermediate=96,
    vocab=VOCAB,
    context=CONTEXT,
    norm_epsilon=1e-5,
    tied_embedding=True,
)

_HEAD = """
<ir_version: 11, opset_import: ["": 23, "tokc": 1]>
tiny (
    int64[batch, seq] input_ids, int64[batch, seq] position_ids,
    float[batch, 2, past, 16] "past_key_values.0.key", float[batch, 2, past, 16] "past_key_values.0.value"
) => (
    float[batch, seq, 96] logits,
    float[batch, 2, total, 16] "present.0.key", float[batch, 2, total, 16] "present.0.value"
) {
    x = Gather <axis = 0> ("model.embed_tokens.weight", input_ids)
    h = RMSNormalization <axis = -1, epsilon = 1e-5> (x, "norm.weight")
"""
_PROJECT = {
    True: """
    qkv = tokc.Linear (h, "qkv.weight")
    q, k, v = Split <axis = -1> (qkv, "qkv.sizes")
""",
    False: """
    q = tokc.Linear (h, "q.weight", "q.bias")
    k = tokc.Linear (h, "k.weight")
    v = tokc.Linear (h, "v.weight")
""",
}
_HEADS = """
    qr = Reshape (q, "q.shape")
    kr = Reshape (k, "kv.shape")
    vr = Reshape (v, "kv.shape")
"""
_NORM = {
    True: """
    qn = RMSNormalization <axis = -1, epsilon = 1e-6> (qr, "q_norm.weight")
    kn = RMSNormalization <axis = -1, epsilon = 1e-6> (kr, "k_norm.weight")
    qt = Transpose <perm = [0, 2, 1, 3]> (qn)
    kt = Transpose <perm = [0, 2, 1, 3]> (kn)
""",
    False: """
    qt = Transpose <perm = [0, 2, 1, 3]> (qr)
    kt = Transpose <perm = [0, 2, 1, 3]> (kr)
""",
}
_TAIL = """
    vt = Transpose <perm = [0, 2, 1, 3]> (vr)
    qe = RotaryEmbedding (qt, "rope.cos", "rope.sin", position_ids)
    ke = RotaryEmbedding (kt, "rope.cos", "rope.sin", position_ids)
    total_key = Concat <axis = 2> ("past_key_values.0.key", ke)
    mask = tokc.CausalMask <window = WINDOW> (position_ids, total_key)
    y, "present.0.key", "present.0.value" = Attention <scale = 0.25>
        (qe, ke, vt, mask, "past_key_values.0.key", "past_key_values.0.value")
    yt = Transpose <perm = [0, 2, 1, 3]> (y)
    yf = Reshape (yt, "out.shape")
    o = tokc.Linear (yf, "o.weight")
    s = Add (x, o)
    n = RMSNormalization <axis = -1, epsilon = 1e-5> (s, "norm.weight")
    gu = tokc.Linear (n, "gate_up.weight")
    a = tokc.GatedActivation <activation = "silu"> (gu)
    d = tokc.Linear (a, "down.weight")
    s2 = Add (s, d)
    f = RMSNormalization <axis = -1, epsilon = 1e-5> (s2, "norm.weight")
    logits = tokc.Linear (f, "model.embed_tokens.weight")
}
"""


def tiny_program(*, merged: bool = True, normed: bool = False, window: int = 0, seed: int = 0) -> Program:
    """Return the layer: q, k and v in one linear layer or in three, their heads normed or not."""
    text = _HEAD + _PROJECT[merged] + _HEADS + _NORM[normed] + _TAIL.replace("WINDOW", str(window))
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # weights are named before they are given
    model = ir.from_onnx_text(text)
    made = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, array in _weights(np.random.default_rng(seed)).items():
        if name in made:
            value = made[name]
            value.const_value = ir.tensor(array, name=name)
            value.shape, value.type = ir.Shape(array.shape), ir.TensorType(value.const_value.dtype)
            model.graph.register_initializer(value)
    return Program(model, CONFIG)


def _weights(random: np.random.Generator) -> dict[str, np.ndarray]:
    def normal(*shape: int) -> np.ndarray:
        values: np.ndarray = random.standard_normal(shape) / np.sqrt(shape[-1])
        return values.astype(np.float32)

    angles = np.arange(CONTEXT)[:, None] * 10000.0 ** (-np.arange(0, DIM, 2) / DIM)
    width, kv_width = HEADS * DIM, KV_HEADS * DIM
    return {
        "model.embed_tokens.weight": normal(VOCAB, HIDDEN),
        "norm.weight": 1 + normal(HIDDEN),
        "q_norm.weight": 1 + normal(DIM),
        "k_norm.weight": 1 + normal(DIM),
        "qkv.weight": normal(width + 2 * kv_width, HIDDEN),
        "q.weight": normal(width, HIDDEN),
        "q.bias": normal(width),
        "k.weight": normal(kv_width, HIDDEN),
        "v.weight": normal(kv_width, HIDDEN),
        "o.weight": normal(HIDDEN, width),
        "gate_up.weight": normal(2 * CONFIG.intermediate, HIDDEN),
        "down.weight": normal(HIDDEN, CONFIG.intermediate),
        "rope.cos": np.cos(angles).astype(np.float32),
        "rope.sin": np.sin(angles).astype(np.float32),
        "qkv.sizes": np.array([width, kv_width, kv_width]),
        "q.shape": np.array([0, 0, HEADS, DIM]),
        "kv.shape": np.array([0, 0, KV_HEADS, DIM]),
        "out.shape": np.array([0, 0, width]),
    }
