"""Whether a real Orthanc has what it was sent, by C-FIND and by storage commitment."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pydicom
import pytest

from dicomai.config import DicomDestination, TlsSettings
from dicomai.database.commitments_asked import AskedCommitments
from dicomai.database.tables import AskedCommitment
from dicomai.destinations import Accepted, Outgoing
from dicomai.destinations.dimse import DimseDestination
from dicomai.destinations.dimse.association import Peer
from dicomai.destinations.dimse.find import Place, finding
from dicomai.receiver.commitment_reports import CommitmentReports
from dicomai.workitem import State
from tests.acceptance.orthanc import orthanc
from tests.archive import SEG, analysed, delivery
from tests.beds import Bed
from tests.dimse import HOST, node, wait_until


def test_orthanc_shows_what_it_has_and_not_what_it_lost(tmp_path: Path, demo_study: tuple[Path, ...]) -> None:
    objects = []
    for path in demo_study[:5]:  # one list shows them all
        meta = pydicom.dcmread(path, stop_before_pixels=True).file_meta
        objects.append(
            Outgoing(str(meta.MediaStorageSOPClassUID), str(meta.MediaStorageSOPInstanceUID), partial(path.open, "rb"))
        )
    with orthanc(tmp_path / "pacs", modalities={"DICOMAI": ("DICOMAI", "127.0.0.1", 104)}) as pacs:
        entry = DicomDestination(
            type="dicom", name="pacs", ae_title=pacs.ae_title, host="127.0.0.1", port=pacs.dicom_port, verify="find"
        )
        destination = DimseDestination(entry, calling_ae="DICOMAI", timeout=10.0)
        destination.reach()
        assert set(destination.whereabouts(objects).values()) == {None}
        taken: list[Outgoing] = []
        destination.send(objects, lambda sent, *_: taken.append(sent))
        assert taken == objects
        assert set(destination.whereabouts(objects).values()) == {""}
        with finding(Peer(entry, "DICOMAI", 10.0, TlsSettings())) as finder:
            here = Place.of(objects[0])
            assert finder.whereabouts([here]) == {here.sop_instance_uid: ""}
            study, series = here.study_instance_uid, here.series_instance_uid
            assert [finder.lacks(study, series, count) for count in (5, 6)] == [False, True]
            assert finder.lacks(study, "1.2.3", 1)
            strange = Place("SOMEBODY ELSE", here.study_instance_uid, here.series_instance_uid, here.sop_instance_uid)
            assert finder.whereabouts([strange]) == {here.sop_instance_uid: "filed under another PatientID"}
            elsewhere = Place(here.patient_id, "1.2.3", "1.2.4", here.sop_instance_uid)
            assert finder.whereabouts([elsewhere]) == {here.sop_instance_uid: "filed under another StudyInstanceUID"}
        (lost,) = pacs.instances(SOPInstanceUID=objects[1].sop_instance_uid)
        pacs.request(f"/instances/{lost}", method="DELETE")
        where = destination.whereabouts(objects)
        assert [o for o in objects if where[o.sop_instance_uid] is None] == [objects[1]]


def test_orthanc_commits_what_it_has_and_gets_again_what_it_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed = Bed(tmp_path, f"sqlite:///{tmp_path / 'worklist.db'}")
    analysed(bed)
    with (
        node(services=[CommitmentReports(AskedCommitments(bed.database))]) as hearing,
        orthanc(tmp_path / "pacs", modalities={"DICOMAI": ("DICOMAI", HOST, hearing.port)}) as pacs,
    ):
        entry = DicomDestination(
            type="dicom", name="pacs", ae_title=pacs.ae_title, host=HOST, port=pacs.dicom_port, commitment=True
        )
        destination = DimseDestination(entry, calling_ae="DICOMAI", timeout=10.0)
        lane, send = bed.delivery(destination), destination.send

        def send_and_lose(objects: Sequence[Outgoing], accepted: Accepted) -> None:
            send(objects, accepted)
            monkeypatch.undo()
            (lost,) = pacs.instances(SOPClassUID=SEG)
            pacs.request(f"/instances/{lost}", method="DELETE")

        monkeypatch.setattr(destination, "send", send_and_lose)

        def is_reported(number: int) -> bool:
            rows = bed.rows(AskedCommitment)
            return len(rows) == number and rows[-1].state != "OPEN"

        lane.step()
        wait_until(lambda: is_reported(1), 20)
        if bed.rows(AskedCommitment)[0].state == "REPORTED":  # after the step, by a call to our port
            lane.step()
        assert "does not commit" in delivery(bed).reason
        assert "(Failure Reason 0112)" in delivery(bed).reason
        assert delivery(bed).state == State.IN_PROGRESS
        bed.turn(60)
        lane.step()
        wait_until(lambda: is_reported(2), 20)
        if delivery(bed).state == State.IN_PROGRESS:
            lane.step()
        assert delivery(bed).state == State.COMPLETED
        assert len(pacs.instances()) == 2
    bed.close()
