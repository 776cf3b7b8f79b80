"""Receiver: the Verification and Storage SCP on its port."""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, cast

import pydicom.config
import structlog
from pydicom.uid import UID
from pynetdicom import AE, _config, build_context, evt
from pynetdicom.association import Association
from pynetdicom.events import Event, EventHandlerType
from pynetdicom.pdu import A_ABORT_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, SOPClassCommonExtendedNegotiation

from dicomai import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, tls
from dicomai.association import AssociationEnd
from dicomai.config import Settings
from dicomai.errors import ConfigurationError, DicomaiError
from dicomai.filemeta import FileMeta
from dicomai.log import place
from dicomai.receiver import connections, contexts, policy, statuses, stream
from dicomai.receiver.connections import MAX_WAITING, Connection, Server, at_door
from dicomai.receiver.identity import Users, response
from dicomai.receiver.ports import Intake
from dicomai.receiver.services import Service, Services
from dicomai.receiver.sessions import Session, Sessions

log = structlog.get_logger()

_RENEWAL_SECONDS = 10.0
_PATROL_SECONDS = 1.0


class StopSignal(Protocol):
    """What tells `serve` to end: a threading or multiprocessing Event."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, at most `timeout` seconds; tells whether it is."""


def serve(
    settings: Settings,
    intake: Intake,
    stop: StopSignal,
    ready: Callable[[int], None] | None = None,
    services: Sequence[Service] = (),
    door: socket.socket | None = None,
) -> None:
    """Receive until told to stop.

    Args:
        settings: of the node.
        intake: where instances go.
        stop: ends the receiver when set.
        ready: called with the port once the receiver answers.
        services: what is offered beside Verification and Storage.
        door: see `Receiver`.

    Raises:
        ConfigurationError: the port cannot be had.
    """
    receiver = Receiver(settings, intake, services, door)
    receiver.start()
    try:
        if ready is not None:
            ready(receiver.port)
        stop.wait()
    finally:
        receiver.shutdown()


