"""Associations with a source: requested, watched, ended."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pydicom.config
from pydicom.uid import UID
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.events import EventHandlerType
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext

from dicomai import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomai.config import DicomDestination, SourceSettings, TlsSettings
from dicomai.destinations.dimse import MAX_PDU, Peer, _Caller, _limit_pdu, _refused, _set_up_library
from dicomai.destinations.watch import Watch
from dicomai.errors import RejectedError, UnreachableError
from dicomai.tls import client_args

_LONGEST_CONNECT = 30.0


class SourcePeer(Peer):
    """A source: whom to talk to, as whom, and how patiently."""

    def __str__(self) -> str:
        s = self.settings
        return f"Source '{s.name}' ({s.ae_title} at {s.host} port {s.port})"


@dataclass(frozen=True, slots=True)
class Link:
    """An established association with a source.

    Attributes:
        peer: the source.
        assoc: the library's association.
    """

    peer: Peer
    assoc: Association
    watch: Watch

    def require(self, sop_class_uid: str) -> None:
        """Make sure that a service can be used.

        Raises:
            RejectedError: the source accepted no presentation context for it.
        """
        if not any(context.abstract_syntax == sop_class_uid for context in self.assoc.accepted_contexts):
            raise RejectedError(
                f"{self.peer} does not offer {UID(sop_class_uid).name} to {self.peer.calling_ae}: allow it there."
            )

    @contextlib.contextmanager
    def talk(self) -> Iterator[None]:
        """Watch over one operation.

        Raises:
            UnreachableError: the association is gone.
        """
        if not self.assoc.is_established:
            raise self.broken()
        with self.watch.armed():
            try:
                yield
            except RuntimeError as error:  # it was aborted between the check and the call
                raise self.broken() from error

    def broken(self) -> UnreachableError:
        """Make the error for an association that is gone."""
        if self.watch.expired:
            return UnreachableError(
                f"{self.peer} stopped answering for {self.peer.timeout:g} s: another attempt may succeed."
            )
        return UnreachableError(f"{self.peer} broke off the association: another attempt may succeed; see its log.")


def peer_of(source: SourceSettings, calling_ae: str, timeout: float, tls: TlsSettings) -> Peer:
    """Make the peer of an entry `[[source]]`."""
    entry = DicomDestination(
        type="dicom", name=source.name, ae_title=source.ae_title, host=source.host, port=source.port, tls=source.tls
    )
    return SourcePeer(entry, calling_ae, timeout, tls)


@contextlib.contextmanager
def associate(
    peer: Peer,
    contexts: Sequence[PresentationContext],
    *,
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
    handlers: Sequence[EventHandlerType] = (),
) -> Iterator[Link]:
    """Hold an association; it is released at the end, aborted if an error ends it.

    Args:
        peer: with whom.
        contexts: what is proposed.
        roles: the storage classes for which we are the SCP.
        handlers: for what comes on the association.

    Raises:
        UnreachableError: no connection, no answer, or refused for now.
        RejectedError: refused for good.
        ConfigurationError: a file of `[tls]` is missing or wrong.
    """
    tls_args = client_args(peer.tls, peer.settings)
    _set_up_library()
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # its warnings quote the values
    entry = peer.settings
    ae = _Caller(ae_title=peer.calling_ae)
    ae.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.connection_timeout = ae.acse_timeout = min(peer.timeout, _LONGEST_CONNECT)
    ae.dimse_timeout = ae.network_timeout = None  # they count from the first byte on; the watch looks at the last
    watch = Watch(peer.timeout)
    watched: list[EventHandlerType] = [
        (evt.EVT_CONN_OPEN, watch.on_open),
        (evt.EVT_DATA_SENT, watch.on_data),
        (evt.EVT_DATA_RECV, watch.on_data),
    ]
    try:
        with watch.armed():
            assoc = ae.associate(
                entry.host,
                entry.port,
                contexts=list(contexts),
                ae_title=entry.ae_title,
                max_pdu=MAX_PDU,
                ext_neg=list(roles),
                tls_args=tls_args,
                evt_handlers=[*watched, *handlers],
            )
    except OSError as error:
        raise UnreachableError(f"{peer} cannot be found ({error.strerror or error}): check its host name.") from error
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
