"""A real server of S3, SeaweedFS: its own folder and ports, TLS with certificates; ended by its process id."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dicomai.config import S3Destination, TlsSettings
from dicomai.destinations import open_destination
from dicomai.destinations.s3 import S3
from dicomai.errors import DicomaiError
from tests.certificates import Authority
from tests.dimse import HOST, free_port, wait_until

BUCKET = "results"
ADMINISTRATOR = {"access_key": "ADMINISTRATOR", "secret_key": "of all buckets"}


@dataclass(frozen=True)
class Seaweedfs:
    """A running server with one bucket, in which one key may write and another only look.

    Attributes:
        folder: of all its files.
        port: on this machine.
        tls: by which it is called.
    """

    folder: Path
    port: int
    tls: TlsSettings

    def entry(self, **keys: Any) -> S3Destination:
        """Describe it in the configuration."""
        described = {
            "url": f"https://{HOST}:{self.port}",
            "bucket": BUCKET,
            "access_key": "NODE",
            "secret_key": "of/the+node",
        }
        return S3Destination(type="s3", name="bucket", **(described | keys))

    def destination(self, **keys: Any) -> S3:
        """Make the destination that an entry describes."""
        made = open_destination(self.entry(**keys), calling_ae="X", timeout=10.0, tls=self.tls)
        assert isinstance(made, S3)
        return made

    def objects(self, keys: list[str]) -> dict[str, bytes | None]:
        """Read objects as the administrator; None where there is none."""
        return {key: self._read(key) for key in keys}

    def _read(self, key: str) -> bytes | None:
        blocks: list[bytes] = []
        reply = self.destination(**ADMINISTRATOR)._call("GET", f"/{BUCKET}/{key}", sink=blocks.append)
        return b"".join(blocks) if reply.is_success else None


@contextlib.contextmanager
def seaweedfs(folder: Path) -> Iterator[Seaweedfs]:
    """Start a server in a folder, and stop it at the end."""
    program = Path(sys.executable).with_name("weed")
    if not program.exists():
        pytest.fail("weed is not installed: make setup")
    authority = Authority(folder / "authority")
    pair = authority.issue("server")
    _identities(folder / "identities.json")
    names = ("master", "volume", "filer", "s3")
    ports = {name: (free_port(), free_port()) for name in names}
    options = {
        "dir": folder, "ip": HOST, "ip.bind": HOST, "master.telemetry": "false", "s3.iam": "false",
        "master.volumeSizeLimitMB": 64, "volume.max": 50, "volume.minFreeSpace": 0,
        "filer.localSocket": folder / "filer", "s3.localSocket": folder / "s3", "s3.config": folder / "identities.json",
        "s3.port.iceberg": 0, "s3.port.lance": 0, "s3.port.https": free_port(),
        "s3.cert.file": pair.certificate, "s3.key.file": pair.key, "s3.cacert.file": authority.certificate,
        "s3.tlsVerifyClientCert": "true",
    }  # fmt: skip
    for name, (port, other) in ports.items():
        options |= {f"{name}.port": port, f"{name}.port.grpc": other}
    command = [program, "-logtostderr=true", "server", "-filer", "-s3", *(f"-{k}={v}" for k, v in options.items())]
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    server = Seaweedfs(folder, int(options["s3.port.https"]), authority.settings(pair))
    try:
        wait_until(lambda: process.poll() is not None or _has_bucket(server), 30)
        assert process.poll() is None, (folder / "weed.log").read_text(encoding="utf-8")
        yield server
    finally:
        process.kill()  # told to end, it waits some seconds for others
        process.wait(20)


def _identities(file: Path) -> None:
    def who(name: str, key: str, secret: str, *actions: str) -> dict[str, Any]:
        return {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}

    of = [f"{action}:{BUCKET}" for action in ("Read", "List", "Write")]
    identities = [
        who("administrator", *ADMINISTRATOR.values(), "Admin", "Read", "List", "Write"),
        who("node", "NODE", "of/the+node", *of),
        who("reader", "READER", "of the reader", *of[:2]),
    ]
    file.write_text(json.dumps({"identities": identities}), encoding="utf-8")


def _has_bucket(server: Seaweedfs) -> bool:
    try:
        return server.destination(**ADMINISTRATOR)._call("PUT", f"/{BUCKET}").is_success
    except DicomaiError:
        return False
