"""STOW-RS: what one request brings (PS3.18 10.5), and what is answered to it (PS3.18 Annex I)."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from io import BytesIO
from typing import Any

from pydicom.filereader import read_dataset

from dicomai.console.multipart import Part
from dicomai.database.retrieval import Kept
from dicomai.errors import UnreadableError
from dicomai.filemeta import FileMeta
from dicomai.receiver import statuses
from dicomai.receiver.statuses import Status
from dicomai.store import checked_uid
from dicomai.study import UNREADABLE

CALLING_AE = "STOW-RS"
"""What stands for the calling AE title of who sends by HTTP."""

SYNTAX_NOT_TAKEN = Status(
    0xC122,
    "error: referenced transfer syntax not supported",
    "the file's transfer syntax is none of the standard's, and no private one",
    remedy="have the sender use another transfer syntax",
)


FAILURES = (*(status for status in statuses.STATUSES if status.code), SYNTAX_NOT_TAKEN)
"""Every Failure Reason that is given."""

_LONGEST_META = 64 * 1024


def file_of(part: Part) -> Iterator[bytes]:
    """Give the content of a part that says that it is a DICOM file.

    Raises:
        UnreadableError: it says that it is something else, or is encoded once more.
    """
    # Not always text: the library gives back an object where there are bytes that are not ASCII.
    kind = str(part.headers.get("Content-Type", "application/dicom")).partition(";")[0].strip().lower()
    coding = str(part.headers.get("Content-Transfer-Encoding", "binary")).strip().lower()
    if kind != "application/dicom" or coding not in {"binary", "8bit", "7bit"}:
        raise UnreadableError("A part is not application/dicom, or not sent as it is; correct the sender.")
    return part.blocks


def read_meta(blocks: Iterator[bytes]) -> tuple[FileMeta, bytes]:
    """Read a PS3.10 file up to its data set.

    Args:
        blocks: the file; those that are needed are taken, the rest is left.

    Returns:
        The file meta information, and what was taken of the data set.

    Raises:
        UnreadableError: it does not begin as a DICOM file does.
    """
    head = _fill(b"", blocks, 144)
    if head[128:140] != b"DICM\x02\x00\x00\x00UL\x04\x00":
        raise UnreadableError("A part is no DICOM file: preamble or file meta information is missing (PS3.10 7.1).")
    (length,) = struct.unpack("<L", head[140:144])
    if length > _LONGEST_META:
        raise UnreadableError(f"The file meta information of a part has {length} bytes; correct the sender.")
    head = _fill(head, blocks, 144 + length)
    try:
        group = read_dataset(BytesIO(head[144 : 144 + length]), is_implicit_VR=False, is_little_endian=True)
        meta = FileMeta(
            sop_class_uid=str(group["MediaStorageSOPClassUID"].value),
            sop_instance_uid=str(group["MediaStorageSOPInstanceUID"].value),
            transfer_syntax_uid=str(group["TransferSyntaxUID"].value),
            source_ae=CALLING_AE,
        )
    except UNREADABLE as error:
        raise UnreadableError(
            "The file meta information of a part cannot be read, or lacks a UID; correct the sender."
        ) from error
    if any(tag.group != 2 for tag in group.keys()):  # noqa: SIM118  iterating a data set would decode it
        raise UnreadableError("The file meta information of a part says a wrong length; correct the sender.")
    return meta, head[144 + length :]


def _fill(taken: bytes, blocks: Iterator[bytes], size: int) -> bytes:
    while len(taken) < size:
        block = next(blocks, None)
        if block is None:
            raise UnreadableError("A part is no DICOM file: it ends before its data set; correct the sender.")
        taken += block
    return taken


@dataclass(slots=True)
class Deposit:
    """What a request has brought so far.

    Attributes:
        row: number of its association in the index.
        stored: each instance that is durable, and where it can be had again; None for one that contradicts a known one
            or is withdrawn.
        failed: what says which instance it is, and why it was not stored.
        nameless: why other parts were not stored.
        owed: SOP Instance UIDs that were not stored for a reason of ours and have not come again.
        size: bytes that are stored.
    """

    row: int
    stored: list[tuple[FileMeta, Kept | None]] = field(default_factory=list)
    failed: list[tuple[FileMeta, Status]] = field(default_factory=list)
    nameless: list[Status] = field(default_factory=list)
    owed: set[str] = field(default_factory=set)
    size: int = 0

    def fail(self, meta: FileMeta | None, status: Status) -> None:
        """Note an instance that was not stored."""
        if meta is not None and status in {statuses.OUT_OF_RESOURCES, statuses.PROCESSING_FAILURE}:
            self.owed.add(meta.sop_instance_uid)
        try:
            if meta is not None:
                checked_uid(meta.sop_class_uid, "MediaStorageSOPClassUID")
                checked_uid(meta.sop_instance_uid, "MediaStorageSOPInstanceUID")
                self.failed.append((meta, status))
                return
        except UnreadableError:
            pass  # what is no UID is not said again
        self.nameless.append(status)

    @property
    def failures(self) -> int:
        """How many parts were not stored."""
        return len(self.failed) + len(self.nameless)

    @property
    def status(self) -> HTTPStatus:
        """The status of the answer as a whole (PS3.18 Table 10.5.3-1)."""
        if self.stored:
            return HTTPStatus.ACCEPTED if self.failures else HTTPStatus.OK
        if self.owed:
            return HTTPStatus.SERVICE_UNAVAILABLE
        is_too_large = all(status is statuses.TOO_LARGE for status in [*(s for _, s in self.failed), *self.nameless])
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE if is_too_large else HTTPStatus.CONFLICT

    def response(self, base_url: str) -> str:
        """Encode the Store Instances Response Module (PS3.18 Table I.2-1) in the DICOM JSON model.

        Args:
            base_url: of the DICOMweb services, as the sender knows it.
        """
        studies = {kept.study_instance_uid for _, kept in self.stored if kept is not None}
        whole = [f"{base_url}/studies/{uid}" for uid in studies] if len(studies) == 1 else []
        module: dict[str, Any] = {"00081190": _element("UR", *whole)}
        if self.failed:
            module["00081198"] = _element("SQ", *({**_reference(meta), **_reason(why)} for meta, why in self.failed))
        if self.stored:
            module["00081199"] = _element(
                "SQ",
                *(
                    {**_reference(meta), "00081190": _element("UR", *([_url(base_url, kept)] if kept else []))}
                    for meta, kept in self.stored
                ),
            )
        if self.nameless:
            module["0008119A"] = _element("SQ", *map(_reason, self.nameless))
        return json.dumps(module)


def _url(base_url: str, kept: Kept) -> str:
    return (
        f"{base_url}/studies/{kept.study_instance_uid}/series/{kept.series_instance_uid}"
        f"/instances/{kept.sop_instance_uid}"
    )


def _reference(meta: FileMeta) -> dict[str, Any]:
    return {
        "00081150": _element("UI", meta.sop_class_uid),
        "00081155": _element("UI", meta.sop_instance_uid),
    }


def _reason(status: Status) -> dict[str, Any]:
    return {"00081197": _element("US", status.code)}


def _element(vr: str, *values: Any) -> dict[str, Any]:
    return {"vr": vr, "Value": list(values)} if values else {"vr": vr}
