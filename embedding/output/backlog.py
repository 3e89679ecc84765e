"""A listing against what the output holds: what is done, what is left, what has changed since."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedding.output.balance import EXAMPLES_PER_KIND, Balance
from embedding.output.inventory import Each, Inventory, threads
from embedding.output.store import Store, find_hashes
from embedding.schema.batches import AUDIO_HASH, WANTED

# Recordings that are stored under another identity than the listing's: same name, other size or version.
FORMER = pa.schema(
    [
        ("file_id", pa.int64()),  # as listed now
        ("former_id", pa.int64()),
        AUDIO_HASH,  # of the former version; null where it is not known or not all of it is stored
    ]
)


def former_versions(
    listed: pa.Table, inventory: Inventory, store: Store, *, thorough: bool, each: Each = threads
) -> pa.Table:
    """FORMER rows of ``listed`` (columns of ``sources.RECORDINGS``): one for each other version that is stored of it.

    Names are read only from shards with recordings that are not listed; and only if something listed is not stored,
    or if ``thorough``: a run that ended early may have left a former version beside the present one.
    """
    if not len(inventory.spans):
        return FORMER.empty_table()
    recordings = inventory.recordings()
    ids = listed["file_id"].to_numpy()
    candidates = listed.select(["file", "file_id"])
    if not thorough:
        candidates = candidates.filter(pa.array(~recordings.present(ids)))
    is_stranger = ~np.isin(inventory.spans["file_id"].to_numpy(), ids)
    if not len(candidates) or not is_stranger.any():
        return FORMER.empty_table()
    shards = np.unique(inventory.spans["shard"].to_numpy()[is_stranger])
    versions = pa.concat_tables(each(_versions, [(store, inventory.shards[at]) for at in shards]))
    versions = versions.filter(pa.array(~np.isin(versions["former_id"].to_numpy(), ids)))
    versions = versions.group_by(["file", "former_id"]).aggregate([(AUDIO_HASH[0], "max")])
    versions = versions.join(candidates, "file", join_type="inner")
    former = versions["former_id"].to_numpy()
    whole = recordings.complete(former) & ~inventory.is_failed(former)
    former_hash = versions[f"{AUDIO_HASH[0]}_max"].combine_chunks()
    hashes = pa.array(former_hash.fill_null(0).to_numpy(), mask=~whole | former_hash.is_null().to_numpy(False))
    return pa.table([versions["file_id"], versions["former_id"], hashes], schema=FORMER)


def _versions(store: Store, uri: str) -> pa.Table:
    """The recordings of a shard: ``file``, ``former_id`` and AUDIO_HASH."""
    rows = store.read_shard(uri, ["file", "file_id"])
    distinct = rows.group_by(["file", "file_id", AUDIO_HASH[0]]).aggregate([])
    return distinct.rename_columns(["file", "former_id", AUDIO_HASH[0]])


@dataclass(frozen=True)
class Backlog:
    """What a run has to do, and what it is measured against at its end."""

    listed: pa.Table  # columns of sources.RECORDINGS
    former: pa.Table  # FORMER
    is_todo: NDArray[np.bool_]  # for each listed recording
    done_before: NDArray[np.int64]  # file_id
    failed_before: NDArray[np.int64]  # file_id, those not tried again

    @classmethod
    def of(cls, listed: pa.Table, former: pa.Table, inventory: Inventory, *, retry_failed: bool) -> "Backlog":
        ids = listed["file_id"].to_numpy()
        has_failure = inventory.is_failed(ids)
        failed = has_failure & (not retry_failed)
        complete = inventory.recordings().complete(ids) & ~has_failure
        return cls(listed, former, ~(failed | complete), ids[complete], ids[failed])

    @property
    def todo(self) -> NDArray[np.int64]:
        """``file_id`` of what is to be done."""
        ids: NDArray[np.int64] = self.listed["file_id"].to_numpy()
        return ids[self.is_todo]

    @property
    def n_changed(self) -> int:
        """Recordings to do of which another version is stored."""
        return int(np.isin(self.todo, self.former["file_id"].to_numpy()).sum())

    def is_left(self, inventory: Inventory, run_id: str | None = None) -> NDArray[np.bool_]:
        """Of each listed recording, whether it is still to be decoded.

        Args:
            run_id: not what this run has finished, one way or the other; None before it has begun.
        """
        if run_id is None:
            return self.is_todo
        ids = self.listed["file_id"].to_numpy()
        return self.is_todo & ~(inventory.recordings().complete(ids) | inventory.is_failed(ids, run_id))

    def known_hashes(self, ids: NDArray[np.int64]) -> pa.Array:
        """Of audio that need not be embedded again; null where there is none to compare with."""
        return find_hashes(ids, self._recognisable())

    def _recognisable(self) -> pa.Table:
        """FORMER rows with a hash, one per recording: with that one its audio is compared.

        Where a run that died left several, the others are not looked at; their rows must not be taken for the same.
        """
        known = self.former.filter(pc.field(AUDIO_HASH[0]).is_valid()).sort_by("former_id")
        _, first = np.unique(known["file_id"].to_numpy(), return_index=True)
        return known.take(first)

    def touched(self, unchanged_ids: set[int]) -> dict[int, int]:
        """Former to present ``file_id`` of recordings whose audio turned out to be the same."""
        rows = self._recognisable().to_pylist()
        return {row["former_id"]: row["file_id"] for row in rows if row["file_id"] in unchanged_ids}

    def superseded(self, inventory: Inventory) -> NDArray[np.int64]:
        """Former identities whose rows can go: the present version is stored, or is known to hold no more."""
        ids = self.former["file_id"].to_numpy()
        known = inventory.failures.filter(~pc.field("kind").isin(["io", "crash"]))  # which say nothing of the audio
        unusable = np.isin(ids, known["file_id"].to_numpy())
        return self.former["former_id"].to_numpy()[inventory.recordings().complete(ids) | unusable]

    def balance(self, inventory: Inventory, unchanged_ids: set[int]) -> Balance:
        """The books, from what the output holds now."""
        recordings = inventory.recordings()
        complete = self.todo[recordings.complete(self.todo) & ~inventory.is_failed(self.todo)]
        unchanged = np.isin(complete, np.fromiter(unchanged_ids, np.int64, len(unchanged_ids)))
        former = self.former["file_id"].to_numpy()
        done = np.concatenate([self.done_before, complete])
        expected, present, repeated = recordings.windows_of(done)
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
        )


def left(works: Sequence[tuple[Backlog, Inventory]], run_id: str | None = None) -> pa.Table:
    """What is still to be decoded for any of several targets, each with what its output holds.

    Columns of the listing, which is the same for all; and WANTED, ``stored`` and ``known_hash``, see ``decode``.
    """
    listed = works[0][0].listed
    is_left = [work.is_left(inventory, run_id) for work, inventory in works]
    for_any = np.logical_or.reduce(is_left)
    table = listed if for_any.all() else listed.filter(pa.array(for_any))  # else 100 MB per 10⁶, for nothing
    ids = table["file_id"].to_numpy()
    wanted = np.zeros(len(ids), np.uint16)
    for target, of_target in enumerate(is_left):
        wanted |= of_target[for_any].astype(np.uint16) << np.uint16(target)
    windows = [_windows_stored(inventory, ids) for _, inventory in works]
    hashes = [work.known_hashes(ids) for work, _ in works]
    return (
        table.append_column(WANTED[0], pa.array(wanted))
        .append_column("stored", _listed_by_target(windows))
        .append_column("known_hash", _listed_by_target(hashes))
    )


def n_wanted(todo: pa.Table) -> int:
    """How often a recording of ``left`` is wanted, all targets together."""
    return int(np.bitwise_count(todo[WANTED[0]].to_numpy()).sum())


def _listed_by_target(columns: list[pa.Array]) -> pa.Array:
    """One column of lists, null where all of ``columns`` are, as in nearly all rows."""
    kind = pa.list_(columns[0].type)
    known = np.logical_or.reduce([column.is_valid().to_numpy(zero_copy_only=False) for column in columns])
    if not known.any():
        return pa.nulls(len(known), kind)
    some = pa.array(known)
    rows = zip(*(column.filter(some).to_pylist() for column in columns), strict=True)
    return pa.array([list(row) for row in rows], kind).take(pa.array(np.cumsum(known) - 1, mask=~known))


def _windows_stored(inventory: Inventory, ids: NDArray[np.int64]) -> pa.Array:
    """Of each recording the windows that are stored; null, as for nearly all, where it has not been begun."""
    is_begun = inventory.recordings().present(ids)
    if not is_begun.any():
        return pa.nulls(len(ids), pa.list_(pa.int32()))
    windows = pa.array([inventory.windows(i) for i in ids[is_begun]], pa.list_(pa.int32()))
    return windows.take(pa.array(np.cumsum(is_begun) - 1, mask=~is_begun))


def failures_by_kind(failures: pa.Table, ids: NDArray[np.int64] | None = None) -> dict[str, dict[str, object]]:
    """Kind → number of recordings and some examples, the most frequent kind first; only of ``ids``, if given."""
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
