"""The files of detections.

OUTPUT/detections/NAME/*.parquet             one row per detection
OUTPUT/detections/NAME/summary.json          counts and thresholds of each class, and where they come from
OUTPUT/detections/NAME/.candidates/*.parquet with --top: the best detections of each file, from which the best of all
are chosen
"""

import hashlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from embedding import storage
from embedding.derived.derived_output import DERIVE_AGAIN, DerivedOutput
from embedding.detecting.activity import Activity, add_activity
from embedding.detecting.detections import DETECTIONS, Merging
from embedding.output.shard_reading import refuse_damage
from embedding.output.shard_schema import SETTINGS_KEY, check_values, damaged_file
from embedding.output.store import encode_parquet

DETECTIONS_FOLDER = "detections"
CANDIDATES_FOLDER = ".candidates"
SUMMARY = "summary.json"


def detections_folder(root: str, name: str) -> str:
    """Return the folder of the detections of a probe."""
    return storage.child(storage.join(root, DETECTIONS_FOLDER), name)


def derived_output(root: str, name: str, settings: str, *, has_candidates: bool) -> DerivedOutput:
    """Return the derived output of a probe's detections; ``has_candidates`` with ``--top``."""
    folder = detections_folder(root, name)
    if has_candidates:
        folder = storage.join(folder, CANDIDATES_FOLDER)
    return DerivedOutput(folder, settings, "detect", names_recordings=True, keeps_whole_files=has_candidates)


def choose_top(output: DerivedOutput, folder: str, merging: Merging) -> None:
    """Store the best detections of each label, from the candidates; detections of an earlier choice go.

    Args:
        output: The candidates.
        folder: The folder of the detections.
        merging: Says how many are kept.
    """
    best = DETECTIONS.empty_table()
    for batch in read_detections(output.folder):
        best = merging.select(pa.concat_tables([best, batch]))
    content = encode_parquet(best.replace_schema_metadata({SETTINGS_KEY: output.settings}))
    name = f"top-{hashlib.blake2b(content, digest_size=8).hexdigest()}.parquet"
    kept = storage.child(folder, name)
    storage.write_bytes(kept, content)
    _delete_own(folder, kept)


def delete_detections(root: str, name: str) -> None:
    """Delete the rows of all detections of a probe, candidates included."""
    folder = detections_folder(root, name)
    for each in (folder, storage.join(folder, CANDIDATES_FOLDER)):
        _delete_own(each)


def _delete_own(folder: str, kept: str = "") -> None:
    """Delete the files of jobs.detect in a folder, except one; files of other programs stay."""
    for uri in list(storage.list_names(folder, ".parquet")):
        if uri != kept:
            with refuse_damage(uri, DERIVE_AGAIN), storage.open_stream(uri) as stream:
                is_own = SETTINGS_KEY.encode() in (pq.read_schema(stream).metadata or {})
            if is_own:
                storage.delete(uri)


def read_detections(folder: str) -> Iterator[pa.Table]:
    """Yield the detections in each file of a folder; all of a recording's detections lie in one file.

    Raises:
        OSError: The storage failed.
        RequestError: A file is damaged.
    """
    for uri in storage.list_names(folder, ".parquet"):
        with refuse_damage(uri, DERIVE_AGAIN), storage.open_stream(uri) as stream:
            file = pq.ParquetFile(stream)
            if lacking := set(DETECTIONS.names) - set(file.schema_arrow.names):
                raise damaged_file(uri, f"it has no column {min(lacking)!r}", DERIVE_AGAIN)
            table = file.read(columns=DETECTIONS.names, use_threads=False).replace_schema_metadata(None)
            table = table.cast(DETECTIONS)
            check_values(uri, table)
        yield table


def count_activity(folder: str) -> dict[str, Activity]:
    """Return the counts of each label, in the order of the labels.

    Raises:
        OSError: The storage failed.
        RequestError: A file is damaged.
    """
    activity: dict[str, Activity] = {}
    for table in read_detections(folder):
        add_activity(table, activity)
    return dict(sorted(activity.items()))
