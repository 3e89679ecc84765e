"""Rows derived from the windows of each recording, with Ray Data.

    1. read what is stored
    2. claim the derived output
    3. drop outdated rows; complete recordings that are not done are the backlog
    4. do the backlog:
         shards ─▶ rows of recordings that lie in one shard, and partial results of the others
         groups ─▶ rows of recordings that lie in several shards, from their partial results
    5. delete the partial results

Only partial results are read twice.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding.cli.terminal import Terminal
from embedding.derived.backlog import Backlog, complete_recordings, find_backlog
from embedding.derived.derived_output import DerivedOutput, file_stem
from embedding.errors import RunError, storage_failure
from embedding.output import run_report
from embedding.output.claim import LAPSE_S, hold_claim
from embedding.output.inventory import digest_of_keys, find_window_ranges, map_in_threads
from embedding.output.shard_reading import open_shard, refuse_damage
from embedding.output.shard_schema import EMBED_AGAIN, check_values
from embedding.output.store import Store
from embedding.text import duration, plural


class Derivation(Protocol):
    """The computation of rows from windows; picklable. Partial results have a column ``file_id``."""

    @property
    def columns(self) -> Sequence[str]:
        """Columns of the shards to read; ``file_id`` is one of them."""
        ...

    @property
    def vectors(self) -> str:
        """The column of vectors that each shard must have."""
        ...

    @property
    def participle(self) -> str:
        """A word for messages: recordings are ``pooled``."""
        ...

    def make_partials(self, windows: pa.Table) -> pa.Table:
        """Return the partial results of some recordings from their windows in one shard.

        Raises:
            pa.ArrowInvalid: The windows are damaged.
        """
        ...

    def finish(self, partials: pa.Table) -> pa.Table:
        """Return the rows of recordings from their partial results of all shards in which they lie, in any order."""
        ...


@dataclass(frozen=True)
class PartialsOfShards:
    """Makes the partial results of shards while they are written, so that their vectors are not read again.

    Attributes:
        output: The derived output.
        derivation: The computation.
    """

    output: DerivedOutput
    derivation: Derivation

    def __call__(self, windows: pa.Table, stem: str) -> None:
        """Store the partial results of one shard.

        Args:
            windows: Its windows.
            stem: Name of the shard, without suffix.
        """
        partials = self.derivation.make_partials(windows.select(list(self.derivation.columns)))
        self.output.write_shard_partials(partials, stem, digest_of_keys(find_window_ranges(windows, 0)))


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run.

    Attributes:
        n_done: Number of recordings that are done, before or now.
        n_left_out: Number of recordings that are left out because windows are missing or repeated.
        is_settled: No run of jobs.embed is in progress, and the last one has not died; otherwise rows may be outdated.
    """

    n_done: int
    n_left_out: int
    is_settled: bool

    def refuse_incomplete(self, job: str) -> None:
        """Raise an error if rows are missing or may be outdated.

        Args:
            job: Name of the job, for the message.

        Raises:
            RunError: Recordings were left out, or jobs.embed has not ended.
        """
        if self.n_left_out:
            raise RunError(
                f"{plural(self.n_left_out, 'recording')} left out, because windows are missing or repeated: run "
                f"jobs.embed again, then jobs.{job}"
            )
        if not self.is_settled:
            raise RunError(
                "a run of jobs.embed is in progress or has died: recordings that changed may have rows of both "
                f"versions; run jobs.{job} again after jobs.embed has ended"
            )


def derive(
    root: str,
    output: DerivedOutput,
    derivation: Derivation,
    terminal: Terminal,
    *,
    chosen: NDArray[np.int64] | None = None,
    on_claimed: Callable[[], None] = lambda: None,
    verbose: bool = False,
) -> Outcome:
    """Derive the rows of an output; recordings that are done already are not done again.

    Args:
        root: Directory or prefix of the output.
        output: The derived output.
        derivation: The computation.
        terminal: Prints progress.
        chosen: ``file_id`` of the recordings to which the run is restricted, sorted; None: all.
        on_claimed: Called once the derived output is claimed; another run may have written to it before.
        verbose: Print the log lines of Ray.

    Raises:
        RequestError: A file is damaged, or another run holds the derived output.
        RunError: The storage or the cluster failed; what is stored stays valid.
    """
    # 1. Read what is stored.
    store = Store(root, "")
    inventory = store.read()
    is_settled = run_report.is_settled(store)

    # 2. Claim the derived output.
    with hold_claim(
        output.folder,
        uuid.uuid4().hex[:12],
        lambda holder: terminal.say(
            f"another run has claimed {output.folder} ({holder}): waiting up to {LAPSE_S:.0f} s for a sign of life"
        ),
    ):
        try:
            on_claimed()

            # 3. Drop outdated rows, and find the backlog.
            output.sweep()
            recordings = inventory.recordings()
            complete = complete_recordings(recordings)
            wanted = complete if chosen is None else np.intersect1d(complete, chosen)
            done = _drop_outdated_rows(output, wanted if output.holds_chosen_only else complete)
            todo = np.setdiff1d(wanted, done)
            terminal.say(
                f"{plural(len(wanted), 'recording')} in {plural(len(inventory.shards), 'shard')} · "
                f"{len(wanted) - len(todo):,} {derivation.participle} before, {len(todo):,} to do"
            )

            # 4. Do the backlog.
            if len(todo):
                start_s = time.monotonic()
                backlog = find_backlog(output, inventory, recordings, todo)
                _do_backlog(output, derivation, backlog, terminal, verbose=verbose)
                terminal.say(f"done in {duration(time.monotonic() - start_s)}")

            # 5. Delete the partial results.
            output.delete_partials()
            done = np.concatenate([np.empty(0, np.int64), *output.read_file_ids().values()])
        except OSError as error:
            raise storage_failure(error) from error
    n_done = len(np.intersect1d(wanted, done))
    if n_done != len(wanted):
        raise RunError(
            f"{n_done:,} of {len(wanted):,} recordings are {derivation.participle}: run the same command again"
        )
    stored = recordings.file_id if chosen is None else np.intersect1d(recordings.file_id, chosen)
    return Outcome(n_done, len(stored) - len(wanted), is_settled)


