"""Storage commitment and rejection notes with a real Orthanc as the archive that sends, and a node that is killed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pynetdicom import AE, build_context, evt

from dicomai.receiver.commitment import PUSH_MODEL, PUSH_MODEL_INSTANCE
from tests.acceptance.node import Node, node, until
from tests.acceptance.orthanc import Orthanc, orthanc
from tests.dimse import HOST, associate, free_port
from tests.rejected import rejection_note

IMPLICIT = "1.2.840.10008.1.2"


def asked(pacs: Orthanc, *references: tuple[str, str]) -> str:
    """Have Orthanc ask the node for commitment; gives the path under which it keeps what it was told."""
    body = {"DicomInstances": [list(one) for one in references]}
    answer = json.loads(pacs.request("/modalities/DICOMAI/storage-commitment", body))
    return str(answer["Path"])


def told(pacs: Orthanc, path: str) -> dict[str, Any]:
    until(lambda: pacs.get(path)["Status"] != "Pending", 20, lambda: str(pacs.get(path)))
    answer: dict[str, Any] = pacs.get(path)
    return answer


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, demo_study: tuple[Path, ...]) -> Iterator[tuple[Node, Orthanc]]:
    """A node that has four images from an Orthanc, and work on them that nobody does."""
    folder, port = tmp_path_factory.mktemp("commitment"), free_port()
    source = {"name": "archive", "ae_title": "PACS", "host": HOST, "port": port}
    route = {"name": "pd", "match": {"SeriesDescription": "FSE PD.*"}}
    with node(
        folder / "node", sources=[source], routes=[route], receiver={"commitment": True}, console={"dicomweb": True}
    ) as one:
        one.start("--only", "receiver,planner")
        with orthanc(folder / "pacs", modalities={"DICOMAI": ("DICOMAI", HOST, one.port)}, dicom_port=port) as pacs:
            pacs.upload(*demo_study[:4])
            assert pacs.send("DICOMAI")["FailedInstancesCount"] == 0
            yield one, pacs
        one.stop()


def test_orthanc_is_told_what_is_safe_and_what_is_not(pair: tuple[Node, Orthanc]) -> None:
    one, pacs = pair
    kept = [(str(ds.SOPClassUID), str(ds.SOPInstanceUID)) for ds in pacs.datasets(Modality="MR")]
    answer = told(pacs, asked(pacs, *kept))
    assert answer["Status"] == "Success", one.log
    assert {(i["SOPClassUID"], i["SOPInstanceUID"]) for i in answer["Success"]} == set(kept)
    (path,) = (one.storage / "instances").glob(f"*/*/{kept[0][1]}.*.dcm")
    data = path.read_bytes()
    path.write_bytes(data[:-2])
    answer = told(pacs, asked(pacs, *kept))
    path.write_bytes(data)
    assert answer["Status"] == "Failure", one.log
    assert {i["SOPInstanceUID"] for i in answer["Success"]} == {uid for _, uid in kept[1:]}
    assert {i["SOPInstanceUID"]: i["FailureReason"] for i in answer["Failures"]} == {kept[0][1]: 0x0110}


def test_a_note_that_the_archive_sends_ends_the_work(
    pair: tuple[Node, Orthanc], tmp_path: Path, demo_study: tuple[Path, ...]
) -> None:
    one, pacs = pair
    one.wait_for(lambda entries: [e.state for e in entries] == ["SCHEDULED"], 30)
    note = rejection_note([pydicom.dcmread(path) for path in demo_study[:4]], "113038")
    note.save_as(tmp_path / "note.dcm")
    pacs.upload(tmp_path / "note.dcm")
    pacs.send("DICOMAI", *pacs.instances(Modality="KO"))
    one.wait_for(lambda entries: "CANCELED" in [e.state for e in entries], 20)
    (item,) = one.entries("inference")
    assert "(113038, Incorrect Modality Worklist Entry)" in item.reason


def test_killed_before_it_could_report_it_reports_after_its_restart(
    tmp_path: Path, demo_study: tuple[Path, ...]
) -> None:
    port = free_port()
    source = {"name": "ct", "ae_title": "CT01", "host": HOST, "port": port}
    image = pydicom.dcmread(demo_study[0])
    ds = pydicom.Dataset()
    ds.TransactionUID, ds.ReferencedSOPSequence = "1.2.3.9", [pydicom.Dataset()]
    ds.ReferencedSOPSequence[0].ReferencedSOPClassUID = image.SOPClassUID
    ds.ReferencedSOPSequence[0].ReferencedSOPInstanceUID = image.SOPInstanceUID
    with node(tmp_path / "node", sources=[source], receiver={"commitment": True}, console={"dicomweb": True}) as one:
        one.start("--only", "receiver")
        with associate(one.port, [(str(image.SOPClassUID), [str(image.file_meta.TransferSyntaxUID)])]) as assoc:
            assert assoc.send_c_store(image).Status == 0x0000
        with associate(one.port, [(PUSH_MODEL, [IMPLICIT])]) as assoc:
            status, _ = assoc.send_n_action(ds, 1, PUSH_MODEL, PUSH_MODEL_INSTANCE)
            one.kill()
            assert status.Status == 0x0000
        reports: list[tuple[int, pydicom.Dataset]] = []

        def hear(event: evt.Event) -> Any:
            reports.append((event.event_type, event.event_information))
            return 0x0000, None

        ae = AE(ae_title="CT01")
        context = build_context(PUSH_MODEL, [IMPLICIT])
        context.scu_role, context.scp_role = False, True
        ae.supported_contexts = [context]
        server = ae.start_server((HOST, port), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, hear)])
        try:
            assert not reports
            one.start("--only", "receiver")
            until(lambda: reports, 20, lambda: one.log)
        finally:
            server.shutdown()
        one.stop()
    assert [(kind, str(ds.TransactionUID), len(ds.ReferencedSOPSequence)) for kind, ds in reports] == [
        (1, "1.2.3.9", 1)
    ]
