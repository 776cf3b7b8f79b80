"""SFTP destination: DICOM files as `<study>/<series>/<sop instance>.dcm` on an SSH server. On paramiko."""

import contextlib
import logging
import re
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import BinaryIO

import paramiko

from dicomai.config import SftpDestination
from dicomai.destinations.base import Accepted, Outgoing, Refused, offer
from dicomai.destinations.filing import Filed, Files, same, size
from dicomai.errors import (
    ConfigurationError,
    NoAssociationError,
    NotAdmittedError,
    RejectedError,
    UnreachableError,
)


class Sftp(Files[SftpDestination]):
    """A folder on an SSH server, into which others look."""

    def __init__(self, settings: SftpDestination, *, timeout: float) -> None:
        """Make the destination; nothing is connected yet, and the folder is made with the first object.

        Args:
            settings: the entry of the configuration.
            timeout: seconds without any progress after which an attempt ends.

        Raises:
            ConfigurationError: the private key or the file of host keys is missing or wrong.
        """
        super().__init__(settings)
        self._timeout = timeout
        self._keys(paramiko.SSHClient())  # what is wrong with the files is to be said now, not at the first send
        library = logging.getLogger("paramiko")
        if library.level == logging.NOTSET:  # who has set it is obeyed
            library.setLevel(logging.CRITICAL)

    def __str__(self) -> str:
        return f"Destination '{self.name}' ({self._settings.host} port {self._settings.port})"

    def reach(self) -> None:
        """Ask whether a server is there that says anything; without a login, for some lock out who fails too often.

        Raises:
            NoAssociationError: there is none.
        """
        s = self._settings
        try:
            with socket.create_connection((s.host, s.port), self._timeout) as connection:
                says_something = bool(connection.recv(1))  # the server speaks first (RFC 4253 4.2)
        except (OSError, UnicodeError) as error:
            raise self._not_connected(error) from error
        if not says_something:
            raise self._not_connected(EOFError())

    def ask(self) -> float:
        """Log in.

        Returns:
            Seconds from the request for a connection until files could be sent.

        Raises:
            UnreachableError: it is not there.
            NotAdmittedError: its host key is not the one that is known, or it does not let us in.
        """
        start = time.monotonic()
        with self._session():
            return time.monotonic() - start

    def send(self, objects: Sequence[Outgoing], accepted: Accepted, refused: Refused | None = None) -> None:
        """Write objects in the order given, each under a temporary name first; one that is there already is left.

        Raises:
            NoAssociationError: no connection could be had.
            UnreachableError: the connection broke, or the folder cannot be written for now.
            NotAdmittedError: the host key is not the one that is known, or the server does not let us in.
            RejectedError: a UID cannot be a file name, or another object has this one's UID.
        """
        with self._session() as sftp:
            for outgoing in objects:
                offer(outgoing, partial(self._store, sftp), accepted, refused)

    def _store(self, sftp: paramiko.SFTPClient, outgoing: Outgoing) -> tuple[int, str]:
        self._write(sftp, outgoing, self._settings.path.joinpath(*Filed.of(outgoing, self.name).parts))
        return 0x0000, ""

    def _write(self, sftp: paramiko.SFTPClient, outgoing: Outgoing, target: PurePosixPath) -> None:
        try:
            with outgoing.open() as file:
                is_same = _is_same(sftp, file, target)
                if is_same is None:
                    _put(sftp, file, target)
        except TimeoutError:
            raise
        except OSError as error:  # it is the server's answer; it has no number but for two reasons
            raise UnreachableError(
                f"{self} could not write {outgoing.sop_instance_uid} ({error.strerror or error}): check that"
                f" {self._settings.path} is writable there and not full."
            ) from error
        if is_same is False:
            raise RejectedError(
                f"{self} holds another object with the UID {outgoing.sop_instance_uid}: move that file away, then"
                " retry."
            )

    @contextlib.contextmanager
    def _session(self) -> Iterator[paramiko.SFTPClient]:
        with paramiko.SSHClient() as client:
            try:
                key = self._keys(client)
            except ConfigurationError as error:  # files are replaced one after the other
                raise NoAssociationError(f"{self} is not called: {error}") from error
            sftp = self._log_in(client, key)
            try:
                yield sftp
            except TimeoutError as error:
                raise UnreachableError(
                    f"{self} stopped answering for {self._timeout:g} s: another attempt may succeed."
                ) from error
            except (paramiko.SSHException, EOFError) as error:
                raise UnreachableError(
                    f"{self} broke off the connection: another attempt may succeed; see its log."
                ) from error

    def _log_in(self, client: paramiko.SSHClient, key: paramiko.PKey | None) -> paramiko.SFTPClient:
        s = self._settings
        try:
            client.connect(
                s.host, s.port, s.user, s.password.get_secret_value() or None, key,
                timeout=self._timeout, banner_timeout=self._timeout, auth_timeout=self._timeout,
                channel_timeout=self._timeout, allow_agent=False, look_for_keys=False,
            )  # fmt: skip
            sftp = client.open_sftp()
        except paramiko.BadHostKeyException as error:
            raise NotAdmittedError(
                f"{self} shows another host key than the one in {s.known_hosts}: find out why, and enter the new one if"
                " it is right."
            ) from error
        except paramiko.AuthenticationException as error:
            raise NotAdmittedError(f"{self} does not let '{s.user}' in: check user, and key or password.") from error
        except paramiko.SSHException as error:
            if "known_hosts" in str(error):
                raise NotAdmittedError(
                    f"{self} is not in {s.known_hosts}: enter its host key, as its administrator names it."
                ) from error
            raise NoAssociationError(f"{self} gave no session of SFTP: see its log.") from error
        except (OSError, EOFError, UnicodeError) as error:
            raise self._not_connected(error) from error
        sftp.get_channel().settimeout(self._timeout)
        return sftp

    def _not_connected(self, error: Exception) -> NoAssociationError:
        why = getattr(error, "strerror", None) or type(error).__name__
        return NoAssociationError(
            f"{self} cannot be connected to ({why}): check that it runs, its host and port, and the firewall between."
        )

    def _keys(self, client: paramiko.SSHClient) -> paramiko.PKey | None:
        """Read the host keys, and our private key, which is given; at every call, so that none is stale."""
        s = self._settings
        client.set_missing_host_key_policy(paramiko.RejectPolicy())  # nobody is there to be asked
        try:
            has_markers = re.search(r"^\s*@", s.known_hosts.read_text(encoding="utf-8"), re.MULTILINE) is not None
            if not has_markers:
                client.load_host_keys(str(s.known_hosts))
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise ConfigurationError(f"known_hosts {s.known_hosts} cannot be read: {why}.") from error
        except paramiko.hostkeys.InvalidHostKey as error:
            raise ConfigurationError(
                f"known_hosts {s.known_hosts} has a line that is no host key: write it as ssh-keyscan does."
            ) from error
        if has_markers:  # which the library may pass over, and then trust a key that is revoked
            raise ConfigurationError(
                f"known_hosts {s.known_hosts} has a line with @cert-authority or @revoked, which is not understood:"
                " enter the host keys themselves, and take out those that are revoked."
            )
        if not client.get_host_keys():
            raise ConfigurationError(f"known_hosts {s.known_hosts} has no host key, as ssh-keyscan writes it.")
        if s.key is None:
            return None
        try:
            return paramiko.PKey.from_path(s.key)
        except OSError as error:
            raise ConfigurationError(f"key {s.key} cannot be read: {error.strerror}.") from error
        except (paramiko.SSHException, paramiko.pkey.UnknownKeyType, ValueError, TypeError) as error:
            raise ConfigurationError(
                f"key {s.key} has to be a private key of SSH, such as ssh-keygen -t ed25519 makes, without a passphrase"
                f" ({type(error).__name__})."
            ) from error


def _is_same(sftp: paramiko.SFTPClient, file: BinaryIO, target: PurePosixPath) -> bool | None:
    """Tell whether a file there has these bytes; None where there is none. Only one of the same length is read."""
    try:
        if sftp.stat(str(target)).st_size != size(file):
            return False
        with sftp.open(str(target), "rb") as there:
            return same(file, there)
    except FileNotFoundError:
        return None


def _put(sftp: paramiko.SFTPClient, file: BinaryIO, target: PurePosixPath) -> None:
    """Write a file whole or not at all: the library compares its length before it has its name."""
    for folder in reversed(target.parents[:-1]):
        _make(sftp, str(folder))
    temporary = str(target.with_name(f".{uuid.uuid4().hex}.part"))
    try:
        sftp.putfo(file, temporary, size(file))
        sftp.rename(temporary, str(target))  # which, other than posix_rename, never writes over what is there
    except BaseException:  # Ctrl-C too: nobody else would take it away there
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            sftp.remove(temporary)
        raise


def _make(sftp: paramiko.SFTPClient, folder: str) -> None:
    try:
        sftp.stat(folder)
    except FileNotFoundError:
        try:
            sftp.mkdir(folder)
        except OSError:  # somebody else may have been quicker
            sftp.stat(folder)
