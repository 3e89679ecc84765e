"""The backlog of a run: what of a listing is stored, what is left to do, and what has changed since."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedding.output.balance import EXAMPLES_PER_KIND, Balance
from embedding.output.inventory import Inventory, ParallelMap, map_in_threads
from embedding.output.shard_reading import look_up_hashes
from embedding.output.store import Store
from embedding.schema.batches import AUDIO_HASH
from embedding.schema.recordings import PENDING, RECORDINGS
from embedding.schema.targets import TargetColumn

# Recordings that are stored under another identity than the one listed: same name, other size or version.
FORMER = pa.schema(
    [
        ("file_id", pa.int64()),  # as listed now
        ("former_id", pa.int64()),
        AUDIO_HASH,  # of the former version; null where the hash is unknown or windows of the version are missing
    ]
)


def former_versions(
    listed: pa.Table,
    inventory: Inventory,
    store: Store,
    *,
    thorough: bool,
    parallel_map: ParallelMap = map_in_threads,
) -> pa.Table:
    """Return the former versions of listed recordings that an output holds.

    Names are read only from shards with recordings that are not listed, and only if something listed is not stored.

    Args:
        listed: The columns of RECORDINGS.
        inventory: The inventory of the output.
        store: The output.
        thorough: Read the names in any case. A run that ended early may have left a former version beside the present
            version.
        parallel_map: Calls a function for many shards.

    Returns:
        A table of FORMER, with a row for each former version.
    """
    if not len(inventory.window_ranges):
        return FORMER.empty_table()
    recordings = inventory.recordings()
    ids = listed["file_id"].to_numpy()
    candidates = listed.select(["file", "file_id"])
    if not thorough:
        candidates = candidates.filter(pa.array(~recordings.is_present(ids)))
    is_unlisted = ~np.isin(inventory.window_ranges["file_id"].to_numpy(), ids)
    if not len(candidates) or not is_unlisted.any():
        return FORMER.empty_table()
    shards = np.unique(inventory.window_ranges["shard"].to_numpy()[is_unlisted])
    versions = pa.concat_tables(parallel_map(_versions, [(store, inventory.shards[shard]) for shard in shards]))
    versions = versions.filter(pa.array(~np.isin(versions["former_id"].to_numpy(), ids)))
    versions = versions.group_by(["file", "former_id"]).aggregate([(AUDIO_HASH[0], "max")])
    versions = versions.join(candidates, "file", join_type="inner")
    former = versions["former_id"].to_numpy()
    is_whole = recordings.is_complete(former) & ~inventory.is_failed(former)
    former_hash = versions[f"{AUDIO_HASH[0]}_max"].combine_chunks()
    hashes = pa.array(former_hash.fill_null(0).to_numpy(), mask=~is_whole | former_hash.is_null().to_numpy(False))
    return pa.table([versions["file_id"], versions["former_id"], hashes], schema=FORMER)


def _versions(store: Store, uri: str) -> pa.Table:
    """Return the recordings of a shard: ``file``, ``former_id`` and AUDIO_HASH."""
    rows = store.read_shard(uri, ["file", "file_id"])
    distinct = rows.group_by(["file", "file_id", AUDIO_HASH[0]]).aggregate([])
    return distinct.rename_columns(["file", "former_id", AUDIO_HASH[0]])


@dataclass(frozen=True)
class Backlog:
    """The work of a run for one target.

    Attributes:
        listed: The columns of RECORDINGS.
        former: Former versions of listed recordings, a table of FORMER.
        is_todo: For each listed recording, whether the run has to do it.
        done_before: ``file_id`` of recordings that were complete before the run.
        failed_before: ``file_id`` of recordings that failed before and are not tried again.
    """

    listed: pa.Table
    former: pa.Table
    is_todo: NDArray[np.bool_]
    done_before: NDArray[np.int64]
    failed_before: NDArray[np.int64]

    @classmethod
    def of(cls, listed: pa.Table, former: pa.Table, inventory: Inventory, *, retry_failed: bool) -> "Backlog":
        """Compare a listing with an inventory.

        Args:
            listed: The columns of RECORDINGS.
            former: The former versions of listed recordings.
            inventory: The inventory of the output.
            retry_failed: Recordings that failed before are to do again.
        """
        ids = listed["file_id"].to_numpy()
        has_failure = inventory.is_failed(ids)
        failed = has_failure & (not retry_failed)
        complete = inventory.recordings().is_complete(ids) & ~has_failure
        return cls(listed, former, ~(failed | complete), ids[complete], ids[failed])

    @property
    def todo(self) -> NDArray[np.int64]:
        """``file_id`` of the recordings to do."""
        ids: NDArray[np.int64] = self.listed["file_id"].to_numpy()
        return ids[self.is_todo]

    @property
    def n_changed(self) -> int:
        """Number of recordings to do that have a former version in the output."""
        return int(np.isin(self.todo, self.former["file_id"].to_numpy()).sum())

    def is_left(self, inventory: Inventory, run_id: str | None = None) -> NDArray[np.bool_]:
        """Return for each listed recording whether it is still to be decoded.

        Args:
            inventory: The inventory of the output now.
            run_id: Leave out recordings that this run has completed or recorded as failed; None before the run began.
        """
        if run_id is None:
            return self.is_todo
        ids = self.listed["file_id"].to_numpy()
        return self.is_todo & ~(inventory.recordings().is_complete(ids) | inventory.is_failed(ids, run_id))

    def known_hashes(self, ids: NDArray[np.int64]) -> pa.Array:
        """Return for each of ``ids`` the hash of its former version's audio; null where none is known."""
        return look_up_hashes(ids, self._comparable())

    def _comparable(self) -> pa.Table:
        """Return the rows of FORMER with a hash, one per recording.

        A run that died may have left several former versions. The audio is compared with one of them, and rows of the
        others must not be taken for the same audio.
        """
        known = self.former.filter(pc.field(AUDIO_HASH[0]).is_valid()).sort_by("former_id")
        _, first = np.unique(known["file_id"].to_numpy(), return_index=True)
        return known.take(first)

    def new_ids(self, unchanged_ids: set[int]) -> dict[int, int]:
        """Return former and present ``file_id`` of recordings whose audio is unchanged."""
        rows = self._comparable().to_pylist()
        return {row["former_id"]: row["file_id"] for row in rows if row["file_id"] in unchanged_ids}

    def superseded(self, inventory: Inventory) -> NDArray[np.int64]:
        """Return former identities whose rows can be removed.

        The present version is complete then, or its audio is known to be unusable.
        """
        ids = self.former["file_id"].to_numpy()
        # A failure of the kinds io and crash says nothing about the audio.
        known = inventory.failures.filter(~pc.field("kind").isin(["io", "crash"]))
        is_unusable = np.isin(ids, known["file_id"].to_numpy())
        return self.former["former_id"].to_numpy()[inventory.recordings().is_complete(ids) | is_unusable]

    def balance(self, inventory: Inventory, unchanged_ids: set[int]) -> Balance:
        """Return the balance of the output now.

        Args:
            inventory: The inventory of the output now.
            unchanged_ids: ``file_id`` of recordings whose audio was found to be unchanged.
        """
        recordings = inventory.recordings()
        complete = self.todo[recordings.is_complete(self.todo) & ~inventory.is_failed(self.todo)]
        unchanged = np.isin(complete, np.fromiter(unchanged_ids, np.int64, len(unchanged_ids)))
        former = self.former["file_id"].to_numpy()
        done = np.concatenate([self.done_before, complete])
        expected, present, repeated = recordings.count_windows(done)
        return Balance(
            listed=len(self.listed),
            already_done=len(self.done_before) + int(unchanged.sum()),
            embedded=int((~unchanged).sum()),
            failed=len(self.failed_before) + int(inventory.is_failed(self.todo).sum()),
            failed_before=len(self.failed_before),
            changed=int(np.isin(complete[~unchanged], former).sum()),
            unchanged=int(unchanged.sum()),
            windows_expected=expected,
            windows_stored=present,
            windows_repeated=repeated,
            failures=failures_by_kind(inventory.failures, self.listed["file_id"].to_numpy()),
            output=inventory.totals(),
            failed_examples=self._failed_examples(inventory),
        )

    def _failed_examples(self, inventory: Inventory) -> tuple[str, ...]:
        is_listed = np.isin(inventory.failures["file_id"].to_numpy(), self.listed["file_id"].to_numpy())
        rows = inventory.failures.filter(pa.array(is_listed)).slice(0, 64).to_pylist()
        examples = {row["file_id"]: f"{PurePath(row['file']).name} ({row['kind']})" for row in rows}
        return tuple(examples.values())[:EXAMPLES_PER_KIND]