class Receiver:
    """A Verification SCP and Storage SCP that hands every instance to the intake."""

    def __init__(
        self,
        settings: Settings,
        intake: Intake,
        services: Sequence[Service] = (),
        door: socket.socket | None = None,
    ) -> None:
        """Make a receiver; nothing listens before `start`.

        Args:
            settings: `[node]` and `[receiver]` are used.
            intake: where instances go.
            services: what is offered beside Verification and Storage.
            door: a bound socket that other receivers listen on as well; None to take the port for this one alone.
        """
        self._door = door
        self._services = Services(services)
        self._settings = settings
        self._intake = intake
        self._policy = policy.Policy(settings.node.ae_title, settings.receiver, intake.has_room)
        self._users = Users(settings.user)
        self._sessions = Sessions(intake)
        self._server: Server | None = None
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    @property
    def port(self) -> int:
        """The port that it listens on."""
        if self._server is None:
            return self._settings.node.port
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Listen.

        Raises:
            ConfigurationError: the address cannot be had, or a file of `[tls]` is missing or wrong.
        """
        _quieten()
        node, limits = self._settings.node, self._settings.receiver
        secured = tls.ServerContext(self._settings.tls) if limits.tls else None
        ae = AE(ae_title=node.ae_title)
        ae.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
        ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        ae.maximum_pdu_size = limits.max_pdu
        ae.maximum_associations = 2**31  # ours is the limit that counts, with refused ones left out
        ae.acse_timeout = connections.ARTIM_SECONDS
        ae.network_timeout = limits.idle_timeout
        try:
            server = ae.make_server(
                (node.host, node.port),
                contexts=[build_context(contexts.VERIFICATION)],
                evt_handlers=self._handlers(),
                server_class=Server if self._door is None else at_door(self._door),
                request_handler=stream.handler(self._store),
            )
        except OSError as error:
            raise ConfigurationError(
                f"Cannot listen on {node.host} port {node.port} ({error.strerror or error}): end what uses it, or"
                " set node.host and node.port."
            ) from error
        self._server = cast("Server", server)
        self._server.tls_context = secured
        self._server.most_connections = limits.max_associations + MAX_WAITING
        listen = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="listen", daemon=True)
        patrol = threading.Thread(target=self._patrol, name="leases", daemon=True)
        self._threads = [listen, patrol]
        for thread in self._threads:
            thread.start()
        log.info("receiver listens", ae_title=node.ae_title, host=node.host, port=self.port, tls=limits.tls)

    def shutdown(self, grace: float = 10.0) -> None:
        """Stop: no new association, open ones may finish for `grace` seconds, then they are aborted."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.shutdown()
        deadline = time.monotonic() + grace
        while len(self._sessions) and time.monotonic() < deadline:
            time.sleep(0.02)
        lingering = self._sessions.associations()
        for assoc in lingering:
            assoc.abort(block=False)
            self._sessions.close(assoc, AssociationEnd.ABORTED)
        deadline = time.monotonic() + 1.0  # for the A-ABORTs to leave
        while any(assoc.is_alive() for assoc in lingering) and time.monotonic() < deadline:
            time.sleep(0.01)
        for assoc in lingering:
            _cut(assoc)
        server.cut_strangers()
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=5.0)
        log.info("receiver stopped")

    def _patrol(self) -> None:
        renewed = time.monotonic()
        ending: set[Association] = set()
        while not self._stopping.wait(_PATROL_SECONDS):
            if time.monotonic() - renewed >= _RENEWAL_SECONDS:
                renewed = time.monotonic()
                self._sessions.renew()
            try:
                self._sessions.close_dead()
                ending = self._end_overdue(ending)
                self._services.patrol()
            except Exception as error:  # noqa: BLE001  without leases every open association would count as lost
                log.error(
                    "a look at the open associations failed; it is repeated",
                    remedy="see whether it goes on, and report it if so",
                    error=str(error) if isinstance(error, DicomaiError) else type(error).__name__,
                    place=place(error),
                )

    def _end_overdue(self, ending: set[Association]) -> set[Association]:
        """Abort what is open for too long; cut what was aborted and is still there."""
        for assoc in ending:
            if assoc.is_alive():
                _cut(assoc)
        overdue = self._sessions.overdue(self._settings.receiver.total_timeout)
        for assoc in overdue:
            assoc.abort(block=False)
            self._sessions.close(assoc, AssociationEnd.ABORTED)
        return set(overdue)

    def _handlers(self) -> list[EventHandlerType]:
        return [
            (evt.EVT_REQUESTED, self._on_requested),
            (evt.EVT_SOP_COMMON, _on_common_negotiation),
            (evt.EVT_PDU_RECV, self._on_pdu),
            (evt.EVT_CONN_CLOSE, self._on_connection_closed),
            (evt.EVT_RELEASED, self._on_released),
            (evt.EVT_ABORTED, self._on_aborted),
            *self._services.handlers(),
        ]

    def _on_requested(self, event: Event) -> None:
        """Judge an A-ASSOCIATE-RQ before it is negotiated."""
        assoc = event.assoc
        request = cast("A_ASSOCIATE", assoc.requestor.primitive)
        session = Session(str(request.calling_ae_title).strip(), assoc.requestor.address)
        called_ae = str(request.called_ae_title).strip()
        try:
            refusal = self._admit(assoc, session, called_ae, request)
        except Exception as error:  # noqa: BLE001  whatever it was, nobody comes in unjudged
            self._sessions.drop(assoc)
            remedy = str(error) if isinstance(error, DicomaiError) else f"{type(error).__name__} at {place(error)}"
            refusal = policy.Refusal(policy.CONGESTION, remedy)
        if refusal is None:
            return
        reason = refusal.reason
        log.warning(
            f"association refused: {reason.meaning}",
            remedy=refusal.remedy,
            calling_ae=session.calling_ae,
            called_ae=called_ae,
            address=session.address,
        )
        assoc.acse.send_reject(reason.result, reason.source, reason.diagnostic)
        assoc.kill()  # returns when the A-ASSOCIATE-RJ is sent; the library closes the socket after this handler

    def _admit(
        self, assoc: Association, session: Session, called_ae: str, request: A_ASSOCIATE
    ) -> policy.Refusal | None:
        """Let an association in and write it down, or say why not."""
        known = {"calling_ae": session.calling_ae, "called_ae": called_ae, "address": session.address}
        identity = assoc.requestor.user_identity
        proposed = request.presentation_context_definition_list
        brings_instances = bool(contexts.as_storage(proposed))
        refusal = (
            self._policy.stranger(**known)
            or self._users.refusal(identity)
            or self._policy.congestion()
            or self._enter(assoc, session, with_others=brings_instances)
        )
        if refusal is not None:
            return refusal
        answer = response(identity) if self._settings.user else None
        if answer is not None:
            assoc.acceptor.add_negotiation_item(answer)
        _be_patient(assoc, self._settings.receiver.idle_timeout)
        assoc.acceptor.supported_contexts = contexts.supported(proposed, self._services, self._services.reported_to)
        if brings_instances:
            session.row = self._intake.open_association(session.calling_ae, session.address)
            log.info(
                "association opened",
                association=session.row,
                calling_ae=session.calling_ae,
                address=session.address,
                contexts=len(proposed),
            )
        return None

    def _enter(self, assoc: Association, session: Session, *, with_others: bool) -> policy.Refusal | None:
        """Count an association in, unless there are too many; `with_others`: those of other receivers included.

        The index knows the others. A C-ECHO must be answered without it: who looks for what is wrong begins with one.
        """
        others, near_others = self._intake.elsewhere(session.address) if with_others else (0, 0)

        def refusal(here: int, near: int) -> policy.Refusal | None:
            return self._policy.crowd(here + others, near + near_others)

        return self._sessions.enter(assoc, session, refusal)

    def _store(
        self, assoc: Association, request: stream.StoreRequest, fragments: Iterator[memoryview]
    ) -> statuses.Status:
        """Take an instance in: success only for what is durable."""
        session = self._sessions.find(assoc)
        if session is None or session.row is None:
            return statuses.PROCESSING_FAILURE
        command, counted = request.command, _Counted(fragments)
        if command.sop_class_uid != request.abstract_syntax:
            return _fail(session, statuses.NOT_NEGOTIATED, command.sop_instance_uid)
        try:
            meta = FileMeta(
                command.sop_class_uid, command.sop_instance_uid, request.transfer_syntax, session.calling_ae
            )
            self._intake.accept(meta, counted, session.row)
        except stream.BrokenError:
            raise
        except Exception as error:  # noqa: BLE001  the sender must be answered, and the receiver go on
            return _fail(session, statuses.status_of(error), command.sop_instance_uid, error)
        session.owed.discard(command.sop_instance_uid)
        session.instances += 1
        session.size += counted.size
        return statuses.SUCCESS

    def _on_pdu(self, event: Event) -> None:
        if isinstance(event.pdu, A_ABORT_RQ):
            session = self._sessions.find(event.assoc)
            if session is not None:
                session.was_aborted = True

    def _on_connection_closed(self, event: Event) -> None:
        self._services.ended(event.assoc)
        session = self._sessions.find(event.assoc)
        if session is not None:
            session.was_closed = True

    def _on_released(self, event: Event) -> None:
        self._sessions.close(event.assoc, AssociationEnd.RELEASED)

    def _on_aborted(self, event: Event) -> None:
        """Tell the sender's abort, the lost connection, the idle time-out and our own abort apart."""
        session = self._sessions.find(event.assoc)
        if session is None:
            return
        is_idle = event.assoc.dul.idle_timer_expired()
        is_lost = not session.was_aborted and (session.was_closed or is_idle)
        self._sessions.close(event.assoc, AssociationEnd.LOST if is_lost else AssociationEnd.ABORTED)


