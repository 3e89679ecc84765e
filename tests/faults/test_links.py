"""Links in place of results: nothing is written or deleted in the targets of the links."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from embedding import storage
from embedding.errors import RequestError
from embedding.exporting.destination import replace_folder
from embedding.search.hit_clips import save_clip
from jobs.report import main as report
from jobs.search import main as search
from tests.support.shards import write_output


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "new").mkdir()
    (tmp_path / "victim" / "new" / "mine.txt").write_text("mine")
    return tmp_path / "victim"


def test_a_clip_replaces_a_link_of_its_name(tmp_path: Path, victim: Path) -> None:
    sf.write(tmp_path / "a.wav", np.zeros(8000, np.float32), 8000)
    (tmp_path / "clips").mkdir()
    link = tmp_path / "clips" / "001_0.500_a_0.0s.wav"
    link.symlink_to(victim / "new" / "mine.txt")
    hit = {"file": str(tmp_path / "a.wav"), "score": 0.5, "start_time": 0.0, "end_time": 1.0, "sample_rate": 8000}
    assert save_clip(hit, 1, tmp_path / "clips") == link
    assert not link.is_symlink()
    assert sf.info(link).frames == 8000
    assert (victim / "new" / "mine.txt").read_text() == "mine"


def test_a_page_replaces_a_link_of_its_name(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "page.html").symlink_to(victim / "new" / "mine.txt")
    storage.write_bytes(str(tmp_path / "page.html"), b"page")
    assert (tmp_path / "page.html").read_bytes() == b"page"
    assert (victim / "new" / "mine.txt").read_text() == "mine"


def test_an_export_refuses_a_link_in_place_of_its_temporary_folder(tmp_path: Path, victim: Path) -> None:
    (tmp_path / ".tmp-npy").symlink_to(victim)
    with pytest.raises(RequestError, match=r"\.tmp-npy is a link, and the"), replace_folder(tmp_path / "npy", "npy"):
        pass
    assert (victim / "new" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["new", "former"])
def test_an_export_follows_no_link_in_its_temporary_folder(tmp_path: Path, victim: Path, name: str) -> None:
    (tmp_path / ".tmp-npy").mkdir()
    (tmp_path / ".tmp-npy" / name).symlink_to(victim)
    try:
        with replace_folder(tmp_path / "npy", "npy") as folder:
            (folder / "export.json").write_text('{"format": "npy", "names": ["export.json"]}')
    except OSError as error:
        assert "File exists" in str(error)  # noqa: PT017 — an export may also succeed
    assert (victim / "new" / "mine.txt").read_text() == "mine"
    assert not (tmp_path / "npy").is_symlink()


@pytest.mark.parametrize("target", ["gone", "file", "folder"])
def test_links_in_place_of_a_page_or_a_folder_of_clips_are_refused(
    tmp_path: Path, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_output(str(tmp_path / "out"), {"/a/1.wav": np.ones((2, 4), np.float32)}, {"model": "m"}, 1)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to(target)
    if target != "folder":
        assert search([str(tmp_path / "out"), "--clip", "x.wav", "--save-clips", f"{tmp_path}/link"]) == 2
        assert f"--save-clips: cannot make {tmp_path}/link: File exists" in capsys.readouterr().err
    else:
        assert report([str(tmp_path / "out"), "--html", f"{tmp_path}/link"]) == 2
        assert f"--html: {tmp_path}/link is a folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"
    assert not (tmp_path / "gone").exists()
    assert not list((tmp_path / "folder").iterdir())


def test_files_follow_the_umask_and_have_the_group_of_their_folder(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o2750)
    before = os.umask(0o027)
    try:
        write_output(str(shared), {"/a/1.wav": np.ones((2, 4), np.float32)}, {"model": "m"}, 1)
        storage.write_bytes(str(shared / "run.json"), b"{}")
        storage.create_bytes(str(shared / "claim.json"), b"{}")
        with replace_folder(shared / "npy", "npy") as new:
            (new / "vectors.npy").write_text("new")
    finally:
        os.umask(before)
    for path in shared.rglob("*"):
        status = path.stat()
        assert stat.S_IMODE(status.st_mode) == (0o2750 if path.is_dir() else 0o640), path
        assert status.st_gid == shared.stat().st_gid
