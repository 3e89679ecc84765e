"""One run, from the request to the books: everything around the pipeline."""

import importlib
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embedding.announce import describe_dry_run, describe_overlap, describe_work, greet, summarise
from embedding.cli.progress_display import ProgressDisplay
from embedding.cli.terminal import Terminal
from embedding.config import EmbedConfig
from embedding.counters import Counters
from embedding.errors import storage_failure
from embedding.job import Job, Target
from embedding.listing.audio_estimate import audio_seconds
from embedding.listing.listing import n_bytes
from embedding.output.backlog import left, n_wanted
from embedding.output.balance import Balance
from embedding.output.claim import LAPSE_S, Claim, Owner, claimed
from embedding.output.inventory import Each, threads
from embedding.output.repair import repair_failures, repair_shards
from embedding.output.run_report import RunReport
from embedding.planning.placement import ClusterResources, Placement, plan_placement
from embedding.planning.shared_paths import NOTHING_LOCAL, SharedPaths, refuse_unshared
from embedding.planning.work_sizes import legs, plan_sizes, tasks
from embedding.request import Part, Request
from embedding.stopping import Stop, on_signals
from embedding.text import plural

if TYPE_CHECKING:
    from embedding.ray_runtime.progress_channel import ProgressChannel

# A round ends with everything done; another one follows only where a worker that died took windows with it.
MAX_ROUNDS = 5

# Shards from which on reading them is spread over the nodes of a cluster: fewer are read while tasks would start.
SPREAD_FROM = 1_000

_NONE = np.empty(0, np.int64)


def embed(config: EmbedConfig, terminal: Terminal) -> list[Balance] | None:
    """Embed what ``config`` asks for; the books of each model, or None after ``--dry-run``.

    Raises:
        RequestError: the request makes no sense as it stands.
        RunError: the run could not go on, or was stopped.
    """
    request = Request.of(config)
    request.refuse_mixed_outputs()
    for part in request.parts:
        part.store.refuse_other_settings(part.settings.guarded())
    greet(terminal, request)
    if config.dry_run:
        _dry_run(terminal, request)
        return None
    run_id = uuid.uuid4().hex[:12]
    with ExitStack() as claims, on_signals() as stop, ExitStack() as stack:
        held = [
            claims.enter_context(claimed(part.store.root, run_id, lambda owner: _say_waiting(terminal, owner)))
            for part in request.parts
        ]
        try:
            # Another run may have written here while this one waited for its claim.
            request = request.looked_up_again()
            for part in request.parts:
                part.store.refuse_other_settings(part.settings.guarded())
                part.store.sweep()
                part.store.write_json("run.json", part.description)
            return _Run(request, terminal, held, stop, stack).embed()
        except OSError as error:
            raise storage_failure(error) from error


class _Output:
    """The output of one model, while a run holds it. ``stored`` is what it held when it was last looked at."""

    def __init__(self, request: Request, part: Part, claim: Claim, each: Each) -> None:
        self._claim, self._each = claim, each
        self._store, self._id = part.store, claim.owner.run_id
        self.part = part
        self.ledger = RunReport(self._store, self._id, listed=len(request.listing.recordings))
        self.inventory, self.work = request.look(part, thorough=not self.ledger.last_run_was_complete, each=each)
        self._unchanged: set[int] = set()

    def settle_on(self, device: str) -> None:
        """Take note of the device that the encoders are on.

        Raises:
            RequestError: the vectors that are there are those of another device.
        """
        part = self.part.on(device)
        if part is not self.part:
            self.part, self._store = part, part.store
            self._store.write_json("run.json", part.description)

    def look(self) -> None:
        self.inventory = self._store.read(known=self.inventory, each=self._each)

    def keep(self, unchanged: set[int]) -> None:
        """Look, and let recordings whose audio is the same as before have their rows, under their present identity."""
        self._unchanged |= unchanged
        self.look()
        if touched := self.work.touched(self._unchanged):
            self._claim.check()
            self._forget(repair_shards(self._store, self.inventory, _NONE, touched))

    def settle(self) -> None:
        """Put in order what this run and those before have left behind."""
        self._claim.check()
        self._forget(repair_shards(self._store, self.inventory, self.work.superseded(self.inventory), {}))
        left = self.work.listed["file_id"].to_numpy()[self.work.is_left(self.inventory, self._id)]
        tried = np.setdiff1d(self.work.todo, left)
        if repair_failures(self._store, self.inventory, self.work.listed, tried, self._id):
            self.look()

    def books(self) -> Balance:
        self.look()
        return self.balance()

    def balance(self) -> Balance:
        """The books, of what was last seen."""
        return self.work.balance(self.inventory, self._unchanged)

    def _forget(self, changed: list[str]) -> None:
        """Look again at shards that are not what they were."""
        if changed:
            self.inventory = self.inventory.only(set(self.inventory.shards) - set(changed))
            self.look()