def pending_recordings(targets: Sequence[tuple[Backlog, Inventory]], run_id: str | None = None) -> pa.Table:
    """Return the recordings that are still to be decoded for any target.

    Args:
        targets: Backlog and inventory of each target; all backlogs have the same listing.
        run_id: Leave out recordings that this run has finished; None before the run began.

    Returns:
        A table of PENDING.
    """
    listed = targets[0][0].listed
    is_left = [backlog.is_left(inventory, run_id) for backlog, inventory in targets]
    is_pending = np.logical_or.reduce(is_left)
    # A filter that keeps all rows would copy 100 MB per 10⁶ recordings.
    table = listed if is_pending.all() else listed.filter(pa.array(is_pending))
    ids = table["file_id"].to_numpy()
    needed = TargetColumn.from_members([rows[is_pending] for rows in is_left])
    stored = [_windows_stored(inventory, ids) for _, inventory in targets]
    hashes = [backlog.known_hashes(ids) for backlog, _ in targets]
    more = [needed.as_array(), _listed_by_target(stored), _listed_by_target(hashes)]
    return pa.table([*(table[name] for name in RECORDINGS.names), *more], PENDING)


def _listed_by_target(columns: list[pa.Array]) -> pa.Array:
    """Return one column of lists, null where all of ``columns`` are, as in nearly all rows."""
    kind = pa.list_(columns[0].type)
    known = np.logical_or.reduce([column.is_valid().to_numpy(zero_copy_only=False) for column in columns])
    if not known.any():
        return pa.nulls(len(known), kind)
    some = pa.array(known)
    rows = zip(*(column.filter(some).to_pylist() for column in columns), strict=True)
    return pa.array([list(row) for row in rows], kind).take(pa.array(np.cumsum(known) - 1, mask=~known))


