"""What a target is, and what lowering for one yields."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tokc.artifact.writer import Tensor
from tokc.errors import TargetRefused
from tokc.ir.program import KvDtype, Program
from tokc.runtime.manifest import TargetInfo


@dataclass(frozen=True)
class Precision:
    """How weights and cache are to be stored; `weights` is int2, int3, int4, int8, f16 or f32."""

    weights: str = "int4"
    group: int = 32
    kv: KvDtype = "f16"


Verified = Literal["run", "emulated", "interpreted", "compiled"]


BITS = {"int2": 2, "int3": 3, "int4": 4, "int8": 8}
FUSIONS = ("fuse-linear", "fuse-attention", "fuse-qkv", "fuse-gate-up")


def pass_list(precision: Precision, fusions: Sequence[str] = FUSIONS, grid_options: str = "") -> str:
    """Return default passes as text, in running order; `grid_options` are more of quantize-weights.

    Weights stored on a grid keep it, but for fewer bits than any file format's usual 4, which is a request.
    """
    passes = ["fold-constants", "eliminate-dead-code", *fusions]
    if precision.weights in BITS:
        bits = BITS[precision.weights]
        narrow = "requantize=true " if bits < BITS["int4"] else ""
        options = f"bits={bits} group={precision.group} {narrow}{grid_options}".rstrip()
        passes.append(f"quantize-weights{{{options}}}")
    passes += ["fuse-add-rms-norm", f"kv-layout{{page=16 dtype={precision.kv}}}", "eliminate-dead-code"]
    return ",".join(passes)


@dataclass(frozen=True)
class Limits:
    """Bounds of one step, fixed when a program is lowered; `context` in tokens."""

    context: int
    tokens: int = 512
    rows: int = 64
    seqs: int = 64


@dataclass(frozen=True)
class Lowered:
    """What a target made of a program: its packed weights in file order, its code, and the bounds of a step.

    `limits` holds at least tokens and rows (of a step) and context; `files` by path within the artifact.
    `draft_tensors` are the weights of a draft that its backbone has not, `rank_tensors` those that each of
    several devices has for itself.
    """

    limits: Mapping[str, int]
    tensors: tuple[Tensor, ...]
    files: Mapping[str, bytes]
    info: TargetInfo
    draft_tensors: tuple[Tensor, ...] = ()
    rank_tensors: tuple[tuple[Tensor, ...], ...] = ()


@dataclass(frozen=True)
class Device:
    """One machine that a target can compile for; `runs_here` says whether this machine is one.

    `dtypes` and `caches` are the forms of weights and cache that its kernels take. `verified` says how far
    the code was checked: run on such a machine, emulated (its machine's code executed by an emulator),
    interpreted (the kernels' source executed), or compiled only. Up to `together` of it run a step at once,
    as the device `NAME-N`; this machine has `count` of it.
    """

    name: str
    summary: str
    runs_here: bool
    dtypes: tuple[str, ...] = ("int2", "int3", "int4", "int8", "f32")
    caches: tuple[str, ...] = ("f16", "int8", "int4", "f32")
    verified: Verified = "run"
    together: int = 1
    count: int = 0

    def several(self, number: int) -> "Device":
        """Return so many of it as one device; how they work together is known of the source alone."""
        here = self.runs_here and self.count >= number
        name = f"{self.name}-{number}"
        return replace(self, name=name, runs_here=here, verified="interpreted", together=1)


@dataclass(frozen=True)
class Target:
    """A kind of machine. `pipeline` gives the default passes as text; `lower` takes a device's name.

    `host_device` is the one that this machine is, None if it is none. `drafts` says whether its runtime
    gives out features and runs trained drafts.
    """

    kind: str
    summary: str
    devices: Callable[[], tuple[Device, ...]]
    host_device: Callable[[], str | None]
    pipeline: Callable[[Precision], str]
    lower: Callable[[Program, str, Limits], Lowered]
    drafts: bool = False

    def device(self, name: str) -> Device | None:
        """Return a device by name, or several of one as `NAME-N`; None if there is none."""
        alone, _, number = name.rpartition("-")
        for device in self.devices():
            if device.name == name:
                return device
            if device.name == alone and number in map(str, range(2, device.together + 1)):
                return device.several(int(number))
        return None


@dataclass(frozen=True)
class BoundTarget:
    """A target and the device of it that was asked for; `name` is how a user writes it."""

    target: Target
    device: str

    @property
    def name(self) -> str:
        """Return `kind:device`."""
        return f"{self.target.kind}:{self.device}"

    def pipeline(self, precision: Precision) -> str:
        """Return the default passes.

        Raises: TargetRefused for a form of weights or cache that the device's kernels do not take.
        """
        device = self.target.device(self.device)
        assert device is not None, f"'{self.name}' was not looked up"
        asked = (("weights", precision.weights, device.dtypes), ("a cache", precision.kv, device.caches))
        for what, form, taken in asked:
            if form not in taken:
                raise TargetRefused(
                    f"target '{self.name}' has no kernels for {what} in {form}; it takes {', '.join(taken)}",
                    hint=f"the nearest is {_nearest(form, taken)}",
                )
        return self.target.pipeline(precision)


def _nearest(form: str, taken: tuple[str, ...]) -> str:
    """Return the integers of fewest bits that are not fewer than asked for, or else the first floats."""
    integers = sorted((one for one in taken if one in BITS), key=lambda one: BITS[one])
    wide = [one for one in integers if form in BITS and BITS[one] > BITS[form]]
    return wide[0] if wide else next(one for one in taken if one.startswith("f"))
