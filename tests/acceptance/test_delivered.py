"""Whether a real Orthanc has what it was sent, by C-FIND."""

from pathlib import Path

import pydicom

from dicomai.config import DicomDestination, TlsSettings
from dicomai.destinations import Outgoing
from dicomai.destinations.dimse import DimseDestination
from dicomai.destinations.dimse.association import Peer
from dicomai.destinations.dimse.find import Place, finding
from tests.acceptance.orthanc import orthanc


def test_orthanc_shows_what_it_has_and_not_what_it_lost(tmp_path: Path, demo_study: tuple[Path, ...]) -> None:
    objects = []
    for path in demo_study[:3]:
        meta = pydicom.dcmread(path, stop_before_pixels=True).file_meta
        objects.append(
            Outgoing(
                str(meta.MediaStorageSOPClassUID),
                str(meta.MediaStorageSOPInstanceUID),
                str(meta.TransferSyntaxUID),
                path.read_bytes(),
            )
        )
    with orthanc(tmp_path / "pacs", modalities={"DICOMAI": ("DICOMAI", "127.0.0.1", 104)}) as pacs:
        entry = DicomDestination(
            type="dicom", name="pacs", ae_title=pacs.ae_title, host="127.0.0.1", port=pacs.dicom_port, verify="find"
        )
        destination = DimseDestination(entry, calling_ae="DICOMAI", timeout=10.0)
        destination.reach()
        assert destination.missing(objects) == objects
        taken: list[Outgoing] = []
        destination.send(objects, lambda sent, *_: taken.append(sent))
        assert taken == objects
        assert destination.missing(objects) == []
        with finding(Peer(entry, "DICOMAI", 10.0, TlsSettings())) as finder:
            here = Place.of(objects[0])
            assert finder.misfiled(here) == ""
            strange = Place("SOMEBODY ELSE", here.study_instance_uid, here.series_instance_uid, here.sop_instance_uid)
            assert finder.misfiled(strange) == "filed under another PatientID"
            elsewhere = Place(here.patient_id, "1.2.3", "1.2.4", here.sop_instance_uid)
            assert finder.misfiled(elsewhere) == "filed under another StudyInstanceUID"
        (lost,) = pacs.instances(SOPInstanceUID=objects[1].sop_instance_uid)
        pacs.request(f"/instances/{lost}", method="DELETE")
        assert destination.missing(objects) == [objects[1]]
