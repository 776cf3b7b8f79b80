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
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        if not _looks_like_dicom(file):
            continue
        try:
            instances.append(Instance.read(lambda file=file: file.open("rb"), str(file)))  # type: ignore[misc]
        except UnreadableError as error:
            unread.append(str(error))
    return study.group(instances), unread


def _looks_like_dicom(file: Path) -> bool:
    """Tell a DICOM file (PS3.10 7.1) from the README beside it."""
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"
