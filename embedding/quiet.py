"""Silence for libraries that write to stderr or log without being asked."""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from embedding.errors import RequestError, RunError
from embedding.redact import redact


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


@contextmanager
def native_output_hidden() -> Iterator[None]:
    """Keep what C and C++ code (Ray's core, libmpg123) writes to stderr in a file while the block runs.

    After an error that is a bug the output is shown.

    Ray 2.60's core complains on the driver's stderr about how Ray Data starts its own actors, past Python's logging
    and whatever RAY_BACKEND_LOG_LEVEL says.
    """
    try:
        python_stderr, descriptor = sys.stderr, sys.stderr.fileno()
    except OSError:  # stderr is no file, as in some notebooks
        yield
        return
    sys.stderr.flush()
    with (
        tempfile.TemporaryFile("w+", errors="replace") as hidden,
        os.fdopen(os.dup(descriptor), "w", buffering=1) as shown,
    ):
        sys.stderr = shown
        os.dup2(hidden.fileno(), descriptor)
        try:
            yield
        except (RequestError, RunError, KeyboardInterrupt):
            raise
        except BaseException:
            hidden.seek(0)
            shown.write(redact(hidden.read()))
            raise
        finally:
            os.dup2(shown.fileno(), descriptor)
            sys.stderr = python_stderr
