"""What a power cut takes away of an index, for beds of tests, and what has to be there afterwards."""

import hashlib
from collections.abc import Sequence

import sqlalchemy as sa
from pydicom.dataset import FileDataset

from dicomai.database.tables import Instance, Version
from tests.beds import Bed, parts


def digests(images: Sequence[FileDataset]) -> dict[str, str]:
    """Give SHA-256 of each data set by SOP Instance UID."""
    return {str(ds.SOPInstanceUID): hashlib.sha256(parts(ds)[1]).hexdigest() for ds in images}


def cut_power(bed: Bed, lost: int) -> None:
    """Take away the last rows, as an unsynced end of the log goes, and all lasting names of the last folder."""
    with bed.database.write() as session:
        for version in session.scalars(sa.select(Version).order_by(Version.id.desc()).limit(lost)).all():
            (bed.folder / "storage" / version.key).unlink()
            session.delete(version)
            session.flush()
            session.delete(session.get_one(Instance, version.instance_id))
