"""Searches for the cheapest build that keeps its limits.

Candidates are drawn by a tree-structured Parzen estimator (Bergstra et al. 2011, multivariate, with
constraints; Optuna), after a few that are usually good. A candidate whose roofline
is worse than what the best so far was measured at is not built; one whose quality breaks a limit is not
measured. Finished trials are kept in an SQLite study, so that a search that was stopped goes on.
"""

import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tokc
from tokc.compiler import work_of
from tokc.cost import records
from tokc.cost.devices import Host
from tokc.cost.prices import usd_per_token
from tokc.cost.roofline import Work, predict
from tokc.errors import TokcError
from tokc.importers import import_model
from tokc.pipeline import Pipeline
from tokc.targets.base import Precision
from tokc.targets.table import named_target
from tokc.tuning import trial as trials
from tokc.tuning.machines import Machines, ThisMachine
from tokc.tuning.recipe import Recipe
from tokc.tuning.space import STARTS, Candidate, suggest
from tokc.tuning.trial import Finished, Outcome, Progress, Setting

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

SEED = 0
STATES = {"COMPLETE": "measured", "PRUNED": "left", "FAIL": "failed"}
MTOK = 1e6
ROOFED = ("cost_per_mtok", "tokens_per_s", "tpot")
MARGIN = 0.8  # the probe's bandwidth is a lower bound of the machine's
CONTEXT = 128  # tokens in the cache, as `tokc bench` has them about
BEST = "best.tokc"


@dataclass(frozen=True)
class Tried:
    """A trial as it is shown: its candidate, what became of it, its figures by gate, and where."""

    number: int
    candidate: Candidate
    state: str
    objective: float | None
    figures: dict[str, float]
    feasible: bool
    why: str = ""
    machine: str = ""


@dataclass(frozen=True)
class Budget:
    """When a search ends: after so many seconds, or trials, whichever is first."""

    seconds: float
    trials: int | None = None


