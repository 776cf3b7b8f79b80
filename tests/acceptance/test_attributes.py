"""Whether a real Orthanc is understood when it is asked whose a study is, by C-FIND and by QIDO-RS."""

import contextlib
from pathlib import Path

from dicomai.config import DicomDestination, DicomwebDestination
from dicomai.destinations import open_destination
from dicomai.workitem import State
from tests.acceptance.orthanc import orthanc
from tests.beds import Bed, route
from tests.dimse import HOST
from tests.synthetic import encode, series


def test_a_result_waits_while_orthanc_shows_its_study_under_another_patient(tmp_path: Path) -> None:
    images = series(
        modality="MR", shape=(2, 12, 16), SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg", PatientID="P0"
    )
    with (
        contextlib.closing(Bed(tmp_path, f"sqlite:///{tmp_path / 'worklist.db'}")) as bed,
        orthanc(tmp_path / "pacs", modalities={"DICOMAI": ("DICOMAI", HOST, 104)}) as pacs,
    ):
        bed.take(images)
        bed.plan(route(destinations=("pacs", "web")))
        assert bed.worker().step()
        entries = (
            DicomDestination(
                type="dicom", name="pacs", ae_title="PACS", host=HOST, port=pacs.dicom_port, check_patient=True
            ),
            DicomwebDestination(type="dicomweb", name="web", url=pacs.dicomweb, check_patient=True),
        )
        lanes = [bed.delivery(open_destination(entry, calling_ae="DICOMAI", timeout=10.0)) for entry in entries]

        def files(patient_id: str) -> None:
            for ds in images:
                ds.PatientID = patient_id
                pacs.request("/instances", encode(ds))

        files("SOMEBODY")
        for lane in lanes:
            assert lane.step()
        assert [" PatientID differ" in row.hold for row in bed.items("delivery")] == [True, True]
        files("P0")  # as well: the study is split over two patients
        bed.turn(601)
        for lane in lanes:
            assert lane.step()
        assert [" PatientID differ" in row.hold for row in bed.items("delivery")] == [True, True]
        (other,) = [one for one in pacs.get("/patients?expand") if one["MainDicomTags"]["PatientID"] == "SOMEBODY"]
        pacs.request(f"/patients/{other['ID']}", method="DELETE")
        bed.turn(1300)  # it is asked ever less often
        for lane in lanes:
            assert lane.step()
        assert [(row.state, row.hold) for row in bed.items("delivery")] == [(State.COMPLETED, "")] * 2
        assert len(pacs.instances(Modality="SEG")) == 1
