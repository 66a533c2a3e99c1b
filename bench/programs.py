"""Who is measured: tokc and its peers, each with its environment, its side module and what it loads."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

Reasons = Mapping[str, str]
NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Program:
    """A program under measurement; `lacks` says of each kind of row that it takes no part in, why."""

    name: str
    environment: str
    module: str
    form: str
    variables: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    lacks: Reasons = field(default_factory=lambda: NOTHING)


def _openvino(**settings: str) -> Mapping[str, str]:
    return {"OPENVINO_SETTINGS": json.dumps(settings)}


# Threads are scaled for tokc and the peer that decodes fastest.
UNSCALED = {"scaling": "threads are scaled for tokc and llama.cpp alone"}
SAME_AS_OPENVINO = "differs from openvino in its cache alone"

TOKC = Program("tokc", "tokc", "bench.tokc_side", "tokc")
LLAMACPP = Program("llamacpp", "llamacpp", "bench.peers.llamacpp_side", "gguf")
OPENVINO = Program("openvino", "openvino", "bench.peers.openvino_side", "openvino", lacks=UNSCALED)
OPENVINO_F16 = Program(
    "openvino-f16kv",
    "openvino",
    "bench.peers.openvino_side",
    "openvino",
    variables=_openvino(KV_CACHE_PRECISION="f16"),
    lacks={**UNSCALED, "cold_start": SAME_AS_OPENVINO, "install": SAME_AS_OPENVINO},
)
ONNXRUNTIME = Program(
    "onnxruntime",
    "onnxruntime",
    "bench.peers.onnxruntime_side",
    "onnxruntime",
    lacks={**UNSCALED, "verify": "built for its fastest prefill, it gives the last token's logits alone"},
)
CTRANSLATE2 = Program(
    "ctranslate2",
    "ctranslate2",
    "bench.peers.ctranslate2_side",
    "ctranslate2",
    lacks={
        **UNSCALED,
        "verify": "no call continues a cache with several tokens",
        "cold_start": "it brings no tokenizer",
    },
)
TORCH = Program("torch", "torch", "bench.peers.torch_side", "folder", lacks=UNSCALED)

NATIVE = (TOKC, LLAMACPP, OPENVINO, OPENVINO_F16, ONNXRUNTIME, CTRANSLATE2, TORCH)

_ONEDNN = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
# OpenVINO asks the CPU itself whether it has bfloat16 and int8 products, and then fails without them.
_PLAIN = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
AVX2 = (
    TOKC,
    replace(LLAMACPP, environment="llamacpp-x86-64-v3"),
    replace(OPENVINO, variables={**_ONEDNN, **_openvino(**_PLAIN)}),
    replace(OPENVINO_F16, variables={**_ONEDNN, **_openvino(**_PLAIN, KV_CACHE_PRECISION="f16")}),
    # Its matrix products are oneDNN's, which its own switch does not reach.
    replace(CTRANSLATE2, variables={**_ONEDNN, "CT2_FORCE_CPU_ISA": "AVX2"}),
    replace(TORCH, variables={**_ONEDNN, "ATEN_CPU_CAPABILITY": "avx2"}),
)

# The programs at each instruction set, and who cannot be held to it.
PROGRAMS = {"native": NATIVE, "x86-64-v3": AVX2}
LEFT_OUT: Mapping[str, Reasons] = {
    "native": {},
    "x86-64-v3": {"onnxruntime": "has no switch that holds it to AVX2"},
}
TARGETS = {"native": "cpu", "x86-64-v3": "cpu:x86-64-v3"}
