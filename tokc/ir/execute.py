"""Run a program in onnxruntime: the oracle that every pass and every kernel is compared with."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from tokc.ir.ops import expand_functions
from tokc.ir.program import Program

Array = npt.NDArray[np.generic]

INLINE_BYTES = 1024  # smaller initializers stay in the model's own file
_IN_PLACE = frozenset(
    ir.DataType[name] for name in ("FLOAT", "FLOAT16", "DOUBLE", "INT8", "UINT8", "INT32", "INT64", "BOOL")
)


class Session:
    """Hold a program that is ready to run.

    Weights of numpy's own types are handed over in place, others are copied once. Weights are not folded:
    each is unpacked to f32 when it is read, with several copies of it alive for that while.
    """

    def __init__(self, program: Program, threads: int = 2, *, keep_memory: bool = False) -> None:
        """Prepare a program; `keep_memory` is for one that runs many times and holds it between runs.

        Without it memory goes back after each value's last use: half as much is held, and a run over
        hundreds of tokens takes up to four times as long.
        """
        self.input_names = [str(value.name) for value in program.graph.inputs]
        self.output_names = [str(value.name) for value in program.graph.outputs]
        model, weights = _without_weights(expand_functions(program.model))
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = keep_memory
        # Otherwise a DequantizeLinear before a MatMul becomes a kernel that rounds the activations to int8.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        options.add_session_config_entry("session.disable_prepacking", "1")
        self._kept = _hand_over(options, weights)
        self._session = ort.InferenceSession(
            ir.to_proto(model).SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["ConstantFolding"],
        )

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute every output."""
        values = self._session.run(self.output_names, dict(feeds))
        return dict(zip(self.output_names, values, strict=True))

    def __enter__(self) -> Self:
        """Return the session."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free the session and the weights it holds."""
        del self._session
        self._kept = []


def execute(program: Program, feeds: Mapping[str, Array], threads: int = 2) -> dict[str, Array]:
    """Run a program once."""
    with Session(program, threads) as session:
        return session.run(feeds)


def standard_onnx(program: Program) -> ir.Model:
    """Return a model that any ONNX runtime reads: the `tokc` ops are functions over standard ones."""
    return expand_functions(program.model)


def save_onnx(program: Program, path: Path, *, weights: bool = True) -> None:
    """Write a standard ONNX file; weights go to `PATH.data` beside it, or are named but left out."""
    model = standard_onnx(program)
    if weights:
        ir.save(model, path, external_data=f"{path.name}.data")
    else:
        path.write_bytes(_bytes(model))


def onnx_bytes(program: Program) -> bytes:
    """Return a standard ONNX file whose weights are named, typed and shaped, and left out."""
    return _bytes(standard_onnx(program))


def _bytes(model: ir.Model) -> bytes:
    bare, _ = _without_weights(model)
    serialized: bytes = ir.to_proto(bare).SerializeToString(deterministic=True)
    return serialized


def _without_weights(model: ir.Model) -> tuple[ir.Model, dict[str, ir.TensorProtocol]]:
    """Exchange the large initializers for references that hold no data; return these by name.

    The model is changed in place.
    """
    weights: dict[str, ir.TensorProtocol] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= INLINE_BYTES:
            continue
        weights[name] = tensor
        value.const_value = ir.ExternalTensor(
            name,
            0,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape([int(dim) for dim in tensor.shape.numpy()]),
            name=name,
        )
    return model, weights


def _hand_over(options: ort.SessionOptions, weights: Mapping[str, ir.TensorProtocol]) -> list[object]:
    """Give onnxruntime the weights; return what must live as long as the session."""
    kept: list[object] = []
    whole = {name: tensor for name, tensor in weights.items() if tensor.dtype in _IN_PLACE}
    values = [ort.OrtValue.ortvalue_from_numpy(_contiguous(tensor)) for tensor in whole.values()]
    if values:
        options.add_external_initializers(list(whole), values)
        kept.extend(values)
    packed = [(name, tensor.tobytes()) for name, tensor in weights.items() if name not in whole]
    if packed:
        options.add_external_initializers_from_files_in_memory(
            [name for name, _ in packed], [data for _, data in packed], [len(data) for _, data in packed]
        )
        kept.extend(data for _, data in packed)
    return kept


def _contiguous(tensor: ir.TensorProtocol) -> Array:
    array: Array = np.ascontiguousarray(tensor.numpy())
    return array
