"""Compilers that run beside each other, each in a process of its own."""

import subprocess
from collections.abc import Mapping, Sequence


def first_failure(commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]]) -> str | None:
    """Run commands at once, each in its environment; return what the first that failed said, or None.

    No process outlives the call, whatever ends it.
    """
    processes: list[subprocess.Popen[str]] = []
    try:
        for command, environment in zip(commands, environments, strict=True):
            processes.append(
                subprocess.Popen(
                    command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
                )
            )
        for process in processes:
            _, said = process.communicate()
            if process.returncode != 0:
                return said.strip()
        return None
    finally:
        for process in processes:
            process.kill()
            process.wait()
