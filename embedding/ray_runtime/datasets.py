"""What every flow asks of Ray Data."""

import logging
from collections.abc import Callable, Iterator

import pyarrow as pa
import ray.data

# Rows in a task of ``stream``, at most: enough to amortise a task, few enough for progress.
TASK_ROWS = 16


def context(*, verbose: bool) -> ray.data.DataContext:
    """Ray Data's settings; it speaks for itself only if ``verbose``."""
    if not verbose:
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it logs as an error, it also raises
    found = ray.data.DataContext.get_current()
    found.enable_progress_bars = False
    found.print_on_execution_start = False
    found.raise_original_map_exception = True
    return found


def stream(
    stage: Callable[..., pa.Table], rows: pa.Table, *arguments: object, verbose: bool = False
) -> Iterator[pa.Table]:
    """What ``stage(some_rows, *arguments)`` gives for all ``rows``, on all nodes, in any order."""
    if not len(rows):
        return
    context(verbose=verbose)
    n_rows = min(TASK_ROWS, max(1, len(rows) // 64))
    blocks = [rows.slice(start, n_rows) for start in range(0, len(rows), n_rows)]
    results = ray.data.from_blocks(blocks).map_batches(
        stage,  # type: ignore[arg-type] — over tables, as batch_format says
        fn_args=arguments,
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1,
    )
    yield from results.iter_batches(batch_size=None, batch_format="pyarrow")
