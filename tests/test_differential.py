"""The check of a lowered program against the last pass, with onnxruntime in the place of the machine code."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest

from tests.passes.tiny import tiny_program
from tokc.errors import PassFailed
from tokc.instruments import Instruments
from tokc.ir.execute import Session
from tokc.ir.program import Program
from tokc.passes.kv_layout import KvLayout
from tokc.pipeline import Pipeline
from tokc.quality import compiled
from tokc.runtime.executors.base import Batch


class _Executor:
    """Run a ragged program as an executor runs an artifact."""

    def __init__(self, program: Program, scale: float) -> None:
        self.session, self.scale = Session(program), scale
        self.page_size = program.kv.page if program.kv else 1
        self.vocab_size = program.config.vocab
        self.caches: dict[str, npt.NDArray[np.generic]] = {}
        for value in program.graph.inputs[5:]:
            size = [size for size in value.shape or () if isinstance(size, int)]
            self.caches[str(value.name)] = np.zeros((64, *size), np.float32)

    def step(self, batch: Batch) -> npt.NDArray[np.float32]:
        names = ("input_ids", "positions", "sequences", "block_tables", "logit_rows")
        feeds = {name: getattr(batch, name).astype(np.int64) for name in names}
        answer = self.session.run({**feeds, **self.caches})
        self.caches = {name: answer[f"{name}.out"] for name in self.caches}
        return answer["logits"].astype(np.float32) * np.float32(self.scale)

    def close(self) -> None:
        del self.session


def _lowered(monkeypatch: pytest.MonkeyPatch, scale: float) -> tuple[Instruments, Program]:
    instruments = Instruments()
    program = instruments.run(Pipeline((KvLayout(page=4, dtype="f32"),)), tiny_program())
    artifact = SimpleNamespace(manifest=SimpleNamespace(limits=SimpleNamespace(max_rows=64)))
    monkeypatch.setattr(compiled, "Artifact", SimpleNamespace(open=lambda *_, **__: artifact))
    monkeypatch.setattr(compiled, "executor_for", lambda *_, **__: _Executor(program, scale))
    return instruments, program


def test_a_lowered_program_that_answers_alike_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    instruments, program = _lowered(monkeypatch, 1.0)
    entry = instruments.check_lowered(Path("model.tokc"), program)
    assert entry is instruments.ledger[-1]
    assert entry is not None
    assert entry.pass_spec.startswith("lower")
    assert entry.max_abs_logit_diff is not None
    assert entry.max_abs_logit_diff < 1e-5


def test_a_lowered_program_that_answers_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    instruments, program = _lowered(monkeypatch, 1.3)
    with pytest.raises(PassFailed, match="lowering changed the answers"):
        instruments.check_lowered(Path("model.tokc"), program)


def test_without_the_check_nothing_is_run() -> None:
    assert Instruments(check=False).check_lowered(Path("nowhere.tokc"), tiny_program()) is None
