"""When and where recordings were made, as a user meets it: recordings.parquet, and --where in every job."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

import embedding
from embedding import extras
from embedding.errors import RequestError
from jobs import detect, export, pool, report, search
from tests.support.audio import tone, write_audio
from tests.support.commands import ROOT, Outcome, environment, run_job_here
from tests.support.models import EFFICIENTNET
from tests.support.recorders import write_with_guano

Embed = Callable[..., Outcome]
OPTIONS = ("--model", EFFICIENTNET, "--checkpoint", "random", "--window-s", 2, "--actors", 1)
DAWN, NOON, DUSK = "dawn.wav", "20250503_120000.wav", "20250503_190000.wav"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three recordings: one has a GUANO chunk, one a time in its name, and one both, which contradict each other."""
    folder = tmp_path_factory.mktemp("archive")
    write_with_guano(
        folder / DAWN,
        tone(4.0, 16_000),
        16_000,
        Timestamp="2025-05-03T05:13:00+02:00",
        Loc_Position="47.37 8.54",
        Model="AudioMoth",
        Temperature_Int="11.5",
    )
    write_audio(folder / NOON, tone(4.0, 16_000, seed=1), 16_000)
    write_with_guano(folder / DUSK, tone(6.0, 16_000, seed=2), 16_000, Timestamp="2025-05-03T20:00:00")
    (folder / "sites.csv").write_text(f"file,site,height_m\n{DAWN},A,3\n{NOON},A,2.5\n{DUSK},B,\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def output(archive: Path, embed: Embed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "o"
    done = embed("--input", archive / "sites.csv", "--output", folder, *OPTIONS)
    assert done.code == 0, done.stderr
    assert "1 recording with contradicting times or places, see contradiction in recordings.parquet" in done.stdout
    assert f"{DUSK}: guano says 2025-05-03 20:00:00, name says 2025-05-03 19:00:00" in done.stdout.replace("\n", " ")
    assert f"recordings: {folder}/recordings.parquet" in done.stdout.replace("\n", "")
    np.savez(folder.parent / "all.npz", weight=np.zeros((1, 1280)), bias=np.ones(1), classes=np.array(["all"]))
    return folder


def recordings(output: Path, columns: str = "*") -> list[tuple[object, ...]]:
    return duckdb.connect().sql(f"select {columns} from '{output}/recordings.parquet' order by file").fetchall()


def names_in(text: str) -> set[str]:
    return {name for name in (DAWN, NOON, DUSK) if name in text}


def test_the_table_says_when_and_where_each_recording_was_made(output: Path, archive: Path) -> None:
    columns = "file, recorded_at, utc_offset_min, latitude, site, recorder, temperature_c, recorded_at_from, height_m"
    assert recordings(output, columns) == [
        (str(archive / NOON), datetime(2025, 5, 3, 12), None, None, "A", None, None, "name", 2.5),
        (str(archive / DUSK), datetime(2025, 5, 3, 20), None, None, "B", None, None, "guano", None),
        (str(archive / DAWN), datetime(2025, 5, 3, 5, 13), 120, 47.37, "A", "AudioMoth", 11.5, "guano", 3.0),
    ]
    joined = duckdb.connect().sql(
        f"select count(*) from '{output}/embeddings/*.parquet' join '{output}/recordings.parquet' using (file_id)"
    )
    assert joined.fetchall() == [(7,)]


@pytest.fixture
def copied(output: Path, tmp_path: Path) -> Path:
    """An output that the test may change."""
    return Path(shutil.copytree(output, tmp_path / "copied"))


def test_a_second_run_adds_what_is_new_and_keeps_the_rest(copied: Path, tmp_path: Path, embed: Embed) -> None:
    before = recordings(copied)
    write_audio(tmp_path / "in" / "20250504_010203.wav", tone(2.0, 16_000, seed=3), 16_000)
    done = embed("--input", tmp_path / "in", "--output", copied, *OPTIONS)
    assert done.code == 0
    assert "contradicting" not in done.stdout  # told before
    after = recordings(copied)
    assert [row for row in after if row in before] == before
    assert recordings(copied, "recorded_at, site").count((datetime(2025, 5, 4, 1, 2, 3), None)) == 1
    assert len(after) == 4


def test_the_table_is_made_again_when_it_was_deleted(copied: Path, archive: Path, embed: Embed) -> None:
    before = recordings(copied)
    (copied / "recordings.parquet").unlink()
    assert embed("--input", archive / "sites.csv", "--output", copied, *OPTIONS).code == 0
    assert recordings(copied) == before


def test_a_damaged_table_is_told_and_loses_nothing(copied: Path, archive: Path, embed: Embed) -> None:
    good = (copied / "recordings.parquet").read_bytes()
    (copied / "recordings.parquet").write_bytes(good[:-9])
    done = embed("--input", archive / "sites.csv", "--output", copied, *OPTIONS)
    assert done.code == 0
    assert "recordings.parquet is not up to date" in done.stdout
    assert "delete it and run jobs.embed again" in done.stdout.replace("\n", " ")
    assert json.loads((copied / "report.json").read_text())["recordings_outdated"] is True
    (copied / "recordings.parquet").unlink()
    assert embedding.open_output(copied).recordings["recorded_at"].null_count == 0  # made from the shards
    assert embed("--input", archive / "sites.csv", "--output", copied, *OPTIONS).code == 0
    assert "recordings_outdated" not in json.loads((copied / "report.json").read_text())


def test_search_finds_windows_of_chosen_recordings_alone(output: Path, archive: Path, connection: None) -> None:
    def found(*options: object) -> set[str]:
        done = run_job_here(search.main, output, "--like", archive / DAWN, "--json", *options)
        assert done.code == 0, done.stderr
        return {json.loads(line)["file"].rpartition("/")[2] for line in done.stdout.splitlines()}

    assert found("--where", "site = 'A' and recorded_at > '2025-05-03 06:00'") == {NOON}
    assert found("--where", "hour(recorded_at) = 20 -- dusk") == {DUSK}
    assert {NOON, DUSK, DAWN} <= found()


def test_pool_pools_chosen_recordings_and_keeps_the_others(output: Path, connection: None) -> None:
    def pooled() -> set[str]:
        return names_in(" ".join(pq.read_table(output / "recordings" / "max")["file"].to_pylist()))

    done = run_job_here(pool.main, output, "--pooling", "max", "--where", "latitude is not null")
    assert (done.code, pooled()) == (0, {DAWN})
    assert "1 recording in" in done.stdout
    assert run_job_here(pool.main, output, "--pooling", "max", "--where", "site = 'B'").code == 0
    assert pooled() == {DAWN, DUSK}


def test_detect_scores_chosen_recordings_and_says_when_and_where(output: Path, connection: None) -> None:
    def detected(name: str) -> list[tuple[object, ...]]:
        return (
            duckdb.connect()
            .sql(
                f"select distinct parse_filename(file), recorded_at, utc_offset_min, latitude, site "
                f"from '{output}/detections/{name}/*.parquet' order by 1"
            )
            .fetchall()
        )

    weights = output.parent / "all.npz"
    done = run_job_here(detect.main, output, "--probe", weights, "--name", "a", "--where", "site = 'A'")
    assert done.code == 0, done.stderr
    rows = [(NOON, datetime(2025, 5, 3, 12), None, None, "A"), (DAWN, datetime(2025, 5, 3, 5, 13), 120, 47.37, "A")]
    assert detected("a") == rows
    summary = json.loads((output / "detections" / "a" / "summary.json").read_text())
    assert summary["classes"][0]["by_hour"][5] == 1
    assert summary["classes"][0]["by_site"]["A"]["detections"] == 2
    other = run_job_here(detect.main, output, "--probe", weights, "--name", "a", "--where", "site = 'B'")
    assert (other.code, "another where" in other.stderr, "--replace" in other.stderr) == (2, True, True)
    done = run_job_here(detect.main, output, "--probe", weights, "--name", "a", "--where", "site = 'B'", "--replace")
    assert (done.code, [row[0] for row in detected("a")]) == (0, [DUSK])


def test_detections_follow_a_table_that_has_changed(
    output: Path, copied: Path, archive: Path, embed: Embed, tmp_path: Path
) -> None:
    def sites() -> dict[str, str]:
        detections = embedding.open_output(copied).detect(output.parent / "all.npz", name="later", quiet=True)
        return {row["file"].rpartition("/")[2]: row["site"] for row in detections.to_arrow().to_pylist()}

    assert sites() == {NOON: "A", DUSK: "B", DAWN: "A"}
    (tmp_path / "moved.csv").write_text(f"file,site\n{archive / NOON},C\n", encoding="utf-8")
    assert embed("--input", tmp_path / "moved.csv", "--output", copied, *OPTIONS).code == 0
    assert sites() == {NOON: "C", DUSK: "B", DAWN: "A"}


def test_export_writes_chosen_recordings(output: Path, tmp_path: Path) -> None:
    done = run_job_here(export.main, output, "--to", "npy", tmp_path / "npy", "--where", "height_m < 3")
    assert done.code == 0, done.stderr
    assert len(np.load(tmp_path / "npy" / "vectors.npy")) == 2
    assert json.loads((tmp_path / "npy" / "export.json").read_text())["where"] == "height_m < 3"


def test_the_page_shows_chosen_recordings(output: Path, tmp_path: Path) -> None:
    done = run_job_here(report.main, output, "--html", tmp_path / "a.html", "--where", "site = 'A'")
    assert done.code == 0, done.stderr
    assert "only recordings where site = 'A': 2 of 3" in done.stdout
    page = (tmp_path / "a.html").read_text()
    assert DUSK not in page
    assert DAWN in page


def test_python_takes_the_same_conditions(output: Path, archive: Path, connection: None) -> None:
    opened = embedding.open_output(output)
    assert opened.recordings["site"].to_pylist() == ["A", "B", "A"]
    windows = opened.windows(where="hour(recorded_at) < 6 and site = 'A'").to_arrow()
    assert set(windows["file"].to_pylist()) == {str(archive / DAWN)}
    assert set(opened.windows(where="start_time >= 4").to_arrow()["file"].to_pylist()) == {str(archive / DUSK)}
    hits = opened.search(like=str(archive / DAWN), where="site = 'B'")
    assert set(hits["file"].to_pylist()) == {str(archive / DUSK)}
    assert opened.pool("mean", where="site = 'B'", quiet=True).to_arrow()["file"].to_pylist() == [str(archive / DUSK)]


def jobs_with_where(output: Path, where: str, folder: Path) -> Iterator[Outcome]:
    options = ("--where", where)
    yield run_job_here(search.main, output, "--like", "/a.wav", *options)
    yield run_job_here(pool.main, output, *options)
    yield run_job_here(detect.main, output, "--probe", output.parent / "all.npz", "--name", "x", *options)
    yield run_job_here(export.main, output, "--to", "npy", folder / "x", *options)
    yield run_job_here(report.main, output, "--html", folder / "x.html", *options)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("sight = 'A'", "there are the columns file, file_id, recorded_at, utc_offset_min, latitude"),
        ("site = ", "there are the columns"),
        ("site = 'Z'", "no recording of"),
        ("true) or (select count(*) from read_text('/etc/passwd')) > (0", "there are the columns"),
        ("true); select 3 as z where (true", "give one condition, without semicolons"),
        ("false) union all select 1 where (true", "no recording of"),
    ],
)
def test_a_mistake_is_one_line_in_every_job(output: Path, tmp_path: Path, where: str, message: str) -> None:
    for done in jobs_with_where(output, where, tmp_path):
        line = done.stderr.replace("\n", " ").strip()
        assert done.code == 2
        assert message in line
        assert done.stderr.count("--where") == 1
    assert not (tmp_path / "x.html").exists()


@pytest.mark.parametrize(("where", "code", "n_lines"), [("sight = 1", 2, 1), ("height_m < 3", 0, 0)])
def test_a_command_prints_nothing_else(output: Path, tmp_path: Path, where: str, code: int, n_lines: int) -> None:
    """DuckDB complained of its own objects at the end of the process."""
    command = [sys.executable, "-m", "jobs.export", output, "--to", "npy", tmp_path / "x", "--where", where]
    done = subprocess.run(
        [*map(str, command)], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (code, n_lines), done.stderr


def test_without_the_extra_the_command_that_installs_it_is_told(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "duckdb" else find_spec(name))
    for done in jobs_with_where(output, "site = 'A'", tmp_path):
        assert done.code == 2
        assert "--where needs packages that are not installed (duckdb)" in done.stderr.replace("\n", " ")
    with pytest.raises(RequestError, match="pip install"):
        embedding.open_output(output).pool(where="site = 'A'", quiet=True)
