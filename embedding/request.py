"""What is asked for, looked up; and what a person is told of it before work begins."""

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

from embedding import storage
from embedding.cli.terminal import Terminal, audio_length, plural, size
from embedding.config import MODEL_FOLDER, RANDOM_CHECKPOINT, EmbedConfig
from embedding.encoding.settings import Settings
from embedding.errors import RequestError
from embedding.listing.listing import Listing, describe_left_out, list_recordings
from embedding.output.backlog import Backlog, former_versions
from embedding.output.inventory import Each, Inventory, threads
from embedding.output.store import Store
from embedding.redact import redact_all

MANY_TIMES = 20  # overlap of windows from which on the cost of a run is told before work begins
VERSIONED = ("avex-batch", "avex", "ray", "torch", "torchaudio", "numpy", "pyarrow", "soundfile", "soxr")


@dataclass(frozen=True)
class Part:
    """What is asked for of one model, looked up."""

    config: EmbedConfig
    settings: Settings
    store: Store

    @classmethod
    def of(cls, config: EmbedConfig) -> "Part":
        return cls._with(config, storage.normalise(config.output, "--output"), Settings.of(config)).again()

    def again(self) -> "Part":
        """Return the part with the device of the vectors that are there: that of the run is known once Ray is."""
        stored = self.store.stored_settings() or {}
        return self._with(self.config, self.store.root, replace(self.settings, device=stored.get("device")))

    @classmethod
    def _with(cls, config: EmbedConfig, output: str, settings: Settings) -> "Part":
        return cls(config, settings, Store(output, json.dumps(redact_all(described(settings)))))

    def on(self, device: str) -> "Part":
        """Return the part with the device that its encoders are on, cpu or cuda.

        Raises:
            RequestError: the device does not compute in the precision, or the output holds vectors of the other device.
        """
        settings = self.settings.on(device)
        if settings.device == self.settings.device:
            return self
        if self.store.stored_settings() is not None:
            was = self.settings.device or "cpu"
            raise RequestError(
                f"--device: {self.store.root} holds {settings.precision} vectors from {was}, and this run's encoders "
                f"are on {device}, which rounds differently; use --device {was}, or another --output"
            )
        return self._with(self.config, self.store.root, settings)

    @property
    def description(self) -> dict[str, Any]:
        """``run.json``: every setting, and the versions of what computes the vectors."""
        return describe_run(self.config, self.settings)


@dataclass(frozen=True)
class Request:
    """What is asked for, looked up: of one listing, a part for each model."""

    config: EmbedConfig
    listing: Listing
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, config: EmbedConfig) -> "Request":
        """Look it up.

        Raises:
            RequestError: it makes no sense.
        """
        alone = config.per_model()
        for each in alone:
            storage.normalise(each.output, "--output")  # before a long listing
        listing = list_recordings(config.input, config.limit)
        parts = tuple(Part.of(each) for each in alone)
        _refuse_unequal_windows([part.settings for part in parts])
        return cls(config, listing, parts)

    def looked_up_again(self) -> "Request":
        """Return the request with what its outputs hold by now."""
        return replace(self, parts=tuple(part.again() for part in self.parts))

    def refuse_mixed_outputs(self) -> None:
        """Raises RequestError where the output of one model, and those of several, would come to lie in one place."""
        root = storage.normalise(self.config.output, "--output")
        of_one = Store(root, "").stored_settings() is not None
        of_several = storage.first_folder(root, MODEL_FOLDER) is not None
        if len(self.parts) > 1 and of_one and not of_several:
            raise RequestError(
                f"--output: {root} holds the vectors of one model, and those of several go each into a folder of their "
                "own; choose another --output"
            )
        if len(self.parts) == 1 and of_several and not of_one:
            own = storage.join(root, f"{MODEL_FOLDER}{self.parts[0].settings.model.name}")
            raise RequestError(
                f"--output: {root} holds the outputs of several models, each in its folder; that of this one alone is "
                f"--output {own}"
            )

    def look(self, part: Part, *, thorough: bool, each: Each = threads) -> tuple[Inventory, Backlog]:
        """What the output of a part holds, and what is left to do."""
        inventory = part.store.read(each=each)
        listed = self.listing.recordings
        former = former_versions(listed, inventory, part.store, thorough=thorough, each=each)
        return inventory, Backlog.of(listed, former, inventory, retry_failed=self.config.retry_failed)


