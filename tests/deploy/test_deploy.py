"""Checks of cluster.yaml and deploy/ with Ray, KubeRay and the job itself; test_image.py checks the image."""

import json
import os
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from embedding.planning.placement import ClusterResources, plan_placement
from embedding.ray_runtime import metrics
from jobs.embed import parse
from tests.support.aws import instance_type
from tests.support.commands import ROOT
from tests.support.launcher import prepare_config, validate_config

GPU_WORKERS = ("gpu-l4", "gpu-a10g", "gpu-h100")
WORKERS = ("cpu", *GPU_WORKERS)


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture
def rayjob() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "deploy/rayjob.yaml").read_text())


def test_the_launchers_configuration_is_valid_for_ray(cluster: dict[str, Any]) -> None:
    prepared = prepare_config(cluster)
    validate_config(prepared)
    assert prepared["head_node_type"] == "head"
    # The lists are empty because prepare_config fills in an installation of Ray where a list is missing.
    assert prepared["setup_commands"] == prepared["head_setup_commands"] == prepared["worker_setup_commands"] == []


def test_an_invalid_configuration_is_not_valid_for_ray(cluster: dict[str, Any]) -> None:
    """The validation of the test above can fail."""
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


def test_machines_have_the_cores_and_gpus_that_the_file_states(cluster: dict[str, Any]) -> None:
    """Ray trusts the resources in the file: a wrong number overloads a machine or leaves cores idle."""
    gpus = {"cpu": None, "gpu-l4": "L4", "gpu-a10g": "A10G", "gpu-h100": "H100"}
    for name in WORKERS:
        node = cluster["available_node_types"][name]
        described = instance_type(node["node_config"]["InstanceType"])
        assert described["VCpuInfo"]["DefaultVCpus"] == node["resources"]["CPU"] == 16
        assert described["VCpuInfo"]["DefaultCores"] == 8  # the arithmetic of cluster.yaml and docs/cluster.md
        assert "x86_64" in described["ProcessorInfo"]["SupportedArchitectures"]
        assert "spot" in described["SupportedUsageClasses"]
        described_gpus = [
            gpu["Name"] for gpu in described.get("GpuInfo", {}).get("Gpus", []) for _ in range(gpu["Count"])
        ]
        assert described_gpus == [gpus[name]] * node["resources"].get("GPU", 0)


def test_the_most_expensive_gpu_has_the_lowest_priority(cluster: dict[str, Any]) -> None:
    """Ray's autoscaler prefers the higher priority among types that fit a demand equally well."""
    types = cluster["available_node_types"]
    assert sorted(GPU_WORKERS, key=lambda name: -types[name]["priority"]) == ["gpu-l4", "gpu-a10g", "gpu-h100"]


def test_credentials_come_from_the_instance(cluster: dict[str, Any]) -> None:
    for node in cluster["available_node_types"].values():
        assert node["node_config"]["IamInstanceProfile"]["Arn"].startswith("arn:aws:iam::")
    assert not re.search(r"AKIA|aws_secret|AWS_ACCESS_KEY|KeyName", (ROOT / "cluster.yaml").read_text(), re.IGNORECASE)


