"""Finds the first pass that changes the answers by more than it may, and in what it made the first op.

Each pass is compared with the program before it over the tokens of the build's check. In the guilty pass,
the values that both programs have by name are compared in running order: the first that differs is made by
the first op that is wrong.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokc.differential import DifferentialCheck, max_kl_of
from tokc.errors import TokcError, VerifyFailed
from tokc.instruments import VerifyEach
from tokc.ir import text
from tokc.ir.execute import Array, Session
from tokc.ir.program import Program
from tokc.pipeline import Pipeline, Step, pass_text
from tokc.quality.perplexity import I64
from tokc.quality.running import feeds_of, fixed_ids

OP_TOKENS = 24  # every value of both programs is kept for so many
EXACT_ERROR, LOSSY_ERROR = 1e-3, 0.1  # of a value's norm: beyond it an op is named
FLOATS = frozenset({np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16)})


@dataclass(frozen=True)
class GuiltyOp:
    """The op that made the first value that differs; `error` is |after - before| / |before| of the value."""

    op: str
    node: str
    value: str
    error: float


@dataclass(frozen=True)
class Guilty:
    """A pass that broke its promise: what was found, the first op, and how to run it alone.

    `op` is None where the program after it does not run, or no value of both programs differs.
    """

    number: int
    total: int
    pass_spec: str
    problem: str
    op: GuiltyOp | None
    repro: str


def bisect(
    program: Program,
    pipeline: Pipeline,
    folder: Path,
    *,
    max_kl: float | None = None,
    progress: Callable[[str], object] = lambda _: None,
) -> Guilty | None:
    """Run the passes one by one; return the first guilty one, None if each keeps its promise.

    `max_kl`, nats, takes the place of what lossy passes state of themselves. The program before the guilty
    pass is written to `folder`, whatever was in it.
    """
    check, total = DifferentialCheck(max_elements=1 << 62), len(pipeline.passes)
    for number, pass_ in enumerate(pipeline.passes, start=1):
        progress(f"pass {number} of {total}, {pass_.name}")
        after = program
        try:
            after = Pipeline((pass_,)).run(program)
            step = Step(number, total, pass_, program, after, 0.0)
            VerifyEach().after_pass(step)
            check.after_pass(step)
            measured = check.measured.get(number)
            problem = None
            if max_kl is not None and measured is not None and not measured.kl_mean <= max_kl:
                problem = (
                    f"its mean KL to the program before it is {measured.kl_mean:.3g}, allowed is {max_kl:.3g}"
                )
        except VerifyFailed as error:
            problem, after = error.problem, program  # what it made cannot be run
        except TokcError as error:
            problem = error.problem
        if problem is not None:
            limit = LOSSY_ERROR if max_kl_of(pass_) else EXACT_ERROR
            op = None if after is program else first_op(program, after, limit)
            return Guilty(
                number, total, pass_text(pass_), problem, op, _repro(program, pass_text(pass_), folder)
            )
        program = after
    return None


def first_op(before: Program, after: Program, limit: float) -> GuiltyOp | None:
    """Return the node of `after` that makes the first value beyond the limit, else the one furthest off.

    Values are matched by name and compared whatever their shape; None where none differs or one does not run.
    """
    length = min(OP_TOKENS, after.config.context)
    ids = fixed_ids(after, 1, length)
    expected, found = values_of(before, ids), values_of(after, ids)
    worst: GuiltyOp | None = None
    for node in after.graph:
        for value in node.outputs:
            name = str(value.name)
            error = _error(expected.get(name), found.get(name))
            if error is None:
                continue
            guilty = GuiltyOp(node.op_type, str(node.name or ""), name, error)
            if not error <= limit:
                return guilty
            worst = guilty if error > 0 and (worst is None or error > worst.error) else worst
    return worst


def values_of(program: Program, ids: I64) -> Mapping[str, Array]:
    """Run a program over ids [1, tokens] and return every value that it computes, by name."""
    shown = program.copy()
    have = set(shown.graph.outputs)
    made = [value for node in shown.graph for value in node.outputs if value.name and value not in have]
    shown.graph.outputs.extend(made)
    for value in made:
        if value.type is None:
            shown.graph.outputs.remove(value)
    try:
        with Session(shown) as session:
            return session.run(feeds_of(program, ids))
    except (RuntimeError, ValueError, TypeError):
        return {}


def _error(expected: Array | None, found: Array | None) -> float | None:
    """Return how far a value is off, None where it is not of both programs or no real number."""
    if expected is None or found is None or expected.size != found.size:
        return None
    if expected.dtype not in FLOATS or found.dtype not in FLOATS or not expected.size:
        return None
    right, other = (one.astype(np.float64).reshape(-1) for one in (expected, found))
    norm = float(np.linalg.norm(right))
    return float(np.linalg.norm(other - right)) / (norm or 1.0)


def _repro(program: Program, pass_spec: str, folder: Path) -> str:
    """Write the program that goes into the pass; return the command that runs it alone."""
    path = text.dump(program, folder / "before")
    return f"tokc opt {path} --passes '{pass_spec}' --out {folder / 'after'}"
