"""The test bed itself: a real Orthanc that receives, answers and sends."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.acceptance.orthanc import orthanc, require
from tests.dimse import free_port


def test_it_receives_by_c_store_and_keeps_what_it_got(tmp_path: Path, demo_study: tuple[Path, ...]) -> None:
    dcmsend = require("dcmsend", "dcmtk")
    with orthanc(tmp_path / "pacs") as pacs:
        subprocess.run(
            [dcmsend, "-aec", pacs.ae_title, "127.0.0.1", str(pacs.dicom_port), *map(str, demo_study[:3])],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        assert len(pacs.wait_for(3, Modality="MR")) == 3
        assert pacs.instances(Modality="SEG") == ()
        assert pacs.arrivals() == 3
        numbers = {int(ds.InstanceNumber) for ds in pacs.datasets()}
        assert numbers == {1, 2, 3}
        assert len(json.loads(pacs.request("/dicom-web/studies"))) == 1
    with orthanc(tmp_path / "pacs") as pacs:
        assert len(pacs.instances()) == 3, "started again, it has forgotten"


def test_it_sends_what_it_has_to_another(tmp_path: Path, demo_study: tuple[Path, ...]) -> None:
    port = free_port()
    with (
        orthanc(tmp_path / "other", ae_title="OTHER", dicom_port=port) as other,
        orthanc(tmp_path / "pacs", modalities={"OTHER": ("OTHER", "127.0.0.1", port)}) as pacs,
    ):
        pacs.upload(*demo_study[:2])
        assert pacs.send("OTHER")["FailedInstancesCount"] == 0
        sent = {ds.SOPInstanceUID: ds.PixelData for ds in pacs.datasets()}
        assert {ds.SOPInstanceUID: ds.PixelData for ds in other.datasets()} == sent
    assert other.process.poll() is not None


def test_a_missing_program_is_a_failure() -> None:
    with pytest.raises(pytest.fail.Exception, match="apt-get install nothing"):
        require("no-such-program", "nothing")
