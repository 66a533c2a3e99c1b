"""Recipes go out and come back the same, and a wrong one is named."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tokc.cli.app import app
from tokc.errors import TokcError, UnknownOption
from tokc.tuning.recipe import Recipe, read_recipe, write_recipe


@pytest.mark.parametrize("recipe", [Recipe("cpu:x86-64-v3", "a{b=1},c", 512), Recipe("cpu", "a")])
def test_what_is_written_is_read_again(tmp_path: Path, recipe: Recipe) -> None:
    write_recipe(tmp_path / "r.toml", recipe, ["found by a search", 'with a "note"'])
    assert read_recipe(tmp_path / "r.toml") == recipe
    assert [path.name for path in tmp_path.iterdir()] == ["r.toml"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[", "is not TOML"),
        ("", "is no recipe"),
        ("[build]\n[other]\n", "is no recipe"),
        ('[build]\ntarget = "cpu"\n', "are texts"),
        ('[build]\ntarget = "cpu"\npasses = "a"\nbits = 4\n', "unknown key 'bits'"),
        ('[build]\ntarget = "cpu"\npasses = "a"\ncontext = 0\n', "'context' is '0'"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(UnknownOption, match=problem):
        read_recipe(path)


def test_a_recipe_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TokcError, match="cannot read"):
        read_recipe(tmp_path / "none.toml")


def test_an_option_that_the_recipe_states_is_wrong_usage(tmp_path: Path) -> None:
    write_recipe(tmp_path / "r.toml", Recipe("cpu", "a"), [])
    result = CliRunner().invoke(app, ["build", "x", "--recipe", str(tmp_path / "r.toml"), "--dtype", "int8"])
    assert result.exit_code == 2
    assert "--dtype is what the recipe states" in result.output
