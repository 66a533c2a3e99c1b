"""The time of any step of an artifact on a machine, from the work that its plan states of each launch."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokc.cost.efficiency import Efficiencies, amounts_of, kind_of
from tokc.cost.launch_work import LaunchWork
from tokc.cost.profile import Roofs, StepSize
from tokc.cost.roofline import ATTENTION_OPS, WEIGHT_OPS, OpWork, Work
from tokc.errors import TokcError

PLAN = "plan.json"
TOKENS, ROWS = "tokens", "rows"


@dataclass(frozen=True)
class Step:
    """A step: the next token of each of `sequences`, or `tokens` of one sequence's prompt.

    `context` counts the tokens that the last one sees, itself among them.
    """

    sequences: int
    context: int
    tokens: int = 1

    def size(self, window: int) -> StepSize:
        """Return what decides on its work; `window` bounds what a token sees, 0 does not."""
        first = self.context - self.tokens + 1
        seen = sum(min(at, window) if window else at for at in range(first, self.context + 1))
        cached = self.context - (max(0, first - window) if window else 0)
        tokens = self.sequences * self.tokens
        return StepSize(
            {TOKENS: tokens, ROWS: self.sequences}, self.sequences * seen, self.sequences * cached
        )


@dataclass(frozen=True)
class Launches:
    """Launches of the same work: `rows` names the step's count that they run over."""

    kind: str
    rows: str
    work: LaunchWork
    count: int


@dataclass(frozen=True)
class StepWorks:
    """The launches of narrow and wide steps; a step of more than `narrow_tokens` tokens is wide.

    `chunk` is the most tokens that a step takes.
    """

    narrow: tuple[Launches, ...]
    wide: tuple[Launches, ...]
    narrow_tokens: int
    chunk: int

    @classmethod
    def read(cls, artifact: Path, work: Work) -> "StepWorks":
        """Return the launches of an artifact's plan, those of `cost.json` where it has none (a TPU's).

        Raises: TokcError if the plan was made by a tokc that did not state the work of launches.
        """
        path = artifact / PLAN
        return cls.of(json.loads(path.read_text())) if path.exists() else cls.of_work(work)

    @classmethod
    def of(cls, plan: Mapping[str, Any]) -> "StepWorks":
        """Return the launches of a plan, where several devices run it with the work of all of them.

        Raises: TokcError as in `read`.
        """
        if any("work" not in launch for launch in plan["launches"]):
            raise TokcError(
                "the artifact's plan does not state the work of its kernels",
                hint="it was built by an earlier tokc: build it again",
            )
        limits = plan["limits"]
        devices = plan.get("ranks", 1)
        narrow, wide = (
            tuple(replace(one, work=one.work.times(devices)) for one in _gather(plan["launches"], word))
            for word in ("narrow", "wide")
        )
        return cls(narrow, wide, limits.get("narrow_tokens", 0), limits[TOKENS])

    @classmethod
    def of_work(cls, work: Work) -> "StepWorks":
        """Return a launch for each node that was counted, from a decode step and a chunk's FLOPs a token."""
        context = work.decode.context
        launches = tuple(
            Launches(one.op, TOKENS, _work_of(one, context), one.count) for one in work.decode.ops
        )
        return cls(launches, launches, 0, work.prefill.tokens)

    def launches(self, step: Step) -> tuple[Launches, ...]:
        """Return the launches of a step."""
        return self.narrow if step.sequences * step.tokens <= self.narrow_tokens else self.wide


@dataclass(frozen=True)
class StepModel:
    """Predicts steps of an artifact on a machine with `roofs`, whose kernels are as `efficiencies` say.

    `slower` is how many times slower memory is now than those roofs say.
    """

    works: StepWorks
    roofs: Roofs
    efficiencies: Efficiencies
    slower: float = 1.0

    def step_s(self, step: Step) -> float:
        """Return the seconds of a step, without what the engine adds."""
        return self.efficiencies.step_s + sum(self.time_by_kind(step).values())

    def decode_s(self, batch: int, context: int) -> float:
        """Return the seconds between two tokens of each of `batch` sequences of `context` tokens."""
        of = self.efficiencies
        return self.step_s(Step(batch, context)) + of.engine_s + of.sequence_s * batch

    def prompt_s(self, prompt: int, chunk: int | None = None) -> float:
        """Return the seconds that reading a prompt of so many tokens takes, in chunks as large as may be."""
        most = min(chunk or self.works.chunk, self.works.chunk)
        ends = [*range(most, prompt, most), prompt]
        return sum(
            self.step_s(Step(1, end, end - start)) + self.efficiencies.engine_s
            for start, end in zip([0, *ends], ends, strict=False)
        )

    def answers_s(self, batch: int, prompt: int, output: int, chunk: int | None = None) -> float:
        """Return the seconds of `batch` answers of `output` tokens: all prompts first, then tokens."""
        middle = self.decode_s(batch, prompt + max(1, output // 2))
        return batch * self.prompt_s(prompt, chunk) + (output - 1) * middle

    def time_by_kind(self, step: Step) -> dict[str, float]:
        """Return the seconds of a step's launches by kind of kernel."""
        sizes: dict[int, StepSize] = {}
        found: dict[str, float] = {}
        for one in self.works.launches(step):
            window = one.work.window
            size = sizes.get(window) or sizes.setdefault(window, step.size(window))
            amounts = amounts_of(one.work, size.rows[one.rows], size.attended, size.cached, self.roofs)
            seconds = one.count * self.efficiencies.of(one.kind).seconds(amounts, self.slower)
            found[one.kind] = found.get(one.kind, 0.0) + seconds
        return found


def _work_of(node: OpWork, context: int) -> LaunchWork:
    """Return the work of one of some nodes, which were counted for a token that sees `context`."""
    flops, moved = node.flops / node.count, node.bytes / node.count
    if node.op in ATTENTION_OPS:
        return LaunchWork(attended_flops=flops / context, cached_bytes=moved / context)
    if node.every_expert_bytes:
        every = node.every_expert_bytes / node.count
        return LaunchWork(row_flops=flops, whole_bytes=every, row_share=moved / every)
    reads_weights = node.op in WEIGHT_OPS
    return LaunchWork(
        row_flops=flops,
        whole_bytes=moved if reads_weights else 0.0,
        row_bytes=0.0 if reads_weights else moved,
    )


def _gather(launches: Sequence[Mapping[str, Any]], word: str) -> Iterator[Launches]:
    """Yield the launches of narrow or wide steps, those of the same work together."""
    counts: dict[tuple[str, str, LaunchWork], int] = {}
    for launch in launches:
        if launch.get("steps", "all") in {"all", word}:
            key = launch["op"], launch["rows"], LaunchWork.from_json(launch["work"])
            counts[key] = counts.get(key, 0) + 1
    for (op, rows, work), count in counts.items():
        yield Launches(kind_of(op, work), rows, work, count)
