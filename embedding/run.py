"""One run, from the request to the books: everything around the pipeline."""

import importlib
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa

from embedding.config import EmbedConfig
from embedding.console import People, plural, summarise
from embedding.errors import storage_failure
from embedding.listing import sources
from embedding.listing.estimate import audio_seconds
from embedding.output.claim import LAPSE_S, Claim, Owner, claimed
from embedding.output.ledger import Ledger
from embedding.output.report import Books, Tally
from embedding.output.settle import settle, settle_failures
from embedding.output.stored import threads
from embedding.request import Request, describe_dry_run, describe_work, greet
from embedding.scheduling import sizes
from embedding.scheduling.resources import Cluster, plan
from embedding.scheduling.shared_paths import NOTHING_LOCAL, SharedPaths, refuse_unshared
from embedding.settings import Job
from embedding.stopping import Stop, on_signals

# A round ends with everything done; another one follows only where a worker that died took windows with it.
MAX_ROUNDS = 5

# Shards from which on reading them is spread over the nodes of a cluster: fewer are read while tasks would start.
SPREAD_FROM = 1_000

_NONE = np.empty(0, np.int64)


def embed(config: EmbedConfig, people: People) -> Books | None:
    """Embed what ``config`` asks for; None after ``--dry-run``.

    Raises:
        RequestError: the request makes no sense as it stands.
        RunError: the run could not go on, or was stopped.
    """
    request = Request.of(config)
    request.store.refuse_other_settings(request.settings.guarded())
    greet(people, request)
    if config.dry_run:
        _dry_run(people, request)
        return None
    run_id = uuid.uuid4().hex[:12]
    with (
        claimed(request.store.root, run_id, lambda owner: _say_waiting(people, owner)) as claim,
        on_signals() as stop,
        ExitStack() as stack,
    ):
        try:
            request.store.sweep()
            request.store.write_json("run.json", request.description)
            return _Run(request, people, claim, stop, stack).embed()
        except OSError as error:
            raise storage_failure(error) from error


