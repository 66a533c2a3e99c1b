"""Trials on the machines of a Ray cluster, one at a time on each.

Ray places them: a trial asks for all the CPUs that a machine gives to Ray, so that no second one, nor other
work that Ray runs, disturbs what it measures. Machines must be alike, else their costs are not comparable.
"""

import platform
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import tokc
from tokc.cost.devices import Host, probe
from tokc.errors import TokcError
from tokc.tuning.trial import Finished, Setting, attempt

RETRIES = 1  # of a trial whose machine was lost
ANSWER_S = 10.0


class Member(NamedTuple):
    """A machine of the cluster: its name, what it can do, its tokc, and whether it can read the model."""

    name: str
    host: Host
    version: str
    reads: bool


class Cluster:
    """The machines of the cluster that this process has joined; `host` is the fastest of them."""

    def __init__(self, setting: Setting) -> None:
        """Look at every machine.

        Raises: TokcError if they differ, cannot read the model, or have another tokc.
        """
        self._setting = replace(setting, model=setting.model.resolve())
        self._cpus = _same("CPUs for Ray", {_name(node): node["Resources"]["CPU"] for node in _nodes()})
        members = self._look()
        _same("processors", {one.name: one.host.cpu for one in members})
        for one in members:
            if one.version != tokc.__version__:
                raise TokcError(f"'{one.name}' has tokc {one.version}, this machine {tokc.__version__}")
            if not one.reads:
                raise TokcError(
                    f"'{one.name}' cannot read '{self._setting.model}'",
                    hint="the model must lie at the same path on every machine, as on a shared file system",
                )
        self.host = max((one.host for one in members), key=lambda host: host.read_bytes_per_s)
        self._running: dict[Any, int] = {}

    @property
    def count(self) -> int:
        """Return how many machines there are now."""
        return len(_nodes())

    def begin(self, number: int, pipeline: str) -> None:
        """Hand a trial to Ray, which runs it on the first machine that is free."""
        task = ray.remote(num_cpus=self._cpus, max_retries=RETRIES)(_attempt)
        self._running[task.remote(self._setting, number, pipeline, int(self._cpus))] = number

    def finished(self) -> Finished:
        """Return a trial that ended, when one has; one whose machine was lost has failed."""
        (done, *_), _ = ray.wait(list(self._running))
        number = self._running.pop(done)
        try:
            found: Finished = ray.get(done)
        except RayError as error:
            return Finished(number, "", None, f"its machine was lost: {type(error).__name__}")
        return found

    def _look(self) -> list[Member]:
        task = ray.remote(num_cpus=self._cpus)(_look)
        places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in _nodes()]
        asked = [task.options(scheduling_strategy=one).remote(self._setting.model) for one in places]
        found: list[Member] = ray.get(asked)
        return found


@contextmanager
def joined(setting: Setting, address: str) -> Iterator[Cluster]:
    """Join the cluster at `address` while the block lasts; trials that still run then are stopped by Ray.

    Raises: TokcError if there is none, and as `Cluster` does.
    """
    try:
        _require_answer(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        raise TokcError(
            f"no Ray cluster can be joined at '{address}': {str(error).splitlines()[0]}",
            hint="begin one with `ray start --head`, and give its address, or auto on a machine of it",
        ) from error
    try:
        yield Cluster(setting)
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Refuse an address where nothing listens; Ray itself would try for minutes.

    Raises: OSError; ValueError if the port is no number.
    """
    host, colon, port = address.rpartition(":")
    if colon and "//" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()


def _look(model: Path) -> Member:
    return Member(_here(), probe(), tokc.__version__, model.exists())


def _attempt(setting: Setting, number: int, pipeline: str, threads: int) -> Finished:
    with tempfile.TemporaryDirectory(prefix="tokc-tune-") as folder:
        artifact = Path(folder) / f"trial{number}.tokc"
        return attempt(setting, number, pipeline, artifact, machine=_here(), threads=threads)


def _here() -> str:
    """Return the name of this machine, unlike that of any other of the cluster."""
    return f"{platform.node()}/{ray.get_runtime_context().get_node_id()[:8]}"


def _name(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']}/{node['NodeID'][:8]}"


def _nodes() -> list[dict[str, Any]]:
    """Return the machines that are there and give CPUs to Ray."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]


def _same(what: str, values: dict[str, Any]) -> Any:
    """Return what all machines have.

    Raises: TokcError naming the machines if they differ, or if there are none.
    """
    if not values:
        raise TokcError("no machine of the cluster gives a CPU to Ray")
    if len(set(values.values())) > 1:
        found = ", ".join(f"'{name}' has {value}" for name, value in values.items())
        raise TokcError(
            f"the cluster's machines have different {what}: {found}",
            hint="a search compares what it measured: take machines of one kind",
        )
    return next(iter(values.values()))
