"""Presentation contexts: which SOP classes and transfer syntaxes the receiver takes (PS3.8 9.3.2, PS3.7 D.3.2).

All of storage is taken: every class that the standard has or had, classes of its storage branch that came after this
version, and private ones. One context refused makes many senders give up the whole study.
"""

from collections.abc import Container, Iterable, Sequence

from pydicom._uid_dict import UID_dictionary  # PS3.6 Annex A; the protocol library adds what is newer
from pydicom.uid import UID
from pynetdicom import build_context, sop_class
from pynetdicom.pdu_primitives import SOPClassCommonExtendedNegotiation
from pynetdicom.presentation import PresentationContext

VERIFICATION = "1.2.840.10008.1.1"
STORAGE_SERVICE_CLASS = "1.2.840.10008.4.2"

# Where composite objects have their SOP classes (PS3.4 B.5).
_STORAGE_BRANCH = "1.2.840.10008.5.1.4.1.1."

_NOT_STORED_BY_C_STORE = {
    "1.2.840.10008.1.3.10",  # Media Storage Directory Storage: for media only (PS3.4 Annex I)
    "1.2.840.10008.1.20.1",  # Storage Commitment Push Model
    "1.2.840.10008.1.20.2",  # Storage Commitment Pull Model (retired)
}

# No encodings of a data set that a reader of PS3.10 files understands.
_NO_DATA_SET = {
    "1.2.840.10008.1.2.4.95",  # JPIP Referenced Deflate
    "1.2.840.10008.1.2.6.1",  # RFC 2557 MIME encapsulation (retired)
    "1.2.840.10008.1.2.6.2",  # XML Encoding (retired)
    "1.2.840.10008.1.20",  # Papyrus 3 Implicit VR Little Endian (retired)
}

_LOSSLESS = frozenset(
    {
        "1.2.840.10008.1.2",  # Implicit VR Little Endian
        "1.2.840.10008.1.2.1",  # Explicit VR Little Endian
        "1.2.840.10008.1.2.1.98",  # Encapsulated Uncompressed Explicit VR Little Endian
        "1.2.840.10008.1.2.1.99",  # Deflated Explicit VR Little Endian
        "1.2.840.10008.1.2.2",  # Explicit VR Big Endian
        "1.2.840.10008.1.2.4.57",  # JPEG Lossless (Process 14)
        "1.2.840.10008.1.2.4.58",  # JPEG Lossless (Process 15)
        "1.2.840.10008.1.2.4.65",  # JPEG Lossless, Hierarchical (Process 28)
        "1.2.840.10008.1.2.4.66",  # JPEG Lossless, Hierarchical (Process 29)
        "1.2.840.10008.1.2.4.70",  # JPEG Lossless, First-Order Prediction
        "1.2.840.10008.1.2.4.80",  # JPEG-LS Lossless
        "1.2.840.10008.1.2.4.90",  # JPEG 2000 (Lossless Only)
        "1.2.840.10008.1.2.4.92",  # JPEG 2000 Part 2 (Lossless Only)
        "1.2.840.10008.1.2.4.201",  # High-Throughput JPEG 2000 (Lossless Only)
        "1.2.840.10008.1.2.4.202",  # High-Throughput JPEG 2000 with RPCL Options (Lossless Only)
        "1.2.840.10008.1.2.4.110",  # JPEG XL Lossless
        "1.2.840.10008.1.2.5",  # RLE Lossless
        "1.2.840.10008.1.2.8.1",  # Deflated Image Frame Compression
    }
)


def _storage_classes() -> dict[str, str]:
    """Collect the storage classes of PS3.6 Table A-1, retired ones included: name by UID."""
    classes = {
        uid: name
        for uid, (name, kind, *_) in UID_dictionary.items()
        if kind == "SOP Class" and "Storage" in name and uid not in _NOT_STORED_BY_C_STORE
    }
    for keyword, uid in vars(sop_class).items():  # knows a few that are newer
        if isinstance(uid, UID) and keyword.endswith("Storage") and uid not in _NOT_STORED_BY_C_STORE:
            classes.setdefault(str(uid), _spelled_out(keyword))
    return dict(sorted(classes.items(), key=lambda item: [int(part) for part in item[0].split(".")]))


def _spelled_out(keyword: str) -> str:
    """Make words of a keyword: `LabelMapSegmentationStorage` is 'Label Map Segmentation Storage'."""
    return "".join(f" {c}" if c.isupper() and n else c for n, c in enumerate(keyword))


STORAGE_CLASSES: dict[str, str] = _storage_classes()
"""The storage SOP classes that are known by name: name by UID."""

TRANSFER_SYNTAXES: dict[str, str] = {
    uid: name
    for uid, (name, kind, *_) in UID_dictionary.items()
    if kind == "Transfer Syntax" and uid not in _NO_DATA_SET
}
"""The transfer syntaxes that are known by name: name by UID."""


def is_storage(uid: str) -> bool:
    """Tell whether an abstract syntax is a storage SOP class: known, private, or newer than this version."""
    if uid in STORAGE_CLASSES or UID(uid).is_private:
        return True
    entry = UID_dictionary.get(uid)
    unknown = entry is None or not entry[0]  # some retired ones have lost their name
    return unknown and uid.startswith(_STORAGE_BRANCH)


def is_acceptable(transfer_syntax: str) -> bool:
    """Tell whether a transfer syntax is taken: one of the standard's, or a private one."""
    return transfer_syntax in TRANSFER_SYNTAXES or UID(transfer_syntax).is_private


def in_order_of_preference(proposed: Iterable[str]) -> list[str]:
    """Order the transfer syntaxes that are taken: the sender's order, but what may lose something comes last.

    A sender that offers several must be able to convert, and is not to compress for us what it holds uncompressed.
    """
    taken = [uid for uid in dict.fromkeys(proposed) if is_acceptable(uid)]
    return sorted(taken, key=lambda uid: uid not in _LOSSLESS)


def supported(
    proposed: Sequence[PresentationContext], others: Container[str] = (), reported_to: Container[str] = ()
) -> list[PresentationContext]:
    """Say what is supported of that which a sender proposes.

    Args:
        proposed: the requestor's presentation contexts.
        others: SOP classes of services beside Verification and all of storage.
        reported_to: those of them of which the requestor may be the SCP, if it proposes that (PS3.7 D.3.3.4).
    """
    syntaxes: dict[str, list[str]] = {}
    for context in proposed:
        uid = str(context.abstract_syntax)
        if uid == VERIFICATION or is_storage(uid) or uid in others:
            syntaxes.setdefault(uid, []).extend(str(syntax) for syntax in context.transfer_syntax)
    ordered = {uid: in_order_of_preference(offered) for uid, offered in syntaxes.items()}
    contexts = [build_context(uid, list(taken)) for uid, taken in ordered.items() if taken]
    for context in contexts:
        if str(context.abstract_syntax) in reported_to:
            context.scu_role = context.scp_role = True
    return contexts


def as_storage(proposed: Sequence[PresentationContext]) -> dict[UID, SOPClassCommonExtendedNegotiation]:
    """Say of each proposed storage class that its service class is Storage (PS3.7 D.3.3.6).

    This is what makes the protocol library serve C-STORE for retired, new and private classes as well.
    """
    items = {}
    for uid in {str(context.abstract_syntax) for context in proposed}:
        if is_storage(uid):
            item = SOPClassCommonExtendedNegotiation()
            item.sop_class_uid = UID(uid)
            item.service_class_uid = UID(STORAGE_SERVICE_CLASS)
            items[UID(uid)] = item
    return items
