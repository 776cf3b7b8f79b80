"""Real DICOM peers for tests: a Storage SCP that does as it is told, and a Storage SCU that sends raw bytes.

`scp` answers with given statuses and keeps what it gets, byte for byte; it can refuse, stall or break off.
`associate` holds an association as a sender does; `store` sends a data set over it exactly as given. `Node` runs our
own receiver on a free port with an intake in memory.
"""

import contextlib
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID, ImplicitVRLittleEndian
from pynetdicom import AE, _config, build_context, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import split_dataset
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext

from dicomai.config import DicomDestination, Settings, TlsSettings, UserSettings
from dicomai.destinations.dimse.association import _Caller  # closes its sockets, as the library's own does not always
from dicomai.filemeta import FileMeta
from dicomai.receiver import Intake, Receiver
from dicomai.receiver.connections import Server  # the same on the other side
from dicomai.receiver.services import Service

HOST = "127.0.0.1"


def free_port() -> int:
    """A TCP port that nothing uses at the moment."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


def is_listening(port: int) -> bool:
    """Tell whether something accepts connections on a port."""
    with socket.socket() as sock:
        return sock.connect_ex((HOST, port)) == 0


def wait_until(condition: Callable[[], Any], timeout: float = 10.0) -> None:
    """Wait for something that threads bring about; fails after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def data_set_of(path: Path) -> tuple[str, str, str, bytes]:
    """SOP class, SOP instance, transfer syntax and the bytes of the data set of a DICOM file."""
    meta, offset = split_dataset(path)
    raw = path.read_bytes()[offset:]
    return (
        str(meta.MediaStorageSOPClassUID),
        str(meta.MediaStorageSOPInstanceUID),
        str(meta.TransferSyntaxUID),
        raw,
    )


