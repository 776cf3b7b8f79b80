"""Connections: accepted ones, each with an end to how long a stranger may take and how much one PDU may be."""

import contextlib
import errno
import socket
import socketserver
import time
import weakref

import structlog
from pynetdicom.transport import ThreadedAssociationServer

log = structlog.get_logger()

ARTIM_SECONDS = 30.0
"""How long a connection may stay without an A-ASSOCIATE-RQ (PS3.8 9.1.5)."""

MAX_WAITING = 128
"""How many connections may be open beside the associations; each has threads and a file descriptor of its own."""

_LONGEST_PDU = 4 * 1024 * 1024  # the library reads a PDU whole, whatever was agreed on and with whom


class Connection(socket.socket):
    """An accepted connection, with an end to how long a stranger may take and how much one PDU may be."""

    def __init__(self, accepted: socket.socket) -> None:
        super().__init__(fileno=accepted.detach())
        self._end: float | None = time.monotonic() + ARTIM_SECONDS  # for the A-ASSOCIATE-RQ
        self._head = b""  # of a PDU: type, a reserved byte, length in four (PS3.8 9.3.1)
        self._rest = 0

    def be_patient(self, seconds: float) -> None:
        """Let the sender be silent for longer: it has its association."""
        self._end = None
        self.settimeout(seconds)

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive; the library asks for a PDU's first six bytes, then for its rest.

        Raises:
            OSError: the time is up, or the PDU is longer than any that was agreed on.
        """
        if self._end is not None:
            self.settimeout(max(0.001, self._end - time.monotonic()))
        data = super().recv(size, flags)
        if self._rest:
            self._rest -= len(data)
            return data
        self._head += data
        if len(self._head) == 6:
            self._rest, self._head = int.from_bytes(self._head[2:], "big"), b""
            if self._rest > _LONGEST_PDU:
                raise OSError(errno.EMSGSIZE, f"A PDU of {self._rest} bytes.")
        return data

    def shutdown(self, how: int) -> None:
        """Shut down, also what the peer has closed already: the library closes only after a shutdown that worked."""
        with contextlib.suppress(OSError):
            super().shutdown(how)


class Server(ThreadedAssociationServer):
    """The listening socket."""

    request_queue_size = 128  # as many senders may knock at once; the library's 5 makes them wait a second
    most_connections = 2**31
    _said_at = float("-inf")
    _connections: weakref.WeakSet[Connection]

    def server_activate(self) -> None:
        """Start to listen."""
        self._connections = weakref.WeakSet()
        super().server_activate()

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """Accept a connection."""
        accepted, address = super().get_request()
        connection = Connection(accepted)
        # Answers are small and waited for: Nagle's algorithm would hold each back for 40 ms.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections.add(connection)
        return connection, address

    def verify_request(self, request: object, client_address: tuple[str, int]) -> bool:  # noqa: ARG002  the library's
        """Tell whether there is room for this connection; the library closes it if not."""
        if sum(connection.fileno() != -1 for connection in self._connections) <= self.most_connections:
            return True
        if time.monotonic() - self._said_at > 60.0:  # it is no use to fill the log as well
            self._said_at = time.monotonic()
            log.warning(
                "a connection is closed: too many are open",
                remedy="look for what connects to this port and requests no association",
                address=client_address[0],
                connections=self.most_connections,
            )
        return False

    def shutdown(self) -> None:
        """Stop listening; associations go on."""
        socketserver.TCPServer.shutdown(self)
        self.server_close()
