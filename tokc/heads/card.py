"""The model card of heads: what they are for, what they were trained on, and how often they hold."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tokc.heads.acceptance import Acceptance, total
from tokc.heads.training import Plan, Point


@dataclass(frozen=True)
class Report:
    """What a training made; `texts`, `answer_tokens` and `steps` are counts, `coverage` a share of tokens.

    `source` says in a sentence what the text was, `hidden` and `vocab` are the backbone's.
    """

    out: Path
    plan: Plan
    backbone: str
    pipeline: str
    hidden: int
    vocab: int
    draft_vocab: int
    coverage: float
    source: str
    licences: str
    texts: int
    answer_tokens: int
    held_out_texts: int
    steps: int
    stopped_early: bool
    points: tuple[Point, ...]
    by_task: Mapping[str, Acceptance]

    @property
    def acceptance(self) -> Acceptance:
        """Return the counts of all tasks together."""
        return total(self.by_task)

    def to_json(self) -> dict[str, object]:
        """Return the figures for a script."""
        return {
            "out": str(self.out),
            "kind": self.plan.kind,
            "backbone": self.backbone,
            "mean_length": self.acceptance.mean_length,
            "by_position": list(self.acceptance.by_position),
            "by_task": {task: found.mean_length for task, found in self.by_task.items()},
            "steps": self.steps,
            "stopped_early": self.stopped_early,
            "answer_tokens": self.answer_tokens,
            "draft_vocabulary": self.draft_vocab,
            "coverage": self.coverage,
        }


def card(report: Report) -> str:
    """Return the card as Markdown."""
    return "\n".join([*_head(report), *_figures(report), *_training(report), *_use(report)]) + "\n"


def _head(report: Report) -> Iterator[str]:
    kind = {"eagle": "EAGLE draft layer", "medusa": "Medusa-1 heads"}[report.plan.kind]
    yield f"# {kind} for {report.backbone}"
    yield ""
    yield (
        f"Drafts tokens for `{report.backbone}`, hidden size {report.hidden}, vocabulary {report.vocab}, as"
        f" served by the pipeline `{report.pipeline}`. A draft changes speed, never an answer."
    )
    yield ""


def _figures(report: Report) -> Iterator[str]:
    depth = len(report.acceptance.held)
    yield "## Held-out acceptance"
    yield ""
    yield (
        f"Measured on greedy answers of the model to {report.held_out_texts} prompts of documents that do not"
        f" occur in training, chains of {depth} tokens, the draft's weights in f32. Length: tokens a step,"
        " the model's own among them. Then: how often each token of a draft holds where those before it do."
    )
    yield ""
    yield f"| task | length | {' | '.join(str(place + 1) for place in range(depth))} |"
    yield f"|---|---{'|---' * depth}|"
    for task, found in [*report.by_task.items(), ("all", report.acceptance)]:
        shares = " | ".join(f"{100 * share:.0f} %" for share in found.by_position)
        yield f"| {task} | {found.mean_length:.2f} | {shares} |"
    yield ""


def _training(report: Report) -> Iterator[str]:
    plan = report.plan
    yield "## Training"
    yield ""
    yield f"- Text: {report.source}: {report.texts:,} texts, {report.answer_tokens:,} tokens to be predicted."
    yield f"- Licences: {report.licences}"
    yield (
        f"- Draft vocabulary: {report.draft_vocab:,} tokens, which are {100 * report.coverage:.1f} % of the"
        " tokens of the held-out answers."
    )
    ended = "stopped early" if report.stopped_early else "to the end"
    yield (
        f"- {report.steps:,} steps in at most {plan.epochs} epochs, {ended}; seed {plan.seed}; products in"
        f" {'bf16' if plan.bf16 else 'f32'}."
    )
    yield ""
    yield "| after step | training loss | held-out length |"
    yield "|---|---|---|"
    for point in report.points:
        yield f"| {point.step:,} | {point.loss:.3f} | {point.mean_length:.3f} |"
    yield ""


def _use(report: Report) -> Iterator[str]:
    yield "## Use"
    yield ""
    yield f"    tokc build MODEL --speculate {report.plan.kind} --heads {report.out.name}"
