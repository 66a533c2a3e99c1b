"""What looks on while a pipeline runs: dumps, timing, verification, the differential check and the ledger."""

import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypedDict, cast

from tokc.differential import DifferentialCheck, max_kl_of
from tokc.draft_differential import DraftCheck
from tokc.errors import VerifyFailed
from tokc.ir import text
from tokc.ir.costs import Cost
from tokc.ir.ops import program_cost
from tokc.ir.program import Program
from tokc.ir.verify import verify
from tokc.passes.quantization.widening import widened
from tokc.pipeline import Observer, Pipeline, Step, pass_text
from tokc.quality.divergence import Divergence
from tokc.quality.perplexity import Comparison

PRICED_CONTEXT = 512  # tokens in the cache of the decoded token that the ledger prices


@dataclass(frozen=True)
class LedgerEntry:
    """Record what one pass did: its time, and the program's size, price and answers before and after.

    FLOPs and bytes are those of one decoded token of one sequence with `PRICED_CONTEXT` tokens in its cache.
    Divergences and perplexities are None where the pass changed nothing or the check is off.
    """

    pass_spec: str
    seconds: float
    changed: bool
    nodes_before: int
    nodes_after: int
    weight_bytes_before: int
    weight_bytes_after: int
    flops_before: float
    flops_after: float
    bytes_before: float
    bytes_after: float
    exact: bool
    max_abs_logit_diff: float | None = None
    mean_abs_logit_diff: float | None = None
    kl_mean: float | None = None
    top1_agree: float | None = None
    perplexity_before: float | None = None
    perplexity_after: float | None = None
    check_seconds: float | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return what `json.dumps` takes, without times: the same build twice writes the same bytes."""
        facts = {**asdict(self), "notes": list(self.notes)}
        return {name: fact for name, fact in facts.items() if name not in {"seconds", "check_seconds"}}


@dataclass(frozen=True)
class DumpIr:
    """Write `000_imported` and, after each pass that changed something, `003_fuse-qkv`, to a folder."""

    directory: Path
    written: list[Path] = field(default_factory=list)

    def after_pass(self, step: Step) -> None:
        """Write what the step made."""
        if not self.written:
            self._write(0, "imported", step.before)
        if step.changed:
            self._write(step.number, step.pass_.name, step.after)

    def _write(self, number: int, name: str, program: Program) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.written.append(text.dump(program, self.directory / f"{number:03d}_{name}"))
        if program.draft is not None:
            drafting = text.dump(program.draft.program, self.directory / f"{number:03d}_{name}.draft")
            self.written.append(drafting)


@dataclass(frozen=True)
class PrintAfter:
    """Print the program after the named passes, or after every one that changed something."""

    write: Callable[[str], object]
    names: Collection[str] | None = None

    def after_pass(self, step: Step) -> None:
        """Print what the step made."""
        wanted = step.changed if self.names is None else step.pass_.name in self.names
        if wanted:
            self.write(f"// after pass {step.number} of {step.total}, {pass_text(step.pass_)}")
            self.write(text.render(step.after))
            if step.after.draft is not None:
                self.write(text.render(step.after.draft.program))


@dataclass(frozen=True)
class VerifyEach:
    """Verify the program after each pass that changed something."""

    def after_pass(self, step: Step) -> None:
        """Verify what the step made; the error names the pass."""
        if not step.changed:
            return
        try:
            verify(step.after)
        except VerifyFailed as error:
            problem = (
                f"pass {step.number} of {step.total}, {step.pass_.name}, broke the program: {error.problem}"
            )
            raise VerifyFailed(problem, where=error.where, hint=error.hint) from error


@dataclass
class Timer:
    """Record how long each pass took, in seconds."""

    seconds: list[tuple[str, float]] = field(default_factory=list)

    def after_pass(self, step: Step) -> None:
        """Record the step's time."""
        self.seconds.append((pass_text(step.pass_), step.seconds))


