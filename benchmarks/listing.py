"""Driver memory and time of a listing, per recording: ``python benchmarks/listing.py [--recordings 1000000]``.

Every case runs the real code of ``embedding.listing.listing`` in a process of its own, over names of 90 bytes. Of S3
only the answers are simulated (pages of 1,000 objects); files are real, and empty. Planned for 10⁷ recordings, hence a
limit of 250 bytes each: exit code 1 where a case takes more.
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


def name(i: int) -> str:
    """``site-0042/2024-05-17/SMA00042_20240517_000123_….wav``, a thousand to a folder, 60 bytes."""
    site = i // PAGE
    stem = f"site-{site:04}/2024-05-17/SMA{site:05}_20240517_{i % PAGE:06}"
    return f"{stem:_<56}.wav"


class SimulatedS3:
    """Answers ``list_objects_v2`` as S3 does, of ``n`` objects; what recordings.py asks of s3fs."""

    def __init__(self, n: int) -> None:
        self._n = n

    def call_s3(self, method: str, Bucket: str, Prefix: str, ContinuationToken: str = "0") -> dict[str, Any]:  # noqa: N803 — S3's names
        assert method == "list_objects_v2"
        start = int(ContinuationToken)
        stop = min(start + PAGE, self._n)
        keys = ("a-rather-long-prefix/" + name(i) for i in range(start, stop))
        contents = [
            {"Key": key, "Size": 28_800_044, "ETag": ETAG, "StorageClass": "STANDARD"}
            for key in keys
            if key.startswith(Prefix)
        ]
        return {"Contents": contents, "IsTruncated": stop < self._n, "NextContinuationToken": str(stop)}


def from_s3(n: int, folder: Path, *inputs: str) -> Callable[[], int]:
    from embedding.listing.listing import list_recordings
    from embedding.storage import s3

    s3.client = lambda: SimulatedS3(n)  # type: ignore[assignment]
    return lambda: len(list_recordings(inputs).recordings)


def s3_prefix(n: int, folder: Path) -> Callable[[], int]:
    return from_s3(n, folder, "s3://a-bucket/a-rather-long-prefix")


def s3_glob(n: int, folder: Path) -> Callable[[], int]:
    return from_s3(n, folder, "s3://a-bucket/a-*/**/*.wav")


def s3_prefix_twice(n: int, folder: Path) -> Callable[[], int]:
    return from_s3(n, folder, "s3://a-bucket/a-rather-long-prefix", "s3://a-bucket/a-rather-long-prefix")


def tree_on_disk(n: int, folder: Path) -> Callable[[], int]:
    return from_disk(folder, (name(i) for i in range(n)))


def one_folder_on_disk(n: int, folder: Path) -> Callable[[], int]:
    return from_disk(folder, (name(i).replace("/", "_") for i in range(n)))


def from_disk(folder: Path, names: Iterator[str]) -> Callable[[], int]:
    from embedding.listing.listing import list_recordings

    for path in map(folder.joinpath, names):
        try:
            path.touch()
        except FileNotFoundError:
            path.parent.mkdir(parents=True)
            path.touch()
    return lambda: len(list_recordings([str(folder)]).recordings)


def manifest(n: int, folder: Path) -> Callable[[], int]:
    """A manifest of files that do not exist; the listing asks for each file all the same."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from embedding.listing.listing import list_recordings

    path = folder / "manifest.parquet"
    names = (name(i) for i in count())
    with pq.ParquetWriter(path, pa.schema([("file", pa.string())])) as writer:
        for _ in range(0, n, 100_000):
            writer.write_table(pa.table({"file": [next(names) for _ in range(min(n, 100_000))]}))
    return lambda: len(list_recordings([str(path)]).recordings)


CASES = {
    case.__name__: case for case in (s3_prefix, s3_glob, s3_prefix_twice, tree_on_disk, one_folder_on_disk, manifest)
}


def measure(case: str, n: int) -> dict[str, float]:
    """Growth of this process's peak memory over a listing, in bytes per recording, and its seconds."""
    import psutil

    with tempfile.TemporaryDirectory(prefix="listing-of-90-") as folder:
        make_listing = CASES[case]
        with tempfile.TemporaryDirectory() as small:
            make_listing(1, Path(small))()  # what is imported and cached once is not the listing's
        listing = make_listing(n, Path(folder))
        before = psutil.Process().memory_info().rss
        began = time.perf_counter()
        found = listing()
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert found == n, f"{case}: {found} recordings, expected {n}"
    return {"bytes_each": (peak - before) / n, "seconds": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recordings", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--small", action="store_true", help="of 10,000, to see that it works; no verdict")
    parser.add_argument("--case", choices=CASES, help="this one, in this process, as JSON")
    arguments = parser.parse_args()
    if arguments.small:
        arguments.recordings = SMALL
    if arguments.case:
        json.dump(measure(arguments.case, arguments.recordings), sys.stdout)
        return 0
    worst = 0.0
    lines = [f"{arguments.recordings:,} recordings", f"{'':20} {'bytes each':>10} {'seconds':>8}"]
    for case in CASES:
        command = [sys.executable, __file__, "--case", case, "--recordings", str(arguments.recordings)]
        figures = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        worst = max(worst, figures["bytes_each"])
        lines.append(f"{case.replace('_', ' '):20} {figures['bytes_each']:10.0f} {figures['seconds']:8.1f}")
    if arguments.small:  # what a listing takes whatever its length would count
        sys.stdout.write("\n".join([*lines, ""]))
        return 0
    sys.stdout.write("\n".join([*lines, f"at most {worst:.0f} bytes each; the limit is {LIMIT_BYTES}", ""]))
    return 0 if worst <= LIMIT_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
