"""Finds the changes that gates bound: in what was counted, in the ledgers, and in paired measurements."""

from tokc.cost.gates import Found, Gate, Judged, judge
from tokc.cost.intervals import Interval
from tokc.errors import TokcError
from tokc.report.diff import Diff


def judge_changes(gates: tuple[Gate, ...], diff: Diff) -> tuple[Judged, ...]:
    """Return the verdict on each gate, whose limit is a ratio; a measured one at every batch that it bounds.

    Raises: TokcError if a figure is missing on one side, or was not measured in turns.
    """
    return tuple(judge(gate, found, "change") for gate in gates for found in _find(gate, diff))


def _find(gate: Gate, diff: Diff) -> tuple[Found, ...]:
    if gate.measured:
        pairs = [
            Found(one.ratio.value, Interval(one.ratio.low, one.ratio.high), one.batch, one.ratio.repetitions)
            for one in diff.paired or ()
            if one.name == gate.metric and gate.batch in {None, one.batch}
        ]
        if not pairs:
            raise TokcError(
                f"'{gate.metric}' was not measured at batch {gate.batch or 'any'}",
                where=f"gate '{gate.text}'",
                hint=f"measure it: tokc diff {diff.before.path} {diff.after.path} --measure"
                + (f" --batch {gate.batch}" if gate.batch else ""),
            )
        return tuple(pairs)
    for amount in (*diff.figures, *diff.quality):
        if amount.what == gate.metric and amount.ratio is not None:
            return (Found(amount.ratio),)
    raise TokcError(
        f"the change of '{gate.metric}' is not known: an artifact does not state it, or the first states 0",
        where=f"gate '{gate.text}'",
        hint="bound the figure itself: tokc check",
    )
