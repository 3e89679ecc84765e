"""What decides the vectors of a run: resolved from the options, stored with the output, and guarded."""

from dataclasses import dataclass, replace
from typing import Any

from embedding.config import EmbedConfig, refuse_on_cpus
from embedding.encoding.checkpoints import Checkpoint, fetch_checkpoint
from embedding.encoding.label_map import Labels, fetch_labels
from embedding.encoding.models import Model, check_fits, find_model, layer_numbers
from embedding.schema.windows import WindowSpec


@dataclass(frozen=True)
class Settings:
    """Two runs with equal settings give equal vectors for equal audio."""

    model: Model
    checkpoint: Checkpoint
    windows: WindowSpec
    pooling: str  # mean, max or cls
    mask_padding: bool
    precision: str  # fp32, tf32, bf16 or fp16
    layers: tuple[int, ...] = ()  # inner ones, by number
    labels: Labels | None = None
    device: str | None = None  # where that decides the vectors: "cuda" for those of reduced precision from GPUs

    @classmethod
    def of(cls, config: EmbedConfig) -> "Settings":
        """Resolve defaults that come from the model (of one alone: ``config.per_model``), and fetch its weights.

        Raises:
            RequestError: no such model, options it cannot serve, or weights that cannot be had.
        """
        model = find_model(config.model[0])
        windows = WindowSpec.from_seconds(model.rate_hz, config.window_s or model.native_s, config.hop_s, config.tail)
        check_fits(model, config, windows.length)
        layers = layer_numbers(model, config.layers)
        checkpoint = fetch_checkpoint(model.name, config.checkpoint[0] if config.checkpoint else model.checkpoint)
        return cls(
            model=model,
            checkpoint=checkpoint,
            windows=windows,
            pooling=config.pooling,
            mask_padding=config.mask_padding,
            precision=config.precision,
            layers=layers,
            labels=fetch_labels(model, checkpoint, config.predict) if config.predict else None,
        )

    def on(self, device: str) -> "Settings":
        """Return the settings of a run whose encoders are on ``device`` (cpu or cuda).

        At reduced precision a GPU and a CPU round differently: bf16 vectors of the two differ in their third digit.

        Raises:
            RequestError: the device does not compute in this precision.
        """
        if device == "cpu":
            refuse_on_cpus(self.precision)
        return replace(self, device=device if device == "cuda" and self.precision != "fp32" else None)

    @property
    def row_bytes(self) -> int:
        """Of a stored window, about: its vectors hardly compress, its keys do."""
        traits = self.model.traits
        n_numbers = traits.dim + sum(traits.layer_dims[layer] for layer in self.layers)
        return 4 * n_numbers + 50 + (12 * self.labels.k if self.labels else 0)

    def guarded(self) -> dict[str, Any]:
        """The values an output directory belongs to, by the name a person knows them under."""
        return {
            "model": self.model.name,
            "checkpoint_digest": self.checkpoint.digest,
            "window_s": self.windows.length / self.windows.rate_hz,
            "hop_s": self.windows.hop / self.windows.rate_hz,
            "tail": self.windows.tail,
            "pooling": self.pooling,
            "mask_padding": self.mask_padding,
            "precision": self.precision,
            "device": self.device,
            "layers": list(self.layers) or None,  # None: an output of before there were any is the same
            "predict": self.labels.k if self.labels else None,
            "labels_digest": self.labels.digest if self.labels else None,
        }
