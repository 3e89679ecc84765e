"""Encoder on a CPU that computes a model's graph. It imports neither torch nor avex."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from embedding.encoding.graph_files import GraphFiles
from embedding.encoding.graph_model import GraphModel
from embedding.encoding.label_map import LabelMap, check_classifier
from embedding.encoding.micro_batch_search import SIZES, MicroBatchSearch
from embedding.encoding.settings import Settings

Array = NDArray[Any]


class CpuEncoder:
    """A model's graph, a pooling, and a classifier if labels are predicted.

    Attributes:
        settings: Settings that determine the vectors.
    """

    def __init__(self, settings: Settings, files: GraphFiles, n_threads: int, *, keeps_times: bool = True) -> None:
        """Open the files of the model.

        Args:
            settings: Settings for which ``graph_files.can_use_graph`` is true.
            files: Files of the model with the weights of ``settings.checkpoint``.
            n_threads: Threads that OpenVINO may use.
            keeps_times: Keep the times of passes for later encoders.

        Raises:
            RequestError: The checkpoint has no classifier, or one that does not match the label map.
        """
        self.settings = settings
        self._model = GraphModel(files.front_end(), files.graph, settings.precision, n_threads)
        self._classifier = None
        if settings.label_map is not None:
            self._classifier = _Classifier(settings, files, settings.label_map)
        work = f"{settings.precision}-{settings.windows.length}-{n_threads}-{self._model.cpu_digest()}"
        self._search_file = files.folder / f"micro-batch-{work}.json" if keeps_times else None
        self._search = MicroBatchSearch(self._search_file, SIZES[-1])

    def warm_up(self, batch_size: int) -> float:
        """Prepare for batches of ``batch_size`` windows.

        Returns:
            0, because a CPU needs no warm-up.
        """
        self._search = MicroBatchSearch(self._search_file, batch_size)
        return 0.0

    def encode(
        self, windows: NDArray[np.float32], n_audio: NDArray[np.int64], stopping: Callable[[], bool] = lambda: False
    ) -> dict[str, Array]:
        """Compute the outputs of windows.

        Args:
            windows: float32 ``[n, length]``.
            n_audio: ``[n]``, number of samples of each window that are audio; not used, because padding is encoded
                like audio.
            stopping: Checked before each pass; once it returns True, the remaining windows are not encoded.

        Returns:
            Outputs by name: ``embedding``, the pooled vectors, float32 ``[n, dim]``; and with predictions ``labels``,
            the numbers of the most likely labels, and ``scores``, both ``[n, k]``.
        """
        outputs = [self._outputs(np.empty((0, self.settings.model.traits.dim, 1, 1), np.float32))]
        start = 0
        while start < len(windows) and not stopping():
            size = self._search.size_for(len(windows) - start)
            outputs.append(self._encode_pass(windows[start : start + size]))
            start += size
        return {name: np.concatenate([part[name] for part in outputs]) for name in outputs[0]}

    def _encode_pass(self, windows: NDArray[np.float32]) -> dict[str, Array]:
        began = time.perf_counter()
        outputs = self._outputs(self._model(windows))
        was_measured = self._search.record(len(windows), time.perf_counter() - began)
        if was_measured and self._search.pass_size != len(windows):
            self._model.release()  # otherwise smaller passes would be filled up to this size
        return outputs

    def _outputs(self, features: NDArray[np.float32]) -> dict[str, Array]:
        outputs: dict[str, Array] = {"embedding": _pool(features, self.settings.pooling)}
        if self._classifier is not None:
            outputs["labels"], outputs["scores"] = self._classifier(features)
        return outputs


class _Classifier:
    """Last layer of avex's supervised models: linear, on features pooled in the same way as in training."""

    def __init__(self, settings: Settings, files: GraphFiles, label_map: LabelMap) -> None:
        self._pooling, self._k = settings.model.traits.classifier_pooling, label_map.k
        name = settings.model.traits.classifier
        with safe_open(files.constants, "numpy") as stored:
            check_classifier(settings.model, settings.checkpoint.uri, stored, len(label_map.names))
            self._weight, self._bias = stored.get_tensor(f"{name}.weight"), stored.get_tensor(f"{name}.bias")

    def __call__(self, features: NDArray[np.float32]) -> tuple[Array, Array]:
        """Return the numbers and the scores of the most likely labels; see ``classifier.Classifier``."""
        from scipy.special import expit

        logits = _pool(features, self._pooling) @ self._weight.T + self._bias
        numbers = np.argsort(-logits, axis=1, kind="stable")[:, : self._k]
        return numbers, expit(np.take_along_axis(logits, numbers, axis=1))


def _pool(features: NDArray[np.float32], pooling: str) -> NDArray[np.float32]:
    """Pool tokens ``[n, tokens, dim]`` or maps ``[n, dim, freq, time]`` to ``[n, dim]`` by ``mean`` or ``max``."""
    axes = (2, 3) if features.ndim == 4 else (1,)
    if pooling == "max":
        return features.max(axes, initial=-np.inf)
    # NumPy adds the rows of tokens one by one, which would lose a digit in float32.
    return features.mean(axes, dtype=np.float64).astype(np.float32)
