"""One run, from the request to the books: everything around the pipeline."""

import json
import platform
import time
import uuid
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import pyarrow as pa

from embedding import sources, storage
from embedding.config import RANDOM_CHECKPOINT, EmbedConfig
from embedding.console import People, Watch, audio_length, plural, size, summarise
from embedding.estimate import audio_seconds
from embedding.redact import redact_all
from embedding.report import Books, Tally
from embedding.resources import plan
from embedding.settings import Job, Settings
from embedding.store import Store
from embedding.stored import Stored

VERSIONED = ("avex-batch", "avex", "ray", "torch", "torchaudio", "numpy", "pyarrow", "soundfile", "soxr")

# A decode task's work: enough to amortise a task (some ms), little enough that cores finish together.
TASK_BYTES = 64 << 20
TASK_RECORDINGS = 256

# About this many shards per run, within these rows: an interruption then costs about 1/256 of the work.
SHARDS_PER_RUN = 256
SHARD_ROWS = (256, 32_768)


def embed(config: EmbedConfig, people: People) -> Books | None:
    """Embed what ``config`` asks for; None after ``--dry-run``.

    Raises:
        RequestError: the request makes no sense as it stands.
        RunError: the run could not go on.
    """
    began_s = time.monotonic()
    output = storage.normalise(config.output, "--output")
    listing = sources.list_recordings(config.input, config.limit)
    settings = Settings.of(config)
    run = describe_run(config, settings)
    store = Store(output, json.dumps(redact_all(run["settings"])))
    store.refuse_other_settings(settings.guarded())
    before = store.read()
    work = Work.of(listing.recordings, before, retry_failed=config.retry_failed)
    audio_s = audio_seconds(work.todo) if len(work.todo) else 0.0
    _greet(people, settings, config)
    _describe_work(people, listing, work)
    if config.dry_run:
        _describe_dry_run(people, audio_s, settings)
        return None
    store.write_json("run.json", run)
    tally = Tally()
    if len(work.todo):
        rows = config.shard_rows if isinstance(config.shard_rows, int) else auto_shard_rows(audio_s, settings)
        job = Job(settings, store, uuid.uuid4().hex[:12], config.batch_size, rows)
        tally = _embed(work.todo, job, config, people.progress(len(work.todo), audio_s))
    if config.retry_failed:  # a later success makes a failure history
        store.forget_failures(before.failed.keys() & set(work.todo["file_id"].to_pylist()) - tally.failed_ids.keys())
    books = work.balance(store.read(), tally, time.monotonic() - began_s)
    store.write_json("report.json", books.as_json())
    summarise(people, books, output)
    return books


def _embed(todo: pa.Table, job: Job, config: EmbedConfig, watch: Watch) -> Tally:
    # Ray takes seconds to import: a request that makes no sense has been refused before.
    from embedding import pipeline

    with pipeline.session(verbose=config.verbose) as cluster, watch:
        placement = plan(cluster, config.device, config.actors)
        watch.starting(placement)
        return pipeline.embed(split(todo, placement.n_decoders), job, placement, watch)


def describe_run(config: EmbedConfig, settings: Settings) -> dict[str, Any]:
    """``run.json``: every setting, and the versions of what computes the vectors."""
    return {
        "settings": settings.guarded()
        | {
            "checkpoint": settings.checkpoint.uri,
            "sample_rate_hz": settings.windows.rate_hz,
            "embedding_size": settings.model.traits.dim,
        },
        "options": {
            "input": list(config.input),
            "batch_size": config.batch_size,
            "device": config.device,
            "actors": config.actors,
            "limit": config.limit,
            "shard_rows": config.shard_rows,
        },
        "versions": {name: metadata.version(name) for name in VERSIONED} | {"python": platform.python_version()},
    }


