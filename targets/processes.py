"""Compilers that run beside each other, each in a process of its own."""

import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack


def first_failure(commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]]) -> str | None:
    """Run commands at once, each in its environment; return what the first that failed said, or None.

    No process outlives the call, whatever ends it.
    """
    with ExitStack() as stack:
        processes = []
        for command, environment in zip(commands, environments, strict=True):
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            stack.enter_context(process)  # waits, and closes the pipe
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            _, said = process.communicate()
            if process.returncode != 0:
                return said.strip()
    return None
