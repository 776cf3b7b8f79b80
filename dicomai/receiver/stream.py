"""C-STORE requests from the socket to the intake, without the protocol library's queues between (PS3.8 9.3.5, Annex E).

The library reads a PDU whole, decodes it, queues it, joins an instance's fragments in memory, and polls for all of this
in steps of a millisecond. Here the upper layer's thread, while an association is established, reads P-DATA itself and
hands the fragments of a C-STORE's data set on as they come. Everything else, from A-RELEASE to C-ECHO, goes the
library's way as it came, and the state machine is the library's.
"""

import select
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import TRANSITION_TABLE, StateMachine
from pynetdicom.pdu import _PDUType
from pynetdicom.pdu_primitives import A_ASSOCIATE, P_DATA
from pynetdicom.transport import AssociationSocket, RequestHandler

from dicomai.receiver.commands import Command, store_response
from dicomai.receiver.connections import LONGEST_PDU, Connection
from dicomai.receiver.statuses import Status

_P_DATA = 0x04
_COMMAND, _LAST = 0x01, 0x02  # message control header (PS3.8 E.2)

LONGEST_COMMAND = 64 * 1024
"""Bytes of a command set, of which the longest known has less than a thousand."""

_MOST_PDUS = 1024  # of a command set; they are kept until it is known whose it is

LONGEST_MESSAGE = 64 * 1024 * 1024
"""Bytes of a message other than a C-STORE request, which the library holds in memory."""

_MISCOUNTED = 64  # some senders count the PDU's head or the PDV's out of the maximum length
_SECONDS_AT_HAND = 0.05  # how long the next PDU is waited for before the library's loop has its turn

# Events of the state machine (PS3.8 Table 9-10)
_CLOSED, _INVALID = "Evt17", "Evt19"
_WANTED = {"Evt7", "Evt8", "Evt9", "Evt11", "Evt14", "Evt15"}  # by this side


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """A C-STORE request.

    Attributes:
        context_id: of its presentation context.
        abstract_syntax: of its presentation context.
        transfer_syntax: of its presentation context, and so of its data set.
        command: its command set.
    """

    context_id: int
    abstract_syntax: str
    transfer_syntax: str
    command: Command


Storing = Callable[[Association, StoreRequest, Iterator[memoryview]], Status]
"""Takes an instance in. A fragment is good until the next one is asked for; they need not all be asked for."""


class BrokenError(Exception):
    """The connection ended or fell silent, or the peer broke the protocol or the association off.

    Attributes:
        event: what the state machine is told.
        pdu: what the library has to be given instead.
    """

    def __init__(self, event: str = "", pdu: bytes = b"") -> None:
        """Break off."""
        super().__init__(event)
        self.event = event
        self.pdu = pdu


def handler(storing: Storing) -> type[RequestHandler]:
    """Make the class that turns an accepted connection into an association which stores by `storing`."""

    class Handler(RequestHandler):
        def _create_association(self) -> Association:
            assoc = super()._create_association()
            # The library makes its own and has no place to put another in.
            assoc.__class__ = _Association
            assoc.dul.__class__ = StreamingProvider
            cast("StreamingProvider", assoc.dul).storing = storing
            assoc.dul.state_machine = _Machine(assoc.dul)
            assoc.dimse.__class__ = _Messages
            assoc._reactor_checkpoint = _Checkpoint()
            return assoc

    return Handler


class _Association(Association):
    """An association whose connection does not outlive its thread."""

    def run(self) -> None:
        """Negotiate and serve."""
        try:
            super().run()
        except BaseException:
            self.abort()
            raise


class _Machine(StateMachine):
    """Passes over what has become impossible: a peer may go at any moment, or send before it is let in."""

    def do_action(self, event: str) -> None:
        """Do what a state wants done on an event; the library's thread ends where there is no such thing."""
        wanted = self.dul.to_provider_queue
        if event in _WANTED and wanted.empty():
            return  # done: while other events were in line, the library has looked at it more than once
        if (event, self.current_state) in TRANSITION_TABLE:
            super().do_action(event)
        elif event in _WANTED:
            wanted.get(block=False)  # there is nobody to say it to any more


class _Messages(DIMSEServiceProvider):
    """Puts messages together, other than C-STORE requests."""

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take a PDU's part of a message; one that nobody can read ends the association, and not only its thread."""
        try:
            super().receive_primitive(primitive)
        except Exception:  # noqa: BLE001  whatever the library makes of a hostile command set
            self.dul.event_queue.put(_INVALID)


