"""The training loop: AdamW under a cosine, evaluated as it goes, resumed to the bit, stopped early."""

import hashlib
import math
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokc.artifact.writer import file_written_aside
from tokc.errors import TokcError
from tokc.heads.acceptance import Acceptance, acceptance, total
from tokc.heads.backbone import Backbone
from tokc.heads.features import Example
from tokc.heads.modules import Eagle, Medusa
from tokc.heads.objective import FEATURE_WEIGHT, loss_of
from tokc.heads.rows import packed, row_of
from tokc.heads.start import begin_linear

Kind = Literal["eagle", "medusa"]
Progress = Callable[[str], None]
State = dict[str, Tensor]

KINDS: tuple[Kind, ...] = ("eagle", "medusa")
DRAFTED = {"eagle": 3, "medusa": 4}  # steps that are trained; heads
EVALUATED = {"eagle": 5, "medusa": 4}
LEARNING_RATES = {"eagle": 3e-4, "medusa": 1e-3}
WEIGHT_DECAY = 0.01
BETAS = (0.9, 0.95)
WARM_UP = 0.03
CLIPPED = 1.0
ROW_TOKENS = 1024
EVALUATIONS_AN_EPOCH = 2
PATIENCE = 4
CHECKPOINT_STEPS = 50
LOSS_MEMORY = 0.98


@dataclass(frozen=True)
class Plan:
    """What decides the heads, beside text and artifact: of which kind, how long, by which seed.

    `bf16` computes products in bfloat16 and keeps weights in f32.
    """

    kind: Kind
    epochs: int = 3
    seed: int = 0
    bf16: bool = False

    @property
    def steps(self) -> int:
        """Return how many tokens of a draft are trained."""
        return DRAFTED[self.kind]


@dataclass(frozen=True)
class Point:
    """An evaluation on held-out answers, after so many steps; `loss` is the running mean of training's."""

    step: int
    loss: float
    mean_length: float


@dataclass
class Trained:
    """The best heads so far: tensors by their names in the file, and how they were found."""

    weights: State = field(default_factory=dict)
    by_task: Mapping[str, Acceptance] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    stopped_early: bool = False


