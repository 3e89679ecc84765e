"""jobs.embed on an S3 store where every tenth request fails, for reads and for writes."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf

from embedding import storage
from embedding.decoding.fetch import WHOLE_OBJECT_BYTES
from local_ray import ray_of
from tests.support import faulty_s3
from tests.support.audio import tone
from tests.support.commands import Outcome, run_embed
from tests.support.faulty_s3 import faulty_s3_proxy
from tests.support.models import EFFICIENTNET

# Enough reads for each of six kinds of faults to happen, with a fault in every tenth request.
N_SHORT = 52
# At this rate 32 MiB are 52 s of audio, so the recording has few windows.
LONG_S, LONG_RATE_HZ = 54.0, 320_000


def recording(duration_s: float, rate_hz: int, seed: int) -> bytes:
    content = io.BytesIO()
    sf.write(content, tone(duration_s, rate_hz, 300 + 10 * seed, seed=seed), rate_hz, format="wav", subtype="PCM_16")
    return content.getvalue()


def vectors(output: str) -> dict[tuple[str, int], np.ndarray]:
    """Return the vectors of an output, by recording and window."""
    shards = storage.list_names(f"{output}/embeddings", ".parquet")
    table = pa.concat_tables(pq.read_table(io.BytesIO(storage.read_bytes(shard))) for shard in shards)
    keys = zip(table["file"].to_pylist(), table["window_index"].to_pylist(), strict=True)
    by_key = dict(zip(keys, map(np.array, table["embedding"].to_pylist()), strict=True))
    assert len(by_key) == len(table)
    return by_key


@pytest.mark.long  # a job of two minutes; tests/unit/storage/test_s3_faults.py tests each fault
def test_transient_faults_of_s3_change_no_vector(s3_server: str, s3_api: Any, bucket: str) -> None:
    for i in range(N_SHORT):
        s3_api.put_object(Bucket=bucket, Key=f"in/{i:02}.wav", Body=recording(1 + i % 3, 16_000, i))
    long = recording(LONG_S, LONG_RATE_HZ, 99)
    assert len(long) > WHOLE_OBJECT_BYTES
    s3_api.put_object(Bucket=bucket, Key="in/long.wav", Body=long)

    def run(address: str, output: str) -> Outcome:
        return run_embed(
            *("--input", f"s3://{bucket}/in", "--output", f"s3://{bucket}/{output}", "--model", EFFICIENTNET),
            *("--checkpoint", "random", "--window-s", 3, "--actors", 1, "--shard-rows", 16),
            env={"RAY_ADDRESS": address, "AWS_ENDPOINT_URL": proxy.url},
        )

    with faulty_s3_proxy(s3_server) as proxy, pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", proxy.url)
        # A separate Ray: workers inherit the AWS environment from the process that starts them.
        with ray_of(2) as address:
            without_faults = run(address, "without-faults")
            proxy.choose = faulty_s3.fail_every(10)
            with_faults = run(address, "with-faults")
    assert (without_faults.code, with_faults.code) == (0, 0), with_faults.stderr
    for verb in ("GET", "PUT"):
        assert set(faulty_s3.TRANSIENT[verb]) <= proxy.n_faults.keys(), (proxy.n_faults, proxy.n_requests)
    assert not list(storage.list_names(f"s3://{bucket}/with-faults/failures", ""))
    expected, found = vectors(f"s3://{bucket}/without-faults"), vectors(f"s3://{bucket}/with-faults")
    assert found.keys() == expected.keys()
    assert len(found) == N_SHORT + LONG_S / 3
    for key, vector in expected.items():
        np.testing.assert_allclose(found[key], vector, rtol=0, atol=1e-6)
