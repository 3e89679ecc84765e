"""Matrix products of a graph in int8: weights are rounded once, and inputs while the graph runs.

Each row of a weight is divided by its largest absolute value and rounded to -127 … 127: symmetric quantisation for each
output channel (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference"). OpenVINO rounds the inputs of a product in the same way, in groups of ``GROUP`` numbers, where the CPU has
instructions for sums of products of 8 bits (VNNI); other CPUs turn the weights back into float32. Norms, sums and
attention stay in float32.
"""

from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

# Numbers of an input that are rounded with one scale. BEATs' rows of 768 and 3,072 numbers consist of whole groups;
# other weights stay in float32.
GROUP = 768
# Largest absolute value of a rounded weight. -128 is not used, so that the range is symmetric.
LARGEST = 127


def quantize_products(graph: ov.Model) -> int:
    """Replace weights of a graph's matrix products by int8 weights and a scale for each row.

    Args:
        graph: The graph in float32, which changes.

    Returns:
        Number of products that changed.
    """
    n_changed = 0
    for node in graph.get_ops():
        if node.get_type_name() != "MatMul" or not node.get_attributes()["transpose_b"]:
            continue
        weight: Any = node.input_value(1).get_node()
        if weight.get_type_name() != "Constant" or len(weight.shape) != 2 or weight.shape[1] % GROUP:
            continue
        rounded, scale = quantize_rows(weight.data)
        product = ops.multiply(ops.convert(ops.constant(rounded), "f32"), ops.constant(scale))
        node.input(1).replace_source_output(product.output(0))
        n_changed += 1
    return n_changed


def quantize_rows(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round the rows of a weight to 8 bits.

    Args:
        weight: float32 ``[rows, inputs]``.

    Returns:
        The rounded weight, int8 ``[rows, inputs]``, and the scale of each row, float32 ``[rows, 1]``. Their product
        differs from ``weight`` by at most half a scale.
    """
    largest: NDArray[np.float32] = np.abs(weight).max(axis=1, keepdims=True)
    scale = np.where(largest > 0, largest / LARGEST, 1).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), scale
