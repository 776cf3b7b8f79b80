"""P-DATA on a real socket, cut and joined in every way that PS3.8 allows, and in some that it does not.

The upper layer that reads it here is ours, where pynetdicom has its own. Its tests that concern this part are the
ones beside `TestFragments`, `TestBroken` and `TestEnds` below: of test_dul.py `test_recv_failure_aborts`,
`test_recv_short_aborts`, `test_recv_missing_data`, `test_recv_bad_pdu_aborts`, `test_unknown_pdu_aborts` and
`test_exception_in_reactor`, of test_transport.py `test_multiple_pdu_acc` and `test_split_pdu_windows`, of
test_dimse_provider.py `test_invalid_message`. `python -m tests.upper_layer` runs all of the library's own with it.
"""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import A_ASSOCIATE
from structlog.testing import capture_logs

from dicomai.receiver.stream import _Machine
from tests.dimse import HOST, Node, node, wait_until
from tests.fuzz import wire
from tests.fuzz.wire import element, pdu, pdv

DATA_SET = bytes(range(256)) * 3
RELEASE_RQ, RELEASE_RP, ABORT = 5, 6, 7  # PDU types (PS3.8 9.3)
CT, ECHO, OTHER = 1, 3, 11  # presentation context IDs; the last one was not proposed


@dataclass
class Peer:
    """A sender that says what it is told to say."""

    connection: socket.socket
    _command: bytes = b""
    statuses: list[int] = field(default_factory=list)

    def send(self, *pdus: bytes) -> None:
        """Send PDUs at once."""
        self.connection.sendall(b"".join(pdus))

    def next(self, answers: int = 1000) -> int:
        """Wait for the next PDU that is no answer, for so many answers, or for the end (0)."""
        while len(self.statuses) < answers and len(head := self.connection.recv(6, socket.MSG_WAITALL)) == 6:
            body = self.connection.recv(int.from_bytes(head[2:]), socket.MSG_WAITALL)
            if head[0] != 4:
                return head[0]
            self._command += body[6:]
            if body[5] & 2:
                self.statuses.append(int.from_bytes(wire.fields(self._command)[0x0900], "little"))
                self._command = b""
        return 0

    def release(self) -> list[int]:
        """Release; gives the statuses of all answers."""
        self.send(pdu(RELEASE_RQ, bytes(4)))
        assert self.next() == RELEASE_RP
        return self.statuses


def item(kind: int, content: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(content)) + content


@contextlib.contextmanager
def associated(port: int, maximum_length: int = 0) -> Iterator[Peer]:
    """Hold an association of CT and Verification with a sender that takes PDUs of so many bytes."""
    contexts = b""
    for number, abstract_syntax in ((CT, wire.CT), (ECHO, wire.ECHO)):
        syntaxes = item(0x30, abstract_syntax.encode()) + item(0x40, b"1.2.840.10008.1.2.1")
        contexts += item(0x20, bytes((number, 0, 0, 0)) + syntaxes)
    user = item(0x51, struct.pack(">L", maximum_length)) + item(0x52, b"1.2.3")
    head = struct.pack(">HH16s16s32x", 1, 0, b"DICOMAI".ljust(16), b"CT01".ljust(16))
    with socket.create_connection((HOST, port), timeout=10) as connection:
        peer = Peer(connection)
        peer.send(pdu(1, head + item(0x10, b"1.2.840.10008.3.1.1.1") + contexts + item(0x50, user)))
        assert peer.next() == 2
        yield peer


@pytest.fixture(scope="module")
def receiver() -> Iterator[Node]:
    with node(max_pdu=4096) as one:
        yield one


