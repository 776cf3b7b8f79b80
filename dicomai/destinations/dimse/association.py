"""Associations that this node requests: made, watched, ended; and why there is none. On pynetdicom."""

import contextlib
import logging
import ssl
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

from pydicom.uid import UID
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.dimse import _QueueItem
from pynetdicom.events import EventHandlerType
from pynetdicom.pdu_primitives import A_ASSOCIATE, MaximumLengthNotification, SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation, AssociationSocket

from dicomai import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomai.config import DicomDestination, TlsSettings
from dicomai.destinations.dimse.stream import SharedProvider
from dicomai.destinations.watch import Watch
from dicomai.errors import DeliveryError, NoAssociationError, NotAdmittedError, RejectedError, UnreachableError
from dicomai.tls import Fault, client_args, fault_of

MAX_PDU = 131072
"""Bytes that we let a peer send in one PDU, and the most that we send even to one that takes more."""

# PS3.8 Table 9-21: what a person can do about a refused association, by source and reason.
_REFUSALS = {
    (1, 2): ("application context name not supported", "ask its vendor"),
    (1, 3): ("calling AE title not recognized", "enter the AE title {calling_ae} there as one that may send"),
    (1, 7): ("called AE title not recognized", "check ae_title of the [[destination]]"),
    (2, 2): ("protocol version not supported", "ask its vendor"),
    (3, 1): ("temporary congestion", "another attempt may succeed"),
    (3, 2): ("local limit exceeded", "another attempt may succeed; let it have more associations if this goes on"),
}


@dataclass(frozen=True, slots=True)
class Peer:
    """Whom to talk to, as whom, and how patiently.

    Attributes:
        settings: the entry of the configuration.
        calling_ae: the node's AE title.
        timeout: seconds without any progress after which an attempt ends.
        tls: our certificate, and whom we trust, where the entry has `tls`.
    """

    settings: DicomDestination
    calling_ae: str
    timeout: float
    tls: TlsSettings = field(default_factory=TlsSettings)

    def __str__(self) -> str:
        s = self.settings
        return f"Destination '{s.name}' ({s.ae_title} at {s.host} port {s.port})"


class Link:
    """An established association, watched over."""

    def __init__(self, peer: Peer, assoc: Association, watch: Watch) -> None:
        """Wrap an association.

        Args:
            peer: with whom.
            assoc: the library's association.
            watch: looks at what passes over it.
        """
        self.peer = peer
        self.assoc = assoc
        self.watch = watch
        self._is_asking = False
        self._lock = threading.Lock()
        self._take = assoc.dimse.get_msg
        assoc.dimse.get_msg = self._next_message  # type: ignore[method-assign]  # the library has no other way in

    def _next_message(self, block: bool = False) -> _QueueItem:
        """Give the next message, and none to the library's own thread while we wait for an answer.

        That thread is paused then, but takes one message more if it was just about to go on, and drops it: an answer to
        a query, say, which is then taken for 'not found'.
        """
        if block:
            return self._take(block)
        with self._lock:
            return (None, None) if self._is_asking else self._take(block)

    def _ask(self, is_asking: bool) -> None:
        with self._lock:
            self._is_asking = is_asking

    @contextlib.contextmanager
    def talk(self) -> Iterator[None]:
        """Watch over one operation.

        Raises:
            UnreachableError: the association is gone.
        """
        if not self.assoc.is_established:
            raise self.broken()
        self._ask(True)
        try:
            with self.watch.armed():
                yield
        except RuntimeError as error:  # it was aborted between the check and the call
            raise self.broken() from error
        finally:
            self._ask(False)

    def broken(self) -> UnreachableError:
        """Make the error for an association that is gone."""
        if self.watch.expired:
            return UnreachableError(
                f"{self.peer} stopped answering for {self.peer.timeout:g} s: another attempt may succeed."
            )
        return UnreachableError(f"{self.peer} broke off the association: another attempt may succeed; see its log.")


