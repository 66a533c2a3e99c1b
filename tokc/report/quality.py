"""Where an artifact's quality is found, and how it is written: its evaluation, and the rows of its ledger."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tokc.cost import records
from tokc.cost.evaluation import Estimate, Evaluation
from tokc.cost.gates import Found
from tokc.cost.intervals import Interval
from tokc.cost.pass_rates import PassRates
from tokc.report import units
from tokc.report.identity import manifest_sha256
from tokc.report.model import LedgerRow

LEDGER_HEADS = ("KL, nats", "same top-1", "mean, max logits error", "perplexity")
LEDGER_NOTE = (
    "KL, top-1, logits and perplexity compare a pass with the program before it over 256 tokens of the "
    "evaluation text, read without context before them: a check of the pass, no score of the model."
)


@dataclass(frozen=True)
class _Ledger:
    ledger: tuple[LedgerRow, ...]
    draft_ledger: tuple[LedgerRow, ...] = ()


def ledger_of(artifact: Path) -> tuple[LedgerRow, ...]:
    """Return what each pass of the build did, with rates where measured; nothing without a ledger.

    Raises: TokcError if the file is damaged.
    """
    path = artifact / "quality.json"
    rows = records.read(_Ledger, path).ledger if path.exists() else ()
    rates = rates_of(artifact)
    if rates is None:
        return rows
    return tuple(replace(row, tokens_per_s=rates.after(number)) for number, row in enumerate(rows, start=1))


def notes_of(artifact: Path) -> tuple[tuple[str, str], ...]:
    """Return what the ledger notes of each pass, as pairs of the pass's name and a note."""
    path = artifact / "quality.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["ledger"] if path.exists() else ()
    return tuple((row["pass_spec"].partition("{")[0], note) for row in rows for note in row.get("notes", ()))


def rates_path(artifact: Path) -> Path:
    """Return where `tokc build --ledger full` writes: beside the artifact."""
    return artifact.with_name(f"{artifact.name.removesuffix('.tokc')}.passes.json")


def rates_of(artifact: Path) -> PassRates | None:
    """Return the rates after each pass of this very build, None where they were not measured.

    Raises: TokcError if the file is damaged.
    """
    path = rates_path(artifact)
    found = records.read(PassRates, path) if path.exists() else None
    return found if found is not None and found.manifest_sha256 == manifest_sha256(artifact) else None


def draft_ledger_of(artifact: Path) -> tuple[LedgerRow, ...]:
    """Return what each pass of the build did to the draft, nothing where there is none.

    Raises: TokcError if the file is damaged.
    """
    path = artifact / "quality.json"
    return records.read(_Ledger, path).draft_ledger if path.exists() else ()


def evaluation_path(artifact: Path) -> Path:
    """Return where `tokc eval` writes: beside the artifact, whose files are sealed by hashes."""
    return artifact.with_name(f"{artifact.name.removesuffix('.tokc')}.eval.json")


def evaluation_of(artifact: Path) -> Evaluation | None:
    """Return the evaluation of this very build, None where there is none beside the artifact.

    Raises: TokcError if the file is damaged.
    """
    path = evaluation_path(artifact)
    if not path.exists():
        return None
    found = records.read(Evaluation, path)
    return found if found.manifest_sha256 == manifest_sha256(artifact) else None


def gate_figures(evaluation: Evaluation | None) -> dict[str, Found]:
    """Return what gates may bound, by the metric's name, each with its interval over windows."""
    if evaluation is None or evaluation.divergence is None or evaluation.tokens is None:
        return {}
    found, windows = evaluation.divergence, evaluation.tokens.windows
    figures = {"ppl_ratio": found.ppl_ratio, "kl_mean": found.kl_mean, "top1_agree": found.top1_agree}
    gated = {name: Found(one.figure, _interval(one), repetitions=windows) for name, one in figures.items()}
    return {**gated, "kl_p99": Found(found.kl_p99, repetitions=windows)}


def ledger_cells(row: LedgerRow) -> tuple[str, str, str, str]:
    """Return what a pass did to the answers, in the columns of `LEDGER_HEADS`."""
    kl = "–" if row.kl_mean is None else f"{row.kl_mean:.1e}"
    agree = "–" if row.top1_agree is None else f"{row.top1_agree:.1%}"
    errors = [row.mean_abs_logit_diff, row.max_abs_logit_diff]
    logits = ", ".join(units.figures(error) for error in errors if error is not None)
    before, after = row.perplexity_before, row.perplexity_after
    perplexity = "–"
    if before is not None and after is not None:
        perplexity = f"{before:.2f}" if f"{before:.2f}" == f"{after:.2f}" else f"{before:.2f} → {after:.2f}"
    return "exact" if row.exact and row.changed else kl, agree, logits or "–", perplexity


def rows(evaluation: Evaluation) -> Iterator[tuple[str, str, str]]:
    """Return the figures as text: what it is, the figure, and its interval or `–`."""
    if evaluation.perplexity is not None:
        yield _row("perplexity", evaluation.perplexity, "{:.3f}")
    if evaluation.divergence is not None:
        found = evaluation.divergence
        yield _row(f"perplexity of {found.reference}", found.perplexity, "{:.3f}")
        yield _row("perplexity ratio", found.ppl_ratio, "{:.4f}")
        yield _row("mean KL, nats", found.kl_mean, "{:.6f}")
        yield "99th percentile KL, nats", f"{found.kl_p99:.6f}", "–"
        yield _row("same top-1", found.top1_agree, "{:.2%}")
        yield "mean logits error", units.figures(found.mean_abs_logit_diff), "–"
        yield "max logits error", units.figures(found.max_abs_logit_diff), "–"
    for task in evaluation.tasks:
        yield _row(f"{task.task}: {task.metric}, {task.items} items", task.score, "{:.1%}")


def method(evaluation: Evaluation) -> str:
    """Return how the figures were measured, and what a reader should know of them."""
    tokens, said = evaluation.tokens, []
    if tokens is not None:
        said.append(
            f"{tokens.windows} windows of {tokens.window} tokens of {tokens.text}, the last {tokens.scored} "
            "of each scored; intervals of 95 % over windows."
        )
    return " ".join([*said, *(f"Note: {note}." for note in evaluation.notes)])


def _row(name: str, one: Estimate, form: str) -> tuple[str, str, str]:
    shown = form.format(one.figure)
    if one.low is None or one.high is None:
        return name, shown, "–"
    return name, shown, f"{form.format(one.low)} to {form.format(one.high)}"


def _interval(one: Estimate) -> Interval | None:
    return None if one.low is None or one.high is None else Interval(one.low, one.high)
