"""A prediction as tables for a terminal and for Markdown."""

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Group

from tokc.report import sections as tables
from tokc.report import units
from tokc.report.model import DISTURBED_SHARE
from tokc.report.prediction import Compared, Comparison, Prediction
from tokc.report.sections import Section


def terminal(found: Prediction) -> Group:
    """Return the tables for a rich console."""
    return tables.terminal(f"Predicted for {found.machine}", sections(found))


def grid_terminal(found: Comparison) -> Group:
    """Return a measured grid beside its predictions for a rich console."""
    return tables.terminal(f"Decoding {found.artifact}, {found.threads} threads", [grid_section([found])])


def sections(found: Prediction) -> Iterator[Section]:
    """Return the tables: decoding, reading prompts, what fits, and predicted against measured."""
    yield _decoding(found)
    yield _reading(found)
    yield _capacity(found)
    if found.comparison is not None:
        yield grid_section([found.comparison])


def grid_section(comparisons: Sequence[Comparison]) -> Section:
    """Return predicted against measured times of a token, of one or more artifacts."""
    rows = tuple(
        (
            one.artifact,
            str(cell.batch),
            str(cell.context),
            units.seconds(cell.measured_s),
            units.seconds(cell.median_s),
            units.seconds(cell.predicted_s),
            units.percent(cell.error),
            *_beside(cell),
        )
        for one in comparisons
        for cell in one.cells
    )
    measured = ("artifact", "batch", "context", "measured, least", "median")
    columns = (*measured, "predicted", "error", "memory", "at the fit's rate")
    notes = [summary(comparisons), *dict.fromkeys(f"Predicted: {one.basis}." for one in comparisons)]
    return Section("Predicted against measured time of a token", columns, rows, "\n".join(notes))


def _beside(cell: Compared) -> tuple[str, str]:
    """Return what memory gave beside a cell, and the error of a prediction at the calibration's rate."""
    if cell.calibrated_s is None or cell.read_bytes_per_s is None:
        return "–", "–"
    wrong = units.percent(cell.calibrated_s / cell.measured_s - 1)
    return units.scaled(cell.read_bytes_per_s, "B/s"), wrong


def summary(comparisons: Sequence[Comparison]) -> str:
    """Return the mean and the worst error over all cells, and whether others disturbed the measurement."""
    errors = [abs(cell.error) for one in comparisons for cell in one.cells]
    mean = sum(errors) / len(errors)
    text = f"Error over {len(errors)} cells: {mean:.1%} on average, {max(errors):.1%} at worst."
    fixed = [
        abs(cell.calibrated_s / cell.measured_s - 1)
        for one in comparisons
        for cell in one.cells
        if cell.calibrated_s is not None
    ]
    if fixed:
        at_fit = sum(fixed) / len(fixed)
        text += f" At the calibration's rate of memory it would be {at_fit:.1%}, {max(fixed):.1%} at worst."
    foreign = max(one.foreign_cpu for one in comparisons)
    if foreign >= DISTURBED_SHARE:
        text += f" Other programs took {foreign:.0%} of the cores meanwhile: measure again when quiet."
    return text


def _decoding(found: Prediction) -> Section:
    contexts = tuple(dict.fromkeys(one.context for one in found.decoding))
    by_batch: dict[int, dict[int, str]] = {}
    for one in found.decoding:
        rate = units.figures(one.tokens_per_s)
        cell = rate if one.usd_per_mtok is None else f"{rate}, {units.usd(one.usd_per_mtok)}"
        by_batch.setdefault(one.batch, {})[one.context] = cell
    rows = tuple((str(batch), *_row(cells, contexts)) for batch, cells in by_batch.items())
    columns = ("batch", *(f"{context} tokens" for context in contexts))
    title = "Predicted decoding by context: tokens/s, and USD for 1M output tokens at full use"
    return Section(title, columns, rows, f"{found.basis[0].upper()}{found.basis[1:]}.")


def _row(cells: dict[int, str], contexts: Iterable[int]) -> Iterator[str]:
    return (cells.get(context, "does not fit") for context in contexts)


def _reading(found: Prediction) -> Section:
    rows = tuple(
        (str(one.chunk), units.seconds(one.step_s), units.figures(one.tokens_per_s)) for one in found.reading
    )
    return Section("Predicted reading of a prompt by chunk", ("chunk", "a step", "tokens/s"), rows)


def _capacity(found: Prediction) -> Section:
    rows = tuple(
        (
            str(one.context),
            f"{one.sequences:,}",
            str(one.batch),
            "–" if one.tokens_per_s is None else units.figures(one.tokens_per_s),
            "–" if one.usd_per_mtok is None else units.usd(one.usd_per_mtok),
        )
        for one in found.capacity
    )
    note = (
        f"The cache may take {units.scaled(found.kv_bytes, 'B')}, room for {found.kv_tokens:,} tokens. A "
        "step takes no more sequences than the artifact was built for."
    )
    columns = ("context", "sequences that fit", "largest batch", "tokens/s at it", "per 1M output")
    return Section("What fits beside the weights, predicted", columns, rows, note)