def _windows_stored(inventory: Inventory, ids: NDArray[np.int64]) -> pa.Array:
    """Return for each recording the indices of its stored windows; null, as for nearly all, where none is stored."""
    is_begun = inventory.recordings().is_present(ids)
    if not is_begun.any():
        return pa.nulls(len(ids), pa.list_(pa.int32()))
    windows = pa.array([inventory.window_indices(i) for i in ids[is_begun]], pa.list_(pa.int32()))
    return windows.take(pa.array(np.cumsum(is_begun) - 1, mask=~is_begun))


def failures_by_kind(failures: pa.Table, ids: NDArray[np.int64] | None = None) -> dict[str, dict[str, object]]:
    """Return for each kind of failure the number of recordings and some examples, the most frequent kind first.

    Args:
        failures: Rows of failures.
        ids: Count only these recordings.
    """
    if ids is not None:
        failures = failures.filter(pa.array(np.isin(failures["file_id"].to_numpy(), ids)))
    kinds: dict[str, dict[str, object]] = {}
    for kind in failures["kind"].unique().to_pylist():
        rows = failures.filter(pc.field("kind") == kind)
        some = rows.slice(0, EXAMPLES_PER_KIND).to_pylist()
        kinds[kind] = {
            "recordings": len(rows["file_id"].unique()),
            "examples": [f"{row['file']}: {row['message']}" for row in some],
        }
    return dict(sorted(kinds.items(), key=lambda item: -int(str(item[1]["recordings"]))))
