"""Several models in one run: recordings are decoded once, and each output equals that of a run with one model."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jobs.embed
import jobs.pool
import jobs.report
import jobs.search
from embedding.config import make_config
from embedding.errors import RequestError
from embedding.output.balance import Balance
from embedding.request import Request
from embedding.schema.batches import rows_of_target, windows_schema
from embedding.schema.windows import WindowSpec
from jobs.embed import parse
from tests.support.audio import tone, write_audio
from tests.support.commands import Outcome
from tests.support.decoding import EventRecord, decode, recordings_of
from tests.support.encoding import relative_error
from tests.support.models import BEATS, EFFICIENTNET

Embed = Callable[..., Outcome]

WIDE = "esp_aves2_sed_birdcode_beats_encoder"  # 32 kHz
LOW, HIGH = WindowSpec(16_000, 16_000, 8_000, "pad"), WindowSpec(32_000, 32_000, 16_000, "pad")


# --- the whole job ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together") / "audio"
    write_audio(folder / "a.wav", tone(1.7, 44_100, seed=1), 44_100)
    write_audio(folder / "b.flac", tone(1.0, 32_000, seed=2), 32_000)
    (folder / "rubbish.wav").write_text("no audio")
    return folder


OPTIONS = ("--window-s", 1, "--max-failure-rate", 0.5)


@pytest.fixture(scope="module")
def weights(checkpoints: dict[str, Path]) -> dict[str, object]:
    """Weights of each model. EfficientNet's random weights give all sounds the same vector."""
    return {EFFICIENTNET: checkpoints[EFFICIENTNET], WIDE: "random"}


@pytest.fixture(scope="module")
def together(archive: Path, weights: dict[str, object], embed: Embed) -> tuple[Path, Outcome]:
    output = archive.parent / "together"
    models = ("--model", EFFICIENTNET, "--model", WIDE, "--checkpoint", *weights.values())
    return output, embed("--input", archive, "--output", output, *models, *OPTIONS)


def rows_of(output: Path) -> pd.DataFrame:
    return pq.read_table(output / "embeddings").to_pandas().sort_values(["file", "window_index"], ignore_index=True)


def vectors_of(rows: pd.DataFrame) -> np.ndarray:
    return np.stack(rows["embedding"])  # type: ignore[arg-type]


# One of the models is enough here; windows of both sample rates are compared below.
@pytest.mark.parametrize("model", [EFFICIENTNET, pytest.param(WIDE, marks=pytest.mark.long)])
def test_each_output_equals_that_of_a_run_with_one_model(
    model: str, together: tuple[Path, Outcome], archive: Path, weights: dict[str, object], embed: Embed
) -> None:
    output, outcome = together
    assert outcome.code == 0, outcome.stderr
    own = output / f"model={model}"
    alone = archive.parent / f"alone-{model}"
    options = ("--model", model, "--checkpoint", weights[model], *OPTIONS)
    assert embed("--input", archive, "--output", alone, *options).code == 0
    ours, expected = rows_of(own), rows_of(alone)
    assert ours.drop(columns="embedding").equals(expected.drop(columns="embedding"))
    assert relative_error(vectors_of(ours), vectors_of(expected)) <= 1e-6
    assert relative_error(vectors_of(ours)[:1], vectors_of(ours)[1:2]) > 1e-3  # two sounds have different vectors
    for name in ("settings", "versions"):
        assert read_json(own, "run.json")[name] == read_json(alone, "run.json")[name]
    for name in ("recordings", "windows", "failures", "output"):
        assert read_json(own, "report.json")[name] == read_json(alone, "report.json")[name]
    failures = pq.read_table(own / "failures").drop_columns("message")
    assert failures.equals(pq.read_table(alone / "failures").drop_columns("message"))
    assert read_json(own, "report.json")["runs"][-1]["windows_written"] == len(ours)


def read_json(output: Path, name: str) -> dict:
    return json.loads((output / name).read_text())


def test_duckdb_reads_the_model_as_a_column(together: tuple[Path, Outcome]) -> None:
    output, _ = together
    found = duckdb.execute(f"""
        select model, count(*), any_value(len(embedding))
        from read_parquet('{output}/*/embeddings/*.parquet', hive_partitioning = true) group by model order by model
    """).fetchall()
    assert found == [(EFFICIENTNET, 3, 1280), (WIDE, 3, 768)]


