"""Settings of Ray Data, and a flow of one stage."""

import logging
from collections.abc import Callable, Iterator

import pyarrow as pa
import ray.data

# Most rows in a task of ``stream``: enough to amortise a task, few enough to show progress.
TASK_ROWS = 16


def data_context(*, verbose: bool) -> ray.data.DataContext:
    """Return the settings of Ray Data for this process.

    Args:
        verbose: Show what Ray Data logs.
    """
    if not verbose:
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # an error that it logs is raised, too
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    return context


def stream(
    stage: Callable[..., pa.Table], rows: pa.Table, *arguments: object, verbose: bool = False
) -> Iterator[pa.Table]:
    """Yield the tables that ``stage(some_rows, *arguments)`` returns for all ``rows``, on all nodes, in any order."""
    if not len(rows):
        return
    data_context(verbose=verbose)
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
