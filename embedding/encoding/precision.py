"""Number formats in which encoders compute, and torch's switches for them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from embedding.errors import RequestError

# Type of the operands of matrix products. Sums, norms and vectors are always float32.
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# First compute capability whose tensor cores support a format. On older GPUs torch emulates bfloat16 and ignores TF32.
MIN_CAPABILITY = {"tf32": (8, 0), "bf16": (8, 0)}


def check_precision(precision: str, gpu: str, capability: tuple[int, int]) -> None:
    """Check that a GPU supports ``precision``.

    Args:
        precision: A key of ``DTYPES``.
        gpu: Name of the GPU, for the error message.
        capability: Compute capability of the GPU, major and minor.

    Raises:
        RequestError: The GPU is too old for the format.
    """
    minimum = MIN_CAPABILITY.get(precision, (0, 0))
    if capability < minimum:
        raise RequestError(
            f"--precision: {gpu} (compute capability {capability[0]}.{capability[1]}) cannot compute in {precision}, "
            f"which needs {minimum[0]}.{minimum[1]} or newer; use --precision fp16 or fp32"
        )


@contextmanager
def float32_products_in(precision: str) -> Iterator[None]:
    """Set torch's switches for products of float32 numbers as ``precision`` requires; restore them afterwards.

    A kernel is chosen at its launch, so the switches have to be set while a forward pass is launched. The switches
    belong to the process: only one thread at a time may be in this block.

    By default cuDNN rounds the inputs of float32 convolutions to ten bits (``torch.backends.cudnn.allow_tf32`` is
    True), which gives an error of 1e-3 against float32. Only ``tf32`` permits that.
    """
    backends = torch.backends
    before = backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32
    backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32 = before
