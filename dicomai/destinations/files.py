"""Any DICOM files to a destination, as they are: what stands behind `dicomai send`."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info

from dicomai.config import DicomDestination, TlsSettings
from dicomai.destinations.base import Destination, Outgoing
from dicomai.destinations.dimse.association import Peer
from dicomai.destinations.dimse.storage import StorageLink, associate, batches, contexts_of
from dicomai.errors import (
    DeliveryError,
    NoAssociationError,
    NotAdmittedError,
    NotKeptError,
    RejectedError,
    StoreError,
    UnreachableError,
    UnreadableError,
)

_MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"


@dataclass(frozen=True, slots=True)
class SentFile:
    """What became of one file.

    Attributes:
        path: the file.
        status: Status (0000,0900) of the C-STORE response, or what stands for it; None if there was none.
        text: what the status means, or why there was none; '' for success.
        is_accepted: the destination has it.
    """

    path: Path
    status: int | None
    text: str
    is_accepted: bool


Progress = Callable[[SentFile, int, int], None]
"""Called after each file: what became of it, how many are done, how many there are."""


@dataclass(frozen=True)
class _File(Outgoing):
    """A file to be sent."""

    path: Path


def send_files(
    paths: Iterable[Path],
    settings: DicomDestination,
    *,
    calling_ae: str,
    timeout: float,
    tls: TlsSettings | None = None,
    progress: Progress | None = None,
) -> list[SentFile]:
    """Send DICOM files as they are, over as few associations as 128 presentation contexts allow.

    A file that is refused, or is not there any more, does not keep the next from being sent; a connection that breaks
    ends the sending. A data set is encoded anew only where the destination does not take its transfer syntax.

    Args:
        paths: files, and folders in which every file is meant.
        settings: where to.
        calling_ae: the AE title to call from.
        timeout: seconds without any progress after which an attempt ends.
        tls: the section `[tls]`.
        progress: called after each file.

    Returns:
        One entry per file, in the order in which they were dealt with; those that are no DICOM files first.

    Raises:
        ConfigurationError: a file of `[tls]` is missing or wrong.
        UnreachableError: there was no association to begin with.
        RejectedError: the first association was refused for good.
    """
    peer = Peer(settings, calling_ae, timeout, tls or TlsSettings())
    files, outcomes = _look_through(paths)
    unreadable = len(outcomes)
    note = _noting(outcomes, len(files) + unreadable, progress)
    while left := files[len(outcomes) - unreadable :]:
        try:
            batch = next(batches(left))
            with associate(peer, contexts_of(batch)) as link:
                for file in cast("list[_File]", batch):
                    note(_send(link, file))
        except StoreError as error:  # maybe in the middle of it: the next ones go over another association
            note(SentFile(files[len(outcomes) - unreadable].path, None, str(error), is_accepted=False))
        except DeliveryError as error:
            if len(outcomes) == unreadable and not isinstance(error, _BrokenError):
                raise
            for file in files[len(outcomes) - unreadable :]:
                note(SentFile(file.path, None, str(error), is_accepted=False))
    return outcomes


def send_each(paths: Iterable[Path], destination: Destination, *, progress: Progress | None = None) -> list[SentFile]:
    """Send DICOM files as they are, each by itself, over any transport.

    A file that is refused does not keep the next from being sent; a destination that cannot be reached any more, or
    takes nothing for now, or does not let us in, ends the sending.

    Args:
        paths: files, and folders in which every file is meant.
        destination: where to.
        progress: called after each file.

    Returns:
        One entry per file, in the order in which they were dealt with; those that are no DICOM files first.

    Raises:
        NoAssociationError: there was no connection to begin with.
        NotAdmittedError: the destination does not let us in.
    """
    files, outcomes = _look_through(paths)
    unreadable = len(outcomes)
    note = _noting(outcomes, len(files) + unreadable, progress)
    for number, file in enumerate(files):
        try:
            note(_hand_over(destination, file))
        except (StoreError, UnreadableError) as error:
            note(SentFile(file.path, None, str(error), is_accepted=False))
        except (UnreachableError, RejectedError) as error:
            is_away = isinstance(error, NoAssociationError | NotAdmittedError)
            if isinstance(error, RejectedError | NotKeptError) and not is_away:
                note(SentFile(file.path, None, str(error), is_accepted=False))
                continue
            if number == 0 and is_away:
                raise
            for left in files[number:]:  # a password that is refused is not tried once per file
                note(SentFile(left.path, None, str(error), is_accepted=False))
            break
    return outcomes


def _hand_over(destination: Destination, file: _File) -> SentFile:
    answers: list[tuple[int, str]] = []
    destination.send([file], lambda _, status, meaning: answers.append((status, meaning)))
    status, meaning = answers[-1]
    return SentFile(file.path, status, meaning, is_accepted=True)


def _noting(outcomes: list[SentFile], total: int, progress: Progress | None) -> Callable[[SentFile], None]:
    """Report the outcomes that there are, and give what adds and reports another."""
    if progress is not None:
        for number, outcome in enumerate(outcomes, start=1):
            progress(outcome, number, total)

    def note(outcome: SentFile) -> None:
        outcomes.append(outcome)
        if progress is not None:
            progress(outcome, len(outcomes), total)

    return note


class _BrokenError(UnreachableError):
    """The connection broke while a file was being sent."""


def _send(link: StorageLink, file: _File) -> SentFile:
    try:
        answer = link.store(file)
    except RejectedError as error:
        return SentFile(file.path, None, str(error), is_accepted=False)
    except UnreachableError as error:
        raise _BrokenError(str(error)) from error
    return SentFile(file.path, answer.status, answer.meaning, answer.is_accepted)


def _look_through(paths: Iterable[Path]) -> tuple[list[_File], list[SentFile]]:
    """Find the files, and sort out what is no DICOM file; a DICOMDIR in a folder is passed over."""
    files: list[_File] = []
    outcomes: list[SentFile] = []
    for given in paths:
        for path in _walk(given):
            try:
                meta = read_file_meta_info(path)
                sop_class_uid, sop_instance_uid = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
                file = _File(str(sop_class_uid), str(sop_instance_uid), _opener(path), path)
                vars(file)["transfer_syntax_uid"] = str(meta.TransferSyntaxUID)  # it is read once
            except (InvalidDicomError, AttributeError, EOFError, OSError, ValueError, KeyError) as error:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is no DICOM file"
                outcomes.append(SentFile(path, None, f"not sent: {reason}", is_accepted=False))
                continue
            if file.sop_class_uid != _MEDIA_STORAGE_DIRECTORY:
                files.append(file)
    return files, outcomes


def _opener(path: Path) -> Callable[[], BinaryIO]:
    def opened() -> BinaryIO:
        try:
            return path.open("rb")
        except OSError as error:
            raise StoreError(f"not sent: {error.strerror or type(error).__name__}") from error

    return opened


def _walk(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(p for p in path.rglob("*") if p.is_file())
    else:
        yield path
