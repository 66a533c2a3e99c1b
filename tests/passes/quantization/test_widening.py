"""What takes more bytes in a program than in its file is counted, type by type."""

from pathlib import Path

import pytest

from tests.importers.gguf_writing import Kind, gguf_model, write_gguf
from tokc.importers import load_gguf
from tokc.instruments import Instruments
from tokc.passes.quantization.widening import widened
from tokc.pipeline import Pipeline

SIZES = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "vocab_size": 96}
WIDE = ("v_proj.weight", "down_proj.weight")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a file of Q4_K and Q6_K, as Q4_K_M is, its embedding in Q8_0."""
    path = tmp_path_factory.mktemp("mixed") / "m.gguf"

    def kinds(name: str) -> Kind:
        if "embed" in name or "lm_head" in name:
            return Kind.Q8_0
        return Kind.Q6_K if name.endswith(WIDE) else Kind.Q4_K

    write_gguf(gguf_model("llama", **SIZES), "llama", path, Kind.Q4_K, kinds)
    return path


def test_types_without_a_kernel_are_reported_with_their_bytes(mixed: Path) -> None:
    before = load_gguf(mixed)
    after = Pipeline.parse("fuse-linear,fuse-attention,fuse-qkv,quantize-weights").run(before)
    linear = Pipeline.parse("fuse-linear,fuse-attention,fuse-qkv").run(before)
    found = {one.kind: one for one in widened(linear, after)}
    assert set(found) == {"Q4_K", "Q6_K"}  # Q8_0 is as it was
    v, down = 128 * 256, 256 * 256
    assert found["Q6_K"].weights == 2
    assert found["Q6_K"].file_bytes == (v + down) * 6.5625 / 8
    assert found["Q6_K"].program_bytes == (v + down) * 8.5 / 8
    assert found["Q4_K"].file_bytes / found["Q4_K"].program_bytes == pytest.approx(4.5 / 5)


def test_the_ledger_notes_it_at_the_pass_that_did_it(mixed: Path) -> None:
    instruments = Instruments(check=False)
    instruments.run(Pipeline.parse("fuse-linear,quantize-weights,eliminate-dead-code"), load_gguf(mixed))
    notes = {entry.pass_spec.partition("{")[0]: entry.notes for entry in instruments.ledger}
    assert notes["fuse-linear"] == notes["eliminate-dead-code"] == ()
    (note,) = notes["quantize-weights"]
    assert "2 of Q6_K from 0.08 MB to 0.10 MB" in note


def test_grids_that_kernels_have_are_not_reported(tmp_path: Path) -> None:
    write_gguf(gguf_model("llama"), "llama", tmp_path / "m.gguf", Kind.Q4_0)
    program = load_gguf(tmp_path / "m.gguf")
    assert widened(program, Pipeline.parse("fuse-linear,quantize-weights").run(program)) == ()
