"""Little shared memory: what Ray cannot hold at once waits or goes to disk, and the run is whole."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from local_ray import ray_of
from tests.support.kills import N_WINDOWS, Job, make_archive

STORE_BYTES = 80 << 20  # about the least that Ray takes


@pytest.mark.long
def test_a_run_with_little_shared_memory_is_whole(tmp_path: Path) -> None:
    with ray_of(2, store_bytes=STORE_BYTES) as address:
        job = Job(make_archive(tmp_path / "in"), tmp_path / "out", {"RAY_ADDRESS": address})
        job.finish()
    rows = pq.read_table(job.output / "embeddings", columns=["file", "window_index"]).to_pandas()
    assert len(rows) == N_WINDOWS
    assert not rows.duplicated().any()
