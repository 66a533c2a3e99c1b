"""Rewrite a tiny model's layers as the formats of quantized checkpoints, by their specifications."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

GROUP = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
Layers = dict[str, np.ndarray]
Format = tuple[dict[str, Any], Callable[[np.ndarray], tuple[Layers, np.ndarray]]]


def pack_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """Return i32[rows, words] of codes [rows, n]: code i takes bits i * bits and on of a row's bit string."""
    words = []
    for row in codes.astype(object):
        whole = sum(int(code) << (bits * index) for index, code in enumerate(row))
        count = -(-len(row) * bits // 32)
        words.append([whole >> (32 * word) & 0xFFFFFFFF for word in range(count)])
    return np.array(words, np.uint32).view(np.int32)


def pack_awq(codes: np.ndarray) -> np.ndarray:
    """Return i32[rows, n / 8] of codes [rows, n] of 4 bits; nibble i of a word holds column AWQ_ORDER[i]."""
    split = codes.astype(np.uint32).reshape(len(codes), -1, 8)
    return sum(split[:, :, column] << (4 * nibble) for nibble, column in enumerate(AWQ_ORDER)).view(np.int32)


def rounded(w: np.ndarray, bits: int, symmetric: bool, groups: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return codes [out, in], scales f16, zero points [out, groups] and what they stand for."""
    top, count = 2**bits - 1, groups.max() + 1
    low = np.stack([np.minimum(w[:, groups == one].min(axis=1), 0) for one in range(count)], axis=1)
    high = np.stack([np.maximum(w[:, groups == one].max(axis=1), 0) for one in range(count)], axis=1)
    if symmetric:
        high = np.maximum(-low, high)
        low = -high
    scale = ((high - low) / top).astype(np.float16)
    wide = scale.astype(np.float32)
    zero = np.full(scale.shape, 2 ** (bits - 1)) if symmetric else np.clip(np.rint(-low / wide), 1, top)
    zero = zero.astype(np.int64)
    codes = np.clip(np.rint(w / wide[:, groups]) + zero[:, groups], 0, top).astype(np.int64)
    return codes, scale, zero, (codes - zero[:, groups]).astype(np.float32) * wide[:, groups]


def runs(columns: int, group: int = GROUP) -> np.ndarray:
    return np.arange(columns) // group


def gptq(bits: int, *, symmetric: bool, form: str = "gptq", sort: bool = False) -> Format:
    config = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": sort, "sym": symmetric}

    def layer(w: np.ndarray) -> tuple[Layers, np.ndarray]:
        groups = runs(w.shape[1])
        if sort:
            groups = groups[np.random.default_rng(w.shape[0]).permutation(w.shape[1])]
        codes, scale, zero, values = rounded(w, bits, symmetric, groups)
        stored = zero.T - (1 if form == "gptq" else 0)
        return {
            "qweight": np.ascontiguousarray(pack_bits(codes, bits).T),
            "qzeros": pack_bits(stored, bits),
            "scales": np.ascontiguousarray(scale.T),
            "g_idx": groups.astype(np.int32),
        }, values

    return {**config, "checkpoint_format": form}, layer


def awq(*, symmetric: bool = False) -> Format:
    def layer(w: np.ndarray) -> tuple[Layers, np.ndarray]:
        codes, scale, zero, values = rounded(w, 4, symmetric, runs(w.shape[1]))
        parts = {"qweight": pack_awq(codes.T), "qzeros": pack_awq(zero.T), "scales": scale.T.copy()}
        return parts, values

    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": GROUP,
        "zero_point": True,
        "version": "gemm",
    }, layer


def compressed(bits: int, *, symmetric: bool, sort: bool = False) -> Format:
    def layer(w: np.ndarray) -> tuple[Layers, np.ndarray]:
        groups = runs(w.shape[1])
        if sort:
            groups = groups[np.random.default_rng(w.shape[0]).permutation(w.shape[1])]
        codes, scale, zero, values = rounded(w, bits, symmetric, groups)
        parts = {"weight_packed": pack_bits(codes, bits), "weight_scale": scale,
                 "weight_shape": np.array(w.shape, np.int64)}  # fmt: skip
        if not symmetric:
            parts["weight_zero_point"] = np.ascontiguousarray(pack_bits(zero.T, bits).T)
        if sort:
            parts["weight_g_idx"] = groups.astype(np.int32)
        return parts, values

    return compressed_config("pack-quantized"), layer


def compressed_config(form: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", **weights}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}


def int_bytes() -> Format:
    def layer(w: np.ndarray) -> tuple[Layers, np.ndarray]:
        scale = (np.abs(w).max(axis=1, keepdims=True) / 127.5).astype(ml_dtypes.bfloat16)
        wide = scale.astype(np.float32)
        codes = np.clip(np.rint(w / wide), -128, 127).astype(np.int8)
        return {"weight": codes, "weight_scale": scale}, codes.astype(np.float32) * wide

    return compressed_config("int-quantized", strategy="channel"), layer


def fp4(*, global_scale: bool) -> Format:
    grid = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    block = 16 if global_scale else 32

    def layer(w: np.ndarray) -> tuple[Layers, np.ndarray]:
        blocks = w.reshape(len(w), -1, block)
        ideal = np.abs(blocks).max(axis=2) / 6
        if global_scale:
            whole = np.array([448 / ideal.max()], np.float32)
            stored = (ideal * whole).astype(ml_dtypes.float8_e4m3fn)
            scale = stored.astype(np.float32) / whole
        else:
            stored = (np.ceil(np.log2(ideal)) + 127).astype(np.uint8)
            scale = np.exp2(stored.astype(np.float32) - 127)
        near = np.abs(np.abs(blocks / scale[..., None])[..., None] - grid).argmin(axis=-1)
        index = (near + np.where(blocks < 0, 8, 0)).reshape(w.shape).astype(np.uint8)
        parts = {"weight_packed": index[:, 0::2] | index[:, 1::2] << 4, "weight_scale": stored}
        if global_scale:
            parts["weight_global_scale"] = whole
        values = np.where(blocks < 0, -1, 1) * grid[near] * scale[..., None]
        return parts, values.reshape(w.shape).astype(np.float32)

    form = "nvfp4-pack-quantized" if global_scale else "mxfp4-pack-quantized"
    return compressed_config(form, num_bits=4, type="float"), layer


def fp8(strategy: str, *, compressed_tensors: bool = False) -> Format:
    """Return fp8 with one scale a `tensor`, a row (`channel`) or a `block` of 24 x 40."""
    block = (24, 40)

    def layer(w: np.ndarray) -> tuple[Layers, np.ndarray]:
        rows, columns = w.shape
        steps = {"tensor": w.shape, "channel": (1, columns), "block": block}[strategy]
        row, column = np.arange(rows) // steps[0], np.arange(columns) // steps[1]
        largest = np.zeros((row.max() + 1, column.max() + 1), np.float32)
        np.maximum.at(largest, (row[:, None], column[None, :]), np.abs(w))
        scale = (largest / 448).astype(np.float32)
        spread = scale[row][:, column]
        codes = (w / spread).astype(ml_dtypes.float8_e4m3fn)
        stored = scale.reshape(-1)[:1].reshape(()) if strategy == "tensor" else scale
        name = "weight_scale_inv" if strategy == "block" and not compressed_tensors else "weight_scale"
        return {"weight": codes, name: stored}, codes.astype(np.float32) * spread

    if compressed_tensors:
        return compressed_config("float-quantized", block_structure=list(block), type="float"), layer
    sizes = {"weight_block_size": list(block)} if strategy == "block" else {}
    return {"quant_method": "fp8", **sizes}, layer


FORMATS: dict[str, Format] = {
    "gptq 4 symmetric": gptq(4, symmetric=True),
    "gptq 4": gptq(4, symmetric=False),
    "gptq 4 v2": gptq(4, symmetric=False, form="gptq_v2"),
    "gptq 3": gptq(3, symmetric=True),
    "gptq 2": gptq(2, symmetric=False),
    "gptq 8": gptq(8, symmetric=True),
    "gptq 8 with zero points": gptq(8, symmetric=False),
    "gptq 4 sorted": gptq(4, symmetric=True, sort=True),
    "awq": awq(),
    "awq symmetric": awq(symmetric=True),
    "pack-quantized 4": compressed(4, symmetric=True),
    "pack-quantized 4 with zero points": compressed(4, symmetric=False),
    "pack-quantized 8": compressed(8, symmetric=True),
    "pack-quantized 3": compressed(3, symmetric=True),
    "pack-quantized 4 sorted": compressed(4, symmetric=True, sort=True),
    "int-quantized": int_bytes(),
    "nvfp4": fp4(global_scale=True),
    "mxfp4": fp4(global_scale=False),
    "fp8 tensor": fp8("tensor"),
    "fp8 channel": fp8("channel"),
    "fp8 block": fp8("block"),
    "float-quantized channel": fp8("channel", compressed_tensors=True),
    "float-quantized block": fp8("block", compressed_tensors=True),
}


def quantize_folder(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Rewrite the linear layers of a decoder in a format; return all weights as the file expresses them."""
    config, layer = FORMATS[name]
    weights = load_file(folder / "model.safetensors")
    stored, values = {}, {}
    for key, weight in weights.items():
        if not key.endswith("_proj.weight"):
            stored[key], values[key] = weight, weight
            continue
        parts, values[key] = layer(weight)
        module = key.removesuffix(".weight")
        stored |= {f"{module}.{part}": array for part, array in parts.items()}
        if config["quant_method"] == "gptq":
            stored.setdefault(
                f"{module}.bias", weights.get(f"{module}.bias", np.zeros(len(weight), np.float32))
            )
    save_file(
        {key: np.ascontiguousarray(array) for key, array in stored.items()}, folder / "model.safetensors"
    )
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": config}))
    return values
