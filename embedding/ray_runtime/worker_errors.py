"""Errors of workers, raised in the driver as the errors that they were in the worker."""

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import ray.exceptions

from embedding.errors import RequestError, RunError, storage_failure


@contextmanager
def raise_worker_errors() -> Iterator[None]:
    """Run a block that waits for workers; remove Ray's layers from the errors that it raises.

    Workers of a run that failed are released, although its error is kept: a notebook keeps the last error, and the
    encoders would keep the CPUs that the next run needs.

    Raises:
        RequestError: A worker found the request wrong.
        RunError: The storage or the cluster failed, or a worker ended the run.
    """
    try:
        with _released_on_error():
            yield
    except ray.exceptions.ActorDiedError as error:
        if error.actor_init_failed:
            raise RunError(f"no encoder could load the model, on any node: {_last_line(error)}") from error
        raise RunError(
            "the encoders' processes died again and again while they loaded the model: out of memory? Try fewer "
            f"--actors ({str(error).splitlines()[0]})"
        ) from error
    except ray.exceptions.RuntimeEnvSetupError as error:
        raise RunError(
            "a node could not get this job's working directory from Ray, which removes the directory with the job that "
            f"brought it: change any file in it and submit again ({_last_line(error)})"
        ) from error
    except Exception as error:
        for inner in _chain(error):
            if isinstance(inner, RequestError | RunError):
                # Our errors have one line; Ray Data appends a paragraph about its retries.
                raise type(inner)(str(inner).splitlines()[0]) from error
            if isinstance(inner, OSError):
                raise storage_failure(inner) from error
        raise


@contextmanager
def _released_on_error() -> Iterator[None]:
    """Run a block; if it raises, release the objects that were local to the functions that ended with the error."""
    try:
        yield
    except BaseException as error:  # also an interrupt
        link: BaseException | None = error
        released = set[int]()
        while link is not None and id(link) not in released:
            released.add(id(link))
            traceback.clear_frames(link.__traceback__)
            link = link.__cause__ or link.__context__
        gc.collect()  # Ray Data's executor and its operators refer to each other
        raise


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the errors of a chain of causes that are not Ray's own."""
    while error is not None:
        # Ray raises a task's error as a class that is both Ray's and the original's, with Ray's text: `cause` is the
        # original alone.
        cause = getattr(error, "cause", None)
        if cause is None and not isinstance(error, ray.exceptions.RayError):
            yield error
        error = cause or error.__cause__ or error.__context__
