"""A real OpenSSH server for SFTP: its own folder, port and keys; ended by its process id."""

import contextlib
import getpass
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dicomai.config import SftpDestination
from tests.acceptance.orthanc import require
from tests.dimse import HOST, free_port, is_listening, wait_until


@dataclass(frozen=True)
class Sshd:
    """A running server, and the keys of one user.

    Attributes:
        folder: of all its files.
        port: on this machine.
        process: that listens; each connection has one of its own.
    """

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    def entry(self, **keys: Any) -> SftpDestination:
        """Describe it in the configuration; the folder `out` is where files go."""
        described = {
            "host": HOST,
            "port": self.port,
            "user": getpass.getuser(),
            "key": self.folder / "user",
            "known_hosts": self.folder / "known_hosts",
            "path": str(self.folder / "out"),
        }
        return SftpDestination(type="sftp", name="files", **(described | keys))


def keygen(path: Path) -> str:
    """Make a pair of keys; gives the public one."""
    command = [require("ssh-keygen", "openssh-client"), "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path.with_name(f"{path.name}.pub").read_text(encoding="utf-8")


@contextlib.contextmanager
def sshd(folder: Path) -> Iterator[Sshd]:
    """Start a server in a folder, for this test's user, and stop it at the end."""
    folder.mkdir(parents=True)
    port = free_port()
    (folder / "known_hosts").write_text(f"[{HOST}]:{port} {keygen(folder / 'host')}", encoding="utf-8")
    (folder / "authorized_keys").write_text(keygen(folder / "user"), encoding="utf-8")
    (folder / "sshd.conf").write_text(
        f"ListenAddress {HOST}:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\n"
        "PidFile none\nStrictModes no\nUsePAM yes\nPermitRootLogin yes\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nSubsystem sftp internal-sftp\n",
        encoding="utf-8",
    )
    program = require("/usr/sbin/sshd", "openssh-server")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # which a service manager makes
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "-D", "-e", "-f", str(folder / "sshd.conf")],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        wait_until(lambda: is_listening(port) or process.poll() is not None)
        assert process.poll() is None, (folder / "sshd.log").read_text(encoding="utf-8")
        yield Sshd(folder, port, process)
    finally:
        process.terminate()
        process.wait(20)
