"""C-STORE requests from a file to the socket, without the protocol library's queues between (PS3.8 9.3.5, Annex E).

The library copies a data set into primitives, queues and encodes each, and polls for all of this and for the answer in
steps of a millisecond. Here the thread that sends writes the PDUs itself, as it reads the data set, and reads the
answer. What else the peer says meanwhile, such as an A-ABORT or the request of an N-EVENT-REPORT, goes the library's
way.
"""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import islice
from ssl import SSLSocket
from typing import BinaryIO, cast

from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.transport import AssociationSocket

from dicomai.commandset import elements
from dicomai.errors import StoreError

_P_DATA = 0x04
_COMMAND, _LAST = 0x01, 0x02  # message control header (PS3.8 E.2)
_C_STORE_RQ, _C_STORE_RSP = 0x0001, 0x8001
_LOW = 0x0002  # a result is sent when there is time for it
_HEAD = struct.Struct(">BxLLBB")
_NO_DATA_SET = 0x0101
_COMMAND_FIELD, _RESPONDED_TO, _DATA_SET_TYPE = 0x0100, 0x0120, 0x0800
_LONGEST_MESSAGE = 16 * 1024 * 1024  # other than a response: a report of many instances, say
_PDUS_AT_ONCE = 32


class BrokenError(Exception):
    """The connection is gone, or the peer broke the protocol or the association off."""


class SharedProvider(DULServiceProvider):
    """The upper layer of one association, which leaves the connection to who stores.

    Attributes:
        turn: whose it is at the moment.
    """

    turn: threading.Lock

    @classmethod
    def take_over(cls, assoc: Association) -> None:
        """Put it in the place of the library's, before the association is requested."""
        assoc.dul.__class__ = cls
        cast("SharedProvider", assoc.dul).turn = threading.Lock()

    def _is_transport_event(self) -> bool:
        with self.turn:
            return bool(super()._is_transport_event())

    def give(self, raw: bytes) -> None:
        """Give the library a PDU, the way its own reading does."""
        try:
            pdu, event = self._decode_pdu(bytearray(raw))
        except Exception as error:  # whatever its decoder makes of what is no PDU
            raise BrokenError from error
        self.event_queue.put(event)
        self._recv_pdu.put(pdu)


def store(
    assoc: Association,
    context_id: int,
    message_id: int,
    uids: tuple[str, str],
    data: tuple[BinaryIO, int],
    moved: Callable[[], None],
) -> dict[int, bytes]:
    """Send a C-STORE request, and wait for the answer.

    Args:
        assoc: an established association of a `SharedProvider`.
        context_id: of the presentation context.
        message_id: Message ID (0000,0110), 1 to 65535.
        uids: SOP Class UID and SOP Instance UID.
        data: what the encoded data set is read from, and its length in bytes.
        moved: called whenever bytes have gone or come.

    Returns:
        The elements of the response's command set: values by element number of group 0000.

    Raises:
        BrokenError: there is no answer any more.
        StoreError: the data set cannot be read to its end; the association is of no use any more.
    """
    provider = cast("SharedProvider", assoc.dul)
    with provider.turn:
        connection = cast("AssociationSocket", provider.socket).socket
        if connection is None:
            raise BrokenError
        try:
            command = _request(message_id, *uids)
            longest = assoc.acceptor.maximum_length or 0
            for parts in _grouped(_pdus(context_id, command, data, longest)):
                _write(connection, parts, moved)
            return _answer(provider, connection, message_id, moved)
        except (OSError, ValueError) as error:
            raise BrokenError from error


def _request(message_id: int, sop_class_uid: str, sop_instance_uid: str) -> bytes:
    """Encode the command set (PS3.7 9.3.1.1), in Implicit VR Little Endian (6.3.1)."""
    elements = b"".join(
        struct.pack("<HHL", 0x0000, element, len(value)) + value
        for element, value in (
            (0x0002, _uid(sop_class_uid)),
            (0x0100, struct.pack("<H", _C_STORE_RQ)),
            (0x0110, struct.pack("<H", message_id)),
            (0x0700, struct.pack("<H", _LOW)),
            (0x0800, struct.pack("<H", 0x0001)),  # a data set follows
            (0x1000, _uid(sop_instance_uid)),
        )
    )
    return struct.pack("<HHLL", 0x0000, 0x0000, 4, len(elements)) + elements


def _uid(value: str) -> bytes:
    encoded = value.encode("ascii")
    return encoded + b"\0" * (len(encoded) % 2)


