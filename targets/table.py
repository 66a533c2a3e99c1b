"""Every target."""

from collections.abc import Mapping

from tokc.errors import UnknownOption
from tokc.runtime.manifest import TargetInfo
from tokc.targets.base import BoundTarget, Target
from tokc.targets.cpu.target import TARGET as CPU
from tokc.targets.gpu.target import CUDA, ROCM
from tokc.targets.tpu.target import TPU, XLA

TARGETS: Mapping[str, Target] = {target.kind: target for target in (CPU, CUDA, ROCM, TPU, XLA)}


def named_target(text: str) -> BoundTarget:
    """Return the target that `kind` or `kind:device` names; `kind` alone means this machine.

    Raises: UnknownOption listing what there is.
    """
    kind, _, device = text.partition(":")
    target = TARGETS.get(kind)
    if target is None:
        raise UnknownOption(
            f"unknown target '{text}'; choose from {', '.join(TARGETS)}", hint="`tokc targets` lists them"
        )
    names = [known.name for known in target.devices()]
    if not device:
        host = target.host_device()
        if host is None:
            raise UnknownOption(
                f"this machine has no device of target '{kind}' to build for; choose from {', '.join(names)}",
                hint=f"name one, as in `--target {kind}:{names[0]}`; it need not be here",
            )
        return BoundTarget(target, host)
    if target.device(device) is None:
        several = [f"{known.name}-{known.together}" for known in target.devices() if known.together > 1]
        more = f"; several of one together are spelled NAME-N, up to {several[0]}" if several else ""
        raise UnknownOption(
            f"unknown device '{device}' of target '{kind}'; choose from {', '.join(names)}{more}",
            hint=f"`--target {kind}` alone means this machine",
        )
    return BoundTarget(target, device)


def runs_here(info: TargetInfo) -> bool:
    """Return whether this machine runs what was compiled for `info`."""
    device = TARGETS[info.kind].device(info.device)
    return device is not None and device.runs_here
