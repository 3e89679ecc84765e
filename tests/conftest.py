"""Fixtures: archives on disk, an S3 server on loopback, one small Ray for all end-to-end tests."""

import logging
import os
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from threadpoolctl import threadpool_limits

from jobs.embed import main as embed_main
from local_ray import ray_of
from tests.support.browser import open_browser
from tests.support.commands import ROOT, Outcome, run_embed, run_job_here
from tests.support.environments import make_environment
from tests.support.file_systems import without_privileges
from tests.support.models import BEATS, EFFICIENTNET, write_checkpoint
from tests.support.s3_server import new_s3_client, run_s3_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Two test processes share the cores: threads of torch that wait in a loop double the time of encoders' tests.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Shared machines stall: a slow example says nothing about the code.
settings.register_profile("avex-batch", deadline=None)
settings.load_profile("avex-batch")


@pytest.fixture(scope="session", autouse=True)
def graph_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache for all tests and the programs that they start: preparing a model for CPUs takes seconds."""
    base = tmp_path_factory.getbasetemp()
    folder = base.parent / "cache" if "PYTEST_XDIST_WORKER" in os.environ else base / "cache"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """A Ray of two CPUs that the end-to-end tests share: starting one takes longer than most of their jobs."""
    with ray_of(2) as address:
        yield address


@pytest.fixture(scope="module")
def connection(ray_address: str) -> Iterator[None]:
    """A connection of this process to the shared Ray, whose workers one job leaves to the next."""
    with pytest.MonkeyPatch.context() as variables:
        variables.setenv("RAY_AUTH_MODE", "disabled")  # of the shared Ray
        import ray

        ray.init(ray_address, logging_level=logging.ERROR, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def embed(ray_address: str, connection: None) -> Callable[..., Outcome]:
    """Run ``jobs.embed`` on the shared Ray: in this process, and with other variables as a command of its own."""

    def run(*arguments: object, env: dict[str, str] | None = None) -> Outcome:
        if env:
            return run_embed(*arguments, env={"RAY_ADDRESS": ray_address} | env)
        return run_job_here(embed_main, *arguments)

    return run


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint per architecture."""
    return {name: write_checkpoint(name, tmp_path_factory.mktemp("checkpoints")) for name in (BEATS, EFFICIENTNET)}


@pytest.fixture(scope="session")
def s3_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file into which the S3 server writes one line per request, before it answers."""
    return tmp_path_factory.mktemp("s3") / "requests.log"


@pytest.fixture(scope="session")
def s3_server(s3_log: Path) -> Iterator[str]:
    """S3 over HTTP on loopback (moto's server); the environment of this process and its children leads to it."""
    with run_s3_server(s3_log) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def s3_api(s3_server: str) -> Any:
    """A client of that server which is not the one under test: keys are what it says they are."""
    import boto3

    return boto3.client("s3")


@pytest.fixture
def bucket(s3_api: Any) -> str:
    """The name of a bucket with nothing in it."""
    name = f"archive-{uuid.uuid4().hex}"
    s3_api.create_bucket(Bucket=name)
    return name


@pytest.fixture
def other_s3(s3_server: str) -> Iterator[pytest.MonkeyPatch]:
    with new_s3_client() as environment:
        yield environment


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For linear algebra: where others need the cores, threads wait for each other for minutes."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session")
def python_with(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A Python with the packages of ``tests/support/tools/NAME.txt``."""

    @cache
    def make(name: str) -> Path:
        return make_environment(tmp_path_factory.mktemp(name), ROOT / "tests" / "support" / "tools" / f"{name}.txt")

    return make


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A directory of which the closed parts are closed to this test, even if root runs it."""
    with without_privileges() as folder:
        yield folder


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Chromium, for pages in files."""
    with open_browser() as chromium:
        yield chromium
