"""The native tests of all other kernels, word for word, under QEMU; compiling takes over a minute."""

import pytest

from tests.targets.cpu import (
    test_paged_attention,
    test_rope_write_kv,
    test_row_kernels,
    test_tree_attention,
)
from tests.targets.cpu.emulated.adoption import kernel_tests
from tests.targets.cpu.test_row_kernels import inputs as inputs

pytestmark = pytest.mark.cross

globals().update(
    kernel_tests(test_row_kernels, test_rope_write_kv, test_paged_attention, test_tree_attention)
)
