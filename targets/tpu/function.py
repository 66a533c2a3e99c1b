"""Makes the JAX function of a step from its description, and the shapes that it takes."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from tokc.targets.tpu.rows import ROWS, Run
from tokc.targets.tpu.step import MODEL_AXIS, Axes, Bucket, Step, Weight

Array = Any
Caches = tuple[tuple[Array, ...], ...]
Struct = Any  # jax.ShapeDtypeStruct


def function_of(step: Step, mesh: Any = None) -> Any:
    """Return ``f(weights, caches, input_ids, positions, sequences, block_tables, logit_rows)``.

    Shapes: weights by name, caches a tuple of arrays a layer (see `Cache`), input_ids, positions, sequences
        i32[tokens] (position -1 pads), block_tables i32[seqs, blocks], logit_rows i32[seqs]
        -> logits f32[seqs, vocab], caches.
    """

    def run(
        weights: Mapping[str, Array],
        caches: Caches,
        *batch: Array,
    ) -> tuple[Array, Caches]:
        input_ids, positions, sequences, block_tables, logit_rows = batch
        state = Run(step, positions, sequences, block_tables, list(caches), mesh)
        values = state.values
        values.update(weights)
        values.update(input_ids=input_ids, logit_rows=logit_rows)
        for node in step.nodes:
            operands = [None if name is None else values[name] for name in node.inputs]
            made = ROWS[node.op](state, node, *operands)
            values.update(zip(node.outputs, made if isinstance(made, tuple) else (made,), strict=True))
        return values[step.logits], tuple(state.caches)

    return run


def parameter(weight: Weight, platform: str) -> tuple[tuple[int, ...], str]:
    """Return the shape and dtype with which the function takes a weight.

    A TPU has arrays of four-bit integers; elsewhere a byte holds two, as in the file.
    """
    if weight.dtype in {"int4", "uint4"} and platform != "tpu":
        return (*weight.shape[:-1], weight.shape[-1] // 2), "uint8"
    return weight.shape, weight.dtype


def arguments(step: Step, bucket: Bucket, pages: Any, mesh: Any = None) -> tuple[Any, ...]:
    """Return the shapes of the function's arguments; `pages` is a number or a symbol, the scratch page apart.

    With a mesh, each is placed on it as the step says.
    """

    def struct(shape: Sequence[Any], dtype: str, axes: Axes = ()) -> Struct:
        place = None if mesh is None else NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype), sharding=place)

    weights = {each.name: struct(*parameter(each, step.platform), axes=each.axes) for each in step.weights}
    cache = step.cache
    shape = (pages + 1, cache.page, 2 * cache.kv_heads, cache.dim)
    layer = [struct(shape, cache.dtype, cache.axes)]
    if cache.dtype == "int8":
        layer.append(struct(shape[:3], "float32", cache.axes[:3]))
    per_token = struct((bucket.tokens,), "int32")
    return (
        weights,
        (tuple(layer),) * cache.layers,
        *(per_token, per_token, per_token),
        struct((bucket.seqs, cache.blocks), "int32"),
        struct((bucket.seqs,), "int32"),
    )


def results(step: Step, mesh: Any) -> Any:
    """Return where the results lie on a mesh: logits whole on every chip, caches as they were given."""
    if mesh is None:
        return None
    whole = NamedSharding(mesh, PartitionSpec())
    cache = step.cache
    layer = [NamedSharding(mesh, PartitionSpec(*cache.axes))]
    if cache.dtype == "int8":
        layer.append(NamedSharding(mesh, PartitionSpec(*cache.axes[:3])))
    return whole, (tuple(layer),) * cache.layers


def mesh_of(
    chips: int, devices: Sequence[Any] | None = None, topology: Mapping[str, Any] | None = None
) -> Any:
    """Return a mesh of `chips` over one axis, of `devices` if given, else of none in particular.

    What `topology` tells of its chips is what Pallas kernels are written for.
    """
    if devices is not None:
        import numpy as np

        return jax.sharding.Mesh(np.array(devices[:chips]), (MODEL_AXIS,))
    if topology is None:
        return jax.sharding.AbstractMesh((chips,), (MODEL_AXIS,))
    from jax._src.mesh import AbstractDevice

    device = AbstractDevice(device_kind=topology["kind"], num_cores=topology["cores"], platform="tpu")
    return jax.sharding.AbstractMesh((chips,), (MODEL_AXIS,), abstract_device=device)
