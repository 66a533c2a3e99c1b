"""docs/decisions/dependencies.md has a reason for each package that pyproject.toml names, for no other."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = (project["dependencies"], *project["optional-dependencies"].values())
    named = {Requirement(text).name for group in groups for text in group} - {project["name"]}
    page = (ROOT / "docs" / "decisions" / "dependencies.md").read_text()
    assert set(re.findall(r"(?m)^\| ([\w-]+) \| (?!for)", page)) == named


def test_every_range_is_bounded_above() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    shipped = [
        text
        for name, group in project["optional-dependencies"].items()
        if name not in {"test", "lint"}
        for text in group
    ]
    for requirement in map(Requirement, (*project["dependencies"], *shipped)):
        if requirement.name not in {project["name"], "torch"}:
            assert any(one.operator in {"<", "<=", "=="} for one in requirement.specifier), requirement
