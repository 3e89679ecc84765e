"""The machines of cluster.yaml on a simulated AWS: access and shutdown. The guide is docs/cluster.md."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws

from tests.support.aws import KEYS, REGION
from tests.support.cluster_guide import BLOCKS, GUIDE
from tests.support.commands import ROOT
from tests.support.launcher import bootstrap_aws, prepare_config

OPERATOR = "203.0.113.7"


@pytest.fixture
def ec2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes the SSH key into this folder
    # The S3 server of other tests would also answer for EC2, and would keep groups from test to test.
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        yield boto3.client("ec2", region_name=REGION, **KEYS)


def filled_in(folder: Path, **names: str) -> dict[str, Any]:
    """Return cluster.yaml, filled in by the command of the guide."""
    (command,) = re.findall(r"^sed -e .*?> my-cluster\.yaml$", GUIDE, re.M | re.S)
    (folder / "cluster.yaml").write_text((ROOT / "cluster.yaml").read_text())
    known = {"IMAGE": "1.dkr.ecr.amazonaws.com/avex-batch:0.1.0", "ACCOUNT": "123456789012", "REGION": REGION} | names
    subprocess.run(["bash", "-euc", command], env=os.environ | known, cwd=folder, check=True)
    return yaml.safe_load((folder / "my-cluster.yaml").read_text())


def bootstrapped(ec2: Any, folder: Path, group: str) -> dict[str, Any]:
    """Return the launcher's configuration before the first machine starts."""
    image = ec2.describe_images()["Images"][0]["ImageId"]
    return bootstrap_aws(prepare_config(filled_in(folder, AMI=image, SECURITY_GROUP=group)))


def reachable_from(ec2: Any, group: str) -> list[tuple[int | None, list[str], list[str]]]:
    """Return the first port, the addresses and the groups of each rule of a security group."""
    (described,) = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    return [
        (
            rule.get("FromPort"),
            [ip_range["CidrIp"] for ip_range in rule["IpRanges"]]
            + [ip_range["CidrIpv6"] for ip_range in rule["Ipv6Ranges"]],
            [pair["GroupId"] for pair in rule["UserIdGroupPairs"]],
        )
        for rule in described["IpPermissions"]
    ]


def test_only_the_operator_reaches_the_machines_by_ssh(ec2: Any, tmp_path: Path) -> None:
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    group = ec2.create_security_group(GroupName="avex-batch", Description="a test", VpcId=vpc)["GroupId"]
    (text,) = re.findall(r"cat > rules\.json <<JSON\n(.*?)\nJSON", GUIDE, re.S)
    rules = json.loads(text.replace("$OPERATOR_IP", OPERATOR).replace("$SECURITY_GROUP", group))
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=rules)
    config = bootstrapped(ec2, tmp_path, group)
    nodes = [node["node_config"] for node in config["available_node_types"].values()]
    assert all(node["SecurityGroupIds"] == [group] for node in nodes)
    assert sorted(reachable_from(ec2, group), key=str) == [(22, [f"{OPERATOR}/32"], []), (None, [], [group])]


def test_rules_in_the_file_itself_would_leave_ssh_open_to_all(ec2: Any, tmp_path: Path) -> None:
    """Ray's behaviour is the reason that cluster.yaml names an existing group; if Ray changes, this test fails."""
    config = filled_in(tmp_path, AMI=ec2.describe_images()["Images"][0]["ImageId"], SECURITY_GROUP="none")
    for node in config["available_node_types"].values():
        node["node_config"].pop("SecurityGroupIds", None)
    rule = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": f"{OPERATOR}/32"}]}
    config["provider"]["security_group"] = {"IpPermissions": [rule]}
    made = bootstrap_aws(prepare_config(config))
    (group,) = made["available_node_types"]["head"]["node_config"]["SecurityGroupIds"]
    assert "0.0.0.0/0" in str(reachable_from(ec2, group))


def test_aws_accepts_every_type_and_terminates_workers_that_shut_down(ec2: Any, tmp_path: Path) -> None:
    """EC2's RunInstances, as botocore describes it, accepts the configuration of each type."""
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    group = ec2.create_security_group(GroupName="avex-batch", Description="a test", VpcId=vpc)["GroupId"]
    for name, node in bootstrapped(ec2, tmp_path, group)["available_node_types"].items():
        config = dict(node["node_config"])
        subnet = config.pop("SubnetIds")[0]  # a key of Ray
        del config["IamInstanceProfile"]  # exists only in a real account
        (started,) = ec2.run_instances(**config, SubnetId=subnet, MinCount=1, MaxCount=1)["Instances"]
        end = ec2.describe_instance_attribute(
            InstanceId=started["InstanceId"], Attribute="instanceInitiatedShutdownBehavior"
        )["InstanceInitiatedShutdownBehavior"]["Value"]
        assert (name == "head") == (end == "stop")


