"""Associations with a source: requested, watched, ended."""

import contextlib
from collections.abc import Iterator, Sequence

import pydicom.config
from pydicom.uid import UID
from pynetdicom.events import EventHandlerType
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext

from dicomai.config import DicomDestination, SourceSettings, TlsSettings
from dicomai.destinations.dimse.association import Link, Peer, requested
from dicomai.errors import RejectedError

_LONGEST_CONNECT = 30.0


class SourcePeer(Peer):
    """A source: whom to talk to, as whom, and how patiently."""

    def __str__(self) -> str:
        s = self.settings
        return f"Source '{s.name}' ({s.ae_title} at {s.host} port {s.port})"


class SourceLink(Link):
    """An association on which a source is asked."""

    def require(self, sop_class_uid: str) -> None:
        """Make sure that a service can be used.

        Raises:
            RejectedError: the source accepted no presentation context for it.
        """
        if not any(context.abstract_syntax == sop_class_uid for context in self.assoc.accepted_contexts):
            raise RejectedError(
                f"{self.peer} does not offer {UID(sop_class_uid).name} to {self.peer.calling_ae}: allow it there."
            )


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
) -> Iterator[SourceLink]:
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
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # its warnings quote the values
    longest = min(peer.timeout, _LONGEST_CONNECT)
    with requested(peer, contexts, connect_timeout=longest, roles=roles, handlers=handlers) as link:
        yield SourceLink(link.peer, link.assoc, link.watch)
