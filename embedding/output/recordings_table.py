"""``OUTPUT/recordings.parquet``: when and where each stored recording was made, a row each.

What recorders wrote into their files is in the metadata of the shards, names are in their rows, and manifests are given
to each run. So the table can be made again from the shards, except for columns of manifests, which are taken over from
the former table. Values come from the first source that states them: a manifest, the file, the name. Nothing is
guessed, and sources that contradict each other are told.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

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
# Columns that belong together: the start time and its source.
_OF_THE_TIME = ("recorded_at", "utc_offset_min", "recorded_at_from")
_MANIFEST_FACTS = ("latitude", "longitude", "recorder", "gain", "temperature_c", "battery_v")


@dataclass(frozen=True)
class RecordingsTable:
    """The table of an output.

    Attributes:
        rows: RECORDINGS_TABLE and columns of manifests, in the order of ``file``.
        new_contradictions: Recordings with a contradiction that their former rows do not have, and the contradiction.
    """

    rows: pa.Table
    new_contradictions: list[tuple[str, str]]


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
    # 1. Keep the rows of recordings that are still stored, and that no manifest names.
    ids = inventory.recordings().file_id
    before = RECORDINGS_TABLE.empty_table() if former is None else former
    kept = before.filter(pa.array(np.isin(before["file_id"].to_numpy(), ids)))
    for manifest in manifests.tables if manifests is not None else ():
        is_named = pc.is_in(kept["file"], manifest["file"].combine_chunks())  # type: ignore[attr-defined]
        kept = kept.filter(pc.invert(is_named))  # type: ignore[attr-defined]

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

    # 3. Choose among the sources of each; a former row fills what is not stated now, such as the site of a manifest.
    replaced = before.filter(pa.array(np.isin(before["file_id"].to_numpy(), missing)))
    pieces = []
    for start in range(0, len(added), _GROUP_ROWS):
        rows = _rows_of(added.slice(start, _GROUP_ROWS), manifests)
        pieces.append(_filled(rows, replaced))
    table = _joined([kept, *pieces]).sort_by("file")

    # 4. Find contradictions that are new.
    told = table.filter(pc.field("contradiction").is_valid())
    known = before.filter(pc.field("contradiction").is_valid())
    told_before = set(zip(known["file_id"].to_pylist(), known["contradiction"].to_pylist(), strict=True))
    new_contradictions = [
        (file, contradiction)
        for file, file_id, contradiction in zip(
            *(told[name].to_pylist() for name in ("file", "file_id", "contradiction")), strict=True
        )
        if (file_id, contradiction) not in told_before
    ]
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


def _rows_of(recordings: pa.Table, manifests: ManifestColumns | None) -> pa.Table:
    """Return the rows of some recordings, with the columns of manifests as texts.

    Args:
        recordings: ``file``, ``file_id`` and ``facts``.
        manifests: The manifests of the run.
    """
    files = recordings["file"].to_pylist()
    columns = {} if manifests is None else manifests.values(files)
    own = {name.lower(): name for name in columns}
    given = {name: columns.pop(own[name]) for name in ("site", *_MANIFEST_FACTS) if name in own}
    rows = []
    for number, recording in enumerate(recordings.to_pylist()):
        file = recording["file"]
        sources = _parse(file, recording["facts"])
        if (named := facts_of_name(file)) is not None:
            sources.append(named)
        values = {name: texts[number] for name, texts in given.items()}
        start = None if manifests is None else manifests.starts.get(file)
        if (stated := _facts_of_manifest(start, values)) is not None:
            sources.insert(0, stated)
        row = {"file": file, "file_id": recording["file_id"], "site": values.get("site")}
        rows.append(row | _merge(sources))
    table = pa.Table.from_pylist(rows, RECORDINGS_TABLE)
    for name, texts in columns.items():
        if name.lower() not in RECORDINGS_TABLE.names:  # recorded_at is among the times; others are this program's own
            table = table.append_column(name, pa.array(texts, pa.string()))
    return table


def _facts_of_manifest(start: datetime | None, given: Mapping[str, str | None]) -> RecordingFacts | None:
    """Return what the manifests say about a recording; a number that cannot be read is unknown."""
    values: dict[str, object] = {"recorded_at": start}
    for name in _MANIFEST_FACTS:
        text = (given.get(name) or "").strip()
        values[name] = text if name in ("recorder", "gain") else _number_of(text)
    return RecordingFacts.plausible("manifest", **values)


def _number_of(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _filled(rows: pa.Table, former: pa.Table) -> pa.Table:
    """Return rows with the values of their former rows where they have none.

    A time of an earlier manifest stays, too; other times and contradictions are those of the present sources.
    """
    position = pc.index_in(rows["file_id"], former["file_id"].combine_chunks())  # type: ignore[attr-defined]
    before = former.take(position)
    is_now, was = (pc.equal(table["recorded_at_from"], "manifest") for table in (rows, before))  # type: ignore[attr-defined]
    stays = pc.and_not(was.fill_null(False), is_now.fill_null(False))  # type: ignore[attr-defined]
    for name in _OF_THE_TIME:
        column = pc.if_else(stays, before[name], rows[name])  # type: ignore[attr-defined]
        rows = rows.set_column(rows.column_names.index(name), name, column)
    for name in former.column_names:
        if name in ("file", "file_id", *_OF_THE_TIME, "contradiction"):
            continue
        if name not in rows.column_names:
            rows = rows.append_column(name, before[name])
            continue
        column = before[name] if before[name].type == rows[name].type else _as_texts(before[name])
        filled = pc.coalesce(rows[name], column)  # type: ignore[attr-defined]
        rows = rows.set_column(rows.column_names.index(name), name, filled)
    return rows


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Return the rows of tables whose further columns are numbers in some and texts in others."""
    names = dict.fromkeys(name for table in tables for name in table.column_names)
    for name in [name for name in names if name not in RECORDINGS_TABLE.names]:
        columns = [table[name] if name in table.column_names else pa.nulls(len(table)) for table in tables]
        as_numbers = [column if pa.types.is_floating(column.type) else _as_numbers(column) for column in columns]
        if not all(pa.types.is_floating(column.type) or column.null_count == len(column) for column in as_numbers):
            as_numbers = [_as_texts(column) for column in columns]
        kind = next((c.type for c in as_numbers if c.null_count < len(c)), pa.string())
        tables = [
            _with_column(
                table, name, column.cast(kind) if column.null_count < len(column) else pa.nulls(len(table), kind)
            )
            for table, column in zip(tables, as_numbers, strict=True)
        ]
    return pa.concat_tables([table.select(list(names)) for table in tables])


def _with_column(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    if name not in table.column_names:
        return table.append_column(name, column)
    return table.set_column(table.column_names.index(name), name, column)


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


def _as_numbers(texts: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Return a column of texts as numbers if all of its values are numbers."""
    values = texts.drop_null().unique().to_pylist()
    if values and all(_NUMBER.fullmatch(str(value)) for value in values):
        return texts.cast(pa.float64())
    return texts


def _as_texts(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Return a column as texts; whole numbers without a decimal point or an exponent."""
    if not pa.types.is_floating(column.type):
        return column.cast(pa.string())
    texts = [None if value is None else repr(value).removesuffix(".0") for value in column.to_pylist()]
    return pa.array(texts, pa.string())


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