def _refuse_unequal_windows(settings: Sequence[Settings]) -> None:
    """Windows of a run begin and end at the same times, whatever the models' sample rates."""
    first, *others = settings
    for other in others:
        mine, its = first.windows, other.windows
        for option, samples, other_samples in (("--window-s", mine.length, its.length), ("--hop-s", mine.hop, its.hop)):
            if samples * its.rate_hz != other_samples * mine.rate_hz:
                raise RequestError(
                    f"{option}: {first.model.name} would have {samples / mine.rate_hz:g} s, {other.model.name} "
                    f"{other_samples / its.rate_hz:g} s; give a length that is a whole number of samples at "
                    f"{mine.rate_hz} and {its.rate_hz} Hz"
                )


def describe_run(config: EmbedConfig, settings: Settings) -> dict[str, Any]:
    """``run.json``: every setting, and the versions of what computes the vectors."""
    return {
        "settings": described(settings),
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


def described(settings: Settings) -> dict[str, Any]:
    """The settings for a reader of the output: what is guarded, and what follows from it."""
    return settings.guarded() | {
        "checkpoint": settings.checkpoint.uri,
        "sample_rate_hz": settings.windows.rate_hz,
        "embedding_size": settings.model.traits.dim,
    }


def greet(terminal: Terminal, request: Request) -> None:
    settings = [part.settings for part in request.parts]
    windows = settings[0].windows
    models = " + ".join(f"{each.model.name} · {each.windows.rate_hz / 1000:g} kHz" for each in settings)
    terminal.say(
        f"avex-batch {metadata.version('avex-batch')} · {models} · window {windows.length / windows.rate_hz:g} s, "
        f"hop {windows.hop / windows.rate_hz:g} s · {settings[0].precision}"
    )
    random = [each.model.name for each in settings if each.checkpoint.uri == RANDOM_CHECKPOINT]
    if random:
        whose = "these vectors mean" if len(random) == len(settings) else f"the vectors of {', '.join(random)} mean"
        terminal.warn(f"RANDOM WEIGHTS: {whose} nothing; for trials only (--checkpoint random)")


def describe_work(terminal: Terminal, request: Request, works: Sequence[Backlog]) -> None:
    """What is listed, and what of it is to be done; with several models, a line for each."""
    listing = request.listing
    parts = [f"{plural(len(listing.recordings), 'recording')}, {size(listing.n_bytes)}"]
    if listing.left_out:
        parts.append(f"left out: {describe_left_out(listing.left_out)}")
    if listing.n_hard_links:
        parts.append(f"{listing.n_hard_links:,} are hard links to others of them")
    if len(works) > 1:
        terminal.say(" · ".join(parts))
    for part, work in zip(request.parts, works, strict=True):
        progress = []
        if len(work.done_before):
            progress.append(f"{len(work.done_before):,} done before")
        if len(work.failed_before):
            progress.append(f"{len(work.failed_before):,} failed before (--retry-failed tries them again)")
        to_do = [", ".join([*progress, f"{len(work.todo):,} to do"])] if progress else []
        if len(works) == 1:
            terminal.say(" · ".join(parts + to_do))
        elif to_do:
            terminal.say(f"  {part.settings.model.name}: {to_do[0]}")
        if work.n_changed:
            terminal.say(
                f"{work.n_changed:,} of them were embedded before with another size or time: their audio is compared, "
                "and only what differs is embedded anew"
            )


def describe_dry_run(terminal: Terminal, request: Request, audio_s: Sequence[float]) -> None:
    """What a run over about ``audio_s`` seconds of audio, of each part, would write."""
    terminal.say(
        f"dry run, nothing written: {_cost(request.parts, audio_s)}; try --limit on a few recordings to see the speed"
    )


def describe_overlap(terminal: Terminal, request: Request, audio_s: float) -> None:
    """The cost of a run over about ``audio_s`` seconds of audio, where a short hop makes many windows of little."""
    overlap = max(part.settings.windows.length / part.settings.windows.hop for part in request.parts)
    if overlap >= MANY_TIMES:
        cost = _cost(request.parts, [audio_s] * len(request.parts))
        terminal.warn(f"windows overlap {overlap:,.0f} times: {cost}")


def _cost(parts: Sequence[Part], audio_s: Sequence[float]) -> str:
    n_windows, n_bytes = 0, 0
    for part, seconds in zip(parts, audio_s, strict=True):
        of_part = int(seconds * part.settings.windows.rate_hz / part.settings.windows.hop)
        n_windows += of_part
        n_bytes += of_part * part.settings.row_bytes
    return f"about {audio_length(max(audio_s))} of audio, {plural(n_windows, 'window')}, {size(n_bytes)} of vectors"
