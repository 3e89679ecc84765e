"""Replacements of stored files, interrupted at every step: the earlier files stay, or the new files are complete.

A step is a call that changes the disk. "Killed" means that no later step happens either, as after SIGKILL.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding import storage
from embedding.errors import RunError
from embedding.exporting.destination import replace_folder
from embedding.pooling.pool import pooled_output
from embedding.probing import probe_files
from embedding.probing.probe_result import ProbeResult
from jobs.probe import main as probe
from tests.support.probing import SPECIES, read_probe, write_species_output

STEPS = [(Path, "rename"), (Path, "replace"), (Path, "unlink"), (Path, "mkdir"), (shutil, "rmtree"), (os, "fsync")]
MOST_STEPS = 60


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return write_species_output(tmp_path / "output")


class Killed(BaseException):
    """The simulated end of the process."""


@contextmanager
def killed_at(step: int, *, once: bool) -> Iterator[list[str]]:
    """Raise ``Killed`` instead of a step, and instead of all later steps unless ``once``; yield the steps so far."""
    taken: list[str] = []

    def watched(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            taken.append(name)
            if len(taken) - 1 == step or (len(taken) - 1 > step and not once):
                raise Killed
            return original(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patched:
        for owner, name in STEPS:
            patched.setattr(owner, name, watched(name, getattr(owner, name)))
        yield taken


def at_every_step(replace: Callable[[], object], check: Callable[[], None], *, once: bool) -> None:
    """Interrupt ``replace`` at its first step, its second and so on, and ``check`` after each."""
    for step in range(MOST_STEPS):
        with killed_at(step, once=once):
            try:
                replace()
            except Killed:
                is_over = False
            else:
                is_over = True
        check()
        if is_over:
            return
    raise AssertionError("the replacement has more than MOST_STEPS steps")


@pytest.fixture(params=[True, False], ids=["interrupted", "killed"])
def once(request: pytest.FixtureRequest) -> bool:
    return request.param


def export_to(destination: Path, content: str) -> None:
    with replace_folder(destination, "npy") as folder:
        (folder / "vectors.npy").write_text(content)
        (folder / "export.json").write_text('{"format": "npy", "names": ["export.json", "vectors.npy"]}')


def test_an_interrupted_export_keeps_the_earlier_one(tmp_path: Path, *, once: bool) -> None:
    destination = tmp_path / "npy"
    export_to(destination, "earlier")

    def check() -> None:
        kept = destination if destination.exists() else tmp_path / ".tmp-npy" / "former"  # between the two renames
        assert (kept / "vectors.npy").read_text() in ("earlier", "later")
        assert once <= destination.exists()
        export_to(destination, "earlier")
        assert (destination / "vectors.npy").read_text() == "earlier"
        assert [path.name for path in tmp_path.iterdir()] == ["npy"]

    at_every_step(lambda: export_to(destination, "later"), check, once=once)


def test_an_export_killed_between_its_renames_is_restored_even_if_the_next_export_fails(tmp_path: Path) -> None:
    export_to(tmp_path / "npy", "earlier")
    (tmp_path / ".tmp-npy").mkdir()
    (tmp_path / "npy").rename(tmp_path / ".tmp-npy" / "former")
    with pytest.raises(ZeroDivisionError), replace_folder(tmp_path / "npy", "npy"):
        raise ZeroDivisionError
    assert (tmp_path / "npy" / "vectors.npy").read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["npy"]


def test_the_earlier_export_is_restored_when_a_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_to(tmp_path / "npy", "earlier")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError("the storage failed")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="the storage failed"):
        export_to(tmp_path / "npy", "later")
    assert (tmp_path / "npy" / "vectors.npy").read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["npy"]


def test_the_earlier_export_is_kept_and_named_when_it_cannot_be_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_to(tmp_path / "npy", "earlier")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name in ("new", "former"):
            raise OSError("the storage failed")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(RunError, match=r"the earlier export lies in .*/\.tmp-npy/former, move it back to .*/npy: the"):
        export_to(tmp_path / "npy", "later")
    assert (tmp_path / ".tmp-npy" / "former" / "vectors.npy").read_text() == "earlier"


@pytest.mark.parametrize("name", ["page.html", "p" * 250 + ".html"])
def test_an_interrupted_page_keeps_the_earlier_one(tmp_path: Path, name: str, *, once: bool) -> None:
    page = tmp_path / name
    page.write_text("earlier")

    def check() -> None:
        assert page.read_text() in ("earlier", "later")
        storage.remove_unfinished_writes(str(tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == [page.name]

    at_every_step(lambda: storage.write_bytes(str(page), b"later"), check, once=once)


def test_pooled_rows_are_stored_before_others_are_removed(tmp_path: Path, *, once: bool) -> None:
    pooled = pooled_output(str(tmp_path), ("mean",), None, "{}")
    pooled.write(pa.table({"file_id": [1, 2]}), "a", np.array([1, 2]))
    (uri,) = pooled.read_file_ids()

    def check() -> None:
        assert pooled.read_file_ids()[uri].tolist() in ([1, 2], [2])
        pooled.write(pa.table({"file_id": [1, 2]}), "a", np.array([1, 2]))

    at_every_step(lambda: pooled.keep_recordings(uri, np.array([2])), check, once=once)


def test_the_files_of_an_interrupted_probe_are_whole_and_their_digests_show_a_mixture(
    output: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    once: bool,
) -> None:
    files = sorted(str(path) for path in set(pq.read_table(output / "embeddings")["file"].to_pylist()))
    labels = tmp_path / "labels.csv"
    labels.write_text("file,label\n" + "".join(f"{file},{SPECIES[number % 2]}\n" for number, file in enumerate(files)))
    arguments = [str(output), "--labels", str(labels), "--max-windows", "40"]
    assert probe([*arguments, "--seed", "1"]) == 0
    folder = output / "probes" / "label"

    def digests() -> dict[str, str]:
        names = ("weights.npz", "predictions.parquet", "split.parquet")
        return {name: blake2b((folder / name).read_bytes(), digest_size=16).hexdigest() for name in names}

    earlier = digests()
    assert read_probe(output)["files"] == earlier
    result: list[ProbeResult] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(probe_files, "write_probe", result.append)
        assert probe([*arguments, "--seed", "2", "--replace"]) == 0

    def check() -> None:
        assert set(digests()) == set(earlier)
        assert {path.suffix for path in folder.iterdir() if not path.name.startswith(".tmp-")} == {
            *(".npz", ".parquet", ".json")
        }
        np.load(folder / "weights.npz")
        pq.read_table(folder / "predictions.parquet")

    at_every_step(lambda: probe_files.write_probe(result[0]), check, once=once)
    assert read_probe(output)["files"] == digests() != earlier
    capsys.readouterr()
