"""A run with little shared memory: tasks wait, or objects are spilled to disk, and the output is complete."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from local_ray import ray_of
from tests.support.kills import N_WINDOWS, Job, make_archive

STORE_BYTES = 80 << 20  # about the least that Ray accepts


@pytest.mark.long
def test_a_run_with_little_shared_memory_is_complete(tmp_path: Path) -> None:
    with ray_of(2, store_bytes=STORE_BYTES) as address:
        job = Job(make_archive(tmp_path / "in"), tmp_path / "out", {"RAY_ADDRESS": address})
        job.finish()
    rows = pq.read_table(job.output / "embeddings", columns=["file", "window_index"]).to_pandas()
    assert len(rows) == N_WINDOWS
    assert not rows.duplicated().any()
