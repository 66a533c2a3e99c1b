"""GGUF files compute what the same weights compute in transformers, and grids are kept to the bit."""

from pathlib import Path

import gguf
import numpy as np
import onnx_ir as ir
import pytest
import torch

from tests.importers.gguf_writing import (
    ARCHITECTURES,
    Kind,
    gguf_model,
    gguf_name,
    unpermuted,
    write_gguf,
    write_sizes,
)
from tests.importers.running import logits
from tokc.errors import ImportRefused
from tokc.importers import import_model, load_gguf
from tokc.importers.checkpoint import Dense, Grid
from tokc.importers.gguf_file import GgufFile
from tokc.importers.gguf_grids import PLAIN
from tokc.ir.program import Program
from tokc.pipeline import Pipeline
from tokc.quality.divergence import divergence

IDS = np.random.default_rng(0).integers(3, 96, (2, 24))
TOLERANCE = 1e-4
PROJECTED = ("self_attn.q_proj", "mlp.down_proj")
WRITTEN = (Kind.F32, Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0)


def with_weights(model: torch.nn.Module, weights: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weights[name].reshape(parameter.shape).copy()))
        return model(torch.tensor(IDS)).logits.numpy()


@pytest.mark.parametrize("kind", WRITTEN, ids=lambda kind: kind.name)
def test_every_type_that_can_be_written_equals_transformers(kind: Kind, tmp_path: Path) -> None:
    model = gguf_model("llama")
    weights = write_gguf(model, "llama", tmp_path / "m.gguf", kind)
    assert (
        np.abs(logits(load_gguf(tmp_path / "m.gguf"), IDS) - with_weights(model, weights)).max() < TOLERANCE
    )


def test_a_mixture_of_k_types_equals_transformers_and_keeps_its_quality_in_the_passes(tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2}
    model = gguf_model("llama", **sizes)
    wide = ("v_proj.weight", "down_proj.weight", "embed_tokens.weight")
    weights = write_gguf(
        model, "llama", tmp_path / "m.gguf", Kind.Q4_K, lambda n: Kind.Q6_K if n.endswith(wide) else Kind.Q4_K
    )
    program = load_gguf(tmp_path / "m.gguf")
    want = with_weights(model, weights)
    assert np.abs(want).max() > 0.1
    assert np.abs(logits(program, IDS) - want).max() < TOLERANCE
    lowered = Pipeline.parse("fuse-linear,quantize-weights{act_group=0}").run(program)
    codes = {name: lowered.graph.initializers[f"model.layers.0.{name}.weight.q"].dtype for name in PROJECTED}
    assert codes == dict(zip(PROJECTED, (ir.DataType.UINT4, ir.DataType.INT8), strict=True))
    assert divergence(logits(program, IDS), logits(lowered, IDS)).kl_mean < 1e-3


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_every_family_equals_transformers(family: str, tmp_path: Path) -> None:
    model = gguf_model(family)
    weights = write_gguf(model, family, tmp_path / "m.gguf", Kind.Q4_0)
    program = import_model(tmp_path)
    want = with_weights(model, weights)
    assert np.abs(logits(program, IDS) - want).max() < TOLERANCE
    assert np.abs(logits(program, IDS, cuts=(13, 14)) - want).max() < TOLERANCE


@pytest.mark.parametrize(
    ("kind", "inputs"), [(Kind.Q4_0, "q scale"), (Kind.Q4_1, "q scale offset"), (Kind.Q8_0, "q scale")]
)
def test_grids_stay_packed(kind: Kind, inputs: str, tmp_path: Path) -> None:
    write_gguf(gguf_model("llama"), "llama", tmp_path / "m.gguf", kind)
    program = load_gguf(tmp_path / "m.gguf")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert name not in program.graph.initializers
    made = next(node for node in program.graph if node.outputs[0].name == name)
    assert made.op_type == "BlockDequantize"
    assert [str(value.name) for value in made.inputs if value] == [
        f"{name}.{part}" for part in inputs.split()
    ]
    tensor = program.graph.initializers[f"{name}.q"].const_value
    assert tensor is not None
    assert tensor.dtype == (ir.DataType.INT8 if kind is Kind.Q8_0 else ir.DataType.UINT4)
    assert tensor.nbytes * 8 == tensor.size * tensor.dtype.bitwidth


DEQUANTIZED = [kind for kind in Kind if kind in gguf.quants._type_traits or kind in {Kind.F32, Kind.F16}]