class Ledger:
    """Record every pass; `check` (run before the ledger) contributes the divergences."""

    def __init__(self, check: DifferentialCheck | None = None, drafts: DraftCheck | None = None) -> None:
        self.check, self.drafts = check, drafts
        self.entries: list[LedgerEntry] = []
        self.of_draft: list[LedgerEntry] = []

    def after_pass(self, step: Step) -> None:
        """Record the step."""
        measured = None if self.check is None else self.check.measured.get(step.number)
        entry = LedgerEntry(
            pass_spec=pass_text(step.pass_),
            seconds=step.seconds,
            changed=step.changed,
            exact=max_kl_of(step.pass_) == 0,
            **_sizes(step.before, step.after),
        )
        if self.check is not None and step.changed:
            notes = (self.check.note,) if self.check.note else ()
            entry = replace(entry, check_seconds=self.check.seconds.get(step.number), notes=notes)
        if step.after.assets.calibration is not step.before.assets.calibration:
            entry = replace(entry, notes=(*entry.notes, _calibrated_on(step.after.assets.calibration)))
        wider = widened(step.before, step.after) if step.changed else ()
        if wider:
            note = f"wider than in the model's file: {', '.join(map(str, wider))}"
            entry = replace(entry, notes=(*entry.notes, note))
        self.entries.append(entry if measured is None else _with_perplexity(entry, measured))
        self._record_draft(step)

    def _record_draft(self, step: Step) -> None:
        """Record what the step did to the draft; its sizes are those of its own weights, and 0 before it."""
        before, after = step.before.draft, step.after.draft
        if after is None or (before is not None and before.program is after.program):
            return
        entry = LedgerEntry(
            pass_spec=pass_text(step.pass_),
            seconds=step.seconds,
            changed=True,
            exact=max_kl_of(step.pass_) == 0,
            **_draft_sizes(step.before, step.after),
        )
        measured = None if self.drafts is None else self.drafts.measured.get(step.number)
        self.of_draft.append(entry if measured is None else _with_divergence(entry, measured))


@dataclass(frozen=True)
class Announce:
    """Say which pass has run and what it did."""

    say: Callable[[str], object]

    def after_pass(self, step: Step) -> None:
        """Say so."""
        done = (
            f"{len(step.before.graph)} -> {len(step.after.graph)} nodes" if step.changed else "nothing to do"
        )
        self.say(f"pass {step.number} of {step.total}, {step.pass_.name}: {done}")


