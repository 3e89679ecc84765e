"""The two ways a run ends without being a bug. Each message is one line a person can act on."""

import sys
import traceback

from embedding.redact import redact
from embedding.text import printable


class RequestError(Exception):
    """The request makes no sense as it stands: exit code 2.

    The message names the option or file and says what to do instead.
    """


class RunError(Exception):
    """The run could not go on, though the request was sound: exit code 1.

    What is stored stays valid; the message says what failed and how to continue.
    """


def storage_failure(error: OSError) -> RunError:
    """Return the message for an error of the storage that waiting did not remove."""
    reason = (error.strerror or str(error)).splitlines()[0]
    # Ray Data hands what it has to say of a task's failure over as a third argument, which an OSError takes for a name.
    # Of a rename the second name is the one that a person knows.
    names = (name for name in (error.filename2, error.filename) if isinstance(name, str))
    name = next((name for name in names if name.startswith(("/", "s3://"))), "")
    where = f" ({name})" if name else ""
    return RunError(
        f"the storage failed: {reason}{where}; what is stored stays valid, run the same command again to go on"
    )


def root_cause(error: BaseException) -> str:
    """One line of what lies at the bottom of a chain of wrapped errors."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def print_error(error: Exception) -> None:
    """One line on stderr."""
    print(f"avex-batch: {printable(' '.join(redact(str(error)).split()))}", file=sys.stderr)  # noqa: T201


def print_traceback(error: Exception) -> None:
    """The traceback Python would print, on stderr: its messages may quote URLs."""
    print(redact("".join(traceback.format_exception(error))), end="", file=sys.stderr)  # noqa: T201
