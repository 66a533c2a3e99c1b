"""The native tests of linear kernels, word for word, where QEMU is installed; part of every run."""

from tests.targets.cpu import test_linear_kernels
from tests.targets.cpu.emulated.adoption import kernel_tests
from tests.targets.cpu.test_linear_kernels import run as run

globals().update(kernel_tests(test_linear_kernels))
