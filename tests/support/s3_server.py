"""An S3 server on loopback (moto's), and the environment that leads to it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from embedding.storage import s3

S3_SERVER = """
import sys
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(*server.get_host_and_port(), flush=True)
sys.stdin.read()
"""


@contextmanager
def serving(log_path: Path) -> Iterator[str]:
    """S3 over HTTP on loopback (moto's server); the environment of this process and its children leads to it."""
    with (
        log_path.open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-c", S3_SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,  # it ends when its stdin does
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
def s3_client_made_anew() -> Iterator[pytest.MonkeyPatch]:
    """An environment to change: the process's S3 client is made anew from it, and once more afterwards."""
    from s3fs import S3FileSystem

    def forget() -> None:
        s3.client.cache_clear()
        S3FileSystem.clear_instance_cache()

    forget()
    with pytest.MonkeyPatch.context() as environment:
        yield environment
    forget()