def command(field_: int = wire.C_STORE_RQ, *, has_data_set: bool = True, uid: bytes = b"1.2.3.4\0") -> bytes:
    sop_class = wire.CT if field_ == wire.C_STORE_RQ else wire.ECHO
    elements = element(0x0002, sop_class.encode() + b"\0" * (len(sop_class) % 2)) + element(
        0x0100, struct.pack("<H", field_)
    )
    elements += element(0x0110, b"\7\0") + element(0x0800, b"\0\0" if has_data_set else b"\1\1")
    elements += element(0x1000, uid) if field_ == wire.C_STORE_RQ else b""
    return element(0, struct.pack("<L", len(elements))) + elements


def echo() -> bytes:
    return pdu(4, pdv(ECHO, 3, command(0x0030, has_data_set=False)))


def store() -> list[bytes]:
    return [pdu(4, pdv(CT, 3, command())), pdu(4, pdv(CT, 2, DATA_SET))]


def pieces(control: int, encoded: bytes, size: int) -> list[bytes]:
    """Cut a command set (1) or a data set (0) into presentation data values."""
    starts = range(0, len(encoded), size)
    return [pdv(CT, control | (2 if at == starts[-1] else 0), encoded[at : at + size]) for at in starts]


def one_each(values: Sequence[bytes]) -> list[bytes]:
    return [pdu(4, value) for value in values]


FRAGMENTED = {
    "whole": store(),
    "one byte each": one_each([*pieces(1, command(), 1), *pieces(0, DATA_SET, 1)]),
    "one byte each, in one PDU": [pdu(4, b"".join([*pieces(1, command(), 1), *pieces(0, DATA_SET, 1)]))],
    "a command set in several PDUs": one_each([*pieces(1, command(), 10), *pieces(0, DATA_SET, 1000)]),
    "the data set in the command set's PDU": [pdu(4, pdv(CT, 3, command()) + pdv(CT, 2, DATA_SET))],
    "its beginning there": [pdu(4, pdv(CT, 3, command()) + pdv(CT, 0, DATA_SET[:9])), pdu(4, pdv(CT, 2, DATA_SET[9:]))],
    "several values in a PDU": [pdu(4, pdv(CT, 3, command())), pdu(4, b"".join(pieces(0, DATA_SET, 50)))],
    "an empty last fragment": [*one_each([pdv(CT, 3, command()), pdv(CT, 0, DATA_SET)]), pdu(4, pdv(CT, 2, b""))],
    "a PDU with nothing in it": [pdu(4, pdv(CT, 3, command())), pdu(4, b""), pdu(4, pdv(CT, 2, DATA_SET))],
    "reserved bits of the control header": [pdu(4, pdv(CT, 0xFF, command())), pdu(4, pdv(CT, 0xFE, DATA_SET))],
}


class TestFragments:
    @pytest.mark.parametrize("way", FRAGMENTED)
    def test_an_instance_arrives_as_it_was_however_it_is_cut(self, receiver: Node, way: str) -> None:
        before = len(receiver.intake.files)
        with associated(receiver.port) as peer:
            peer.send(*FRAGMENTED[way], *FRAGMENTED[way])  # what follows at once is the next message
            assert peer.release() == [0x0000, 0x0000]
        assert len(receiver.intake.files) == before + 2
        assert receiver.intake.data_set(-1) == receiver.intake.data_set(-2) == DATA_SET
        assert receiver.intake.meta().MediaStorageSOPInstanceUID == "1.2.3.4"

    def test_bytes_that_come_one_by_one(self, receiver: Node) -> None:
        with associated(receiver.port) as peer:
            peer.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in b"".join(store()):
                peer.send(bytes((byte,)))
            assert peer.release() == [0x0000]
        assert receiver.intake.data_set() == DATA_SET

    def test_a_pdu_that_is_larger_than_agreed(self, receiver: Node) -> None:
        large = DATA_SET * 100
        with associated(receiver.port) as peer:
            peer.send(pdu(4, pdv(CT, 3, command())), pdu(4, pdv(CT, 2, large)), *store())
            assert peer.release() == [0x0000, 0x0000]
        assert receiver.intake.data_set(-2) == large
        assert receiver.intake.data_set() == DATA_SET

    def test_echoes_between_instances(self, receiver: Node) -> None:
        with associated(receiver.port) as peer:
            for number in (1, 2):
                peer.send(*store(), echo(), echo(), *store())
                peer.next(answers=4 * number)
            assert peer.release() == [0x0000] * 8

    @pytest.mark.parametrize("maximum_length", [1, 6, 7, 20])
    def test_the_answer_to_a_sender_that_takes_next_to_nothing(self, receiver: Node, maximum_length: int) -> None:
        with associated(receiver.port, maximum_length) as peer:
            peer.send(*store())
            if maximum_length > 6:  # in less there is no room for a fragment, and the library gives up
                peer.send(echo())
                assert peer.release() == [0x0000, 0x0000]
            else:
                assert peer.release() == [0x0000]

    def test_a_request_without_a_data_set(self, receiver: Node) -> None:
        with associated(receiver.port) as peer:
            peer.send(pdu(4, pdv(CT, 3, command(has_data_set=False))), *store())
            assert peer.release() == [0x0000, 0x0000]
        assert receiver.intake.data_set(-2) == b""  # which the real intake cannot understand


