"""The whole flow, arranged with Ray Data.

    shards ─▶ recordings that lie in one of them, and parts of the others ─▶ recordings that lie in several

Only parts are read twice, and of a recording they are a few vectors, however many windows it has.
"""

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding.cli.terminal import Terminal
from embedding.errors import RunError, storage_failure
from embedding.output import run_report
from embedding.output.claim import LAPSE_S, hold_claim
from embedding.output.shard_reading import no_embeddings_error, open_shard
from embedding.output.store import Store
from embedding.pooling.partial_tables import COLUMNS, merged, parts_of_windows, recordings_of
from embedding.pooling.pooled_output import Plan, Pooled, complete, plan
from embedding.schema.vectors import as_embedding
from embedding.text import duration, plural


@dataclass(frozen=True)
class Outcome:
    """Number of recordings that are left out because windows are missing or repeated; and whether more may change."""

    n_left_out: int
    is_settled: bool  # no run of jobs.embed is under way or died


def pool(
    root: str, poolings: tuple[str, ...], layer: str | None, terminal: Terminal, *, verbose: bool = False
) -> Outcome:
    """Pool the vectors of the output at ``root``, of an inner layer if one is named; what is pooled already stays.

    Raises:
        RequestError: there are no embeddings, or none of that layer.
        RunError: the storage or the cluster failed; what is stored stays valid.
    """
    store = Store(root, "")
    inventory = store.read()
    settings = store.stored_settings()
    if settings is None:
        raise no_embeddings_error(root)
    pooled = Pooled(root, poolings, json.dumps(settings, sort_keys=True), store.column_of(layer))
    is_settled = run_report.is_settled(store)
    with hold_claim(
        pooled.folder,
        uuid.uuid4().hex[:12],
        lambda owner: terminal.say(
            f"another run is pooling ({owner}): watching for {LAPSE_S:.0f} s whether it is alive"
        ),
    ):
        try:
            pooled.sweep()
            recordings = inventory.recordings()
            there = complete(recordings)
            done = _forget_others(pooled, there)
            todo = np.setdiff1d(there, done)
            terminal.say(
                f"{plural(len(there), 'recording')} in {plural(len(inventory.shards), 'shard')} · "
                f"{len(done):,} pooled before, {len(todo):,} to do"
            )
            if len(todo):
                began = time.monotonic()
                _work(pooled, plan(pooled, inventory, recordings, todo), terminal, verbose=verbose)
                terminal.say(f"done in {duration(time.monotonic() - began)}")
            pooled.forget_parts()
            now = sum(map(len, pooled.files().values()))
        except OSError as error:
            raise storage_failure(error) from error
    if now != len(there):
        raise RunError(f"{now:,} recordings are pooled, of {len(there):,}: run the same command again")
    return Outcome(len(recordings.file_id) - len(there), is_settled)


def _forget_others(pooled: Pooled, there: NDArray[np.int64]) -> NDArray[np.int64]:
    """Drop rows of recordings that are no more in the embeddings, or were pooled twice; ``file_id`` of the others."""
    seen = np.empty(0, np.int64)
    for uri, ids in pooled.files().items():
        kept = np.setdiff1d(np.intersect1d(ids, there), seen)
        if len(kept) < len(ids) or not len(ids):
            pooled.keep(uri, kept)
        seen = np.concatenate([seen, kept])
    return seen


def _work(pooled: Pooled, todo: Plan, terminal: Terminal, *, verbose: bool) -> None:
    from embedding.ray_runtime.session import session
    from embedding.ray_runtime.worker_errors import raise_worker_errors

    have = pooled.parts()
    # A shard of which all is known that is still needed: by a run that did not come to its end.
    is_open = [bool(row["whole"]) or row["parts"] not in have for row in todo.shards.to_pylist()]
    with session(verbose=verbose), raise_worker_errors():
        shards = todo.shards.filter(pa.array(is_open, pa.bool_()))
        _each(pool_shards, shards, "shards", pooled, terminal, verbose=verbose)
        _each(pool_groups, todo.groups, "groups", pooled, terminal, verbose=verbose)


def _each(
    stage: Callable[..., pa.Table], rows: pa.Table, what: str, pooled: Pooled, terminal: Terminal, *, verbose: bool
) -> None:
    from embedding.ray_runtime.datasets import stream

    with terminal.counting(what, len(rows)) as count:
        for done in stream(stage, rows, pooled, verbose=verbose):
            count(len(done))


def pool_shards(shards: pa.Table, pooled: Pooled) -> pa.Table:
    """Pool shards (SHARDS): whole recordings to rows, and the others to parts."""
    for shard in shards.to_pylist():
        parts = parts_of_windows(_windows(shard["uri"], [*shard["whole"], *shard["split"]], pooled), pooled.poolings)
        is_whole = np.isin(parts["file_id"].to_numpy(), shard["whole"])
        if shard["split"]:
            pooled.write_parts(parts.filter(pa.array(~is_whole)), shard["parts"])
        if shard["whole"]:
            _write(pooled, parts.filter(pa.array(is_whole)), shard["parts"].rpartition("-")[0])
    return shards.select(["uri"])


def pool_groups(groups: pa.Table, pooled: Pooled) -> pa.Table:
    """Pool groups (GROUPS): recordings to rows, from their parts."""
    for group in groups.to_pylist():
        parts = pooled.read_parts(group["parts"], np.array(group["ids"], np.int64))
        _write(pooled, merged(parts, pooled.poolings), "several")
    return groups.select(["ids"])


def _windows(uri: str, ids: list[int], pooled: Pooled) -> pa.Table:
    with open_shard(uri, vectors=pooled.column) as shard:
        windows = as_embedding(shard.read(columns=[*COLUMNS, pooled.column], use_threads=False), pooled.column)
    is_wanted = np.isin(windows["file_id"].to_numpy(), ids)
    return windows if is_wanted.all() else windows.filter(pa.array(is_wanted))


def _write(pooled: Pooled, parts: pa.Table, stem: str) -> None:
    rows = recordings_of(parts, pooled.poolings)
    pooled.write(rows, pooled.name_of(stem, rows["file_id"].to_numpy()))
