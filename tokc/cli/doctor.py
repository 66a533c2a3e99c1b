"""`tokc doctor`: what this machine can do, and what is installed."""

import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from tokc.cli.console import console, print_json, progress

# distribution, module, extra
PARTS = (
    ("numpy", "numpy", "base"),
    ("tokenizers", "tokenizers", "base"),
    ("jinja2", "jinja2", "base"),
    ("typer", "typer", "cli"),
    ("rich", "rich", "cli"),
    ("apache-tvm", "tvm", "build"),
    ("onnx", "onnx", "build"),
    ("onnx-ir", "onnx_ir", "build"),
    ("onnxruntime", "onnxruntime", "build"),
    ("gguf", "gguf", "build"),
    ("ziglang", "ziglang", "build"),
    ("starlette", "starlette", "serve"),
    ("uvicorn", "uvicorn", "serve"),
)


def doctor(
    *,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(help="Fit predictions to steps of this artifact; repeatable.", show_default=False),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="How long to time each artifact.")] = 30.0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads to time. [default: every core]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Report the machine (cores, instructions, measured rates), the installed parts and free space."""
    if calibrate:
        _calibrate(calibrate, seconds, threads, as_json=as_json)
        return
    from dataclasses import asdict

    import tokc
    from tokc.cost.devices import probe

    host, parts = probe(), _parts()
    facts: dict[str, object] = {
        "tokc": tokc.__version__,
        "python": sys.version.split()[0],
        "host": asdict(host),
        "device": _device(),
        "parts": parts,
        "free_disk_bytes": shutil.disk_usage(Path.cwd()).free,
    }
    if as_json:
        print_json(facts)
    else:
        _print(facts)


def _calibrate(artifacts: list[Path], seconds: float, threads: int | None, *, as_json: bool) -> None:
    """Fit, keep the result in the user's cache and show it."""
    from tokc.cost import records
    from tokc.cost.calibrating import calibrate
    from tokc.cost.calibration import calibration_path
    from tokc.report import calibration_text

    with progress() as say:
        found = calibrate(artifacts, seconds, threads, say)
    path = calibration_path(found.device)
    records.write(path, found)
    if as_json:
        print_json(records.encode(found))
        return
    console().print(calibration_text.terminal(found))
    typer.echo(f"written to {path}", err=True)


def _parts() -> dict[str, dict[str, str | None]]:
    parts: dict[str, dict[str, str | None]] = {}
    for distribution, module, extra in PARTS:
        try:
            found = version(distribution) if find_spec(module) else None
        except PackageNotFoundError:
            found = None
        parts.setdefault(extra, {})[distribution] = found
    return parts


def _device() -> str | None:
    """Return the device that `--target cpu` means here, None without the extra `build`."""
    if find_spec("onnx_ir") is None or find_spec("tvm") is None:
        return None
    from tokc.targets.table import named_target

    return named_target("cpu").name


def _print(facts: dict[str, object]) -> None:
    from rich.table import Table

    from tokc.report import units

    host, parts = facts["host"], facts["parts"]
    assert isinstance(host, dict), "a host is a record"
    assert isinstance(parts, dict), "parts are listed by extra"
    table = Table(box=None, pad_edge=False, show_header=False)
    rows = {
        "tokc": f"{facts['tokc']} on Python {facts['python']}",
        "machine": f"{host['cpu']}, {host['arch']}, {host['cores']} cores, "
        f"{units.scaled(host['memory_bytes'], 'B')} of memory",
        "instructions": ", ".join(host["instructions"]),
        "target": facts["device"] or "cannot build here: the extra `build` is missing",
        "reads": f"{units.scaled(host['read_bytes_per_s'], 'B/s')} ({host['how']})",
        "arithmetic": f"{units.scaled(host['f32_flops_per_s'], 'FLOP/s')} in f32",
        "disk": f"{units.scaled(facts['free_disk_bytes'], 'B')} free here",  # type: ignore[arg-type]
    }
    for extra, found in parts.items():
        rows[extra] = ", ".join(f"{name} {number or '[red]missing[/]'}" for name, number in found.items())
    for name, text in rows.items():
        table.add_row(f"[dim]{name}[/]", str(text))
    console().print(table)