def test_each_model_resumes_with_its_own_missing_windows(
    together: tuple[Path, Outcome], archive: Path, weights: dict[str, object], embed: Embed
) -> None:
    output = archive.parent / "resumed"
    shutil.copytree(together[0], output)
    first, second = output / f"model={EFFICIENTNET}", output / f"model={WIDE}"
    before = rows_of(first), rows_of(second)
    for shard in (first / "embeddings").glob("*.parquet"):
        rows = pq.read_table(shard)
        pq.write_table(rows.filter(pa.compute.field("window_index") > 0), shard)  # type: ignore[attr-defined]
    shutil.rmtree(second / "embeddings")
    (second / "embeddings").mkdir()
    kept = {path: path.read_bytes() for path in (first / "embeddings").iterdir()}
    models = ("--model", *weights, "--checkpoint", *weights.values())
    done = embed("--input", archive, "--output", output, *models, *OPTIONS)
    assert done.code == 0, done.stderr
    assert all(path.read_bytes() == content for path, content in kept.items())
    for folder, expected in ((first, before[0]), (second, before[1])):
        assert rows_of(folder).drop(columns="embedding").equals(expected.drop(columns="embedding"))
    assert read_json(first, "report.json")["runs"][-1]["windows_written"] == 2
    assert read_json(second, "report.json")["runs"][-1]["windows_written"] == 3


@pytest.mark.parametrize(
    ("main", "options"), [(jobs.report.main, []), (jobs.pool.main, []), (jobs.search.main, ["--like", "a.wav"])]
)
def test_a_job_on_the_outputs_of_several_models_is_refused(
    main: Callable[[list[str]], int],
    options: list[str],
    together: tuple[Path, Outcome],
    capsys: pytest.CaptureFixture[str],
) -> None:
    output, _ = together
    assert main([str(output), *options]) == 2
    assert f"holds the outputs of several models: name one of them, like {output}/model=" in capsys.readouterr().err


def test_outputs_of_one_model_and_of_several_do_not_mix(
    together: tuple[Path, Outcome], archive: Path, weights: dict[str, object]
) -> None:
    output, _ = together
    options = {"input": [str(archive)], "checkpoint": [str(path) for path in weights.values()], "window_s": 1.0}
    alone = options | {"model": WIDE, "output": str(output), "checkpoint": str(weights[WIDE])}
    with pytest.raises(RequestError, match=f"the output of this model alone is --output {output}/model={WIDE}$"):
        Request.of(make_config(alone))
    Request.of(make_config(alone | {"output": f"{output}/model={WIDE}"}))
    both = options | {"model": [EFFICIENTNET, WIDE], "output": str(output)}
    Request.of(make_config(both))
    with pytest.raises(RequestError, match="holds the vectors of one model"):
        Request.of(make_config(both | {"output": f"{output}/model={WIDE}"}))


# --- options of several models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("models", [["--model", "a", "--model", "b"], ["--model", "a", "b"]])
def test_models_are_named_by_one_option_or_by_several(models: list[str]) -> None:
    config = parse(["--input", "in", "--output", "out/", *models, "--checkpoint", "random"])
    assert [(part.model, part.checkpoint, part.output) for part in config.per_model()] == [
        (("a",), ("random",), "out/model=a"),
        (("b",), ("random",), "out/model=b"),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": [BEATS, BEATS]}, f"--model: {BEATS}, {BEATS} names a model twice"),
        ({"model": [BEATS, WIDE], "checkpoint": "w.safetensors"}, "--checkpoint: 1 for 2 models; name one for each"),
        ({"model": [BEATS, WIDE], "checkpoint": ["a", "b", "c"]}, "--checkpoint: 3 for 2 models"),
        ({"model": [str(i) for i in range(17)]}, "--model: 17 models; a run takes at most 16"),
        (
            {"model": [BEATS, WIDE], "hop_s": 0.33333},
            "a whole number of samples at 16000 and 32000",
        ),
        ({"model": [BEATS, EFFICIENTNET], "pooling": "cls"}, f"--pooling: {BEATS} has no CLS token"),
    ],
)
def test_bad_options_of_several_models_are_refused(options: dict[str, object], message: str, archive: Path) -> None:
    request = {"input": [str(archive)], "output": "out", "checkpoint": "random", "window_s": 1.0}
    with pytest.raises(RequestError, match=message.replace("(", "\\(")):
        Request.of(make_config(request | options))


