"""The rows of the table of quality: each a method at a width, as the text of a pipeline."""

from dataclasses import dataclass

FRONT = "fold-constants,eliminate-dead-code,fuse-linear,fuse-attention"
MERGE = "fuse-qkv,fuse-gate-up"
BACK = "fuse-add-rms-norm,kv-layout{{page=16 dtype={kv}}},eliminate-dead-code"
ROTATE = "rotate-residual"
PEER = "llama.cpp "  # begins what stands in the place of a pipeline where a library made the weights


@dataclass(frozen=True)
class Row:
    """A method at `bits` a weight in groups of `group`; `group` 0 where the format has no such thing.

    `head_bits` are those of the embedding and the head, 8 unless the row is of plain weights. With a
    `library` the codes are of its `library_method`, on a `grid` that is symmetric or has offsets, and the
    pipeline keeps them.
    """

    name: str
    method: str
    bits: str
    group: int
    passes: str
    head_bits: int = 8
    library: str = ""
    library_method: str = ""
    grid: str = "symmetric"


def pipeline(quantize: str | None, *, rotate: bool = False, kv: str = "f16") -> str:
    """Return the text of the passes about one that quantizes."""
    parts = (FRONT, ROTATE if rotate else None, MERGE, quantize, BACK.format(kv=kv))
    return ",".join(part for part in parts if part)


def weights(  # noqa: PLR0913 - the options of a row
    method: str,
    bits: int,
    group: int = 32,
    *,
    symmetric: bool = True,
    act: int = 32,
    rotate: bool = False,
    kv: str = "f16",
    scales: int = 16,
) -> Row:
    """Return a row of quantize-weights; `act` columns of activations share a scale, 0 keeps them f32."""
    spelled = f"{'rotate-' if rotate else ''}{method}-w{bits}"
    spelled += ("" if group == 32 else f"-g{group}") + ("" if symmetric else "-asym")
    spelled += ("" if kv == "f16" else f"-kv{kv}") + ("" if act else "-a32")
    spelled += "" if scales == 16 else f"-s{scales}"
    quantize = (
        f"quantize-weights{{bits={bits} group={group} method={method} symmetric={str(symmetric).lower()} "
        f"head_bits=8 act_group={act}{'' if scales == 16 else f' scale_bits={scales}'}}}"
    )
    name = f"{'rotation + ' if rotate else ''}{method}" + ("" if symmetric else ", offsets")
    name += ("" if kv == "f16" else f", cache {kv}") + ("" if act else ", f32 activations")
    name += "" if scales == 16 else f", scales of {scales} bits"
    return Row(spelled, name, str(bits), group, pipeline(quantize, rotate=rotate, kv=kv))


def floats(format_: str, bits: str, group: int = 0) -> Row:
    """Return a row of cast-weights, which onnxruntime runs where no kernel does."""
    return Row(format_, format_, bits, group, pipeline(f"cast-weights{{format={format_}}}"), head_bits=32)


def llamacpp(kind: str, bits: str, group: int) -> Row:
    """Return a row of a file that llama.cpp wrote, read by our importer: its rounding, activations in f32."""
    return Row(f"llamacpp-{kind.lower()}", f"llama.cpp {kind}", bits, group, f"{PEER}{kind}")


def library(name: str, method: str, bits: int = 4, group: int = 32, *, symmetric: bool = True) -> Row:
    """Return a row of a library's codes, embedding and head rounded and everything computed as in ours."""
    ours = weights("rtn", bits, group, symmetric=symmetric, act=32 if symmetric else 0)
    spelled = ours.name.replace("rtn", f"{name}-{method}", 1)
    title = ours.method.replace("rtn", f"{TITLES[name]} {method}", 1)
    grid = "symmetric" if symmetric else "offsets"
    return Row(spelled, title, ours.bits, group, ours.passes, 8, name, method, grid)


TITLES = {"torchao": "torchao", "llmcompressor": "llm-compressor", "gptqmodel": "GPTQModel"}
METHODS = ("rtn", "rtn-mse", "hqq", "gptq", "awq")


def chosen(method: str, budget: float) -> Row:
    """Return a row whose layers have the bits that their sensitivity asks for, `budget` a weight in all."""
    quantize = (
        f"quantize-weights{{bits=auto budget={budget} group=32 method={method} head_bits=8 act_group=32}}"
    )
    return Row(f"{method}-auto{budget}", f"{method}, bits by layer", str(budget), 32, pipeline(quantize))


ROWS = (
    Row("plain-f32", "none", "32", 0, pipeline(None), head_bits=32),
    weights("rtn", 8),
    *(weights(method, bits) for bits in (4, 3, 2) for method in METHODS),
    *(weights(method, bits, symmetric=False) for bits in (4, 3, 2) for method in METHODS),
    chosen("gptq", 4.0),
    weights("rtn", 4, rotate=True),
    weights("gptq", 4, rotate=True),
    weights("gptq", 3, rotate=True),
    weights("rtn", 8, scales=8),
    *(weights(method, 4, scales=8) for method in METHODS),
    weights("rtn", 8, kv="int8"),
    weights("rtn", 8, kv="int4"),
    floats("e4m3", "8"),
    floats("mxfp4", "4", 32),
    floats("nvfp4", "4", 16),
    # Activations in f32, as the rows of llama.cpp have them: no kernel runs these, onnxruntime scores them.
    *(weights(method, 4, act=0) for method in METHODS),
    *(weights(method, 4, 64, symmetric=False, act=0) for method in METHODS),
    *(weights(method, 3, symmetric=False, act=0) for method in METHODS),
    library("torchao", "rtn"),
    library("torchao", "hqq"),
    library("llmcompressor", "rtn"),
    library("llmcompressor", "gptq"),
    library("llmcompressor", "awq"),
    library("gptqmodel", "gptq"),
    library("torchao", "rtn", 8),
    library("llmcompressor", "rtn", 4, 64, symmetric=False),
    library("llmcompressor", "gptq", 4, 64, symmetric=False),
    library("llmcompressor", "awq", 4, 64, symmetric=False),
    llamacpp("Q8_0", "8", 32),
    llamacpp("Q6_K", "6", 16),
    llamacpp("Q5_K_M", "5", 32),
    llamacpp("Q4_K_M", "4", 32),
    llamacpp("Q4_1", "4", 32),
    llamacpp("Q4_0", "4", 32),
    llamacpp("Q3_K_M", "3", 16),
    llamacpp("Q2_K", "2", 16),
)
