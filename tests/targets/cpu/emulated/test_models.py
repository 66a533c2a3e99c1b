"""Whole artifacts for other machines: their own library, under QEMU, answers as the host's does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.targets.cpu.chunks import answers
from tests.targets.cpu.emulated.emulator import architecture
from tests.targets.cpu.emulated.model import SYSROOTS, EmulatedExecutor
from tests.tiny_models import tiny_folder
from tokc.compiler import Request, build, precision
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.cpu import CpuExecutor
from tokc.targets.cpu.isa import Isa, runnable_isas

pytestmark = pytest.mark.cross
TOKENS = 40
# (family, weights, cache) -> the largest difference from the host, as a part of the largest logit: one last
# bit of an f32 may turn the rounding of an int8 activation. The end of the run tells the difference found.
MODELS = {
    ("mistral", "f32", "f32"): 1e-5,
    ("gemma3", "int8", "f16"): 2e-3,
    ("qwen3", "int4", "int8"): 2e-3,
}


@pytest.mark.skipif(not runnable_isas(), reason="this CPU runs none of the instruction sets to compare with")
@pytest.mark.parametrize("model", MODELS, ids="-".join)
def test_an_artifact_for_another_machine_answers_as_the_hosts_does(
    model: tuple[str, str, str], isa: Isa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Any
) -> None:
    sysroot = SYSROOTS[architecture(isa)]
    if sysroot is not None and not sysroot.exists():
        pytest.skip(f"'{sysroot}' is missing: `make test-cross`, or the Debian package libc6-arm64-cross")
    family, weights, kv = model
    folder = tiny_folder(family, tmp_path / family, head_dim=32)
    artifacts = []
    for target in ("cpu", f"cpu:{isa.name}"):
        request = Request(folder, target, precision(weights, kv), context=64, check=False)
        artifacts.append(build(request, tmp_path / f"{target.replace(':', '-')}.tokc").artifact)
    host = CpuExecutor.open(Artifact.open(artifacts[0]), threads=2)
    ids = np.random.default_rng(5).integers(0, host.vocab_size, TOKENS)
    expected = answers(host, ids, TOKENS)
    host.close()
    emulated = EmulatedExecutor(artifacts[1], tmp_path, monkeypatch)
    whole = answers(emulated, ids, TOKENS)
    error = np.abs(whole - expected).max() / np.abs(expected).max()
    figure(f"{isa.name}, {family} {weights}/{kv}: logits within {error:.1e} of the host's")
    assert error < MODELS[model]
    for chunk in (1, 7, 16):
        assert (answers(emulated, ids, chunk) == whole).all(), f"chunks of {chunk} change bits"
    emulated.close()
