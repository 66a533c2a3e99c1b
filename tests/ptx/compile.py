"""Compiles kernels to PTX in a process of its own, for test processes run Triton's functions interpreted."""

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokc.targets.gpu.codegen import options_of, source_of, target_of
from tokc.targets.gpu.device import ARCHITECTURES, Architecture
from tokc.targets.gpu.kernel import Kernel


@dataclass(frozen=True)
class Compiled:
    """PTX, and the shared memory that a launch must give it."""

    text: str
    shared_bytes: int


class Compiler:
    """A process that compiles; it starts with the first kernel, and each is compiled once."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._process: subprocess.Popen[bytes] | None = None
        self._found: dict[tuple[Kernel, str], Compiled] = {}

    def __call__(self, kernel: Kernel, architecture: str) -> Compiled:
        """Return a kernel's PTX for an architecture by name, as `sm_90`."""
        key = kernel, architecture
        if key not in self._found:
            self._found[key] = self._compile(kernel, architecture)
        return self._found[key]

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate()

    def _compile(self, kernel: Kernel, architecture: str) -> Compiled:
        if self._process is None:
            env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
            env |= {"TRITON_CACHE_DIR": str(self._cache), "TRITON_DEFAULT_FP_FUSION": "1"}
            command = [sys.executable, "-m", "tests.ptx.compile"]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd=Path(__file__).parents[2]
            )
        process = self._process
        assert process.stdin is not None, "it is a pipe"
        assert process.stdout is not None, "it is a pipe"
        pickle.dump((kernel, architecture), process.stdin)
        process.stdin.flush()
        found = pickle.load(process.stdout)  # noqa: S301 - our own process
        assert isinstance(found, Compiled), f"'{kernel.symbol}' does not compile for {architecture}: {found}"
        return found


@contextmanager
def compiler() -> Iterator[Compiler]:
    """Give a compiler with a cache of its own."""
    with tempfile.TemporaryDirectory(prefix="tokc-ptx-") as cache:
        found = Compiler(Path(cache))
        try:
            yield found
        finally:
            found.close()


def compile_here(kernel: Kernel, architecture: Architecture) -> Compiled:
    """Compile in this process, which must not have TRITON_INTERPRET."""
    import triton

    triton.knobs.runtime.add_stages_inspection_hook = end_with_ptx
    source, target = source_of(kernel, architecture), target_of(architecture)
    found = triton.compile(source, target=target, options=options_of(kernel, architecture))
    return Compiled(found.asm["ptx"], found.metadata.shared)


def end_with_ptx(*given: Any) -> tuple[str, str]:
    """Put an empty file in the place of machine code, which takes as long to make as all before it.

    Triton calls it with the stages, second, to change them; and with nothing for a key to its cache.
    """
    if given:
        given[1]["cubin"] = lambda _text, _metadata: b""
    return "ptx", "ptx"


def main() -> None:
    """Answer requests until there are no more."""
    out = os.fdopen(os.dup(1), "wb")
    # What a compiler prints goes where errors go; standard output is the answers' alone.
    os.dup2(2, 1)
    while True:
        try:
            kernel, architecture = pickle.load(sys.stdin.buffer)  # noqa: S301 - our own process
        except EOFError:
            return
        answer: Compiled | str
        try:
            # `__main__` is this module under another name: the reader knows the class by the real one.
            from tests.ptx import compile as module

            found = compile_here(kernel, ARCHITECTURES[architecture])
            answer = module.Compiled(found.text, found.shared_bytes)
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        pickle.dump(answer, out)
        out.flush()


if __name__ == "__main__":
    main()
