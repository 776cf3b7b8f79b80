"""A node between a modality and a PACS that sends everything back: all of it is there, once, and nothing goes round."""

from pathlib import Path
from typing import Any

import pydicom
import pytest

from tests.acceptance import tools
from tests.acceptance.node import node
from tests.acceptance.orthanc import orthanc
from tests.acceptance.test_loop import SEND_ALL_BACK, calm
from tests.dimse import free_port
from tests.rejected import rejection_note
from tests.synthetic import write

pytestmark = pytest.mark.timeout(300)


def test_the_pacs_gets_all_of_it_once_and_the_study_of_nobody_goes_elsewhere(
    tmp_path: Path, demo_study: tuple[Path, ...]
) -> None:
    (tmp_path / "all.lua").write_text(SEND_ALL_BACK, encoding="utf-8")
    images = [pydicom.dcmread(path) for path in demo_study]
    document = write([rejection_note(images, "113000")], tmp_path / "document")
    port, elsewhere = free_port(), tmp_path / "elsewhere"
    destinations: list[dict[str, Any]] = [
        {"name": "pacs", "type": "dicom", "ae_title": "PACS", "host": "127.0.0.1", "port": port, "verify": "find"},
        {"name": "elsewhere", "type": "folder", "path": str(elsewhere)},
    ]
    forwards: list[dict[str, Any]] = [
        {"name": "all", "destinations": ["pacs"]},
        {"name": "some", "destinations": ["elsewhere"], "deidentify": "basic", "match": {"Modality": "MR"}},
    ]
    with node(tmp_path / "node", destinations=destinations, forwards=forwards) as one, orthanc(
        tmp_path / "pacs", dicom_port=port, LuaScripts=[str(tmp_path / "all.lua")],
        modalities={"DICOMAI": ("DICOMAI", "127.0.0.1", one.port)},
    ) as pacs:  # fmt: skip
        assert "forward some sends 20 on to elsewhere, de-identified" in one.cli(
            "routes", "explain", str(demo_study[0].parent)
        )
        one.start()
        assert tools.dcmsend(one.port, *demo_study, *document, called="DICOMAI").returncode == 0
        pacs.wait_for(len(demo_study) + 1)
        one.wait_for(lambda entries: len([e for e in entries if e.kind == "delivery"]) == 3)
        calm(one)
        assert pacs.arrivals() == len(demo_study) + 1
        assert sorted((item["kind"], item["route"], item["state"]) for item in one.worklist()) == [
            ("delivery", "all", "COMPLETED"), ("delivery", "all", "COMPLETED"), ("delivery", "some", "COMPLETED"),
            ("forward", "all", "COMPLETED"), ("forward", "all", "COMPLETED"), ("forward", "some", "COMPLETED"),
            ("series", "", "NOT ROUTED"),  # the document: nothing can be run on it
        ]  # fmt: skip
        assert {ds.SOPInstanceUID: ds.PixelData for ds in pacs.datasets(Modality="MR")} == {
            ds.SOPInstanceUID: ds.PixelData for ds in images
        }
        nameless = [pydicom.dcmread(path) for path in elsewhere.rglob("*.dcm")]
        assert len(nameless) == len(images)
        assert {str(ds.PatientID) for ds in nameless}.isdisjoint(str(ds.PatientID) for ds in images)
        one.stop()
