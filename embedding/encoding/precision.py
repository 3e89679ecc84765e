"""Number formats that encoders compute in, and torch's switches for them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from embedding.errors import RequestError

# The type in which matrices are multiplied. Sums, norms and vectors are float32 always.
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# The first compute capability whose tensor cores know a format. Below, torch emulates bfloat16 and ignores TF32.
LEAST_CAPABILITY = {"tf32": (8, 0), "bf16": (8, 0)}


def refuse_unable(precision: str, gpu: str, capability: tuple[int, int]) -> None:
    """Check that a GPU computes in ``precision``.

    Args:
        precision: a key of ``DTYPES``.
        gpu: name of the GPU, for the message.
        capability: compute capability of the GPU, major and minor.

    Raises:
        RequestError: the GPU is too old for the format.
    """
    least = LEAST_CAPABILITY.get(precision, (0, 0))
    if capability < least:
        raise RequestError(
            f"--precision: {gpu} (compute capability {capability[0]}.{capability[1]}) cannot compute in {precision}, "
            f"which needs {least[0]}.{least[1]} or newer; use --precision fp16 or fp32"
        )


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Set torch's switches for products of float32 numbers; put them back afterwards.

    A kernel is chosen when it is launched, so the switches matter while a pass is being launched. They belong to the
    process: two threads must not be in this block at once.

    cuDNN rounds the inputs of float32 convolutions to ten bits by default (``torch.backends.cudnn.allow_tf32`` is
    True), which is 1e-3 away from float32. Only ``tf32`` asks for that.
    """
    backends = torch.backends
    before = backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32
    backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32 = before
