"""Columns beside the embedding, through the whole job: inner layers and predictions."""

from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding.config import make_config
from embedding.encoding.encode_batch import encode_batch
from embedding.encoding.encoder_loading import load_encoders
from embedding.encoding.models import ARCHITECTURES
from embedding.encoding.settings import Settings
from tests.support.audio import tone, write_audio
from tests.support.commands import Outcome
from tests.support.encoding import tone_windows, windows_table
from tests.support.models import EFFICIENTNET

Embed = Callable[..., Outcome]


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The options of a run over two recordings, with its output."""
    folder = tmp_path_factory.mktemp("columns")
    for i in range(2):
        write_audio(folder / "audio" / f"{i}.wav", tone(3.0, 16_000, seed=i), 16_000)
    return [
        *("--input", folder / "audio", "--output", folder / "out", "--model", EFFICIENTNET),
        *("--checkpoint", "random", "--window-s", 1),
    ]


def test_layers_and_predictions_are_columns_of_the_shards(embed: Embed, request_: list[object]) -> None:
    options = [*request_, "--layers", "0,-1", "--predict", 2]
    done = embed(*options)
    assert done.code == 0, done.stderr
    output = Path(str(request_[3]))
    rows = (
        duckdb.connect()
        .execute(f"""
        select window_index, len(embedding), len("model.features.0.0"), len("model.features.8.0"), labels, scores
        from '{output}/embeddings/*.parquet' order by file, window_index
    """)
        .fetchall()
    )
    assert [row[0] for row in rows] == [0, 1, 2, 0, 1, 2]
    assert {row[1:4] for row in rows} == {(1280, 32, 1280)}
    for *_, labels, scores in rows:
        assert len(set(labels)) == 2
        assert all(label.startswith("random label ") for label in labels)
        assert scores[0] >= scores[1]
    before = pq.read_table(output / "embeddings")
    write_audio(Path(str(request_[1])) / "2.wav", tone(2.0, 16_000, seed=2), 16_000)
    assert embed(*options).code == 0
    after = pq.read_table(output / "embeddings")
    assert after.schema.equals(before.schema)
    assert len(after) == len(before) + 2


def test_other_columns_need_another_output(embed: Embed, request_: list[object]) -> None:
    done = embed(*request_, "--layers", "0")
    assert done.code == 2
    assert "holds vectors of other settings: layers was [0, 16], is [0]; predict was 2, is None" in done.stderr


def test_a_dry_run_counts_the_vectors_of_all_columns(embed: Embed, request_: list[object], tmp_path: Path) -> None:
    sizes = []
    for layers in ("last", "all"):
        printed = embed(*request_[:2], "--output", tmp_path, *request_[4:], "--layers", layers, "--dry-run").stdout
        sizes.append(float(printed.split("windows, ")[1].split(" kB of vectors")[0]))
    n_inner = sum(ARCHITECTURES["efficientnet"].layer_dims)
    assert np.isclose(sizes[1] / sizes[0], (n_inner + 1_280) / 1_280, rtol=0.05)


def test_windows_without_vectors_of_a_model_have_its_columns_too() -> None:
    """An encoded window lacks vectors of a target that stored the window before, or whose turn comes after a stop.

    Tables with and without these vectors must fit into one shard.
    """
    request = {"input": "a", "output": "b", "model": EFFICIENTNET, "checkpoint": "random", "window_s": 1.0}
    settings = Settings.of(make_config(request | {"layers": "0,-1", "predict": 2}))
    encoders = load_encoders([settings, settings], 1)
    of_first = windows_table(tone_windows(2))
    position = of_first.column_names.index("targets")
    of_both = of_first.set_column(position, "targets", pa.array([3, 3], pa.uint16()))
    after_first = iter([False, True])
    tables = [
        encode_batch(encoders, of_first)[0],
        encode_batch(encoders, of_both)[0],
        encode_batch(encoders, of_both, lambda: next(after_first))[0],
    ]
    assert [table["targets"].to_pylist() for table in tables] == [[1, 1], [3, 3], [1, 1]]
    assert "1.model.features.8.0" in tables[0].column_names
    assert len(pa.concat_tables(tables)) == 6
