"""What cannot be analysed: it ends in a state and a sentence on the worklist, nothing of it reaches the PACS."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import JPEG2000Lossless, generate_uid

from tests import synthetic
from tests.acceptance import tools
from tests.acceptance.node import Node, node
from tests.acceptance.orthanc import Orthanc, orthanc
from tests.dimse import associate, data_set_of, store

pytestmark = pytest.mark.timeout(300)

# A PACS administrator's: one route asks for T1, one for PD; one is wrong, and sends CT to a model for MR.
ROUTES: tuple[dict[str, Any], ...] = (
    {"name": "t1", "match": {"Modality": "MR", "SeriesDescription": ".*T1.*"}, "destinations": ["pacs"]},
    {
        "name": "pd", "match": {"SeriesDescription": "FSE PD.*"}, "outside_validated": "report",
        "destinations": ["pacs"],
    },
    {"name": "ct", "match": {"Modality": "CT"}, "destinations": ["pacs"]},
)  # fmt: skip

PERSON = {"PatientName": "Quillfeather^Zebulon", "PatientBirthDate": "19310217", "AccessionNumber": "ACC-QUILL"}
JAPANESE = "Yamada^Tarou=山田^太郎=やまだ^たろう"
T1 = {"modality": "MR", "shape": (12, 32, 32), "RepetitionTime": "500", "EchoTime": "15"}


@dataclass(frozen=True)
class Case:
    """A series that cannot be analysed.

    Attributes:
        name: its SeriesDescription.
        state: in which it ends.
        sentence: words of the reason.
        make: makes the series.
    """

    name: str
    state: str
    sentence: tuple[str, ...]
    make: Callable[[str], Sequence[FileDataset]]


def plain(name: str, **changes: Any) -> list[FileDataset]:
    return synthetic.series(**{**T1, **PERSON, "SeriesDescription": name, **changes})


def cut_short(name: str) -> list[FileDataset]:
    """The fifth slice has half its pixels, and is well-formed otherwise."""
    made = plain(name)
    made[4].PixelData = made[4].PixelData[: len(made[4].PixelData) // 2]
    return made


def broken_codestream(name: str) -> list[FileDataset]:
    """The fifth slice's JPEG 2000 codestream ends in the middle."""
    made = plain(name)
    for number, ds in enumerate(made):
        ds.compress(JPEG2000Lossless, generate_instance_uid=False)
        stream = get_frame(ds.PixelData, 0, number_of_frames=1)
        if number == 4:
            ds.PixelData = encapsulate([stream[: len(stream) // 3]])
    return made


def two_patients(name: str) -> list[FileDataset]:
    return plain(name, PatientID=lambda z: "A" if z < 6 else "B")


CASES = (
    Case("SAG T2", "NOT ROUTED", ("No route takes it", "SeriesDescription is 'SAG T2', not '.*T1.*'"), plain),
    Case("T1 scout", "NOT ROUTED", ("excluded by 'LOCALIZER|DERIVED|SECONDARY'",),
         lambda name: plain(name, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])),
    Case("HEAD", "CANCELED", ("brain_extraction takes MR, this series is CT",),
         lambda name: plain(name, modality="CT", RepetitionTime=None, EchoTime=None)),
    Case("T1 one slice missing", "CANCELED", ("A slice is missing between 28.00 mm", "32.00 mm"),
         lambda name: plain(name, positions=[2.0 * z for z in range(13) if z != 5])),
    Case("T1 long TR", "CANCELED", ("validated", 'outside_validated = "report"'),
         lambda name: plain(name, RepetitionTime="4000", EchoTime="90")),
    Case("T1 too few", "CANCELED", ("5 where at least 10",), lambda name: plain(name, shape=(5, 32, 32))),
    Case("T1 cut short", "CANCELED", ("cannot be decoded", "1024 vs 2048 bytes"), cut_short),
    Case("T1 broken codestream", "CANCELED", ("cannot be decoded (JPEG 2000", "send it again"), broken_codestream),
    Case("T1 two patients", "SCHEDULED (held)", ("disagree in PatientID",), two_patients),
    Case("T1 nothing in it", "CANCELED", ("no head to be found",),
         lambda name: plain(name, array=np.zeros((12, 32, 32), "u2"))),
)  # fmt: skip


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("pacs")) as running:
        yield running


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, weights: Path, pacs: Orthanc) -> Iterator[Node]:
    """A node to which all cases were sent, and for which all have come to an end."""
    entry = {"name": "pacs", "type": "dicom", "ae_title": "PACS", "host": "127.0.0.1", "port": pacs.dicom_port}
    with node(tmp_path_factory.mktemp("node"), weights, routes=ROUTES, destinations=[entry]) as one:
        one.start()
        for case in CASES:
            paths = synthetic.write(case.make(case.name), tmp_path_factory.mktemp("case"))
            sent = tools.dcmsend(one.port, *paths)
            assert f"with status SUCCESS  : {len(paths)}" in sent.stdout, sent.stdout
        ends = {case.state for case in CASES}
        one.wait_for(lambda entries: len(entries) == len(CASES) and {e.state for e in entries} <= ends, 150)
        yield one
        one.stop()


