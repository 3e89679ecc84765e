"""Driver memory and time of a listing, per recording.

``python benchmarks/listing.py [--recordings 1000000]``

Every case runs the code of ``embedding.listing.listing`` in a process of its own, over names of 90 bytes. The answers
of S3 are simulated (pages of 1,000 objects); files are real, and empty. The limit of 250 bytes per recording is for 10⁷
recordings; exit code 1 if a case exceeds it.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

SMALL = 10_000
LIMIT_BYTES = 250
PAGE = 1000
ETAG = '"9b2cf535f27731c974343645a3985328"'


def recording_name(i: int) -> str:
    """Return ``site-0042/2024-05-17/SMA00042_20240517_000123_….wav``, 60 bytes; a folder holds a thousand names."""
    site = i // PAGE
    stem = f"site-{site:04}/2024-05-17/SMA{site:05}_20240517_{i % PAGE:06}"
    return f"{stem:_<56}.wav"


class SimulatedS3:
    """The part of s3fs that a listing uses: answers ``list_objects_v2`` like S3 with ``n`` objects."""

    def __init__(self, n: int) -> None:
        self._n = n

    def call_s3(self, method: str, Bucket: str, Prefix: str, ContinuationToken: str = "0") -> dict[str, Any]:  # noqa: N803 — S3's names
        assert method == "list_objects_v2"
        start = int(ContinuationToken)
        stop = min(start + PAGE, self._n)
        keys = ("a-rather-long-prefix/" + recording_name(i) for i in range(start, stop))
        contents = [
            {"Key": key, "Size": 28_800_044, "ETag": ETAG, "StorageClass": "STANDARD"}
            for key in keys
            if key.startswith(Prefix)
        ]
        return {"Contents": contents, "IsTruncated": stop < self._n, "NextContinuationToken": str(stop)}


def list_s3(n: int, *inputs: str) -> Callable[[], int]:
    from embedding.listing.listing import list_recordings
    from embedding.storage import s3

    s3.client = lambda: SimulatedS3(n)  # type: ignore[assignment]
    return lambda: len(list_recordings(inputs).recordings)


def s3_prefix(n: int, folder: Path) -> Callable[[], int]:
    return list_s3(n, "s3://a-bucket/a-rather-long-prefix")


def s3_glob(n: int, folder: Path) -> Callable[[], int]:
    return list_s3(n, "s3://a-bucket/a-*/**/*.wav")


def s3_prefix_twice(n: int, folder: Path) -> Callable[[], int]:
    return list_s3(n, "s3://a-bucket/a-rather-long-prefix", "s3://a-bucket/a-rather-long-prefix")


def tree_on_disk(n: int, folder: Path) -> Callable[[], int]:
    return list_disk(folder, (recording_name(i) for i in range(n)))


def one_folder_on_disk(n: int, folder: Path) -> Callable[[], int]:
    return list_disk(folder, (recording_name(i).replace("/", "_") for i in range(n)))


def list_disk(folder: Path, names: Iterator[str]) -> Callable[[], int]:
    from embedding.listing.listing import list_recordings

    for path in map(folder.joinpath, names):
        try:
            path.touch()
        except FileNotFoundError:
            path.parent.mkdir(parents=True)
            path.touch()
    return lambda: len(list_recordings([str(folder)]).recordings)


def manifest(n: int, folder: Path) -> Callable[[], int]:
    """Write a manifest of files that do not exist, which the listing checks."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from embedding.listing.listing import list_recordings

    path = folder / "manifest.parquet"
    names = (recording_name(i) for i in count())
    with pq.ParquetWriter(path, pa.schema([("file", pa.string())])) as writer:
        for _ in range(0, n, 100_000):
            writer.write_table(pa.table({"file": [next(names) for _ in range(min(n, 100_000))]}))
    return lambda: len(list_recordings([str(path)]).recordings)


CASES = {
    case.__name__: case for case in (s3_prefix, s3_glob, s3_prefix_twice, tree_on_disk, one_folder_on_disk, manifest)
}


def measure(case: str, n: int) -> dict[str, float]:
    """Return the growth of this process's peak memory in a listing, in bytes per recording, and the time in s."""
    import psutil

    with tempfile.TemporaryDirectory(prefix="listing-of-90-") as folder:
        make_listing = CASES[case]
        with tempfile.TemporaryDirectory() as small:
            make_listing(1, Path(small))()  # imports and caches do not belong to the listing
        listing = make_listing(n, Path(folder))
        before = psutil.Process().memory_info().rss
        began = time.perf_counter()
        n_listed = listing()
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert n_listed == n, f"{case}: {n_listed} recordings, expected {n}"
    return {"bytes_per_recording": (peak - before) / n, "seconds": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recordings", type=int, default=1_000_000, metavar="N")
    parser.add_argument(
        "--small", action="store_true", help="10,000 recordings, to show that the benchmark works; without a verdict"
    )
    parser.add_argument("--case", choices=CASES, help="measure this case in this process, and print JSON")
    arguments = parser.parse_args()
    if arguments.small:
        arguments.recordings = SMALL
    if arguments.case:
        json.dump(measure(arguments.case, arguments.recordings), sys.stdout)
        return 0
    worst = 0.0
    lines = [f"{arguments.recordings:,} recordings", f"{'':20} {'bytes/recording':>15} {'seconds':>8}"]
    for case in CASES:
        command = [sys.executable, __file__, "--case", case, "--recordings", str(arguments.recordings)]
        figures = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        worst = max(worst, figures["bytes_per_recording"])
        lines.append(f"{case.replace('_', ' '):20} {figures['bytes_per_recording']:15.0f} {figures['seconds']:8.1f}")
    if arguments.small:  # no verdict, because the constant part of a listing would count
        sys.stdout.write("\n".join([*lines, ""]))
        return 0
    sys.stdout.write("\n".join([*lines, f"at most {worst:.0f} bytes per recording; the limit is {LIMIT_BYTES}", ""]))
    return 0 if worst <= LIMIT_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
