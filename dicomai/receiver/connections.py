"""Connections: accepted ones, each with an end to how long a stranger may take and how much one PDU may be."""

import contextlib
import errno
import socket
import socketserver
import ssl
import struct
import threading
import time
import weakref
from collections.abc import Callable
from typing import cast

import structlog
from pynetdicom.transport import ThreadedAssociationServer

from dicomai import tls

log = structlog.get_logger()

ARTIM_SECONDS = 30.0
"""How long a connection may stay without an A-ASSOCIATE-RQ (PS3.8 9.1.5)."""

MAX_WAITING = 128
"""How many connections may be open beside the associations; each has threads and a file descriptor of its own."""

LONGEST_PDU = 4 * 1024 * 1024  # the library reads a PDU whole, whatever was agreed on and with whom


class Connection(socket.socket):
    """An accepted connection, with an end to how long a stranger may take and how much one PDU may be."""

    _end: float | None = None
    _head = b""  # of a PDU: type, a reserved byte, length in four (PS3.8 9.3.1)
    _rest = 0

    @property
    def is_stranger(self) -> bool:
        """Whether it has no association yet, or was refused one."""
        return self._end is not None

    def begin(self) -> None:
        """Start the time within which the A-ASSOCIATE-RQ has to be there."""
        self._end = time.monotonic() + ARTIM_SECONDS

    def be_patient(self, seconds: float) -> None:
        """Let the sender be silent for longer: it has its association.

        The kernel holds the time, so that a read of many bytes is one call and not a poll before each packet.
        """
        self._end = None
        self.settimeout(None)
        limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
        self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def fill(self, target: memoryview) -> bool:
        """Receive until `target` is full, once the association is established; tells whether it is.

        Raises:
            OSError: the time is up, or the connection is broken.
        """
        while len(target):
            count = self._receive_into(target)
            if not count:
                return False
            target = target[count:]
        return True

    def _receive_into(self, target: memoryview) -> int:
        return self.recv_into(target, 0, socket.MSG_WAITALL)

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive; the library asks for a PDU's first six bytes, then for its rest.

        Raises:
            OSError: the time is up, or the PDU is longer than any that was agreed on.
        """
        self._hurry()
        data = super().recv(size, flags)
        if self._rest:
            self._rest -= len(data)
            return data
        self._head += data
        if len(self._head) == 6:
            self._rest, self._head = int.from_bytes(self._head[2:], "big"), b""
            if self._rest > LONGEST_PDU:
                raise OSError(errno.EMSGSIZE, f"A PDU of {self._rest} bytes.")
        return data

    def shutdown(self, how: int) -> None:
        """Shut down, also what the peer has closed already: the library closes only after a shutdown that worked."""
        with contextlib.suppress(OSError):
            # Not that of ssl.SSLSocket, which would have a thread that is reading go on without decrypting.
            socket.socket.shutdown(self, how)

    def _hurry(self) -> None:
        if self._end is not None:
            self.settimeout(max(0.001, self._end - time.monotonic()))


class TlsConnection(Connection, ssl.SSLSocket):
    """A connection with TLS. The handshake comes with the first read, in the association's thread: it takes a while.

    Nothing else reads before the association is established.
    """

    _log_refusal: Callable[[tls.Fault], None] | None = None

    def be_patient(self, seconds: float) -> None:
        """Let the sender be silent for longer: it has its association."""
        self._end = None
        self.settimeout(seconds)

    def _receive_into(self, target: memoryview) -> int:
        return self.recv_into(target)

    def begin_tls(self, log_refusal: Callable[[tls.Fault], None]) -> None:
        """Start the time for the handshake and the A-ASSOCIATE-RQ; `log_refusal` hears why there is none."""
        self._log_refusal = log_refusal
        self.begin()

    def recv(self, size: int = 4096, flags: int = 0) -> bytes:
        """Receive, after the handshake; empty where that fails, as if the peer had closed.

        Raises:
            OSError: the time is up, or the PDU is longer than any that was agreed on.
        """
        if self._log_refusal is not None:
            try:
                self._hurry()
                self.do_handshake()
            except OSError as error:
                self._refuse(error)
                return b""
            self._log_refusal = None
        return super().recv(size, flags)

    def _refuse(self, error: OSError) -> None:
        # One that connects and goes without a word, as a load balancer does to see whether we are there, is no news.
        if self._log_refusal is not None and not isinstance(error, ssl.SSLEOFError | ConnectionError):
            self._log_refusal(tls.fault_of(error))


class Server(ThreadedAssociationServer):
    """The listening socket."""

    request_queue_size = 128  # as many senders may knock at once; the library's 5 makes them wait a second
    most_connections = 2**31
    tls_context: tls.ServerContext | None = None
    """Of connections; they are without TLS if there is none."""
    _connections: weakref.WeakSet[Connection]
    _seldom: "_Seldom"

    def server_activate(self) -> None:
        """Start to listen."""
        self._connections = weakref.WeakSet()
        self._seldom = _Seldom()
        super().server_activate()

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """Accept a connection.

        Raises:
            OSError: it is closed already.
        """
        accepted, address = super().get_request()
        connection = self._secured(accepted, address[0]) if self.tls_context else _plain(accepted)
        # Answers are small and waited for: Nagle's algorithm would hold each back for 40 ms.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections.add(connection)
        return connection, address

    def verify_request(self, request: object, client_address: tuple[str, int]) -> bool:  # noqa: ARG002  the library's
        """Tell whether there is room for this connection; the library closes it if not."""
        if sum(connection.fileno() != -1 for connection in self._connections) <= self.most_connections:
            return True
        if self._seldom.may_say("too many"):
            log.warning(
                "a connection is closed: too many are open",
                remedy="look for what connects to this port and requests no association",
                address=client_address[0],
                connections=self.most_connections,
            )
        return False

    def cut_strangers(self) -> None:
        """Close the connections that have no association: their threads would keep the process for the ARTIM time."""
        for connection in self._connections:
            if connection.is_stranger:
                connection.shutdown(socket.SHUT_RDWR)

    def shutdown(self) -> None:
        """Stop listening; associations go on."""
        socketserver.TCPServer.shutdown(self)
        self.server_close()

    def _secured(self, accepted: socket.socket, address: str) -> Connection:
        def log_refusal(fault: tls.Fault) -> None:
            if self._seldom.may_say(address, fault):
                log.warning(f"connection refused: {fault.reason}", remedy=fault.remedy, address=address)

        context = cast("tls.ServerContext", self.tls_context).get()
        context.sslsocket_class = TlsConnection
        with accepted:  # closed if it cannot be wrapped; else there is nothing left to close
            wrapped = context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
        connection = cast("TlsConnection", wrapped)
        connection.begin_tls(log_refusal)
        return connection


def at_door(door: socket.socket) -> type[Server]:
    """Make the class of a listening socket that several processes accept from."""

    class AtDoor(Server):
        _courtesy = Courtesy()

        def server_bind(self) -> None:
            cast("socket.socket", self.socket).close()
            self.socket = door
            self.server_address = door.getsockname()

        def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
            """Accept a connection, unless another process is quicker; who has many to serve lets the others go first.

            Raises:
                OSError: another one has it.
            """
            serving = sum(connection.fileno() != -1 for connection in self._connections)
            time.sleep(self._courtesy.pause(serving, time.monotonic()))
            return super().get_request()

    return AtDoor


class Courtesy:
    """How long one of several processes lets the others go first, which is little in all: a storm gets none."""

    _EACH, _LONGEST = 0.003, 0.03  # seconds for each open connection, and at most
    _SAVED, _EARNED = 0.2, 0.1  # seconds in all at most, and in each second

    def __init__(self) -> None:
        self._left, self._since = self._SAVED, 0.0

    def pause(self, serving: int, now: float) -> float:
        """Give the seconds to wait before the next connection is accepted, with `serving` ones open at time `now`."""
        self._left = min(self._SAVED, self._left + self._EARNED * (now - self._since))
        self._since = now
        pause = min(self._LONGEST, self._EACH * serving, self._left)
        self._left -= pause
        return pause


class _Seldom:
    """Keeps a line from filling the log: what has been said is said again after a minute at the earliest."""

    _SECONDS, _MOST = 60.0, 1000

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._said: dict[tuple[object, ...], float] = {}

    def may_say(self, *what: object) -> bool:
        """Tell whether it may be said now; it then counts as said."""
        with self._lock:
            now = time.monotonic()
            if now - self._said.get(what, float("-inf")) < self._SECONDS:
                return False
            if len(self._said) >= self._MOST:
                self._said = {w: at for w, at in self._said.items() if now - at < self._SECONDS}
            if len(self._said) >= self._MOST:
                return False
            self._said[what] = now
            return True


def _plain(accepted: socket.socket) -> Connection:
    connection = Connection(fileno=accepted.detach())
    connection.begin()
    return connection
