"""Where results go: C-STORE SCU, STOW-RS, folder, SFTP and S3. A transport is chosen by `type`, never by trial."""

from typing import TYPE_CHECKING, assert_never

from dicomai import config
from dicomai.config import (
    DicomDestination,
    DicomwebDestination,
    FolderDestination,
    S3Destination,
    SftpDestination,
    TlsSettings,
)
from dicomai.destinations.base import Accepted, Asked, Destination, Outgoing
from dicomai.destinations.dicomweb import Dicomweb
from dicomai.destinations.dimse import DimseDestination, echo
from dicomai.destinations.files import SentFile, send_each, send_files
from dicomai.destinations.folder import Folder
from dicomai.errors import ConfigurationError

if TYPE_CHECKING:
    from dicomai.destinations.s3 import S3
    from dicomai.destinations.sftp import Sftp

__all__ = [
    "Accepted",
    "Asked",
    "Destination",
    "Dicomweb",
    "DimseDestination",
    "Folder",
    "Outgoing",
    "SentFile",
    "ask",
    "echo",
    "open_destination",
    "send_each",
    "send_files",
]


def open_destination(
    entry: config.Destination, *, calling_ae: str, timeout: float, tls: TlsSettings | None = None
) -> Destination:
    """Make the destination that an entry `[[destination]]` describes; nothing is connected yet.

    Args:
        entry: of the configuration.
        calling_ae: the node's AE title.
        timeout: seconds without any progress after which an attempt ends.
        tls: the section `[tls]`.

    Raises:
        ConfigurationError: a file that it needs, or a package, is missing or wrong.
    """
    match entry:
        case DicomDestination():
            return DimseDestination(entry, calling_ae=calling_ae, timeout=timeout, tls=tls)
        case DicomwebDestination():
            return Dicomweb(entry, timeout=timeout, tls=tls)
        case FolderDestination():
            return Folder(entry)
        case S3Destination():
            return _s3(entry, timeout, tls)
        case SftpDestination():
            return _sftp(entry, timeout)
        case _:
            assert_never(entry)


def ask(entry: config.Destination, *, calling_ae: str, timeout: float, tls: TlsSettings | None = None) -> Asked:
    """Verify a destination: an AE by C-ECHO, an origin server by a search, SFTP by a login, a bucket by a list.

    Args:
        entry: of the configuration.
        calling_ae: the node's AE title.
        timeout: seconds without any progress after which an attempt ends.
        tls: the section `[tls]`.

    Raises:
        ConfigurationError: a file that it needs, or a package, is missing or wrong; or it is a folder.
        UnreachableError: no connection, or no answer.
        RejectedError: it does not let us in.
    """
    match entry:
        case DicomDestination():
            return Asked(echo(entry, calling_ae=calling_ae, timeout=timeout, tls=tls))
        case DicomwebDestination():
            return Dicomweb(entry, timeout=timeout, tls=tls).ask()
        case S3Destination():
            return _s3(entry, timeout, tls).ask()
        case SftpDestination():
            return Asked(_sftp(entry, timeout).ask())
        case FolderDestination():
            raise ConfigurationError(f"Destination '{entry.name}' is a folder, which answers nobody.")
        case _:
            assert_never(entry)


def _s3(entry: S3Destination, timeout: float, tls: TlsSettings | None) -> "S3":
    try:
        from dicomai.destinations.s3 import S3  # noqa: PLC0415  botocore is an extra
    except ModuleNotFoundError as error:
        raise _not_installed(entry, error) from error
    return S3(entry, timeout=timeout, tls=tls)


def _sftp(entry: SftpDestination, timeout: float) -> "Sftp":
    try:
        from dicomai.destinations.sftp import Sftp  # noqa: PLC0415  paramiko is an extra
    except ModuleNotFoundError as error:
        raise _not_installed(entry, error) from error
    return Sftp(entry, timeout=timeout)


def _not_installed(entry: S3Destination | SftpDestination, error: ModuleNotFoundError) -> ConfigurationError:
    return ConfigurationError(
        f"Destination '{entry.name}' is of type {entry.type}, for which {error.name} is not installed: pip install"
        f" 'dicomai[{entry.type}]'."
    )
