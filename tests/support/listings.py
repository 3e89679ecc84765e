"""Archives of names, and what is listed of them."""

import csv
from pathlib import Path

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
    "Gru\u0308nspecht.wav",  # the same to the eye, as macOS writes it
    "録音 1.flac",
    "🐦.ogg",
]


def make(root: Path, *names: str) -> Path:
    """Files of one byte each; a listing does not look into them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def listing(*inputs: object, limit: int | None = None) -> Listing:
    return list_recordings([str(uri) for uri in inputs], limit)


def listed(*inputs: object, limit: int | None = None) -> list[str]:
    return listing(*inputs, limit=limit).recordings["file"].to_pylist()


def below(root: object, *inputs: object) -> list[str]:
    """Return the listed names below ``root``."""
    files = listed(*inputs or (root,))
    assert all(file.startswith(f"{root}/") for file in files)
    return [file.removeprefix(f"{root}/") for file in files]


def refusal(*inputs: object) -> str:
    """The one line with which a request is refused."""
    with pytest.raises(RequestError) as refused:
        listing(*inputs)
    message = str(refused.value)
    assert message.startswith("--input: ")
    assert "\n" not in message
    return message


def manifest(path: Path, *files: str | None, column: str = "file") -> Path:
    """A manifest with a further column; as text where ``path`` says .csv."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".csv":
        with path.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["note", column])
            writer.writerows([["it rained,\nthen not", file] for file in files])
    else:
        pq.write_table(pa.table({"note": [1] * len(files), column: pa.array(files, pa.string())}), path)
    return path


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
    "site[1]/*": ["site[1]/e.wav"],  # for it exists
    ".hidden/*": [".hidden/a.wav"],
    "*/.hidden/*": ["site-2/.hidden/a.wav"],
    "site-2/.*.wav": ["site-2/.a.wav"],  # for it says so
    "b.**": ["b.wav"],
}