def _drop_outdated_rows(output: DerivedOutput, complete: NDArray[np.int64]) -> NDArray[np.int64]:
    """Drop recordings that are not complete any more, or repeated; return the ``file_id`` that stay."""
    done = np.empty(0, np.int64)
    for uri, file_ids in output.read_file_ids().items():
        kept = np.setdiff1d(np.intersect1d(file_ids, complete), done)
        if output.keeps_whole_files and len(kept) < len(file_ids):
            kept = kept[:0]
        if len(kept) < len(file_ids) or not len(file_ids):
            output.keep_recordings(uri, kept)
        done = np.concatenate([done, kept])
    return done


def _do_backlog(
    output: DerivedOutput, derivation: Derivation, backlog: Backlog, terminal: Terminal, *, verbose: bool
) -> None:
    # A shard is done if a run that ended early has stored its partial results, and no other recordings lie in it.
    stored = output.list_partials()
    is_open = [bool(task["whole"]) or task["partials"] not in stored for task in backlog.shards.to_pylist()]
    shards = backlog.shards.filter(pa.array(is_open, pa.bool_()))
    stages: list[tuple[str, Callable[..., pa.Table], pa.Table]] = [
        ("shards", do_shards, shards),
        ("groups", do_groups, backlog.groups),
    ]
    with ExitStack() as on_ray:
        if {file_stem(uri) for uri in shards["uri"].to_pylist()} <= output.list_shard_partials():
            run = _run_here  # no vectors are left to read, and starting Ray takes longer than the rest
        else:
            from embedding.ray_runtime.session import session  # Ray takes seconds to import
            from embedding.ray_runtime.worker_errors import raise_worker_errors

            on_ray.enter_context(session(verbose=verbose))
            on_ray.enter_context(raise_worker_errors())
            from embedding.ray_runtime.datasets import stream

            run = partial(stream, verbose=verbose)
        for noun, stage, tasks in stages:
            with terminal.counting(noun, len(tasks)) as count:
                for done in run(stage, tasks, output, derivation):
                    count(len(done))


def _run_here(stage: Callable[..., pa.Table], tasks: pa.Table, *arguments: object) -> Iterator[pa.Table]:
    yield from map_in_threads(stage, [(tasks.slice(row, 1), *arguments) for row in range(len(tasks))])


def do_shards(shards: pa.Table, output: DerivedOutput, derivation: Derivation) -> pa.Table:
    """Do some shards: whole recordings to rows, and split recordings to partial results.

    Args:
        shards: A table of SHARD_TASKS.
        output: The derived output.
        derivation: The computation.

    Returns:
        A row for each shard that is done.
    """
    for task in shards.to_pylist():
        partials = _partials_of_shard(task, output, derivation)
        is_whole = np.isin(partials["file_id"].to_numpy(), task["whole"])
        if task["split"]:
            output.write_partials(partials.filter(pa.array(~is_whole)), task["partials"])
        if task["whole"]:
            rows = derivation.finish(partials.filter(pa.array(is_whole)))
            _write_rows(output, rows, file_stem(task["uri"]), task["whole"])
    return shards.select(["uri"])


def _partials_of_shard(task: dict[str, Any], output: DerivedOutput, derivation: Derivation) -> pa.Table:
    """Return the partial results of the recordings of a task: those made with the shard, or made from its windows."""
    file_ids = [*task["whole"], *task["split"]]
    stored = output.read_shard_partials(task["uri"], task["keys"])
    if stored is not None:
        return stored.filter(pa.array(np.isin(stored["file_id"].to_numpy(), file_ids)))
    windows = _read_windows(task["uri"], file_ids, derivation)
    with refuse_damage(task["uri"], EMBED_AGAIN):
        return derivation.make_partials(windows)


def do_groups(groups: pa.Table, output: DerivedOutput, derivation: Derivation) -> pa.Table:
    """Do some groups of split recordings: partial results to rows.

    Args:
        groups: A table of GROUP_TASKS.
        output: The derived output.
        derivation: The computation.

    Returns:
        A row for each group that is done.
    """
    for task in groups.to_pylist():
        partials = output.read_partials(task["partials"], task["file_ids"])
        _write_rows(output, derivation.finish(partials), "several", task["file_ids"])
    return groups.select(["file_ids"])


def _read_windows(uri: str, file_ids: list[int], derivation: Derivation) -> pa.Table:
    """Return the windows of some recordings in a shard."""
    with open_shard(uri, vectors=derivation.vectors) as shard:
        windows = shard.read(columns=list(derivation.columns), use_threads=False)
        check_values(uri, windows)
    is_of_recordings = np.isin(windows["file_id"].to_numpy(), file_ids)
    return windows if is_of_recordings.all() else windows.filter(pa.array(is_of_recordings))


def _write_rows(output: DerivedOutput, rows: pa.Table, prefix: str, file_ids: list[int]) -> None:
    ids = np.array(file_ids, np.int64)
    output.write(rows, output.file_name(prefix, ids), ids)
