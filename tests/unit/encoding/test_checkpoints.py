"""Weights: fetched once, known by their digest, brought to a machine by one of its processes."""

import subprocess
import sys
from pathlib import Path

import pytest

from embedding import storage
from embedding.encoding.checkpoints import Checkpoint, fetch_checkpoint, keep
from embedding.encoding.models import find_model
from embedding.errors import RequestError, RunError
from tests.support.commands import ROOT
from tests.support.models import BEATS, EFFICIENTNET


def test_the_digest_follows_the_content_not_the_name(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(checkpoints[EFFICIENTNET].read_bytes())
    one, two = (fetch_checkpoint(EFFICIENTNET, str(path)).digest for path in (checkpoints[EFFICIENTNET], copy))
    assert one == two
    copy.write_bytes(copy.read_bytes() + b"x")
    assert fetch_checkpoint(EFFICIENTNET, str(copy)).digest != one


def test_a_missing_checkpoint_is_named() -> None:
    with pytest.raises(RequestError, match=r"--checkpoint: /nowhere/w\.pt is not a file"):
        fetch_checkpoint(BEATS, "/nowhere/w.pt")


def test_a_failed_download_names_the_model_the_cause_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RequestError) as caught:
        fetch_checkpoint(BEATS, find_model(BEATS).checkpoint)
    for part in (BEATS, "offline mode is enabled", "--checkpoint", "HF_HOME"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_comes_from_s3_once(
    s3_server: str, bucket: str, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    uri = f"s3://{bucket}/weights/eff net.safetensors"
    storage.write_bytes(uri, checkpoints[EFFICIENTNET].read_bytes())
    first = fetch_checkpoint(EFFICIENTNET, uri)
    assert first.digest == fetch_checkpoint(EFFICIENTNET, str(checkpoints[EFFICIENTNET])).digest
    monkeypatch.setattr(storage, "read_bytes", lambda _: pytest.fail("fetched a second time"))
    assert fetch_checkpoint(EFFICIENTNET, uri) == first


def elsewhere(checkpoint: Checkpoint) -> Checkpoint:
    """As a node sees it on which nothing lies at the driver's path."""
    assert checkpoint.path is not None
    return Checkpoint(checkpoint.uri, f"/nowhere/{Path(checkpoint.path).name}", checkpoint.digest)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """Some bytes that lie at the driver's path; this machine's cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "driver" / "weights.safetensors"
    path.parent.mkdir()
    path.write_bytes(bytes(range(256)) * 1000)
    return fetch_checkpoint(BEATS, str(path))


def test_weights_that_lie_there_are_not_brought_again(weights: Checkpoint) -> None:
    assert keep(weights, lambda: pytest.fail("fetched")) == weights


def test_random_weights_are_not_brought_at_all() -> None:
    random = fetch_checkpoint(BEATS, "random")
    assert keep(random, lambda: pytest.fail("fetched")) == random


def test_weights_are_brought_to_a_machine_that_lacks_them_once(weights: Checkpoint) -> None:
    assert weights.path is not None
    content = memoryview(Path(weights.path).read_bytes())  # as they come out of Ray: not a copy
    kept = keep(elsewhere(weights), lambda: content)
    assert kept.path is not None
    assert Path(kept.path).read_bytes() == content
    assert Path(kept.path).suffix == ".safetensors"
    assert (kept.uri, kept.digest) == (elsewhere(weights).uri, weights.digest)
    assert keep(elsewhere(weights), lambda: pytest.fail("fetched a second time")) == kept


def test_another_file_at_the_drivers_path_is_not_taken_for_it(weights: Checkpoint) -> None:
    """The same path on another machine may hold another model."""
    assert weights.path is not None
    content = Path(weights.path).read_bytes()
    Path(weights.path).write_bytes(b"other weights")
    assert keep(weights, lambda: content).path != weights.path


def test_weights_that_arrive_damaged_are_refused_and_not_kept(weights: Checkpoint) -> None:
    with pytest.raises(RunError, match="came to this node damaged"):
        keep(elsewhere(weights), lambda: b"half of them")
    assert weights.path is not None
    content = Path(weights.path).read_bytes()
    assert keep(elsewhere(weights), lambda: content).path is not None


def test_a_kept_file_that_was_damaged_since_is_brought_again(weights: Checkpoint) -> None:
    assert weights.path is not None
    content = Path(weights.path).read_bytes()
    kept = keep(elsewhere(weights), lambda: content)
    assert kept.path is not None
    Path(kept.path).write_bytes(content[:1000])
    assert keep(elsewhere(weights), lambda: content) == kept
    assert Path(kept.path).read_bytes() == content


KEEP = """
import sys, time
from pathlib import Path
from embedding.encoding.checkpoints import Checkpoint, keep

uri, source, digest, asked = sys.argv[1:]
def fetch():
    Path(asked).open("a").write("asked\\n")
    time.sleep(0.5)  # long enough for the others to come
    return Path(source).read_bytes()
print(keep(Checkpoint(uri, "/nowhere/weights.safetensors", digest), fetch).path)
"""


def test_of_many_encoders_of_a_machine_one_brings_the_weights(weights: Checkpoint, tmp_path: Path) -> None:
    assert weights.path is not None
    arguments = [weights.uri, weights.path, weights.digest, str(tmp_path / "asked")]
    encoders = [
        subprocess.Popen([sys.executable, "-c", KEEP, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    paths = {encoder.communicate(timeout=60)[0] for encoder in encoders}
    assert [encoder.returncode for encoder in encoders] == [0, 0, 0, 0]
    assert len(paths) == 1
    assert (tmp_path / "asked").read_text() == "asked\n"
