"""Where results go: C-STORE SCU and folder. A transport is chosen by `type`, never by trial."""

from typing import assert_never

from dicomai.config import DicomDestination, FolderDestination, TlsSettings
from dicomai.destinations.base import Accepted, Destination, Outgoing
from dicomai.destinations.dimse import DimseDestination, echo
from dicomai.destinations.files import SentFile, send_files
from dicomai.destinations.folder import Folder

__all__ = [
    "Accepted",
    "Destination",
    "DimseDestination",
    "Folder",
    "Outgoing",
    "SentFile",
    "echo",
    "open_destination",
    "send_files",
]


def open_destination(
    entry: DicomDestination | FolderDestination, *, calling_ae: str, timeout: float, tls: TlsSettings | None = None
) -> Destination:
    """Make the destination that an entry `[[destination]]` describes; nothing is connected yet.

    Args:
        entry: of the configuration.
        calling_ae: the node's AE title.
        timeout: seconds without any progress after which an attempt ends.
        tls: the section `[tls]`.

    Raises:
        ConfigurationError: a file of `[tls]` is missing or wrong.
    """
    match entry:
        case DicomDestination():
            return DimseDestination(entry, calling_ae=calling_ae, timeout=timeout, tls=tls)
        case FolderDestination():
            return Folder(entry)
        case _:
            assert_never(entry)
