"""A list of passes: parse it, print it, run it, and let observers look on.

The text form is `fuse-attention,quantize-weights{bits=4 group=32},kv-layout{page=16 dtype=f16}`. What is
parsed may leave options at their defaults; what is printed states every option, so that a printed pipeline
means the same in a later release. Parsing what was printed gives the same pipeline.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from typing import Literal, Protocol, Self, get_args, get_origin, get_type_hints

from tokc.errors import PassFailed, TokcError
from tokc.ir.program import Program
from tokc.ir.sharing import shared
from tokc.passes.base import Pass
from tokc.passes.quantize_weights import QuantizeWeights
from tokc.passes.table import PASSES

Option = int | float | bool | str
# What says nothing to a draft: it goes by what the backbone reads of a text, or is what makes the draft.
OF_BACKBONES = frozenset({"attach-draft", "expose-features", "smooth-activations"})

_ITEM = re.compile(r"\s*(?P<name>[A-Za-z0-9_-]+)\s*(?:\{(?P<options>[^{}]*)\})?\s*(?P<end>,|$)")
_READERS: Mapping[type, tuple[Callable[[str], Option], str]] = {
    bool: ({"true": True, "false": False}.__getitem__, "true or false"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    str: (str, "text"),
}
_OPTION = re.compile(r"(?P<key>[A-Za-z_][A-Za-z0-9_]*)=(?P<value>[^\s{},=]+)")


@dataclass(frozen=True)
class Step:
    """Describe one pass of a run: its place (from 1), what went in, what came out, and how long it took."""

    number: int
    total: int
    pass_: Pass
    before: Program
    after: Program
    seconds: float

    @property
    def changed(self) -> bool:
        """Return whether the pass matched anything."""
        return self.after is not self.before


class Observer(Protocol):
    """Look on while a pipeline runs; see `tokc.instruments`."""

    def after_pass(self, step: Step) -> None:
        """Receive a step that has just run; raise a TokcError to stop the pipeline."""


@dataclass(frozen=True)
class Pipeline:
    """Run passes in order."""

    passes: tuple[Pass, ...] = ()

    @classmethod
    def parse(cls, text: str, *, table: Mapping[str, type[Pass]] | None = None) -> Self:
        """Read the text form; `table` defaults to every pass there is.

        Raises:
            TokcError: the text is malformed or names a pass, option or value that does not exist.
        """
        known = named_passes() if table is None else table
        return cls(tuple(_parse_pass(name, options, known) for name, options in _items(text)))

    def __str__(self) -> str:
        """Print the text form, every option stated."""
        return ",".join(pass_text(one) for one in self.passes)

    def run(
        self, program: Program, observers: Sequence[Observer] = (), *, stop_after: str | None = None
    ) -> Program:
        """Run every pass, or those up to the first one named `stop_after`.

        Raises:
            PassFailed: a pass or an observer's check failed.
        """
        names = [pass_.name for pass_ in self.passes]
        if stop_after is not None and stop_after not in names:
            raise TokcError(f"no pass '{stop_after}' to stop after; this pipeline has {', '.join(names)}")
        for number, pass_ in enumerate(self.passes, start=1):
            start_s = time.perf_counter()
            after = _run_pass(pass_, program, number, len(self.passes))
            seconds = time.perf_counter() - start_s
            step = Step(number, len(self.passes), pass_, program, after, seconds)
            for observer in observers:
                observer.after_pass(step)
            program = after
            if pass_.name == stop_after:
                break
        return program


def named_passes() -> dict[str, type[Pass]]:
    """Return every pass by its name."""
    return {one.name: one for one in PASSES}


def pass_text(pass_: Pass) -> str:
    """Print one pass, every option stated."""
    options = " ".join(
        f"{field.name}={_print(getattr(pass_, field.name))}" for field in _options(type(pass_))
    )
    return f"{pass_.name}{{{options}}}" if options else pass_.name


def _run_pass(pass_: Pass, program: Program, number: int, total: int) -> Program:
    """Run one pass; a crash of ours becomes an error that names the pass."""
    where = f"pass {number} of {total}, {pass_text(pass_)}"
    try:
        after = pass_.run(program)
        return after if program.draft is None else _with_draft(pass_, after)
    except TokcError as error:
        if error.where is None:
            error.where = where
        raise
    except Exception as error:
        raise PassFailed(
            f"{where}, raised {type(error).__name__}({str(error)!r})",
            hint="write the program after each pass with --dump-ir DIR",
        ) from error


def _with_draft(pass_: Pass, after: Program) -> Program:
    """Run a pass on the draft as well, whose embedding and head become those that the backbone has now."""
    draft = after.draft
    assert draft is not None, "no pass takes a draft away"
    ran = draft
    if pass_.name not in OF_BACKBONES:
        alone = pass_.without_text() if isinstance(pass_, QuantizeWeights) else pass_
        program = alone.run(draft.program)
        ran = draft if program is draft.program else draft.running(program)
    made = shared(after, ran)
    return after if made is draft else after.replace(draft=made)


def _items(text: str) -> Iterator[tuple[str, str]]:
    """Cut the text at its commas into names and option texts."""
    position, more = 0, bool(text.strip())
    while more:
        match = _ITEM.match(text, position)
        if match is None:
            raise TokcError(
                f"pipeline text is malformed at '{text[position:].strip()[:40]}'",
                where=f"'{text}', character {position + 1}",
                hint="write 'pass,pass{option=value option=value},pass'",
            )
        yield match["name"], match["options"] or ""
        position, more = match.end(), match["end"] == ","


def _parse_pass(name: str, options: str, known: Mapping[str, type[Pass]]) -> Pass:
    kind = known.get(name)
    if kind is None:
        raise TokcError(f"unknown pass '{name}'; choose from {', '.join(sorted(known))}")
    accepted = {field.name: field for field in _options(kind)}
    given: dict[str, Option] = {}
    for word in options.split():
        match = _OPTION.fullmatch(word)
        if match is None:
            raise TokcError(f"option '{word}' of pass '{name}' is not of the form key=value")
        key = match["key"]
        if key not in accepted:
            accepts = f"it accepts {', '.join(accepted)}" if accepted else "it has no options"
            raise TokcError(f"unknown option '{key}' of pass '{name}'; {accepts}")
        if key in given:
            raise TokcError(f"option '{key}' of pass '{name}' is given twice")
        given[key] = _value(kind, key, match["value"])
    try:
        return kind(**given)
    except ValueError as error:
        raise TokcError(f"pass '{name}': {error}") from error


def _options(kind: type[Pass]) -> tuple[Field[object], ...]:
    return tuple(field for field in fields(kind) if field.init)  # type: ignore[arg-type]


def _value(kind: type[Pass], key: str, text: str) -> Option:
    """Read an option's value as the type of its field says."""
    hint = get_type_hints(kind)[key]
    if get_origin(hint) is Literal:
        choices: dict[str, Option] = {str(choice): choice for choice in get_args(hint)}
        if text in choices:
            return choices[text]
        raise _bad_value(kind, key, f"one of {', '.join(choices)}", text)
    read, wanted = _READERS[hint]
    try:
        return read(text)
    except (KeyError, ValueError) as error:
        raise _bad_value(kind, key, wanted, text) from error


def _bad_value(kind: type[Pass], key: str, wanted: str, text: str) -> TokcError:
    return TokcError(f"option '{key}' of pass '{kind.name}' is {wanted}, not '{text}'")


def _print(value: Option) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    assert not re.search(r"[\s{},=]|^$", text), f"an option's value has no text form: {text!r}"
    return text
