"""A wire tapped: a TCP proxy in front of a DICOM peer that keeps all that passes, and can act in the middle of it."""

import contextlib
import io
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset

_P_DATA_TF = 0x04  # PS3.8 9.3.5


@dataclass
class Link:
    """One connection: all bytes that passed, each way."""

    client: socket.socket
    peer: socket.socket
    requests: bytearray = field(default_factory=bytearray)
    answers: bytearray = field(default_factory=bytearray)


@dataclass
class Wire:
    """A running proxy.

    Attributes:
        port: where clients connect.
        target: the port of the peer behind it.
        links: every connection so far.
        act_after: once so many bytes of a connection came from the client, `act` is called, in the middle of a PDU, and
            the connection ends there.
        acted: set when it has ended.
        hold_answers: while set, the peer's messages (P-DATA) do not reach the client; the association is accepted.
    """

    port: int
    target: int
    links: list[Link] = field(default_factory=list)
    act_after: int | None = None
    act: Callable[[], None] = lambda: None
    acted: threading.Event = field(default_factory=threading.Event)
    hold_answers: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def let_go(self) -> None:
        """Let answers pass again."""
        with self._changed:
            self.hold_answers = False
            self._changed.notify_all()

    def statuses(self) -> dict[str, int]:
        """Give the Status of every C-STORE response that reached a client, by SOP Instance UID."""
        return {
            str(command.AffectedSOPInstanceUID): int(command.Status)
            for link in self.links
            for command, _ in messages(bytes(link.answers))
            if command.CommandField == 0x8001  # C-STORE-RSP, PS3.7 E.1
        }

    def data_sets(self) -> dict[str, bytes]:
        """Give the data set of every C-STORE request that clients sent, by SOP Instance UID."""
        return {
            str(command.AffectedSOPInstanceUID): data
            for link in self.links
            for command, data in messages(bytes(link.requests))
            if command.CommandField == 0x0001  # C-STORE-RQ
        }

    def _forward(self, link: Link) -> None:
        """From client to peer."""
        with contextlib.suppress(OSError):
            while chunk := link.client.recv(65536):
                limit = self.act_after
                if limit is not None and len(link.requests) + len(chunk) >= limit:
                    self.act_after = None
                    cut = limit - len(link.requests)
                    link.peer.sendall(chunk[:cut])
                    link.requests += chunk[:cut]
                    self.act()
                    _close(link)
                    self.acted.set()
                    return
                link.requests += chunk
                link.peer.sendall(chunk)
        _close(link)

    def _backward(self, link: Link) -> None:
        """From peer to client."""
        with contextlib.suppress(OSError):
            while chunk := link.peer.recv(65536):
                if chunk[0] == _P_DATA_TF:
                    with self._changed:
                        self._changed.wait_for(lambda: not self.hold_answers)
                link.client.sendall(chunk)
                link.answers += chunk
        _close(link)


@contextlib.contextmanager
def wire(target: int) -> Iterator[Wire]:
    """Run a proxy in front of a port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        tap = Wire(listener.getsockname()[1], target)
        threading.Thread(target=_listen, args=(listener, tap), daemon=True).start()
        try:
            yield tap
        finally:
            tap.let_go()
            with contextlib.suppress(OSError):  # wakes the thread that accepts
                listener.shutdown(socket.SHUT_RDWR)
            for link in tap.links:
                _close(link)


def messages(stream: bytes) -> list[tuple[Dataset, bytes]]:
    """Take the whole DIMSE messages out of one direction of a connection: command set and data set's bytes.

    PDUs and their items as PS3.8 9.3.5 and E.2 have them, command sets as PS3.7 6.3.1; one that is cut off is left out.
    """
    found: list[tuple[Dataset, bytes]] = []
    command, parts = b"", b""
    at = 0
    while at + 6 <= len(stream):
        kind, end = stream[at], at + 6 + int.from_bytes(stream[at + 2 : at + 6])
        at += 6
        while kind == _P_DATA_TF and at + 6 <= min(end, len(stream)):
            length, control = int.from_bytes(stream[at : at + 4]), stream[at + 5]
            fragment = stream[at + 6 : at + 4 + length]
            at += 4 + length
            if at > len(stream):
                return found
            if control & 1:
                command += fragment
            else:
                parts += fragment
            if not control & 2:
                continue
            parsed = read_dataset(io.BytesIO(command), is_implicit_VR=True, is_little_endian=True)
            if not control & 1 or parsed.CommandDataSetType == 0x0101:  # 0101H: no data set follows
                found.append((parsed, parts))
                command, parts = b"", b""
        at = end
    return found


def _listen(listener: socket.socket, tap: Wire) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        try:
            peer = socket.create_connection(("127.0.0.1", tap.target), timeout=10)
        except OSError:
            client.close()
            continue
        peer.settimeout(None)
        for end in (client, peer):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = Link(client, peer)
        tap.links.append(link)
        threading.Thread(target=tap._forward, args=(link,), daemon=True).start()
        threading.Thread(target=tap._backward, args=(link,), daemon=True).start()


def _close(link: Link) -> None:
    for end in (link.client, link.peer):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
