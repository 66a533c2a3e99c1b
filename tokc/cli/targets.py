"""`tokc targets`: what can be compiled for."""

from typing import TYPE_CHECKING, Annotated

import typer

from tokc.cli.console import needs_extra, print_json

if TYPE_CHECKING:
    from tokc.targets.base import Device


def targets(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List the targets and their devices: weights that they take, and how far their code was verified.

    Those marked with * run on this machine. Code was run on such a device; or emulated: its machine code was
    executed by an emulator; or interpreted: its kernels' source was executed; or only compiled.
    """
    with needs_extra("build", "targets"):
        from tokc.targets.table import TARGETS
    if as_json:
        print_json(
            {
                kind: {
                    "summary": target.summary,
                    "host": target.host_device(),
                    "devices": {one.name: _facts(one) for one in target.devices()},
                }
                for kind, target in TARGETS.items()
            }
        )
        return
    for kind, target in TARGETS.items():
        host = target.host_device()
        here = "none is here" if host is None else f"this machine is {kind}:{host}"
        typer.echo(f"{kind}  {target.summary}; {here}")
        for device in target.devices():
            mark = "*" if device.runs_here else " "
            name = f"{kind}:{device.name}"
            dtypes = ",".join(device.dtypes)
            several = f"; up to {name}-{device.together}" if device.together > 1 else ""
            if several:
                several += f" together, {device.several(device.together).verified}"
            typer.echo(f"  {mark} {name:20} {device.summary:32} {dtypes:16} {device.verified}{several}")


def _facts(device: "Device") -> dict[str, object]:
    return {
        "summary": device.summary,
        "runs_here": device.runs_here,
        "dtypes": list(device.dtypes),
        "caches": list(device.caches),
        "verified": device.verified,
        "together": device.together,
    }
