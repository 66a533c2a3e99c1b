"""A device for the tests of this folder, which all need one."""

from collections.abc import Iterator

import pytest

from tests.gpu.on_device import KernelsOnDevice, device


@pytest.fixture(scope="session")
def kernels() -> Iterator[KernelsOnDevice]:
    """Return what runs single kernels."""
    found = KernelsOnDevice(device())
    yield found
    found.close()
