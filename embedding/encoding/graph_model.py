"""Graph of a model that OpenVINO executes on a CPU: windows to unpooled features, without torch."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from embedding.encoding.int8_graph import GROUP, quantize_products
from embedding.encoding.spectra import FrontEnd

# OpenVINO's names of precisions. A CPU without bfloat16 products computes bf16 in float32. int8 is for matrix products
# only; the rest of such a graph is float32.
PRECISION_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


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
        self._front_end = front_end
        self._core = ov.Core()
        self._graph = self._quantized(graph) if precision == "int8" else graph
        self._options = {
            "INFERENCE_PRECISION_HINT": PRECISION_HINTS[precision],
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP if precision == "int8" else 0,
            "INFERENCE_NUM_THREADS": n_threads,
            "NUM_STREAMS": 1,
            # With pinning, all actors of a machine would use the same first cores.
            "ENABLE_CPU_PINNING": False,
        }
        # A compiled graph has one shape, because a graph for any number of windows is 10 % slower.
        self._shape: tuple[int, ...] = ()
        self._request: Any = None

    def __call__(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute features.

        Args:
            windows: float32 ``[n, length]``.

        Returns:
            Tokens ``[n, tokens, dim]`` or maps ``[n, dim, freq, time]``, valid until the next call.
        """
        spectra = self._front_end(windows)
        if self._shape[1:] != spectra.shape[1:] or len(spectra) > self._shape[0]:
            self._compile(spectra.shape)
        # Filling up a larger graph with silence costs less than compiling another one.
        n_missing = self._shape[0] - len(spectra)
        if n_missing:
            spectra = np.concatenate([spectra, np.zeros((n_missing, *spectra.shape[1:]), np.float32)])
        features = self._request.infer([spectra], share_inputs=True, share_outputs=True)[0]
        return features[: len(windows)]

    def release(self) -> None:
        """Free the compiled graph; the next call compiles one for its own number of windows."""
        self._shape, self._request = (), None

    def cpu_digest(self) -> str:
        """Return a hash of the CPU's name and of its fast number formats."""
        names = ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")
        text = str([self._core.get_property("CPU", name) for name in names])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _quantized(self, graph: ov.Model | Path) -> ov.Model:
        graph = self._read(graph)
        assert quantize_products(graph), "no product of the graph can be computed in int8"
        return graph

    def _read(self, graph: ov.Model | Path) -> ov.Model:
        """Return a copy of a graph, which the caller may change."""
        return self._core.read_model(graph) if isinstance(graph, Path) else graph.clone()

    def _compile(self, shape: tuple[int, ...]) -> None:
        self.release()  # a compiled graph holds the weights once more, 360 MB for BEATs
        graph = self._read(self._graph)
        graph.reshape(list(shape))
        self._request = self._core.compile_model(graph, "CPU", self._options).create_infer_request()
        self._shape = shape
