"""A proxy in front of an S3 server that injects the faults of real stores into reads and writes, as a test chooses."""

import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

SLOW_DOWN = "503 SlowDown"
INTERNAL_ERROR = "500 InternalError"
NOT_IMPLEMENTED = "501 NotImplemented"  # the permanent answer of a store to a header that it does not know
FORBIDDEN = "403 AccessDenied"
EXPIRED = "400 ExpiredToken"
CONFLICT = "409 ConditionalRequestConflict"
RESET = "connection reset"
SLOW = "slow answer"
CUT = "body shorter than its Content-Length"
SHORT = "body and Content-Length both too short"
EMPTY = "no body, and a Content-Length of 0"
LOST = "connection reset after the request was carried out"

ANSWERS = {
    SLOW_DOWN: (503, "SlowDown", "Please reduce your request rate."),
    INTERNAL_ERROR: (500, "InternalError", "We encountered an internal error. Please try again."),
    FORBIDDEN: (403, "AccessDenied", "Access Denied"),
    EXPIRED: (400, "ExpiredToken", "The provided token has expired."),
    CONFLICT: (409, "ConditionalRequestConflict", "A conflicting operation is in progress. Try again."),
    NOT_IMPLEMENTED: (501, "NotImplemented", "A header you provided implies functionality that is not implemented."),
}
# Transient faults of each HTTP method.
TRANSIENT = {
    "GET": (SHORT, CUT, SLOW_DOWN, RESET, INTERNAL_ERROR, SLOW),
    "HEAD": (SLOW_DOWN, RESET, INTERNAL_ERROR, SLOW),
    "PUT": (LOST, SLOW_DOWN, RESET, INTERNAL_ERROR, SLOW),
    "DELETE": (LOST, SLOW_DOWN, RESET, INTERNAL_ERROR, SLOW),
}

FaultChoice = Callable[["Request"], str | None]  # the fault for a request, if any


class FaultyS3:
    """State of the proxy.

    Attributes:
        host: Host and port of the S3 server.
        url: Endpoint of the proxy.
        choose: Chooses the fault for each request.
        slow_s: Seconds before a slow answer.
        n_faults: Number of injected faults, by kind.
        n_requests: Number of requests, by HTTP method.
    """

    def __init__(self, upstream: str) -> None:
        self.host = urlsplit(upstream).netloc
        self.url = ""
        self.choose: FaultChoice = lambda _: None
        self.slow_s = 0.3
        self.n_faults, self.n_requests = Counter[str](), Counter[str]()
        self.lock = threading.Lock()

    def fault_for(self, request: "Request") -> str:
        """Count a request, and return the kind of its fault; empty for no fault."""
        with self.lock:
            self.n_requests[request.command] += 1
            kind = self.choose(request) or ""
            self.n_faults.update([kind] if kind else [])
        return kind


def fail_first(n: int, kind: str, method: str = "") -> FaultChoice:
    """Return a choice: the first ``n`` requests fail; with ``method``, only requests of this HTTP method."""
    left = iter(range(n))
    return lambda request: kind if request.command == (method or request.command) and next(left, n) < n else None


def fail_always(kind: str, method: str = "") -> FaultChoice:
    """Return a choice: all requests fail; with ``method``, only requests of this HTTP method."""
    return fail_first(1 << 30, kind, method)


def fail_every(n: int) -> FaultChoice:
    """Return a choice: of each HTTP method every ``n``-th request fails, with all transient faults in turn."""
    n_requests: Counter[str] = Counter()

    def choose(request: "Request") -> str | None:
        turn, i = divmod(n_requests[request.command], n)
        n_requests[request.command] += 1
        kinds = TRANSIENT[request.command]
        return None if i else kinds[turn % len(kinds)]

    return choose


class Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultyS3

    def handle_request(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind = self.proxy.fault_for(self)
        if kind in ANSWERS:
            status, code, message = ANSWERS[kind]
            body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
            self.reply(status, {"Content-Length": str(len(body))}, b"" if self.command == "HEAD" else body)
        elif kind == RESET:
            self.reset()
        else:
            self.forward(content, kind)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_request  # noqa: N815 — names of http.server

    def forward(self, content: bytes, kind: str) -> None:
        upstream = HTTPConnection(self.proxy.host)
        upstream.request(self.command, self.path, content, dict(self.headers))
        response = upstream.getresponse()
        body = response.read()
        headers = {name: value for name, value in response.getheaders() if name not in ("Connection", "Date")}
        upstream.close()
        if kind == LOST:
            self.reset()
            return
        if kind == SLOW:
            time.sleep(self.proxy.slow_s)
        part = body[: {CUT: len(body) // 2, SHORT: len(body) // 2, EMPTY: 0}.get(kind, len(body))]
        if kind in (SHORT, EMPTY):
            headers["Content-Length"] = str(len(part))
        self.close_connection = kind == CUT
        self.reply(response.status, headers, part)

    def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for header in headers.items():
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(body)

    def reset(self) -> None:
        """End the connection with RST: without lingering, and before http.server closes it in the regular way."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()
        self.close_connection = True

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


@contextmanager
def faulty_s3_proxy(upstream: str) -> Iterator[FaultyS3]:
    """Run a proxy in front of the S3 server at the URL ``upstream``. Without a choice of the test it has no faults."""
    proxy = FaultyS3(upstream)
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Request,), {"proxy": proxy})) as server:
        server.daemon_threads = True  # the end must not wait for clients that keep their connections
        server.handle_error = lambda *_: None  # type: ignore[method-assign] — clients may close connections at any time
        proxy.url = "http://{}:{}".format(*server.server_address)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield proxy
        server.shutdown()