def test_the_error_names_each_model_with_missing_recordings(
    archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    complete = Balance(4, 0, 4, 0, 0, 0, 0, 9, 9, 0, {}, {})
    failed, lost = replace(complete, embedded=1, failed=3), replace(complete, embedded=3)
    models = ("--model", BEATS, WIDE, EFFICIENTNET)
    monkeypatch.setattr("embedding.driver.embed", lambda *_: [failed, complete, lost])
    assert jobs.embed.main(["--input", str(archive), "--output", "out", *models]) == 1
    error = capsys.readouterr().err
    assert (
        f"{BEATS}: 1 of 4 recordings are embedded and saved; 3 failed: ; this is more than --max-failure-rate 0.05 "
        f"allows; {EFFICIENTNET}: not every recording is accounted for" in error
    )
    assert WIDE not in error


# --- decoding ---------------------------------------------------------------------------------------------------------


def decoded(files: list[Path], specs: Sequence[WindowSpec], batch_size: int = 4) -> pa.Table:
    tables = list(decode(recordings_of(files), specs, batch_size, EventRecord()))
    return pa.concat_tables([windows_schema(specs).empty_table(), *tables])


@given(
    n_frames=st.integers(1, 60_000), source_hz=st.sampled_from([22_050, 24_000, 44_100]), batch_size=st.integers(1, 5)
)
def test_windows_of_two_rates_equal_those_of_each_rate_alone(
    n_frames: int, source_hz: int, batch_size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write_audio(tmp_path_factory.mktemp("a") / "a.wav", tone(n_frames / source_hz, source_hz), source_hz)
    both = decoded([path], [LOW, HIGH], batch_size)
    for target, spec in enumerate([LOW, HIGH]):
        alone = decoded([path], [spec], batch_size)
        common = [name for name in alone.schema.names if name != "targets"]
        assert both.select(common).equals(alone.select(common))
        assert rows_of_target(both, target, spec.rate_hz)["audio_hash"].equals(alone[f"audio_hash_{spec.rate_hz}"])


def test_streaming_at_two_rates_gives_the_same_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_audio(tmp_path / "a.wav", tone(61.3, 24_000), 24_000)
    whole = decoded([path], [LOW, HIGH])
    monkeypatch.setattr("embedding.decoding.decode.WHOLE_RECORDING_S", 10)
    monkeypatch.setattr("embedding.decoding.audio.BLOCK_SAMPLES", 50_000)
    streamed = decoded([path], [LOW, HIGH])
    assert streamed.drop_columns(["audio_hash_16000", "audio_hash_32000"]).equals(
        whole.drop_columns(["audio_hash_16000", "audio_hash_32000"])
    )


@pytest.mark.parametrize("isolated", [False, True])
def test_a_window_goes_to_the_targets_that_need_it(*, isolated: bool, tmp_path: Path) -> None:
    """Recording a is complete for target 1, b is half-done for both targets, c is unchanged for target 0."""
    files = [write_audio(tmp_path / f"{name}.wav", tone(1.5, 16_000, seed=i), 16_000) for i, name in enumerate("abc")]
    (known,) = set(decoded(files[2:], [LOW])["audio_hash_16000"].to_pylist())
    table = (
        recordings_of(files)
        .append_column("targets", pa.array([1, 3, 3], pa.uint16()))
        .append_column("stored", pa.array([None, [[0, 2], [2]], None], pa.list_(pa.list_(pa.int32()))))
        .append_column("known_hash", pa.array([None, None, [known, None]], pa.list_(pa.int64())))
    )
    record = EventRecord()
    rows = pa.concat_tables(decode(table, [LOW, HIGH], 100, record, isolated=isolated))
    windows = [(Path(row["file"]).stem, row["window_index"], row["targets"]) for row in rows.to_pylist()]
    assert windows == [
        *(("a", i, 1) for i in range(3)),
        *(("b", i, bits) for i, bits in ((0, 2), (1, 3))),
        *(("c", i, 2) for i in range(3)),
    ]
    assert record.events == ["102 unchanged"]
