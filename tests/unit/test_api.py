"""The Python interface, on a small Ray that is started for it."""

import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

import embedding
from embedding import EmbedResult, Output
from embedding.errors import RequestError
from embedding.stopping import stop_on_signals
from tests.support.audio import tone, write_audio
from tests.support.models import EFFICIENTNET
from tests.support.shards import write_output

RATE_HZ = 16_000
OPTIONS = {"model": EFFICIENTNET, "checkpoint": "random", "window_s": 1, "quiet": True}


@pytest.fixture(scope="module")
def connected(ray_address: str) -> Iterator[None]:
    """A Ray to which this process is connected, as a notebook may be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_AUTH_MODE", "disabled")
            ray.init(address=ray_address, log_to_driver=False, logging_level=logging.ERROR)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    for number, name in enumerate(["20250503_031300.wav", "20250503_091300.wav", "site-1/20250503_041300.wav"]):
        write_audio(folder / name, tone(2.0, RATE_HZ, seed=number), RATE_HZ)
    (folder / "empty.wav").touch()
    return folder


@pytest.fixture(scope="module")
def result(connected: None, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> EmbedResult:
    output = tmp_path_factory.mktemp("output") / "out"
    found = embedding.embed(input=archive, output=output, **OPTIONS)
    assert found is not None
    return found


def test_a_run_returns_counts_failures_and_its_report(result: EmbedResult) -> None:
    assert result.windows == 6
    assert [(Path(row["file"]).name, row["kind"]) for row in result.failures.to_pylist()] == [("empty.wav", "empty")]
    assert result.report["recordings"]["embedded"] == 3
    assert result.balances[EFFICIENTNET].balanced
    assert ray.is_initialized(), "a Ray that was running is left running"


def test_too_many_failures_are_a_warning(connected: None, archive: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="3 of 4 recordings are embedded and saved; 1 failed: empty.wav"):
        embedding.embed(input=[archive], output=tmp_path / "out", max_failure_rate=0, **OPTIONS)


def test_a_dry_run_returns_nothing_and_writes_nothing(archive: Path, tmp_path: Path) -> None:
    assert embedding.embed(input=archive, output=tmp_path / "out", dry_run=True, **OPTIONS) is None
    assert not (tmp_path / "out").exists()


def test_options_are_checked_as_on_the_command_line(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--precision: 'int7' is not one of"):
        embedding.embed(input=archive, output=tmp_path / "out", precision="int7")
    with pytest.raises(RequestError, match="window"):
        embedding.embed(input=archive, output=tmp_path / "out", windows_s=5)


def test_windows_are_read_lazily_and_by_a_condition(result: EmbedResult) -> None:
    windows = result.output.windows()
    assert len(windows.to_arrow()) == 6
    assert {"file", "start_time", "embedding"} <= set(windows.to_pandas().columns)
    early = result.output.windows(where="hour(recorded_at) < 6", columns=["file", "start_time"])
    assert early.schema.names == ["file", "start_time"]
    names = {Path(file).name for file in early.to_arrow()["file"].to_pylist()}
    assert names == {"20250503_031300.wav", "20250503_041300.wav"}
    assert sum(batch.num_rows for batch in early.batches()) == 4
    assert len(result.output.windows(where="start_time >= 1").to_arrow()) == 3


def test_a_condition_that_makes_no_sense_is_one_line_with_the_columns(result: EmbedResult) -> None:
    with pytest.raises(RequestError, match=r"\Awhere: .*sight.*; there are the columns file, .*, recorded_at, .*\Z"):
        result.output.windows(where="sight = 'A'")
    with pytest.raises(RequestError, match="columns: there is no 'begin'"):
        result.output.windows(columns=["begin"])


def test_vectors_of_a_recording_are_found_by_its_name(result: EmbedResult, archive: Path) -> None:
    vectors = result.output.vectors("20250503_031300.wav")
    assert vectors.shape == (2, 1280)
    np.testing.assert_array_equal(vectors, result.output.vectors(archive / "20250503_031300.wav"))
    assert result.output.vectors("site-1/20250503_041300.wav").shape == (2, 1280)
    with pytest.raises(RequestError, match=r"holds no recording 'c\.wav'"):
        result.output.vectors("c.wav")


def test_a_name_that_several_recordings_have_is_refused(tmp_path: Path) -> None:
    vectors = np.ones((2, 4), np.float32)
    write_output(str(tmp_path), {"/x/a.wav": vectors, "/y/a.wav": vectors}, {}, n_shards=1)
    with pytest.raises(RequestError, match=r"several recordings end in 'a\.wav'"):
        embedding.open_output(tmp_path).vectors("a.wav")


def test_search_and_pooling_are_those_of_the_jobs(result: EmbedResult, archive: Path) -> None:
    output: Output = result.output
    hits = output.search(clip=archive / "20250503_091300.wav", k=2)
    assert len(hits) == 2
    assert hits["score"][0].as_py() == pytest.approx(1.0, abs=1e-5)
    like = output.search(like=str(archive / "20250503_091300.wav"), at_s=1.0, k=5)
    assert len(like) == 5
    pooled = output.pool("mean", quiet=True).to_pandas()
    assert sorted(Path(file).name for file in pooled["file"]) == [
        "20250503_031300.wav", "20250503_041300.wav", "20250503_091300.wav",
    ]  # fmt: skip
    with pytest.raises(RequestError, match="either clip=FILE or like=FILE"):
        output.search()
    with pytest.raises(RequestError, match="'median' is not one of"):
        output.pool("median")


def test_detections_are_those_of_the_job(connected: None, tmp_path: Path) -> None:
    vectors = np.array([[3, -9], [2, -9], [-9, 1]], np.float32)
    write_output(str(tmp_path / "out"), {"/a.wav": vectors}, {"model": "a model"}, 1)
    np.savez(tmp_path / "weights.npz", weight=np.eye(2), bias=np.zeros(2), classes=["low", "high"])
    output = embedding.open_output(tmp_path / "out")
    found = output.detect(tmp_path / "weights.npz", threshold=0.9, quiet=True)
    row = {name: value for name, value in found.to_arrow().to_pylist()[0].items() if value is not None}
    assert row | {"score": 0, "mean_score": 0} == {
        "file": "/a.wav",
        "file_id": 1000,
        "start_time": 0,
        "end_time": 5,
        "label": "low",
        "score": 0,
        "sample_rate": 48_000,
        "mean_score": 0,
        "windows": 1,
    }
    assert output.detections("weights").to_pandas()["label"].tolist() == ["low"]
    with pytest.raises(RequestError, match="no detections 'other'"):
        output.detections("other")
    with pytest.raises(RequestError, match="min_precision"):
        output.detect(tmp_path / "weights.npz", threshold=0.9, min_precision=0.9)
    with pytest.raises(RequestError, match="other settings"):
        output.detect(tmp_path / "weights.npz", quiet=True)


def test_an_output_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no embeddings"):
        embedding.open_output(tmp_path)


def test_in_another_thread_signals_are_left_alone() -> None:
    handlers = []

    def run() -> None:
        with stop_on_signals() as stop:
            assert stop.signal_name is None
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]