def _pdus(context_id: int, command: bytes, data: tuple[BinaryIO, int], longest: int) -> Iterator[tuple[bytes, bytes]]:
    """Cut a message into P-DATA-TF PDUs of one fragment each: the head of each, and the fragment."""
    step = max(1, longest - 6)
    for kind, (content, size) in ((_COMMAND, (BytesIO(command), len(command))), (0, data)):
        for start in range(0, size, step):
            part = _part(content, min(step, size - start))
            control = kind | (_LAST if start + step >= size else 0)
            yield _HEAD.pack(_P_DATA, len(part) + 6, len(part) + 2, context_id, control), part


def _part(content: BinaryIO, count: int) -> bytes:
    """Read a fragment. A file that cannot be read is an error here, where a mapping of it ends the process."""
    try:
        part = content.read(count)
    except OSError as error:
        raise StoreError(f"What is to be sent cannot be read ({type(error).__name__}): look at the storage.") from error
    if len(part) != count:
        raise StoreError("What is to be sent became shorter while it was read: look at the storage.")
    return part


def _grouped(pdus: Iterator[tuple[bytes, bytes]]) -> Iterator[list[bytes]]:
    """Put the parts of some PDUs together, for one call of the system."""
    while parts := [part for pdu in islice(pdus, _PDUS_AT_ONCE) for part in pdu]:
        yield parts


def _write(connection: socket.socket, parts: list[bytes], moved: Callable[[], None]) -> None:
    if isinstance(connection, SSLSocket):  # it takes one buffer at a time
        for head, part in zip(parts[::2], parts[1::2], strict=True):
            connection.sendall(head + part)
            moved()
        return
    left = [memoryview(part) for part in parts]
    while left:
        sent = connection.sendmsg(left)
        moved()
        while left and sent >= len(left[0]):
            sent -= len(left.pop(0))
        if sent:
            left[0] = left[0][sent:]


def _answer(
    provider: SharedProvider, connection: socket.socket, message_id: int, moved: Callable[[], None]
) -> dict[int, bytes]:
    """Read messages up to the response to one of ours; what else comes is the library's.

    Raises:
        BrokenError: there is none any more.
    """
    while True:
        pdus, command = _message(provider, connection, moved)
        answer = dict(elements(command))
        if _number(answer, _COMMAND_FIELD) != _C_STORE_RSP:
            for pdu in pdus:
                provider.give(pdu)
        elif _number(answer, _RESPONDED_TO) == message_id:
            return answer
        else:
            raise BrokenError


def _message(
    provider: SharedProvider, connection: socket.socket, moved: Callable[[], None]
) -> tuple[list[bytes], bytes]:
    """Read the PDUs of a whole message, and its command set.

    Raises:
        BrokenError: something else came.
    """
    pdus: list[bytes] = []
    command = bytearray()
    is_whole = False
    while not is_whole:
        head = _read(connection, 6, moved)
        length = int.from_bytes(head[2:], "big")
        if length + sum(map(len, pdus)) > _LONGEST_MESSAGE:
            raise BrokenError
        pdus.append(head + _read(connection, length, moved))
        if head[0] != _P_DATA:
            provider.give(pdus[-1])
            raise BrokenError
        for control, part in _fragments(pdus[-1]):
            if is_whole:  # a message's end is the end of a PDU
                raise BrokenError
            if control & _COMMAND:
                command += part
            is_last = bool(control & _LAST)
            is_whole = is_last and (not control & _COMMAND or not _has_data_set(command))
    return pdus, bytes(command)


def _has_data_set(command: bytes | bytearray) -> bool:
    return _number(dict(elements(command)), _DATA_SET_TYPE) != _NO_DATA_SET


def _number(answer: dict[int, bytes], element: int) -> int | None:
    value = answer.get(element, b"")
    return int.from_bytes(value, "little") if len(value) == 2 else None


def _fragments(pdu: bytes) -> Iterator[tuple[int, bytes]]:
    """Take a P-DATA-TF PDU apart: control header and fragment of each PDV (PS3.8 9.3.5.1)."""
    offset = 6
    while offset < len(pdu):
        length = int.from_bytes(pdu[offset : offset + 4], "big")
        if length < 2 or offset + 4 + length > len(pdu):
            raise BrokenError
        yield pdu[offset + 5], pdu[offset + 6 : offset + 4 + length]
        offset += 4 + length


def _read(connection: socket.socket, count: int, moved: Callable[[], None]) -> bytes:
    taken = bytearray()
    while len(taken) < count:
        part = connection.recv(count - len(taken))
        if not part:
            raise BrokenError
        taken += part
        moved()
    return bytes(taken)
