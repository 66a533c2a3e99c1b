"""A search over real builds of a tiny model: what it finds, what it leaves, and that it goes on."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.tiny_models import tiny_folder
from tokc.cli.app import app
from tokc.cost.devices import Host, probe
from tokc.cost.gates import parse_gate
from tokc.errors import GateNotMet, TokcError, UnknownOption
from tokc.report.gate_figures import Pricing
from tokc.tuning.page import render
from tokc.tuning.search import Budget, Search
from tokc.tuning.space import STARTS, Candidate
from tokc.tuning.table import pareto
from tokc.tuning.trial import Setting

MINUTES = Budget(600.0, 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder("llama3", tmp_path_factory.mktemp("tune") / "model")


@pytest.fixture(scope="module")
def host() -> Host:
    return probe(size_bytes=1 << 24)


def setting_of(model: Path, limit: str | None = None, objective: str = "size>=0B") -> Setting:
    limits = () if limit is None else (parse_gate(limit),)
    return Setting(
        model=model,
        target="cpu",
        context=64,
        objective=parse_gate(objective),
        maximize=False,
        limits=limits,
        pricing=Pricing(),
        eval_tokens=1024,
    )


@pytest.fixture(scope="module")
def search(model: Path, host: Host, tmp_path_factory: pytest.TempPathFactory) -> Search:
    folder = tmp_path_factory.mktemp("study")
    found = Search(folder, setting_of(model, "kv_bytes_per_token<=500B"), host)
    found.run(MINUTES)
    return found


def test_the_best_is_the_smallest_that_keeps_the_limit(search: Search) -> None:
    assert search.best is not None
    kept = [one for one in search.tried if one.feasible and one.objective is not None]
    assert search.best.objective == min(one.objective or 0.0 for one in kept)
    broken = [one for one in search.tried if one.objective is not None and not one.feasible]
    assert all(one.figures["kv_bytes_per_token<=500B"] > 500 for one in broken)
    assert len(search.tried) == 3


def test_the_best_build_lies_in_the_folder_and_the_others_do_not(search: Search) -> None:
    assert search.best is not None
    assert [path.name for path in search.folder.glob("*.tokc")] == ["best.tokc"]
    size = sum(path.stat().st_size for path in (search.folder / "best.tokc").rglob("*") if path.is_file())
    assert size == search.best.objective


def test_a_search_that_was_stopped_goes_on(search: Search, model: Path, host: Host) -> None:
    again = Search(search.folder, search.setting, host)
    assert again.tried == search.tried
    again.run(Budget(0.0))
    assert again.best == search.best


def test_another_search_in_the_same_folder_is_refused(search: Search, model: Path, host: Host) -> None:
    with pytest.raises(TokcError, match="holds a search with another limits"):
        Search(search.folder, setting_of(model, "kv_bytes_per_token<=900B"), host)


def test_no_trial_of_the_front_is_beaten(search: Search) -> None:
    front = {one.number for one in pareto(search)}
    assert search.best is not None
    assert front
    smallest = min((one for one in search.tried if one.objective), key=lambda one: one.objective or 0.0)
    assert smallest.number in front


def test_the_page_has_the_front_and_every_trial(search: Search) -> None:
    page = render(search)
    assert "size against kv_bytes_per_token" in page
    assert page.count("<circle") == sum(one.objective is not None for one in search.tried)
    assert "The limit is kv_bytes_per_token&lt;=500B." in page
    for one in search.tried:
        assert re.search(rf'<td class="spec">{one.number}(, best|, front)?</td>', page)
    assert search.best is not None
    assert f'<td class="spec">{search.best.number}, best</td>' in page


def test_a_recipe_builds_what_the_trial_built(search: Search, model: Path, tmp_path: Path) -> None:
    from tokc.tuning.recipe import write_recipe

    assert search.best is not None
    write_recipe(tmp_path / "r.toml", search.recipe(search.best), search.notes(search.best))
    out = tmp_path / "best.tokc"
    command = ["build", str(model), "--recipe", str(tmp_path / "r.toml"), "--no-check", "--no-cache"]
    assert CliRunner().invoke(app, [*command, "--out", str(out)]).exit_code == 0
    kept = search.folder / "best.tokc"
    assert (out / "model.safetensors").read_bytes() == (kept / "model.safetensors").read_bytes()


def test_what_the_roofline_rules_out_is_not_built(model: Path, tmp_path: Path, host: Host) -> None:
    search = Search(tmp_path / "study", setting_of(model, objective="tpot@1>=0s"), host)
    bound = search._bound(Candidate(keep=False))
    assert bound is not None
    assert bound < (search._bound(Candidate(bits=8, head_bits=8, keep=False)) or 0.0)
    assert search._bound(Candidate(method="gptq", keep=False)) == bound


def test_starts_are_different_builds() -> None:
    assert len({start.same_as for start in STARTS}) == len(STARTS)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "one of --minimize and --maximize"),
        (("--minimize", "size", "--maximize", "tpot"), "one of --minimize and --maximize"),
        (("--minimize", "speed"), "unknown metric 'speed'"),
        (("--minimize", "cost_per_mtok@8"), "a cost needs a price"),
        (("--minimize", "size", "--budget", "5"), "no unit"),
        (("--minimize", "size", "--subject-to", "size<5"), "no unit"),
    ],
)
def test_wrong_usage_is_named_before_anything_is_tried(
    model: Path, tmp_path: Path, arguments: tuple[str, ...], problem: str
) -> None:
    command = ["tune", str(model), "--study", str(tmp_path / "study"), *arguments]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, UnknownOption)
    assert problem in str(result.exception)
    assert not (tmp_path / "study").exists()


def test_limits_that_nothing_keeps_end_with_their_own_code(model: Path, tmp_path: Path) -> None:
    command = ["tune", str(model), "--minimize", "size", "--subject-to", "weight_bytes<=1B", "--trials", "1"]
    options = [
        "--study",
        str(tmp_path / "study"),
        "--out",
        str(tmp_path / "r.toml"),
        "--context",
        "64",
        "--json",
    ]
    result = CliRunner().invoke(app, [*command, *options])
    assert isinstance(result.exception, GateNotMet)
    assert json.loads(result.stdout)["best"] is None
    assert not (tmp_path / "r.toml").exists()