class _Checkpoint(threading.Event):
    """Where the association's own loop stops: when the library says so, and while instances come in."""

    def __init__(self) -> None:
        super().__init__()
        self.set()
        self.idle = threading.Event()
        self.idle.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until both let it go on."""
        while True:
            super().wait(timeout)
            self.idle.wait(timeout)
            if timeout is not None or (self.is_set() and self.idle.is_set()):
                return self.is_set()


class StreamingProvider(DULServiceProvider):
    """The upper layer of one association; reads P-DATA by itself."""

    storing: Storing
    _buffer = memoryview(b"")
    _passing: "_Message | None" = None  # it goes the library's way, and its end has not come yet

    def run(self) -> None:
        """Serve; at the end, wake the association's own thread, which may wait for a request that does not come."""
        try:
            super().run()
        finally:
            self.to_user_queue.put(None)  # as if the time for it were up

    def _is_transport_event(self) -> bool:
        if self.state_machine.current_state != "Sta6":
            return bool(super()._is_transport_event())
        wrapper = cast("AssociationSocket", self.socket)
        # The state is reached a moment before the association knows: what comes meanwhile waits in the socket.
        if not self.assoc.is_established or not wrapper.ready:
            return False
        checkpoint = cast("_Checkpoint", self.assoc._reactor_checkpoint)
        checkpoint.idle.clear()
        try:
            self._serve(wrapper)
        except BrokenError as error:
            self._break_off(error)
        finally:
            checkpoint.idle.set()
        return True

    def _serve(self, wrapper: AssociationSocket) -> None:
        """Serve C-STORE requests for as long as they follow each other and nothing else is to do."""
        while True:
            pdu = self._read_pdu()
            if self._passing is not None or pdu[0] != _P_DATA:
                self._pass_on(pdu)
                return
            message = _Message(self._read_pdu, pdu)
            command = message.read_command()
            if command is None or not command.is_store:
                self._passing = None if message.is_whole() else message
                for taken in message.taken():
                    self._give(taken)
                return
            request = self._request(message.context_id, command)
            fragments = message.fragments()
            status = self.storing(self.assoc, request, fragments)
            for _ in fragments:  # what nobody wanted to have
                pass
            self._answer(request, status)
            if self._kill_thread or self._has_to_do() or not _is_at_hand(wrapper):
                return

    def _has_to_do(self) -> bool:
        """Tell whether the library has to do something first, such as to end what an answer could not be sent on."""
        return not self.to_provider_queue.empty() or not self.event_queue.empty()

    def _request(self, context_id: int, command: Command) -> StoreRequest:
        context = self.assoc._accepted_cx.get(context_id)
        if context is None:
            raise BrokenError(_INVALID)
        return StoreRequest(context_id, str(context.abstract_syntax), str(context.transfer_syntax[0]), command)

    def _decode_pdu(self, bytestream: bytearray) -> tuple[_PDUType, str]:
        """Decode a PDU the library's way, and see that it can be used: otherwise one of its threads ends there.

        Raises:
            Exception: it cannot, whatever the library makes of hostile bytes.
        """
        pdu, event = super()._decode_pdu(bytestream)
        primitive = pdu.to_primitive()
        if isinstance(primitive, A_ASSOCIATE):
            for context in primitive.presentation_context_definition_list:
                if context.abstract_syntax is None:
                    raise ValueError("a presentation context without an abstract syntax")
        return pdu, event

    def _read_pdu(self) -> memoryview:
        """Read a PDU; what is returned is good until the next one is read.

        Raises:
            BrokenError: there is none.
        """
        if not self._buffer:
            self._buffer = memoryview(bytearray(6 + (self.assoc.acceptor.maximum_length or 0) + _MISCOUNTED))
        self._fill(self._buffer[:6])
        length = int.from_bytes(self._buffer[2:6], "big")
        if length > LONGEST_PDU:
            raise BrokenError(_INVALID)
        if length > len(self._buffer) - 6:  # more than was agreed on: some senders do not ask
            self._buffer = memoryview(bytearray(self._buffer[:6]) + bytearray(length))
        self._fill(self._buffer[6 : 6 + length])
        return self._buffer[: 6 + length]

    def _fill(self, target: memoryview) -> None:
        connection = cast("Connection | None", cast("AssociationSocket", self.socket).socket)
        try:
            if connection is None or not connection.fill(target):
                raise BrokenError(_CLOSED)
        except OSError as error:
            raise BrokenError(_CLOSED) from error

    def _pass_on(self, pdu: memoryview) -> None:
        """Give the library a PDU that is not of a C-STORE request."""
        if self._passing is not None and pdu[0] == _P_DATA:
            self._passing.follow(pdu)
            if self._passing.is_whole():
                self._passing = None
        self._give(pdu)

    def _give(self, raw: bytes | memoryview) -> None:
        """Give the library a PDU, the way its own reading does."""
        try:
            pdu, event = self._decode_pdu(bytearray(raw))
        except Exception as error:  # whatever its decoder makes of hostile bytes
            raise BrokenError(_INVALID) from error
        self.event_queue.put(event)
        self._recv_pdu.put(pdu)

    def _break_off(self, error: BrokenError) -> None:
        """Tell the state machine; a PDU that broke a message off, such as an A-ABORT, is the library's."""
        try:
            if error.pdu:
                self._give(error.pdu)
            else:
                self.event_queue.put(error.event)
        except BrokenError as other:
            self.event_queue.put(other.event)

    def _answer(self, request: StoreRequest, status: Status) -> None:
        command = store_response(request.command, status)
        step = max(1, (self.assoc.requestor.maximum_length or len(command) + 6) - 6)
        pdus = bytearray()
        for start in range(0, len(command), step):
            part = command[start : start + step]
            control = _COMMAND | (_LAST if start + step >= len(command) else 0)
            pdus += struct.pack(">BBLLBB", _P_DATA, 0, len(part) + 6, len(part) + 2, request.context_id, control) + part
        # At once: a peer that does not read would otherwise be waited for once for every PDU.
        cast("AssociationSocket", self.socket).send(bytes(pdus))


