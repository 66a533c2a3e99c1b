"""Quantizes weights layer after layer, by what each reads once the layers before it are quantized."""

import hashlib
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_ir as ir

from tokc.artifact.writer import written_aside
from tokc.errors import PassFailed, TokcError
from tokc.ir.program import Program
from tokc.passes.quantization.grid import F32, Grid, Quantized
from tokc.passes.quantization.pack import Packed, pack
from tokc.passes.quantization.weights import require_finite
from tokc.quality.calibration import Layer, Statistics, calibration, layers


class CalibratedMethod(Protocol):
    """Quantize one weight by what its layer reads; a method that needs a text is a class like this."""

    def quantize(self, w: F32, grid: Grid, statistics: Statistics) -> Quantized:
        """Return the codes and scales of `w`, f32 [out, in].

        Raises: NotFinite if `w` holds an infinity or a NaN.
        """


@dataclass(frozen=True)
class Job:
    """One weight to quantize: how it is read in f32, and the grid that it goes to."""

    read: Callable[[], F32]
    grid: Grid


def quantize_in_order(
    program: Program,
    jobs: Mapping[ir.Value, Job],
    readers: Mapping[ir.Value, Collection[ir.Node]],
    method: CalibratedMethod,
    purpose: str,
) -> dict[ir.Value, Packed]:
    """Return every weight of `jobs` on its grid; `readers` are the linear layers that read each.

    A weight that several layers read is quantized for the first. Finished layers are kept aside where the
    calibration says so, apart for each `purpose`, and found again by the next run of the same.
    Raises: PassFailed if the program cannot be cut or a weight is not finite; TokcError if no text can be
        read to it.
    """
    on = calibration()
    kept = Unfinished(on.unfinished, purpose)
    done: dict[ir.Value, Quantized] = {}
    linears = [node for value in jobs for node in readers[value]]
    for layer in layers(program, linears, lambda value: jobs[value].read(), on):
        known = [value for value in layer.constants if value in done]
        new = [value for value in layer.constants if value not in done]
        found = kept.fetch(layer.number, new) or _quantized(layer, new, jobs, method)
        kept.keep(layer.number, list(found.values()))
        done |= found
        for value in (*known, *new):
            layer.constants[value] = jobs[value].grid.dequantize(done[value])
    return {value: pack(str(value.name), quantized) for value, quantized in done.items()}


def _quantized(
    layer: Layer, values: Collection[ir.Value], jobs: Mapping[ir.Value, Job], method: CalibratedMethod
) -> dict[ir.Value, Quantized]:
    statistics = layer.collect()
    found: dict[ir.Value, Quantized] = {}
    for value, read in _inputs(layer):
        if value not in values or value in found:
            continue
        try:
            with require_finite(str(value.name)):
                found[value] = method.quantize(layer.constants[value], jobs[value].grid, statistics[read])
        except np.linalg.LinAlgError as error:
            problem = f"what the layer of weight '{value.name}' reads is not finite"
            raise PassFailed(problem, hint="the model's file is damaged") from error
    return found


def _inputs(layer: Layer) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Return the weight and the input of each linear layer."""
    for node in layer.linears:
        read, value = node.inputs[0], node.inputs[1]
        assert read is not None, "a Linear has an input"
        assert value is not None, "a Linear has a weight"
        yield value, read


class Unfinished:
    """The finished layers of a run that is under way, a folder each; without a folder nothing is kept."""

    def __init__(self, folder: Path | None, purpose: str) -> None:
        self._folder = None if folder is None else folder / hashlib.sha256(purpose.encode()).hexdigest()[:16]

    def fetch(self, number: int, values: Collection[ir.Value]) -> dict[ir.Value, Quantized] | None:
        """Return what was kept of a layer, None if there is nothing that fits."""
        path = self._path(number)
        if path is None or not path.is_dir():
            return None
        found = [_load(path, index) for index in range(len(values))]
        whole = [one for one in found if one is not None]
        if len(whole) < len(found):
            shutil.rmtree(path, ignore_errors=True)
            return None
        return dict(zip(values, whole, strict=True))

    def keep(self, number: int, found: Collection[Quantized]) -> None:
        """Keep a layer's weights, written aside then renamed; a full disk costs the layer, not the run."""
        path = self._path(number)
        if path is None or path.exists():
            return
        with suppress(TokcError), written_aside(path) as aside:
            for index, one in enumerate(found):
                for part, array in (("q", one.codes), ("scale", one.scale), ("offset", one.offset)):
                    if array is not None:
                        np.save(aside / f"{index}.{part}.npy", array)

    def _path(self, number: int) -> Path | None:
        return None if self._folder is None else self._folder / f"{number:04d}"


def _load(path: Path, index: int) -> Quantized | None:
    files = {part: path / f"{index}.{part}.npy" for part in ("q", "scale", "offset")}
    try:
        offset = np.load(files["offset"]) if files["offset"].is_file() else None
        return Quantized(np.load(files["q"]), np.load(files["scale"]), offset)
    except (OSError, ValueError):
        return None
