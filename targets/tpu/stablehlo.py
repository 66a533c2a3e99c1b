"""Writes an artifact's steps as plain StableHLO, in a process of its own: `python -m ... ARTIFACT OUT PAGES`.

What other compilers take has one size: the cache is fixed at PAGES pages, the scratch page among them. Each
step is a portable artifact of StableHLO, `step_TxS.mlirbc`; `signature.json` says what its arguments are.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
from jax import export

CACHES = 1
WEIGHTS = "model.safetensors"


def sized(exported: Any, pages: int) -> Any:
    """Return an exported step again, with a cache of `pages` pages where it was left open."""
    arguments, _ = jax.tree.unflatten(
        exported.in_tree,
        [
            jax.ShapeDtypeStruct(
                tuple(size if isinstance(size, int) else pages for size in aval.shape), aval.dtype
            )
            for aval in exported.in_avals
        ],
    )
    call = jax.jit(exported.call, donate_argnums=(CACHES,))
    return export.export(call, platforms=exported.platforms)(*arguments)


def signature(exported: Any) -> list[dict[str, Any]]:
    """Return the arguments of a step in the order of its parameters: name, dtype and shape."""
    arguments, _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    weights, caches, *batch = arguments
    names = ("input_ids", "positions", "sequences", "block_tables", "logit_rows")
    named = [(name, weights[name]) for name in sorted(weights)]
    for layer, arrays in enumerate(caches):
        named += [(f"kv.{layer}{suffix}", each) for suffix, each in zip(("", ".scale"), arrays, strict=False)]
    named += zip(names, batch, strict=True)
    return [{"name": name, "dtype": aval.dtype.name, "shape": list(aval.shape)} for name, aval in named]


def write(artifact: Path, out: Path, pages: int) -> None:
    """Write every step, the signatures, and the weights that they take."""
    index = json.loads((artifact / "kernels" / "xla.json").read_text())
    signatures = {}
    for bucket in index["buckets"]:
        blob = (artifact / "kernels" / bucket["file"]).read_bytes()
        step = sized(export.deserialize(bytearray(blob)), pages)
        name = Path(bucket["file"]).stem
        (out / f"{name}.mlirbc").write_bytes(step.mlir_module_serialized)
        signatures[name] = {
            "tokens": bucket["tokens"],
            "seqs": bucket["seqs"],
            "arguments": signature(step),
            "results": [{"dtype": aval.dtype.name, "shape": list(aval.shape)} for aval in step.out_avals],
        }
    (out / "signature.json").write_text(json.dumps(signatures, indent=1) + "\n")
    shutil.copyfile(artifact / WEIGHTS, out / WEIGHTS)


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
