"""C-STORE SCU (PS3.4 Annex B) and Verification SCU (Annex A) on pynetdicom; the only place that sends DIMSE."""

import contextlib
import logging
import os
import ssl
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from pydicom.uid import UID
from pynetdicom import AE, _config, build_context, evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_ASSOCIATE, MaximumLengthNotification
from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS
from pynetdicom.transport import AddressInformation, AssociationSocket

from dicomai import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomai.config import DicomDestination, TlsSettings
from dicomai.destinations.base import Accepted, Outgoing
from dicomai.destinations.watch import Watch
from dicomai.errors import ConfigurationError, DeliveryError, RejectedError, UnreachableError
from dicomai.tls import Fault, client_args, fault_of

MAX_CONTEXTS = 128
"""Presentation contexts that one association can have (PS3.8 9.3.2.2: odd numbers up to 255)."""

MAX_PDU = 131072
"""Bytes that we let a peer send in one PDU, and the most that we send even to one that takes more."""

_VERIFICATION = ("1.2.840.10008.1.1", "1.2.840.10008.1.2")
_WARNINGS = frozenset({0x0001, 0x0107, 0x0116, *range(0xB000, 0xC000)})  # PS3.7 Annex C
_FOR_GOOD = frozenset(
    {
        *range(0xA900, 0xAA00),  # data set does not match SOP class
        0x0105,  # no such attribute
        0x0106,  # invalid attribute value
        0x0111,  # duplicate SOP instance: it may be ours, whose answer was lost, but nothing here shows it
        0x0115,  # invalid argument value
        0x0117,  # invalid object instance
        0x0118,  # no such SOP class
        0x0119,  # class-instance conflict
        0x0120,  # missing attribute
        0x0121,  # missing attribute value
        0x0122,  # SOP class not supported
        0x0124,  # not authorized
        0x0211,  # unrecognized operation
        0x0212,  # mistyped argument
    }
)

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


@dataclass(frozen=True, slots=True)
class Answer:
    """A C-STORE or C-ECHO response.

    Attributes:
        status: Status (0000,0900).
    """

    status: int

    @property
    def is_accepted(self) -> bool:
        """Success or a warning: the peer has the object."""
        return self.status == 0x0000 or self.status in _WARNINGS

    @property
    def meaning(self) -> str:
        """What the standard says of the status; '' for success. The peer's own comment may name a patient."""
        if self.status == 0x0000:
            return ""
        _, text = STORAGE_SERVICE_CLASS_STATUS.get(self.status, ("", ""))
        return text or ("warning" if self.status in _WARNINGS else "failure")

    def error(self, what: str, peer: Peer) -> DeliveryError:
        """Make the error for a failure status."""
        said = f"{peer} answered {self.status:04X} ({self.meaning}) to {what}"
        if self.status in _FOR_GOOD:
            return RejectedError(f"{said}: look up the reason in its log, correct it, then retry.")
        return UnreachableError(f"{said}: another attempt may succeed; look into its log if this goes on.")


class DimseDestination:
    """A Storage SCP, such as a PACS."""

    def __init__(
        self, settings: DicomDestination, *, calling_ae: str, timeout: float, tls: TlsSettings | None = None
    ) -> None:
        """Make the destination; the association is requested by `send`.

        Args:
            settings: the entry of the configuration.
            calling_ae: the node's AE title.
            timeout: seconds without any progress after which an attempt ends.
            tls: the section `[tls]`.

        Raises:
            ConfigurationError: a file of `[tls]` is missing or wrong.
        """
        self._peer = Peer(settings, calling_ae, timeout, tls or TlsSettings())
        client_args(self._peer.tls, settings)  # what is wrong with the files is to be said now, not at the first send

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self._peer.settings.name

    def send(self, objects: Sequence[Outgoing], accepted: Accepted) -> None:
        """Send objects in the order given over one association, each in its own transfer syntax, byte for byte.

        Nothing is sent unless the destination has accepted a presentation context for every one.

        Raises:
            UnreachableError: no connection, it broke, or the destination cannot take the object for now.
            RejectedError: the destination refuses the association or an object for good.
        """
        if not objects:
            return
        try:
            self._send(objects, accepted)
        except ConfigurationError as error:  # certificates are replaced one file after the other
            raise UnreachableError(f"{self._peer} is not called: {error}") from error

    def _send(self, objects: Sequence[Outgoing], accepted: Accepted) -> None:
        wanted = list(dict.fromkeys((o.sop_class_uid, o.transfer_syntax_uid) for o in objects))
        with associate(self._peer, wanted) as link:
            for sop_class_uid, transfer_syntax_uid in wanted:
                link.require(sop_class_uid, transfer_syntax_uid)
            for outgoing in objects:
                with _as_file(outgoing.data) as path:
                    answer = link.store(path)
                if not answer.is_accepted:
                    raise answer.error(f"SOP Instance {outgoing.sop_instance_uid}", self._peer)
                accepted(outgoing, answer.status, answer.meaning)


