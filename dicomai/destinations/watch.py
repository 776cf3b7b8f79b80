"""A time-out that counts from the last byte that moved."""

import contextlib
import fcntl
import socket
import sys
import termios
import threading
import time
from collections.abc import Iterator
from typing import Any, Self


class Watch:
    """Closes a connection when nothing has moved on it for the time-out while an answer is due.

    The protocol library counts its own time-out from the moment when a data set is queued, too short for a large one
    on a slow line, and cannot end a send, or a wait for the rest of a PDU, that blocks.

    A thread looks on, from the first time that it is armed to the end of the context that it is used as.
    """

    def __init__(self, timeout: float) -> None:
        """Make a watch; it starts with `armed`.

        Args:
            timeout: in seconds.
        """
        self._timeout = timeout
        self._socket: socket.socket | None = None
        self._last = time.monotonic()
        self._is_armed = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self.expired = False

    def __enter__(self) -> Self:
        """Begin; nothing is watched yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let the thread end."""
        self._end.set()
        if self._thread.ident is not None:  # it was started
            self._thread.join()

    @property
    def was_opened(self) -> bool:
        """Tell whether there ever was a connection."""
        return self._socket is not None

    def on_open(self, event: Any) -> None:
        """Take over the connection that the library has opened (its EVT_CONN_OPEN)."""
        wrapper = event.assoc.dul.socket
        self._last = time.monotonic()
        self._socket = wrapper.socket if wrapper is not None else None
        if self._socket is not None:
            # Requests are waited for: Nagle's algorithm would hold their last packet back for 40 ms.
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def on_data(self, _event: Any) -> None:
        """Note that something moved (the library's EVT_DATA_SENT and EVT_DATA_RECV)."""
        self.moved()

    def moved(self) -> None:
        """Note that something moved."""
        self._last = time.monotonic()

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        """Watch while an answer is due."""
        self._last = time.monotonic()
        self._is_armed = True
        if self._thread.ident is None:
            self._thread.start()
        try:
            yield
        finally:
            self._is_armed = False

    def cut(self) -> None:
        """Close the connection, which ends every thread that waits on it."""
        if self._socket is not None:
            with contextlib.suppress(OSError):  # closed already
                self._socket.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        unsent = 0
        while not self._end.wait(min(self._timeout / 5, 1.0)):
            if not self._is_armed:
                continue
            before, unsent = unsent, self._unsent()
            if unsent != before:
                self._last = time.monotonic()
            if time.monotonic() - self._last >= self._timeout and self._socket is not None:
                self.expired = True
                self.cut()
                return

    def _unsent(self) -> int:
        """Count the bytes in the system's send buffer that the peer has not acknowledged; megabytes on a slow line."""
        try:
            queued = fcntl.ioctl(self._socket.fileno() if self._socket else -1, termios.TIOCOUTQ, bytes(4))
        except (OSError, ValueError):  # closed already
            return 0
        return int.from_bytes(queued, sys.byteorder)
