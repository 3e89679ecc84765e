"""Checkpoints: fetched once, identified by their digest, copied to a machine by one of its processes."""

import subprocess
import sys
from pathlib import Path

import pytest

from embedding import storage
from embedding.encoding.checkpoints import Checkpoint, ensure_local, fetch_checkpoint
from embedding.encoding.models import find_model
from embedding.errors import RequestError, RunError
from tests.support.commands import ROOT
from tests.support.models import BEATS, EFFICIENTNET


def test_the_digest_depends_on_the_content_and_not_on_the_name(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(checkpoints[EFFICIENTNET].read_bytes())
    original, copied = (fetch_checkpoint(EFFICIENTNET, str(path)).digest for path in (checkpoints[EFFICIENTNET], copy))
    assert original == copied
    copy.write_bytes(copy.read_bytes() + b"x")
    assert fetch_checkpoint(EFFICIENTNET, str(copy)).digest != original


def test_the_error_names_a_missing_checkpoint() -> None:
    with pytest.raises(RequestError, match=r"--checkpoint: /nowhere/w\.pt is not a file"):
        fetch_checkpoint(BEATS, "/nowhere/w.pt")


def test_the_error_of_a_failed_download_names_the_model_the_cause_and_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RequestError) as caught:
        fetch_checkpoint(BEATS, find_model(BEATS).checkpoint)
    for part in (BEATS, "offline mode is enabled", "--checkpoint", "HF_HOME"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_is_fetched_from_s3_once(
    s3_server: str, bucket: str, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    uri = f"s3://{bucket}/weights/eff net.safetensors"
    storage.write_bytes(uri, checkpoints[EFFICIENTNET].read_bytes())
    first = fetch_checkpoint(EFFICIENTNET, uri)
    assert first.digest == fetch_checkpoint(EFFICIENTNET, str(checkpoints[EFFICIENTNET])).digest
    monkeypatch.setattr(storage, "read_bytes", lambda _: pytest.fail("fetched a second time"))
    assert fetch_checkpoint(EFFICIENTNET, uri) == first


def on_another_node(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with a path that does not exist, as on a node without the driver's file."""
    assert checkpoint.path is not None
    return Checkpoint(checkpoint.uri, f"/nowhere/{Path(checkpoint.path).name}", checkpoint.digest)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """Weights at the driver's path; the cache of this machine is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "driver" / "weights.safetensors"
    path.parent.mkdir()
    path.write_bytes(bytes(range(256)) * 1000)
    return fetch_checkpoint(BEATS, str(path))


def test_weights_at_the_path_are_not_fetched(weights: Checkpoint) -> None:
    assert ensure_local(weights, lambda: pytest.fail("fetched")) == weights


def test_random_weights_are_not_fetched() -> None:
    random = fetch_checkpoint(BEATS, "random")
    assert ensure_local(random, lambda: pytest.fail("fetched")) == random


def test_missing_weights_are_fetched_once(weights: Checkpoint) -> None:
    assert weights.path is not None
    content = memoryview(Path(weights.path).read_bytes())  # a view, as Ray returns it
    local = ensure_local(on_another_node(weights), lambda: content)
    assert local.path is not None
    assert Path(local.path).read_bytes() == content
    assert Path(local.path).suffix == ".safetensors"
    assert (local.uri, local.digest) == (on_another_node(weights).uri, weights.digest)
    assert ensure_local(on_another_node(weights), lambda: pytest.fail("fetched a second time")) == local


def test_another_file_at_the_drivers_path_is_not_used(weights: Checkpoint) -> None:
    """The same path may hold another model on another machine."""
    assert weights.path is not None
    content = Path(weights.path).read_bytes()
    Path(weights.path).write_bytes(b"other weights")
    assert ensure_local(weights, lambda: content).path != weights.path


def test_weights_that_arrive_damaged_are_refused_and_removed(weights: Checkpoint) -> None:
    with pytest.raises(RunError, match="came to this node damaged"):
        ensure_local(on_another_node(weights), lambda: b"half of them")
    assert weights.path is not None
    content = Path(weights.path).read_bytes()
    assert ensure_local(on_another_node(weights), lambda: content).path is not None


def test_weights_that_were_damaged_in_the_cache_are_fetched_again(weights: Checkpoint) -> None:
    assert weights.path is not None
    content = Path(weights.path).read_bytes()
    local = ensure_local(on_another_node(weights), lambda: content)
    assert local.path is not None
    Path(local.path).write_bytes(content[:1000])
    assert ensure_local(on_another_node(weights), lambda: content) == local
    assert Path(local.path).read_bytes() == content


ENSURE_LOCAL = """
import sys, time
from pathlib import Path
from embedding.encoding.checkpoints import Checkpoint, ensure_local

uri, source, digest, calls = sys.argv[1:]
def fetch():
    Path(calls).open("a").write("called\\n")
    time.sleep(0.5)  # long enough for the other processes to start
    return Path(source).read_bytes()
print(ensure_local(Checkpoint(uri, "/nowhere/weights.safetensors", digest), fetch).path)
"""


def test_one_of_several_encoders_of_a_machine_fetches_the_weights(weights: Checkpoint, tmp_path: Path) -> None:
    assert weights.path is not None
    arguments = [weights.uri, weights.path, weights.digest, str(tmp_path / "calls")]
    encoders = [
        subprocess.Popen([sys.executable, "-c", ENSURE_LOCAL, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    paths = {encoder.communicate(timeout=60)[0] for encoder in encoders}
    assert [encoder.returncode for encoder in encoders] == [0, 0, 0, 0]
    assert len(paths) == 1
    assert (tmp_path / "calls").read_text() == "called\n"