class Training:
    """One run; everything that it is made of is in the checkpoint, so that it goes on as if never stopped."""

    def __init__(
        self,
        plan: Plan,
        backbone: Backbone,
        vocabulary: npt.NDArray[np.int64],
        examples: Items[Example],
        checkpoint: Path,
    ) -> None:
        """Begin, or go on from `checkpoint` if that exists.

        Raises: TokcError if the checkpoint is of another plan, text or artifact.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(plan.seed)
        self.plan, self.examples, self.checkpoint = plan, examples, checkpoint
        self.module = module_of(plan.kind, backbone).to(device)
        self.embedding = torch.from_numpy(backbone.embedding).to(device)
        self.tokens = torch.from_numpy(vocabulary).to(device)
        self.rows = torch.from_numpy(backbone.head[vocabulary]).to(device)
        self._quick_rows = self.rows.to(torch.bfloat16) if plan.bf16 else self.rows
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(), lr=LEARNING_RATES[plan.kind], betas=BETAS, weight_decay=WEIGHT_DECAY
        )
        self.trained = Trained()
        self.step, self.loss = 0, math.nan
        self._identity = {
            **asdict(plan),
            "weights_sha256": backbone.weights_sha256,
            "vocabulary": hashlib.sha256(vocabulary.tobytes()).hexdigest(),
            "texts": len(examples),
        }
        if checkpoint.exists():
            self._load()
        elif isinstance(self.module, Eagle):
            begin_linear(self.module, examples, self.embedding)

    def run(self, held_out: Items[Example], progress: Progress = lambda _: None) -> Trained:
        """Train until the epochs are over or held-out acceptance no longer grows; return the best heads."""
        examples = self.examples
        rows = self._order(examples)
        interval = max(1, len(rows) // (self.plan.epochs * EVALUATIONS_AN_EPOCH))
        while self.step < len(rows) and not self.trained.stopped_early:
            self._update([examples[index] for index in rows[self.step]], len(rows))
            self.step += 1
            progress(f"step {self.step} of {len(rows)}: loss {self.loss:.3f}")
            if self.step % interval == 0 or self.step == len(rows):
                point = self._evaluate(held_out)
                progress(f"held-out: {point.mean_length:.3f} tokens a step after {self.step} of {len(rows)}")
                self._save()
            elif self.step % CHECKPOINT_STEPS == 0:
                self._save()
        return self.trained

    def _order(self, examples: Items[Example]) -> list[list[int]]:
        """Return the rows of all epochs."""
        fitting = [i for i, one in enumerate(examples) if self.plan.steps + 1 < len(one.passage.tokens)]
        longest = max(len(examples[index].passage.tokens) for index in fitting)
        rows: list[list[int]] = []
        for epoch in range(self.plan.epochs):
            order = np.random.default_rng([self.plan.seed, epoch]).permutation(fitting)
            rows += packed(examples, order.tolist(), max(ROW_TOKENS, longest))
        return rows

    def _update(self, examples: Items[Example], steps: int) -> None:
        plan = self.plan
        row = row_of(examples, self.embedding, plan.steps)
        if not len(row.targets):
            return
        rate = LEARNING_RATES[plan.kind] * _cosine(self.step, steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.embedding.device.type, torch.bfloat16, enabled=plan.bf16):
            loss = loss_of(self.module, row, self._quick_rows, plan.steps, FEATURE_WEIGHT[plan.kind])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), CLIPPED)
        self.optimizer.step()
        value = float(loss.detach())
        self.loss = value if math.isnan(self.loss) else LOSS_MEMORY * self.loss + (1 - LOSS_MEMORY) * value

    def _evaluate(self, held_out: Items[Example]) -> Point:
        trained = self.trained
        by_task = acceptance(
            self.module,
            held_out,
            embedding=self.embedding,
            rows=self.rows,
            tokens=self.tokens,
            depth=EVALUATED[self.plan.kind],
        )
        point = Point(self.step, self.loss, total(by_task).mean_length)
        best = max((earlier.mean_length for earlier in trained.points), default=0.0)
        trained.points.append(point)
        if point.mean_length > best:
            trained.weights = {name: value.clone() for name, value in self.module.state_dict().items()}
            trained.by_task = by_task
        lengths = [one.mean_length for one in trained.points]
        trained.stopped_early = len(lengths) > PATIENCE and (
            max(lengths[-PATIENCE:]) <= max(lengths[:-PATIENCE])
        )
        return point

    def _save(self) -> None:
        trained = self.trained
        state = {
            "identity": self._identity,
            "step": self.step,
            "loss": self.loss,
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "weights": trained.weights,
            "by_task": {task: asdict(found) for task, found in trained.by_task.items()},
            "points": [asdict(point) for point in trained.points],
            "stopped_early": trained.stopped_early,
        }
        path = self.checkpoint
        with (
            file_written_aside(path, "cannot keep the training", str(path)) as aside,
            aside.open("wb") as file,
        ):
            torch.save(state, file)

    def _load(self) -> None:
        state: dict[str, Any] = torch.load(self.checkpoint, weights_only=True)
        differing = [name for name, value in self._identity.items() if state["identity"].get(name) != value]
        if differing:
            name = differing[0]
            raise TokcError(
                f"a training was begun there with {name} '{state['identity'].get(name)}', not"
                f" '{self._identity[name]}'",
                where=str(self.checkpoint),
                hint="remove that file to begin anew, or give another --work",
            )
        self.step, self.loss = state["step"], state["loss"]
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.trained = Trained(
            weights=state["weights"],
            by_task={
                task: Acceptance(found["steps"], tuple(found["held"]), tuple(found["reached"]))
                for task, found in state["by_task"].items()
            },
            points=[Point(**point) for point in state["points"]],
            stopped_early=state["stopped_early"],
        )


def module_of(kind: Kind, backbone: Backbone) -> Eagle | Medusa:
    """Return untrained heads of a kind."""
    if kind == "eagle":
        return Eagle(backbone)
    return Medusa(backbone.config.hidden, DRAFTED[kind])


def _cosine(step: int, steps: int) -> float:
    """Return the share of the learning rate: up in a line, then down in half a cosine."""
    warm = max(1, round(steps * WARM_UP))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
