"""One compiling process a session."""

from collections.abc import Iterator

import pytest

from tests.ptx.compile import Compiler, compiler


@pytest.fixture(scope="session")
def compiled() -> Iterator[Compiler]:
    """Return what gives a kernel's PTX for an architecture."""
    with compiler() as found:
        yield found
