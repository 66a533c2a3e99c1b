"""Programs as text, and as files that load back.

The text is ONNX's own syntax. Weights are stated by type, shape and name; constants of a few elements are
written out. What a graph lacks (config, form, cache layout) stands in the model's metadata.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import get_args

import onnx
import onnx.parser
import onnx.printer
import onnx_ir as ir

from tokc.errors import VerifyFailed
from tokc.ir.program import Assets, Form, KvDtype, KvLayout, ModelConfig, Program

CONSTANT_ELEMENTS = 16  # longer or lazy initializers are weights, and not written out
EMPTY_CONFIG = ModelConfig("none", 1, 1, 1, 1, 1, 1, 1, 1, 1e-5, tied_embedding=False)
_KEY = "tokc."


def render(program: Program) -> str:
    """Return the program as text; `parse` reads it back, without the weights' data."""
    proto = ir.to_proto(_bare(program))
    weights = [tensor for tensor in proto.graph.initializer if _is_weight(tensor)]
    stated = [onnx.helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in weights]
    constants = [tensor for tensor in proto.graph.initializer if not _is_weight(tensor)]
    del proto.graph.value_info[:], proto.graph.initializer[:]
    proto.graph.value_info.extend(stated)
    proto.graph.initializer.extend(constants)
    text: str = onnx.printer.to_text(proto)
    return text


def parse(text: str) -> Program:
    """Read a program from text; weights have type and shape, and reading their data raises.

    Raises: VerifyFailed if the text is malformed.
    """
    try:
        proto = onnx.parser.parse_model(text)
    except onnx.parser.ParseError as error:
        raise VerifyFailed(f"the program's text is malformed: {error.args[0]!r}") from error
    made = {name for node in proto.graph.node for name in node.output}
    weights = [info for info in proto.graph.value_info if info.name not in made]
    kept = [info for info in proto.graph.value_info if info.name in made]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)
    proto.graph.initializer.extend(_declared(info) for info in weights)
    model = ir.from_proto(proto)
    for info in weights:
        value = model.graph.initializers[info.name]
        value.const_value = _elided(value)
    return _with_facts(model, Assets())


def dump(program: Program, stem: Path) -> Path:
    """Write STEM.onnx and STEM.txt; return the former. `load_dump` reads it back, weights and all.

    Weights that lie in a file are referred to where they are. Others are written to `weights/` beside the
    dump, once for all dumps of the folder, since their file is named by its content.
    """
    folder, name = stem.parent, stem.name
    folder.mkdir(parents=True, exist_ok=True)
    model = program.model.clone()
    for key, text in _facts(program).items():
        model.metadata_props[key] = text
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and not _is_constant(tensor):
            value.const_value = _stored(tensor, folder)
    assets = json.dumps(asdict(program.assets), default=dict).encode()
    assets_path = folder / f"assets-{hashlib.sha256(assets).hexdigest()[:16]}.json"
    assets_path.write_bytes(assets)
    model.metadata_props[f"{_KEY}assets"] = assets_path.name
    path = folder / f"{name}.onnx"
    path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
    (folder / f"{name}.txt").write_text(render(program), encoding="utf-8")
    return path


def load_dump(path: Path) -> Program:
    """Read a program that `dump` wrote; weights stay in their files until they are read.

    Raises: VerifyFailed if the file is not a dump, or lacks its assets.
    """
    model = ir.from_proto(onnx.load(path, load_external_data=False))
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            value.const_value = _located(tensor, path.parent)
    assets_name = model.metadata_props.pop(f"{_KEY}assets", None)
    assets_path = None if assets_name is None else path.parent / assets_name
    if assets_path is None or not assets_path.is_file():
        raise VerifyFailed(
            f"'{path}' is no dump of a program, or lacks its assets file",
            hint="give the .onnx file that --dump-ir wrote, in the folder it was written to",
        )
    return _with_facts(model, Assets(**json.loads(assets_path.read_bytes())))


def _bare(program: Program) -> ir.Model:
    """Return a copy whose weights hold no data."""
    model = program.model.clone()
    for key, text in _facts(program).items():
        model.metadata_props[key] = text
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and not _is_constant(tensor):
            shape = ir.Shape([int(dim) for dim in tensor.shape.numpy()])
            value.const_value = ir.ExternalTensor(
                name, 0, tensor.nbytes, tensor.dtype, shape=shape, name=name
            )
    return model


