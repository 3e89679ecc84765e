"""The image has all that Ray's cluster launcher, KubeRay and NVIDIA's runtime need. Without Docker: files are read."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.commands import ROOT
from tests.support.dockerfile import image_env, installed_packages, instructions
from tests.support.launcher import bring_up, programs_in_container, programs_on_caller

# The Debian package of each program that is not in the base image.
PACKAGES = {"ssh": "openssh-client", "rsync": "rsync"}
# python:3.11-slim-bookworm has Debian's essential packages: bash, coreutils.
BASE_IMAGE = {"bash", "/bin/bash", "cat", "ls", "mkdir", "printenv", "whoami"}
LOCKED_PACKAGES = {"ray"}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return cluster.yaml, on an operator's machine with a token."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("a token")
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_the_image_is_for_amd64_on_every_build_machine() -> None:
    sources = [rest for keyword, rest in instructions() if keyword == "FROM"]
    assert sources == ["--platform=linux/amd64 python:3.11-slim-bookworm"]


def test_the_head_has_the_programs_that_start_workers(cluster: dict[str, Any]) -> None:
    """The autoscaler runs in the head's container, and connects to a worker by ssh and rsync."""
    needed = programs_on_caller(bring_up(cluster, image_env(), is_head=False))
    assert needed == {"ssh", "rsync"}
    assert {PACKAGES[program] for program in needed} <= installed_packages()


def test_the_image_has_every_program_that_the_launcher_runs_in_it(cluster: dict[str, Any], tmp_path: Path) -> None:
    worker = bring_up(cluster, image_env(), is_head=False)
    for name in ("ray_bootstrap_config.yaml", "ray_bootstrap_key.pem"):  # `ray up` also copies these files to the head
        (tmp_path / name).touch()
        cluster.setdefault("file_mounts", {})[f"~/{name}"] = f"~/{name}"
    head = bring_up(cluster, image_env(), is_head=True)
    needed = programs_in_container(head) | programs_in_container(worker) | programs_on_caller(worker)
    assert needed >= {"/bin/bash", "cat", "ray", "rsync", "ssh"}
    missing = needed - BASE_IMAGE - LOCKED_PACKAGES
    assert {PACKAGES[program] for program in missing} <= installed_packages()


@pytest.mark.parametrize("is_head", [True, False])
def test_the_token_is_mounted_where_ray_looks_for_it(cluster: dict[str, Any], is_head: bool) -> None:
    """Ray's launcher expands `~` with the image's HOME, and Ray looks in the home of the image's user."""
    lines = [" ".join(line) for line in bring_up(cluster, image_env(), is_head=is_head)]
    (run,) = (line for line in lines if "docker run" in line)
    (user,) = (rest for keyword, rest in instructions() if keyword == "USER")
    mounts = re.findall(r"-v (\S+?):(\S+)", run)
    assert [inside for _, inside in mounts] == [f"/home/{user}/.ray/auth_token"]
    # The mounted file keeps its mode, 600, and its owner's number: 1000, which `ubuntu` has on AWS' machine images.
    assert any(f"useradd --create-home --uid 1000 {user}" in rest for _, rest in instructions())
    assert any(f"--mode=700 --owner={user} --group={user} /home/{user}/.ray" in rest for _, rest in instructions())


def test_the_container_has_access_to_the_gpus(cluster: dict[str, Any]) -> None:
    run = next(line for line in map(" ".join, bring_up(cluster, image_env(), is_head=False)) if "docker run" in line)
    assert "--runtime=nvidia" in run
    assert image_env()["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert set(image_env()["NVIDIA_DRIVER_CAPABILITIES"].split(",")) >= {"compute", "utility"}


def test_triton_finds_a_compiler() -> None:
    """Triton (runtime/build.py) compiles C with the headers of Python and libc; a slim image has no headers of libc."""
    assert installed_packages() >= {"gcc", "libc6-dev"}


def test_a_node_without_the_token_does_not_start() -> None:
    assert image_env()["RAY_AUTH_MODE"] == "token"
    assert not [name for name in image_env() if name.startswith("RAY_AUTH_TOKEN")]


def test_the_image_contains_every_module_and_the_locked_packages() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "--require-hashes -r requirements.lock" in dockerfile
    not_ignored = (ROOT / ".dockerignore").read_text().splitlines()
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = [pattern.rstrip("*") for pattern in setuptools["packages"]["find"]["include"]]
    assert packages == ["embedding", "jobs"]
    for package in packages:
        assert f"COPY {package} {package}" in dockerfile
        assert f"!{package}/**/*.py" in not_ignored
    (source,) = (rest for keyword, rest in instructions() if keyword == "FROM")
    assert "python:3.11-" in source
