"""`tokc inspect`: what an artifact holds."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokc.cli import inspect_gpu, inspect_xla
from tokc.cli.console import console, print_json
from tokc.errors import TokcError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

    from tokc.report.model import LedgerRow
    from tokc.runtime.artifact import Artifact
    from tokc.runtime.manifest import DraftInfo


def inspect(
    artifact: Annotated[Path, typer.Argument(help="A NAME.tokc folder.", show_default=False)],
    *,
    plan: Annotated[bool, typer.Option("--plan", help="Print every launch of a step.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Print an artifact's manifest, memory and passes; its files are not read through."""
    from tokc.runtime.artifact import Artifact

    found = Artifact.open(artifact, verify=False)
    if plan:
        typer.echo(_plan(artifact), nl=False)
        if found.manifest.draft is not None:
            typer.echo(f"draft:\n{_plan(artifact / 'draft')}", nl=False)
    elif as_json:
        print_json(found.manifest.to_json())
    else:
        _print(found)


def _plan(artifact: Path) -> str:
    """Return the launches of a step as text.

    Raises: TokcError if the artifact has none.
    """
    if (artifact / "plan.txt").is_file():
        return (artifact / "plan.txt").read_text()
    hint = "its steps are in kernels/xla.json, what XLA made of them in hlo/ where it compiled them"
    raise TokcError(
        "the artifact has no plan of launches",
        where=str(artifact),
        hint=hint if inspect_xla.has_steps(artifact) else None,
    )


def _print(artifact: "Artifact") -> None:
    from rich.markup import escape
    from rich.table import Table

    from tokc.report import units
    from tokc.report.quality import draft_ledger_of, ledger_of, notes_of

    manifest = artifact.manifest
    model, kv, limits = manifest.model, manifest.kv, manifest.limits
    ranks = inspect_gpu.ranks(artifact.path) if inspect_gpu.has_kernels(artifact.path) else ""
    facts = {
        "model": f"{model.family}: {model.layers} layers of {model.hidden}, {model.heads} heads "
        f"({model.kv_heads} for keys and values) of {model.head_dim}, vocabulary {model.vocab}",
        "target": f"{manifest.target.kind}:{manifest.target.device} ({manifest.target.arch})",
        "pipeline": manifest.pipeline.replace(",", "\n"),
        "limits": f"context {limits.context} tokens; a step {limits.max_tokens_per_step} tokens, "
        f"{limits.max_rows} sequences",
        "cache": f"pages of {kv.page} tokens in {kv.dtype}",
        "memory": _memory(artifact.path),
        **({"ranks": ranks} if ranks else {}),
        **({} if manifest.draft is None else {"draft": _draft(manifest.draft, artifact.path)}),
        "licence": manifest.licence or "not stated",
        "built by": f"tokc {manifest.tokc_version}",
    }
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, text in facts.items():
        table.add_row(f"[dim]{name}[/]", text)
    files = Table("file", box=None, pad_edge=False, header_style="dim")
    files.add_column("bytes", justify="right")
    files.add_column("sha256")
    for name, file in sorted(manifest.files.items()):
        files.add_row(name, units.scaled(file.bytes, "B"), file.sha256[:16])
    out = console()
    out.print(f"[bold]{manifest.name}[/]")
    out.print(table)
    out.print()
    if any(row.kl_mean is not None for row in ledger_of(artifact.path)):
        out.print(_answers(ledger_of(artifact.path)))
        out.print()
    for name, note in notes_of(artifact.path):
        out.print(f"[dim]{name}[/] {escape(note)}")
        out.print()
    if draft_ledger_of(artifact.path):
        out.print(_answers(draft_ledger_of(artifact.path), "draft: pass"))
        out.print()
    for each in _code(artifact.path):
        out.print(each)
        out.print()
    out.print(files)


def _answers(ledger: "Iterable[LedgerRow]", head: str = "pass") -> "Table":
    """Return what the passes that changed something did to the answers."""
    from rich.table import Table

    from tokc.report.quality import LEDGER_HEADS, LEDGER_NOTE, ledger_cells

    table = Table(head, *LEDGER_HEADS, box=None, pad_edge=False, header_style="dim")
    for row in ledger:
        if row.kl_mean is not None:
            table.add_row(row.pass_spec.partition("{")[0], *ledger_cells(row))
    table.caption, table.caption_justify = LEDGER_NOTE, "left"
    return table


def _code(artifact: Path) -> "tuple[Table, ...]":
    """Return what is to be said of an accelerator's code."""
    if inspect_xla.has_steps(artifact):
        return inspect_xla.tables(artifact)
    return inspect_gpu.tables(artifact) if inspect_gpu.has_kernels(artifact) else ()


def _draft(draft: "DraftInfo", path: Path) -> str:
    """Return what drafts tokens, and what a step of it needs."""
    from tokc.report import units

    plan = json.loads((path / "draft" / "plan.json").read_text())
    size = (path / "draft" / "model.safetensors").stat().st_size
    heads = f" of {draft.heads} heads" if draft.kind == "medusa" else ""
    held = "not stated" if draft.acceptance is None else f"{draft.acceptance:.1%}"
    return (
        f"{draft.kind}{heads} over {draft.vocab} tokens, from {draft.file} ({draft.sha256[:12]})\n"
        f"{units.scaled(size, 'B')} of its own weights, {len(plan['launches'])} launches a step; "
        f"acceptance in training {held}"
    )


def _memory(path: Path) -> str:
    """Return what a step needs beside the weights, from the plan or from XLA."""
    from tokc.report import units

    if inspect_xla.has_steps(path):
        return inspect_xla.memory(path)
    if not (path / "plan.json").is_file():
        return "not stated: the artifact has no plan"
    plan = json.loads((path / "plan.json").read_text())
    launches = len(plan["launches"])
    return f"{units.scaled(plan['arena_bytes'], 'B')} of activations; {launches} launches a step"