class _Message:
    """One DIMSE message as it comes, PDU by PDU.

    Attributes:
        context_id: of its presentation context.
    """

    def __init__(self, read_pdu: Callable[[], memoryview], first: memoryview) -> None:
        self._read_pdu = read_pdu
        self._pdu = first
        self._earlier: list[bytes] = []
        self._values = _values(first)
        self._has_data_set = False
        self._has_ended = False
        self._size = 0
        self.context_id = 0

    def read_command(self) -> Command | None:
        """Read up to the end of the command set; None where it is none.

        Raises:
            BrokenError: it does not come whole.
        """
        encoded, last = bytearray(), False
        while not last:
            value = next(self._values, None)
            if value is None:
                if len(self._earlier) >= _MOST_PDUS:
                    raise BrokenError(_INVALID)
                self._earlier.append(bytes(self._pdu))
                self._pdu = self._next_pdu()
                self._values = _values(self._pdu)
                continue
            self.context_id, control, part = value
            if not control & _COMMAND or len(encoded) + len(part) > LONGEST_COMMAND:
                raise BrokenError(_INVALID)
            encoded += part
            last = bool(control & _LAST)
        try:
            command = Command.decode(encoded)
        except ValueError:  # how to answer that, the library knows
            self._has_ended = True
            return None
        self._has_data_set = command.has_data_set
        return command

    def fragments(self) -> Iterator[memoryview]:
        """Read the data set.

        Raises:
            BrokenError: it does not come whole.
        """
        if not self._has_data_set and next(self._values, None) is not None:
            raise BrokenError(_INVALID)
        while self._has_data_set and not self._has_ended:
            for context_id, control, part in self._values:
                if control & _COMMAND or context_id != self.context_id or self._has_ended:
                    raise BrokenError(_INVALID)
                self._has_ended = bool(control & _LAST)
                yield part
            if not self._has_ended:
                self._values = _values(self._next_pdu())

    def taken(self) -> list[bytes | memoryview]:
        """List the PDUs that were read up to the end of the command set."""
        return [*self._earlier, self._pdu]

    def is_whole(self) -> bool:
        """Tell whether its last fragment is among those that were taken or followed."""
        for _, control, _ in self._values:
            self._has_ended = self._has_ended or (not control & _COMMAND and bool(control & _LAST))
        return self._has_ended or not self._has_data_set

    def follow(self, pdu: memoryview) -> None:
        """Look at a further PDU of a message that goes the library's way.

        Raises:
            BrokenError: it is more than the library is to hold in memory.
        """
        self._size += len(pdu)
        if self._size > LONGEST_MESSAGE:
            raise BrokenError(_INVALID)
        self._values = _values(pdu)

    def _next_pdu(self) -> memoryview:
        pdu = self._read_pdu()
        if pdu[0] != _P_DATA:
            raise BrokenError(pdu=bytes(pdu))
        return pdu


def _values(pdu: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Take a P-DATA-TF PDU apart: presentation context, control header and fragment of each PDV (PS3.8 9.3.5.1)."""
    offset = 6
    while offset < len(pdu):
        length = int.from_bytes(pdu[offset : offset + 4], "big")
        if length < 2 or offset + 4 + length > len(pdu):
            raise BrokenError(_INVALID)
        yield pdu[offset + 4], pdu[offset + 5], pdu[offset + 6 : offset + 4 + length]
        offset += 4 + length


def _is_at_hand(wrapper: AssociationSocket) -> bool:
    """Wait for the next PDU, for as long as a sender takes between two instances."""
    connection = wrapper.socket
    if connection is None or wrapper.ready:
        return connection is not None
    try:
        return bool(select.select([connection], [], [], _SECONDS_AT_HAND)[0])
    except (OSError, ValueError):  # closed by another thread
        return False
