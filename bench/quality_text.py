"""The table of quality as a page."""

from typing import Any

from bench.quality_rows import PEER

HEADS = (
    "method", "bits", "group", "perplexity ratio (95 %)", "mean KL, nats", "99 % KL", "same top-1",
    "weights, MB", "decode, tokens/s",
)  # fmt: skip
INTRODUCTION = """# Quality of quantization methods

SmolLM2-135M-Instruct, its weights as plain f32 (exactly what the packaged file's grid holds), quantized by
each method and compared with the model as it was imported: {windows} windows of {length} tokens of the
evaluation text that comes with tokc (held out from what is calibrated on), read with an empty cache, the
second half scored, as llama.cpp's `llama-perplexity` does. The ratio's interval is paired by window. Where
weights are quantized, embedding and head are in 8 bits and activations in int8, one scale in 32 columns;
float formats leave both as they are. The cache is in f16 unless said. Rotation unties embedding and head,
so that both are stored. The packaged file is on llama.cpp's Q4_1 grid: 4 bits with offsets in groups of 32
can find that grid again, and their rows say nothing of the method; in groups of 64 they do. Decode is one
request alone after 128 tokens, rows in turns. Made by `make quality`.

| {heads} |
|:--|--:|--:|--:|--:|--:|--:|--:|--:|
"""


def markdown(found: dict[str, Any]) -> str:
    """Return the page of what `bench.quality` wrote."""
    windows, length = found["windows"]
    text = INTRODUCTION.format(windows=windows, length=length, heads=" | ".join(HEADS))
    text += "".join(f"| {' | '.join(cells(row))} |\n" for row in found["rows"].values())
    commits = sorted({row["commit"] for row in found["rows"].values()})
    text += f"\n{found['machine']['cpu']}, {found['machine']['cores']} cores; commit {', '.join(commits)}.\n"
    if any("no_kernel" in row for row in found["rows"].values()):
        text += (
            "\nWithout a rate: no CPU kernel runs the format, the program was scored in onnxruntime;"
            " or the row was not timed.\n"
        )
    if any(row.get("library") for row in found["rows"].values()):
        text += (
            "\nRows of torchao, llm-compressor and GPTQModel are codes and scales of these libraries at "
            "their defaults,\ncalibrated on the windows that tokc calibrates on, and run by tokc as its own "
            "rows are: embedding and head in 8 bits.\n"
        )
    if any(row["passes"].startswith(PEER) for row in found["rows"].values()):
        text += (
            "\nllama.cpp's rows are files of its own quantize (no importance matrix) as tokc imports them, "
            "activations in f32;\nits K types fall back to others where a row is not a multiple of 256, "
            "as it is in this model.\n"
        )
    return text


def cells(row: dict[str, Any]) -> list[str]:
    """Return a row's cells."""
    figures, speed = row["divergence"], row.get("decode_tokens_per_s")
    ratio = figures["ppl_ratio"]
    interval = "" if ratio["low"] is None else f" ({ratio['low']:.4f}–{ratio['high']:.4f})"
    return [
        row["method"],
        row["bits"],
        str(row["group"] or "–"),
        f"{ratio['figure']:.4f}{interval}",
        f"{figures['kl_mean']['figure']:.5f}",
        f"{figures['kl_p99']:.4f}",
        f"{figures['top1_agree']['figure']:.2%}",
        f"{row['weight_bytes'] / 1e6:.1f}",
        "–" if speed is None else f"{speed['median']:.0f}",
    ]
