"""Inputs and outputs that overlap or are no folders: foreign files are neither removed nor listed as recordings."""

import uuid
from pathlib import Path

import numpy as np
import pytest

from embedding.errors import RequestError
from embedding.output.backlog import Backlog, former_versions
from embedding.output.claim import hold_claim
from embedding.output.repair import repair_failures, repair_shards
from embedding.output.store import Store
from embedding.storage import TEMPORARY_PREFIX
from jobs.embed import main as embed
from tests.support.audio import tone, write_audio
from tests.support.listings import list_inputs, make_files
from tests.support.models import EFFICIENTNET
from tests.support.shards import listing as listing_of
from tests.support.shards import write_output

RUN_ID = "0000000000aa"


def read_files(root: Path) -> dict[str, bytes]:
    """Return the content of all files below a folder, by relative path."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_no_recording_is_removed_when_input_and_output_are_the_same_folder(tmp_path: Path) -> None:
    unfinished = f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}.json"
    kept = ["a.wav", ".tmp-a.wav", f"{TEMPORARY_PREFIX}notes", "embeddings/.tmp-b.wav"]
    make_files(tmp_path, *kept, unfinished, f"embeddings/{TEMPORARY_PREFIX}{uuid.uuid4().hex}.parquet")
    Store(str(tmp_path), "{}").remove_unfinished_writes()
    assert sorted(read_files(tmp_path)) == sorted(kept)


@pytest.mark.parametrize(("inside", "outside"), [("in", "in"), ("in/out", "in"), (".", "in")])
def test_files_of_an_output_are_no_recordings(tmp_path: Path, inside: str, outside: str) -> None:
    make_files(tmp_path, f"{outside}/a.wav")
    write_output(str(tmp_path / inside), {"/a/1.wav": np.ones((2, 4), np.float32)}, {"model": "m"}, 1)
    listed = list_inputs(tmp_path / outside)
    assert listed.recordings["file"].to_pylist() == [f"{tmp_path}/{outside}/a.wav"]
    assert set(listed.ignored) <= {".parquet"}


@pytest.mark.parametrize("name", ["file", "file/below", "nothing", "nothing/below", "device"])
def test_an_output_that_is_no_folder_is_refused(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_files(tmp_path, "a.wav", "file")
    (tmp_path / "nothing").symlink_to("gone/away")
    (tmp_path / "device").symlink_to("/dev/null")
    arguments = ["--input", f"{tmp_path}/a.wav", "--output", f"{tmp_path}/{name}", "--model", EFFICIENTNET]
    assert embed([*arguments, "--checkpoint", "random"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("avex-batch: --output: ")
    assert str(tmp_path / name) in error
    assert error.count("\n") == 1
    assert (tmp_path / "file").read_bytes() == b"x"
    assert not (tmp_path / "gone").exists()


def test_an_output_without_write_permission_is_refused_and_unchanged(unprivileged: Path) -> None:
    (unprivileged / "out").mkdir()
    (unprivileged / "out").chmod(0o555)
    with (
        pytest.raises(RequestError, match=rf"--output: cannot write to {unprivileged}/out: Permission denied"),
        hold_claim(str(unprivileged / "out"), RUN_ID, lambda _: None),
    ):
        pass
    assert not list((unprivileged / "out").iterdir())


def test_a_run_over_other_inputs_changes_nothing_of_an_earlier_run(tmp_path: Path) -> None:
    write_output(str(tmp_path), {"/a/1.wav": np.ones((3, 4), np.float32)}, {"model": "m"}, 1)
    before = read_files(tmp_path)
    store = Store(str(tmp_path), "{}")
    inventory = store.read()
    listed = listing_of(("/b/1.wav", 7), ("/b/2.wav", 8))
    former = former_versions(listed, inventory, store, thorough=True)
    backlog = Backlog.of(listed, former, inventory, retry_failed=True)
    assert backlog.is_todo.all()
    repair_shards(store, inventory, backlog.superseded(inventory), backlog.new_ids(set()))
    repair_failures(store, inventory, listed, backlog.todo, RUN_ID)
    assert read_files(tmp_path) == before


def test_a_manifest_of_missing_files_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text("file\na.wav\nb.wav\n")
    assert (
        embed(["--input", str(manifest), "--output", str(tmp_path / "out"), "--checkpoint", "random", "--dry-run"]) == 2
    )
    assert f"2 of 2 recordings were not found: {tmp_path}/a.wav, {tmp_path}/b.wav" in capsys.readouterr().err


def test_a_dry_run_counts_windows_per_recording_and_names_missing_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"{number:02d}.wav" for number in range(12)]
    for number, name in enumerate(names):
        write_audio(tmp_path / name, tone(3.0, 16_000, seed=number), 16_000)
    manifest = tmp_path / "m.csv"
    manifest.write_text("\n".join(["file", *names, "gone.wav"]))
    options = ["--checkpoint", "random", "--window-s", "10", "--dry-run"]
    assert embed(["--input", str(manifest), "--output", str(tmp_path / "out"), *options]) == 0
    printed = capsys.readouterr().out
    assert f"1 of 13 recordings was not found: {tmp_path}/gone.wav" in printed
    assert "about 36 s of audio, 12 windows, " in printed
