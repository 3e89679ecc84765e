"""Windows cut from a stream of audio."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from embedding.schema.windows import WindowSpec


def cut(blocks: Iterable[NDArray[np.float32]], spec: WindowSpec) -> Iterator[NDArray[np.float32]]:
    """Cut a stream of mono blocks into windows, in order.

    Args:
        blocks: Arrays of shape ``[n]``, any ``n``, at ``spec.rate_hz``.
        spec: Length, hop and tail of the windows.

    Yields:
        Arrays of shape ``[k, spec.length]`` with ``k ≥ 1``. They may be views that overlap in memory: copy before
        writing. At most one window and one block are held at a time.
    """
    held = np.empty(0, dtype=np.float32)  # audio from the next window's start on
    skip = 0  # samples still to pass over before that start (only when hop > length)
    for block in blocks:
        fresh = block[skip:]
        skip -= len(block) - len(fresh)
        held = np.concatenate([held, fresh]) if len(held) else fresh
        if len(held) < spec.length:
            continue
        n_windows = (len(held) - spec.length) // spec.hop + 1
        yield np.lib.stride_tricks.sliding_window_view(held, spec.length)[:: spec.hop][:n_windows]
        used = n_windows * spec.hop
        skip = max(0, used - len(held))
        held = held[used:]
    if spec.tail == "pad" and len(held):
        n_windows = -(-len(held) // spec.hop)
        padded = np.concatenate([held, np.zeros(spec.length, dtype=np.float32)])
        yield np.lib.stride_tricks.sliding_window_view(padded, spec.length)[:: spec.hop][:n_windows]
