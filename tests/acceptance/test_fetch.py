"""`dicomai fetch` against a real PACS: by C-MOVE through a running node, by C-GET without one, and on from a break."""

import io
import json
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from tests.acceptance.node import Node, node, until
from tests.acceptance.orthanc import Orthanc, orthanc
from tests.beds import parts_of
from tests.dimse import HOST, free_port
from tests.synthetic import series, write

IMAGES = 250
COMPRESSED = [Path(str(get_testdata_file(name))) for name in ("JPEG2000.dcm", "MR_small_RLE.dcm", "JPEG-lossy.dcm")]


@pytest.fixture(scope="module")
def ports() -> tuple[int, int]:
    """Of the node and of the PACS, which have to know each other."""
    return free_port(), free_port()


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory, ports: tuple[int, int]) -> Iterator[Orthanc]:
    """A PACS with three studies: two of these days, the first one long and with a second series, one compressed."""
    folder = tmp_path_factory.mktemp("pacs")
    study = generate_uid()
    long = series(shape=(IMAGES, 16, 16), StudyInstanceUID=study, StudyDate="20260103", AccessionNumber="A1")
    short = series(
        modality="MR", shape=(4, 16, 16), StudyInstanceUID=study, StudyDate="20260103", AccessionNumber="A1",
        SeriesDescription="T1 MPRAGE",
    )  # fmt: skip
    other = series(shape=(6, 16, 16), StudyDate="20260131", AccessionNumber="A2")
    files = write([*long, *short, *other], folder / "studies")
    modalities = {"DICOMAI": ("DICOMAI", HOST, ports[0])}
    with orthanc(
        folder / "orthanc",
        modalities=modalities,
        dicom_port=ports[1],
        DicomAlwaysAllowFind=True,
        DicomAlwaysAllowMove=True,
    ) as running:
        running.upload(*files, *COMPRESSED)
        yield running


@pytest.fixture
def site(tmp_path: Path, ports: tuple[int, int], pacs: Orthanc) -> Iterator[Node]:
    """A node that knows the PACS, not started."""
    with node(tmp_path / "node", node={"port": ports[0]}) as ready:
        ready.port = ports[0]
        ready.config.write_text(
            ready.config.read_text()
            + f'[[source]]\nname = "pacs"\nae_title = "PACS"\nhost = "{HOST}"\nport = {pacs.dicom_port}\ntimeout = 20\n'
        )
        yield ready


def kept(node: Node) -> dict[str, bytes]:
    """Every file that the node keeps: the bytes of its data set, by SOP Instance UID."""
    files = (node.storage / "instances").rglob("*.dcm")
    return {path.name.rsplit(".", 2)[0]: parts_of(path.read_bytes())[1] for path in files}


def held(pacs: Orthanc, **attributes: str) -> dict[str, bytes]:
    """What the PACS has, in the same way."""
    found = {}
    for instance in pacs.instances(**attributes):
        head, data = parts_of(pacs.file(instance))
        found[str(pydicom.dcmread(io.BytesIO(head)).file_meta.MediaStorageSOPInstanceUID)] = data
    return found


def fetched(node: Node, *arguments: str, status: int = 0) -> list[dict[str, Any]]:
    """Run `dicomai fetch pacs`; gives what it says of each series."""
    told: list[dict[str, Any]] = json.loads(node.cli("fetch", "pacs", *arguments, "--json", status=status))["series"]
    return told


def interrupt(node: Node, *arguments: str, after: int) -> None:
    """Run `dicomai fetch pacs`, and press Ctrl-C when so many instances are here."""
    before = len(kept(node))
    command = [sys.executable, "-m", "dicomai", "fetch", "pacs", *arguments, "--config", str(node.config)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: len(kept(node)) - before >= after or process.poll() is not None, 30)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert said == "Interrupted. The same command goes on from here.\n"


def test_by_c_move_through_the_node_on_after_a_break_and_byte_for_byte(site: Node, pacs: Orthanc) -> None:
    january = ("--date", "20260101-20260131")
    site.start("--only", "receiver")
    assert [one["here"] for one in fetched(site, *january, "--dry-run")] == [0, 0, 0]
    assert kept(site) == {}

    (mr,) = fetched(site, "--accession", "A1", "--modality", "mr", "--description", "t1 .*")
    assert (mr["modality"], mr["study_date"], mr["images"], mr["here"]) == ("MR", "2026-01-03", 4, 4)
    assert kept(site) == held(pacs, Modality="MR", AccessionNumber="A1")

    interrupt(site, *january, after=5)
    there = held(pacs, StudyDate="20260103") | held(pacs, StudyDate="20260131")
    assert 9 <= len(kept(site)) < len(there) == IMAGES + 10, "it did not stop"

    said = site.cli("fetch", "pacs", *january)
    assert "pacs has 2 studies, 3 series" in said
    assert "3 of 3 series of pacs are here in full." in said
    assert kept(site) == there

    opened = site.log.count('"association opened"')
    assert all(one["in_full"] for one in fetched(site, *january))
    assert site.log.count('"association opened"') == opened, "what is here was fetched again"


def test_by_c_get_without_a_node_in_every_transfer_syntax_as_it_is_there(site: Node, pacs: Orthanc) -> None:
    site.cli("db", "upgrade")
    (site.folder / "node.log").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old test data
        studies = {str(pydicom.dcmread(file, stop_before_pixels=True).StudyInstanceUID) for file in COMPRESSED}
        for study in studies:
            assert all(one["in_full"] for one in fetched(site, "--study", study, "--method", "get"))
        files = {path.name.rsplit(".", 2)[0]: path for path in (site.storage / "instances").rglob("*.dcm")}
        theirs = [ds for study in studies for ds in pacs.datasets(StudyInstanceUID=study)]
        assert len(theirs) == len(files) == len(COMPRESSED)
        for there in theirs:
            here = pydicom.dcmread(files[there.SOPInstanceUID])
            assert here.file_meta.TransferSyntaxUID == there.file_meta.TransferSyntaxUID, "it was converted"
            there.pop("DataSetTrailingPadding", None)  # this PACS leaves it out by C-GET, and writes sequences anew
            assert here == there

    interrupt(site, "--accession", "A1", "--method", "get", after=5)
    assert 5 <= len(kept(site)) - len(COMPRESSED) < IMAGES + 4
    assert all(one["in_full"] for one in fetched(site, "--accession", "A1", "--method", "get"))
    assert not list((site.storage / "incoming" / "fetch").iterdir()), "the break left something behind"
    assert kept(site).items() >= held(pacs, AccessionNumber="A1").items()


def test_a_pacs_that_does_not_know_the_node(site: Node, pacs: Orthanc) -> None:
    site.cli("db", "upgrade")
    (site.folder / "node.log").touch()
    site.config.write_text(site.config.read_text().replace("[node]", '[node]\nae_title = "NOBODY"'))
    command = [sys.executable, "-m", "dicomai", "fetch", "pacs", "--accession", "A2", "--config", str(site.config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "0 of 6 images are here." in done.stderr
    assert "that it has the AE title NOBODY, and the right host and port for it" in done.stderr
