"""SFTP without a server of its own: what is configured wrongly, and who does not answer. The rest needs a real one."""

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from dicomai.config import SftpDestination
from dicomai.destinations import open_destination
from dicomai.errors import ConfigurationError, NoAssociationError
from tests.dimse import HOST, free_port
from tests.integration.test_destinations import outgoing

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBx8nNmC1kfbN2BCsHY4EHBbEQkyvm2eYJzBqTq5Lz7y"


@pytest.fixture
def known_hosts(tmp_path: Path) -> Path:
    path = tmp_path / "known_hosts"
    path.write_text(f"files.example {HOST_KEY}\n", encoding="utf-8")
    return path


def entry(known_hosts: Path, **keys: Any) -> SftpDestination:
    described = {"host": HOST, "port": 22, "user": "ai", "known_hosts": known_hosts, "path": "/results"}
    return SftpDestination(type="sftp", name="files", **(described | ({"password": "secret"} | keys)))


def test_files_that_are_missing_or_wrong_are_named(known_hosts: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    known = known_hosts.read_text(encoding="utf-8")
    lines = {
        "broken": f"a.example {HOST_KEY[:39]}",
        "revoked": f"@revoked {known}",
        "authority": f"@cert-authority {known}",
    }
    for name, line in lines.items():
        (tmp_path / name).write_text(f"{known}{line}\n", encoding="utf-8")
    foreign = X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "x25519").write_bytes(foreign)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"known_hosts": tmp_path / "none"}, "known_hosts .*none cannot be read: No such file"),
        ({"known_hosts": tmp_path / "empty"}, "has no host key"),
        ({"key": tmp_path / "none", "password": ""}, "key .*none cannot be read: No such file"),
        ({"known_hosts": tmp_path / "broken"}, "has a line that is no host key"),
        ({"known_hosts": tmp_path / "revoked"}, "@cert-authority or @revoked, which is not understood"),
        ({"known_hosts": tmp_path / "authority"}, "@cert-authority or @revoked, which is not"),
        ({"key": tmp_path / "x25519", "password": ""}, "has to be a private key of SSH"),
        ({"key": known_hosts, "password": ""}, "has to be a private key of SSH"),
        ({"key": tmp_path / "empty", "password": ""}, "has to be a private key of SSH"),
    ]
    for keys, sentence in cases:
        with pytest.raises(ConfigurationError, match=sentence):
            open_destination(entry(**({"known_hosts": known_hosts} | keys)), calling_ae="X", timeout=1.0)
    destination = open_destination(entry(known_hosts), calling_ae="X", timeout=1.0)
    known_hosts.unlink()  # while it is replaced
    with pytest.raises(NoAssociationError, match="is not called: known_hosts"):
        destination.send(outgoing(1), lambda *_: None)


def test_a_key_or_a_password(known_hosts: Path) -> None:
    for keys in ({"password": ""}, {"key": known_hosts}):
        with pytest.raises(ValueError, match="set key or password, one of both"):
            entry(known_hosts, **keys)
    assert "secret" not in repr(entry(known_hosts)) + str(entry(known_hosts).model_dump(mode="json"))


def test_nobody_is_there_or_says_anything(known_hosts: Path) -> None:
    nobody = open_destination(entry(known_hosts, port=free_port()), calling_ae="X", timeout=1.0)
    with pytest.raises(NoAssociationError, match="cannot be connected to"):
        nobody.reach()
    with socket.create_server((HOST, 0)) as server:
        silent = open_destination(entry(known_hosts, port=server.getsockname()[1]), calling_ae="X", timeout=0.2)
        with pytest.raises(NoAssociationError, match="gave no session"):
            silent.send(outgoing(1), lambda *_: None)
        with pytest.raises(NoAssociationError, match="cannot be connected to"):
            silent.reach()


def test_without_its_package_a_sentence_says_so_and_nobody_else_needs_it() -> None:
    code = (
        "import sys; sys.modules['paramiko'] = None\n"
        "from dicomai.config import SftpDestination\n"
        "from dicomai.destinations import open_destination\n"
        "keys = {'host': 'h', 'port': 22, 'user': 'u', 'password': 'p', 'known_hosts': 'k', 'path': '/'}\n"
        "one = SftpDestination(type='sftp', name='f', **keys)\n"
        "try:\n    open_destination(one, calling_ae='X', timeout=1.0)\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "ConfigurationError Destination 'f' is of type sftp, for which paramiko is not installed: pip install"
        " 'dicomai[sftp]'.\n"
    )