@pytest.fixture(scope="module")
def listed(running: Node) -> dict[str, dict[str, Any]]:
    """The worklist, by series description, before anything else is sent."""
    return {item["series"].partition(" ")[2]: item for item in running.worklist()}


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_worklist_gives_a_state_and_a_sentence(case: Case, listed: dict[str, dict[str, Any]]) -> None:
    item = listed[case.name]
    assert item["state"] == case.state, item["reason"]
    for words in case.sentence:
        assert words in item["reason"], item["reason"]
    assert item["reason"].endswith(".")
    assert "Quillfeather" not in item["reason"]


@pytest.mark.usefixtures("listed")
def test_garbage_is_refused_on_the_wire(running: Node) -> None:
    image, syntax = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.1.2.1"
    before = running.worklist()
    with associate(running.port, [(image, [syntax])], calling_ae="MR01") as assoc:
        for data in (b"\0" * 4000, b"not DICOM at all, Quillfeather^Zebulon " * 100, bytes(range(256)) * 20):
            answer = store(assoc, image, generate_uid(), data)
            assert answer.Status == 0xC000
            assert answer.ErrorComment == "Data set cannot be read, or lacks a UID"
    assert running.worklist() == before
    assert list((running.storage / "incoming" / "receiver").iterdir()) == []


@pytest.mark.usefixtures("listed")
def test_an_instance_that_ends_in_the_middle_of_its_pixels_is_not_analysed(running: Node, tmp_path: Path) -> None:
    paths = synthetic.write(plain("T1 torn off"), tmp_path)
    contexts = [("1.2.840.10008.5.1.4.1.1.4", ["1.2.840.10008.1.2.1"])]
    with associate(running.port, contexts, calling_ae="MR01") as assoc:
        for number, path in enumerate(paths):
            sop_class_uid, sop_instance_uid, _, data = data_set_of(path)
            torn = data[:-1000] if number == 4 else data
            assert store(assoc, sop_class_uid, sop_instance_uid, torn).Status == 0x0000, "it is kept as it came"
    running.wait_for(lambda entries: [e for e in entries if "torn off" in e.series and e.state == "CANCELED"])
    (item,) = [item for item in running.worklist() if "torn off" in item["series"]]
    assert "1048 vs 2048 bytes" in item["reason"]


@pytest.mark.usefixtures("listed")
def test_the_node_goes_on_and_only_the_good_study_reaches_the_pacs(
    running: Node, pacs: Orthanc, demo_study: tuple[Path, ...], tmp_path: Path
) -> None:
    assert pacs.arrivals() == 0
    files = renamed(demo_study, tmp_path)
    assert tools.dcmsend(running.port, *files[:9], *files[10:]).returncode == 0
    running.wait_for(lambda entries: [e for e in entries if "FSE PD" in e.series and e.state == "CANCELED"])
    (item,) = [item for item in running.worklist() if "FSE PD" in item["series"]]
    assert "missing" in item["reason"]
    assert pacs.arrivals() == 0

    assert tools.dcmsend(running.port, files[9]).returncode == 0  # it comes after all
    running.wait_for(lambda entries: [e.state for e in entries if e.kind == "delivery"] == ["COMPLETED"])
    assert pacs.arrivals() == 2
    for ds in pacs.datasets():
        assert ds.PatientName == JAPANESE
        assert ds.PatientID == "PAT-YAMADA"
    (tmp_path / "sr.dcm").write_bytes(pacs.file(pacs.instances(Modality="SR")[0]))
    assert tools.volume_of(tmp_path / "sr.dcm") == pytest.approx(1290, rel=0.03)
    assert "ended by itself" not in running.log, "no process of the node has minded any of this"
    running.refuse_names()


def renamed(files: Sequence[Path], folder: Path) -> list[Path]:
    """Give the images of the packaged study UIDs of their own and a patient with a name in Japanese."""
    study, series = generate_uid(), generate_uid()
    made = []
    for path in files:
        ds = pydicom.dcmread(path)
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.PatientName, ds.PatientID, ds.PatientBirthDate = JAPANESE, "PAT-YAMADA", "19580704"
        made.append(folder / path.name)
        ds.save_as(made[-1])
    return made
