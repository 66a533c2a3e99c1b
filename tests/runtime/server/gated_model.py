"""Models whose steps wait, or fail, when a test says so."""

import threading
import time

from tests.runtime.hash_model import HashModel
from tokc.runtime.executors.base import Batch, Float32s


class GatedModel(HashModel):
    """Does a step for each permission; without a gate it runs freely."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.permissions = threading.Semaphore(0)
        self.gated = True
        self.broken = False
        self.entered = 0

    def allow(self, steps: int) -> None:
        self.permissions.release(steps)

    def open(self) -> None:
        self.gated = False
        self.permissions.release(1)

    def step(self, batch: Batch) -> Float32s:
        self.entered += 1
        while self.gated and not self.permissions.acquire(timeout=10):
            raise AssertionError("no test allowed this step")
        if self.broken:
            raise RuntimeError("the accelerator is gone")
        return super().step(batch)


class SlowModel(HashModel):
    """Takes a while for each step."""

    def step(self, batch: Batch) -> Float32s:
        time.sleep(0.01)
        return super().step(batch)
