"""The facts that recorders wrote into recordings, in the metadata of shards.

They are no column, because readers would come to rely on the column: ``recordings.parquet`` is for readers. The text is
JSON, {file_id: facts}, compressed with zlib, as base64; recordings without facts have no entry.
"""

import base64
import binascii
import json
import zlib
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedding.output import json_files
from embedding.output.shard_schema import damaged_file
from embedding.schema.batches import RECORDER_FACTS

FACTS_KEY = "avex_batch.recorder_facts"

# Unpacked. Facts of a recording take some 250 bytes, so these are half a million recordings in one shard.
MOST_BYTES = 128 << 20


def pack_facts(table: pa.Table) -> str:
    """Return the facts of a table's recordings as text; empty where there are none.

    Args:
        table: The columns ``file_id`` and RECORDER_FACTS.
    """
    name = RECORDER_FACTS[0]
    known = table.select(["file_id", name]).filter(pc.field(name) != "")
    pairs = known.group_by(["file_id", name]).aggregate([]).sort_by("file_id")
    if not len(pairs):
        return ""
    facts = dict(zip(map(str, pairs["file_id"].to_pylist()), pairs[name].to_pylist(), strict=True))
    return base64.b64encode(zlib.compress(json.dumps(facts).encode(), 6)).decode()


def facts_of(uri: str, schema: pa.Schema) -> dict[int, str]:
    """Return the facts in the metadata of a shard, by ``file_id``.

    Args:
        uri: The shard, for messages.
        schema: Its columns and metadata.

    Raises:
        BadShardError: The metadata does not hold facts.
    """
    text = (schema.metadata or {}).get(FACTS_KEY.encode(), b"")
    if not text:
        return {}
    try:
        unpacking = zlib.decompressobj()
        content = unpacking.decompress(base64.b64decode(text, validate=True), MOST_BYTES)
        if not unpacking.eof:
            raise damaged_file(uri, f"its facts of recorders end early, or unpack to more than {MOST_BYTES:,} bytes")
        return {int(file_id): facts for file_id, facts in json_files.parse(dict[str, str], content).items()}
    except (binascii.Error, zlib.error, json_files.BadRecordError, ValueError) as error:
        if isinstance(error, pa.ArrowInvalid):
            raise
        raise damaged_file(uri, f"its facts of recorders: {error}") from None


def look_up_facts(ids: NDArray[np.int64], facts: Mapping[int, str]) -> pa.Array:
    """Return the facts of each recording; empty where there are none.

    Args:
        ids: ``file_id`` of the recordings.
        facts: Facts by ``file_id``.
    """
    if not facts:
        return pa.repeat("", len(ids))
    distinct, position = np.unique(ids, return_inverse=True)
    return pa.array([facts.get(int(file_id), "") for file_id in distinct], pa.string()).take(pa.array(position))
