"""Silence for libraries that write to stderr or log without being asked."""

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from embedding.errors import RequestError, RunError
from embedding.redact import redact

STDERR = 2  # file descriptor


@contextmanager
def logging_hidden(name: str) -> Iterator[None]:
    """Hide warnings of a library's logger while the block runs; its errors are shown.

    Args:
        name: Name of the logger.
    """
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def hide_hints_for_notebooks() -> None:
    """Hide hints that Ray and tqdm print where ipywidgets is missing; this program shows progress without it."""
    warnings.filterwarnings("ignore", "IProgress not found")
    logging.getLogger("ray.widgets").setLevel(logging.WARNING)


@contextmanager
def native_output_hidden() -> Iterator[None]:
    """Keep what C and C++ code (Ray's core, libmpg123) writes to stderr in a file while the block runs.

    After an error that is a bug the output is shown. What Python writes and logs to stderr stays visible; in notebooks
    that is another stream than file descriptor 2, whose output notebooks show as well.

    Ray 2.60's core complains on the driver's stderr about how Ray Data starts its own actors, past Python's logging
    and whatever RAY_BACKEND_LOG_LEVEL says.
    """
    try:
        copy = os.dup(STDERR)
    except OSError:  # it is closed
        yield
        return
    python_stderr = sys.stderr
    try:
        python_stderr.flush()
        is_python_stderr = python_stderr.fileno() == STDERR
    except (OSError, ValueError):  # a stand-in without a file
        is_python_stderr = False
    with tempfile.TemporaryFile("w+", errors="replace") as hidden, os.fdopen(copy, "w", buffering=1) as shown:
        handlers = _handlers_of(python_stderr) if is_python_stderr else []
        if is_python_stderr:
            sys.stderr = shown
        for handler in handlers:
            handler.setStream(shown)
        os.dup2(hidden.fileno(), STDERR)
        try:
            yield
        except (RequestError, RunError, KeyboardInterrupt):
            raise
        except BaseException:
            hidden.seek(0)
            sys.stderr.write(redact(hidden.read()))
            raise
        finally:
            os.dup2(shown.fileno(), STDERR)
            if is_python_stderr:
                sys.stderr = python_stderr
            for handler in handlers:
                handler.setStream(python_stderr)


def _handlers_of(stream: object) -> list["logging.StreamHandler[Any]"]:
    """Return the handlers of all loggers that write to a stream."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    return [
        handler
        for logger in loggers
        if isinstance(logger, logging.Logger)
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is stream
    ]
