"""The HTTP server behind the page: `/`, `/worklist.json` and `/health`, by GET alone."""

import json
import re
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import structlog

from dicomai.config import Settings
from dicomai.console.page import render
from dicomai.database import Database
from dicomai.database.overview import Overview
from dicomai.errors import ConfigurationError, StoreError

log = structlog.get_logger()


class Console:
    """Serves the page until it is shut down."""

    def __init__(self, settings: Settings) -> None:
        """Take the port.

        Raises:
            ConfigurationError: the port cannot be had.
        """
        overview = Overview(Database(settings.node.worklist_url))
        names = {settings.console.host.lower(), "localhost", "127.0.0.1", "[::1]"}

        class Handler(_Handler):
            pass

        Handler.overview, Handler.ae_title, Handler.names = overview, settings.node.ae_title, names
        try:
            self._server = _Server((settings.console.host, settings.console.port), Handler)
        except OSError as error:
            raise ConfigurationError(
                f"The console cannot have {settings.console.host} port {settings.console.port} ({error.strerror}); "
                "set console.port to a free one."
            ) from error

    @property
    def port(self) -> int:
        """The port that it answers on."""
        return int(self._server.server_address[1])

    def run(self, stop: threading.Event) -> None:
        """Serve until told to stop."""
        thread = threading.Thread(target=self._server.serve_forever, name="console", daemon=True)
        thread.start()
        log.info("console answers", port=self.port)
        stop.wait()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002  the library's
        """Log what went wrong with a request, where the library writes a traceback with its text to standard error."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):  # the reader went away
            log.debug("a request broke off", error=error)
        else:
            log.error("a request failed", exc_info=error)


class _Handler(BaseHTTPRequestHandler):
    overview: Overview
    ae_title: str
    names: set[str]
    server_version = "dicomai"
    sys_version = ""
    timeout = 30

    def do_GET(self) -> None:
        # A page from elsewhere whose name was pointed at this address must not read the worklist (DNS rebinding).
        host = re.sub(r":[0-9]*$", "", (self.headers.get("Host") or "").lower())  # port 80 is left out
        if host not in self.names and self._is_local:
            self._answer(HTTPStatus.MISDIRECTED_REQUEST, "text/plain", "Ask for this node by its own address.")
            return
        try:
            self._route()
        except StoreError as error:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "application/json", json.dumps({"status": str(error)}))

    def _route(self) -> None:
        match self.path.partition("?")[0]:
            case "/":
                self._answer(HTTPStatus.OK, "text/html", render(self.ae_title, self.overview.entries(200)))
            case "/worklist.json":
                entries = [entry.as_dict() for entry in self.overview.entries()]
                self._answer(HTTPStatus.OK, "application/json", json.dumps(entries))
            case "/health":
                self.overview.entries(1)
                self._answer(HTTPStatus.OK, "application/json", json.dumps({"status": "ok"}))
            case _:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", "There is /, /worklist.json and /health.")

    @property
    def _is_local(self) -> bool:
        return str(self.client_address[0]) in {"127.0.0.1", "::1"}

    def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the library's name
        log.debug("request", line=format % args)
