"""Programs that torch.export saved become the programs of the folders that they were made of."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.importers.fixtures.make_dynamo import SIZES
from tests.importers.running import logits
from tests.tiny_models import tiny_model
from tokc.errors import ImportRefused
from tokc.importers import import_model, load_folder

IDS = np.random.default_rng(0).integers(3, 64, (2, 24))


class WithoutCache(torch.nn.Module):
    """See whole sequences at once."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        return self.model(input_ids=input_ids, use_cache=False).logits


def without_cache(model: Any) -> Any:
    any_size = torch.export.Dim.DYNAMIC
    arguments, sizes = (torch.ones(2, 6, dtype=torch.int64),), ({0: any_size, 1: any_size},)
    return torch.export.export(WithoutCache(model), arguments, dynamic_shapes=sizes, strict=False)


@pytest.mark.filterwarnings("ignore")
def test_a_saved_program_without_a_cache_is_that_of_its_folder(tmp_path: Path) -> None:
    model = tiny_model("qwen3", **SIZES)
    model.set_attn_implementation("sdpa")
    model.save_pretrained(tmp_path)
    folder = load_folder(tmp_path)
    torch.export.save(without_cache(model), tmp_path / "model.pt2")
    program = import_model(tmp_path / "model.pt2")
    assert [str(node) for node in program.graph] == [str(node) for node in folder.graph]
    assert np.array_equal(logits(program, IDS), logits(folder, IDS))


def test_without_onnxscript_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.pt2").write_bytes(b"no archive")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportRefused, match="needs torch and onnxscript") as caught:
        import_model(tmp_path / "model.pt2")
    assert caught.value.hint is not None
    assert "extra 'torch'" in caught.value.hint


@pytest.mark.filterwarnings("ignore")
def test_a_file_that_torch_cannot_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"no archive")
    with pytest.raises(ImportRefused, match=r"cannot convert 'model\.pt2'"):
        import_model(tmp_path / "model.pt2")