@dataclass(frozen=True)
class Received:
    """One C-STORE request as it came."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_set: bytes
    association: int


@dataclass
class Scp:
    """A running Storage SCP.

    `answers` gives a status, a data set with one, or is called with the event, for the n-th request; the last one is
    used for all that follow.
    """

    ae_title: str
    port: int
    answers: list[Any]
    received: list[Received] = field(default_factory=list)
    associations: list[Association] = field(default_factory=list)

    def destination(self, name: str = "pacs") -> DicomDestination:
        """The entry [[destination]] that leads here."""
        return DicomDestination(type="dicom", name=name, ae_title=self.ae_title, host=HOST, port=self.port)

    def store(self, event: Event) -> Any:
        """Keep a request and answer it."""
        request = cast("C_STORE", event.request)
        assert request.DataSet is not None
        self.received.append(
            Received(
                str(request.AffectedSOPClassUID),
                str(request.AffectedSOPInstanceUID),
                str(event.context.transfer_syntax),
                request.DataSet.getvalue(),
                self.associations.index(event.assoc),
            )
        )
        answer = self.answers[min(len(self.received), len(self.answers)) - 1]
        return answer(event) if callable(answer) else answer


@contextlib.contextmanager
def scp(
    *answers: Any,
    ae_title: str = "PACS",
    contexts: Sequence[tuple[str, Sequence[str]]] | None = None,
    on_request: Callable[[Event], None] | None = None,
    port: int | None = None,
    handlers: Sequence[Any] = (),
    **ae_attributes: Any,
) -> Iterator[Scp]:
    """Run a Storage SCP; it accepts every presentation context, unless told otherwise.

    Args:
        answers: statuses for the requests in turn; 0x0000 where there are none.
        ae_title: its own.
        contexts: SOP class and transfer syntaxes that it accepts.
        on_request: called with each A-ASSOCIATE-RQ, may reject it.
        port: to listen on.
        handlers: for what else comes, as pynetdicom takes them.
        ae_attributes: set on the AE, such as `require_called_aet=True`.
    """
    _config.LOG_HANDLER_LEVEL = "none"
    ae = AE(ae_title=ae_title)
    for name, value in ae_attributes.items():
        setattr(ae, name, value)
    ae.supported_contexts = [
        build_context(uid, list(taken)) for uid, taken in contexts or [("1.2.840.10008.1.1", [ImplicitVRLittleEndian])]
    ]
    server_side = Scp(ae_title, 0, list(answers) or [0x0000])

    def requested(event: Event) -> None:
        server_side.associations.append(event.assoc)
        if contexts is None:
            taken: dict[str, list[str]] = {}  # the library knows one context of a SOP class
            for proposed in proposals(event.assoc):
                taken.setdefault(str(proposed.abstract_syntax), []).extend(map(str, proposed.transfer_syntax))
            event.assoc.acceptor.supported_contexts = [build_context(uid, syntaxes) for uid, syntaxes in taken.items()]

    bound: list[Any] = [
        (evt.EVT_C_STORE, server_side.store),
        (evt.EVT_REQUESTED, requested),
        *handlers,
    ]
    if on_request is not None:
        bound.append((evt.EVT_REQUESTED, on_request))
    server = ae.make_server((HOST, port or 0), evt_handlers=bound, server_class=Server)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    server_side.port = int(server.server_address[1])
    try:
        yield server_side
    finally:
        for assoc in server.active_associations:
            assoc.abort(block=False)
        server.shutdown()


@contextlib.contextmanager
def associate(
    port: int,
    contexts: Iterable[tuple[str, Sequence[str]]],
    *,
    calling_ae: str = "CT01",
    called_ae: str = "DICOMAI",
    tls: tuple[ssl.SSLContext, str] | None = None,
    negotiation: Sequence[Any] = (),
) -> Iterator[Association]:
    """Hold an association, as a sender does; yields it established or not, releases it at the end."""
    _config.LOG_HANDLER_LEVEL = "none"
    ae = _Caller(ae_title=calling_ae)
    ae.acse_timeout = ae.dimse_timeout = ae.connection_timeout = 10
    proposed: list[PresentationContext] = [build_context(uid, list(syntaxes)) for uid, syntaxes in contexts]
    assoc = ae.associate(
        HOST, port, contexts=proposed, ae_title=called_ae, max_pdu=131072, tls_args=tls, ext_neg=list(negotiation)
    )
    try:
        yield assoc
    finally:
        if assoc.is_established:
            assoc.release()


def proposals(assoc: Association) -> list[PresentationContext]:
    """The presentation contexts that the requestor of an association proposed."""
    primitive = assoc.requestor.primitive
    assert primitive is not None
    return primitive.presentation_context_definition_list


def rejection(assoc: Association) -> tuple[int | None, int | None, int | None]:
    """Result, source and reason of the A-ASSOCIATE-RJ that came."""
    wait_until(lambda: assoc.is_rejected)
    primitive = assoc.acceptor.primitive
    assert primitive is not None
    return primitive.result, primitive.result_source, primitive.diagnostic


def store(
    assoc: Association, sop_class_uid: str, sop_instance_uid: str, data_set: bytes, *, context: int | None = None
) -> Dataset:
    """Send a data set over an association exactly as given; an empty response if the association broke.

    Args:
        assoc: established.
        sop_class_uid: for the request.
        sop_instance_uid: for the request.
        data_set: encoded in the context's transfer syntax.
        context: presentation context ID; the first one of the SOP class unless given.
    """
    request = C_STORE()
    request.MessageID = 1
    request.Priority = 2
    request.AffectedSOPClassUID = UID(sop_class_uid)
    request.AffectedSOPInstanceUID = UID(sop_instance_uid)
    request.DataSet = io.BytesIO(data_set)
    if context is None:
        context = next(c.context_id for c in assoc.accepted_contexts if c.abstract_syntax == sop_class_uid)
    assert context is not None
    assoc._reactor_checkpoint.clear()
    while not assoc._is_paused:
        time.sleep(0.0001)
    assoc.dimse.send_msg(request, context)
    _, response = assoc.dimse.get_msg(block=True)
    assoc._reactor_checkpoint.set()
    return assoc._check_received_status(response) if response is not None else Dataset()


def send_file(port: int, path: Path, *, calling_ae: str = "CT01", called_ae: str = "DICOMAI") -> int:
    """Send one DICOM file as it is over an association of its own; the status that came back."""
    sop_class_uid, sop_instance_uid, transfer_syntax_uid, data_set = data_set_of(path)
    with associate(port, [(sop_class_uid, [transfer_syntax_uid])], calling_ae=calling_ae, called_ae=called_ae) as assoc:
        assert assoc.is_established
        return int(store(assoc, sop_class_uid, sop_instance_uid, data_set).Status)


class MemoryIntake:
    """An intake that keeps everything in memory, and fails when told to."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.opened: list[tuple[str, str]] = []
        self.closed: list[tuple[int, str]] = []
        self.renewed: list[set[int]] = []
        self.files: list[tuple[int, bytes]] = []
        self.room = True
        self.failure: Exception | None = None
        self.before_accept: Callable[[], None] = lambda: None

    def has_room(self) -> bool:
        """As set."""
        return self.room

    def elsewhere(self, address: str) -> tuple[int, int]:
        """Nothing is."""
        del address
        return 0, 0

    def open_association(self, calling_ae: str, address: str) -> int:
        """Count from 1."""
        with self.lock:
            self.opened.append((calling_ae, address))
            return len(self.opened)

    def close_association(self, association: int, outcome: Any) -> None:
        """Keep the order of the ends."""
        with self.lock:
            self.closed.append((association, outcome.value))

    def renew(self, associations: Collection[int]) -> None:
        """Keep what was renewed."""
        with self.lock:
            self.renewed.append(set(associations))

    def accept(self, meta: FileMeta, fragments: Iterable[bytes | memoryview], association: int) -> None:
        """Keep the file, or fail as set."""
        self.before_accept()
        if self.failure is not None:
            raise self.failure
        data = b"".join((meta.encode(), *map(bytes, fragments)))  # each is good until the next is asked for
        with self.lock:
            self.files.append((association, data))

    def data_set(self, number: int = -1) -> bytes:
        """The data set's bytes of a kept file, without preamble and file meta information."""
        data = self.files[number][1]
        assert data[128:132] == b"DICM"
        return data[144 + int.from_bytes(data[140:144], "little") :]

    def meta(self, number: int = -1) -> Dataset:
        """The file meta information of a kept file."""
        data = self.files[number][1]
        return dcmread(io.BytesIO(data[: 144 + int.from_bytes(data[140:144], "little")])).file_meta


@dataclass
class Node:
    """Our receiver, running."""

    port: int
    intake: MemoryIntake
    receiver: Receiver


@contextlib.contextmanager
def node(
    intake: Intake | None = None,
    *,
    ae_title: str = "DICOMAI",
    grace: float = 5.0,
    tls: TlsSettings | None = None,
    users: Sequence[UserSettings] = (),
    services: Sequence[Service] = (),
    **receiver: Any,
) -> Iterator[Node]:
    """Run our receiver on a free port, by TLS where that is given; further arguments are keys of `[receiver]`."""
    settings = Settings(
        node={"ae_title": ae_title, "host": HOST, "port": free_port()},
        receiver={"tls": tls is not None, **receiver},
        tls=tls or TlsSettings(),
        user=users,
    )
    taken = intake or MemoryIntake()
    running = Receiver(settings, taken, services)
    running.start()
    try:
        yield Node(running.port, cast("MemoryIntake", taken), running)
    finally:
        running.shutdown(grace=grace)