class _Run:
    """A run that holds its output. ``_stored`` is what the output held when it was last looked at."""

    def __init__(self, request: Request, people: People, claim: Claim, stop: Stop, stack: ExitStack) -> None:
        self._request, self._people, self._claim, self._stop = request, people, claim, stop
        self._store, self._id = request.store, claim.owner.run_id
        self._stack = stack
        self._nodes: Cluster | None = None
        self._ledger = Ledger(self._store, self._id, listed=len(request.listing.recordings))
        self._stored, self._work = request.look(thorough=not self._ledger.last_run_was_complete, each=self._each)
        self._tally = Tally()
        self._unchanged: set[int] = set()
        describe_work(people, request.listing, self._work)

    def embed(self) -> Books:
        todo = self._work.left(self._stored)
        with self._ledger.closing(self._books):
            if len(todo):
                self._embed(todo)
            self._settle()
        books = self._work.balance(self._stored, self._unchanged)  # which closing has just looked at
        summarise(self._people, books, self._tally, self._ledger.wall_s, self._store.root)
        return books

    def _embed(self, todo: pa.Table) -> None:
        from embedding.scheduling import cluster

        config, settings = self._request.config, self._request.settings
        with ThreadPoolExecutor(1) as beside:
            estimate = beside.submit(_prepare, todo)
            nodes = self._connect()
            audio_s = estimate.result()
        from embedding import pipeline
        from embedding.scheduling import line

        placement = plan(nodes, config.device, config.actors, config.gpus_per_actor)
        shared = NOTHING_LOCAL if nodes.is_own else self._shared_paths(todo)
        self._ledger.expect(audio_s * self._request.listing.n_bytes / max(1, sources.n_bytes(todo)))
        watch = self._people.progress(len(todo), audio_s)
        pieces = sizes.pieces(config, settings, placement, nodes, audio_s)
        batches_per_byte = pieces.n_batches / max(1, sources.n_bytes(todo))
        job = Job(settings, self._store, self._id, pieces.batch_size, pieces.shard_rows, shared)
        weights = None if nodes.is_own else pipeline.share_weights(settings)
        numbers = count()

        def on_tally(tally: Tally) -> None:
            self._tally = tally
            self._ledger.refresh(tally)
            watch(tally, lambda: cluster.look(is_own=nodes.is_own))
            if self._stop.asked_by is not None:
                watch.stopping(self._stop.asked_by)

        with self._stop.gracefully(), watch:
            watch.starting(placement)
            self._ledger.employ(placement)
            to_workers = line.Line()
            with line.watching(to_workers, on_tally, lambda: self._stop.asked_by is not None):
                for _ in range(MAX_ROUNDS):
                    for leg in sizes.legs(todo, batches_per_byte):
                        this = replace(job, leg=next(numbers))
                        tasks = sizes.tasks(leg, placement.n_decoders)
                        pipeline.embed(
                            tasks, this, placement, nodes, to_workers, weights=weights, verbose=config.verbose
                        )
                        if self._stop.asked_by is not None:
                            break
                    self._unchanged |= to_workers.ask().unchanged
                    todo = self._left_after_round()
                    if self._stop.asked_by is not None or not len(todo):
                        break
                    self._people.say(f"{plural(len(todo), 'recording')} lost with a worker: once more")
            on_tally(to_workers.ask().tally)

    def _shared_paths(self, todo: pa.Table) -> SharedPaths:
        """Local paths, once every node has been found to see them."""
        from embedding.scheduling import cluster

        shared = SharedPaths.of(todo, self._store.root, self._id)
        refuse_unshared(cluster.on_every_node(shared.missing))
        return shared

    def _left_after_round(self) -> pa.Table:
        self._look()
        # Recordings whose audio is the same as before keep their rows, under their present identity.
        if touched := self._work.touched(self._unchanged):
            self._claim.check()
            self._forget(settle(self._store, self._stored, _NONE, touched))
        return self._work.left(self._stored, self._id)

    def _connect(self) -> Cluster:
        """To Ray, once. It takes seconds to import: a request that makes no sense has been refused before."""
        from embedding.scheduling import cluster

        if self._nodes is None:
            self._nodes = self._stack.enter_context(cluster.session(verbose=self._request.config.verbose))
            self._stop.listen()
        return self._nodes

    def _each(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterable[Any]:
        """Reading many shards is work for all nodes, where there are several."""
        if len(arguments) < SPREAD_FROM or "RAY_ADDRESS" not in os.environ:
            return threads(function, arguments)
        from embedding.scheduling import cluster

        self._connect()
        return cluster.spread(function, arguments)

    def _look(self) -> None:
        self._stored = self._store.read(known=self._stored, each=self._each)

    def _settle(self) -> None:
        self._claim.check()
        self._forget(settle(self._store, self._stored, self._work.superseded(self._stored), {}))
        left = self._work.left(self._stored, self._id)["file_id"].to_numpy()
        tried = np.setdiff1d(self._work.todo, left)
        if settle_failures(self._store, self._stored, self._work.listed, tried, self._id):
            self._look()

    def _forget(self, changed: list[str]) -> None:
        """Look again at shards that are not what they were."""
        if changed:
            self._stored = self._stored.only(set(self._stored.shards) - set(changed))
            self._look()

    def _books(self) -> Books:
        self._look()
        return self._work.balance(self._stored, self._unchanged)


def _prepare(todo: pa.Table) -> float:
    """What can be done while Ray starts, which is mostly waiting: its imports, and the estimate."""
    importlib.import_module("embedding.pipeline")
    return audio_seconds(todo)


def _dry_run(people: People, request: Request) -> None:
    stored, work = request.look(thorough=False)
    describe_work(people, request.listing, work)
    todo = work.left(stored)
    describe_dry_run(people, request, audio_seconds(todo) if len(todo) else 0.0)


def _say_waiting(people: People, owner: Owner) -> None:
    people.say(f"another run has claimed this output ({owner}): watching for {LAPSE_S:.0f} s whether it is alive")
