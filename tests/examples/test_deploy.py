"""The deployment examples name options, paths, files and metrics that exist."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tests.runtime.conftest import MakeEngine, make_engine
from tokc.cli.app import app
from tokc.runtime.server.app import app_of
from tokc.runtime.server.metrics import exposition
from tokc.runtime.server.service import Service

DEPLOY = Path(__file__).parents[2] / "examples" / "deploy"
PYPROJECT = DEPLOY.parents[1] / "pyproject.toml"
__all__ = ["make_engine"]


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def containers() -> list[dict[str, Any]]:
    deployment = next(one for one in documents("kubernetes.yaml") if one["kind"] == "Deployment")
    [service] = documents("kserve.yaml")
    return [
        *deployment["spec"]["template"]["spec"]["containers"],
        *service["spec"]["predictor"]["containers"],
    ]


def options_of_serve() -> set[str]:
    help_text = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, ["serve", "--help"]).output
    return set(re.findall(r"--[a-z-]+", help_text))


def test_the_containers_give_options_that_the_server_has() -> None:
    known = options_of_serve()
    for container in containers():
        assert {one for one in container["args"] if one.startswith("--")} <= known


def test_the_image_gives_options_and_extras_that_exist() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    commands = json.loads(re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)[0])
    commands += json.loads(re.findall(r"^CMD (.*)$", text, re.MULTILINE)[0])
    assert {one for one in commands if one.startswith("--")} <= options_of_serve()
    [extras] = re.findall(r"\[([a-z,]+)\]\"", text)
    for extra in extras.split(","):
        assert re.search(rf"^{extra} = \[", PYPROJECT.read_text(), re.MULTILINE)


def test_the_probes_ask_for_paths_that_need_no_key(make_engine: MakeEngine) -> None:
    paths = {route.path for route in app_of(Service(make_engine())).routes}  # type: ignore[attr-defined]
    for container in containers():
        probes = [value for name, value in container.items() if name.endswith("Probe")]
        assert probes
        for probe in probes:
            assert probe["httpGet"]["path"] in paths & {"/ready", "/health"}


def test_a_pod_has_time_to_drain() -> None:
    deployment = next(one for one in documents("kubernetes.yaml") if one["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    args = pod["containers"][0]["args"]
    assert pod["terminationGracePeriodSeconds"] > int(args[args.index("--drain") + 1])


def test_threads_are_whole_cores_of_the_container() -> None:
    for container in containers():
        args = container["args"]
        assert container["resources"]["limits"]["cpu"] == args[args.index("--threads") + 1]


@pytest.mark.parametrize("name", ["kubernetes.yaml", "kserve.yaml"])
def test_every_mount_has_a_volume(name: str) -> None:
    for document in documents(name):
        spec = document["spec"]
        pod = spec.get("template", {}).get("spec") or spec.get("predictor")
        if pod is not None:
            volumes = {volume["name"] for volume in pod["volumes"]}
            mounts = [mount for one in pod["containers"] for mount in one["volumeMounts"]]
            assert {mount["name"] for mount in mounts} == volumes


def test_the_dashboard_reads_metrics_that_exist(make_engine: MakeEngine) -> None:
    engine = make_engine()
    known = exposition(engine.counters, engine.gauges, {200: 1})
    board = json.loads((DEPLOY / "grafana.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    for name in set(re.findall(r"\btokc_\w+", " ".join(expressions))):
        assert re.search(rf"^{name}[{{ ]", known, re.MULTILINE), name
