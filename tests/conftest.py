"""Fixtures: archives on disk, an S3 server on loopback, one small Ray for all end-to-end tests."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import uuid
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile as sf
from hypothesis import settings
from threadpoolctl import threadpool_limits

from embedding.storage import s3
from local_ray import ray_of
from weights import see_some_noise

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Shared machines stall: a slow example says nothing about the code.
settings.register_profile("avex-batch", deadline=None)
settings.load_profile("avex-batch")

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Outcome:
    """How a command ended, as a user sees it."""

    code: int
    stdout: str
    stderr: str


def environment(**more: str) -> dict[str, str]:
    """This process's, for one that starts or finds a Ray: a local Ray makes a token that others then have to know, and
    on loopback, for a test, there is nothing that it would guard."""
    return os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"} | more


@contextmanager
def running(command: Sequence[object], env: dict[str, str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A command while the block goes on, what it says on one pipe; it is killed at the end."""
    with subprocess.Popen(
        [*map(str, command)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """A Ray of two CPUs that the end-to-end tests share: starting one takes longer than most of their jobs."""
    with ray_of(2) as address:
        yield address


@pytest.fixture(scope="session")
def embed(ray_address: str) -> Callable[..., Outcome]:
    """Run ``python -m jobs.embed`` with these arguments, as a user does, on the shared Ray."""

    def run(*arguments: object, env: dict[str, str] | None = None) -> Outcome:
        return run_embed(*arguments, env={"RAY_ADDRESS": ray_address} | (env or {}))

    return run


def run_embed(*arguments: object, env: dict[str, str]) -> Outcome:
    """``python -m jobs.embed`` in a process of its own."""
    command = [sys.executable, "-m", "jobs.embed", *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def tone(duration_s: float, rate_hz: int, frequency_hz: float = 440.0, channels: int = 1, seed: int = 0) -> np.ndarray:
    """A tone in noise, ``[n]`` or ``[n, channels]`` float32; channels differ, so that averaging them shows."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(duration_s * rate_hz)) / rate_hz
    audio = np.stack([0.3 * np.sin(2 * np.pi * frequency_hz * (c + 1) * t) for c in range(channels)], axis=1)
    audio += 0.05 * rng.standard_normal(audio.shape)
    audio = audio.astype(np.float32)
    return audio[:, 0] if channels == 1 else audio


def write_audio(path: Path, audio: np.ndarray, rate_hz: int, subtype: str | None = None, **kwargs: Any) -> Path:
    """Write in blocks: libsndfile's Vorbis encoder overflows its stack on one long call."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = 1 if audio.ndim == 1 else audio.shape[1]
    with sf.SoundFile(path, "w", rate_hz, channels, subtype, **kwargs) as file:
        for start in range(0, len(audio), 1 << 14):
            file.write(audio[start : start + (1 << 14)])
    return path


BEATS = "esp_aves2_sl_beats_all"
EFFICIENTNET = "esp_aves2_effnetb0_all"


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint per architecture, made by avex from seeded weights that differ from those of ``random``."""
    import avex
    import torch
    from safetensors.torch import save_file

    paths = {}
    for name in (BEATS, EFFICIENTNET):
        torch.manual_seed(1234)
        spec = avex.get_model_spec(name)
        assert spec is not None
        module = avex.build_model_from_spec(spec, "cpu", return_features_only=True, pretrained=False)
        if name == EFFICIENTNET:
            see_some_noise(module)
        paths[name] = tmp_path_factory.mktemp("checkpoints") / f"{name}.safetensors"
        save_file({key: tensor.clone().contiguous() for key, tensor in module.state_dict().items()}, paths[name])
    return paths


S3_SERVER = """
import sys
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(*server.get_host_and_port(), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="session")
def s3_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the S3 server writes one line per request, before it answers."""
    return tmp_path_factory.mktemp("s3") / "requests.log"


@pytest.fixture(scope="session")
def s3_server(s3_log: Path) -> Iterator[str]:
    """S3 over HTTP on loopback (moto's server); the environment of this process and its children leads to it."""
    with (
        s3_log.open("wb") as log,
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


@pytest.fixture
def other_s3(s3_server: str) -> Iterator[pytest.MonkeyPatch]:
    with s3_client_made_anew() as environment:
        yield environment


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For linear algebra: where others need the cores, threads wait for each other for minutes."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session")
def python_with(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A Python with the packages of ``tests/tools/NAME.txt``, in an environment on top of this one: what they need in
    other versions lies before ours, which stay as they are."""

    @cache
    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        venv.create(folder, with_pip=True)
        paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
        Path(paths["purelib"], "ours.pth").write_text(sysconfig.get_paths()["purelib"])
        python = folder / "bin" / "python"
        packages = ROOT / "tests" / "tools" / f"{name}.txt"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", packages], check=True, timeout=1200)
        return python

    return make


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A directory of which the closed parts are closed to this test, even if root runs it."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as later:
        Path(folder).chmod(0o755)
        if os.geteuid() == 0:
            later.callback(os.seteuid, 0)
            os.chown(folder, 65534, -1)
            os.seteuid(65534)
        yield Path(folder)


@contextmanager
def small_file_system(folder: Path, size: str) -> Iterator[Path]:
    """A file system in memory at ``folder``, of ``size`` (like ``10m``); the test is skipped where none can be made."""
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    mounted = subprocess.run([mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not let even root mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture(params=[600, 1], ids=["decoded whole", "decoded in passing"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording of some seconds, decoded as a short one is and as a long one."""
    monkeypatch.setattr("embedding.decoding.decode.WHOLE_RECORDING_S", request.param)
    monkeypatch.setattr("embedding.decoding.audio.BLOCK_SAMPLES", 4_000)


CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here (apt-get install chromium)")
CHROMIUM_FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Chromium, for pages in files."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS.split())
        yield chromium
        chromium.close()
