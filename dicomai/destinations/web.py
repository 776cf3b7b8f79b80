"""One HTTP request and its answer, to a server of DICOMweb or of S3: nothing is followed, retried or hidden."""

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from dicomai import IMPLEMENTATION_VERSION_NAME
from dicomai.config import TlsSettings
from dicomai.errors import (
    ConfigurationError,
    DeliveryError,
    NoAssociationError,
    NotAdmittedError,
    RejectedError,
    UnreachableError,
)
from dicomai.tls import client_context, fault_of

_BLOCK = 64 * 1024
_LONGEST_ANSWER = 4 * 1024 * 1024

_AWAY = frozenset({429, 503})  # the server says that it takes nothing for now, whatever it is
_FOR_NOW = frozenset({408, 425})
_NEVER = frozenset({501, 505})  # of the 5xx: what it cannot do now it cannot do later
_OUTSIDE = frozenset({*range(300, 400), 401, 403, 404, 405, 407, *_NEVER})  # no object is to blame
_CLOSED = (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError)
_REMEDIES = {
    400: "look up the reason in its log",
    404: "check url of the [[destination]]",
    405: "check url of the [[destination]], and that this service is on there",
    407: "take the proxy away that stands between",
    411: "have it, or the proxy before it, take requests of this kind",
    413: "have it, or the proxy before it, take larger requests",
    501: "check url of the [[destination]], and that this service is on there",
}


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    Attributes:
        status: of HTTP.
        body: all of it; empty where it was handed on.
        headers: looked up without regard to case.
    """

    status: int
    body: bytes
    headers: http.client.HTTPMessage

    @property
    def is_success(self) -> bool:
        """One of the 2xx."""
        return 200 <= self.status < 300

    def json(self) -> Any:
        """Read the body as JSON; None where it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