@dataclass(frozen=True)
class Work:
    """A listing against what the output holds: ``todo`` has the columns of the listing and the windows ``stored``."""

    listed: int
    todo: pa.Table
    already_done: int
    failed_before: int  # and not tried again

    @classmethod
    def of(cls, recordings: pa.Table, stored: Stored, *, retry_failed: bool) -> "Work":
        """What is left to do of ``recordings``."""
        ids = recordings["file_id"].to_numpy()
        has_failure = stored.is_failed(ids)
        failed = has_failure & (not retry_failed)
        done = stored.recordings()
        complete = done.complete(ids) & ~has_failure
        todo = recordings.filter(pa.array(~(failed | complete)))
        ids = todo["file_id"].to_numpy()
        windows = [stored.windows(i) if begun else None for i, begun in zip(ids, done.present(ids), strict=True)]
        todo = todo.append_column("stored", pa.array(windows, pa.list_(pa.int32())))
        return cls(len(recordings), todo, int(complete.sum()), int(failed.sum()))

    def balance(self, stored: Stored, tally: Tally, wall_s: float) -> Books:
        """The books, from what the output holds now."""
        ids = self.todo["file_id"].to_numpy()
        failed = stored.is_failed(ids)
        embedded = stored.recordings().complete(ids) & ~failed
        return Books(
            listed=self.listed,
            already_done=self.already_done,
            embedded=int(embedded.sum()),
            failed=self.failed_before + int(failed.sum()),
            failed_before=self.failed_before,
            tally=tally,
            wall_s=wall_s,
        )


def split(todo: pa.Table, n_decoders: int) -> list[pa.Table]:
    """One table per decode task: about TASK_BYTES each, and enough of them that no decoder is idle early."""
    most = int(np.clip(-(-len(todo) // (4 * n_decoders)), 1, TASK_RECORDINGS))
    tables, start, n_bytes = [], 0, 0
    for at, n in enumerate(todo["size"].to_numpy()):
        if at > start and (at - start == most or n_bytes + n > TASK_BYTES):
            tables.append(todo.slice(start, at - start))
            start, n_bytes = at, 0
        n_bytes += max(int(n), 0)
    return [*tables, todo.slice(start)]


def auto_shard_rows(audio_s: float, settings: Settings) -> int:
    """Rows per shard for a run over ``audio_s`` seconds of audio."""
    n_windows = audio_s * settings.windows.rate_hz / settings.windows.hop
    return int(np.clip(n_windows / SHARDS_PER_RUN, *SHARD_ROWS))


def _greet(people: People, settings: Settings, config: EmbedConfig) -> None:
    windows = settings.windows
    people.say(
        f"avex-batch {metadata.version('avex-batch')} · {settings.model.name} · {windows.rate_hz / 1000:g} kHz · "
        f"window {windows.length / windows.rate_hz:g} s, hop {windows.hop / windows.rate_hz:g} s · {settings.precision}"
    )
    if config.checkpoint == RANDOM_CHECKPOINT:
        people.warn("RANDOM WEIGHTS: these vectors mean nothing; for trials only (--checkpoint random)")


def _describe_work(people: People, listing: sources.Listing, work: Work) -> None:
    parts = [f"{plural(work.listed, 'recording')}, {size(listing.n_bytes)}"]
    if listing.left_out:
        parts.append(f"left out: {sources.describe_left_out(listing.left_out)}")
    progress = []
    if work.already_done:
        progress.append(f"{work.already_done:,} done before")
    if work.failed_before:
        progress.append(f"{work.failed_before:,} failed before (--retry-failed tries them again)")
    if progress:
        parts.append(", ".join([*progress, f"{len(work.todo):,} to do"]))
    people.say(" · ".join(parts))


def _describe_dry_run(people: People, audio_s: float, settings: Settings) -> None:
    n_windows = int(audio_s * settings.windows.rate_hz / settings.windows.hop)
    n_bytes = n_windows * (settings.model.traits.dim * 4 + 50)
    people.say(
        f"dry run, nothing written: about {audio_length(audio_s)} of audio, {plural(n_windows, 'window')}, "
        f"{size(n_bytes)} of vectors; try --limit on a few recordings to see the speed"
    )
