"""AWS machine types, from the copy of AWS's data in moto: no account and no network needed."""

from functools import cache
from typing import Any

import boto3
from moto import mock_aws

# Keys without an account: moto answers the requests.
KEYS = {"aws_access_key_id": "none", "aws_secret_access_key": "none"}
REGION = "us-west-2"


@cache
def instance_type(name: str) -> dict[str, Any]:
    """Return EC2's description of a machine type (DescribeInstanceTypes)."""
    with mock_aws():
        ec2 = boto3.client("ec2", region_name=REGION, **KEYS)
        (described,) = ec2.describe_instance_types(InstanceTypes=[name])["InstanceTypes"]
    return described
