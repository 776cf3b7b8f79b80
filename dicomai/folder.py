"""A folder of DICOM files as studies: what `dicomai run` and `routes explain` look at."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from dicomai import study
from dicomai.errors import ConfigurationError, IdentityError, UnreadableError
from dicomai.study import Instance, Study


def read(path: Path) -> tuple[tuple[Study, ...], list[str]]:
    """Read the headers of every DICOM file below a folder.

    Returns:
        The studies, and a sentence for every file that could not be read.

    Raises:
        ConfigurationError: there is no such folder.
        IdentityError: two files bear one SOPInstanceUID and differ, or two studies one SeriesInstanceUID.
    """
    if not path.is_dir():
        raise ConfigurationError(f"{path} is no folder; name one that holds the DICOM files of a study.")
    instances, unread = [], []
    for file in files(path):
        try:
            instance = Instance.read(lambda file=file: file.open("rb"), str(file))  # type: ignore[misc]
            _check_complete(instance, file)
        except UnreadableError as error:
            unread.append(str(error))
        else:
            instances.append(instance)
    _check_unique(instances)
    return study.group(instances), unread


def _check_complete(instance: Instance, file: Path) -> None:
    """Refuse what a result could not refer to, as the node's receiver does."""
    missing = [key for key in ("SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID") if not instance.header.get(key)]
    if missing:
        raise UnreadableError(
            f"{file} has no {', '.join(missing)}, so that no result could refer to it; send it again."
        )


def _check_unique(instances: Iterable[Instance]) -> None:
    """Refuse copies that differ, and a series in two studies: which of them counts is not for a program to guess."""
    first: dict[str, Instance] = {}
    study_of: dict[str, str] = {}
    for instance in instances:
        uid, known = instance.sop_instance_uid, first.setdefault(instance.sop_instance_uid, instance)
        if known is not instance and _digest(known) != _digest(instance):
            raise IdentityError(
                f"Two files of the folder bear the SOPInstanceUID {uid} and differ: leave only the right one there."
            )
        series, study_uid = str(instance.header.SeriesInstanceUID), str(instance.header.StudyInstanceUID)
        if study_of.setdefault(series, study_uid) != study_uid:
            raise IdentityError(
                f"Series {series} lies in two studies, {study_of[series]} and {study_uid}: leave only the right one in"
                " the folder."
            )


def _digest(instance: Instance) -> str:
    with instance.open() as stream:
        return hashlib.sha256(stream.read()).hexdigest()


def files(path: Path) -> tuple[Path, ...]:
    """List the DICOM files below a folder, by name; a README beside them is none.

    Raises:
        ConfigurationError: one of the files cannot be opened.
    """
    try:
        return tuple(file for file in sorted(path.rglob("*")) if file.is_file() and _looks_like_dicom(file))
    except OSError as error:
        raise ConfigurationError(f"{error.filename or path} cannot be read: {error.strerror}.") from error


def _looks_like_dicom(file: Path) -> bool:
    """Tell a DICOM file (PS3.10 7.1) from the README beside it."""
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"
