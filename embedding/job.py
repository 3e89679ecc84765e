"""Targets and the job of a run: everything that its stages need, small and picklable."""

import json
import platform
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

from embedding import storage
from embedding.config import EmbedConfig
from embedding.encoding.settings import Settings
from embedding.errors import RequestError
from embedding.output.store import Store
from embedding.planning.shared_paths import NOTHING_LOCAL, SharedPaths
from embedding.redact import redact_all
from embedding.schema.batches import by_rate
from embedding.schema.windows import WindowSpec

VERSIONED_PACKAGES = ("avex-batch", "avex", "ray", "torch", "torchaudio", "numpy", "pyarrow", "soundfile", "soxr")


@dataclass(frozen=True)
class Target:
    """One model of a run, and the output of its vectors."""

    settings: Settings
    store: Store

    @classmethod
    def of(cls, config: EmbedConfig) -> "Target":
        """Return the target of a request for one model (``config.per_model``).

        Raises:
            RequestError: The model, an option or the output makes no sense.
        """
        root = storage.normalise(config.output, "--output")
        return cls._at(root, Settings.of(config)).with_stored_device()

    @classmethod
    def _at(cls, root: str, settings: Settings) -> "Target":
        return cls(settings, Store(root, json.dumps(redact_all(described(settings)))))

    def with_stored_device(self) -> "Target":
        """Return the target with the device of the vectors in its output; the run's device is known once Ray is."""
        stored = self.store.stored_settings() or {}
        return self._at(self.store.root, replace(self.settings, device=stored.get("device")))

    def on_device(self, device: str) -> "Target":
        """Return the target with the device of its encoders, cpu or cuda.

        Raises:
            RequestError: The device does not compute in the precision, or the output holds vectors of the other device.
        """
        settings = self.settings.on(device)
        if settings.device == self.settings.device:
            return self
        if self.store.stored_settings() is not None:
            stored_device = self.settings.device or "cpu"
            raise RequestError(
                f"--device: {self.store.root} holds {settings.precision} vectors from {stored_device}, and this run's "
                f"encoders are on {device}, which rounds differently; use --device {stored_device}, or another --output"
            )
        return self._at(self.store.root, settings)

    def write_description(self, config: EmbedConfig, agreement: dict[str, Any] | None = None) -> None:
        """Write ``run.json``: every setting, the options, and the versions of the packages that compute the vectors.

        Args:
            config: The request.
            agreement: Agreement of the vectors with vectors of fp32; None: as a former run of the same settings has
                measured it.
        """
        content = describe_run(config, self.settings)
        if agreement is None:
            stored = self.store.read_json("run.json") or {}
            if stored.get("settings") == redact_all(content["settings"]):
                agreement = stored.get("agreement")
        if agreement is not None:
            content["agreement"] = agreement
        self.store.write_json("run.json", content)


def describe_run(config: EmbedConfig, settings: Settings) -> dict[str, Any]:
    """Return the content of ``run.json``."""
    return {
        "settings": described(settings),
        "options": {
            "input": list(config.input),
            "batch_size": config.batch_size,
            "device": config.device,
            "actors": config.actors,
            "limit": config.limit,
            "min_agreement": config.min_agreement,
            "shard_rows": config.shard_rows,
        },
        "versions": {name: metadata.version(name) for name in VERSIONED_PACKAGES}
        | {"python": platform.python_version()},
    }


def described(settings: Settings) -> dict[str, Any]:
    """Return the settings for a reader of the output: the guarded settings, and values that follow from them."""
    return settings.guarded() | {
        "checkpoint": settings.checkpoint.uri,
        "sample_rate_hz": settings.model.rate_hz,
        "embedding_size": settings.model.traits.dim,
    }


@dataclass(frozen=True)
class Job:
    """A leg of a run, as its stages see it.

    Attributes:
        targets: The models; their numbers are their positions.
        run_id: Identifier of the run.
        batch_size: Windows per batch.
        shard_rows: Rows per shard.
        shared_paths: Local paths that each node has to see.
        min_agreement: Least cosine between vectors of a reduced precision and vectors of fp32.
        leg: Number of the leg; a long run has several.
    """

    targets: tuple[Target, ...]
    run_id: str
    batch_size: int
    shard_rows: int
    shared_paths: SharedPaths = NOTHING_LOCAL
    min_agreement: float = 0.0
    leg: int = 0

    @property
    def windows(self) -> list[WindowSpec]:
        """The windows of each target."""
        return [target.settings.windows for target in self.targets]

    @property
    def window_bytes(self) -> int:
        """Bytes of a window's samples in memory, at all sample rates together."""
        return sum(spec.n_bytes for spec in by_rate(self.windows))

    def shard_name(self, write_task: int) -> str:
        """Return the name of the shard of a write task; a task that is tried again overwrites its own shard."""
        return f"{self.run_id}-{self.leg}-{write_task:06d}"
