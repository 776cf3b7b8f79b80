"""A series is complete when its source says so: a real node, Orthanc that is asked for counts, a modality's MPPS."""

from collections.abc import Sequence
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, generate_uid

from tests import synthetic
from tests.acceptance.node import node
from tests.acceptance.orthanc import orthanc
from tests.dimse import HOST, associate, free_port, send_file

QUIET = 300.0
STEP = "1.2.840.10008.3.1.2.3.3"


def test_a_count_at_orthanc_and_a_procedure_step_end_a_wait_of_five_minutes(tmp_path: Path) -> None:
    port = free_port()
    in_pacs = synthetic.write(synthetic.series(modality="CT", shape=(5, 8, 8)), tmp_path / "in-pacs")
    at_modality = synthetic.series(modality="MR", shape=(5, 8, 8), study_uid=generate_uid())
    files = synthetic.write(at_modality, tmp_path / "at-modality")
    source = {"name": "pacs", "ae_title": "PACS", "host": HOST, "port": port, "counts": True}
    receiver = {"quiet_period": QUIET, "procedure_steps": True}
    with (
        node(tmp_path / "node", receiver=receiver, sources=[source]) as one,
        orthanc(tmp_path / "pacs", dicom_port=port, modalities={"NODE": ("DICOMAI", HOST, one.port)}) as pacs,
    ):
        one.start("--only", "receiver,planner")
        pacs.upload(*in_pacs)
        assert pacs.send("NODE")["FailedInstancesCount"] == 0
        for path in files[:4]:
            assert send_file(one.port, path) == 0x0000
        performed(one.port, at_modality)
        one.wait_for(lambda entries: "Waits for 1 of 5" in " ".join(entry.reason for entry in entries), 10)
        assert send_file(one.port, files[4]) == 0x0000
        one.wait_for(lambda entries: [entry.state for entry in entries] == ["NOT ROUTED"] * 2, 30)
        one.stop()


def performed(port: int, images: Sequence[Dataset]) -> None:
    """Begin and end a procedure step that made these images."""
    uid = generate_uid()
    begin, scheduled, end, series = Dataset(), Dataset(), Dataset(), Dataset()
    scheduled.StudyInstanceUID = images[0].StudyInstanceUID
    begin.ScheduledStepAttributesSequence = [scheduled]
    begin.PerformedProcedureStepID = "1"
    begin.PerformedStationAETitle = "CT01"
    begin.PerformedProcedureStepStartDate, begin.PerformedProcedureStepStartTime = "20260101", "120000"
    begin.PerformedProcedureStepStatus, begin.Modality = "IN PROGRESS", "MR"
    series.SeriesInstanceUID = images[0].SeriesInstanceUID
    series.ReferencedImageSequence = []
    for image in images:
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
        series.ReferencedImageSequence.append(reference)
    end.PerformedProcedureStepStatus, end.PerformedSeriesSequence = "COMPLETED", [series]
    with associate(port, [(STEP, [ImplicitVRLittleEndian])]) as assoc:
        assert assoc.send_n_create(begin, STEP, uid)[0].Status == 0x0000
        assert assoc.send_n_set(end, STEP, uid)[0].Status == 0x0000
