"""Runs whole steps of a foreign artifact: the executor is the runtime's own, its library runs under QEMU."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.targets.cpu.emulated.emulator import HARNESS, Memory, Process, architecture, compile_program
from tokc.runtime import reading
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors import cpu
from tokc.runtime.executors.base import Batch
from tokc.targets.cpu.isa import ISAS
from tokc.targets.cpu.link import ZIG_TARGETS

KV_BYTES = 1 << 20
# Where a program for another architecture finds libc: the Debian package libc6-arm64-cross.
SYSROOTS = {"x86_64": None, "aarch64": Path("/usr/aarch64-linux-gnu")}


@dataclass
class Lender:
    """Gives out the shared memory where the executor asks for anonymous memory."""

    memory: Memory
    used: int = 0

    def take(self, size: int, *, huge: bool = False) -> npt.NDArray[np.uint8]:
        """Return zeroed bytes at a multiple of 64."""
        begin, self.used = self.used, self.used + -(-size // 64) * 64
        assert self.used <= self.memory.array.size, f"a model of over {self.memory.array.size} bytes"
        return self.memory.array[begin : begin + size]


class NoLibrary:
    """Stands where the executor opens threads; the emulated process opens its own."""

    def tokc_open(self, threads: int) -> int:
        """Return a handle that nothing reads."""
        return 1

    def tokc_close(self, pool: int) -> None:
        """Keep the threads: they end with the process."""


class EmulatedExecutor(cpu.CpuExecutor):
    """Sends each step to the artifact's own library under QEMU."""

    def __init__(self, folder: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Lay the artifact out in shared memory and start its library."""
        self._lender = Lender(Memory.of(work / "memory"))
        monkeypatch.setattr(cpu, "require_features", lambda *_: None)
        monkeypatch.setattr(cpu, "load_library", lambda _: NoLibrary())
        monkeypatch.setattr(cpu, "_anonymous", self._lender.take)
        monkeypatch.setattr(reading, "anonymous", self._lender.take)
        artifact = Artifact.open(folder)
        super().__init__(artifact, threads=2, kv_bytes=KV_BYTES)
        target = artifact.manifest.target
        isa = ISAS[target.device]
        shutil.copy(folder / "kernels" / target.library, work / "step.so")
        program = compile_program(
            work, [str(HARNESS), "step.so"], ZIG_TARGETS[architecture(isa)], "-Wl,-rpath,$ORIGIN"
        )
        sysroot = SYSROOTS[target.arch]
        flags = ("-L", str(sysroot)) if sysroot else ()
        self._process = Process(program, self._lender.memory, isa, *flags)

    def step(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Run one step; returns logits f32[rows, vocab]."""
        self._load(batch)
        base = self._lender.memory.array.ctypes.data
        launches: npt.NDArray[Any] = self._launches.copy()
        fetched = launches["ahead"] != 0
        launches["ahead"][fetched] -= np.uint64(base)
        self._process.step(launches, self._pointers - np.uint64(base), self._rows.tolist(), self.threads)
        return self._logits[: len(batch.logit_rows), : self.vocab_size]

    def close(self) -> None:
        """End the process."""
        self._process.close()
