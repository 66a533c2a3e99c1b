"""Give a program a draft: a small one that guesses the tokens which the program then verifies."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote, unquote

from tokc.errors import PassFailed
from tokc.importers.drafts import draft_of
from tokc.importers.heads import load_heads, require_fit
from tokc.ir.program import Program
from tokc.passes.expose_features import ExposeFeatures

_folders: ContextVar[tuple[Path, ...]] = ContextVar("folders", default=())


@contextmanager
def heads_in(*folders: Path) -> Iterator[None]:
    """Look for files of heads in these folders first."""
    token = _folders.set(folders)
    try:
        yield
    finally:
        _folders.reset(token)


@dataclass(frozen=True)
class AttachDraft:
    """Add the draft that trained heads make: an EAGLE or Medusa's heads.

    Before: a program in batch form
    After:  the same, with ``features`` as an output, and a draft beside it that reads them

    An eagle is one decoder layer over ``fc([embedding; feature])`` with a cache of its own (Li et al. 2024,
    arXiv:2401.15077); medusa's heads guess several tokens from one feature (Cai et al. 2024,
    arXiv:2401.10774). Both share the backbone's embedding and head, or rows of the head where they draft from
    a part of the vocabulary (Zhao et al. 2025, FR-Spec, arXiv:2502.14856). Every later pass runs on the draft
    too. Costs the draft's own weights; saves steps of the backbone as far as drafts hold.
    `heads` is the file, by its path or by its name in a folder of `heads_in`, with what a pipeline's text
    cannot hold percent-encoded.
    Exact, bit by bit: a draft can change nothing but speed.
    """

    name: ClassVar[str] = "attach-draft"
    exact: ClassVar[bool] = True

    heads: str = "heads.safetensors"

    @classmethod
    def of_file(cls, path: Path) -> "AttachDraft":
        """Return the pass for a file, by its name alone: builds in other folders are the same to the byte."""
        return cls(quote(path.name))

    @property
    def path(self) -> Path:
        """Return where the heads are."""
        named = Path(unquote(self.heads))
        return next((found for folder in _folders.get() if (found := folder / named).is_file()), named)

    def run(self, program: Program) -> Program:
        if program.draft is not None:
            raise PassFailed("the program has a draft already", hint="name attach-draft once")
        if program.form != "batch":
            raise PassFailed(
                "attach-draft reads programs in batch form", hint="name it before kv-layout, first of all"
            )
        heads = load_heads(self.path)
        require_fit(heads, program)
        return ExposeFeatures().run(program).replace(draft=draft_of(heads, program))
