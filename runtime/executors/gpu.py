"""Runs an artifact's plan on a GPU, through its vendor's driver.

A step of few tokens, as decoding has them, is recorded once as a graph for each bucket of sizes and replayed
afterwards: one call instead of one a kernel. A step of many tokens is launched kernel by kernel, for the
device is busy longer with each than the host with the next.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tokc.errors import ArtifactRefused, TokcError
from tokc.runtime.artifact import RANK_WEIGHTS, WEIGHTS, Artifact
from tokc.runtime.drivers.abi import KernelAbi, LaunchAbi
from tokc.runtime.drivers.base import Driver, Extent, Handle, Parameters
from tokc.runtime.drivers.memory import DeviceMemory, buffer_bytes, laid_out, upload_weights
from tokc.runtime.drivers.ranks import ALL_GATHER, EXCHANGE, Communicator
from tokc.runtime.executors.base import LIKELIEST, Batch, Int32s
from tokc.runtime.executors.device_logits import DeviceLogits
from tokc.runtime.executors.gpu_inputs import ITEM, Sizes, StepInputs, bucket

# Of the memory that is free when everything else lies there; the rest is for graphs and for others.
CACHE_SHARE = 0.85

Axis = tuple[str | None, int, int, int | None]  # symbol, per, times, most
Grid = tuple[Axis, ...]


class _Launch(NamedTuple):
    """A launch of the plan, ready but for its grid; `at` is its index there."""

    at: int
    kernel: KernelAbi
    function: Handle
    grid: Grid
    parameters: Parameters


class _Meeting(NamedTuple):
    """A collective of the plan; its grid counts bytes."""

    at: int
    name: str
    grid: Grid
    source: int
    target: int


class GpuExecutor:
    """Holds weights, paged cache, code and graphs of one model on one device, or one rank's part of them."""

    trees = blocks = None  # the host draws

    def __init__(
        self,
        artifact: Artifact,
        driver: Driver,
        *,
        kv_bytes: int | None = None,
        communicator: Communicator | None = None,
        agreed: Callable[[int], int] = int,
    ) -> None:
        """Bring the model to the device of `driver`, which is closed with this, as is `communicator`.

        `kv_bytes` None takes 85 % of the memory that the model leaves free. `agreed` gives the number of
        pages that all ranks have for the number that this one has room for.
        Raises: ArtifactRefused if the code does not fit the device, or the model its memory.
        """
        manifest = artifact.manifest
        self.vocab_size = manifest.model.vocab
        self.page_size = manifest.kv.page
        self.context_length = manifest.limits.context
        self.max_tokens = manifest.limits.max_tokens_per_step
        self.max_seqs = manifest.limits.max_rows
        self.plan: Mapping[str, Any] = json.loads((artifact.path / "plan.json").read_text())
        self.driver = driver
        self._communicator, self._agreed = communicator, agreed
        self._limits: Mapping[str, int] = self.plan["limits"]
        self._graphs: dict[Sizes, Handle | None] = {}
        self._modules: list[Handle] = []
        self._memory = DeviceMemory(driver)
        self._stream: Handle = None
        self._open = True
        self._run_steps = 0
        self.likeliest: Int32s | None = None
        try:
            self._prepare(artifact, kv_bytes)
        except BaseException:
            if communicator is not None:  # others may wait for this rank
                communicator.abort()
            self.close()
            raise

    @classmethod
    def open(cls, artifact: Artifact, *, kv_bytes: int | None = None) -> "GpuExecutor":
        """Return an executor on this machine's first device of the artifact's kind, `cuda` or `rocm`.

        `tokc.runtime.executors.gpu_ranks` opens artifacts for several devices.
        """
        if artifact.manifest.target.kind == "cuda":
            from tokc.runtime.drivers.cuda import CudaDriver

            return cls(artifact, CudaDriver(), kv_bytes=kv_bytes)
        from tokc.runtime.drivers.hip import HipDriver

        return cls(artifact, HipDriver(), kv_bytes=kv_bytes)

    def step(self, batch: Batch) -> DeviceLogits:
        """Run one step; returns logits f32[rows, vocab], which stay on the device until a row is asked for.

        Leaves in `likeliest` the token of each row's largest logit, i32[rows]. Both are valid until the next
        step.
        Raises: RequestRefused if the batch exceeds the artifact's limits; TokcError if the device fails.
        """
        sizes = self._load(batch)
        with self._settled():
            self._run(bucket(sizes, self._limits))
            return self._finish(sizes.rows)

    def profile(self, batch: Batch) -> npt.NDArray[np.float64]:
        """Run one step; returns seconds f64[launches, 2]: in the kernel, and until the next one began.

        Launches that are no part of such a step have zeros.
        """
        driver, stream = self.driver, self._stream
        sizes = self._load(batch)
        grid = bucket(sizes, self._limits)
        launches = [launch for launch in self._steps[grid.narrow] if _extent(launch.grid, grid)]
        events = [driver.create_event() for _ in range(2 * len(launches))]
        seconds = np.zeros((len(self.plan["launches"]), 2))
        try:
            with self._settled():
                for launch, began, ended in zip(launches, events[::2], events[1::2], strict=True):
                    driver.record(began, stream)
                    self._launch([launch], grid)
                    driver.record(ended, stream)
                self._finish(sizes.rows)
            for at, launch in enumerate(launches):
                seconds[launch.at, 0] = driver.elapsed_s(events[2 * at], events[2 * at + 1])
                if at + 1 < len(launches):
                    seconds[launch.at, 1] = driver.elapsed_s(events[2 * at + 1], events[2 * at + 2])
        finally:
            for event in events:
                driver.destroy_event(event)
        return seconds

    def close(self) -> None:
        """Let go of graphs, code, memory and device; a driver that refuses after a failure is passed over."""
        if not self._open:
            return
        self._open = False
        driver = self.driver
        with suppress(TokcError):
            driver.activate()
        if self._stream is not None:
            with suppress(TokcError):
                driver.synchronize(self._stream)
        for graph in self._graphs.values():
            if graph is not None:
                with suppress(TokcError):
                    driver.destroy_graph(graph)
        for module in self._modules:
            with suppress(TokcError):
                driver.unload_module(module)
        if self._communicator is not None:
            with suppress(TokcError):
                self._communicator.close()
        self._memory.close()
        if self._stream is not None:
            with suppress(TokcError):
                driver.destroy_stream(self._stream)
        self._graphs, self._modules, self._stream = {}, [], None
        with suppress(TokcError):
            driver.close()

    def _prepare(self, artifact: Artifact, kv_bytes: int | None) -> None:
        abi = LaunchAbi.read(artifact.path)
        if abi.backend != self.driver.backend:
            raise ArtifactRefused(
                f"the kernels are for '{abi.backend}', the driver is of '{self.driver.backend}'",
                where=str(artifact.path),
            )
        ranks = 1 if self._communicator is None else self._communicator.ranks
        if ranks != abi.ranks:
            raise ArtifactRefused(
                f"the artifact is for {abi.ranks} devices together, here are {ranks}",
                where=str(artifact.path),
            )
        images = abi.images(artifact.path, self.driver.properties.arch)
        self.driver.activate()
        self._stream = self.driver.create_stream()
        functions = self._load_code(abi, images)
        addresses = self._allocate(artifact, kv_bytes)
        self._steps = self._link(abi, functions, addresses)
        self.driver.synchronize(self._stream)

    def _load_code(self, abi: LaunchAbi, images: Mapping[str, bytes]) -> list[Handle]:
        modules: dict[str, Handle] = {}
        for file, image in images.items():
            modules[file] = self.driver.load_module(image)
            self._modules.append(modules[file])
        return [self.driver.function(modules[kernel.file], kernel) for kernel in abi.kernels]

    def _allocate(self, artifact: Artifact, kv_bytes: int | None) -> dict[str, int]:
        """Return the address of every buffer of the plan; all but weights and inputs hold zeros."""
        buffers: Sequence[Mapping[str, Any]] = self.plan["buffers"]
        spaces = {space: [b for b in buffers if b["space"] == space] for space in _SPACES}
        path = artifact.path / WEIGHTS
        addresses = upload_weights(self.driver, self._memory, self._stream, path)
        if self._communicator is not None:
            own = artifact.path / RANK_WEIGHTS.format(self._communicator.rank)
            addresses |= upload_weights(self.driver, self._memory, self._stream, own)
        missing = sorted({buffer["name"] for buffer in spaces["weights"]} - set(addresses))
        if missing:
            raise ArtifactRefused(f"the weights lack '{missing[0]}'", where=str(path), hint=_REBUILD)
        arena = self._cleared(self.plan["arena_bytes"], "the arena of a step")
        addresses |= {buffer["name"]: arena + buffer["offset"] for buffer in spaces["arena"]}
        self._inputs = StepInputs(spaces["input"], self._limits)
        self._input_block = self._place(self._inputs.layout.offsets, self._inputs.layout.size, addresses)
        self._staging = self._memory.allocate_host(self._inputs.layout.size)
        self._inputs.bind(self._staging)
        rest = laid_out([*spaces["output"], *spaces["scratch"]], self._limits)
        self._place(rest.offsets, rest.size, addresses)
        (output,) = (buffer for buffer in spaces["output"] if buffer["name"] != LIKELIEST)
        self._output = addresses[output["name"]]
        self._logits = self._memory.allocate_host(buffer_bytes(output, self._limits))
        self._row_bytes = buffer_bytes(output, {"rows": 1})
        self._tokens = self._memory.allocate_host(ITEM * self._limits["rows"])
        self._tokens_at = addresses.get(LIKELIEST)
        self.kv_bytes_per_page = sum(buffer_bytes(buffer, {"pages": 1}) for buffer in spaces["kv"])
        self.num_pages = self._agreed(self._count_pages(kv_bytes))
        cache = laid_out(spaces["kv"], {"pages": self.num_pages})
        self._place(cache.offsets, cache.size, addresses)
        return addresses

    def _place(self, offsets: Mapping[str, int], size: int, addresses: dict[str, int]) -> int:
        block = self._cleared(size, f"'{next(iter(offsets), 'nothing')}' and what lies with it")
        addresses |= {name: block + offset for name, offset in offsets.items()}
        return block

    def _cleared(self, size: int, what: str) -> int:
        address = self._memory.allocate(size, what)
        if size:
            # A masked load's neighbour may be multiplied by zero: it must be a number.
            self.driver.clear(address, size, self._stream)
        return address

    def _count_pages(self, kv_bytes: int | None) -> int:
        free, page = self.driver.free_bytes(), self.kv_bytes_per_page
        room = int(free * CACHE_SHARE) if kv_bytes is None else kv_bytes
        context = -(-self.context_length // self.page_size) * page
        if not page:
            return -(-self.context_length // self.page_size)
        if room < page or room > free:
            raise ArtifactRefused(
                f"a cache of {room} bytes does not fit: a page takes {page} bytes, {free} are free",
                where=self.driver.properties.name,
                hint=f"a whole context takes {context} bytes",
            )
        return room // page

    def _link(
        self, abi: LaunchAbi, functions: Sequence[Handle], addresses: Mapping[str, int]
    ) -> dict[bool, list[_Launch | _Meeting]]:
        """Return the launches of narrow steps (True) and of wide ones (False), in running order."""
        names = [buffer["name"] for buffer in self.plan["buffers"]]
        steps: dict[bool, list[_Launch | _Meeting]] = {True: [], False: []}
        if [kernel.symbol for kernel in abi.kernels] != self.plan["kernels"]:
            raise ArtifactRefused("the plan and the launch ABI name different kernels", hint=_REBUILD)
        for at, row in enumerate(self.plan["launches"]):
            pointers = [addresses[names[buffer]] + offset for buffer, offset in row["operands"]]
            grid: Grid = tuple((*axis, None)[:4] for axis in row["grid"])
            launch: _Launch | _Meeting
            if "collective" in row:
                launch = _Meeting(at, row["collective"], grid, *pointers)
            else:
                launch = self._ready(at, abi.kernels[row["kernel"]], functions[row["kernel"]], grid, pointers)
            for narrow, word in ((True, "narrow"), (False, "wide")):
                if row["steps"] in {"all", word}:
                    steps[narrow].append(launch)
        return steps

    def _ready(
        self, at: int, kernel: KernelAbi, function: Handle, grid: Grid, pointers: Sequence[int]
    ) -> _Launch:
        if len(pointers) != len(kernel.parameters):
            raise ArtifactRefused(
                f"launch {at} gives '{kernel.symbol}' {len(pointers)} pointers,"
                f" it takes {len(kernel.parameters)}",
                hint=_REBUILD,
            )
        packed = [*pointers, *[0] * kernel.scratch_pointers]
        return _Launch(at, kernel, function, grid, Parameters(packed, end=self.driver.parameters_end))

    @contextmanager
    def _settled(self) -> Iterator[None]:
        """Wait for the device if the block raises: what is queued reads what the next step will write."""
        try:
            yield
        except BaseException:
            with suppress(TokcError):
                self.driver.synchronize(self._stream)
            raise

    def _load(self, batch: Batch) -> Sizes:
        """Bring a batch to the device."""
        assert self._open, "the executor is closed"
        self.driver.activate()
        sizes, used = self._inputs.fill(batch)
        if used:
            self.driver.copy_to_device(self._input_block, self._staging[:used], self._stream)
        return sizes

    def _run(self, grid: Sizes) -> None:
        """Queue a step's launches: through a graph from the second time on that a narrow bucket is met.

        The first time runs them one by one, so that all code is loaded before anything is recorded.
        """
        graph = self._graphs.get(grid)
        if graph is None:
            launches = self._steps[grid.narrow]
            if not grid.narrow or grid not in self._graphs:
                self._launch(launches, grid)
                if grid.narrow:
                    self._graphs[grid] = None
                return
            graph = self._graphs[grid] = self._captured(launches, grid)
        self.driver.launch_graph(graph, self._stream)

    def _captured(self, launches: Sequence[_Launch | _Meeting], grid: Sizes) -> Handle:
        self.driver.begin_capture(self._stream)
        try:
            self._launch(launches, grid)
        except BaseException:
            self.driver.abandon_capture(self._stream)
            raise
        return self.driver.end_capture(self._stream)

    def _launch(self, launches: Sequence[_Launch | _Meeting], grid: Sizes) -> None:
        driver, stream = self.driver, self._stream
        extents: dict[Grid, Extent | None] = {}
        for launch in launches:
            if launch.grid not in extents:
                extents[launch.grid] = _extent(launch.grid, grid)
            extent = extents[launch.grid]
            if extent is None:
                continue
            if isinstance(launch, _Meeting):
                self._meet(launch, extent[0])
            else:
                driver.launch(launch.function, extent, launch.kernel, launch.parameters, stream)

    def _meet(self, meeting: _Meeting, size: int) -> None:
        assert self._communicator is not None, "one device meets no other"
        make = {ALL_GATHER: self._communicator.all_gather, EXCHANGE: self._communicator.exchange}
        make[meeting.name](meeting.source, meeting.target, size, self._stream)

    def _finish(self, rows: int) -> DeviceLogits:
        """Wait for the step; its tokens are then on the host, its logits where they are."""
        self._run_steps += 1
        self.likeliest = None
        if self._tokens_at is not None:
            tokens = self._tokens[: rows * ITEM]
            if rows:
                self.driver.copy_to_host(tokens, self._tokens_at, self._stream)
            self.likeliest = tokens.view(np.int32)
        self.driver.synchronize(self._stream)
        room = self._logits[: rows * self._row_bytes].view(np.float32)
        own, width = self._run_steps, self._row_bytes // 4

        def fetch(first: int, count: int) -> None:
            assert self._open and self._run_steps == own, "logits are valid until the next step"  # noqa: PT018
            self.driver.activate()
            part = slice(first * self._row_bytes, (first + count) * self._row_bytes)
            with self._settled():
                self.driver.copy_to_host(self._logits[part], self._output + part.start, self._stream)
                self.driver.synchronize(self._stream)

        return DeviceLogits(room.reshape(rows, width)[:, : self.vocab_size], fetch)


def _extent(grid: Grid, sizes: Sizes) -> Extent | None:
    """Return how many programs each axis has, None if one has none."""
    symbols = {"tokens": sizes.tokens, "rows": sizes.rows, "tiles": sizes.tiles, "splits": sizes.splits}
    found = []
    for symbol, per, times, most in grid:
        programs = times * (1 if symbol is None else -(-symbols[symbol] // per))
        found.append(programs if most is None else min(programs, most))
    x, y, z = (*found, 1, 1, 1)[:3]
    return (x, y, z) if x * y * z else None


_SPACES = ("weights", "arena", "input", "output", "kv", "scratch")
_REBUILD = "the artifact is damaged; copy or build it again"