def cloud_configs() -> dict[str, dict[str, Any]]:
    """Return the configuration for cloud-init of each type of worker."""
    types = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    texts = {name: types[name]["node_config"].get("UserData", "") for name in types if name != "head"}
    assert all(text.startswith("#cloud-config\n") for text in texts.values())
    return {name: yaml.safe_load(text) for name, text in texts.items()}


# Removes the first digit of the file `minutes`, and succeeds if the digit is 1.
PGREP = """[ "$*" = "-x raylet" ] || exit 2
now=$(cut -c1 minutes)
cut -c2- minutes > rest; mv rest minutes
[ "$now" = 1 ]"""


def run_watchdog(folder: Path, minutes_of_ray: str) -> list[str]:
    """Run the script of the watchdog with stand-ins for the programs that it calls.

    Args:
        folder: An empty folder for the stand-ins.
        minutes_of_ray: For each minute ``1`` if Ray runs, ``0`` if not. After the last digit Ray does not run.

    Returns:
        Command lines that the script called, without the checks for Ray.
    """
    files = {Path(file["path"]).name: file for file in cloud_configs()["cpu"]["write_files"]}
    script = folder / "avex-batch-watchdog"
    script.write_text(files[script.name]["content"])
    script.chmod(int(files[script.name]["permissions"], 8))
    (folder / "minutes").write_text(minutes_of_ray)
    calls = folder / "calls"
    calls.touch()
    programs = {
        "sleep": 'echo "sleep $@" >> calls',
        "pgrep": PGREP,
        "shutdown": 'echo "shutdown $@" >> calls',
    }
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    env = {"PATH": f"{folder}:{os.environ['PATH']}"}
    subprocess.run([str(script)], env=env, cwd=folder, timeout=60, check=True, capture_output=True)
    return calls.read_text().splitlines()


@pytest.mark.parametrize(
    ("minutes_of_ray", "minutes"),
    [("", 20), ("0" * 5 + "1" * 30, 55), ("1" + "0" * 19 + "1", 41)],
    ids=["Ray never starts", "Ray starts late", "Ray is absent for nineteen minutes"],
)
def test_a_worker_shuts_down_after_twenty_minutes_without_ray(
    tmp_path: Path, minutes_of_ray: str, minutes: int
) -> None:
    assert run_watchdog(tmp_path, minutes_of_ray) == ["sleep 60"] * minutes + ["shutdown -h now"]


def test_every_worker_has_one_watchdog_that_starts_with_the_machine() -> None:
    assert len(cloud_configs()) == 4
    for config in cloud_configs().values():
        files = {file["path"]: file["content"] for file in config["write_files"]}
        assert config["runcmd"] == [["systemctl", "enable", "--now", "avex-batch-watchdog.service"]]
        unit = files["/etc/systemd/system/avex-batch-watchdog.service"]
        (started,) = re.findall(r"^ExecStart=(.*)$", unit, re.M)
        assert started in files
        assert "Restart=always" in unit
        assert "WantedBy=multi-user.target" in unit


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_each_block_of_the_guide_is_valid_shell(number: int) -> None:
    done = subprocess.run(["bash", "-n"], input=BLOCKS[number], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_guide_fills_in_every_name(tmp_path: Path) -> None:
    config = filled_in(tmp_path, AMI="ami-1", SECURITY_GROUP="sg-1", REGION="eu-west-1")
    text = json.dumps(config)
    assert not re.search(r"\bIMAGE\b|\bAMI\b|\bACCOUNT\b|SECURITY_GROUP|us-west-2", text)
    assert config["provider"]["region"] == "eu-west-1"
    assert {node["node_config"]["ImageId"] for node in config["available_node_types"].values()} == {"ami-1"}


def test_the_guide_requests_every_quota_that_the_machines_need() -> None:
    """The table and the commands contain each code."""
    for code in ("L-1216C47A", "L-34B43A08", "L-3819A6DF", "L-7212CCBC"):
        assert f"| `{code}` |" in GUIDE
        assert f"--quota-code {code} --desired-value" in GUIDE
    assert "aws iam create-service-linked-role --aws-service-name spot.amazonaws.com" in GUIDE