@contextlib.contextmanager
def requested(
    peer: Peer,
    contexts: Sequence[PresentationContext],
    *,
    connect_timeout: float,
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
    handlers: Sequence[EventHandlerType] = (),
) -> Iterator[Link]:
    """Hold an association; it is released at the end, aborted if an error ends it.

    Args:
        peer: with whom.
        contexts: what is proposed.
        connect_timeout: seconds for the connection, and as many for the answer to the request.
        roles: the SOP classes for which we are the SCP.
        handlers: for what comes on the association.

    Raises:
        ConfigurationError: a file of `[tls]` is missing or wrong.
        NoAssociationError: no connection, no answer, or refused for now.
        NotAdmittedError: refused until a person corrects something.
        RejectedError: none of what is proposed is accepted.
    """
    _set_up_library()
    settings = peer.settings
    tls_args = client_args(peer.tls, settings)
    ae = _Caller(ae_title=peer.calling_ae)
    ae.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.connection_timeout = ae.acse_timeout = connect_timeout
    ae.dimse_timeout = ae.network_timeout = None  # they count from the first byte on; the watch looks at the last
    with Watch(peer.timeout) as watch:
        watched: list[EventHandlerType] = [
            (evt.EVT_CONN_OPEN, watch.on_open),
            (evt.EVT_DATA_SENT, watch.on_data),
            (evt.EVT_DATA_RECV, watch.on_data),
        ]
        try:
            with watch.armed():
                assoc = ae.associate(
                    settings.host,
                    settings.port,
                    contexts=list(contexts),
                    ae_title=settings.ae_title,
                    max_pdu=MAX_PDU,
                    ext_neg=list(roles),
                    tls_args=tls_args,
                    evt_handlers=[*watched, *handlers],
                )
        except OSError as error:
            raise NoAssociationError(
                f"{peer} cannot be found ({error.strerror or error}): check its host name."
            ) from error
        if not assoc.is_established:
            raise _refused(peer, assoc, watch, ae)
        _limit_pdu(assoc)
        try:
            yield Link(peer, assoc, watch)
        except BaseException:
            assoc.abort(block=False)
            assoc.join(1.0)  # for the A-ABORT to leave
            watch.cut()
            raise
        else:
            with watch.armed():
                assoc.release()


def _refused(peer: Peer, assoc: Association, watch: Watch, ae: "_Caller") -> DeliveryError:
    """Say why there is no association."""
    if ae.fault is not None:
        kind = NoAssociationError if ae.fault.mends_itself else NotAdmittedError
        return kind(f"{peer} cannot be talked to by TLS, {ae.fault.reason}: {ae.fault.remedy}.")
    if not watch.was_opened:
        why = f" ({ae.reason})" if ae.reason else ""
        return NoAssociationError(
            f"{peer} cannot be connected to{why}: check that it runs, its host and port, and the firewall between."
        )
    if assoc.is_rejected:
        response = cast("A_ASSOCIATE", assoc.acceptor.primitive)
        result, source, diagnostic = response.result, response.result_source, response.diagnostic
        reason, remedy = _REFUSALS.get((source or 0, diagnostic or 0), ("no reason given", "see its log"))
        remedy = remedy.format(calling_ae=peer.calling_ae)
        refused = NotAdmittedError if result == 1 and source != 3 else NoAssociationError
        return refused(f"{peer} refused the association ({result}/{source}/{diagnostic}, {reason}): {remedy}.")
    if assoc.rejected_contexts:
        names = sorted({UID(str(context.abstract_syntax)).name for context in assoc.rejected_contexts})
        return RejectedError(
            f"{peer} accepts no presentation context of those proposed ({', '.join(names)}): allow these SOP classes"
            " and their transfer syntaxes there, then retry."
        )
    return NoAssociationError(f"{peer} gave no answer to the request for an association: another attempt may succeed.")


class _Socket(AssociationSocket):
    """The library's socket, which forgets to close one that never was connected, and why it was not."""

    reason = ""
    fault: Fault | None = None

    def recv(self, nr_bytes: int) -> bytearray:
        """Receive; with TLS 1.3 the peer's word on our certificate comes only here."""
        try:
            return super().recv(nr_bytes)
        except ssl.SSLError as error:
            self.fault = fault_of(error)
            raise

    def _shutdown_socket(self) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, ssl.SSLError):
            self.fault = fault_of(error)
        elif isinstance(error, OSError):
            self.reason = error.strerror or str(error)
        sock = self.socket
        super()._shutdown_socket()
        if sock is not None:
            sock.close()


class _Caller(AE):
    """An AE that keeps the reason for which it got no connection."""

    _socket: _Socket | None = None

    @property
    def reason(self) -> str:
        """What the operating system said; '' if nothing."""
        return self._socket.reason if self._socket is not None else ""

    @property
    def fault(self) -> Fault | None:
        """What was wrong with TLS; None if nothing."""
        return self._socket.fault if self._socket is not None else None

    def _create_socket(
        self, assoc: Association, address: AddressInformation, tls_args: tuple[ssl.SSLContext, str] | None
    ) -> _Socket:
        SharedProvider.take_over(assoc)
        self._socket = _Socket(assoc, address=address)
        self._socket.tls_args = tls_args
        return self._socket


def _limit_pdu(assoc: Association) -> None:
    """Keep PDUs at our size where the peer takes larger ones or any (0): the library builds each in memory."""
    for item in assoc.acceptor.user_information:
        if isinstance(item, MaximumLengthNotification) and not 0 < (item.maximum_length_received or 0) <= MAX_PDU:
            item.maximum_length_received = MAX_PDU


def _set_up_library() -> None:
    """Have the library leave logging to us; who has set its logger's level is obeyed."""
    _config.LOG_HANDLER_LEVEL = "none"
    library = logging.getLogger("pynetdicom")
    if library.level == logging.NOTSET:
        library.setLevel(logging.CRITICAL)
