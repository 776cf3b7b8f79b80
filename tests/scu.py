"""A Storage SCU on a bare socket: what it sends is what it was given, and what was answered is known to the instance.

Faster than a library's, so that it is never the slow one, and it makes a data set's bytes while it sends them: one of
gigabytes needs no memory here. One association has one presentation context, in Explicit VR Little Endian.
"""

import contextlib
import io
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pydicom.filereader import read_dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

HOST = "127.0.0.1"

_CONTEXT = 1
_COMMAND, _LAST = 0x01, 0x02  # message control header (PS3.8 E.2)
_ASSOCIATE_RQ, _ASSOCIATE_AC, _P_DATA, _RELEASE_RQ = 0x01, 0x02, 0x04, 0x05  # PDU types (PS3.8 9.3)


class RefusedError(Exception):
    """The association was not accepted."""


@dataclass
class Scu:
    """An association, established.

    Attributes:
        sop_class_uid: of its presentation context.
        max_pdu: how much the other side takes in one PDU.
    """

    connection: socket.socket
    sop_class_uid: str
    max_pdu: int = 0
    _message_id: int = field(default=0)

    def store(self, sop_instance_uid: str, data_set: bytes) -> int:
        """Send an instance; gives the status that came back.

        Raises:
            OSError: the connection ended before the answer.
        """
        return self.stream(sop_instance_uid, [data_set])

    def stream(self, sop_instance_uid: str, data_set: Iterable[bytes]) -> int:
        """Send an instance piece by piece."""
        self.request(sop_instance_uid)
        for piece in data_set:
            self.send(piece)
        self.send(b"", last=True)
        return self.status()

    def request(self, sop_instance_uid: str) -> None:
        """Send the command set of a C-STORE request (PS3.7 9.3.1.1)."""
        self._message_id = self._message_id % 65535 + 1
        elements = (
            (0x0002, _padded(self.sop_class_uid)),
            (0x0100, struct.pack("<H", 0x0001)),
            (0x0110, struct.pack("<H", self._message_id)),
            (0x0700, struct.pack("<H", 0x0002)),
            (0x0800, struct.pack("<H", 0x0000)),
            (0x1000, _padded(sop_instance_uid)),
        )
        body = b"".join(struct.pack("<HHL", 0, tag, len(value)) + value for tag, value in elements)
        self._pdv(struct.pack("<HHLL", 0, 0, 4, len(body)) + body, _COMMAND | _LAST)

    def send(self, piece: bytes, *, last: bool = False) -> None:
        """Send a piece of the data set."""
        step = self.max_pdu - 6
        for start in range(0, max(1, len(piece)), step):
            self._pdv(piece[start : start + step], _LAST if last and start + step >= len(piece) else 0)

    def status(self) -> int:
        """Wait for the answer; gives its Status."""
        kind, body = _read_pdu(self.connection)
        if kind != _P_DATA:
            raise ConnectionAbortedError(f"PDU type {kind} in place of an answer")
        command = read_dataset(io.BytesIO(body[6:]), is_implicit_VR=True, is_little_endian=True)
        assert command.MessageIDBeingRespondedTo == self._message_id
        return int(command.Status)

    def release(self) -> None:
        """Release the association."""
        self.connection.sendall(struct.pack(">BBLL", _RELEASE_RQ, 0, 4, 0))
        _read_pdu(self.connection)

    def _pdv(self, value: bytes, control: int) -> None:
        size = len(value)
        self.connection.sendall(struct.pack(">BBLLBB", _P_DATA, 0, size + 6, size + 2, _CONTEXT, control) + value)


@contextlib.contextmanager
def associated(
    port: int,
    *,
    calling_ae: str = "CT01",
    called_ae: str = "DICOMAI",
    sop_class_uid: str = CTImageStorage,
    timeout: float = 60.0,
) -> Iterator[Scu]:
    """Hold an association; it is released at the end, unless something failed.

    Raises:
        RefusedError: it was not accepted.
        OSError: nothing listens, or the connection ended.
    """
    with socket.create_connection((HOST, port), timeout=timeout) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(_request(calling_ae, called_ae, sop_class_uid))
        kind, body = _read_pdu(connection)
        if kind != _ASSOCIATE_AC:
            raise RefusedError(f"PDU type {kind}: {body.hex()}")
        scu = Scu(connection, sop_class_uid, _max_pdu(body))
        yield scu
        scu.release()


def _request(calling_ae: str, called_ae: str, sop_class_uid: str) -> bytes:
    """Encode an A-ASSOCIATE-RQ (PS3.8 9.3.2, PS3.7 D.3.3)."""
    context = struct.pack(">BBBB", _CONTEXT, 0, 0, 0)
    context += _item(0x30, sop_class_uid.encode()) + _item(0x40, ExplicitVRLittleEndian.encode())
    user = _item(0x51, struct.pack(">L", 16384)) + _item(0x52, b"1.2.826.0.1.3680043.8.498.1")
    body = struct.pack(">HH", 1, 0) + called_ae.ljust(16).encode() + calling_ae.ljust(16).encode() + bytes(32)
    body += _item(0x10, b"1.2.840.10008.3.1.1.1") + _item(0x20, context) + _item(0x50, user)
    return struct.pack(">BBL", _ASSOCIATE_RQ, 0, len(body)) + body


def _max_pdu(accepted: bytes) -> int:
    """Look up the Maximum Length Sub-item of an A-ASSOCIATE-AC (PS3.8 D.1)."""
    at = accepted.index(b"\x51\x00\x00\x04")
    return int.from_bytes(accepted[at + 4 : at + 8], "big") or 131072


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(value)) + value


def _padded(uid: str) -> bytes:
    return uid.encode() + b"\0" * (len(uid) % 2)


def _read_pdu(connection: socket.socket) -> tuple[int, bytes]:
    head = _read(connection, 6)
    return head[0], _read(connection, int.from_bytes(head[2:], "big"))


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionResetError("The other side closed the connection.")
        data += more
    return data
