"""C-STORE statuses: what the receiver answers (PS3.4 B.2.3, PS3.7 Annex C)."""

from dataclasses import dataclass

from pydicom.dataset import Dataset

from dicomai.errors import InputError, NotAcceptedError, StorageFullError, TooLargeError


@dataclass(frozen=True, slots=True)
class Status:
    """An answer to a C-STORE request.

    Attributes:
        code: Status (0000,0900).
        meaning: the standard's words for it.
        when: what brings it about.
        comment: Error Comment (0000,0902): at most 64 characters, nothing about a patient.
        remedy: what a person can do about it, for the log.
    """

    code: int
    meaning: str
    when: str
    comment: str = ""
    remedy: str = ""

    def response(self) -> Dataset:
        """Make the data set that goes into the C-STORE-RSP."""
        ds = Dataset()
        ds.Status = self.code
        if self.comment:
            ds.ErrorComment = self.comment
        return ds


SUCCESS = Status(0x0000, "success", "the instance is on disk and in the index, or was there already")
OUT_OF_RESOURCES = Status(
    0xA700,
    "refused: out of resources",
    "there is no room on the disk of the storage or of the index",
    "No room on disk; send it again later",
    "free some room on the storage's disk, then have the sender send it again",
)
TOO_LARGE = Status(
    0xA700,
    "refused: out of resources",
    "the data set is longer than receiver.max_instance_bytes",
    "Larger than receiver.max_instance_bytes",
    "raise receiver.max_instance_bytes if such an instance is to be taken, then have the sender send it again",
)
MISMATCH = Status(
    0xA900,
    "error: data set does not match SOP class",
    "the data set has another SOP class or instance UID than the request",
    "SOP class or instance UID of data set and request differ",
    "correct the sender: what it announces is not what it sends",
)
CANNOT_UNDERSTAND = Status(
    0xC000,
    "error: cannot understand",
    "the data set cannot be read, or has no study, series or instance UID",
    "Data set cannot be read, or lacks a UID",
    "check the instance at its source",
)
NOT_NEGOTIATED = Status(
    0x0122,
    "refused: SOP class not supported",
    "the request's SOP class is not that of its presentation context",
    "SOP class is not that of the presentation context",
    "correct the sender: it uses a presentation context of another SOP class",
)
PROCESSING_FAILURE = Status(
    0x0110,
    "processing failure",
    "the disk or the index failed; nothing was kept",
    "Not stored because of a local failure; send it again",
    "check the storage and the worklist's database, then have the sender send it again",
)

STATUSES = (SUCCESS, OUT_OF_RESOURCES, TOO_LARGE, MISMATCH, CANNOT_UNDERSTAND, NOT_NEGOTIATED, PROCESSING_FAILURE)
"""Every status that the receiver gives."""


def status_of(error: Exception) -> Status:
    """Find the status for an error of the intake."""
    match error:
        case StorageFullError():
            return OUT_OF_RESOURCES
        case TooLargeError():
            return TOO_LARGE
        case NotAcceptedError():
            return MISMATCH
        case InputError():
            return CANNOT_UNDERSTAND
        case _:
            return PROCESSING_FAILURE
