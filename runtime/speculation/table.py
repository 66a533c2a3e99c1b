"""The methods of speculation, by name."""

from tokc.errors import UnknownOption
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.base import Executor
from tokc.runtime.speculation.answers import Answers
from tokc.runtime.speculation.config import DRAFT_MODEL, HEADS, WHERE, SpeculativeConfig
from tokc.runtime.speculation.draft_model import open_draft_model
from tokc.runtime.speculation.drafter import Drafter
from tokc.runtime.speculation.eagle import DraftingExecutor, EagleDrafter
from tokc.runtime.speculation.medusa import MedusaDrafter
from tokc.runtime.speculation.ngram import NgramDrafter
from tokc.runtime.speculation.speculation import Speculation


def speculation_of(
    config: SpeculativeConfig | None, artifact: Artifact, executor: Executor, threads: int | None
) -> Speculation | None:
    """Return a new speculation as it was asked for; if nothing was, by the heads that the artifact has.

    Raises: UnknownOption if the artifact has not the heads that are asked for; ArtifactRefused if a draft
        model does not suit.
    """
    built = artifact.manifest.draft
    if config is None and built is not None:
        config = SpeculativeConfig(built.kind)
    if config is None or config.method == "none":
        return None
    return Speculation(
        _drafter(config, artifact, executor, threads), most=config.most, trees=executor.trees is not None
    )


def _drafter(
    config: SpeculativeConfig, artifact: Artifact, executor: Executor, threads: int | None
) -> Drafter:
    if config.method in HEADS:
        return _heads(config.method, artifact, executor)
    if config.method == DRAFT_MODEL:
        assert config.model is not None, "checked when it was read"
        return open_draft_model(config.model, artifact, executor, threads)
    return NgramDrafter(Answers() if config.method == "suffix" else None)


def _heads(method: str, artifact: Artifact, executor: Executor) -> EagleDrafter | MedusaDrafter:
    built = artifact.manifest.draft
    if built is None or built.kind != method:
        found = "no heads" if built is None else f"heads of '{built.kind}'"
        raise UnknownOption(
            f"method '{method}' is not in the artifact, which has {found}",
            where=WHERE,
            hint=f"build it with `tokc build MODEL --speculate {method} --heads HEADS`",
        )
    if not isinstance(executor, DraftingExecutor) or executor.draft is None:
        raise UnknownOption(f"this target runs no '{method}'; choose ngram or suffix", where=WHERE)
    kind = EagleDrafter if method == "eagle" else MedusaDrafter
    return kind(executor, executor.draft)
