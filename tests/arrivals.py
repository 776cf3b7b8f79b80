"""Images that come in for tests of the way in, what may happen to them, and what has to be there afterwards."""

import copy
import hashlib
from collections.abc import Sequence
from typing import Any, NoReturn

import sqlalchemy as sa
from pydicom.dataset import FileDataset

from dicomai.database.tables import Instance, Version
from dicomai.errors import StoreError
from tests.beds import Bed, parts
from tests.synthetic import series


def ct(count: int = 3, **attributes: Any) -> list[FileDataset]:
    """Make a small series."""
    return series(shape=(count, 4, 4), **attributes)


def changed(ds: FileDataset, **attributes: Any) -> FileDataset:
    """The same instance as another copy of the PACS has it."""
    again = copy.deepcopy(ds)
    for keyword, value in attributes.items():
        setattr(again, keyword, value)
    return again


def repixeled(ds: FileDataset) -> FileDataset:
    """The same instance with other pixels."""
    return changed(ds, PixelData=bytes(ds.PixelData[:-2]) + b"\x01\x01")


def raise_store_error(*_: object, **__: object) -> NoReturn:
    """Fail as a disk does."""
    raise StoreError("The disk went away.")


def assert_sound(bed: Bed) -> None:
    """No row without its file, no file without its row, nothing half received."""
    assert bed.files("instances") == {version.key for version in bed.rows(Version)}
    assert bed.files("incoming") == set()


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