class _Counted:
    """Fragments, and how many bytes they had."""

    def __init__(self, fragments: Iterator[memoryview]) -> None:
        self._fragments = fragments
        self.size = 0

    def __iter__(self) -> Iterator[memoryview]:
        for fragment in self._fragments:
            self.size += len(fragment)
            yield fragment


def _on_common_negotiation(event: Event) -> dict[UID, SOPClassCommonExtendedNegotiation]:
    request = cast("A_ASSOCIATE", event.assoc.requestor.primitive)
    return contexts.as_storage(request.presentation_context_definition_list)


def _be_patient(assoc: Association, seconds: float) -> None:
    """Time a sender by the idle time-out now; one that stops inside a PDU would block its thread for ever."""
    wrapper = assoc.dul.socket
    connection = wrapper.socket if wrapper is not None else None
    if isinstance(connection, Connection):
        with contextlib.suppress(OSError):  # gone already; who reads next finds out
            connection.be_patient(seconds)


def _cut(assoc: Association) -> None:
    """Close the connection under an association: a thread that waits for the rest of a PDU keeps the process alive."""
    wrapper = assoc.dul.socket
    connection = wrapper.socket if wrapper is not None else None  # once: the association's own thread takes it away
    if connection is not None:
        connection.shutdown(socket.SHUT_RDWR)


def _fail(
    session: Session, status: statuses.Status, sop_instance_uid: str, error: Exception | None = None
) -> statuses.Status:
    """Log a failure in one line; the text of a foreign error is left out, it may quote the data set."""
    session.failures += 1
    if status in {statuses.OUT_OF_RESOURCES, statuses.TOO_LARGE, statuses.PROCESSING_FAILURE}:
        session.owed.add(sop_instance_uid)
    facts: dict[str, str] = {}
    if isinstance(error, DicomaiError):
        facts["error"] = str(error)
    elif error is not None:
        facts = {"error": type(error).__name__, "place": place(error)}
    log.warning(
        f"instance refused with {status.code:04X}: {status.meaning}",
        remedy=status.remedy,
        association=session.row,
        calling_ae=session.calling_ae,
        sop_instance_uid=sop_instance_uid[:64],  # a hostile one has thousands of characters
        **facts,
    )
    return status


def _quieten() -> None:
    """Keep the libraries from writing what they receive into a log; who has set the logger's level is obeyed."""
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # its warnings quote the values
    _config.LOG_HANDLER_LEVEL = "none"  # a line for every PDU and message
    library = logging.getLogger("pynetdicom")
    if library.level == logging.NOTSET:
        library.setLevel(logging.ERROR)
