"""docker-compose.yml, and the start commands of cluster.yaml, without Docker: the tests only read the files."""

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.scripts.scripts import start

from tests.support.commands import ROOT
from tests.support.dockerfile import image_env


@pytest.fixture
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def ray_options(command: str) -> dict[str, Any]:
    """Return the options of a `ray start` command, parsed by Ray's command line.

    Raises:
        click.UsageError: Ray does not have an option of the command.
    """
    name, verb, *arguments = shlex.split(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", command))
    assert (name, verb) == ("ray", "start")
    return start.make_context("ray start", arguments).params


def test_ray_accepts_the_start_commands_of_cluster_yaml() -> None:
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    head, worker = (cluster[f"{kind}_start_ray_commands"][-1] for kind in ("head", "worker"))
    assert ray_options(head)["head"]
    assert ray_options(worker)["address"] == "$RAY_HEAD_IP:6379"


def test_the_services_start_ray_as_cluster_yaml_does(compose: dict[str, Any]) -> None:
    """The head does no work, workers find the head, and the ports are those of cluster.yaml."""
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    names = ("head", "worker")
    head, worker = (ray_options(compose["services"][name]["command"]) for name in names)
    cluster_head, cluster_worker = (ray_options(cluster[f"{name}_start_ray_commands"][-1]) for name in names)
    for name in ("head", "port", "metrics_export_port"):
        assert head[name] == cluster_head[name]
    assert head["num_cpus"] == cluster["available_node_types"]["head"]["resources"]["CPU"] == 0
    assert worker["address"] == f"head:{head['port']}"
    assert worker["metrics_export_port"] == cluster_worker["metrics_export_port"]
    assert head["block"]
    assert worker["block"]  # a container ends with its command
    assert compose["services"]["worker"]["depends_on"]["head"]["condition"] == "service_healthy"


def test_the_object_stores_fit_in_shared_memory(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        shared_bytes = float(service["shm_size"].removesuffix("gb")) * 2**30
        assert shared_bytes > ray_options(service["command"])["object_store_memory"]


def test_only_clients_on_this_machine_with_the_token_reach_the_head(compose: dict[str, Any]) -> None:
    """Compose refuses to start without RAY_AUTH_TOKEN."""
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert service["environment"]["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")
        assert "RAY_AUTH_MODE" not in service["environment"]
    assert image_env()["RAY_AUTH_MODE"] == "token"


def test_all_services_run_the_same_image(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert len({service["image"] for service in services.values()}) == 1
    assert {service["platform"] for service in services.values()} == {"linux/amd64"}
    assert [name for name, service in services.items() if service.get("build") == "."] == ["head"]


@pytest.mark.skipif("COMPOSE_SCHEMA" not in os.environ, reason="COMPOSE_SCHEMA: the specification's compose-spec.json")
def test_the_file_is_valid_for_the_compose_specification(compose: dict[str, Any]) -> None:
    schema = json.loads(Path(os.environ["COMPOSE_SCHEMA"]).read_text())
    jsonschema.validate(compose, schema)
    compose["services"]["head"]["comand"] = "ray start"
    with pytest.raises(jsonschema.ValidationError, match="'comand' was unexpected"):
        jsonschema.validate(compose, schema)
