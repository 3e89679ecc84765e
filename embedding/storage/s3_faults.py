"""Which faults of S3 pass, and waiting until they have: exponential back-off with full jitter.

Ours are the only retries. s3fs and botocore, left to themselves, multiply theirs (docs/decisions.md has the figures).
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

# S3 splits a prefix that is asked too much within seconds to a minute. The window a wait is drawn from doubles from 1 s
# up to 30 s: 91 s at most over 8 tries, 45 s on average.
TRIES = 8
FIRST_WAIT_S = 1
LONGEST_WAIT_S = 30
# Where nobody answers (refused, no such name, a time-out), the address is wrong more often than the server restarts.
# 15 s of waits at most; with the client's time-outs 40 s for a connection, 115 s for a server that takes requests and
# stays silent. Counted in tries, not in seconds: a large write may take minutes before it is cut off.
UNANSWERED_TRIES = 5

# Answers below 500 that say "again", not "never": throttling, a slow or damaged upload, another writer this moment.
_PASSING_CODES = {
    *("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "429"),
    *("RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"),
    *("OperationAborted", "ConditionalRequestConflict"),
}
_NEVER_STATUS = {501, 505}  # not implemented, version not supported

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class ShortBodyError(OSError):
    """Fewer bytes came than were asked for, and the server took them for all."""


def whole(body: bytes, n_bytes: int) -> bytes:
    """``body``, unless it is shorter than ``n_bytes``.

    Raises:
        ShortBodyError: it is.
    """
    if len(body) < n_bytes:
        raise ShortBodyError(f"{len(body):,} of {n_bytes:,} bytes came")
    return body


def as_os_error(error: BaseException) -> OSError:
    """``error`` itself if it is one, otherwise one whose message is its name and what it says, in one line."""
    if isinstance(error, OSError):
        return error
    made = OSError(f"{type(error).__name__}: {' '.join(str(error).split())}")
    made.__cause__ = error
    return made


@contextmanager
def service_errors() -> Iterator[None]:
    """Raise errors of botocore and aiohttp that s3fs lets through (no credentials, no route, time-outs) as OSErrors."""
    from aiohttp import ClientError as HttpError
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    try:
        yield
    except OSError as error:  # of s3fs; and some of aiohttp's are
        if _is_without_reason(error):
            reason = "S3 answers 400 Bad Request and gives no reason, as it does to credentials that have expired"
            raise OSError(error.errno, reason) from error.__cause__
        raise
    except (BotoCoreError, ClientError, HttpError, ResponseParserError) as error:
        raise as_os_error(error) from error


def _is_without_reason(error: OSError) -> bool:
    """The answer to a HEAD has no body to say why."""
    response = getattr(error.__cause__, "response", {})
    return response.get("Error", {}).get("Code") == "400"


def patiently(action: Callable[[], _T], uris: list[str]) -> _T:
    """Return the result of ``action``, tried again while faults pass; ``uris`` (which it may change) are for the log.

    Raises:
        OSError: the fault that does not pass, or that has not within the patience of the constants above.
    """

    def attempt() -> _T:
        with service_errors():
            return action()

    def warn(state: RetryCallState) -> None:
        if state.attempt_number >= 2:  # one failure is everyday
            named = uris[0] if len(uris) == 1 else f"{uris[0]} and {len(uris) - 1} more"
            error = _error(state)
            reason = error.strerror or error
            _log.warning("%s: %s; try %d in %.1f s", named, reason, state.attempt_number + 1, state.upcoming_sleep)

    return Retrying(
        retry=retry_if_exception(passes),
        wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
        stop=_out_of_patience,
        before_sleep=warn,
        reraise=True,
    )(attempt)


def _error(state: RetryCallState) -> OSError:
    assert state.outcome is not None
    error = state.outcome.exception()
    assert isinstance(error, OSError)
    return error


def _out_of_patience(state: RetryCallState) -> bool:
    return state.attempt_number >= (UNANSWERED_TRIES if _is_unanswered(_error(state)) else TRIES)


def passes(fault: object) -> bool:
    """Return whether the same request may succeed a little later.

    It may after throttling, an error of the server's (5xx), a time-out, a lost connection, or a body that came short or
    damaged. It will not where something is missing, forbidden or misnamed, without credentials, or after any other
    refusal (4xx): asking again would only keep a person waiting.
    """
    from aiohttp import ClientConnectionError, ClientPayloadError
    from botocore import exceptions as botocore
    from botocore.parsers import ResponseParserError

    cause = getattr(fault, "__cause__", None) or fault  # s3fs's and our own OSErrors have the service's for a cause
    if isinstance(cause, botocore.ClientError):
        status = cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return cause.response["Error"].get("Code") in _PASSING_CODES or (status >= 500 and status not in _NEVER_STATUS)
    if isinstance(cause, botocore.HTTPClientError) and isinstance(cause.kwargs.get("error"), ValueError):
        return False  # the request itself makes no sense (an endpoint with a login in it), whoever would answer
    lost = (TimeoutError, ConnectionError, ClientConnectionError, botocore.HTTPClientError, botocore.ConnectionError)
    short = (ShortBodyError, ClientPayloadError, botocore.IncompleteReadError)
    damaged = (ResponseParserError, botocore.FlexibleChecksumError)
    return isinstance(cause, (*lost, *short, *damaged))


def _is_unanswered(error: OSError) -> bool:
    """Return whether there was no connection, or no answer in time.

    Not whether one broke, which botocore calls an EndpointConnectionError, too.
    """
    from aiohttp import ClientConnectorError
    from botocore.exceptions import BotoCoreError, ConnectTimeoutError, ReadTimeoutError

    cause = error.__cause__ or error
    if isinstance(cause, BotoCoreError):
        reason = cause.kwargs.get("error")
        return isinstance(cause, ConnectTimeoutError | ReadTimeoutError) or isinstance(reason, ClientConnectorError)
    return isinstance(cause, ClientConnectorError | TimeoutError)
