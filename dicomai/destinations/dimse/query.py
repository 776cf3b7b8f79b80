"""C-FIND SCU in the Study Root model (PS3.4 Annex C): the question, and the loop over its answers."""

from collections.abc import Callable, Mapping

from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pynetdicom.status import QR_FIND_SERVICE_CLASS_STATUS

from dicomai.destinations.dimse.association import Link, Peer

FIND = "1.2.840.10008.5.1.4.1.2.2.1"
"""Study Root Query/Retrieve Information Model - FIND."""

_PENDING = frozenset({0xFF00, 0xFF01})


def ask(
    link: Link, level: str, keys: Mapping[str, str], take: Callable[[Dataset | None], None], enough: int | None = None
) -> int:
    """Ask, and hand over each answer; gives the status that ends them (PS3.4 C.4.1.1.4), 0x0000 if all is well.

    Args:
        link: an association on which the context was accepted.
        level: STUDY, SERIES or IMAGE.
        keys: what is asked for; an empty value matches all and is given back.
        take: called with each answer, None for one that cannot be decoded; what it raises ends the association.
        enough: after so many answers the peer is asked to end (C-CANCEL); it may take its time.

    Raises:
        UnreachableError: the association broke.
    """
    answers = 0
    with link.talk():
        for status, answer in link.assoc.send_c_find(identifier(level, keys), FIND):
            code = status.get("Status")
            if code is None:
                break
            if code not in _PENDING:
                return int(code)
            answers += 1
            if answers == enough:
                link.assoc.send_c_cancel(1, query_model=FIND)
            take(answer)
    raise link.broken()


def identifier(level: str, keys: Mapping[str, str]) -> Dataset:
    """Make the identifier of a query or a retrieval (PS3.4 C.4.1.1.3, C.4.2.1.4)."""
    ds = Dataset()
    for keyword, value in {"QueryRetrieveLevel": level, **keys}.items():
        tag = Tag(keyword)
        # Scanners make UIDs that break PS3.5 9.1, and archives and results hold them.
        ds.add(DataElement(tag, dictionary_VR(tag), value, validation_mode=IGNORE))
    return ds


def refusal(peer: Peer, level: str, status: int) -> str:
    """Say that a query was answered with a failure."""
    _, meaning = QR_FIND_SERVICE_CLASS_STATUS.get(status, ("", ""))
    return f"{peer} answered {status:04X} ({meaning or 'failure'}) to a query at the level {level}"
