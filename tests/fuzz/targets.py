"""What is fed: each target takes bytes of a stranger, and says what may come of them."""

import contextlib
import io
import socket
import struct
import zlib
from collections.abc import Iterator
from http.client import HTTPException, parse_headers
from pathlib import Path
from random import Random
from typing import Protocol, cast

import pydicom.config
from pynetdicom import AE, _config, build_context
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dul import DULServiceProvider
from pynetdicom.transport import AddressInformation, AssociationSocket

from dicomai.console import stow
from dicomai.console.body import Body, RequestError
from dicomai.console.multipart import boundary_of, read_parts
from dicomai.database import Database
from dicomai.errors import InputError, UnreadableError
from dicomai.filemeta import FileMeta
from dicomai.header import read_header
from dicomai.intake import Intake
from dicomai.receiver import statuses, stream
from dicomai.receiver.commands import Command, store_response
from dicomai.receiver.connections import Connection
from dicomai.store import Store
from tests.fuzz import bodies, datasets, wire
from tests.fuzz.bending import bent


class Target(Protocol):
    """A layer of the node."""

    name: str
    share: float
    """Of all inputs."""
    batch: int
    """How many inputs are made at once."""

    def make(self, rng: Random) -> bytes:
        """Make an input."""

    def run(self, data: bytes) -> None:
        """Feed it; raises whatever is a finding."""


class Commands:
    """Command sets, decoded and answered."""

    name, share, batch = "commands", 0.42, 1

    def make(self, rng: Random) -> bytes:
        """Make a command set."""
        field = rng.choice((wire.C_STORE_RQ, wire.C_STORE_RQ, 0x0030, 0x0130))
        encoded = wire.command_set(rng, field, wire.CT, has_data_set=True, wrong=rng.choice((0.0, 0.6, 1.0)))
        return bent(rng, encoded) if rng.random() < 0.3 else encoded

    def run(self, data: bytes) -> None:
        """It is a command set or a ValueError, and the answer to it is a whole command set."""
        try:
            command = Command.decode(data)
        except ValueError:
            return
        answer = store_response(command, statuses.STATUSES[zlib.crc32(data) % len(statuses.STATUSES)])
        (size,) = struct.unpack_from("<L", answer, 8)
        assert len(answer) == size + 12, "the group length is wrong"
        assert not len(answer) % 2, "an element has an odd length"
        Command.decode(answer)


class Stream:
    """P-DATA through the receiver's upper layer, with the library's behind it; a second reader says what is whole."""

    name, share, batch = "stream", 0.42, 1

    def __init__(self) -> None:
        _config.LOG_HANDLER_LEVEL = "none"
        self._assoc = Association(AE(), "acceptor")
        self._assoc.requestor.address_info = self._assoc.acceptor.address_info = AddressInformation("127.0.0.1", 104)
        self._assoc.acceptor.maximum_length = 1000  # some PDUs are longer than was agreed on
        for context_id, uid in wire.CONTEXTS.items():
            context = build_context(uid, "1.2.840.10008.1.2.1")
            context.context_id = context_id
            self._assoc._accepted_cx[context_id] = context

    def make(self, rng: Random) -> bytes:
        """Make what follows an A-ASSOCIATE-AC."""
        return wire.stream(rng)

    def run(self, data: bytes) -> None:
        """What is answered is what came whole before the first thing that was wrong; nothing else happens."""
        stored, is_cut_short = self._stored(data)
        expected = wire.stores(data)
        if is_cut_short:
            expected = expected[: len(stored)]
        assert [one.sop_instance_uid.decode("ascii", "replace") for one in expected] == [uid for uid, _ in stored]
        for one, (_, taken) in zip(expected, stored, strict=True):
            assert taken in {None, one.data_set}, "an instance was not stored as it came"

    def _stored(self, data: bytes) -> tuple[list[tuple[str, bytes | None]], bool]:
        """Feed it to an association; what was answered, and whether it was the library that ended the association."""
        taken: list[tuple[str, bytes | None]] = []

        def storing(_: object, request: stream.StoreRequest, fragments: Iterator[memoryview]) -> statuses.Status:
            way = zlib.crc32(request.command.sop_instance_uid.encode("utf-8", "replace")) % 4
            content: bytes | None = None
            if way == 1:
                next(fragments, None)
            elif way:
                content = b"".join(map(bytes, fragments))
            taken.append((request.command.sop_instance_uid, content))
            return statuses.SUCCESS

        ours, theirs = socket.socketpair()
        with theirs:
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)
            with Connection(fileno=ours.detach()) as connection:
                is_cut_short = self._run(self._provider(connection, (0, 100, 40)[zlib.crc32(data) % 3], storing))
            sent = bytearray()
            with contextlib.suppress(ConnectionResetError):  # the end where something was not read
                while block := theirs.recv(65536):
                    sent += block
        answers = [command for command in _answers(bytes(sent)) if wire.fields(command)[0x0100] == wire.C_STORE_RSP]
        # Of one whose end did not come nothing is stored either.
        assert len(answers) in {len(taken), len(taken) - 1}, "each is answered once"
        return taken[: len(answers)], is_cut_short

    def _provider(self, connection: Connection, maximum_length: int, storing: stream.Storing) -> DULServiceProvider:
        """Make the upper layer of an association that is established; all else of it is used again and again."""
        assoc = self._assoc
        dul = assoc.dul = DULServiceProvider(assoc)
        assoc.dimse = DIMSEServiceProvider(assoc)
        assoc.dimse.__class__ = stream._Messages
        assoc.is_established = True
        assoc.requestor.maximum_length = maximum_length
        assoc._reactor_checkpoint = stream._Checkpoint()
        dul.__class__ = stream.StreamingProvider
        cast("stream.StreamingProvider", dul).storing = storing
        connection.be_patient(5.0)
        dul.socket = AssociationSocket(assoc, connection)
        dul.event_queue.get()  # that there is a connection
        dul.state_machine.current_state = "Sta6"
        return dul

    @staticmethod
    def _run(dul: DULServiceProvider) -> bool:
        """Do what the library's loop does; tells whether it was the library that ended the association."""
        is_cut_short = False
        while dul.state_machine.current_state == "Sta6":
            assert dul._is_transport_event(), "there is something to read, and it was not read"
            while not dul.event_queue.empty():
                event = dul.event_queue.get()
                assert event in _EVENTS, event
                if event == "Evt17":
                    return is_cut_short
                try:
                    dul.state_machine.do_action(event)
                except Exception:  # noqa: BLE001  the library's thread ends there, and the association with it
                    return True
                is_cut_short |= event == "Evt10" and not dul.event_queue.empty()  # the library found it to be wrong
        return is_cut_short