class Search:
    """A study in a folder: `study.db`, and the best build so far."""

    def __init__(self, folder: Path, setting: Setting, host: Host) -> None:
        """Open the study in `folder`, or begin one; `host` is this machine.

        Raises: TokcError if the model cannot be read, or the folder holds a search for something else.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.setting, self.host = folder, setting, host
        self.base = Pipeline.parse(named_target(setting.target).pipeline(Precision()))
        self.program = import_model(setting.model, context=setting.context)
        self.stored = any(node.op_type == "BlockDequantize" for node in self.program.graph)
        sampler = optuna.samplers.TPESampler(seed=SEED, multivariate=True, n_startup_trials=len(STARTS))
        self.study: Study = optuna.create_study(
            study_name="tune",
            storage=f"sqlite:///{folder.resolve() / 'study.db'}",
            direction="maximize" if setting.maximize else "minimize",
            sampler=sampler,
            load_if_exists=True,
        )
        self._require_same()
        if not self.study.trials:
            for start in STARTS:
                self.study.enqueue_trial(self._fixed(start))

    def run(
        self, budget: Budget, machines: Machines | None = None, progress: Progress = lambda _: None
    ) -> None:
        """Try candidates until the budget is spent, by default here.

        An interrupt keeps what was found; what was running is tried first when the search goes on.
        """
        end_s, begun = time.monotonic() + budget.seconds, 0
        machines = machines or ThisMachine(self.setting, self.folder, self.host)
        running: dict[int, Trial] = {}
        try:
            with suppress(KeyboardInterrupt):
                while True:
                    more = time.monotonic() < end_s and (budget.trials is None or begun < budget.trials)
                    if more and len(running) < machines.count:
                        begun += 1
                        self._begin(self.study.ask(), running, machines, progress)
                    elif running:
                        done = machines.finished()
                        self._end(running.pop(done.number), done)
                    else:
                        break
        finally:
            for trial in running.values():
                self._fail(trial, "stopped")
                self.study.enqueue_trial(trial.params)

    @property
    def tried(self) -> tuple[Tried, ...]:
        """Return every trial, in order."""
        return tuple(_tried(one) for one in self.study.trials if one.state.is_finished())

    @property
    def best(self) -> Tried | None:
        """Return the best that keeps every limit, None if none does."""
        found = [one for one in self.tried if one.feasible and one.objective is not None]
        sign = -1.0 if self.setting.maximize else 1.0
        return min(found, key=lambda one: sign * (one.objective or 0.0), default=None)

    def recipe(self, one: Tried) -> Recipe:
        """Return the options that build a trial again."""
        setting = self.setting
        return Recipe(
            named_target(setting.target).name, str(one.candidate.pipeline(self.base)), setting.context
        )

    def notes(self, one: Tried) -> list[str]:
        """Return what a recipe says of how it was found."""
        setting, count = self.setting, len(self.tried)
        word = "most" if setting.maximize else "least"
        limits = ", ".join(f"{gate.text} (found {one.figures[gate.text]:.6g})" for gate in setting.limits)
        where = f"{setting.model.name} on {self.host.cpu}"
        return [
            f"tokc {tokc.__version__}, {where}: trial {one.number} of {count}",
            f"{word} {setting.objective.metric}: {one.objective:.6g}, measured; limits: {limits or 'none'}",
        ]

    def _begin(
        self, trial: "Trial", running: "dict[int, Trial]", machines: Machines, progress: Progress
    ) -> None:
        """Hand a trial to a machine, unless it cannot be the best."""
        candidate = suggest(trial, stored=self.stored)
        trial.set_user_attr("candidate", asdict(candidate))
        why = self._needless(candidate, running)
        if why is not None:
            self._leave(trial, why)
            return
        progress(f"trial {trial.number}: {_short(candidate)}")
        running[trial.number] = trial
        machines.begin(trial.number, str(candidate.pipeline(self.base)))

    def _needless(self, candidate: Candidate, running: "dict[int, Trial]") -> str | None:
        """Return why a candidate is not built, None if it is."""
        known = {one.number: one.candidate for one in self.tried if one.objective is not None}
        known |= {number: Candidate(**trial.user_attrs["candidate"]) for number, trial in running.items()}
        same = [number for number, one in known.items() if one == candidate]
        if same:
            return f"builds the same as trial {same[0]}"
        bound, best = self._bound(candidate), self.best
        if bound is not None and best is not None and self._worse(bound, best.objective or 0.0):
            return f"predicted to be {bound:.4g} at best"
        return None

    def _end(self, trial: "Trial", done: Finished) -> None:
        """Tell the study what a trial found, and keep its build, if it lies here, where none is better."""
        trial.set_user_attr("machine", done.machine)
        found, artifact = done.outcome, self.folder / f"trial{trial.number}.tokc"
        if found is None:
            self._fail(trial, done.problem)
        elif found.objective is None:
            _note(trial, found)
            broken = next(one for one in found.judged if one.verdict == "not met")
            self._leave(trial, f"'{broken.gate}' is not met: {broken.figure:.4g}")
        else:
            _note(trial, found)
            self.study.tell(trial, found.objective)
            best = self.best
            if best is not None and best.number == trial.number and artifact.exists():
                trials.clear(self.folder / BEST)
                artifact.rename(self.folder / BEST)
        trials.clear(artifact)

    def _leave(self, trial: "Trial", why: str) -> None:
        from optuna.trial import TrialState

        trial.set_user_attr("why", why)
        self.study.tell(trial, state=TrialState.PRUNED)

    def _fail(self, trial: "Trial", why: str) -> None:
        trial.set_user_attr("failed", value=True)
        self._leave(trial, why)

    def _bound(self, candidate: Candidate) -> float | None:
        """Return the best that a candidate may reach by the roofline, None where that does not bound it."""
        setting = self.setting
        if setting.objective.metric not in ROOFED:
            return None
        # What a method chooses changes no shape, and calibration would take its time.
        pipeline = replace(candidate, method="rtn").pipeline(self.base)
        work = records.decode(Work, work_of(pipeline.run(self.program)), where="the program's work")
        batch = setting.objective.batch or 1
        step_s = MARGIN * predict(work.decode.at(sequences=batch, context=CONTEXT), self.host).seconds
        if setting.objective.metric == "tpot":
            return step_s
        if setting.objective.metric == "tokens_per_s":
            return batch / step_s
        assert setting.pricing.price is not None, "a cost has a price"
        return usd_per_token(setting.pricing.price, batch / step_s, setting.pricing.utilization) * MTOK

    def _worse(self, figure: float, best: float) -> bool:
        return figure < best if self.setting.maximize else figure > best

    def _fixed(self, start: Candidate) -> dict[str, object]:
        given = asdict(start)
        if not self.stored:
            del given["keep"]
        return given

    def _require_same(self) -> None:
        """Refuse to mix two searches in one folder."""
        setting = self.setting
        asked = {
            "model": str(setting.model.resolve()),
            "target": setting.target,
            "context": setting.context,
            "objective": setting.objective.text,
            "limits": sorted(gate.text for gate in setting.limits),
            "price": setting.pricing.price and setting.pricing.price.usd_per_hour,
            "utilization": setting.pricing.utilization,
            "host": self.host.cpu,
        }
        known = self.study.user_attrs.get("asked")
        if known is None:
            self.study.set_user_attr("asked", asked)
            return
        other = [name for name, value in asked.items() if known.get(name) != value]
        if other:
            raise TokcError(
                f"'{self.folder}' holds a search with another {', '.join(other)}",
                hint="name another folder with --study, or remove that one",
            )


def _note(trial: "Trial", found: Outcome) -> None:
    trial.set_user_attr("figures", {one.gate: one.figure for one in found.judged})
    for gate, excess in found.excess.items():
        trial.set_constraint(gate, excess)
    trial.set_user_attr("feasible", found.feasible)


def _tried(trial: "FrozenTrial") -> Tried:
    attributes = trial.user_attrs
    candidate = Candidate(**attributes["candidate"]) if "candidate" in attributes else Candidate()
    return Tried(
        number=trial.number,
        candidate=candidate,
        state="failed" if "failed" in attributes else STATES[trial.state.name],
        objective=trial.value if trial.state.name == "COMPLETE" else None,
        figures=dict(attributes.get("figures", {})),
        feasible=trial.state.name == "COMPLETE" and bool(attributes.get("feasible")),
        why=attributes.get("why", ""),
        machine=attributes.get("machine", ""),
    )


def _short(candidate: Candidate) -> str:
    kept = ", stored grids kept" if candidate.keep else ""
    return (
        f"{candidate.bits} bits {candidate.method} group {candidate.group}, head {candidate.head_bits}, "
        f"cache {candidate.kv}{kept}"
    )
