"""Images and results to a real Orthanc that takes Implicit VR Little Endian alone, read back as it keeps them."""

import io
from pathlib import Path

import numpy as np
import pydicom
from pydicom.data import get_testdata_file

from dicomai.config import DicomDestination
from dicomai.destinations import send_files
from tests.acceptance.orthanc import orthanc
from tests.dimse import HOST

FILES = ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "693_J2KI.dcm", "examples_rgb_color.dcm", "liver_1frame.dcm"]


def test_orthanc_keeps_the_pixels_and_the_uids_of_what_was_encoded_anew(
    tmp_path: Path, demo_study: tuple[Path, ...]
) -> None:
    paths = [*(Path(get_testdata_file(name)) for name in FILES), demo_study[0]]
    with orthanc(tmp_path / "pacs", AcceptedTransferSyntaxes=["1.2.840.10008.1.2"]) as pacs:
        entry = DicomDestination(type="dicom", name="pacs", ae_title=pacs.ae_title, host=HOST, port=pacs.dicom_port)
        outcomes = send_files(paths, entry, calling_ae="DICOMAI", timeout=10.0)
        assert {one.path: one.text for one in outcomes} == dict.fromkeys(paths, "sent in Implicit VR Little Endian")
        for path in paths:
            original = pydicom.dcmread(path)
            (number,) = pacs.instances(SOPInstanceUID=str(original.SOPInstanceUID))
            kept = pydicom.dcmread(io.BytesIO(pacs.request(f"/instances/{number}/file")))
            assert kept.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2"
            assert np.array_equal(kept.pixel_array, original.pixel_array), path.name
            assert str(kept.get("PatientName")) == str(original.get("PatientName"))
            for keyword in ("SeriesInstanceUID", "PixelSpacing", "ImagePositionPatient", "RescaleSlope"):
                assert kept.get(keyword) == original.get(keyword)
