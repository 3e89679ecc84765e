"""Sizes of the pieces of a run: batches, shards, legs, decode tasks."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding.config import make_config
from embedding.encoding.settings import Settings
from embedding.planning import work_sizes
from embedding.planning.placement import ClusterResources, Placement, UsefulWorkers
from embedding.planning.work_sizes import WorkSizes, count_useful_workers, plan_sizes, split_into_legs, split_into_tasks
from tests.support.models import BEATS, EFFICIENTNET

GPU_NODES = ClusterResources(
    n_cpus=64, n_gpus=4, memory_bytes=256 << 30, smallest_node_cpus=16, n_nodes=4, is_own=False
)
ON_GPUS = Placement("cuda", 4, 0.0, 1.0, 1, 0.9, 64, 0.0625, 4)
ON_CPUS = replace(ON_GPUS, device="cpu", n_actors=2, encoder_gpus=0.0)
WINDOW_S = 5
LEAST_BATCH, MOST_BATCH = {"cuda": 256, "cpu": 16}, {"cuda": 256, "cpu": 64}

sizes_of_files = st.lists(st.one_of(st.integers(-1, 100), st.integers(0, 200 << 20)), max_size=600)


def table(sizes: list[int]) -> pa.Table:
    return pa.table({"file_id": range(len(sizes)), "size": pa.array(sizes, pa.int64())})


def options(**more: object) -> tuple:
    config = make_config(
        {"input": ["in"], "output": "out", "model": EFFICIENTNET, "checkpoint": "random", "window_s": WINDOW_S} | more
    )
    return config, [Settings.of(config)]


# --- batches and shards -----------------------------------------------------------------------------------------------


@given(
    placement=st.sampled_from([ON_CPUS, ON_GPUS]),
    n_actors=st.integers(1, 2_000),
    n_windows=st.integers(0, 10**10),
    store_bytes=st.integers(1 << 26, 1 << 36),
)
def test_batches_are_large_only_where_the_run_is_long_and_the_object_store_holds_them(
    placement: Placement, n_actors: int, n_windows: int, store_bytes: int
) -> None:
    config, settings = options()
    nodes = replace(GPU_NODES, store_bytes=store_bytes)
    sizes = plan_sizes(config, settings, replace(placement, n_actors=n_actors), nodes, n_windows * WINDOW_S)
    least, most = LEAST_BATCH[placement.device], MOST_BATCH[placement.device]
    assert least <= sizes.batch_size <= work_sizes.BATCH_GROWTH * most
    assert sizes.batch_size % least == 0
    if sizes.batch_size > least:
        assert n_windows / sizes.batch_size >= work_sizes.LEAST_BATCHES_PER_ENCODER * n_actors
    if sizes.batch_size > most:
        assert n_windows / sizes.batch_size >= work_sizes.BATCHES_PER_ENCODER * n_actors
        assert store_bytes >= work_sizes.BATCHES_PER_STORE * sizes.batch_size * settings[0].windows.n_bytes
    assert 256 <= sizes.shard_rows <= 32_768


def test_a_long_run_on_gpus_has_batches_of_a_thousand_windows() -> None:
    config, settings = options()
    assert plan_sizes(config, settings, ON_GPUS, GPU_NODES, 1e9).batch_size == 1024
    assert plan_sizes(config, settings, ON_CPUS, GPU_NODES, 1e9).batch_size == 256


@pytest.mark.parametrize(
    ("model", "audio_s", "batch_size"),
    [(EFFICIENTNET, 60, 16), (EFFICIENTNET, 7_200, 64), (BEATS, 154, 4), (BEATS, 600, 4), (BEATS, 1_800, 16)],
)
def test_a_short_run_on_cpus_is_shared_by_its_encoders(model: str, audio_s: float, batch_size: int) -> None:
    config, settings = options(model=model)
    assert plan_sizes(config, settings, ON_CPUS, GPU_NODES, audio_s).batch_size == batch_size


@pytest.mark.parametrize(
    ("models", "n_windows", "n_mb", "expected"),
    [
        ([BEATS], 0, 0, UsefulWorkers(1, 1)),
        ([BEATS], 48, 32, UsefulWorkers(1, 1)),
        ([BEATS], 49, 33, UsefulWorkers(2, 2)),
        ([EFFICIENTNET], 512, 1_000, UsefulWorkers(1, 32)),
        ([BEATS, EFFICIENTNET], 48, 1, UsefulWorkers(2, 1)),
    ],
)
def test_workers_are_worth_their_start(models: list[str], n_windows: int, n_mb: int, expected: UsefulWorkers) -> None:
    targets = [options(model=model)[1][0] for model in models]
    assert count_useful_workers(targets, n_windows * WINDOW_S, n_mb << 20) == expected


@given(layers=st.sampled_from(["last", "0", "all"]), n_models=st.integers(1, 3), n_windows=st.integers(0, 10**10))
def test_a_shard_is_not_larger_than_a_write_task_can_hold(layers: str, n_models: int, n_windows: int) -> None:
    config, settings = options(layers=layers)
    targets = settings * n_models
    n_rows = plan_sizes(config, targets, ON_GPUS, GPU_NODES, n_windows * WINDOW_S).shard_rows
    n_bytes = n_rows * sum(target.row_bytes for target in targets)
    assert n_rows == 256 or n_bytes <= work_sizes.SHARD_BYTES
    if n_windows > 10**9:
        assert n_rows == 32_768 or n_bytes > 0.99 * work_sizes.SHARD_BYTES


def test_sizes_in_the_request_are_kept() -> None:
    config, settings = options(batch_size=7, shard_rows=100)
    assert plan_sizes(config, settings, ON_GPUS, GPU_NODES, 3500) == WorkSizes(7, 100, 100)


# --- legs -------------------------------------------------------------------------------------------------------------


@given(file_sizes=sizes_of_files.filter(len), batches_per_byte=st.floats(0, 1), most=st.integers(1, 700))
def test_legs_keep_every_recording_in_order_and_their_limits(
    file_sizes: list[int], batches_per_byte: float, most: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work_sizes, "LEG_RECORDINGS", most)
        recordings = table(file_sizes)
        legs = split_into_legs(recordings, batches_per_byte)
    assert pa.concat_tables(legs).equals(recordings)
    assert all(len(leg) for leg in legs)
    assert max(len(leg) for leg in legs) <= most + 1  # a recording on the border may be in either leg
    for leg in legs:
        n_batches = sum(max(0, n) for n in leg["size"].to_pylist()) * batches_per_byte
        largest = max(max(0, n) for n in leg["size"].to_pylist()) * batches_per_byte
        assert n_batches <= work_sizes.LEG_BATCHES + largest, "no recording is divided between two legs"


def test_an_ordinary_run_is_one_leg() -> None:
    recordings = table([6_000_000] * 40_000)  # minutes of AudioMoth files
    assert len(split_into_legs(recordings, 12 / 64 / 6_000_000)) == 1


def test_a_billion_windows_in_large_batches_make_eleven_legs() -> None:
    recordings = table([60_000_000] * 100_000)  # each stands for a hundred of 10⁷ recordings, with 10,000 windows
    lengths = [len(leg) for leg in split_into_legs(recordings, 10_000 / 1_000 / 60_000_000)]
    assert len(lengths) == 11  # ten for the batches, and a tenth of a leg for the names of recordings
    assert max(lengths) - min(lengths) <= 1


# --- tasks ------------------------------------------------------------------------------------------------------------


@given(file_sizes=sizes_of_files, n_decoders=st.integers(1, 64))
def test_every_recording_is_in_one_task_and_no_task_is_large(file_sizes: list[int], n_decoders: int) -> None:
    leg = table(file_sizes)
    tasks = split_into_tasks(leg, n_decoders)
    assert pa.concat_tables(tasks).equals(leg)
    assert all(len(task) for task in tasks) or not file_sizes
    for task in tasks:
        n_bytes = sum(max(0, n) for n in task["size"].to_pylist())
        assert len(task) == 1 or n_bytes <= work_sizes.TASK_BYTES
        assert len(task) <= work_sizes.TASK_RECORDINGS
    if len(file_sizes) >= 4 * n_decoders:
        assert len(tasks) >= n_decoders, "a decoder would be idle"


def test_many_small_recordings_fill_tasks() -> None:
    assert {len(task) for task in split_into_tasks(table([1000] * 10_000), 2)[:-1]} == {work_sizes.TASK_RECORDINGS}


def test_millions_of_recordings_do_not_become_millions_of_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_sizes, "MAX_TASKS", 100)
    n_large = 2_000
    leg = pa.table({"file_id": range(n_large), "size": np.full(n_large, work_sizes.TASK_BYTES)})
    assert len(split_into_tasks(leg, 2)) <= 2 * 100
    n_small = 100 * work_sizes.TASK_RECORDINGS * 10
    leg = pa.table({"file_id": range(n_small), "size": np.full(n_small, 1000)})
    assert len(split_into_tasks(leg, 2)) <= 2 * 100
    assert len(split_into_tasks(leg, 50)) >= 4 * 50, "enough for the decoders of a large cluster"
