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
from embedding.detecting.detections import DETECTIONS, STORED_DETECTIONS, Merging
from embedding.output.recordings_table import WHEN_AND_WHERE, RecordingsById
from embedding.output.shard_reading import refuse_damage
from embedding.output.shard_schema import SETTINGS_KEY, check_values, damaged_file
from embedding.output.store import encode_parquet

DETECTIONS_FOLDER = "detections"
CANDIDATES_FOLDER = ".candidates"
SUMMARY = "summary.json"
# Key of the metadata of a file that has the columns of recordings.
_IS_COMPLETE = b"avex_batch.when_and_where"


def detections_folder(root: str, name: str) -> str:
    """Return the folder of the detections of a probe."""
    return storage.child(storage.join(root, DETECTIONS_FOLDER), name)


def derived_output(root: str, name: str, settings: str, *, has_candidates: bool) -> DerivedOutput:
    """Return the derived output of a probe's detections; ``has_candidates`` with ``--top``."""
    folder = detections_folder(root, name)
    if has_candidates:
        folder = storage.join(folder, CANDIDATES_FOLDER)
    return DerivedOutput(
        folder, settings, "detect", names_recordings=True, keeps_whole_files=has_candidates, holds_chosen_only=True
    )


def choose_top(output: DerivedOutput, folder: str, merging: Merging) -> None:
    """Store the best detections of each label, from the candidates; detections of an earlier choice go.

    Args:
        output: The candidates.
        folder: The folder of the detections.
        merging: Says how many are kept.
    """
    best = DETECTIONS.empty_table()
    for batch in read_detections(output.folder):
        best = merging.select(pa.concat_tables([best, batch.select(DETECTIONS.names)]))
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
    """Yield the detections in each file of a folder, a table of STORED_DETECTIONS.

    All of a recording's detections lie in one file.

    Raises:
        OSError: The storage failed.
        RequestError: A file is damaged.
    """
    for uri in storage.list_names(folder, ".parquet"):
        yield _read_file(uri)[0]


def add_when_and_where(folder: str, recordings: RecordingsById) -> dict[str, Activity]:
    """Bring the columns of the recordings up to date in each file; return the counts of each label, in their order.

    Workers do not know these columns, and those of earlier detections may have changed since: a manifest adds a site.

    Args:
        folder: The folder of the detections.
        recordings: The table of recordings.

    Raises:
        OSError: The storage failed.
        RequestError: A file is damaged.
    """
    activity: dict[str, Activity] = {}
    for uri in list(storage.list_names(folder, ".parquet")):
        table, metadata = _read_file(uri)
        facts = recordings.when_and_where(table["file_id"].to_numpy()).cast(
            pa.schema([STORED_DETECTIONS.field(name) for name in WHEN_AND_WHERE])
        )
        joined = pa.table([*table.select(DETECTIONS.names).columns, *facts.columns], schema=STORED_DETECTIONS)
        if _IS_COMPLETE not in metadata or not joined.equals(table):
            storage.write_bytes(uri, encode_parquet(joined.replace_schema_metadata(metadata | {_IS_COMPLETE: b"1"})))
        add_activity(joined, activity)
    return dict(sorted(activity.items()))


def _read_file(uri: str) -> tuple[pa.Table, dict[bytes, bytes]]:
    """Return the detections in a file, a table of STORED_DETECTIONS, and its metadata."""
    with refuse_damage(uri, DERIVE_AGAIN), storage.open_stream(uri) as stream:
        file = pq.ParquetFile(stream)
        names = file.schema_arrow.names
        if lacking := set(DETECTIONS.names) - set(names):
            raise damaged_file(uri, f"it has no column {min(lacking)!r}", DERIVE_AGAIN)
        columns = [name for name in STORED_DETECTIONS.names if name in names]
        table = file.read(columns=columns, use_threads=False).replace_schema_metadata(None)
        check_values(uri, table.select(DETECTIONS.names))
        for field in STORED_DETECTIONS:
            if field.name not in columns:
                table = table.append_column(field, pa.nulls(len(table), field.type))
        return table.select(STORED_DETECTIONS.names).cast(STORED_DETECTIONS), file.schema_arrow.metadata or {}
