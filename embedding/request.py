"""What is asked for, looked up; and what a person is told of it before work begins."""

import json
import platform
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from embedding import storage
from embedding.config import RANDOM_CHECKPOINT, EmbedConfig
from embedding.console import People, audio_length, plural, size
from embedding.listing import sources
from embedding.output.store import Store
from embedding.output.stored import Each, Stored, threads
from embedding.output.work import Work, former_versions
from embedding.redact import redact_all
from embedding.settings import Settings

VERSIONED = ("avex-batch", "avex", "ray", "torch", "torchaudio", "numpy", "pyarrow", "soundfile", "soxr")


@dataclass(frozen=True)
class Request:
    """What is asked for, looked up."""

    config: EmbedConfig
    listing: sources.Listing
    settings: Settings
    store: Store
    description: dict[str, Any]  # run.json

    @classmethod
    def of(cls, config: EmbedConfig) -> "Request":
        output = storage.normalise(config.output, "--output")
        listing = sources.list_recordings(config.input, config.limit)
        settings = Settings.of(config)
        description = describe_run(config, settings)
        store = Store(output, json.dumps(redact_all(description["settings"])))
        return cls(config, listing, settings, store, description)

    def look(self, *, thorough: bool, each: Each = threads) -> tuple[Stored, Work]:
        """What the output holds, and what is left to do."""
        stored = self.store.read(each=each)
        listed = self.listing.recordings
        former = former_versions(listed, stored, self.store, thorough=thorough, each=each)
        return stored, Work.of(listed, former, stored, retry_failed=self.config.retry_failed)


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


def greet(people: People, request: Request) -> None:
    settings, windows = request.settings, request.settings.windows
    people.say(
        f"avex-batch {metadata.version('avex-batch')} · {settings.model.name} · {windows.rate_hz / 1000:g} kHz · "
        f"window {windows.length / windows.rate_hz:g} s, hop {windows.hop / windows.rate_hz:g} s · {settings.precision}"
    )
    if request.config.checkpoint == RANDOM_CHECKPOINT:
        people.warn("RANDOM WEIGHTS: these vectors mean nothing; for trials only (--checkpoint random)")


def describe_work(people: People, listing: sources.Listing, work: Work) -> None:
    parts = [f"{plural(len(work.listed), 'recording')}, {size(listing.n_bytes)}"]
    if listing.left_out:
        parts.append(f"left out: {sources.describe_left_out(listing.left_out)}")
    progress = []
    if len(work.done_before):
        progress.append(f"{len(work.done_before):,} done before")
    if len(work.failed_before):
        progress.append(f"{len(work.failed_before):,} failed before (--retry-failed tries them again)")
    if progress:
        parts.append(", ".join([*progress, f"{len(work.todo):,} to do"]))
    people.say(" · ".join(parts))
    if work.n_changed:
        people.say(
            f"{work.n_changed:,} of them were embedded before with another size or time: their audio is compared, and "
            "only what differs is embedded anew"
        )


def describe_dry_run(people: People, request: Request, audio_s: float) -> None:
    """What a run over about ``audio_s`` seconds of audio would write."""
    windows = request.settings.windows
    n_windows = int(audio_s * windows.rate_hz / windows.hop)
    n_bytes = n_windows * request.settings.row_bytes
    people.say(
        f"dry run, nothing written: about {audio_length(audio_s)} of audio, {plural(n_windows, 'window')}, "
        f"{size(n_bytes)} of vectors; try --limit on a few recordings to see the speed"
    )
