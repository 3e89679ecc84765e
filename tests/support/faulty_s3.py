"""A proxy in front of an S3 server that fails as stores do: reads and writes alike, when and how a test says."""

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
NOT_IMPLEMENTED = "501 NotImplemented"  # a store's answer to a header it does not know: for ever
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
PASSING = {
    "GET": (SHORT, CUT, SLOW_DOWN, RESET, INTERNAL_ERROR, SLOW),
    "HEAD": (SLOW_DOWN, RESET, INTERNAL_ERROR, SLOW),
    "PUT": (LOST, SLOW_DOWN, RESET, INTERNAL_ERROR, SLOW),
    "DELETE": (LOST, SLOW_DOWN, RESET, INTERNAL_ERROR, SLOW),
}

Choice = Callable[["Request"], str | None]  # which fault a request meets


class FaultyS3:
    """``choose`` decides; ``done`` counts the faults that were really committed, ``asked`` all requests by verb."""

    def __init__(self, upstream: str) -> None:
        self.host = urlsplit(upstream).netloc
        self.url = ""
        self.choose: Choice = lambda _: None
        self.slow_s = 0.3
        self.done, self.asked = Counter[str](), Counter[str]()
        self.lock = threading.Lock()

    def fault(self, request: "Request") -> str:
        with self.lock:
            self.asked[request.command] += 1
            kind = self.choose(request) or ""
            self.done.update([kind] if kind else [])
        return kind


def first(n: int, kind: str, verb: str = "") -> Choice:
    """The first ``n`` requests (of this verb) fail in this way, the others do not."""
    left = iter(range(n))
    return lambda request: kind if request.command == (verb or request.command) and next(left, n) < n else None


def always(kind: str, verb: str = "") -> Choice:
    return first(1 << 30, kind, verb)


def every(n: int) -> Choice:
    """The first of ``n`` requests of each verb fails, in the next of the ways in which the verb can fail."""
    asked: Counter[str] = Counter()

    def choose(request: "Request") -> str | None:
        turn, i = divmod(asked[request.command], n)
        asked[request.command] += 1
        kinds = PASSING[request.command]
        return None if i else kinds[turn % len(kinds)]

    return choose


class Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultyS3

    def handle_request(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind = self.proxy.fault(self)
        if kind in ANSWERS:
            status, code, message = ANSWERS[kind]
            body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
            self.reply(status, {"Content-Length": str(len(body))}, b"" if self.command == "HEAD" else body)
        elif kind == RESET:
            self.reset()
        else:
            self.forward(sent, kind)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_request  # noqa: N815 — named by http.server

    def forward(self, sent: bytes, kind: str) -> None:
        upstream = HTTPConnection(self.proxy.host)
        upstream.request(self.command, self.path, sent, dict(self.headers))
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
        """Closed here (http.server would say goodbye first) and with nothing lingering, a connection ends with RST."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()
        self.close_connection = True

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


@contextmanager
def faulty(upstream: str) -> Iterator[FaultyS3]:
    """A proxy in front of ``upstream`` (a URL); it lets everything through until told otherwise."""
    proxy = FaultyS3(upstream)
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Request,), {"proxy": proxy})) as server:
        server.daemon_threads = True  # a client that keeps its connection must not keep us
        server.handle_error = lambda *_: None  # type: ignore[method-assign] — clients may leave when they like
        proxy.url = "http://{}:{}".format(*server.server_address)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield proxy
        server.shutdown()
