"""Images by the thousand: copies of encoded ones that differ from them in nothing but their UIDs."""

import random

from pydicom.uid import UID

from tests import synthetic

_STUDY, _SERIES, _INSTANCE = (f"2.25.{digit * 30}" for digit in "123")


def templates(count: int, size: int) -> list[bytes]:
    """Encode the slices of a CT series, `size` x `size`, 16 bit, each a DICOM file."""
    slices = synthetic.series(
        shape=(count, size, size),
        study_uid=_STUDY,
        series_uid=_SERIES,
        SOPInstanceUID=lambda z: f"{_INSTANCE[:-4]}{z:04}",
    )
    for ds in slices:
        ds.file_meta.MediaStorageSOPInstanceUID = UID(ds.SOPInstanceUID)
    return [synthetic.encode(ds).replace(ds.SOPInstanceUID.encode(), _INSTANCE.encode()) for ds in slices]


def copy(template: bytes, study: str, series: str, instance: str) -> bytes:
    """Make an image of another study, series and instance; UIDs as `new_uid` makes them."""
    for stand_in, own in ((_STUDY, study), (_SERIES, series), (_INSTANCE, instance)):
        template = template.replace(stand_in.encode(), own.encode())
    return template


def new_uid(chance: random.Random) -> str:
    """Make a UID of the length that the templates have."""
    return f"2.25.{chance.randrange(10**29, 10**30)}"