def echo(settings: DicomDestination, *, calling_ae: str, timeout: float, tls: TlsSettings | None = None) -> float:
    """Verify a destination with C-ECHO.

    Returns:
        Seconds from the request for an association to the answer.

    Raises:
        ConfigurationError: a file of `[tls]` is missing or wrong.
        UnreachableError: no connection, or no answer.
        RejectedError: the association, or Verification, is refused for good.
    """
    peer = Peer(settings, calling_ae, timeout, tls or TlsSettings())
    start = time.monotonic()
    with associate(peer, [_VERIFICATION]) as link:
        answer = link.echo()
        seconds = time.monotonic() - start
    if not answer.is_accepted:
        raise answer.error("C-ECHO", peer)
    return seconds


class Link:
    """An established association."""

    def __init__(self, peer: Peer, assoc: Association, watch: Watch) -> None:
        """Wrap an association."""
        self._peer = peer
        self._assoc = assoc
        self._watch = watch
        self._accepted = {(str(c.abstract_syntax), str(c.transfer_syntax[0])) for c in assoc.accepted_contexts}

    def require(self, sop_class_uid: str, transfer_syntax_uid: str) -> None:
        """Make sure that objects of this kind can be sent.

        Raises:
            RejectedError: the peer accepted no presentation context for it.
        """
        if (sop_class_uid, transfer_syntax_uid) not in self._accepted:
            raise RejectedError(
                f"{self._peer} does not take {UID(sop_class_uid).name} in {UID(transfer_syntax_uid).name}:"
                " allow this SOP class and transfer syntax there, then retry."
            )

    def store(self, path: Path) -> Answer:
        """Send a DICOM file's data set as it is.

        Raises:
            UnreachableError: the association broke, or nothing moved for the time-out.
        """
        with self._talk():
            response = self._assoc.send_c_store(path)
        if "Status" not in response:
            raise self._broken()
        return Answer(int(response.Status))

    def echo(self) -> Answer:
        """Send C-ECHO.

        Raises:
            UnreachableError: the association broke, or nothing moved for the time-out.
        """
        with self._talk():
            response = self._assoc.send_c_echo()
        if "Status" not in response:
            raise self._broken()
        return Answer(int(response.Status))

    @contextlib.contextmanager
    def _talk(self) -> Iterator[None]:
        if not self._assoc.is_established:
            raise self._broken()
        with self._watch.armed():
            try:
                yield
            except RuntimeError as error:  # it was aborted between the check and the call
                raise self._broken() from error

    def _broken(self) -> UnreachableError:
        if self._watch.expired:
            return UnreachableError(
                f"{self._peer} stopped answering for {self._peer.timeout:g} s: another attempt may succeed."
            )
        return UnreachableError(f"{self._peer} broke off the association: another attempt may succeed; see its log.")


