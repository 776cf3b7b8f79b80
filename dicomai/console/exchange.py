"""One request and its answer; each on a connection of its own, so that nothing of one can pass for the next."""

import contextlib
import socket
import time
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler

import structlog

from dicomai.console.body import BLOCK, Body

log = structlog.get_logger()

_LINGER_SECONDS = 2.0


class Exchange(BaseHTTPRequestHandler):
    """What the library has read of a request, and how it is answered."""

    protocol_version = "HTTP/1.1"
    server_version = "dicomai"
    sys_version = ""
    timeout = 30

    has_begun = False
    """Whether the head of an answer was sent."""

    _waits_for_go = False

    @property
    def address(self) -> str:
        """Where the request comes from."""
        return str(self.client_address[0])

    def body(self) -> Body:
        """Judge the body; a sender that waits for it is told to go on by `go_on`.

        Raises:
            RequestError: where it ends is not clear.
        """
        return Body(self.headers, self.rfile)

    def go_on(self, idle_timeout: float) -> None:
        """Let the body come: a sender that asked first (Expect: 100-continue) is told so.

        Args:
            idle_timeout: how many seconds it may stand still.
        """
        self.connection.settimeout(idle_timeout)
        if self._waits_for_go:
            self.send_response_only(HTTPStatus.CONTINUE)
            self.end_headers()

    def handle_expect_100(self) -> bool:
        """Leave the answer to `go_on`: who is refused need not send."""
        self._waits_for_go = True
        return True

    def answer(self, status: HTTPStatus, kind: str, text: str, more: Mapping[str, str] | None = None) -> None:
        """Answer with a text.

        Args:
            status: of the answer.
            kind: media type.
            text: the body.
            more: headers beside the usual ones.
        """
        body = text.encode()
        self.begin(status, kind, len(body), more)
        self.wfile.write(body)

    def begin(self, status: HTTPStatus, kind: str, length: int, more: Mapping[str, str] | None = None) -> None:
        """Send the head of an answer; `length` bytes follow."""
        self.has_begun = True
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(length),
            "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
            "Connection": "close",
            **(more or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()

    def linger(self) -> None:
        """Let a sender see the answer to a body that nobody read: otherwise its connection is reset (RFC 9112 9.6)."""
        end = time.monotonic() + _LINGER_SECONDS
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(_LINGER_SECONDS)
            while time.monotonic() < end and self.rfile.read1(BLOCK):
                pass

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the library's name
        """Log a request as everything else is logged, but for its query, which may name a patient."""
        log.debug("request", line=(format % args).partition("?")[0])
