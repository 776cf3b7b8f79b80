"""A real Orthanc as the PACS: its own folder, its own ports, DICOMweb on; ended by its process id.

with orthanc(folder, modalities={"DICOMAI": ("DICOMAI", "127.0.0.1", 11112)}) as pacs:
    ...                            # it receives at 127.0.0.1, port pacs.dicom_port, AE title pacs.ae_title
    pacs.datasets(Modality="SEG")
    pacs.send("DICOMAI")           # and sends all it has back
"""

import contextlib
import io
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import FileDataset

from tests.dimse import free_port

START_SECONDS = 30
_DICOMWEB = (Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so"), Path("/usr/lib/orthanc/libOrthancDicomWeb.so"))


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc."""

    ae_title: str
    dicom_port: int
    http_port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def dicomweb(self) -> str:
        return f"{self.url}/dicom-web"

    def request(self, path: str, body: Any = None, method: str | None = None, timeout: float = 60) -> bytes:
        """Call the REST interface; a body that is not bytes goes as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        call = urllib.request.Request(self.url + path, data=data, method=method)
        with urllib.request.urlopen(call, timeout=timeout) as answer:
            return bytes(answer.read())

    def get(self, path: str) -> Any:
        """Get what the REST interface says under a path."""
        return json.loads(self.request(path))

    def instances(self, **attributes: str) -> tuple[str, ...]:
        """Give Orthanc's ids of the instances that have these attributes, such as Modality='SEG'; all without any."""
        if not attributes:
            return tuple(self.get("/instances"))
        found = self.request("/tools/find", {"Level": "Instance", "Query": attributes, "CaseSensitive": True})
        return tuple(json.loads(found))

    def file(self, instance: str) -> bytes:
        """Get an instance as the DICOM file that Orthanc keeps, byte for byte."""
        return self.request(f"/instances/{instance}/file")

    def datasets(self, **attributes: str) -> tuple[FileDataset, ...]:
        """Read the instances that have these attributes."""
        return tuple(pydicom.dcmread(io.BytesIO(self.file(instance))) for instance in self.instances(**attributes))

    def arrivals(self) -> int:
        """Count the instances that ever arrived new, also those that were deleted since."""
        changes: list[dict[str, Any]] = []
        while True:
            page = self.get(f"/changes?since={changes[-1]['Seq'] if changes else 0}&limit=1000")
            changes += page["Changes"]
            if page["Done"] or not page["Changes"]:
                return sum(change["ChangeType"] == "NewInstance" for change in changes)

    def upload(self, *paths: Path) -> None:
        """Put files into the archive by HTTP."""
        for path in paths:
            self.request("/instances", path.read_bytes())

    def send(self, modality: str, *instances: str) -> dict[str, Any]:
        """C-STORE instances (all of them unless named) to a modality of the configuration; gives Orthanc's account."""
        body = {"Resources": list(instances or self.instances()), "Synchronous": True}
        answer: dict[str, Any] = json.loads(self.request(f"/modalities/{modality}/store", body, timeout=300))
        return answer

    def wait_for(self, count: int, seconds: float = 120, **attributes: str) -> tuple[str, ...]:
        """Wait until at least so many instances have these attributes.

        Raises:
            TimeoutError: they did not come.
        """
        deadline = time.monotonic() + seconds
        while len(found := self.instances(**attributes)) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(found)} of {count} instances with {attributes} came in {seconds} s")
            time.sleep(0.25)
        return found


@contextlib.contextmanager
def orthanc(
    folder: Path,
    *,
    ae_title: str = "PACS",
    modalities: Mapping[str, tuple[str, str, int]] | None = None,
    dicom_port: int | None = None,
    **settings: Any,
) -> Iterator[Orthanc]:
    """Start Orthanc in a folder and stop it at the end; started again in the same folder it still has its instances.

    Args:
        folder: for its configuration, log, database and instances.
        ae_title: what it is called; it refuses associations to another.
        modalities: name -> (AE title, host, port) of those that it can send to.
        dicom_port: a free one unless given.
        settings: further keys of Orthanc's configuration, such as UnknownSopClassAccepted=False.
    """
    program = require("Orthanc", "orthanc")
    plugin = next((path for path in _DICOMWEB if path.exists()), None)
    if plugin is None:
        pytest.fail("Orthanc's DICOMweb plugin is not installed: apt-get install orthanc-dicomweb")
    folder.mkdir(parents=True, exist_ok=True)
    ports = dicom_port or free_port(), free_port()
    _configure(folder, ae_title, ports, {"Plugins": [str(plugin)], "DicomModalities": modalities or {}, **settings})
    with (folder / "orthanc.log").open("ab") as log:
        process = subprocess.Popen(
            [program, "orthanc.json"],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env={**os.environ, "TCP_NODELAY": "1"},  # otherwise DCMTK waits 40 ms in every message
        )  # fmt: skip
    try:
        pacs = Orthanc(ae_title, *ports, process)
        _wait_until_ready(pacs, folder / "orthanc.log")
        yield pacs
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def require(program: str, package: str) -> str:
    """Find a program; its absence is a failure, not a reason to skip."""
    found = shutil.which(program)
    if found is None:
        pytest.fail(f"{program} is not installed: apt-get install {package}")
    return found


def _configure(folder: Path, ae_title: str, ports: tuple[int, int], more: dict[str, Any]) -> None:
    configuration = {
        "Name": "dicomai acceptance",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "DicomAet": ae_title,
        "DicomPort": ports[0],
        "DicomCheckCalledAet": True,
        "DicomAlwaysAllowEcho": True,
        "DicomAlwaysAllowStore": True,
        "UnknownSopClassAccepted": True,
        "HttpPort": ports[1],
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "StorageCompression": False,
        "OverwriteInstances": False,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        **more,
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration, indent=1), encoding="utf-8")


def _wait_until_ready(pacs: Orthanc, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and pacs.process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            pacs.get("/system")
            return
        time.sleep(0.1)
    pytest.fail(f"Orthanc did not start:\n{log.read_text(errors='replace')[-3000:]}")
