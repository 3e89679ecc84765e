"""Local paths on a cluster: a node that does not see what the driver sees is refused."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from embedding.errors import RequestError, RunError
from embedding.output.claim import Claim, hold_claim
from embedding.planning.shared_paths import NOTHING_LOCAL, SharedPaths, refuse_unshared
from embedding.schema.recordings import RECORDINGS


def listing(*files: Path | str) -> pa.Table:
    rows = [
        {"file": str(file), "size": file.stat().st_size if isinstance(file, Path) else 7, "file_id": number}
        for number, file in enumerate(files)
    ]
    return pa.Table.from_pylist(rows, RECORDINGS)


@pytest.fixture
def recordings(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.wav" for number in range(100)]
    for path in paths:
        path.write_bytes(b"audio")
    return paths


@pytest.fixture
def claim(tmp_path: Path) -> Iterator[Claim]:
    (tmp_path / "out").mkdir()
    with hold_claim(str(tmp_path / "out"), "0000000000aa", lambda _: None) as claim:
        yield claim


def test_nothing_is_missing_on_the_driver(recordings: list[Path], tmp_path: Path, claim: Claim) -> None:
    shared = SharedPaths.of(listing(*recordings), str(tmp_path / "out"), claim.holder.run_id)
    assert shared.describe_missing() == ""
    shared.check()


def test_recordings_are_chosen_from_the_first_to_the_last(recordings: list[Path]) -> None:
    shared = SharedPaths.of(listing(*recordings), "s3://bucket/out", "0000000000aa")
    names = [Path(path).name for path, _ in shared.recordings]
    assert len(names) == 16
    assert (names[0], names[-1]) == ("0.wav", "99.wav")


def test_a_folder_of_the_same_name_with_other_recordings_is_found(recordings: list[Path]) -> None:
    shared = SharedPaths.of(listing(*recordings), "s3://bucket/out", "0000000000aa")
    recordings[99].write_bytes(b"another one")
    assert shared.describe_missing() == f"no such recording as {recordings[99]} with 5 bytes"
    recordings[0].unlink()
    assert shared.describe_missing() == f"no such recording as {recordings[0]} with 5 bytes"
    with pytest.raises(RunError, match=r"^node .+ has no such recording as .*0\.wav with 5 bytes; on a cluster"):
        shared.check()


def test_a_recording_that_was_removed_after_the_listing_is_not_missing(recordings: list[Path]) -> None:
    table = listing(*recordings)
    recordings[0].unlink()
    assert SharedPaths.of(table, "s3://bucket/out", "0000000000aa").describe_missing() == ""


def test_an_output_without_the_claim_of_this_run_is_another_output(tmp_path: Path, claim: Claim) -> None:
    out = str(tmp_path / "out")
    assert SharedPaths.of(listing("s3://bucket/a.wav"), out, "0000000000aa").describe_missing() == ""
    assert (
        SharedPaths.of(listing("s3://bucket/a.wav"), out, "run2").describe_missing()
        == f"another {out} than the driver's, or none"
    )
    other = str(tmp_path / "other")
    assert "another" in SharedPaths.of(listing("s3://bucket/a.wav"), other, "0000000000aa").describe_missing()


def test_paths_in_s3_are_not_checked() -> None:
    assert SharedPaths.of(listing("s3://bucket/a.wav"), "s3://bucket/out", "0000000000aa").describe_missing() == ""
    assert NOTHING_LOCAL.describe_missing() == ""


def test_the_first_node_that_lacks_a_path_is_named() -> None:
    refuse_unshared([("head", ""), ("worker-1", "")])
    with pytest.raises(
        RequestError,
        match=r"node worker-1 has no such recording as /data/a.wav with 5 bytes \(1 more node affected\); on a",
    ):
        refuse_unshared(
            [("head", ""), ("worker-1", "no such recording as /data/a.wav with 5 bytes"), ("worker-2", "nothing")]
        )