def test_all_stages_fit_on_the_nodes(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    resources = [types[name]["resources"] for name in WORKERS]
    cluster_resources = ClusterResources(
        n_cpus=sum(node["CPU"] for node in resources),
        n_gpus=sum(node.get("GPU", 0) for node in resources),
        memory_bytes=100 << 30,
        smallest_node_cpus=min(node["CPU"] for node in resources),
        n_nodes=len(resources),
        is_own=False,
    )
    placed = plan_placement(cluster_resources, "auto", "auto")
    assert (placed.device, placed.n_actors) == ("cuda", len(GPU_WORKERS))


def test_the_kubernetes_job_has_a_valid_command_line_and_the_locked_ray(rayjob: dict[str, Any]) -> None:
    """The parser of the job parses the command line."""
    spec = rayjob["spec"]
    words = shlex.split(spec["entrypoint"].replace("\\\n", " "))
    python, option, module, *arguments = words[words.index("avex-batch") + 1 :]
    assert (python, option, module) == ("python", "-m", "jobs.embed")
    config = parse(arguments)
    assert (config.device, config.actors) == ("cuda", 8)
    assert spec["rayClusterSpec"]["rayVersion"] == metadata.version("ray")
    groups = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert all(group["minReplicas"] == group["replicas"] == 0 for group in groups)
    assert spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def pods(rayjob: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the pod templates of the submitter, the head and each group of workers."""
    cluster = rayjob["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    submitter = rayjob["spec"].get("submitterPodTemplate", {})
    return {"submitter": submitter, "head": cluster["headGroupSpec"]["template"], **groups}


@pytest.mark.parametrize(
    ("pod", "machine", "autoscaler_gib"),
    [("head", "m7i.2xlarge", 0.5), ("cpu", "c7i.4xlarge", 0), ("gpu", "g6.4xlarge", 0), ("gpu", "g5.4xlarge", 0)],
)
def test_a_pod_fits_on_the_machine_that_the_file_names(
    rayjob: dict[str, Any], pod: str, machine: str, autoscaler_gib: float
) -> None:
    """Beside the pod there is room for EKS' reserve, 0.5 GiB of daemon sets, and KubeRay's autoscaler in the pod."""
    described = instance_type(machine)
    network = described["NetworkInfo"]
    most_pods = network["MaximumNetworkInterfaces"] * (network["Ipv4AddressesPerInterface"] - 1) + 2
    allocatable_mib = described["MemoryInfo"]["SizeInMiB"] * 0.925 - (255 + 11 * most_pods) - 100
    resources = pods(rayjob)[pod]["spec"]["containers"][0]["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"]
    assert float(resources["limits"]["memory"].removesuffix("Gi")) + autoscaler_gib + 0.5 <= allocatable_mib / 1024
    assert float(resources["requests"]["cpu"]) + 1 <= described["VCpuInfo"]["DefaultVCpus"]


def test_every_pod_selects_the_architecture_of_the_image(rayjob: dict[str, Any]) -> None:
    assert set(pods(rayjob)) == {"submitter", "head", "cpu", "gpu"}
    for template in pods(rayjob).values():
        assert template["spec"]["nodeSelector"] == {"kubernetes.io/arch": "amd64"}


def test_autoscalers_do_not_evict_the_head_or_the_submitter(rayjob: dict[str, Any]) -> None:
    for name in ("head", "submitter"):
        annotations = pods(rayjob)[name]["metadata"]["annotations"]
        assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
        assert annotations["karpenter.sh/do-not-disrupt"] == "true"
        tolerations = pods(rayjob)[name]["spec"].get("tolerations", [])
        assert not [toleration for toleration in tolerations if toleration["key"] == "spot"]


def test_kuberay_creates_a_token_for_the_cluster(rayjob: dict[str, Any]) -> None:
    assert rayjob["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


# `ray job submit -- WORDS` joins the words, and Ray's head runs the line in a shell.
SUBMIT = "import os, shlex, sys; os.execlp('sh', 'sh', '-c', shlex.join(sys.argv[1:]))"


def submit(entrypoint: str, folder: Path, *, code: int, is_stopped: bool = False) -> tuple[int, str, str]:
    """Run the entrypoint as KubeRay and Ray do, with stand-ins for Ray, the job and `sleep`.

    Args:
        entrypoint: The RayJob's entrypoint.
        folder: An empty folder for the stand-ins.
        code: The exit code of `python -m jobs.embed`.
        is_stopped: Whether `ray job stop` sends its signal while the job runs.

    Returns:
        The exit status of Ray's job, its log, and its calls of `ray` and `sleep`, a line each.
    """
    programs = {
        "submit": f'exec "{sys.executable}" -c "{SUBMIT}" "$@"',
        "python": f"echo the job: $@\n{'kill -TERM $PPID' if is_stopped else ''}\nexit {code}",
        "ray": "echo ray $@ >> $CALLS\nkill -TERM $PPID",
        "sleep": "echo sleep $@ >> $CALLS",
    }
    for name, text in programs.items():
        program = folder / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    calls = folder / "calls"
    calls.touch()
    env = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "CALLS": str(calls),
        "RAY_JOB_SUBMISSION_ID": "avex-batch-1",
    }
    line = f"submit {entrypoint.strip()} ;"  # KubeRay's own form, in its BuildJobSubmitCommand
    done = subprocess.run(["bash", "-ec", line], env=env, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr, calls.read_text()


def test_a_complete_run_on_kubernetes_ends_without_a_retry(rayjob: dict[str, Any], tmp_path: Path) -> None:
    code, log, calls = submit(rayjob["spec"]["entrypoint"], tmp_path, code=0)
    assert (code, calls) == (0, "")
    words = shlex.split(rayjob["spec"]["entrypoint"].replace("\\\n", " "))
    assert log.split("the job: ")[1].split() == words[words.index("jobs.embed") - 1 :]


def test_a_request_that_makes_no_sense_is_not_retried_on_kubernetes(rayjob: dict[str, Any], tmp_path: Path) -> None:
    """KubeRay retries every job that failed, and no job whose status is STOPPED."""
    code, log, calls = submit(rayjob["spec"]["entrypoint"], tmp_path, code=2)
    assert calls == "ray job stop --address http://127.0.0.1:8265 --no-wait avex-batch-1\n"
    assert "exit code 2" in log
    assert code == 2


def test_retries_on_kubernetes_last_a_weekend(rayjob: dict[str, Any], tmp_path: Path) -> None:
    code, log, calls = submit(rayjob["spec"]["entrypoint"], tmp_path, code=1)
    assert (code, "exit code 1" in log) == (1, True)
    sleep, seconds = calls.split()
    assert sleep == "sleep"
    assert rayjob["spec"]["backoffLimit"] * int(seconds) >= 60 * 3600
    assert rayjob["spec"]["submitterConfig"]["backoffLimit"] > 2  # KubeRay's default


def test_a_stopped_run_on_kubernetes_ends_at_once(rayjob: dict[str, Any], tmp_path: Path) -> None:
    code, _, calls = submit(rayjob["spec"]["entrypoint"], tmp_path, code=1, is_stopped=True)
    assert (code, calls) == (1, "")


@pytest.mark.skipif("KUBERAY_CRDS" not in os.environ, reason="KUBERAY_CRDS: a folder with KubeRay's published CRDs")
def test_the_kubernetes_job_is_valid_for_kuberay(rayjob: dict[str, Any]) -> None:
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
    """Return the schema without unknown fields, which ``kubectl apply`` refuses."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items()}
    if result.get("x-kubernetes-int-or-string"):
        result.pop("format", None)
    is_closed = result.get("type") == "object" and isinstance(result.get("properties"), dict)
    if is_closed and "additionalProperties" not in result and not result.get("x-kubernetes-preserve-unknown-fields"):
        names = result["properties"]
        result["additionalProperties"] = not names or ("metadata" in names and names["metadata"] == {"type": "object"})
    return result


def test_the_dashboard_draws_all_metrics_and_no_others() -> None:
    dashboard = json.loads((ROOT / "deploy/grafana.json").read_text())
    drawn = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"ray_(avex_batch_\w+?)(?:_total|_bucket|_sum|_count)?\b", target["expr"])
    }
    existing = {name for name, _ in metrics.COUNTERS.values()} | {metrics.FAILURES, metrics.BUSY, metrics.BATCH_FILL}
    assert drawn == existing