HEAD = pdu(4, pdv(CT, 3, command()))

BROKEN = {
    "a context that was not accepted": [pdu(4, pdv(OTHER, 3, command())), pdu(4, pdv(OTHER, 2, DATA_SET))],
    "a data set under another context": [HEAD, pdu(4, pdv(ECHO, 2, DATA_SET))],
    "a command set inside of a data set": [HEAD, pdu(4, pdv(CT, 0, DATA_SET)), pdu(4, pdv(CT, 3, command()))],
    "a data set without a command set": [pdu(4, pdv(CT, 2, DATA_SET))],
    "more after the last fragment": [HEAD, pdu(4, pdv(CT, 2, DATA_SET) + pdv(CT, 2, DATA_SET))],
    "more after a request without a data set": [
        pdu(4, pdv(CT, 3, command(has_data_set=False)) + pdv(CT, 2, DATA_SET)),
    ],
    "a value that is longer than its PDU": [HEAD, pdu(4, pdv(CT, 2, DATA_SET, length=5000))],
    "a value without a control header": [HEAD, pdu(4, pdv(CT, 2, b"", length=1))],
    "a value of nothing": [HEAD, pdu(4, struct.pack(">L", 0))],
    "a command set that goes on for ever": [pdu(4, pdv(CT, 1, bytes(4000)))] * 20,
    "a command set in a thousand empty pieces": [pdu(4, b"")] * 1100,
    "an unknown command": [pdu(4, pdv(CT, 3, command(0x0666, has_data_set=False)))],
    "a command set that is none": [pdu(4, pdv(CT, 3, b"no command set at all"))],
    "an unknown PDU": [pdu(9, bytes(10))],
    "another A-ASSOCIATE-RQ": [pdu(1, bytes(100))],
    "a PDU that is no A-ABORT": [pdu(7, b"")],
    "a PDU of four gigabytes": [HEAD, struct.pack(">BBL", 4, 0, 0xFFFFFFFF)],
}


class TestBroken:
    @pytest.mark.parametrize("way", BROKEN)
    def test_what_breaks_the_protocol_ends_the_association_and_is_not_stored(self, receiver: Node, way: str) -> None:
        before = len(receiver.intake.files)
        closed = len(receiver.intake.closed)
        with capture_logs() as logs, associated(receiver.port) as peer:
            peer.send(*store())
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                peer.send(*BROKEN[way])
            with contextlib.suppress(ConnectionResetError):  # what nobody read is lost, the A-ABORT with it
                assert peer.next() == ABORT
            assert peer.statuses in ([0x0000], [])
            wait_until(lambda: len(receiver.intake.closed) > closed)
        assert len(receiver.intake.files) == before + 1
        assert receiver.intake.closed[-1][1] in {
            "aborted",
            "lost",
        }  # whether the peer closes first or not
        assert "exception" not in str(logs)

    def test_a_request_that_the_library_cannot_use_is_answered_at_once(self, receiver: Node) -> None:
        # No abstract syntax; an even number, which no context has; no end of a UID.
        bad = (bytes((1, 0, 0, 0)) + item(0x40, b"1.2"), bytes((2, 0, 0, 0)) + item(0x30, wire.CT.encode()), b"\1")
        for context in bad:
            with socket.create_connection((HOST, receiver.port), timeout=10) as connection:
                head = struct.pack(">HH16s16s32x", 1, 0, b"DICOMAI".ljust(16), b"CT01".ljust(16))
                Peer(connection).send(pdu(1, head + item(0x20, context) + item(0x50, item(0x51, bytes(4)))))
                assert Peer(connection).next() == ABORT


