"""Archives of empty files, and what a listing finds in them."""

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding.errors import RequestError
from embedding.listing.listing import Listing, list_recordings

ODD_NAMES = [
    "with space.wav",
    "hash#tag.wav",
    "100%.wav",
    "100%25.wav",
    "a+b.wav",
    "why?.wav",
    "star*.wav",
    "[bracket].wav",
    "[a-z.wav",
    "a&b=c;d,e.wav",
    'it\'s "quoted".wav',
    "back\\slash.wav",
    "~tilde.wav",
    "-dash.wav",
    "two  spaces .wav",
    "Grünspecht.WAV",
    "Gru\u0308nspecht.wav",  # looks the same; macOS writes this form
    "録音 1.flac",
    "🐦.ogg",
]


def make_files(root: Path, *names: str) -> Path:
    """Write files of one byte each, and return ``root``; a listing does not read the content."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def put_objects(s3_api: Any, bucket: str, *keys: str) -> str:
    """Write objects of one byte each, and return the URI of the bucket."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: s3_api.put_object(Bucket=bucket, Key=key, Body=b"x"), keys))
    return f"s3://{bucket}"


def write_manifest(path: Path, *files: str | None, column: str = "file") -> Path:
    """Write a manifest with a further column, as text if the name of ``path`` ends in .csv."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".csv":
        with path.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["note", column])
            writer.writerows([["it rained,\nthen not", file] for file in files])
    else:
        pq.write_table(pa.table({"note": [1] * len(files), column: pa.array(files, pa.string())}), path)
    return path


def list_inputs(*inputs: object, limit: int | None = None) -> Listing:
    """Return the listing of ``inputs``."""
    return list_recordings([str(uri) for uri in inputs], limit)


def listed_files(*inputs: object, limit: int | None = None) -> list[str]:
    """Return the files that are listed."""
    return list_inputs(*inputs, limit=limit).recordings["file"].to_pylist()


def listed_below(root: object, *inputs: object) -> list[str]:
    """Return the files that are listed, as paths relative to ``root``; without ``inputs`` list ``root``."""
    files = listed_files(*inputs or (root,))
    assert all(file.startswith(f"{root}/") for file in files)
    return [file.removeprefix(f"{root}/") for file in files]


def refusal(*inputs: object) -> str:
    """Return the message with which a listing is refused, and check that it is one line."""
    with pytest.raises(RequestError) as refused:
        list_inputs(*inputs)
    message = str(refused.value)
    assert message.startswith("--input: ")
    assert "\n" not in message
    return message


# Files of an archive.
TREE = [
    "a.wav",
    "b.txt",
    "b.wav",
    "night/a.wav",
    "site-1/a.wav",
    "site-1/night/a.wav",
    "site-1/night/b.flac",
    "site-1/night/late/c.wav",
    "site-10/a.wav",
    "site-2/b.wav",
    "site-2/night.wav/d.wav",
    "site[1]/e.wav",
    ".hidden/a.wav",
    "site-2/.hidden/a.wav",
    "site-2/.a.wav",
]

# Patterns, each with the files of TREE that it matches.
PATTERNS = {
    "*.wav": ["a.wav", "b.wav"],
    "?.wav": ["a.wav", "b.wav"],
    "*/a.wav": ["night/a.wav", "site-1/a.wav", "site-10/a.wav"],
    "site-?/a.wav": ["site-1/a.wav"],
    "site-[12]/?.wav": ["site-1/a.wav", "site-2/b.wav"],
    "site-[!1]/*.wav": ["site-2/b.wav", "site-2/night.wav/d.wav"],
    "site-1*/a.wav": ["site-1/a.wav", "site-10/a.wav"],
    "site-[0-9][0-9]": ["site-10/a.wav"],
    "site-[2]": ["site-2/b.wav", "site-2/night.wav/d.wav"],
    "**/a.wav": ["a.wav", "night/a.wav", "site-1/a.wav", "site-1/night/a.wav", "site-10/a.wav"],
    "**/night/*.wav": ["night/a.wav", "site-1/night/a.wav"],
    "**/night": ["night/a.wav", "site-1/night/a.wav", "site-1/night/b.flac", "site-1/night/late/c.wav"],
    "site-1/**": ["site-1/a.wav", "site-1/night/a.wav", "site-1/night/b.flac", "site-1/night/late/c.wav"],
    "site-1/**/**/*.flac": ["site-1/night/b.flac"],
    "*/**/c.wav": ["site-1/night/late/c.wav"],
    "site[[]1]/*": ["site[1]/e.wav"],
    "site[1]/*": ["site[1]/e.wav"],  # a folder of this literal name exists
    ".hidden/*": [".hidden/a.wav"],
    "*/.hidden/*": ["site-2/.hidden/a.wav"],
    "site-2/.*.wav": ["site-2/.a.wav"],  # the pattern itself begins with a dot
    "b.**": ["b.wav"],
}
