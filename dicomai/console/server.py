"""The HTTP server behind the page: `/`, `/worklist.json` and `/health`, by GET alone; and DICOMweb where it is on."""

import contextlib
import ipaddress
import json
import re
import socket
import sys
import threading
import time
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import structlog

from dicomai.config import Settings
from dicomai.console.exchange import Exchange
from dicomai.console.page import render
from dicomai.database import Database
from dicomai.database.overview import Overview
from dicomai.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from dicomai.console.dicomweb import DicomWeb

log = structlog.get_logger()

MOST_OTHERS = 128
"""How many connections may be open beside those that DICOMweb may have."""

HEAD_SECONDS = 30.0
"""Within which the head of a request has to come, however its bytes drip."""


class Console:
    """Serves the page until it is shut down."""

    def __init__(self, settings: Settings, dicomweb: "DicomWeb | None" = None) -> None:
        """Take the port.

        Args:
            settings: `[node]` and `[console]` are used.
            dicomweb: answers below `/dicomweb`; None where nothing does.

        Raises:
            ConfigurationError: the port cannot be had.
        """
        overview = Overview(Database(settings.node.worklist_url))
        names = {settings.console.host.lower(), socket.gethostname().lower(), "localhost", "127.0.0.1", "[::1]"}
        names |= {_without_port(urlsplit(settings.console.public_url).netloc)} - {""}

        class Handler(_Handler):
            pass

        Handler.overview, Handler.ae_title, Handler.names = overview, settings.node.ae_title, names
        Handler.dicomweb = self._dicomweb = dicomweb
        try:
            most = settings.receiver.max_associations + MOST_OTHERS
            self._server = _Server((settings.console.host, settings.console.port), Handler, most)
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
        thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="console", daemon=True)
        thread.start()
        log.info("console answers", port=self.port, dicomweb=self._dicomweb is not None)
        if self._dicomweb is not None:
            self._dicomweb.run(stop)
        stop.wait()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: type[Exchange], most_connections: int) -> None:
        super().__init__(address, handler)
        self._places = threading.BoundedSemaphore(most_connections)
        self._since: dict[socket.socket, float] = {}

    def verify_request(self, request: object, client_address: object) -> bool:  # noqa: ARG002  the library's
        """Close at once what there is no room for: each connection is a thread, and may be slow on purpose."""
        return self._places.acquire(blocking=False)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin to wait for the head of a request."""
        self._since[request] = time.monotonic()
        super().process_request(request, client_address)

    def head_came(self, request: socket.socket) -> None:
        """Hear that the head of a request is here."""
        self._since.pop(request, None)

    def service_actions(self) -> None:
        """End connections whose head takes too long; called several times a second."""
        for request, since in list(self._since.items()):
            if time.monotonic() - since > HEAD_SECONDS:
                with contextlib.suppress(OSError):  # it ends by itself at this moment
                    request.shutdown(socket.SHUT_RDWR)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection, then give its place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.head_came(request)
            self._places.release()

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002  the library's
        """Log what went wrong with a request, where the library writes a traceback with its text to standard error."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):  # the reader went away
            log.debug("a request broke off", error=error)
        else:
            log.error("a request failed", exc_info=error)


class _Handler(Exchange):
    overview: Overview
    ae_title: str
    names: set[str]
    dicomweb: "DicomWeb | None"

    def parse_request(self) -> bool:
        """Read the head of the request."""
        is_whole = super().parse_request()
        cast("_Server", self.server).head_came(self.connection)
        return is_whole

    def do_GET(self) -> None:  # noqa: N802  the library's name
        if self._is_for_us():
            try:
                self._route()
            except StoreError as error:
                text = json.dumps({"status": str(error)})
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "application/json", text)

    def do_POST(self) -> None:  # noqa: N802  the library's name
        if self._is_for_us():
            if self._is_dicomweb and self.dicomweb is not None:
                self.dicomweb.answer(self)
            else:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", "Nothing is taken here.")
        self.linger()

    def _is_for_us(self) -> bool:
        """Answer a request by a wrong name.

        A page from elsewhere whose name was pointed at this address must not read the worklist (DNS rebinding). An
        address is no name that could be pointed anywhere. DICOMweb on a network wants a token, which no such page has;
        a probe of `/health` learns nothing of anybody.
        """
        is_free = not self._is_local and (self._is_dicomweb or self.path.partition("?")[0] == "/health")
        host = _without_port(self.headers.get("Host") or "")
        if is_free or host in self.names or (not self._is_local and _is_address(host)):
            return True
        sentence = "Ask for this node by its own address, or set console.public_url to the name that it is called by."
        self._answer(HTTPStatus.MISDIRECTED_REQUEST, "text/plain", sentence)
        return False

    @property
    def _is_local(self) -> bool:
        return self.address in {"127.0.0.1", "::1"}

    @property
    def _is_dicomweb(self) -> bool:
        return self.path.startswith("/dicomweb/")

    def _route(self) -> None:
        if self._is_dicomweb and self.dicomweb is not None:
            self.dicomweb.answer(self)
            return
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

    def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        self.answer(status, f"{kind}; charset=utf-8", text)


def _without_port(host: str) -> str:
    return re.sub(r":[0-9]*$", "", host.lower())  # port 80 is left out


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