@contextlib.contextmanager
def associate(peer: Peer, wanted: Sequence[tuple[str, str]]) -> Iterator[Link]:
    """Hold an association; it is released at the end, aborted if an error that is not the peer's ends it.

    Args:
        peer: with whom.
        wanted: SOP class and transfer syntax of each presentation context, at most `MAX_CONTEXTS`.

    Raises:
        ConfigurationError: a file of `[tls]` is missing or wrong.
        UnreachableError: no connection, no answer, or refused for now.
        RejectedError: refused for good.
    """
    _set_up_library()
    settings = peer.settings
    tls_args = client_args(peer.tls, settings)
    ae = _Caller(ae_title=peer.calling_ae)
    ae.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.connection_timeout = ae.acse_timeout = peer.timeout
    ae.dimse_timeout = ae.network_timeout = None  # they count from the first byte on; the watch looks at the last
    watch = Watch(peer.timeout)
    try:
        with watch.armed():
            assoc = ae.associate(
                settings.host,
                settings.port,
                contexts=[build_context(sop_class, syntax) for sop_class, syntax in wanted],
                ae_title=settings.ae_title,
                max_pdu=MAX_PDU,
                tls_args=tls_args,
                evt_handlers=[
                    (evt.EVT_CONN_OPEN, watch.on_open),
                    (evt.EVT_DATA_SENT, watch.on_data),
                    (evt.EVT_DATA_RECV, watch.on_data),
                ],
            )
    except OSError as error:
        raise UnreachableError(f"{peer} cannot be found ({error.strerror or error}): check its host name.") from error
    if not assoc.is_established:
        raise _refused(peer, assoc, watch, ae)
    _limit_pdu(assoc)
    try:
        yield Link(peer, assoc, watch)
    except DeliveryError:
        with watch.armed():
            assoc.release()
        raise
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
        kind = UnreachableError if ae.fault.mends_itself else RejectedError
        return kind(f"{peer} cannot be talked to by TLS, {ae.fault.reason}: {ae.fault.remedy}.")
    if not watch.was_opened:
        why = f" ({ae.reason})" if ae.reason else ""
        return UnreachableError(
            f"{peer} cannot be connected to{why}: check that it runs, its host and port, and the firewall between."
        )
    if assoc.is_rejected:
        response = cast("A_ASSOCIATE", assoc.acceptor.primitive)
        result, source, diagnostic = response.result, response.result_source, response.diagnostic
        reason, remedy = _REFUSALS.get((source or 0, diagnostic or 0), ("no reason given", "see its log"))
        remedy = remedy.format(calling_ae=peer.calling_ae)
        refused = RejectedError if result == 1 and source != 3 else UnreachableError
        return refused(f"{peer} refused the association ({result}/{source}/{diagnostic}, {reason}): {remedy}.")
    if assoc.rejected_contexts:
        names = sorted({UID(str(context.abstract_syntax)).name for context in assoc.rejected_contexts})
        return RejectedError(
            f"{peer} accepts no presentation context of those proposed ({', '.join(names)}): allow these SOP classes"
            " and their transfer syntaxes there, then retry."
        )
    return UnreachableError(f"{peer} gave no answer to the request for an association: another attempt may succeed.")


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
        self._socket = _Socket(assoc, address=address)
        self._socket.tls_args = tls_args
        return self._socket


def _limit_pdu(assoc: Association) -> None:
    """Keep PDUs at our size where the peer takes larger ones or any (0): the library builds each in memory."""
    for item in assoc.acceptor.user_information:
        if isinstance(item, MaximumLengthNotification) and not 0 < (item.maximum_length_received or 0) <= MAX_PDU:
            item.maximum_length_received = MAX_PDU


@contextlib.contextmanager
def _as_file(data: bytes) -> Iterator[Path]:
    """Lend bytes as a file, which is how the library sends a data set without encoding it again.

    The file is in memory alone: nothing of a patient is left on disk if the process is killed.
    """
    descriptor = os.memfd_create("dicomai")
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        yield Path(f"/proc/self/fd/{descriptor}")


def _set_up_library() -> None:
    """Have the library send files as they are, and leave logging to us; who has set its logger's level is obeyed."""
    _config.STORE_SEND_CHUNKED_DATASET = True
    _config.LOG_HANDLER_LEVEL = "none"
    library = logging.getLogger("pynetdicom")
    if library.level == logging.NOTSET:
        library.setLevel(logging.CRITICAL)
