"""Cost of a batch of windows between decoding and encoding.

``python benchmarks/hand_over.py``

A batch goes into Ray's object store and out of it, to a tensor of float32: in the job's layout, as int16, and for
overlapping windows as the audio from which they are cut. For comparison, the table has the time of encoding a batch on
one core of a CPU, EfficientNet-B0.
"""

import argparse
import gc
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray

from alone import encode_rate
from archive import add_cache_option
from harness import run_rounds
from job import WINDOW_S, Workspace
from tables import Spread, add_options, markdown, page, publish
from weights import EFFICIENTNET

N_WINDOWS = 64
LENGTH = int(WINDOW_S * 16_000)
HOP = LENGTH // 2
Samples = NDArray[Any]  # float32 or int16


def as_list(samples: Samples, length: int) -> pa.Table:
    """Return a table of ``[n]`` samples in rows of ``length``."""
    return pa.table({"window": pa.FixedSizeListArray.from_arrays(pa.array(samples), length)})


def flat(table: pa.Table) -> Samples:
    return table["window"].combine_chunks().flatten().to_numpy(zero_copy_only=True)


def hand_over_ms(pack: Callable[[], pa.Table], unpack: Callable[[pa.Table], Samples], seconds: float) -> float:
    """Return the time in ms to pack a batch, to pass it through the object store and to unpack it to a tensor."""
    times = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        reference = ray.put(pack())
        tensor = torch.tensor(unpack(ray.get(reference)))
        times.append(1000 * (time.perf_counter() - began))
        assert tensor.dtype == torch.float32
        del reference, tensor
        gc.collect()
    return float(np.median(times))


def layouts() -> dict[str, tuple[Callable[[], pa.Table], Callable[[pa.Table], Samples]]]:
    audio = np.random.default_rng(0).standard_normal(N_WINDOWS * LENGTH).astype(np.float32) / 10
    overlapping = audio[: (N_WINDOWS - 1) * HOP + LENGTH]
    cut = np.lib.stride_tricks.sliding_window_view(overlapping, LENGTH)[::HOP]

    def to_int16() -> pa.Table:
        return as_list((audio * np.float32(32_767)).round().astype(np.int16), LENGTH)

    def from_int16(table: pa.Table) -> Samples:
        return flat(table).astype(np.float32) / np.float32(32_767)

    def views(table: pa.Table) -> Samples:
        return np.lib.stride_tricks.sliding_window_view(flat(table), LENGTH)[::HOP]

    return {
        "windows, float32 (this job)": (lambda: as_list(audio.copy(), LENGTH), flat),
        "windows, int16": (to_int16, from_int16),
        "half overlapping windows, float32 (this job)": (
            lambda: as_list(np.ascontiguousarray(cut).reshape(-1), LENGTH),
            flat,
        ),
        "half overlapping windows as contiguous audio": (
            lambda: as_list(overlapping.copy(), len(overlapping)),
            views,
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, rounds=3)
    add_cache_option(parser)
    arguments = parser.parse_args()
    seconds = 1.0 if arguments.small else 10.0
    workspace = Workspace.of(arguments, "hand-over")
    windows_per_s = encode_rate(workspace, EFFICIENTNET, "fp32", processes=1, threads=1, seconds=seconds)
    encoding_ms = 1000 * N_WINDOWS / windows_per_s
    ray.init(num_cpus=1, include_dashboard=False, logging_level=logging.ERROR)
    tasks = {
        name: lambda pack=pack, unpack=unpack: hand_over_ms(pack, unpack, seconds)
        for name, (pack, unpack) in layouts().items()
    }
    results = run_rounds(tasks, 1 if arguments.small else arguments.rounds)
    rows = [
        [name, Spread.of(ms).text(), Spread.of([100 * batch_ms / encoding_ms for batch_ms in ms]).text(".2f")]
        for name, ms in results.items()
    ]
    table = markdown([f"{N_WINDOWS} windows of {WINDOW_S:g} s", "ms", "% of encoding them"], rows)
    notes = [f"Encoding them: {encoding_ms:.0f} ms of one core ({EFFICIENTNET}, fp32)."]
    publish("hand-over", page(__doc__, table, notes), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())