# Of the state machine (PS3.8 Table 9-10): each kind of PDU, the end of the connection, and what is no PDU.
_EVENTS = {"Evt3", "Evt4", "Evt6", "Evt10", "Evt12", "Evt13", "Evt16", "Evt17", "Evt19"}


def _answers(sent: bytes) -> Iterator[bytes]:
    """Give the command set of each message."""
    command = b""
    while sent:
        size = 6 + int.from_bytes(sent[2:6])
        if sent[0] == 4:
            command += sent[12:size]
            if sent[11] & 2:
                yield command
                command = b""
        sent = sent[size:]
    assert not command, "an answer is not whole"


class Headers:
    """Data sets, read as far as the index needs."""

    name, share, batch = "headers", 0.09, 1

    def __init__(self) -> None:
        pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # as the receiver does

    def make(self, rng: Random) -> bytes:
        """Make a data set, with the number of its transfer syntax before it."""
        number = rng.randrange(len(datasets.SYNTAXES))
        return bytes((number,)) + datasets.data_set(rng, datasets.SYNTAXES[number])

    def run(self, data: bytes) -> None:
        """It is understood or an UnreadableError."""
        syntax = datasets.SYNTAXES[data[0] % len(datasets.SYNTAXES)] if data else datasets.SYNTAXES[0]
        try:
            header = read_header(io.BytesIO(data[1:]), syntax)
        except UnreadableError:
            return
        assert all((header.sop_class_uid, header.sop_instance_uid, header.study_instance_uid)), "a UID is missing"


class Instances(Headers):
    """Data sets, taken in: into a store and an index on disk."""

    name, share, batch = "instances", 0.004, 1

    def __init__(self, folder: Path, url: str | None = None) -> None:
        super().__init__()
        self.folder = folder
        self._store = Store(folder / "storage")
        self._database = Database(url or f"sqlite:///{folder / 'worklist.db'}")
        self._database.migrate()
        self._intake = Intake(self._store, self._database, 60.0, 0, 1_000_000)
        self._beside = self._outside()

    def run(self, data: bytes) -> None:
        """It is stored within the storage, with its row, or refused, and nothing of it is left."""
        syntax = datasets.SYNTAXES[data[0] % len(datasets.SYNTAXES)] if data else datasets.SYNTAXES[0]
        try:
            header = read_header(io.BytesIO(data[1:]), syntax)
            uids = header.study_instance_uid, header.sop_class_uid, header.sop_instance_uid
        except UnreadableError:
            uids = "1.2.826.7", wire.CT, "1.2.826.9"
        study, sop_class, sop_instance = uids
        try:
            self._intake.accept(FileMeta(sop_class, sop_instance, syntax, "FUZZ"), (data[1:],), None)
        except InputError:
            pass
        else:
            kept = (self.folder / "storage" / "instances" / study).glob(f"*/{sop_instance}.*.dcm")
            assert any(path.read_bytes().endswith(data[1:]) for path in kept), "it is not there as it came"
        assert not list((self.folder / "storage" / "incoming" / "receiver").iterdir()), "something was left behind"
        assert self._outside() == self._beside, "something lies outside of the storage"

    def _outside(self) -> set[str]:
        around = {path.name for path in self.folder.iterdir() if not path.name.startswith("worklist.db")}
        return around | {path.name for path in (self.folder / "storage").iterdir()}

    def close(self) -> None:
        """Close the database."""
        self._database.close()


class Bodies:
    """STOW-RS requests, taken apart."""

    name, share, batch = "bodies", 0.06, 1

    def make(self, rng: Random) -> bytes:
        """Make headers and body."""
        return bodies.request(rng)

    def run(self, data: bytes) -> None:
        """Parts are read or refused in a sentence; blocks stay small."""
        raw = io.BufferedReader(io.BytesIO(data))  # type: ignore[type-var]  # as a socket's file is
        try:
            headers = parse_headers(raw)
        except HTTPException:  # what the server of the library answers with 400 and 431
            return
        try:
            for part in read_parts(Body(headers, raw), boundary_of(headers)):
                try:
                    _, rest = stow.read_meta(stow.file_of(part))
                except UnreadableError:
                    continue
                assert len(rest) <= len(data)
                for _ in part.blocks:
                    pass
        except RequestError:
            pass
