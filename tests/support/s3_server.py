"""An S3 server on loopback (moto), and an environment that has it as the endpoint."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from embedding.storage import s3

_PROGRAM = """
import sys
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(*server.get_host_and_port(), flush=True)
sys.stdin.read()
"""


@contextmanager
def run_s3_server(log_path: Path) -> Iterator[str]:
    """Run an S3 server, yield its endpoint, and set it as the endpoint of this process and its children.

    Args:
        log_path: File for the server's log, a line per request.
    """
    with (
        log_path.open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,  # the program ends when its stdin is closed
        pytest.MonkeyPatch.context() as environment,
    ):
        assert process.stdout is not None
        host, port = process.stdout.readline().split()
        endpoint = f"http://{host}:{port}"
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
            environment.delenv(name, raising=False)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            environment.setenv(name, os.devnull)
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        environment.setenv("AWS_ENDPOINT_URL", endpoint)
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        environment.setenv("NO_PROXY", host)
        yield endpoint


@contextmanager
def new_s3_client() -> Iterator[pytest.MonkeyPatch]:
    """Yield an environment to change; the S3 client of this process is created anew in the block and after it."""
    from s3fs import S3FileSystem

    def drop_client() -> None:
        s3.client.cache_clear()
        S3FileSystem.clear_instance_cache()

    drop_client()
    with pytest.MonkeyPatch.context() as environment:
        yield environment
    drop_client()
