"""Two machines of a Ray cluster, as two raylets here: each takes one trial at a time, and one may be lost."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("ray", reason="the extra `ray` is not installed")

import ray
from ray.cluster_utils import Cluster as Raylets

from tests.exporters.texts import byte_level, save_tokenizer
from tests.tiny_models import tiny_folder
from tokc.cli.app import app
from tokc.cost.gates import parse_gate
from tokc.errors import TokcError
from tokc.pipeline import Pipeline
from tokc.report.gate_figures import Pricing
from tokc.targets.base import Precision
from tokc.targets.table import named_target
from tokc.tuning.cluster import Cluster, joined
from tokc.tuning.trial import Setting

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

DEADLINE_S = 120
PIPELINE = Pipeline.parse(named_target("cpu").pipeline(Precision()))


@pytest.fixture(scope="module")
def raylets() -> Iterator[Raylets]:
    """Two machines of one CPU each."""
    cluster = Raylets(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    sizes = {"max_position_embeddings": 256, "vocab_size": 512}
    model = tiny_folder("llama3", tmp_path_factory.mktemp("cluster") / "model", **sizes)
    save_tokenizer(byte_level("gpt2"), model)
    objective = parse_gate("tpot@1>=0s")
    return Setting(
        model, "cpu", 256, objective, maximize=False, limits=(), pricing=Pricing(), eval_tokens=1024
    )


def wait_until_every_machine_is_taken() -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while ray.available_resources().get("CPU", 0):
        assert time.monotonic() < deadline_s, "a trial takes a whole machine"
        time.sleep(0.01)


def begin(machines: Cluster, count: int) -> None:
    for number in range(count):
        machines.begin(number, str(PIPELINE))


def test_a_search_is_spread_over_the_machines_and_says_who_measured(
    raylets: Raylets, setting: Setting, tmp_path: Path
) -> None:
    options = ["--minimize", "tpot@1", "--subject-to", "size<=9MB", "--context", "256", "--trials", "4"]
    paths = ["--study", str(tmp_path / "study"), "--out", str(tmp_path / "r.toml")]
    command = ["tune", str(setting.model), "--ray", raylets.address, *options, *paths, "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    trials = json.loads(result.stdout)["trials"]
    measured = [one for one in trials if one["state"] == "measured"]
    assert len(measured) >= 2
    assert len({one["machine"] for one in measured}) == 2
    assert not list((tmp_path / "study").glob("*.tokc"))
    build = ["build", str(setting.model), "--recipe", str(tmp_path / "r.toml"), "--no-check", "--no-cache"]
    assert CliRunner().invoke(app, [*build, "--out", str(tmp_path / "best.tokc")]).exit_code == 0


def test_a_trial_takes_a_whole_machine_and_a_third_waits(raylets: Raylets, setting: Setting) -> None:
    with joined(setting, raylets.address) as machines:
        assert machines.count == 2
        begin(machines, 3)
        wait_until_every_machine_is_taken()
        found = [machines.finished() for _ in range(3)]
    assert {one.number for one in found} == {0, 1, 2}
    assert all(one.outcome is not None and one.outcome.objective for one in found)
    assert len({one.machine for one in found}) == 2


def test_what_ran_on_a_machine_that_is_lost_runs_on_another(raylets: Raylets, setting: Setting) -> None:
    with joined(setting, raylets.address):
        before = {node["NodeID"][:8] for node in ray.nodes() if node["Alive"]}
    third = raylets.add_node(num_cpus=1)
    with joined(setting, raylets.address) as machines:
        assert machines.count == 3
        begin(machines, 3)
        wait_until_every_machine_is_taken()
        raylets.remove_node(third, allow_graceful=False)
        found = [machines.finished() for _ in range(3)]
        assert machines.count == 2
    assert {one.machine.rpartition("/")[2] for one in found} <= before
    assert all(one.outcome is not None for one in found)


def test_machines_that_differ_are_refused(raylets: Raylets, setting: Setting) -> None:
    other = raylets.add_node(num_cpus=2)
    try:
        with pytest.raises(TokcError, match="different CPUs for Ray"), joined(setting, raylets.address):
            pass
    finally:
        raylets.remove_node(other)


def test_a_model_that_a_machine_cannot_read_is_named(raylets: Raylets, tmp_path: Path) -> None:
    setting = Setting(
        tmp_path / "absent", "cpu", 64, parse_gate("size>=0B"), False, (), Pricing(), eval_tokens=1024
    )
    with pytest.raises(TokcError, match="cannot read"), joined(setting, raylets.address):
        pass


def test_a_cluster_that_is_not_there_is_one_clear_error(setting: Setting) -> None:
    with pytest.raises(TokcError, match="no Ray cluster can be joined"), joined(setting, "127.0.0.1:1"):
        pass
