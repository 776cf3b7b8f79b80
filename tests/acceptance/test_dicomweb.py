"""DICOMweb of a whole node: Orthanc's plugin and curl as its peers, C-STORE beside it, and an end without warning."""

import json
import socket
import subprocess
import threading
from pathlib import Path

from tests.acceptance.node import node, until
from tests.acceptance.orthanc import orthanc, require
from tests.acceptance.tools import dcmsend
from tests.dimse import HOST, data_set_of, free_port

TOKEN = "acceptance-token-1234"  # noqa: S105  of this test's node alone


def test_orthanc_sends_a_study_and_has_it_again(tmp_path: Path, demo_study: tuple[Path, ...]) -> None:
    port = free_port()
    server = {"Url": f"http://{HOST}:{port}/dicomweb/", "HttpHeaders": {"Authorization": f"Bearer {TOKEN}"}}
    web = {"Enable": True, "Root": "/dicom-web/", "Servers": {"node": server}}
    sent = {uid: data for _, uid, _, data in map(data_set_of, demo_study)}
    with (
        node(tmp_path / "node", console={"port": port, "dicomweb": True, "token": TOKEN}) as ours,
        orthanc(tmp_path / "pacs", DicomWeb=web) as pacs,
    ):
        ours.start("--only", "receiver,planner,console")
        pacs.upload(*demo_study)
        sending = threading.Thread(target=dcmsend, args=(ours.port, *demo_study))
        sending.start()  # the same study by C-STORE at the same time
        (study,) = pacs.get("/studies")
        pacs.request("/dicom-web/servers/node/stow", {"Resources": [study], "Synchronous": True})
        sending.join()
        assert [uid for uid, data in sent.items() if data not in ours.stored(uid)] == []  # dcmsend writes some anew
        until(lambda: not list((ours.storage / "incoming").glob("*/*")), 10)
        ours.wait_for(lambda entries: entries and {entry.state for entry in entries} == {"NOT ROUTED"}, 30)

        uid = pacs.get(f"/studies/{study}")["MainDicomTags"]["StudyInstanceUID"]
        pacs.request(f"/studies/{study}", method="DELETE")
        assert pacs.instances() == ()
        pacs.request("/dicom-web/servers/node/retrieve", {"Resources": [{"Study": uid}], "Synchronous": True})
        assert len(pacs.instances()) == len(sent)
        assert {str(ds.SOPInstanceUID) for ds in pacs.datasets()} == set(sent)

        body = tmp_path / "body"
        head = b"\r\n--cut\r\nContent-Type: application/dicom\r\n\r\n"
        body.write_bytes(b"".join(head + path.read_bytes() for path in demo_study) + b"\r\n--cut--\r\n")
        for framing in ([], ["-H", "Transfer-Encoding: chunked"]):
            done = curl(port, body, *framing, "-H", f"Authorization: Bearer {TOKEN}")
            assert "HTTP/1.1 100 Continue" in done.stderr
            assert len(json.loads(done.stdout)["00081199"]["Value"]) == len(sent)
        done = curl(port, body)
        assert "401 Unauthorized" in done.stderr
        assert "100 Continue" not in done.stderr  # who is refused need not send

        with socket.create_connection((HOST, port), timeout=10) as sock:
            request = f"POST /dicomweb/studies HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {TOKEN}\r\n"
            kind = 'multipart/related; type="application/dicom"; boundary=cut'
            request += f"Content-Type: {kind}\r\nContent-Length: {body.stat().st_size}\r\n\r\n"
            sock.sendall(request.encode() + body.read_bytes()[:50_000])
            until(lambda: list((ours.storage / "incoming" / "console").iterdir()), 10)
            ours.kill()
        ours.start("--only", "receiver,console")
        assert not list((ours.storage / "incoming").glob("*/*"))
        assert "lost_associations=1" in ours.log or '"lost_associations": 1' in ours.log
        assert TOKEN not in ours.log
        ours.stop()


def curl(port: int, body: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kind = 'Content-Type: multipart/related; type="application/dicom"; boundary=cut'
    return subprocess.run(
        [require("curl", "curl"), "-sv", "-H", kind, "-H", "Expect: 100-continue", *arguments,
         "--data-binary", f"@{body}", f"http://{HOST}:{port}/dicomweb/studies"],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
