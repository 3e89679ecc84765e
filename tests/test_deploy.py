"""cluster.yaml, deploy/ and the Dockerfile: as Ray, KubeRay and the job itself take them."""

import json
import os
import re
import shlex
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from embedding.scheduling import metrics
from embedding.scheduling.resources import Cluster, plan
from jobs.embed import parse
from tests.conftest import ROOT

WORKERS = ("cpu", "gpu-l4", "gpu-a10g")


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture
def rayjob() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "deploy/rayjob.yaml").read_text())


def test_the_launchers_configuration_is_valid_to_ray(cluster: dict[str, Any]) -> None:
    prepared = prepare_config(cluster)
    validate_config(prepared)
    assert prepared["head_node_type"] == "head"
    # What an empty list is for: prepare_config fills in a Ray of its own where nothing is said.
    assert prepared["setup_commands"] == prepared["head_setup_commands"] == prepared["worker_setup_commands"] == []


def test_an_invalid_one_is_not(cluster: dict[str, Any]) -> None:
    """What makes the test above one that can fail."""
    cluster["available_node_types"]["cpu"]["min_worker"] = 1
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(cluster))


def test_workers_are_spot_machines_from_zero_and_the_head_does_no_work(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert set(types) == {"head", *WORKERS}
    assert types["head"]["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    for name in WORKERS:
        assert types[name]["min_workers"] == 0
        assert types[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    gpu_types = {types[name]["node_config"]["InstanceType"] for name in WORKERS if types[name]["resources"].get("GPU")}
    assert len(gpu_types) >= 2


def test_credentials_come_from_the_instance(cluster: dict[str, Any]) -> None:
    for node in cluster["available_node_types"].values():
        assert node["node_config"]["IamInstanceProfile"]["Arn"].startswith("arn:aws:iam::")
    assert not re.search(r"AKIA|aws_secret|AWS_ACCESS_KEY|KeyName", (ROOT / "cluster.yaml").read_text(), re.IGNORECASE)


def test_all_stages_fit_on_its_nodes(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    resources = [types[name]["resources"] for name in WORKERS]
    now = Cluster(
        n_cpus=sum(node["CPU"] for node in resources),
        n_gpus=sum(node.get("GPU", 0) for node in resources),
        memory_bytes=100 << 30,
        node_cpus=min(node["CPU"] for node in resources),
        n_nodes=len(resources),
        is_own=False,
    )
    placed = plan(now, "auto", "auto")
    assert (placed.device, placed.n_actors) == ("cuda", 2)


def test_the_kubernetes_job_asks_for_what_the_job_has(rayjob: dict[str, Any]) -> None:
    """Its command line is parsed by the job's own parser; its Ray is the one that is locked."""
    spec = rayjob["spec"]
    python, option, module, *arguments = shlex.split(spec["entrypoint"])
    assert (python, option, module) == ("python", "-m", "jobs.embed")
    config = parse(arguments)
    assert (config.device, config.actors) == ("cuda", 8)
    assert spec["rayClusterSpec"]["rayVersion"] == metadata.version("ray")
    groups = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert all(group["minReplicas"] == group["replicas"] == 0 for group in groups)
    assert spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.skipif("KUBERAY_CRDS" not in os.environ, reason="KUBERAY_CRDS: a folder with KubeRay's published CRDs")
def test_the_kubernetes_job_is_valid_to_kuberay(rayjob: dict[str, Any]) -> None:
    crd = yaml.safe_load((Path(os.environ["KUBERAY_CRDS"]) / "ray.io_rayjobs.yaml").read_text())
    (schema,) = (
        version["schema"]["openAPIV3Schema"]
        for version in crd["spec"]["versions"]
        if f"ray.io/{version['name']}" == rayjob["apiVersion"]
    )
    assert crd["spec"]["names"]["kind"] == rayjob["kind"]
    jsonschema.validate(rayjob, strict(schema))
    rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 0
    with pytest.raises(jsonschema.ValidationError, match="'minReplica' was unexpected"):
        jsonschema.validate(rayjob, strict(schema))


def strict(schema: Any) -> Any:
    """The schema with unknown fields refused, as ``kubectl apply`` refuses them."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if made.get("x-kubernetes-int-or-string"):
        made.pop("format", None)
    is_closed = made.get("type") == "object" and isinstance(made.get("properties"), dict)
    if is_closed and "additionalProperties" not in made and not made.get("x-kubernetes-preserve-unknown-fields"):
        names = made["properties"]
        made["additionalProperties"] = not names or ("metadata" in names and names["metadata"] == {"type": "object"})
    return made


def test_the_dashboard_draws_metrics_that_there_are() -> None:
    dashboard = json.loads((ROOT / "deploy/grafana.json").read_text())
    drawn = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"ray_(avex_batch_\w+?)(?:_total|_bucket|_sum|_count)?\b", target["expr"])
    }
    there = {name for name, _ in metrics.COUNTERS.values()} | {metrics.FAILURES, metrics.BUSY, metrics.BATCH_FILL}
    assert drawn == there


def test_the_image_holds_every_module_and_the_locked_packages() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "--require-hashes -r requirements.lock" in dockerfile
    kept = (ROOT / ".dockerignore").read_text().splitlines()
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = [pattern.rstrip("*") for pattern in setuptools["packages"]["find"]["include"]]
    assert packages == ["embedding", "jobs"]
    for package in packages:
        assert f"COPY {package} {package}" in dockerfile
        assert f"!{package}/**/*.py" in kept
    python = re.search(r"FROM python:(\d+\.\d+)", dockerfile)
    assert python is not None
    assert python[1] == "3.11"