class Server:
    """A server, called once per request: a connection is never used again, so that none is found closed.

    Proxies and credentials that the environment names are not used: results go where the configuration says.
    """

    def __init__(
        self,
        destination: str,
        url: str,
        timeout: float,
        tls: TlsSettings,
        *,
        headers: Mapping[str, str],
        remedies: Mapping[int, str],
    ) -> None:
        """Make it; nothing is connected yet.

        Args:
            destination: its name in the configuration.
            url: the base of all requests.
            timeout: seconds without any progress after which an attempt ends.
            tls: our certificate, and whom we trust.
            headers: of every request.
            remedies: what to do about a status, where that is particular to this service.

        Raises:
            ConfigurationError: a file of `[tls]` is missing or wrong.
        """
        self._destination = destination
        self._url = url
        self._timeout = timeout
        self._tls = tls
        self._headers = {"User-Agent": IMPLEMENTATION_VERSION_NAME, "Connection": "close", **headers}
        self._remedies = {**_REMEDIES, **remedies}
        self._address = urlsplit(url)
        self._connection()  # what is wrong with the files is to be said now, not at the first send

    def __str__(self) -> str:
        return f"Destination '{self._destination}' ({self._url})"

    def call(
        self,
        method: str,
        path: str,
        body: Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        sink: Callable[[bytes], object] | None = None,
    ) -> Reply:
        """Send a request and read the answer, whatever its status.

        Args:
            method: of HTTP.
            path: below the base URL, with the query.
            body: in parts; they are sent as they are.
            headers: beside the usual ones; of a body its Content-Length.
            sink: is handed the body of a success, of any length, in blocks.

        Raises:
            NoAssociationError: no connection could be had.
            UnreachableError: the connection broke, or nothing moved for the time-out.
            NotAdmittedError: TLS is refused for good.
            RejectedError: the answer is longer than any should be.
        """
        try:
            connection = self._connection()
        except ConfigurationError as error:  # certificates are replaced one file after the other
            raise NoAssociationError(f"{self} is not called: {error}") from error
        with contextlib.closing(connection):
            try:
                connection.connect()
            except OSError as error:
                raise self._not_connected(error) from error
            try:
                with contextlib.suppress(*_CLOSED):  # it may refuse before it has read all, and say why
                    connection.request(
                        method,
                        self._address.path + path,
                        None if body is None else _blocks(body),
                        {**self._headers, **(headers or {})},
                    )
                with _within(self._timeout, connection.sock):
                    answer = connection.getresponse()
                return self._reply(answer, sink)
            except (OSError, http.client.HTTPException) as error:
                raise self._broken(error) from error

    def refused(self, reply: Reply, what: str, reason: str = "") -> DeliveryError:
        """Make the error for a status that is no success; a body is not quoted, it may name a patient."""
        phrase = reason or http.client.responses.get(reply.status, "")
        said = f"{self} answered {reply.status}{f' ({phrase})' if phrase else ''} to {what}"
        if reply.status in _AWAY:
            return NoAssociationError(f"{said}: another attempt may succeed; look into its log if this goes on.")
        if reply.status in _FOR_NOW or (reply.status >= 500 and reply.status not in _NEVER):
            return UnreachableError(f"{said}: another attempt may succeed; look into its log if this goes on.")
        if 300 <= reply.status < 400:
            return NotAdmittedError(f"{said}, which is not followed: set url of the [[destination]] to where it leads.")
        kind = NotAdmittedError if reply.status in _OUTSIDE else RejectedError
        return kind(f"{said}: {self._remedies.get(reply.status, 'look up the reason in its log')}, then retry.")

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._address.hostname or "", self._address.port
        if self._address.scheme == "https":
            context = client_context(self._tls)
            return http.client.HTTPSConnection(host, port, timeout=self._timeout, context=context)
        return http.client.HTTPConnection(host, port, timeout=self._timeout)

    def _reply(self, answer: http.client.HTTPResponse, sink: Callable[[bytes], object] | None) -> Reply:
        end = time.monotonic() + self._timeout
        body = bytearray()
        hands_on = sink is not None and 200 <= answer.status < 300
        while block := answer.read1(_BLOCK):
            if sink is not None and hands_on:
                sink(block)
                continue
            body += block
            if len(body) > _LONGEST_ANSWER:
                raise RejectedError(f"{self} answered with over {_LONGEST_ANSWER} bytes: check url, and see its log.")
            if time.monotonic() > end:
                raise TimeoutError
        if answer.length:  # what Content-Length announced is not there: half an answer says nothing
            raise http.client.IncompleteRead(bytes(body), answer.length)
        return Reply(answer.status, bytes(body), answer.headers)

    def _not_connected(self, error: OSError) -> DeliveryError:
        if isinstance(error, ssl.SSLError):
            return self._faulty(error)
        why = error.strerror or ("timed out" if isinstance(error, TimeoutError) else type(error).__name__)
        return NoAssociationError(
            f"{self} cannot be connected to ({why}): check that it runs, its url, and the firewall between."
        )

    def _broken(self, error: OSError | http.client.HTTPException) -> DeliveryError:
        if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
            return self._faulty(error)  # with TLS 1.3 the peer's word on our certificate comes only here
        if isinstance(error, TimeoutError):
            return UnreachableError(f"{self} stopped answering for {self._timeout:g} s: another attempt may succeed.")
        return UnreachableError(f"{self} broke off the connection: another attempt may succeed; see its log.")

    def _faulty(self, error: ssl.SSLError) -> DeliveryError:
        fault = fault_of(error)
        kind = NoAssociationError if fault.mends_itself else NotAdmittedError
        return kind(f"{self} cannot be talked to by TLS, {fault.reason}: {fault.remedy}.")


@contextlib.contextmanager
def _within(seconds: float, connection: socket.socket) -> Iterator[None]:
    """Cut a connection after that time in all: what comes byte by byte would keep the time-out of each call off.

    Raises:
        TimeoutError: it was cut, whatever came before.
    """
    is_over = threading.Event()

    def cut() -> None:
        is_over.set()
        with contextlib.suppress(OSError):  # closed already
            socket.socket.shutdown(connection, socket.SHUT_RDWR)  # below TLS, which another thread is reading

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        if is_over.is_set():
            raise TimeoutError from error
        raise
    finally:
        timer.cancel()
    if is_over.is_set():  # the end of a connection ends a head without an error
        raise TimeoutError


def _blocks(body: Iterable[bytes]) -> Iterator[memoryview]:
    """Cut a body small: the time-out is one for each call of the system, and has to count from the last progress."""
    for part in body:
        view = memoryview(part)
        for at in range(0, len(view), _BLOCK):
            yield view[at : at + _BLOCK]