class TestEnds:
    def test_an_abort_inside_of_a_data_set(self, receiver: Node) -> None:
        self._ends_with(receiver, [HEAD, pdu(4, pdv(CT, 0, DATA_SET)), pdu(ABORT, bytes(4))], 0, "aborted")

    def test_a_release_inside_of_a_data_set(self, receiver: Node) -> None:
        self._ends_with(
            receiver, [HEAD, pdu(4, pdv(CT, 0, DATA_SET)), pdu(RELEASE_RQ, bytes(4))], RELEASE_RP, "released"
        )

    def test_an_end_inside_of_a_pdu(self, receiver: Node) -> None:
        self._ends_with(receiver, [HEAD, pdu(4, pdv(CT, 2, DATA_SET))[:-1]], 0, "lost")

    def test_an_end_inside_of_the_head_of_a_pdu(self, receiver: Node) -> None:
        self._ends_with(receiver, [HEAD, b"\4\0\0"], 0, "lost")

    @staticmethod
    def _ends_with(receiver: Node, sent: Sequence[bytes], answer: int, end: str) -> None:
        before, closed = len(receiver.intake.files), len(receiver.intake.closed)
        with associated(receiver.port) as peer:
            peer.send(*store(), *sent)
            if not answer:
                peer.connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                assert peer.next() == answer
            wait_until(lambda: len(receiver.intake.closed) > closed)
        assert receiver.intake.closed[-1][1] == end
        assert len(receiver.intake.files) == before + 1

    def test_one_that_comes_and_goes_leaves_no_thread_behind(self, receiver: Node) -> None:
        wait_until(lambda: not associations())
        for _ in range(20):
            socket.create_connection((HOST, receiver.port), timeout=10).close()
        wait_until(lambda: not associations(), timeout=3)

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_a_connection_does_not_outlive_a_thread_that_fails(
        self, receiver: Node, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError

        monkeypatch.setattr("pynetdicom.acse.ACSE._negotiate_as_acceptor", fail)
        with pytest.raises(AssertionError, match="7 == 2"), associated(receiver.port):
            pass  # it is aborted, and not left without an answer
        wait_until(lambda: not associations(), timeout=3)


class TestMachine:
    """What a peer that goes at any moment leaves over of what this side wanted."""

    @pytest.fixture
    def machine(self) -> _Machine:
        return _Machine(DULServiceProvider(Association(AE(), "acceptor")))

    def test_what_is_wanted_too_late_is_dropped(self, machine: _Machine) -> None:
        machine.current_state = "Sta13"
        machine.dul.to_provider_queue.put(A_ASSOCIATE())
        machine.do_action("Evt7")
        assert machine.dul.to_provider_queue.empty()
        assert machine.current_state == "Sta13"

    def test_what_is_done_is_not_done_again(self, machine: _Machine) -> None:
        machine.current_state = "Sta6"
        machine.do_action("Evt9")
        assert machine.current_state == "Sta6"

    def test_an_end_that_is_told_twice(self, machine: _Machine) -> None:
        machine.do_action("Evt17")
        assert machine.current_state == "Sta1"


def associations() -> list[str]:
    """The threads of associations that are alive."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("Acceptor")]
