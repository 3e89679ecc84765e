"""Settings that determine the vectors of a run: derived from the options, stored with the output, and guarded."""

from dataclasses import dataclass, replace
from typing import Any

from embedding.config import EmbedConfig, refuse_precision
from embedding.encoding.checkpoints import Checkpoint, fetch_checkpoint
from embedding.encoding.label_map import LabelMap, fetch_label_map
from embedding.encoding.models import Model, check_fits, find_model, layer_numbers
from embedding.schema.windows import WindowSpec


@dataclass(frozen=True)
class Settings:
    """Settings of one target. Equal settings give equal vectors for equal audio.

    Attributes:
        model: The avex model.
        checkpoint: Weights of the model.
        windows: Length, hop and sample rate of the windows; at a speed below 1 the rate is above the model's.
        pooling: ``mean``, ``max`` or ``cls``.
        mask_padding: True if padding is masked in the model.
        precision: ``fp32``, ``tf32``, ``bf16``, ``fp16`` or ``int8``.
        speed: Speed at which the model hears recordings.
        layers: Indices of the inner layers that are stored.
        label_map: Labels that are predicted, or None.
        device: ``cuda`` for vectors of reduced precision from GPUs; None where the device does not matter.
    """

    model: Model
    checkpoint: Checkpoint
    windows: WindowSpec
    pooling: str
    mask_padding: bool
    precision: str
    speed: float = 1.0
    layers: tuple[int, ...] = ()
    label_map: LabelMap | None = None
    device: str | None = None

    @classmethod
    def of(cls, config: EmbedConfig) -> "Settings":
        """Apply the model's defaults to the options, and fetch the weights.

        Args:
            config: Options of one model (``config.per_model``).

        Raises:
            RequestError: The model does not exist or does not support the options, or the weights cannot be fetched.
        """
        model = find_model(config.model[0])
        # The samples of a recording at 160 kHz, heard at 16 kHz, are the recording ten times slower.
        rate_hz = round(model.rate_hz / config.speed)
        window_s = config.window_s or model.native_s * model.rate_hz / rate_hz
        windows = WindowSpec.from_seconds(rate_hz, window_s, config.hop_s, config.tail)
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
            speed=config.speed,
            layers=layers,
            label_map=fetch_label_map(model, checkpoint, config.predict) if config.predict else None,
        )

    def on(self, device: str) -> "Settings":
        """Return the settings of a run whose encoders are on a given device.

        GPUs and CPUs round differently at reduced precision: their bf16 vectors differ in the third digit.

        Args:
            device: ``cpu`` or ``cuda``.

        Raises:
            RequestError: The device does not support the precision.
        """
        refuse_precision(self.precision, device)
        return replace(self, device=device if device == "cuda" and self.precision != "fp32" else None)

    @property
    def row_bytes(self) -> int:
        """Approximate size of a stored window in bytes: vectors hardly compress, keys do."""
        traits = self.model.traits
        n_numbers = traits.dim + sum(traits.layer_dims[layer] for layer in self.layers)
        return 4 * n_numbers + 50 + (12 * self.label_map.k if self.label_map else 0)

    def guarded(self) -> dict[str, Any]:
        """Return the values that must not change between runs into one output, by the names that users know."""
        return {
            "model": self.model.name,
            "checkpoint_digest": self.checkpoint.digest,
            "window_s": self.windows.length / self.windows.rate_hz,
            "hop_s": self.windows.hop / self.windows.rate_hz,
            "tail": self.windows.tail,
            "pooling": self.pooling,
            "mask_padding": self.mask_padding,
            "precision": self.precision,
            "speed": None if self.speed == 1 else self.speed,  # None equals the missing value of outputs before it
            "device": self.device,
            "layers": list(self.layers) or None,  # None equals the missing value of outputs older than this option
            "predict": self.label_map.k if self.label_map else None,
            "labels_digest": self.label_map.digest if self.label_map else None,
        }
