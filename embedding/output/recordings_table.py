"""``OUTPUT/recordings.parquet``: when and where each stored recording was made, a row each.

What recorders wrote into their files is in the metadata of the shards, names are in their rows, and manifests are given
to each run. So the table can be made again from the shards, except for columns of manifests, which are taken over from
the former table. Values come from the first source that states them: a manifest, the file, the name. Nothing is
guessed, and sources that contradict each other are told.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embedding import storage
from embedding.errors import RequestError
from embedding.listing.manifest_columns import ManifestColumns
from embedding.listing.start_times import facts_of_name
from embedding.output import json_files, run_report
from embedding.output.inventory import KEY_RANGE_BYTES, Inventory, ParallelMap, map_in_threads
from embedding.output.shard_facts import facts_of
from embedding.output.shard_reading import refuse_damage
from embedding.output.shard_schema import (
    EMBED_AGAIN,
    BadShardError,
    check_form,
    check_values,
    damaged_file,
    detect_damage,
)
from embedding.output.store import Store, encode_parquet
from embedding.schema.recording_facts import FACT_NAMES, RecordingFacts

NAME = "recordings.parquet"
ADVICE = "delete it and run jobs.embed again, which makes it from what is stored"

# The columns that every table has; columns of manifests follow, as numbers where all of their values are numbers.
RECORDINGS_TABLE = pa.schema(
    [
        ("file", pa.string()),
        ("file_id", pa.int64()),
        ("recorded_at", pa.timestamp("us")),
        ("utc_offset_min", pa.int32()),
        ("latitude", pa.float64()),
        ("longitude", pa.float64()),
        ("site", pa.string()),
        ("recorder", pa.string()),
        ("gain", pa.string()),
        ("temperature_c", pa.float64()),
        ("battery_v", pa.float64()),
        ("recorded_at_from", pa.string()),
        ("contradiction", pa.string()),
    ]
)
# The columns with facts, which detections repeat.
WHEN_AND_WHERE = [name for name in RECORDINGS_TABLE.names if name not in ("file", "file_id")][:-2]

_GROUP_ROWS = 100_000
# A number as people write it: no leading zeros, which identifiers have.
_NUMBER = re.compile(r"-?(?:0|[1-9]\d{0,14})(?:\.\d+)?", re.ASCII)
_MANIFEST_FACTS = ("latitude", "longitude", "recorder", "gain", "temperature_c", "battery_v")


@dataclass(frozen=True)
class RecordingsTable:
    """The table of an output.

    Attributes:
        rows: RECORDINGS_TABLE and columns of manifests, in the order of ``file``.
        new_contradictions: Recordings that are new in the table and whose sources contradict each other, with the
            contradiction.
    """

    rows: pa.Table
    new_contradictions: list[tuple[str, str]]

    @property
    def n_with_time(self) -> int:
        """Number of recordings whose start time is known."""
        return len(self.rows) - self.rows["recorded_at"].null_count


class RecordingsById:
    """The rows of a table, found by ``file_id``."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table.sort_by("file_id").combine_chunks()
        self._ids = self._table["file_id"].to_numpy()

    def when_and_where(self, ids: NDArray[np.int64]) -> pa.Table:
        """Return the columns WHEN_AND_WHERE of recordings, null for recordings that the table lacks.

        Args:
            ids: ``file_id`` of the recordings, ``[n]``.
        """
        if not len(self._ids):
            rows = pa.array(np.zeros(len(ids), np.int64), mask=np.ones(len(ids), bool))
        else:
            position = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
            rows = pa.array(position, mask=self._ids[position] != ids)
        return self._table.select(WHEN_AND_WHERE).take(rows)


def read_recordings(store: Store, parallel_map: ParallelMap = map_in_threads) -> pa.Table:
    """Return the table of an output; the stored one where it is up to date.

    Args:
        store: The output.
        parallel_map: Calls a function for many shards.

    Raises:
        OSError: The storage failed.
        RequestError: The table or a shard is damaged.
    """
    stored = read_stored(store)
    if stored is not None and run_report.has_ended(store):
        return stored
    inventory = store.read(parallel_map=parallel_map)
    return update_recordings(inventory, stored, None, parallel_map).rows


def read_stored(store: Store) -> pa.Table | None:
    """Return the stored table; None where there is none.

    Raises:
        OSError: The storage failed.
        RequestError: The table is damaged.
    """
    uri = storage.join(store.root, NAME)
    try:
        with refuse_damage(uri, ADVICE), storage.open_stream(uri) as stream:
            table = pq.read_table(stream, use_threads=False).replace_schema_metadata(None)
            table.validate(full=True)
            _check_columns(uri, table.schema)
            return table
    except FileNotFoundError:
        return None


