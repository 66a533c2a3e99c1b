"""A diff as tables: for a terminal, and as Markdown for a pull request."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Group

from tokc.report import sections as as_tables
from tokc.report import units
from tokc.report.diff import Change, Diff, TensorChange, TensorStorage
from tokc.report.diff_figures import Amount
from tokc.report.sections import Section

NOISE = "within noise"
MOST_ROWS = 30


def sections(diff: Diff) -> Iterator[Section]:
    """Return the tables, those without a difference left out."""
    if diff.same:
        yield Section("The artifacts are the same", (), (), f"sha256 {diff.before.manifest_sha256}")
    yield _amounts("Size, bytes and FLOPs (counted and predicted)", diff.figures)
    yield _amounts("Quality, against the imported model", diff.quality)
    yield _changes("Passes", diff.passes)
    yield _changes("Configuration", diff.facts)
    yield _tensors(diff.tensors)
    yield _amounts("Launches of a step, by kernel", diff.launches)
    yield _changes("Files", diff.files)
    bench = diff.bench or ()
    yield _amounts("Measured apart", bench, note=diff.bench_note, everything=True)
    if diff.paired is not None:
        yield _amounts("Measured in turns on this machine", _paired(diff), everything=True)


def terminal(diff: Diff) -> Group:
    """Return the diff for a rich console."""
    return as_tables.terminal(_headline(diff), sections(diff))


def markdown(diff: Diff) -> str:
    """Return the diff as Markdown; long tables are folded."""
    return as_tables.markdown(_headline(diff), sections(diff))


def _headline(diff: Diff) -> str:
    before, after = diff.before, diff.after
    return f"{before.path} ({before.target}) → {after.path} ({after.target})"


def _changes(title: str, changes: Sequence[Change]) -> Section:
    rows = tuple((one.what, one.before or "–", one.after or "–") for one in changes[:MOST_ROWS])
    return Section(title, ("", "before", "after"), rows, _left_out(len(changes)))


def _left_out(count: int) -> str | None:
    return f"and {count - MOST_ROWS} more: --json has them all" if count > MOST_ROWS else None


def _amounts(
    title: str, amounts: Iterable[Amount], *, note: str | None = None, everything: bool = False
) -> Section:
    found = [amount for amount in amounts if everything or amount.differs]
    rows = tuple(
        (one.what, _figure(one.before, one.unit), _figure(one.after, one.unit), _ratio(one))
        for one in found[:MOST_ROWS]
    )
    return Section(title, ("", "before", "after", "after / before"), rows, note or _left_out(len(found)))


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    if unit == "s":
        return units.seconds(value) if value else "0 s"
    if unit in {"B", "FLOP"}:
        return units.scaled(value, unit)
    return f"{value:.4g} {unit}".rstrip()


def _ratio(amount: Amount) -> str:
    if amount.ratio is None:
        return "–"
    change = f"{amount.ratio - 1:+.1%}"
    if amount.low is None or amount.high is None:
        return change
    interval = f"{amount.low - 1:+.1%} to {amount.high - 1:+.1%}"
    return f"{change} ({interval}{'' if amount.conclusive else f', {NOISE}'})"


def _tensors(changes: Sequence[TensorChange]) -> Section:
    """Return a row for each form that the same tensor of several layers changed in."""
    groups: dict[tuple[str, str, str], list[TensorChange]] = defaultdict(list)
    for one in changes:
        name = re.sub(r"(?<=\.)\d+(?=\.)", "*", one.name)
        groups[name, _stored(one.before), _stored(one.after)].append(one)
    rows = [
        (name, str(len(group)), before, after, units.scaled(sum(map(_grown, group)), "B"))
        for (name, before, after), group in groups.items()
    ]
    columns = ("tensor", "number", "before", "after", "bytes more")
    return Section("Storage of tensors", columns, tuple(rows[:MOST_ROWS]), _left_out(len(rows)))


def _stored(storage: TensorStorage | None) -> str:
    if storage is None:
        return "–"
    return f"{storage.dtype}[{', '.join(map(str, storage.shape))}] {units.scaled(storage.bytes, 'B')}"


def _grown(change: TensorChange) -> int:
    return (change.after.bytes if change.after else 0) - (change.before.bytes if change.before else 0)


def _paired(diff: Diff) -> Iterator[Amount]:
    for one in diff.paired or ():
        means = [side.moments() for side in (one.before, one.after)]
        before, after = (None if mean is None else mean[0] for mean in means)
        ratio = one.ratio
        yield Amount(
            f"{one.name}@{one.batch}",
            one.unit,
            before,
            after,
            ratio.value,
            ratio.low,
            ratio.high,
            ratio.conclusive,
        )
