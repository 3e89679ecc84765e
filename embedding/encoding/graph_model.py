"""Graph of a model that OpenVINO executes on a CPU: windows to unpooled features, without torch."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from embedding.encoding.spectra import FrontEnd

# OpenVINO's names of precisions. A CPU without bfloat16 products computes bf16 in float32.
PRECISION_HINTS = {"fp32": "f32", "bf16": "bf16"}


class GraphModel:
    """A front end and a graph, which OpenVINO executes."""

    def __init__(self, front_end: FrontEnd, graph: ov.Model | Path, precision: str, n_threads: int) -> None:
        """Configure OpenVINO.

        Args:
            front_end: Function that computes the graph's input.
            graph: The graph, or its file, whose weights are then mapped into memory.
            precision: Key of ``PRECISION_HINTS``.
            n_threads: Number of threads.
        """
        self._front_end, self._graph = front_end, graph
        self._core = ov.Core()
        self._options = {
            "INFERENCE_PRECISION_HINT": PRECISION_HINTS[precision],
            "INFERENCE_NUM_THREADS": n_threads,
            "NUM_STREAMS": 1,
            # With pinning, all actors of a machine would use the same first cores.
            "ENABLE_CPU_PINNING": False,
        }
        # One compiled graph per shape, because a graph for any number of windows is 10 % slower.
        self._requests: dict[tuple[int, ...], Any] = {}

    def __call__(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute features.

        Args:
            windows: float32 ``[n, length]``.

        Returns:
            Tokens ``[n, tokens, dim]`` or maps ``[n, dim, freq, time]``, valid until the next call.
        """
        spectra = self._front_end(windows)
        size = self._size_for(spectra.shape)
        if size > len(spectra):
            spectra = np.concatenate([spectra, np.zeros((size - len(spectra), *spectra.shape[1:]), np.float32)])
        features = self._request(spectra.shape).infer([spectra], share_inputs=True, share_outputs=True)[0]
        return features[: len(windows)]

    def keep_only(self, n_windows: int) -> None:
        """Free the compiled graphs for other numbers of windows: each holds the weights once more."""
        self._requests = {shape: request for shape, request in self._requests.items() if shape[0] == n_windows}

    def cpu_digest(self) -> str:
        """Return a hash of the CPU's name and of its fast number formats."""
        names = ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")
        text = str([self._core.get_property("CPU", name) for name in names])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _size_for(self, shape: tuple[int, ...]) -> int:
        """Return the number of windows of the smallest compiled graph that holds ``shape``, or that of ``shape``.

        Filling up a larger graph with silence costs less than compiling another one, and no memory.
        """
        n_windows, *others = shape
        sizes = [n for n, *compiled in self._requests if compiled == others and n >= n_windows]
        return min(sizes, default=n_windows)

    def _request(self, shape: tuple[int, ...]) -> Any:
        if shape not in self._requests:
            graph = self._core.read_model(self._graph) if isinstance(self._graph, Path) else self._graph.clone()
            graph.reshape(list(shape))
            self._requests[shape] = self._core.compile_model(graph, "CPU", self._options).create_infer_request()
        return self._requests[shape]