def is_stored(store: Store) -> bool:
    """Return whether there is a table, whatever its state."""
    return bool(storage.list_prefix(store.root, NAME))


def write_recordings(store: Store, rows: pa.Table) -> None:
    """Write the table, in one step."""
    storage.write_bytes(storage.join(store.root, NAME), encode_parquet(rows, _GROUP_ROWS))


def update_recordings(
    inventory: Inventory,
    former: pa.Table | None,
    manifests: ManifestColumns | None,
    parallel_map: ParallelMap = map_in_threads,
) -> RecordingsTable:
    """Return the table of what an output holds.

    Args:
        inventory: What the output holds.
        former: The former table; its recordings are not read again.
        manifests: The manifests of this run.
        parallel_map: Calls a function for many shards.

    Raises:
        OSError: The storage failed.
        RequestError: A shard is damaged.
    """
    # 1. Keep the rows of recordings that are still stored.
    ids = inventory.recordings().file_id
    kept = RECORDINGS_TABLE.empty_table() if former is None else former
    kept = kept.filter(pa.array(np.isin(kept["file_id"].to_numpy(), ids)))

    # 2. Read the others from their shards.
    missing = np.setdiff1d(ids, kept["file_id"].to_numpy())
    ranges = inventory.window_ranges
    is_missing = np.isin(ranges["file_id"].to_numpy(), missing)
    shards = np.unique(ranges["shard"].to_numpy()[is_missing])
    calls = [(inventory.shards[shard],) for shard in shards]
    try:
        read = list(parallel_map(read_shard_facts, calls))
    except BadShardError as error:
        raise RequestError(str(error)) from error
    added = pa.concat_tables(read) if read else _SHARD_FACTS.empty_table()
    added = added.filter(pa.array(np.isin(added["file_id"].to_numpy(), missing)))
    added = (
        added.group_by(["file_id", "file"]).aggregate([("facts", "max")]).rename_columns(["file_id", "file", "facts"])
    )

    # 3. Choose among the sources of each.
    pieces = [_rows_of(added.slice(start, _GROUP_ROWS)) for start in range(0, len(added), _GROUP_ROWS)]
    table = pa.concat_tables([kept, *pieces], promote_options="default")

    # 4. Add what the manifests say.
    if manifests is not None and manifests.tables:
        table = _with_manifests(table, manifests)
    table = table.sort_by("file")
    is_new = pa.array(np.isin(table["file_id"].to_numpy(), missing))
    told = table.filter(is_new).filter(pc.field("contradiction").is_valid())
    new_contradictions = list(zip(told["file"].to_pylist(), told["contradiction"].to_pylist(), strict=True))
    return RecordingsTable(table, new_contradictions)


_SHARD_FACTS = pa.schema([("file", pa.string()), ("file_id", pa.int64()), ("facts", pa.string())])


def read_shard_facts(uri: str) -> pa.Table:
    """Return name, identity and facts of each recording in a shard.

    Raises:
        OSError: The storage failed.
        BadShardError: The shard is damaged.
    """
    with storage.open_stream(uri, KEY_RANGE_BYTES) as stream, detect_damage(uri):
        file = pq.ParquetFile(stream)
        check_form(uri, file)
        rows = file.read(columns=["file", "file_id"], use_threads=False).replace_schema_metadata(None)
        check_values(uri, rows)
        facts = facts_of(uri, file.schema_arrow)
    distinct = rows.group_by(["file", "file_id"]).aggregate([])
    column = pa.array([facts.get(file_id, "") for file_id in distinct["file_id"].to_pylist()], pa.string())
    return distinct.append_column("facts", column).cast(_SHARD_FACTS)


def _rows_of(recordings: pa.Table) -> pa.Table:
    """Return the rows of recordings whose facts come from their files and names."""
    rows = []
    for recording in recordings.to_pylist():
        sources = _parse(recording["file"], recording["facts"])
        if (named := facts_of_name(recording["file"])) is not None:
            sources.append(named)
        rows.append({"file": recording["file"], "file_id": recording["file_id"]} | _merge(sources))
    return pa.Table.from_pylist(rows, RECORDINGS_TABLE)


def _parse(file: str, facts: str) -> list[RecordingFacts]:
    """Return facts from the metadata of a shard; impossible values are left out.

    Raises:
        RequestError: The text does not hold facts.
    """
    if not facts:
        return []
    try:
        stated = json_files.parse(list[RecordingFacts], facts.encode())
    except json_files.BadRecordError as error:
        raise RequestError(
            f"the shard of {file} is damaged (the facts of its recorder: {error}): {EMBED_AGAIN}"
        ) from None
    checked = [RecordingFacts.plausible(**asdict(each)) for each in stated]
    return [each for each in checked if each is not None]


