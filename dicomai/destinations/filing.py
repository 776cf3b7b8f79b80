"""Objects as files: named after their own UIDs, compared with what is there, written where nobody obeys a note."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Generic, Protocol, TypeVar

import pydicom

from dicomai.destinations.base import Outgoing
from dicomai.errors import RejectedError

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_KEYWORDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_BLOCK = 256 * 1024


class Settings(Protocol):
    """What the configuration says of a destination that takes files."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def max_age(self) -> float | None:
        """Seconds after which a result is too old to be sent; None where it never is."""


class Readable(Protocol):
    """A file, be it elsewhere."""

    def read(self, size: int, /) -> bytes:
        """Read at most so many bytes; none at its end."""


_S = TypeVar("_S", bound=Settings)


class Files(Generic[_S]):
    """What destinations that take files have in common."""

    def __init__(self, settings: _S) -> None:
        """Make the destination.

        Args:
            settings: the entry of the configuration.
        """
        self._settings = settings

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self._settings.name

    @property
    def max_age(self) -> float | None:
        """Seconds after which a result is too old to be sent; None where it never is."""
        return self._settings.max_age

    @property
    def withdraws_superseded(self) -> bool:
        """Whether it is told by a rejection note of a result that another has taken the place of."""
        return False  # nobody there obeys a note

    @property
    def verify_timeout(self) -> float | None:
        """None: what was written is made sure of before it counts as accepted."""
        return None


def size(file: BinaryIO) -> int:
    """Give the bytes of a file, which is left where it is."""
    at = file.tell()
    end = file.seek(0, os.SEEK_END)
    file.seek(at)
    return end


def blocks(file: BinaryIO) -> Iterator[bytes]:
    """Read a file to its end, a block at a time."""
    while block := file.read(_BLOCK):
        yield block


def same(one: BinaryIO, other: Readable) -> bool:
    """Tell whether two files have the same bytes from where they are to their ends."""
    return all(block == other.read(len(block)) for block in blocks(one)) and not other.read(1)


@dataclass(frozen=True, slots=True)
class Filed:
    """The UIDs under which an object is filed.

    Attributes:
        study_instance_uid: StudyInstanceUID (0020,000D).
        series_instance_uid: SeriesInstanceUID (0020,000E).
        sop_instance_uid: SOPInstanceUID (0008,0018).
    """

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str

    @classmethod
    def of(cls, outgoing: Outgoing, destination: str) -> "Filed":
        """Read them from an object.

        Args:
            outgoing: the object.
            destination: its name, for the error.

        Raises:
            RejectedError: one is missing, or is no UID (PS3.5 9.1), which could lead out of a folder.
        """
        with outgoing.open() as file:
            ds = pydicom.dcmread(file, specific_tags=list(_KEYWORDS), stop_before_pixels=True)
        uids = [str(ds.get(keyword) or "") for keyword in _KEYWORDS]
        for keyword, uid in zip(_KEYWORDS, uids, strict=True):
            if len(uid) > 64 or not _UID.fullmatch(uid):
                raise RejectedError(
                    f"Destination '{destination}' cannot file an object whose {keyword} is no UID (PS3.5 9.1):"
                    " correct it at its source."
                )
        return cls(*uids)

    @property
    def parts(self) -> tuple[str, str, str]:
        """The path of its file: the folders of study and series, and the name."""
        return self.study_instance_uid, self.series_instance_uid, f"{self.sop_instance_uid}.dcm"