class _Run:
    """A run that holds its outputs."""

    def __init__(self, request: Request, terminal: Terminal, claims: list[Claim], stop: Stop, stack: ExitStack) -> None:
        self._request, self._terminal, self._stop = request, terminal, stop
        self._id = claims[0].owner.run_id
        self._stack = stack
        self._nodes: ClusterResources | None = None
        self._outputs = [
            _Output(request, part, claim, self._each) for part, claim in zip(request.parts, claims, strict=True)
        ]
        self._tally = Counters()
        describe_work(terminal, request, [output.work for output in self._outputs])

    def embed(self) -> list[Balance]:
        with ExitStack() as ledgers:
            for output in self._outputs:
                ledgers.enter_context(output.ledger.closing(output.books))
            todo = self._left()
            if len(todo):
                self._embed(todo)
            for output in self._outputs:
                output.settle()
        for at, output in enumerate(self._outputs):
            of_it = self._tally.of_target(at)
            name = output.part.settings.model.name if len(self._outputs) > 1 else ""
            summarise(self._terminal, output.balance(), of_it, output.ledger.wall_s, output.part.store.root, model=name)
        return [output.balance() for output in self._outputs]

    def _left(self, run_id: str | None = None) -> pa.Table:
        """What is to be decoded, for one model or more."""
        return left([(output.work, output.inventory) for output in self._outputs], run_id)

    def _embed(self, todo: pa.Table) -> None:
        from embedding.ray_runtime import session

        config = self._request.config
        with ThreadPoolExecutor(1) as beside:
            estimate = beside.submit(_prepare, todo)
            nodes = self._connect()
            audio_s = estimate.result()
        describe_overlap(self._terminal, self._request, audio_s)
        from embedding import pipeline
        from embedding.ray_runtime import progress_channel

        placement = plan_placement(
            nodes, config.device, config.actors, config.gpus_per_actor, n_models=len(self._outputs)
        )
        for output in self._outputs:
            output.settle_on(placement.device)
        parts = [output.part for output in self._outputs]
        settings = [part.settings for part in parts]
        shared = NOTHING_LOCAL if nodes.is_own else self._shared_paths(todo)
        watch = ProgressDisplay(self._terminal, len(todo), audio_s * n_wanted(todo) / len(todo))
        sizes = plan_sizes(config, settings, placement, nodes, audio_s)
        batches_per_byte = sizes.n_batches / max(1, n_bytes(todo))
        targets = tuple(Target(part.settings, part.store) for part in parts)
        job = Job(targets, self._id, sizes.batch_size, sizes.shard_rows, shared)
        weights = None if nodes.is_own else pipeline.share_weights(targets)
        for output in self._outputs:
            output.ledger.expect(audio_s * self._request.listing.n_bytes / max(1, n_bytes(todo)))
            output.ledger.employ(placement)

        def on_tally(tally: Counters) -> None:
            self._tally = tally
            for at, output in enumerate(self._outputs):
                output.ledger.refresh(tally.of_target(at))
            watch(tally, lambda: session.look(is_own=nodes.is_own))
            if self._stop.asked_by is not None:
                watch.stopping(self._stop.asked_by)

        def embed_leg(leg: pa.Table, number: int, placement: Placement) -> None:
            blocks = tasks(leg, placement.n_decoders)
            this = replace(job, leg=number)
            pipeline.embed(blocks, this, placement, nodes, to_workers, weights=weights, verbose=config.verbose)

        with self._stop.gracefully(), watch:
            watch.starting(placement)
            to_workers = progress_channel.ProgressChannel()
            with progress_channel.watching(to_workers, on_tally, lambda: self._stop.asked_by is not None):
                self._rounds(todo, placement, batches_per_byte, to_workers, embed_leg)
            on_tally(to_workers.ask().tally)

    def _rounds(
        self,
        todo: pa.Table,
        placement: Placement,
        batches_per_byte: float,
        to_workers: "ProgressChannel",
        embed_leg: Callable[[pa.Table, int, Placement], None],
    ) -> None:
        """Embed ``todo``, and what is lost with workers once more, leg by leg.

        Raises:
            RunError: no GPU is left, or the storage or the cluster failed.
        """
        from embedding.ray_runtime import session
        from embedding.ray_runtime.broken_gpus import BrokenGpus

        numbers = count()
        rounds = 0
        broken = BrokenGpus(self._terminal.warn, lambda: session.look(is_own=False).n_gpus)
        while rounds < MAX_ROUNDS:
            for leg in legs(todo, batches_per_byte):
                embed_leg(leg, next(numbers), placement)
                broken.note(to_workers.broken_gpus())
                if self._stop.asked_by is not None or broken.waiting:
                    break
            unchanged = to_workers.ask().unchanged
            for at, output in enumerate(self._outputs):
                output.keep(unchanged[at])
            todo = self._left(self._id)
            if self._stop.asked_by is not None or not len(todo):
                break
            if broken.waiting:
                placement = broken.set_aside(placement)
                continue
            rounds += 1
            self._terminal.say(f"{plural(len(todo), 'recording')} lost with a worker: once more")

    def _shared_paths(self, todo: pa.Table) -> SharedPaths:
        """Local paths, once every node has been found to see them."""
        from embedding.ray_runtime import session

        shared = SharedPaths.of(todo, self._request.parts[0].store.root, self._id)
        refuse_unshared(session.on_every_node(shared.missing))
        return shared

    def _connect(self) -> ClusterResources:
        """To Ray, once. It takes seconds to import: a request that makes no sense has been refused before."""
        from embedding.ray_runtime import session

        if self._nodes is None:
            self._nodes = self._stack.enter_context(session.session(verbose=self._request.config.verbose))
        return self._nodes

    def _each(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterable[Any]:
        """Reading many shards is work for all nodes, where there are several."""
        if len(arguments) < SPREAD_FROM or "RAY_ADDRESS" not in os.environ:
            return threads(function, arguments)
        from embedding.ray_runtime import session

        self._connect()
        return session.spread(function, arguments)


def _prepare(todo: pa.Table) -> float:
    """What can be done while Ray starts, which is mostly waiting: its imports, and the estimate."""
    importlib.import_module("embedding.pipeline")
    return audio_seconds(todo)


def _dry_run(terminal: Terminal, request: Request) -> None:
    works = []
    audio_s = []
    for part in request.parts:
        inventory, work = request.look(part, thorough=False)
        todo = left([(work, inventory)])
        works.append(work)
        audio_s.append(audio_seconds(todo) if len(todo) else 0.0)
    describe_work(terminal, request, works)
    describe_dry_run(terminal, request, audio_s)


def _say_waiting(terminal: Terminal, owner: Owner) -> None:
    terminal.say(f"another run has claimed this output ({owner}): watching for {LAPSE_S:.0f} s whether it is alive")
