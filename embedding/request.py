"""What is asked for, looked up; and what a person is told of it before work begins."""

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

from embedding import storage
from embedding.config import MODEL_FOLDER, EmbedConfig
from embedding.encoding.settings import Settings
from embedding.errors import RequestError
from embedding.listing.listing import Listing, list_recordings
from embedding.output.backlog import Backlog, former_versions
from embedding.output.inventory import Each, Inventory, threads
from embedding.output.store import Store
from embedding.redact import redact_all

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
