"""Retries of transient S3 faults, with exponential back-off and full jitter.

These are the only retries: retries of s3fs and botocore would multiply with them (docs/decisions.md has the figures).
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

# S3 splits a prefix with too many requests within seconds to a minute. Each wait is drawn from an interval that doubles
# from 1 s up to 30 s: at most 91 s over 8 tries, 45 s on average.
TRIES = 8
FIRST_WAIT_S = 1
LONGEST_WAIT_S = 30
# Where no server answers (connection refused, unknown host, time-out), a wrong address is more likely than a restart of
# the server. At most 15 s of waits; with the client's time-outs 40 s until no connection was made, 115 s for a server
# that accepts requests and never answers. The limit is a number of tries, not of seconds, because a large write may
# take minutes before its connection breaks.
UNANSWERED_TRIES = 5

# Error codes below status 500 that are transient: throttling, a slow or damaged upload, another writer at this moment.
_TRANSIENT_CODES = {
    *("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "429"),
    *("RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"),
    *("OperationAborted", "ConditionalRequestConflict"),
}
_PERMANENT_STATUS = {501, 505}  # not implemented, version not supported

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class ShortBodyError(OSError):
    """The body of an answer has fewer bytes than requested, and the server reports no error."""


def check_length(body: bytes, n_bytes: int) -> bytes:
    """Return ``body``.

    Raises:
        ShortBodyError: ``body`` is shorter than ``n_bytes``.
    """
    if len(body) < n_bytes:
        raise ShortBodyError(f"received {len(body):,} of {n_bytes:,} bytes")
    return body


def as_os_error(error: BaseException) -> OSError:
    """Return an OSError unchanged, and any other error as an OSError with its name and its message in one line."""
    if isinstance(error, OSError):
        return error
    os_error = OSError(f"{type(error).__name__}: {' '.join(str(error).split())}")
    os_error.__cause__ = error
    return os_error


@contextmanager
def convert_service_errors() -> Iterator[None]:
    """Convert errors of botocore and aiohttp that s3fs does not convert (credentials, routes, time-outs) to OSError."""
    from aiohttp import ClientError as HttpError
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    try:
        yield
    except OSError as error:  # errors of s3fs, and some errors of aiohttp
        if _is_without_reason(error):
            reason = "S3 answered 400 Bad Request without a reason, as it answers to expired credentials"
            raise OSError(error.errno, reason) from error.__cause__
        raise
    except (BotoCoreError, ClientError, HttpError, ResponseParserError) as error:
        raise as_os_error(error) from error


def _is_without_reason(error: OSError) -> bool:
    """Return whether an answer has no body with the reason, like every answer to a HEAD request."""
    response = getattr(error.__cause__, "response", {})
    return response.get("Error", {}).get("Code") == "400"


def retry(action: Callable[[], _T], uris: list[str]) -> _T:
    """Call ``action`` until it succeeds or fails permanently, and return its result.

    Args:
        action: The call.
        uris: Objects that the call concerns, for the log; ``action`` may change the list.

    Raises:
        OSError: The permanent fault, or a transient fault that lasts longer than the constants above allow.
    """

    def attempt() -> _T:
        with convert_service_errors():
            return action()

    def warn(state: RetryCallState) -> None:
        if state.attempt_number >= 2:  # a single failure is common
            objects = uris[0] if len(uris) == 1 else f"{uris[0]} and {len(uris) - 1} more"
            error = _error(state)
            reason = error.strerror or error
            _log.warning("%s: %s; try %d in %.1f s", objects, reason, state.attempt_number + 1, state.upcoming_sleep)

    return Retrying(
        retry=retry_if_exception(is_transient),
        wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
        stop=_is_last_try,
        before_sleep=warn,
        reraise=True,
    )(attempt)


def _error(state: RetryCallState) -> OSError:
    assert state.outcome is not None
    error = state.outcome.exception()
    assert isinstance(error, OSError)
    return error


def _is_last_try(state: RetryCallState) -> bool:
    return state.attempt_number >= (UNANSWERED_TRIES if _is_unanswered(_error(state)) else TRIES)


def is_transient(fault: object) -> bool:
    """Return whether the same request may succeed a little later.

    Transient faults are throttling, errors of the server (5xx), time-outs, lost connections, and short or damaged
    bodies. A missing or forbidden object, a wrong name, missing credentials and any other 4xx are permanent: a retry
    would only make the user wait.
    """
    from aiohttp import ClientConnectionError, ClientPayloadError
    from botocore import exceptions as botocore
    from botocore.parsers import ResponseParserError

    cause = getattr(fault, "__cause__", None) or fault  # OSErrors of s3fs and as_os_error
    if isinstance(cause, botocore.ClientError):
        status = cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = cause.response["Error"].get("Code")
        return code in _TRANSIENT_CODES or (status >= 500 and status not in _PERMANENT_STATUS)
    if isinstance(cause, botocore.HTTPClientError) and isinstance(cause.kwargs.get("error"), ValueError):
        return False  # the request itself is invalid, for example an endpoint with a login in it
    lost = (TimeoutError, ConnectionError, ClientConnectionError, botocore.HTTPClientError, botocore.ConnectionError)
    short = (ShortBodyError, ClientPayloadError, botocore.IncompleteReadError)
    damaged = (ResponseParserError, botocore.FlexibleChecksumError)
    return isinstance(cause, (*lost, *short, *damaged))


def _is_unanswered(error: OSError) -> bool:
    """Return whether no connection was made, or no answer came in time.

    A connection that broke does not count, although botocore raises EndpointConnectionError for it, too.
    """
    from aiohttp import ClientConnectorError
    from botocore.exceptions import BotoCoreError, ConnectTimeoutError, ReadTimeoutError

    cause = error.__cause__ or error
    if isinstance(cause, BotoCoreError):
        reason = cause.kwargs.get("error")
        return isinstance(cause, ConnectTimeoutError | ReadTimeoutError) or isinstance(reason, ClientConnectorError)
    return isinstance(cause, ClientConnectorError | TimeoutError)
