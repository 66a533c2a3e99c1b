"""Drafts by an independent, smaller model with the same tokenizer.

Source: Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318.
"""

import json
from collections.abc import Sequence as Items
from math import ceil
from typing import Any

from tokc.errors import ArtifactRefused
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.base import Executor, Logits
from tokc.runtime.executors.table import executor_for
from tokc.runtime.speculation.autoregressive import Asked, AutoregressiveDrafter

TOKENIZER = "tokenizer.json"


class DraftModelDrafter(AutoregressiveDrafter):
    """Drafts with an executor whose cache has a page for each of the model's."""

    shift, keeps_drafted = 0, True

    def __init__(self, draft: Executor, *, vocab_size: int) -> None:
        """Draft tokens below `vocab_size` only."""
        super().__init__(
            page_size=draft.page_size,
            max_tokens=draft.max_tokens,
            context_length=draft.context_length,
            vocabulary=None,
            vocab_size=vocab_size,
            branches=draft.trees is not None,
        )
        self._draft = draft

    def run(self, asked: Items[Asked]) -> Logits:
        """Compute parts; returns logits f32[parts, vocab]."""
        return self._draft.step(self.cache.batch([one.part for one in asked]))

    def close(self) -> None:
        """Close the draft's executor."""
        self._draft.close()


def open_draft_model(
    path: str, model: Artifact, executor: Executor, threads: int | None
) -> DraftModelDrafter:
    """Return a drafter that runs the artifact at `path` for `model`, which `executor` runs.

    Raises: ArtifactRefused if it has another tokenizer, pages of another size or fewer rows a step.
    """
    artifact = Artifact.open(path)
    require_same_tokenizer(model, artifact)
    page = artifact.manifest.kv.page
    if page != executor.page_size:
        raise ArtifactRefused(
            f"the draft's cache has pages of {page} tokens, the model's of {executor.page_size}",
            where=path,
            hint="build both with the same kv-layout",
        )
    page_bytes = page * artifact.manifest.kv.bytes_per_token
    draft = executor_for(artifact, threads=threads, kv_bytes=ceil(executor.num_pages * page_bytes))
    for name, least in (("max_seqs", executor.max_seqs), ("num_pages", executor.num_pages)):
        if getattr(draft, name) < least:
            found = getattr(draft, name)
            draft.close()
            raise ArtifactRefused(
                f"{name} of the draft is {found}, the model's executor has {least}",
                where=path,
                hint="build both with the same limits",
            )
    return DraftModelDrafter(draft, vocab_size=executor.vocab_size)


def require_same_tokenizer(model: Artifact, draft: Artifact) -> None:
    """Refuse a draft whose tokens mean something else.

    Raises: ArtifactRefused naming a token that differs.
    """
    files = model.manifest.files.get(TOKENIZER), draft.manifest.files.get(TOKENIZER)
    if files[0] is not None and files[0] == files[1]:
        return
    ours, theirs = _tokens(model), _tokens(draft)
    wrong = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    if wrong:
        token = wrong[0]
        raise ArtifactRefused(
            f"the draft has another tokenizer: token {token} is {theirs.get(token)!r}, the model's is "
            f"{ours.get(token)!r} ({len(wrong)} differ)",
            where=str(draft.path),
            hint="a draft model must have the tokenizer of the model it drafts for",
        )


def _tokens(artifact: Artifact) -> dict[int, str]:
    """Return the text of every token."""
    text = artifact.read_text(TOKENIZER)
    if text is None:
        raise ArtifactRefused(f"the artifact has no {TOKENIZER}", where=str(artifact.path))
    value: dict[str, Any] = json.loads(text)
    vocab = value["model"]["vocab"]
    listed = vocab.items() if isinstance(vocab, dict) else ((one[0], at) for at, one in enumerate(vocab))
    found = {index: token for token, index in listed}
    return found | {one["id"]: one["content"] for one in value.get("added_tokens", [])}