def _is_constant(tensor: ir.TensorProtocol) -> bool:
    """Return whether the data is part of the text: few elements, and at hand."""
    return tensor.size <= CONSTANT_ELEMENTS and not isinstance(tensor, (ir.ExternalTensor, ir.LazyTensor))


def _is_weight(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _declared(info: onnx.ValueInfoProto) -> onnx.TensorProto:
    """Make an initializer that states where no data is."""
    dims = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
    tensor = onnx.TensorProto(name=info.name, data_type=info.type.tensor_type.elem_type, dims=dims)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=info.name)
    return tensor


def _elided(value: ir.Value) -> ir.LazyTensor:
    """Make a weight that has no data."""
    assert value.dtype is not None, f"'{value.name}' has no type"
    assert value.shape is not None, f"'{value.name}' has no shape"

    def refuse() -> ir.TensorProtocol:
        raise VerifyFailed(f"the data of '{value.name}' is not part of a program's text")

    return ir.LazyTensor(refuse, dtype=value.dtype, shape=value.shape, name=value.name)


def _facts(program: Program) -> dict[str, str]:
    """Return what a graph lacks, as flat text."""
    facts: dict[str, str] = {f"{_KEY}form": program.form}
    if program.kv is not None:
        facts |= {f"{_KEY}kv.{key}": str(value) for key, value in asdict(program.kv).items()}
    if program.config != EMPTY_CONFIG:
        config = asdict(program.config)
        facts |= {f"{_KEY}config.{key}": _plain(value) for key, value in config.items() if value is not None}
    return facts


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _with_facts(model: ir.Model, assets: Assets) -> Program:
    """Make a program; its facts move out of the model's metadata."""
    facts = {key: model.metadata_props.pop(key) for key in list(model.metadata_props) if key.startswith(_KEY)}
    form: Form = "ragged" if facts.get(f"{_KEY}form") == "ragged" else "batch"
    config = {
        field.name: _read(facts[f"{_KEY}config.{field.name}"], str(field.type))
        for field in fields(ModelConfig)
        if f"{_KEY}config.{field.name}" in facts
    }
    return Program(
        model,
        ModelConfig(**config) if config else EMPTY_CONFIG,  # type: ignore[arg-type]
        assets,
        form,
        _kv(facts),
    )


def _kv(facts: Mapping[str, str]) -> KvLayout | None:
    page = facts.get(f"{_KEY}kv.page")
    if page is None:
        return None
    dtype = facts[f"{_KEY}kv.dtype"]
    known: KvDtype = next((one for one in get_args(KvDtype) if one == dtype), "f32")
    return KvLayout(page=int(page), dtype=known)


def _read(text: str, kind: str) -> object:
    """Read a fact as the annotation of its field says."""
    if "tuple" in kind:
        return tuple(int(word) for word in text.split())
    if "bool" in kind:
        return text == "True"
    if "float" in kind:
        return float(text)
    return int(text) if "int" in kind else text


def _stored(tensor: ir.TensorProtocol, folder: Path) -> ir.ExternalTensor:
    """Return a reference to a file that holds the tensor; write the file if there is none."""
    shape = ir.Shape([int(dim) for dim in tensor.shape.numpy()])
    if isinstance(tensor, ir.ExternalTensor):
        location = os.path.relpath(tensor.path, folder)
        return ir.ExternalTensor(
            location, tensor.offset, tensor.length, tensor.dtype, shape=shape, name=str(tensor.name)
        )
    data = tensor.tobytes()
    path = folder / "weights" / f"{hashlib.sha256(data).hexdigest()[:32]}.bin"
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.stat().st_size != len(data):
        path.write_bytes(data)
    location = path.relative_to(folder).as_posix()
    return ir.ExternalTensor(location, 0, len(data), tensor.dtype, shape=shape, name=str(tensor.name))


def _located(tensor: ir.ExternalTensor, folder: Path) -> ir.ExternalTensor:
    """Return the reference with an absolute place: onnx-ir refuses one that leaves the model's own folder."""
    path = (folder / tensor.location).resolve()
    if not path.is_file():
        raise VerifyFailed(f"the file '{path}' of weight '{tensor.name}' is missing")
    return ir.ExternalTensor(
        path.name,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=ir.Shape([int(dim) for dim in tensor.shape.numpy()]),
        name=str(tensor.name),
        base_dir=path.parent,
    )
