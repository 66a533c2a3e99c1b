"""Logits of llama.cpp, from the environment that the benchmarks built it in where this one has none."""

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

BUILT = Path(__file__).parents[2] / ".venv-bench" / "llamacpp" / "bin" / "python"
CODE = """
import sys, llama_cpp, numpy as np
ids, *paths = sys.argv[1:]
tokens = np.load(ids)
for path in paths:
    model = llama_cpp.Llama(path, n_ctx=128, logits_all=True, verbose=False)
    model.eval(tokens.tolist())
    np.save(path + ".npy", model.scores[: len(tokens)])
"""


def llamacpp_logits(paths: Sequence[Path], ids: np.ndarray) -> list[np.ndarray]:
    """Return the logits f32[tokens, vocab] of files for tokens; skips where there is no llama.cpp."""
    python = sys.executable if importlib.util.find_spec("llama_cpp") else str(BUILT)
    if not Path(python).exists():
        pytest.skip("llama.cpp is not installed: python -m bench.peers.environments llamacpp")
    np.save(paths[0].with_name("ids.npy"), ids)
    command = [python, "-c", CODE, str(paths[0].with_name("ids.npy")), *map(str, paths)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return [np.load(f"{path}.npy") for path in paths]
