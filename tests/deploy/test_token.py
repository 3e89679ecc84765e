"""Token authentication as in the image and docs/cluster.md: only clients with the cluster's token are accepted."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster_guide import BLOCKS
from tests.support.commands import running
from tests.support.dockerfile import image_env

BIN = Path(sys.executable).parent
PROGRAM = """
import ray, sys
context = ray.init(address="local", num_cpus=1, include_dashboard=True, object_store_memory=100 << 20)
print("dashboard", context.dashboard_url, flush=True)
sys.stdin.read()
"""


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a separate machine: another home, and no variables of Ray except ``more``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"} | more


# Half a minute to start Ray's dashboard; tests/deploy/test_deploy.py tests what the files say.
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The operator's home after the guide's commands, and a node's home with the token that the launcher copies."""
    operator, node = tmp_path_factory.mktemp("operator"), tmp_path_factory.mktemp("node")
    (block,) = (text for text in BLOCKS if "ray get-auth-token" in text)
    subprocess.run(["bash", "-euc", block], env=environment(operator), check=True, capture_output=True, timeout=120)
    token = operator / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600
    (node / ".ray").mkdir()
    (node / ".ray" / "auth_token").write_bytes(token.read_bytes())
    return operator, node


@pytest.fixture(scope="module")
def dashboard(homes: tuple[Path, Path]) -> Iterator[str]:
    env = environment(homes[1], RAY_AUTH_MODE=image_env()["RAY_AUTH_MODE"])
    with running([sys.executable, "-c", PROGRAM], env=env, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("dashboard "):
                yield f"http://{line.split()[1]}"
                break
        assert process.stdin is not None
        process.stdin.close()
        process.stdout.read()
        process.wait(60)


def list_jobs(dashboard: str, home: Path, **more: str) -> tuple[int, str]:
    command = [BIN / "ray", "job", "list", "--address", dashboard]
    env = environment(home, **more)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_client_with_the_token_is_accepted(dashboard: str, homes: tuple[Path, Path]) -> None:
    code, printed = list_jobs(dashboard, homes[0], RAY_AUTH_MODE="token")
    assert code == 0, printed


def test_a_client_without_a_token_is_refused(dashboard: str, tmp_path: Path) -> None:
    code, printed = list_jobs(dashboard, tmp_path)
    assert code != 0
    assert "no authentication token was found" in printed


def test_a_client_without_auth_mode_is_refused_although_it_has_the_token(
    dashboard: str, homes: tuple[Path, Path]
) -> None:
    code, printed = list_jobs(dashboard, homes[0])
    assert code != 0
    assert "RAY_AUTH_MODE is currently 'disabled'" in printed


def test_a_client_with_another_token_is_refused(dashboard: str, tmp_path: Path) -> None:
    code, printed = list_jobs(dashboard, tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="another")
    assert code != 0
    assert "the authentication token is invalid" in printed


def test_a_node_without_the_token_does_not_start(tmp_path: Path) -> None:
    command = [BIN / "ray", "start", "--address=127.0.0.1:1"]
    env = environment(tmp_path, RAY_AUTH_MODE=image_env()["RAY_AUTH_MODE"])
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "no authentication token was found" in done.stdout + done.stderr
