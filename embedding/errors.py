"""The two exceptions that end a run without being a bug. Each message is one line that tells the user what to do."""

import sys
import traceback

from embedding.redact import redact
from embedding.text import printable


class RequestError(Exception):
    """The request makes no sense: exit code 2.

    The message names the option or file, and a remedy.
    """


class RunError(Exception):
    """The run failed although the request makes sense: exit code 1.

    What is stored stays valid. The message names the fault and how to continue.
    """


def storage_failure(error: OSError) -> RunError:
    """Return the error of a run for an error of the storage that retries did not cure."""
    reason = (error.strerror or str(error)).splitlines()[0]
    # Ray Data adds the message of a failed task as a third argument, which OSError takes for a file name. After a
    # failed rename the second file name is the one that the user knows.
    names = (name for name in (error.filename2, error.filename) if isinstance(name, str))
    name = next((name for name in names if name.startswith(("/", "s3://"))), "")
    where = f" ({name})" if name else ""
    return RunError(
        f"the storage failed: {reason}{where}; what is stored stays valid, run the same command again to go on"
    )


def root_cause(error: BaseException) -> str:
    """Return the first line of the innermost error in a chain of wrapped errors."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def print_error(error: Exception) -> None:
    """Print an error as one line on stderr."""
    print(f"avex-batch: {printable(' '.join(redact(str(error)).split()))}", file=sys.stderr)  # noqa: T201


def print_traceback(error: Exception) -> None:
    """Print a traceback on stderr, redacted, because messages may quote URLs."""
    print(redact("".join(traceback.format_exception(error))), end="", file=sys.stderr)  # noqa: T201
