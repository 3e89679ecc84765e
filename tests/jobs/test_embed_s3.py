"""S3 as input and output of jobs.embed, over HTTP, with odd file names."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf

from embedding import storage
from local_ray import ray_of
from tests.support.audio import tone
from tests.support.commands import Outcome, run_embed
from tests.support.models import EFFICIENTNET

NAMES = [
    "plain.wav",
    "with space.wav",
    "hash#tag.wav",
    "100%25 percent.wav",
    "a+b.wav",
    "why?.wav",
    "Vögel/Grünspecht.WAV",
    "鳥/録音 1.flac",
]


def test_recordings_in_a_bucket_are_embedded_into_a_bucket(s3_server: str, bucket: str) -> None:
    for i, name in enumerate(NAMES):
        content = io.BytesIO()
        sf.write(content, tone(2.0, 16_000, 300.0 + 100 * i), 16_000, format=name.rpartition(".")[2])
        storage.write_bytes(f"s3://{bucket}/site 1/{name}", content.getvalue())
    storage.write_bytes(f"s3://{bucket}/site 1/notes.txt", b"rain")
    storage.write_bytes(f"s3://{bucket}/site 1/broken.wav", b"not audio")
    output = f"s3://{bucket}/vectors/run 1"
    # A separate Ray: workers inherit the AWS environment from the process that starts them.
    with ray_of(2) as address:
        outcome: Outcome = run_embed(
            *("--input", f"s3://{bucket}/site 1", "--output", output, "--model", EFFICIENTNET),
            *("--checkpoint", "random", "--window-s", 1, "--actors", 1, "--max-failure-rate", 0.5),
            env={"RAY_ADDRESS": address},
        )
    assert outcome.code == 0, outcome.stderr
    shards = list(storage.list_names(f"{output}/embeddings", ".parquet"))
    rows = pa.concat_tables(pq.read_table(io.BytesIO(storage.read_bytes(shard))) for shard in shards)
    assert sorted(set(rows["file"].to_pylist())) == sorted(f"s3://{bucket}/site 1/{name}" for name in NAMES)
    assert len(rows) == 2 * len(NAMES)
    [failures_uri] = storage.list_names(f"{output}/failures", ".parquet")
    failed = pq.read_table(io.BytesIO(storage.read_bytes(failures_uri))).to_pylist()
    assert [(row["file"], row["kind"]) for row in failed] == [(f"s3://{bucket}/site 1/broken.wav", "corrupt")]
    assert json.loads(storage.read_bytes(f"{output}/run.json"))["settings"]["model"] == EFFICIENTNET
    assert json.loads(storage.read_bytes(f"{output}/report.json"))["recordings"]["embedded"] == len(NAMES)
    assert "ignored: 1 .txt" in outcome.stdout
