"""What a peer accepts in negotiation (PS3.8 9.3.3): asked by associations on which nothing is sent."""

from collections.abc import Iterator

from pynetdicom import build_context
from pynetdicom.presentation import PresentationContext

from dicomai.config import DicomDestination, TlsSettings
from dicomai.destinations.dimse.association import Peer, requested
from dicomai.destinations.dimse.storage import MAX_CONTEXTS

IMPLICIT, EXPLICIT, RLE = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"
_UNCOMPRESSED = (EXPLICIT, IMPLICIT)

VERIFICATION = "1.2.840.10008.1.1"

PROPOSED: dict[str, tuple[str, ...]] = {
    VERIFICATION: (IMPLICIT,),
    "1.2.840.10008.5.1.4.1.1.66.4": _UNCOMPRESSED,  # Segmentation
    "1.2.840.10008.5.1.4.1.1.66.7": (*_UNCOMPRESSED, RLE),  # Label Map Segmentation
    "1.2.840.10008.5.1.4.1.1.88.34": _UNCOMPRESSED,  # Comprehensive 3D SR
    "1.2.840.10008.5.1.4.1.1.7": _UNCOMPRESSED,  # Secondary Capture
    "1.2.840.10008.5.1.4.1.1.7.4": _UNCOMPRESSED,  # Multi-frame True Color Secondary Capture
    "1.2.840.10008.5.1.4.1.1.88.59": _UNCOMPRESSED,  # Key Object Selection
    "1.2.840.10008.5.1.4.1.1.11.1": _UNCOMPRESSED,  # Grayscale Softcopy Presentation State
    "1.2.840.10008.5.1.4.1.1.481.3": _UNCOMPRESSED,  # RT Structure Set
    "1.2.840.10008.5.1.4.1.1.104.1": _UNCOMPRESSED,  # Encapsulated PDF
    "1.2.840.10008.5.1.4.1.1.104.3": _UNCOMPRESSED,  # Encapsulated STL
    "1.2.840.10008.5.1.4.1.1.30": _UNCOMPRESSED,  # Parametric Map
    "1.2.840.10008.1.20.1": (IMPLICIT,),  # Storage Commitment Push Model
    "1.2.840.10008.5.1.4.1.2.2.1": (IMPLICIT,),  # Study Root Query/Retrieve - FIND
}
"""What a peer is asked for: all that this node may send it or ask of it, in the transfer syntaxes that it can write."""


def probe(
    settings: DicomDestination, *, calling_ae: str, timeout: float, tls: TlsSettings | None = None
) -> frozenset[tuple[str, str]]:
    """Ask a destination which presentation contexts it accepts, one for each SOP class and transfer syntax.

    Each in a context of its own: where several syntaxes are proposed in one, the peer names but one that it takes.

    Returns:
        SOP Class UID and Transfer Syntax UID of those that it accepts.

    Raises:
        ConfigurationError: a file of `[tls]` is missing or wrong.
        UnreachableError: no connection, no answer, or refused for now.
        RejectedError: the association, or every context, is refused for good.
    """
    peer = Peer(settings, calling_ae, timeout, tls or TlsSettings())
    accepted: set[tuple[str, str]] = set()
    for contexts in _batches():
        with requested(peer, contexts, connect_timeout=timeout) as link:
            accepted |= {(str(c.abstract_syntax), str(c.transfer_syntax[0])) for c in link.assoc.accepted_contexts}
    return frozenset(accepted)


def _batches() -> Iterator[list[PresentationContext]]:
    """Give the contexts of each association; Verification is among all of them, for a peer that refuses the others."""
    verification = build_context(VERIFICATION, IMPLICIT)
    others = [(c, syntax) for c, syntaxes in PROPOSED.items() for syntax in syntaxes if c != VERIFICATION]
    for first in range(0, len(others), MAX_CONTEXTS - 1):
        yield [verification, *(build_context(*one) for one in others[first : first + MAX_CONTEXTS - 1])]
