"""A recipe: the options of a build that a search chose, as TOML that `tokc build --recipe` takes."""

from dataclasses import dataclass
from pathlib import Path

from tokc.cost.toml_file import read_toml
from tokc.errors import UnknownOption

KEYS = ("target", "passes", "context")


@dataclass(frozen=True)
class Recipe:
    """The options that make a build; None leaves one at its default."""

    target: str
    passes: str
    context: int | None = None


def write_recipe(path: Path, recipe: Recipe, notes: list[str]) -> None:
    """Write a recipe with notes, a comment a line, aside first."""
    lines = [*(f"# {note}" for note in notes), "[build]"]
    lines += [f'target = "{recipe.target}"', f'passes = "{recipe.passes}"']
    lines += [] if recipe.context is None else [f"context = {recipe.context}"]
    aside = path.with_name(f".{path.name}")
    aside.write_text("\n".join(lines) + "\n", encoding="utf-8")
    aside.replace(path)


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises: TokcError if it cannot be read; UnknownOption naming the key that is wrong.
    """
    value = read_toml(path)
    build = value.get("build")
    if not isinstance(build, dict) or set(value) != {"build"}:
        raise UnknownOption(f"'{path}' is no recipe: it has one table, [build]")
    for key in build:
        if key not in KEYS:
            raise UnknownOption(f"unknown key '{key}'; choose from {', '.join(KEYS)}", where=str(path))
    target, passes, context = (build.get(key) for key in KEYS)
    if not isinstance(target, str) or not isinstance(passes, str):
        raise UnknownOption("'target' and 'passes' are texts", where=str(path))
    if context is not None and (not isinstance(context, int) or isinstance(context, bool) or context < 1):
        raise UnknownOption(f"'context' is '{context}', expected at least 1", where=str(path))
    return Recipe(target, passes, context)
