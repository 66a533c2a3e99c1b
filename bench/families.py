"""Hold every family against transformers by every way in, and write the table: `python -m bench.families`.

A row is a tiny random model (`tests/tiny_models.py`, f32); a figure is the largest difference of a logit
from transformers' over prefill and cached decode of the same tokens, the imported program run by onnxruntime.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.importers.exports import EXPORTS, graph_folder, weights_folder
from tests.importers.gguf_writing import ARCHITECTURES, Kind, gguf_model, write_gguf
from tests.importers.running import logits
from tests.tiny_models import FAMILIES, tiny_folder, tiny_model
from tokc.importers import import_model

Logits = npt.NDArray[np.float32]
IDS = np.random.default_rng(0).integers(3, 64, (2, 24))  # in every vocabulary
CUTS = (11, 12, 13, 20)  # where cached decode takes over
LIMIT = 1e-4
NOT_APPLICABLE = "-"


@dataclass(frozen=True)
class Way:
    """A way in: `error` imports a family by it, in a folder for its files, and returns its largest error."""

    name: str
    families: tuple[str, ...]
    error: Callable[[str, Path], float]


def reference(model: Any) -> Logits:
    """Return transformers' logits."""
    import torch

    with torch.no_grad():
        return np.asarray(model(torch.tensor(IDS)).logits.numpy(), np.float32)


def largest_error(path: Path, want: Logits) -> float:
    """Return the largest difference of a logit, in one piece and in several with a cache."""
    program = import_model(path)
    return max(float(np.abs(logits(program, IDS, cuts) - want).max()) for cuts in ((), CUTS))


def folder_error(family: str, folder: Path) -> float:
    """Import a Hugging Face folder."""
    return largest_error(tiny_folder(family, folder / "model"), reference(tiny_model(family)))


def gguf_error(family: str, folder: Path) -> float:
    """Import a GGUF file with the weights in f32."""
    model, path = gguf_model(family), folder / "model.gguf"
    write_gguf(model, family, path, Kind.F32)
    return largest_error(path, reference(model))


def graph_error(export: str, folder: Path) -> float:
    """Import the graph that an exporter made of a model."""
    from transformers import AutoModelForCausalLM

    weights = weights_folder(export, folder / "weights")
    model = AutoModelForCausalLM.from_pretrained(weights, attn_implementation="eager").float().eval()
    return largest_error(graph_folder(export, folder / "graph"), reference(model))


def exporter(name: str, title: str) -> Way:
    """Return the way of an exporter's real files, the fixtures of the import's tests."""
    models = tuple(one.removeprefix(f"{name}/") for one in EXPORTS if one.startswith(f"{name}/"))
    known = tuple(model for model in models if model in FAMILIES)
    return Way(title, known, lambda model, folder: graph_error(f"{name}/{model}", folder))


WAYS = (
    Way("Hugging Face folder", tuple(FAMILIES), folder_error),
    Way("GGUF", tuple(ARCHITECTURES), gguf_error),
    exporter("optimum", "ONNX of Optimum"),
    exporter("dynamo", "ONNX of torch"),
)


def measured() -> dict[str, dict[str, float]]:
    """Return the errors, by family and way."""
    found: dict[str, dict[str, float]] = {}
    for family in FAMILIES:
        for way in WAYS:
            if family in way.families:
                with tempfile.TemporaryDirectory(prefix="tokc-families-") as folder:
                    found.setdefault(family, {})[way.name] = way.error(family, Path(folder))
    return found


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Return the page with the table."""
    names = [way.name for way in WAYS]
    lines = [
        "# Families and ways in",
        "",
        "Largest difference of a logit from transformers', in f32, over prefill and cached decode of tiny",
        f"random models (limit {LIMIT:g}). Made by `python -m bench.families`; `-`: no such way.",
        "How to add a family: [adding-a-model.md](adding-a-model.md).",
        "",
        f"| model | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    for family, errors in found.items():
        cells = (f"{errors[name]:.1e}" if name in errors else NOT_APPLICABLE for name in names)
        lines.append(f"| {family} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the table; 3 if an error is over the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/families.md"), help="where the table goes")
    path = parser.parse_args().out
    found = measured()
    path.write_text(table(found), encoding="utf-8")
    worst = max(error for errors in found.values() for error in errors.values())
    return 3 if worst > LIMIT else 0


if __name__ == "__main__":
    raise SystemExit(main())