@pytest.mark.parametrize("kind", DEQUANTIZED, ids=lambda kind: kind.name)
def test_every_type_that_the_package_dequantizes_is_read_to_the_bit(kind: Kind, tmp_path: Path) -> None:
    path, (block, size) = tmp_path / "m.gguf", gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(1).integers(0, 60, (8, 512 // block * size), dtype=np.uint8)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("blk.0.attn_q.weight", data, raw_shape=data.shape, raw_dtype=kind)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    tensor = GgufFile.open(path).tensors["blk.0.attn_q.weight"]
    order = np.array([3, 0, 1, 2, 7, 6, 5, 4])
    assert isinstance(tensor.weight(), Dense if kind in PLAIN else Grid)
    want = gguf.dequantize(data, kind)
    assert tensor.shape == (8, 512)
    np.testing.assert_array_equal(values(tensor.weight()), want)
    np.testing.assert_array_equal(values(tensor.weight(order)), want[order])


def values(weight: Dense | Grid) -> np.ndarray:
    if isinstance(weight, Dense):
        return weight.tensor.numpy()
    scale = np.repeat(weight.scale.numpy().astype(np.float32), weight.block_size, axis=1)
    whole = (weight.q.numpy().astype(np.float32) - weight.zero_point) * scale
    if weight.offset is None:
        return whole
    return whole + np.repeat(weight.offset.numpy().astype(np.float32), weight.block_size, axis=1)


@pytest.mark.parametrize("kept", [3, 20, 300, 2000, -1000])
def test_a_truncated_file_is_refused(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(gguf_model("llama"), "llama", path, Kind.Q4_0)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ImportRefused) as refused:
        load_gguf(path)
    assert refused.value.where == str(path)
    assert refused.value.hint
    assert any(word in refused.value.problem for word in ("truncated", "not a GGUF file"))


def split_model(path: Path) -> list[Path]:
    whole, tensors = path / "whole.gguf", []
    write_gguf(gguf_model("llama"), "llama", whole, Kind.Q4_0)
    parts = [path / f"m-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
    tensors = gguf.GGUFReader(whole).tensors
    for number, part in enumerate(parts):
        writer = gguf.GGUFWriter(part, "llama")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", len(parts))
        if number == 0:
            write_sizes(writer, "llama", gguf_model("llama").config)
        for tensor in tensors[number::3]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        for write in (
            writer.write_header_to_file,
            writer.write_kv_data_to_file,
            writer.write_tensors_to_file,
        ):
            write()
        writer.close()
    return parts


def test_the_parts_of_a_split_file_are_read_like_one(tmp_path: Path) -> None:
    parts = split_model(tmp_path)
    want = logits(load_gguf(tmp_path / "whole.gguf"), IDS)
    (tmp_path / "whole.gguf").unlink()
    program = import_model(tmp_path)
    np.testing.assert_array_equal(logits(program, IDS), want)
    assert set(program.assets.provenance) == {part.name for part in parts}
    assert load_gguf(parts[1]).config == program.config
    parts[2].unlink()
    with pytest.raises(ImportRefused, match=r"part 'm-00003-of-00003\.gguf' of the model is missing"):
        load_gguf(parts[0])
    with pytest.raises(ImportRefused, match="is the first of 3 files"):
        load_gguf(parts[0].rename(tmp_path / "m.gguf"))


def test_a_type_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    data = np.zeros((2, 40), np.uint8)
    writer.add_tensor("blk.0.attn_q.weight", data, raw_shape=data.shape, raw_dtype=Kind.Q8_1)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    with pytest.raises(ImportRefused, match=r"'blk\.0\.attn_q\.weight' is of type Q8_1; supported are F32"):
        GgufFile.open(path).tensors["blk.0.attn_q.weight"].weight()


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        ImportRefused, match="unknown architecture 'mamba'; supported in GGUF are llama, qwen2"
    ):
        load_gguf(path)


def test_two_files_in_a_folder_are_refused(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ImportRefused, match=r"several GGUF files: a\.gguf, b\.gguf"):
        import_model(tmp_path)


def test_smollm2_is_imported_without_loss(
    smollm2: Program, smollm2_path: Path, smollm2_reader: gguf.GGUFReader
) -> None:
    file = GgufFile.open(smollm2_path)
    reader = smollm2_reader
    assert len(reader.tensors) == len(file.tensors)
    for tensor in reader.tensors:
        want = gguf.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(values(file.tensors[tensor.name].weight()), want)
    assert smollm2.weight_bytes() < smollm2_path.stat().st_size * 1.05


def test_smollm2_equals_transformers(
    smollm2: Program, smollm2_path: Path, smollm2_reader: gguf.GGUFReader
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    config = AutoConfig.from_pretrained(smollm2_path.parent, gguf_file=smollm2_path.name)
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.tie_weights()
    stored = {tensor.name: tensor for tensor in smollm2_reader.tensors}
    ids = np.random.default_rng(3).integers(100, 40000, (1, 48))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = stored[gguf_name(name, "llama")]
            array = unpermuted(gguf.dequantize(tensor.data, tensor.tensor_type), name, config)
            parameter.copy_(torch.from_numpy(array.copy()))
        want = model(torch.tensor(ids)).logits.numpy()
    assert np.abs(logits(smollm2, ids, cuts=(40, 41)) - want).max() < 1e-3
