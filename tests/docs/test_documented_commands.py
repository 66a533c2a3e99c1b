"""Every command that a page shows is one that the program has: its name, options and counts of arguments."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from tokc.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = {path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "reference"}
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(WRITTEN))
PROGRAMS = ("tokc", "make", "python", "pytest")
# Which options of Python tools take a value is not looked up: their modules and paths must exist.


def shown() -> Iterator[tuple[str, str, bool]]:
    """Yield (page, command line, whether it stands in a block) of every command; elsewhere it is a part."""
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        name = str(page.relative_to(ROOT))
        for line in re.findall(rf"(?m)^(?: {{4}}|\$ )((?:{'|'.join(PROGRAMS)}) .*)$", text):
            yield name, line, True
        for line in re.findall(rf"`((?:{'|'.join(PROGRAMS)}) [^`]+)`", text):
            yield name, " ".join(line.split()), False


COMMANDS = sorted(set(shown()))


@cache
def program() -> TyperGroup:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return group


def of(tool: str) -> list[tuple[str, str, bool]]:
    found = [command for command in COMMANDS if command[1].split()[0] == tool]
    assert found
    return found


@pytest.mark.parametrize(("page", "line", "whole"), of("tokc"))
def test_a_command_of_the_program_parses(page: str, line: str, whole: bool) -> None:
    words = shlex.split(line, comments=True)
    if len(words) == 2 and words[1].startswith("-"):
        assert words[1] in {"--help", "--version"}
        return
    command = program().get_command(typer.Context(program()), words[1])
    assert command is not None, f"{page}: tokc has no command '{words[1]}'"
    if whole:
        command.make_context(words[1], words[2:])
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known | {"--help"}, page


@pytest.mark.parametrize(("page", "line", "whole"), of("make"))
def test_a_target_of_make_is_there(page: str, line: str, whole: bool) -> None:
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    wanted = [word for word in shlex.split(line, comments=True)[1:] if "=" not in word]
    assert set(wanted) <= targets, page


@pytest.mark.parametrize(("page", "line", "whole"), of("python"))
def test_a_module_that_is_run_is_there(page: str, line: str, whole: bool) -> None:
    words = shlex.split(line, comments=True)
    assert words[1] == "-m", page
    assert find_spec(words[2]) is not None, page


@pytest.mark.parametrize(("page", "line", "whole"), of("pytest"))
def test_a_test_that_is_named_is_there(page: str, line: str, whole: bool) -> None:
    for word in shlex.split(line, comments=True)[1:]:
        assert "/" not in word or (ROOT / word).exists(), page