def _merge(sources: Sequence[RecordingFacts]) -> dict[str, object]:
    """Return the values of the first source that states each, and the first contradiction among the sources."""
    values: dict[str, object] = {}
    for facts in sources:
        stated = facts.stated()
        if "recorded_at" in values:  # the offset belongs to the time of the same source
            stated.pop("utc_offset_min", None)
        elif "recorded_at" in stated:
            values["recorded_at_from"] = facts.source
        values = {name: value for name, value in stated.items() if name in FACT_NAMES} | values
    contradictions = (one.contradiction(other) for n, one in enumerate(sources) for other in sources[n + 1 :])
    values["contradiction"] = next(filter(None, contradictions), None)
    return values


def _with_manifests(table: pa.Table, manifests: ManifestColumns) -> pa.Table:
    """Return the table with the values of manifests, for the recordings that they name."""
    pieces = [
        _with_manifest_texts(table.slice(start, _GROUP_ROWS), manifests) for start in range(0, len(table), _GROUP_ROWS)
    ]
    updated = pa.concat_tables(pieces, promote_options="default")
    for number, name in enumerate(updated.column_names):
        if name not in RECORDINGS_TABLE.names:
            updated = updated.set_column(number, name, _as_numbers(updated[name]))
    return updated


def _with_manifest_texts(table: pa.Table, manifests: ManifestColumns) -> pa.Table:
    """Return some rows with the values of manifests; columns that only manifests have are texts."""
    files = table["file"].to_pylist()
    columns = manifests.values(files)
    own = {name.lower(): name for name in columns}
    facts = {name: columns.pop(own[name]) for name in ("site", *_MANIFEST_FACTS) if name in own}
    for name in [name for name in columns if name.lower() in RECORDINGS_TABLE.names]:
        del columns[name]  # recorded_at is among the times; the others are this program's own
    rows = table.select(RECORDINGS_TABLE.names).to_pylist()
    for number, row in enumerate(rows):
        _apply_manifest(row, {name: values[number] for name, values in facts.items()}, manifests)
    others = {name: table[name] for name in table.column_names if name not in RECORDINGS_TABLE.names}
    updated = pa.Table.from_pylist(rows, RECORDINGS_TABLE)
    for name in dict.fromkeys([*others, *columns]):
        former = others[name].cast(pa.string()).to_pylist() if name in others else [None] * len(files)
        given = columns.get(name, [None] * len(files))
        texts = [new if new is not None else old for new, old in zip(given, former, strict=True)]
        updated = updated.append_column(name, pa.array(texts, pa.string()))
    return updated


def _apply_manifest(row: dict[str, object], given: Mapping[str, str | None], manifests: ManifestColumns) -> None:
    """Put what the manifests say about a recording into its row."""
    file = str(row["file"])
    if given.get("site"):
        row["site"] = given["site"]
    values: dict[str, object] = {
        name: (float(text) if name not in ("recorder", "gain") else text)
        for name, text in given.items()
        if name != "site" and text and (name in ("recorder", "gain") or _NUMBER.fullmatch(text))
    }
    stated = RecordingFacts.plausible("manifest", recorded_at=manifests.starts.get(file), **values)
    if stated is None:
        return
    source = str(row["recorded_at_from"] or "recording")
    before = RecordingFacts.plausible(source, **{name: row[name] for name in FACT_NAMES})
    merged = _merge([stated] if before is None else [stated, before])
    if before is None or source == "manifest":
        merged["contradiction"] = row["contradiction"]  # a corrected manifest does not contradict the former one
    row |= {name: value for name, value in merged.items() if value is not None}
    if stated.recorded_at is not None:
        row["utc_offset_min"] = stated.utc_offset_min


def _as_numbers(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column as numbers if all of its values are numbers, otherwise as texts."""
    values = texts.drop_null().unique().to_pylist()
    if values and all(_NUMBER.fullmatch(value) for value in values):
        return texts.cast(pa.float64())
    return texts


def _check_columns(uri: str, schema: pa.Schema) -> None:
    """Check that a table has the columns of RECORDINGS_TABLE, and others of numbers or texts.

    Raises:
        BadShardError: It has not.
    """
    for field in RECORDINGS_TABLE:
        if schema.names.count(field.name) != 1 or schema.field(field.name).type != field.type:
            raise damaged_file(uri, f"it has no column {field.name!r} of {field.type}", ADVICE)
    for name in schema.names:
        if schema.names.count(name) != 1 or schema.field(name).type not in {*RECORDINGS_TABLE.types, pa.string()}:
            raise damaged_file(uri, f"its column {name!r} holds neither numbers nor texts", ADVICE)
