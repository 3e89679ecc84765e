"""Results that are written where somebody has put a link: nothing is written or deleted where the link leads."""

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from embedding import storage
from embedding.errors import RequestError
from embedding.exporting.place import taking
from embedding.search.clips import save


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
    assert save(hit, 1, tmp_path / "clips") == link
    assert not link.is_symlink()
    assert sf.info(link).frames == 8000
    assert (victim / "new" / "mine.txt").read_text() == "mine"


def test_a_page_replaces_a_link_of_its_name(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "page.html").symlink_to(victim / "new" / "mine.txt")
    storage.write_bytes(str(tmp_path / "page.html"), b"page")
    assert (tmp_path / "page.html").read_bytes() == b"page"
    assert (victim / "new" / "mine.txt").read_text() == "mine"


def test_an_export_does_not_work_in_a_folder_that_a_link_leads_to(tmp_path: Path, victim: Path) -> None:
    (tmp_path / ".tmp-npy").symlink_to(victim)
    with pytest.raises(RequestError, match=r"\.tmp-npy is a link, and the"), taking(tmp_path / "npy", "npy"):
        pass
    assert (victim / "new" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["new", "former"])
def test_an_export_does_not_follow_a_link_in_its_own_folder(tmp_path: Path, victim: Path, name: str) -> None:
    (tmp_path / ".tmp-npy").mkdir()
    (tmp_path / ".tmp-npy" / name).symlink_to(victim)
    try:
        with taking(tmp_path / "npy", "npy") as folder:
            (folder / "export.json").write_text('{"format": "npy", "names": ["export.json"]}')
    except OSError as error:
        assert "File exists" in str(error)  # noqa: PT017 — an export may also succeed
    assert (victim / "new" / "mine.txt").read_text() == "mine"
    assert not (tmp_path / "npy").is_symlink()
