"""The end of a command: its exit code, and one line on stderr after an error."""

import logging
from collections.abc import Callable

from embedding.errors import RequestError, RunError, print_error, print_traceback
from embedding.redact import redact_record
from embedding.stopping import stop_on_signals

EXIT_COMPLETE, EXIT_INCOMPLETE, EXIT_BAD_REQUEST = 0, 1, 2


def run_job(job: Callable[[], int | None], *, output: str = "--output") -> int:
    """Run ``job`` as a command. Every outcome except a bug prints one line.

    Args:
        job: The job; it may return an exit code of its own.
        output: Name of the output on the job's command line, for messages.

    Returns:
        The exit code.
    """
    if logging.lastResort:  # the handler of everything that libraries log without being configured
        logging.lastResort.addFilter(redact_record)
    try:
        with stop_on_signals(ends_process=True):
            code = job()
    except RequestError as error:
        print_error(RequestError(str(error).replace("--output", output)))
        return EXIT_BAD_REQUEST
    except RunError as error:
        print_error(error)
        return EXIT_INCOMPLETE
    except KeyboardInterrupt:
        print_error(RunError("stopped; what is stored stays valid, run the same command again to go on"))
        return EXIT_INCOMPLETE
    except Exception as error:  # noqa: BLE001 — a bug; its traceback is printed
        print_traceback(error)
        return EXIT_INCOMPLETE
    return EXIT_COMPLETE if code is None else code