class Instruments:
    """The observers of a build: verification always, the rest as asked for.

    `print_after` names passes, "all" for each that changes something; programs are printed to standard error.
    """

    def __init__(
        self,
        *,
        check: bool = True,
        dump_ir: Path | None = None,
        print_after: Collection[str] = (),
        progress: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.check = check
        self._progress = progress
        self._check = DifferentialCheck() if check else None
        self._drafts = DraftCheck() if check else None
        self._ledger = Ledger(self._check, self._drafts)
        self._observers: list[Observer] = [Announce(progress), VerifyEach()]
        if dump_ir is not None:
            self._observers.append(DumpIr(dump_ir))
        if print_after:
            names = None if "all" in print_after else print_after
            self._observers.append(PrintAfter(lambda line: sys.stderr.write(f"{line}\n"), names))
        if self._check is not None and self._drafts is not None:
            self._observers += [self._check, self._drafts]
        self._observers.append(self._ledger)

    @property
    def ledger(self) -> tuple[LedgerEntry, ...]:
        """Return what was recorded so far."""
        return tuple(self._ledger.entries)

    @property
    def draft_ledger(self) -> tuple[LedgerEntry, ...]:
        """Return what passes did to the draft, nothing without one."""
        return tuple(self._ledger.of_draft)

    @property
    def final(self) -> Comparison | None:
        """Return how far the last program is from the imported one, None where nothing was compared."""
        return None if self._check is None else self._check.final()

    def run(self, pipeline: Pipeline, program: Program, *, stop_after: str | None = None) -> Program:
        """Run the pipeline under observation.

        Raises: TokcError of the pass or check that failed.
        """
        return pipeline.run(program, self._observers, stop_after=stop_after)

    def check_lowered(self, artifact: Path, program: Program) -> LedgerEntry | None:
        """Run the artifact on this machine, compare it with the last program, and record that as `lower`.

        Raises: PassFailed if its answers differ by more than another order of sums explains.
        """
        if self._check is None:
            return None
        start_s = time.perf_counter()
        measured = self._check.after_lowering(artifact, program)
        if measured is None:
            return None
        seconds = time.perf_counter() - start_s
        entry = LedgerEntry("lower", seconds, changed=True, exact=False, **_sizes(program, program))
        self._ledger.entries.append(_with_perplexity(replace(entry, check_seconds=seconds), measured))
        return self._ledger.entries[-1]

    def check_lowered_draft(self, artifact: Path, program: Program) -> None:
        """Run the artifact's draft on this machine, compare it with the last one, and record that as `lower`.

        Raises: PassFailed if its answers differ by more than another order of sums explains.
        """
        start_s = time.perf_counter()
        measured = None if self._drafts is None else self._drafts.after_lowering(artifact, program)
        if measured is not None:
            seconds, sizes = time.perf_counter() - start_s, _draft_sizes(program, program)
            entry = LedgerEntry("lower", seconds, changed=True, exact=False, **sizes)
            self._ledger.of_draft.append(_with_divergence(replace(entry, check_seconds=seconds), measured))


def _calibrated_on(record: Mapping[str, str]) -> str:
    return (
        f"calibrated on {record['tokens']} tokens of {record['text']}, {record['characters']} characters, "
        f"sha256 {record['sha256']}{'; weights: ' + record['bits'] if 'bits' in record else ''}"
    )


class _Sizes(TypedDict):
    nodes_before: int
    nodes_after: int
    weight_bytes_before: int
    weight_bytes_after: int
    flops_before: float
    flops_after: float
    bytes_before: float
    bytes_after: float


def _draft_sizes(before: Program, after: Program) -> _Sizes:
    """Return the sizes of the drafts of two programs: 0 without one, weights those that it alone has."""
    sizes: dict[str, float] = {}
    for when, program in (("before", before), ("after", after)):
        draft = None if program.draft is None else program.draft.program
        cost = Cost(0.0, 0.0) if draft is None else program_cost(draft, tokens=1, context=PRICED_CONTEXT)
        sizes |= {
            f"nodes_{when}": 0 if draft is None else len(draft.graph),
            f"weight_bytes_{when}": 0 if draft is None else draft.weight_bytes(besides=program),
            f"flops_{when}": cost.flops,
            f"bytes_{when}": cost.bytes,
        }
    return cast("_Sizes", sizes)


def _sizes(before: Program, after: Program) -> _Sizes:
    costs = [program_cost(program, tokens=1, context=PRICED_CONTEXT) for program in (before, after)]
    return {
        "nodes_before": len(before.graph),
        "nodes_after": len(after.graph),
        "weight_bytes_before": before.weight_bytes(),
        "weight_bytes_after": after.weight_bytes(),
        "flops_before": costs[0].flops,
        "flops_after": costs[1].flops,
        "bytes_before": costs[0].bytes,
        "bytes_after": costs[1].bytes,
    }


def _with_divergence(entry: LedgerEntry, measured: Divergence) -> LedgerEntry:
    return replace(
        entry,
        max_abs_logit_diff=measured.max_abs_logit_diff,
        mean_abs_logit_diff=measured.mean_abs_logit_diff,
        kl_mean=measured.kl_mean,
        top1_agree=measured.top1_agree,
    )


def _with_perplexity(entry: LedgerEntry, measured: Comparison) -> LedgerEntry:
    return replace(
        _with_divergence(entry, measured),
        perplexity_before=measured.reference_perplexity,
        perplexity_after=measured.perplexity,
    )
