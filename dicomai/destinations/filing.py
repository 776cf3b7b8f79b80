"""Where an object belongs by its own UIDs: what files are named after, and what is asked for."""

import re
from dataclasses import dataclass
from io import BytesIO

import pydicom

from dicomai.destinations.base import Outgoing
from dicomai.errors import RejectedError

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_KEYWORDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


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
        ds = pydicom.dcmread(BytesIO(outgoing.data), specific_tags=list(_KEYWORDS), stop_before_pixels=True)
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
