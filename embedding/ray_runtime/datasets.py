"""Settings of Ray Data, and a flow of one stage."""

import logging
import warnings
from collections.abc import Callable, Iterator

import pyarrow as pa
import ray.data

# Most rows in a task of ``stream``: enough to amortise a task, few enough to show progress.
TASK_ROWS = 16
# Encoders that die in a row while they load, before a run gives up.
ENCODER_STARTS = 20


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


def configure_pipeline(batch_bytes: int, n_gpus: float, *, is_own: bool, verbose: bool) -> None:
    """Set up Ray Data for the pipeline of a run.

    Args:
        batch_bytes: Bytes of a batch of windows.
        n_gpus: GPUs of all encoders together.
        is_own: The Ray was started by this process.
        verbose: Show what Ray Data logs.
    """
    if not verbose:
        # Ray Data takes one decode task for one batch; a task yields as many batches as its recordings have.
        warnings.filterwarnings("ignore", "The minimum number of concurrent actors")
    context = data_context(verbose=verbose)
    # One batch of windows is one block: a larger target would merge batches, a smaller target would split them.
    context.target_max_block_size = int(0.8 * batch_bytes)
    # An encoder whose process dies while it loads ends a run, unless it is replaced. After an encoder that loads, the
    # count begins anew.
    context.max_consecutive_actor_init_deaths = ENCODER_STARTS
    # Ray Data asks the autoscaler for more GPUs than its fixed pool of actors can use, unless it has a limit.
    context.execution_options.resource_limits = ray.data.ExecutionResources(gpu=n_gpus)
    if not is_own:
        # Ray Data ends a run without progress for 30 minutes, and spot machines may take longer to come. The terminal
        # shows that the run waits.
        context.execution_no_progress_timeout_s = -1


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
