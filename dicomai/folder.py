"""A folder of DICOM files as studies: what `dicomai run` and `routes explain` look at."""

from pathlib import Path

from dicomai import study
from dicomai.errors import ConfigurationError, UnreadableError
from dicomai.study import Instance, Study


def read(path: Path) -> tuple[tuple[Study, ...], list[str]]:
    """Read the headers of every DICOM file below a folder.

    Returns:
        The studies, and a sentence for every file that could not be read.

    Raises:
        ConfigurationError: there is no such folder.
    """
    if not path.is_dir():
        raise ConfigurationError(f"{path} is no folder; name one that holds the DICOM files of a study.")
    instances, unread = [], []
    for file in files(path):
        try:
            instances.append(Instance.read(lambda file=file: file.open("rb"), str(file)))  # type: ignore[misc]
        except UnreadableError as error:
            unread.append(str(error))
    return study.group(instances), unread


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
