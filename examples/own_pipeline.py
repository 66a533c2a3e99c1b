"""Build with a pipeline of your own and look at what each pass did.

python examples/own_pipeline.py model.gguf out.tokc
"""

import json
import sys
from pathlib import Path

import tokc

PIPELINE = (
    "fold-constants,eliminate-dead-code,fuse-linear,fuse-attention,fuse-qkv,fuse-gate-up,"
    "quantize-weights{bits=8 group=32},fuse-add-rms-norm,kv-layout{page=16 dtype=int8},eliminate-dead-code"
)


def main(model: Path, out: Path) -> None:
    """Print the ledger that the build left in the artifact."""
    artifact = tokc.compile(model, passes=PIPELINE, context=1024, out=out)
    for entry in json.loads((artifact / "quality.json").read_text())["ledger"]:
        name, kl = entry["pass_spec"].partition("{")[0], entry["kl_mean"]
        print(f"{name:22} {entry['nodes_after']:5} nodes  KL {'-' if kl is None else f'{kl:.1e}'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
