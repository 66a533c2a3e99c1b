"""`tokc targets`: what can be compiled for."""

from typing import Annotated

import typer

from tokc.cli.console import needs_extra, print_json


def targets(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List the targets and their devices; the ones marked with * run on this machine."""
    with needs_extra("build", "targets"):
        from tokc.targets.table import TARGETS
    if as_json:
        print_json(
            {
                kind: {
                    "summary": target.summary,
                    "host": target.host_device(),
                    "devices": {one.name: one.runs_here for one in target.devices()},
                }
                for kind, target in TARGETS.items()
            }
        )
        return
    for kind, target in TARGETS.items():
        typer.echo(f"{kind}  {target.summary}; this machine is {kind}:{target.host_device()}")
        for device in target.devices():
            mark = "*" if device.runs_here else " "
            typer.echo(f"  {mark} {kind}:{device.name:18} {device.summary}")
