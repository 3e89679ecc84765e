"""Pooling of an output to one row per recording, with Ray Data.

    1. read what is stored, and the settings of the embeddings
    2. claim the pooled output
    3. drop outdated rows; complete recordings without a row are the backlog
    4. pool the backlog:
         shards ─▶ rows of recordings that lie in one shard, and partial results of the others
         groups ─▶ rows of recordings that lie in several shards, from their partial results
    5. delete the partial results, and count the rows

Only partial results are read twice: a few vectors per recording, however many windows it has.
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
from embedding.pooling.partial_tables import SHARD_COLUMNS, make_partials, merge_partials, pool_partials
from embedding.pooling.pooled_output import (
    PooledOutput,
    PoolingBacklog,
    complete_recordings,
    file_stem,
    find_backlog,
)
from embedding.schema.vectors import as_embedding
from embedding.text import duration, plural


@dataclass(frozen=True)
class PoolingOutcome:
    """The outcome of pooling.

    Attributes:
        n_left_out: Number of recordings that are left out because windows are missing or repeated.
        is_settled: No run of jobs.embed is in progress, and the last one has not died; otherwise rows may be outdated.
    """

    n_left_out: int
    is_settled: bool


def pool(
    root: str, poolings: tuple[str, ...], layer: str | None, terminal: Terminal, *, verbose: bool = False
) -> PoolingOutcome:
    """Pool the vectors of an output; recordings that are pooled already are not pooled again.

    Args:
        root: Directory or prefix of the output.
        poolings: Names of poolings.
        layer: The inner layer whose vectors are pooled; None for the output of the model.
        terminal: Prints progress.
        verbose: Print the log lines of Ray.

    Raises:
        RequestError: There are no embeddings, or none of the layer, or another run holds the pooled output.
        RunError: The storage or the cluster failed; what is stored stays valid.
    """
    # 1. Read what is stored.
    store = Store(root, "")
    inventory = store.read()
    settings = store.stored_settings()
    if settings is None:
        raise no_embeddings_error(root)
    output = PooledOutput(root, poolings, json.dumps(settings, sort_keys=True), store.column_of(layer))
    is_settled = run_report.is_settled(store)

    # 2. Claim the pooled output.
    with hold_claim(
        output.folder,
        uuid.uuid4().hex[:12],
        lambda holder: terminal.say(
            f"another run is pooling ({holder}): waiting up to {LAPSE_S:.0f} s for a sign of life"
        ),
    ):
        try:
            # 3. Drop outdated rows, and find the backlog.
            output.sweep()
            recordings = inventory.recordings()
            complete = complete_recordings(recordings)
            pooled = _drop_outdated_rows(output, complete)
            to_pool = np.setdiff1d(complete, pooled)
            terminal.say(
                f"{plural(len(complete), 'recording')} in {plural(len(inventory.shards), 'shard')} · "
                f"{len(pooled):,} pooled before, {len(to_pool):,} to do"
            )

            # 4. Pool the backlog.
            if len(to_pool):
                start_s = time.monotonic()
                backlog = find_backlog(output, inventory, recordings, to_pool)
                _pool_backlog(output, backlog, terminal, verbose=verbose)
                terminal.say(f"done in {duration(time.monotonic() - start_s)}")

            # 5. Delete the partial results, and count the rows.
            output.delete_partials()
            n_pooled = sum(map(len, output.read_file_ids().values()))
        except OSError as error:
            raise storage_failure(error) from error
    if n_pooled != len(complete):
        raise RunError(f"{n_pooled:,} of {len(complete):,} recordings are pooled: run the same command again")
    return PoolingOutcome(len(recordings.file_id) - len(complete), is_settled)


def _drop_outdated_rows(output: PooledOutput, complete: NDArray[np.int64]) -> NDArray[np.int64]:
    """Drop rows of recordings that are not complete any more, and repeated rows; return the ``file_id`` that stay."""
    pooled = np.empty(0, np.int64)
    for uri, file_ids in output.read_file_ids().items():
        kept = np.setdiff1d(np.intersect1d(file_ids, complete), pooled)
        if len(kept) < len(file_ids) or not len(file_ids):
            output.keep_rows(uri, kept)
        pooled = np.concatenate([pooled, kept])
    return pooled


def _pool_backlog(output: PooledOutput, backlog: PoolingBacklog, terminal: Terminal, *, verbose: bool) -> None:
    from embedding.ray_runtime.session import session  # Ray takes seconds to import
    from embedding.ray_runtime.worker_errors import raise_worker_errors

    # A shard is done if a run that ended early has stored its partial results, and no other recordings lie in it.
    stored = output.list_partials()
    is_open = [bool(task["whole"]) or task["partials"] not in stored for task in backlog.shards.to_pylist()]
    shards = backlog.shards.filter(pa.array(is_open, pa.bool_()))
    with session(verbose=verbose), raise_worker_errors():
        _run_tasks(pool_shards, shards, "shards", output, terminal, verbose=verbose)
        _run_tasks(pool_groups, backlog.groups, "groups", output, terminal, verbose=verbose)


def _run_tasks(
    stage: Callable[..., pa.Table],
    tasks: pa.Table,
    noun: str,
    output: PooledOutput,
    terminal: Terminal,
    *,
    verbose: bool,
) -> None:
    """Run a stage over its tasks on all nodes, with a progress bar."""
    from embedding.ray_runtime.datasets import stream

    with terminal.counting(noun, len(tasks)) as count:
        for done in stream(stage, tasks, output, verbose=verbose):
            count(len(done))


def pool_shards(shards: pa.Table, output: PooledOutput) -> pa.Table:
    """Pool some shards: whole recordings to rows, and split recordings to partial results.

    Args:
        shards: A table of SHARD_TASKS.
        output: The pooled output.

    Returns:
        A row for each shard that is done.
    """
    for task in shards.to_pylist():
        windows = _read_windows(task["uri"], [*task["whole"], *task["split"]], output.column)
        partials = make_partials(windows, output.poolings)
        is_whole = np.isin(partials["file_id"].to_numpy(), task["whole"])
        if task["split"]:
            output.write_partials(partials.filter(pa.array(~is_whole)), task["partials"])
        if task["whole"]:
            _write_rows(output, partials.filter(pa.array(is_whole)), file_stem(task["uri"]))
    return shards.select(["uri"])


def pool_groups(groups: pa.Table, output: PooledOutput) -> pa.Table:
    """Pool some groups of split recordings to rows, from their partial results.

    Args:
        groups: A table of GROUP_TASKS.
        output: The pooled output.

    Returns:
        A row for each group that is done.
    """
    for task in groups.to_pylist():
        partials = output.read_partials(task["partials"], task["file_ids"])
        _write_rows(output, merge_partials(partials, output.poolings), "several")
    return groups.select(["file_ids"])


def _read_windows(uri: str, file_ids: list[int], column: str) -> pa.Table:
    """Return the windows of some recordings in a shard, with the vectors of ``column`` as ``embedding``."""
    with open_shard(uri, vectors=column) as shard:
        windows = as_embedding(shard.read(columns=[*SHARD_COLUMNS, column], use_threads=False), column)
    is_of_recordings = np.isin(windows["file_id"].to_numpy(), file_ids)
    return windows if is_of_recordings.all() else windows.filter(pa.array(is_of_recordings))


def _write_rows(output: PooledOutput, partials: pa.Table, prefix: str) -> None:
    rows = pool_partials(partials, output.poolings)
    output.write(rows, output.file_name(prefix, rows["file_id"].to_numpy()))
