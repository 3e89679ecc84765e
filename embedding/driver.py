"""The driver of a run: everything around the pipeline, in the order in which it happens."""

import importlib
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding.announce import (
    announce_backlog,
    announce_contradictions,
    announce_dry_run,
    announce_overlap,
    announce_request,
    announce_result,
    announce_slow_precision,
)
from embedding.cli.progress_display import ProgressDisplay
from embedding.cli.terminal import Terminal
from embedding.config import EmbedConfig
from embedding.counters import Counters
from embedding.encoding.graph_preparation import prepare_graphs
from embedding.errors import RequestError, storage_failure
from embedding.job import Job, Target
from embedding.listing.audio_estimate import estimate_durations
from embedding.listing.listing import n_bytes
from embedding.listing.manifest_columns import ManifestColumns
from embedding.listing.manifests import manifests_among, read_manifest
from embedding.output.backlog import pending_recordings
from embedding.output.balance import Balance
from embedding.output.claim import LAPSE_S, Claim, ClaimHolder, hold_claim
from embedding.output.inventory import map_in_threads
from embedding.output.recordings_table import NAME as RECORDINGS_NAME
from embedding.planning.placement import ClusterResources, Placement, plan_placement
from embedding.planning.shared_paths import NOTHING_LOCAL, SharedPaths, refuse_unshared
from embedding.planning.work_sizes import count_useful_workers, plan_sizes, split_into_legs, split_into_tasks
from embedding.request import Request
from embedding.schema.targets import TargetColumn
from embedding.stopping import Stop, stop_on_signals
from embedding.target_run import TargetRun
from embedding.text import plural
from embedding.timeline import Timeline

if TYPE_CHECKING:
    from embedding.pipeline import OnShard, SharedWeights
    from embedding.ray_runtime.progress_channel import ProgressChannel

# Normally one round does everything. Another round follows where a worker died and took windows with it.
MAX_ROUNDS = 5

# Shards from which on they are read on all nodes of a cluster; fewer shards are read in the time that tasks need to
# start.
READ_ON_NODES_FROM = 1_000


# Returns what workers call for each shard of a target, see ``pipeline.embed``.
MakeOnShard = Callable[[Target], "OnShard | None"]


def embed(
    config: EmbedConfig,
    terminal: Terminal,
    timeline: Timeline | None = None,
    make_on_shard: MakeOnShard = lambda _: None,
) -> list[Balance] | None:
    """Embed the recordings of a request.

    Args:
        config: The request.
        terminal: Receives lines for the user.
        timeline: Timeline of the command; None for one that begins now.
        make_on_shard: Called at the start, where it may refuse the request, and again when the device is known.

    Returns:
        The balance of each target's output; None after a dry run.

    Raises:
        RequestError: The request makes no sense.
        RunError: The run could not go on, or was stopped.
    """
    timeline = timeline or Timeline()
    timeline.reached("imported")
    request = Request.of(config)
    timeline.reached("listed")
    for target in request.targets:
        make_on_shard(target)
    announce_request(terminal, request)
    if config.dry_run:
        _dry_run(terminal, request)
        return None
    run_id = uuid.uuid4().hex[:12]
    with ExitStack() as claims, stop_on_signals() as stop, ExitStack() as ray_session:
        held = [
            claims.enter_context(hold_claim(target.store.root, run_id, lambda holder: _say_waiting(terminal, holder)))
            for target in request.targets
        ]
        try:
            request = request.read_again()  # another run may have written while this run waited for its claims
            for target in request.targets:
                target.store.remove_unfinished_writes()
                target.write_description(config)
            run = _Run(request, terminal, held, stop, ray_session, timeline=timeline, make_on_shard=make_on_shard)
            return run.embed()
        except OSError as error:
            raise storage_failure(error) from error


@dataclass(frozen=True)
class _Plan:
    """The plan of a run.

    Attributes:
        cluster: The resources that Ray has.
        placement: CPUs and GPUs of each stage.
        job: The job of the first leg.
        weights: Checkpoints in Ray's object store; None where the encoders run on this machine.
        audio_s: Estimated seconds of audio in the recordings that are left.
        batches_per_byte: Estimated number of batches per byte of recordings.
    """

    cluster: ClusterResources
    placement: Placement
    job: Job
    weights: "SharedWeights | None"
    audio_s: float
    batches_per_byte: float


class _Run:
    """A run that holds the claims of its outputs."""

    def __init__(
        self,
        request: Request,
        terminal: Terminal,
        claims: list[Claim],
        stop: Stop,
        ray_session: ExitStack,
        *,
        timeline: Timeline,
        make_on_shard: MakeOnShard,
    ) -> None:
        self._request, self._terminal, self._stop = request, terminal, stop
        self._config = request.config
        self._run_id = claims[0].holder.run_id
        self._ray_session = ray_session
        self._timeline, self._make_on_shard = timeline, make_on_shard
        self._cluster: ClusterResources | None = None
        self._counters = Counters()
        self._targets = [
            TargetRun(request, target, claim, self._map_shards, timeline)
            for target, claim in zip(request.targets, claims, strict=True)
        ]

    def embed(self) -> list[Balance]:
        """Embed the recordings that are left; return the balance of each target's output."""
        announce_backlog(self._terminal, self._request, [target.backlog for target in self._targets])
        with ThreadPoolExecutor(1) as pool, ExitStack() as ray_end, ExitStack() as reports:
            for target in self._targets:
                reports.enter_context(target.report.closing(target.read_balance))
            pending = self._pending()
            if len(pending):
                plan = self._plan(pending, *self._connect_and_estimate(pending))
                self._embed_and_watch(pending, plan)
                if plan.cluster.is_own:  # its processes need a second to end; on a cluster, nodes may read shards below
                    ray_end.callback(pool.submit(self._ray_session.close).result)
            for target in self._targets:
                target.repair()
            self._update_recordings()
        self._announce_results()
        return [target.balance() for target in self._targets]

    def _pending(self, run_id: str | None = None) -> pa.Table:
        """Return the recordings that are left for any target; after a round, those that this run has not finished."""
        return pending_recordings([(target.backlog, target.inventory) for target in self._targets], run_id)

    def _connect_and_estimate(self, pending: pa.Table) -> tuple[ClusterResources, float]:
        """Step 1: connect to Ray. Meanwhile prepare the models, and estimate the seconds of audio in the recordings."""
        if encodes_on_own_cpus(self._config.device):
            settings = [target.target.settings for target in self._targets]
            announce_slow_precision(self._terminal, self._config.precision)
            prepare_graphs(settings, self._terminal.say, self._terminal.warn)
        with ThreadPoolExecutor(1) as pool:
            estimate = pool.submit(_import_and_estimate, pending)
            cluster = self._connect()
            self._timeline.reached("ray")
            durations_s = estimate.result()
        announce_overlap(self._terminal, self._request, durations_s)
        return cluster, float(durations_s.sum())

    def _plan(self, pending: pa.Table, cluster: ClusterResources, audio_s: float) -> _Plan:
        """Step 2: choose the place and the size of the work.

        Raises:
            RequestError: The cluster cannot do it, or its nodes do not see local paths of the request.
        """
        from embedding.pipeline import share_weights

        config = self._config
        settings = [target.target.settings for target in self._targets]
        placement = plan_placement(
            cluster,
            config.device,
            config.actors,
            config.gpus_per_actor,
            n_models=len(settings),
            useful=count_useful_workers(settings, audio_s, n_bytes(pending)),
        )
        for target in self._targets:
            target.set_device(placement.device, config)
        targets = tuple(target.target for target in self._targets)
        sizes = plan_sizes(config, settings, placement, cluster, audio_s)
        shared_paths = NOTHING_LOCAL if cluster.is_own else self._check_shared_paths(pending)
        job = Job(targets, self._run_id, sizes.batch_size, sizes.shard_rows, shared_paths, config.min_agreement)
        n_pending_bytes = max(1, n_bytes(pending))
        for target in self._targets:
            target.report.expect(audio_s * self._request.listing.n_bytes / n_pending_bytes)
            target.report.set_workers(placement.workers)
        self._timeline.reached("planned")
        weights = None if cluster.is_own else share_weights(targets)
        return _Plan(cluster, placement, job, weights, audio_s, sizes.n_batches / n_pending_bytes)

    def _embed_and_watch(self, pending: pa.Table, plan: _Plan) -> None:
        """Step 3: run the pipeline, show its progress, and stop it when the user asks."""
        from embedding.ray_runtime.progress_channel import ProgressChannel, watching
        from embedding.ray_runtime.session import cluster_resources

        mean_targets = TargetColumn.of(pending).count() / len(pending)  # audio that two targets need counts twice
        display = ProgressDisplay(self._terminal, len(pending), plan.audio_s * mean_targets)

        def on_counters(counters: Counters) -> None:
            self._counters = counters
            for number, target in enumerate(self._targets):
                target.report.refresh(counters.of_target(number))
                target.note_agreement(counters.agreements.get(number), self._config, self._terminal)
            display(counters, lambda: cluster_resources(is_own=plan.cluster.is_own))
            if self._stop.signal_name is not None:
                display.stopping(self._stop.signal_name)

        with self._stop.gracefully(), display:
            display.starting(plan.placement)
            channel = ProgressChannel()
            with watching(channel, on_counters, lambda: self._stop.signal_name is not None):
                self._embed_in_rounds(pending, plan, channel)
            on_counters(channel.read().counters)
        self._timeline.reached("embedded")

    def _embed_in_rounds(self, pending: pa.Table, plan: _Plan, channel: "ProgressChannel") -> None:
        """Embed the recordings leg by leg, and recordings that were lost with a worker in another round.

        Raises:
            RunError: No GPU is left, or the storage or the cluster failed.
        """
        from embedding import pipeline
        from embedding.ray_runtime.broken_gpus import BrokenGpus
        from embedding.ray_runtime.session import cluster_resources

        placement = plan.placement
        broken = BrokenGpus(self._terminal.warn, lambda: cluster_resources(is_own=False).n_gpus)
        leg_numbers = count()
        n_rounds = 0
        while n_rounds < MAX_ROUNDS:
            for leg in split_into_legs(pending, plan.batches_per_byte):
                job = replace(plan.job, leg=next(leg_numbers))
                blocks = split_into_tasks(leg, placement.n_decoders)
                pipeline.embed(
                    blocks,
                    job,
                    placement,
                    plan.cluster,
                    channel,
                    weights=plan.weights,
                    on_shard=self._make_on_shard(job.targets[0]),
                    verbose=self._config.verbose,
                )
                broken.note(channel.broken_gpus())
                if self._stop.signal_name is not None or broken.waiting:
                    break
            unchanged = channel.read().unchanged
            for number, target in enumerate(self._targets):
                target.adopt_unchanged(unchanged[number])
            pending = self._pending(self._run_id)
            if self._stop.signal_name is not None or not len(pending):
                break
            if broken.waiting:
                placement = broken.hold(placement)
                continue
            n_rounds += 1
            if n_rounds < MAX_ROUNDS:
                self._terminal.say(f"{plural(len(pending), 'recording')} lost with a worker: trying again")

    def _update_recordings(self) -> None:
        """Bring the tables of recordings up to date. Vectors are stored by now, so a mistake in a manifest is told."""
        try:
            uris = manifests_among(self._config.input)
            manifests = ManifestColumns.of(read_manifest(uri, "--input") for uri in uris)
            for target in self._targets:
                announce_contradictions(self._terminal, target.update_recordings(manifests))
            unreadable = manifests.unreadable_times
            if unreadable:
                self._terminal.warn(
                    f"{plural(len(unreadable), 'time')} of manifests cannot be read, as {unreadable[0]!r}"
                )
        except RequestError as error:
            self._terminal.warn(f"{RECORDINGS_NAME} is not up to date: {error}")
            for target in self._targets:
                target.report.recordings_outdated = True

    def _announce_results(self) -> None:
        for number, target in enumerate(self._targets):
            model = target.target.settings.model.name if len(self._targets) > 1 else ""
            counters = self._counters.of_target(number)
            root = target.target.store.root
            announce_result(self._terminal, target.balance(), counters, target.report.wall_s, root, model=model)

    def _check_shared_paths(self, pending: pa.Table) -> SharedPaths:
        """Return local paths of the request, after each node was found to see them.

        Raises:
            RequestError: A node does not see them.
        """
        from embedding.ray_runtime.node_tasks import call_on_each_node

        paths = SharedPaths.of(pending, self._request.targets[0].store.root, self._run_id)
        refuse_unshared(call_on_each_node(paths.describe_missing))
        return paths

    def _connect(self) -> ClusterResources:
        """Connect to Ray, once per run. Importing Ray takes seconds; a request that makes no sense ends before."""
        from embedding.ray_runtime.session import session

        if self._cluster is None:
            self._cluster = self._ray_session.enter_context(session(verbose=self._config.verbose))
        return self._cluster

    def _map_shards(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterable[Any]:
        """Call a function for many shards: on all nodes of a cluster where they are many, otherwise in threads."""
        if len(arguments) < READ_ON_NODES_FROM or "RAY_ADDRESS" not in os.environ:
            return map_in_threads(function, arguments)
        from embedding.ray_runtime.node_tasks import map_on_nodes

        self._connect()
        return map_on_nodes(function, arguments)


def encodes_on_own_cpus(device: str, devices: Path = Path("/dev")) -> bool:
    """Return True if the encoders will be on CPUs of this machine, as far as that is known before Ray runs.

    Args:
        device: cpu, cuda or auto.
        devices: Folder of device files.
    """
    if "RAY_ADDRESS" in os.environ or device == "cuda":
        return False
    return device == "cpu" or not any(devices.glob("nvidia[0-9]*"))


def _import_and_estimate(pending: pa.Table) -> NDArray[np.float64]:
    """Import the pipeline and estimate durations while Ray starts, which is mostly waiting."""
    importlib.import_module("embedding.pipeline")
    return estimate_durations(pending)


def _dry_run(terminal: Terminal, request: Request) -> None:
    backlogs = []
    durations_s = []
    for target in request.targets:
        inventory, backlog = request.compare(target, thorough=False)
        pending = pending_recordings([(backlog, inventory)])
        backlogs.append(backlog)
        durations_s.append(estimate_durations(pending))
    announce_backlog(terminal, request, backlogs)
    announce_dry_run(terminal, request, durations_s)


def _say_waiting(terminal: Terminal, holder: ClaimHolder) -> None:
    terminal.say(f"another run has claimed this output ({holder}): waiting up to {LAPSE_S:.0f} s for a sign of life")
