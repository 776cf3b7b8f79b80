"""DCMTK as the sender: every transfer syntax that it has, byte for byte; and what it is told when it is refused."""

import re
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pydicom.data
import pytest
from pydicom.uid import generate_uid

from tests.acceptance.node import Node, node
from tests.acceptance.tools import run_dcmtk, with_new_uids
from tests.acceptance.wire import Wire, wire

TEST_FILES = Path(pydicom.data.__file__).parent / "test_files"

# One file per transfer syntax, and storescu's option that proposes it.
FILES = (
    ("rtdose_1frame.dcm", "-xi", "1.2.840.10008.1.2"),
    ("CT_small.dcm", "-xe", "1.2.840.10008.1.2.1"),
    ("MR_small_bigendian.dcm", "-xb", "1.2.840.10008.1.2.2"),
    ("image_dfl.dcm", "-xd", "1.2.840.10008.1.2.1.99"),
    ("SC_rgb_small_odd_jpeg.dcm", "-xy", "1.2.840.10008.1.2.4.50"),
    ("JPGExtended.dcm", "-xx", "1.2.840.10008.1.2.4.51"),
    ("SC_rgb_jpeg_gdcm.dcm", "-xs", "1.2.840.10008.1.2.4.70"),
    ("MR_small_jpeg_ls_lossless.dcm", "-xt", "1.2.840.10008.1.2.4.80"),
    ("JPEGLSNearLossless_16.dcm", "-xu", "1.2.840.10008.1.2.4.81"),
    ("MR_small_jp2klossless.dcm", "-xv", "1.2.840.10008.1.2.4.90"),
    ("JPEG2000.dcm", "-xw", "1.2.840.10008.1.2.4.91"),
    ("MR_small_RLE.dcm", "-xr", "1.2.840.10008.1.2.5"),
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node that lets two callers in."""
    with node(tmp_path_factory.mktemp("node"), receiver={"allow": ["MR01", "CT01@10.0.0.0/8"]}) as one:
        one.start("--only", "receiver,planner")
        yield one
        one.stop()


@pytest.fixture
def tap(running: Node) -> Iterator[Wire]:
    with wire(running.port) as between:
        yield between


def storescu(port: int, path: Path, *options: str) -> str:
    done = run_dcmtk("storescu", "-v", "-aet", "MR01", "-aec", "DICOMAI", *options, "127.0.0.1", str(port), path)
    return f"{done.returncode} {done.stdout}"


def test_echoscu_is_answered(running: Node) -> None:
    done = run_dcmtk("echoscu", "-v", "-aet", "MR01", "-aec", "DICOMAI", "127.0.0.1", str(running.port))
    assert done.returncode == 0
    assert "Received Echo Response (Success)" in done.stdout


@pytest.mark.parametrize(("name", "option", "transfer_syntax"), FILES, ids=[name for name, _, _ in FILES])
def test_what_storescu_sends_is_stored_byte_for_byte(
    name: str, option: str, transfer_syntax: str, running: Node, tap: Wire, tmp_path: Path
) -> None:
    path = with_new_uids(TEST_FILES / name, tmp_path)
    sent = storescu(tap.port, path, "-R", option)
    assert "Received Store Response (Success)" in sent, sent
    ((uid, data_set),) = tap.data_sets().items()
    assert running.stored(uid) == [data_set]
    (file,) = (running.storage / "instances").glob(f"*/*/{uid}.*.dcm")
    meta = pydicom.dcmread(file, stop_before_pixels=True).file_meta
    assert meta.TransferSyntaxUID == transfer_syntax
    assert meta.MediaStorageSOPInstanceUID == uid


def test_an_instance_sent_twice_is_stored_once_and_taken_twice(running: Node) -> None:
    path = TEST_FILES / "CT_small.dcm"
    for _ in range(2):
        assert "Received Store Response (Success)" in storescu(running.port, path, "-R", "-xe")
    assert len(running.stored(str(pydicom.dcmread(path).SOPInstanceUID))) == 1


def test_every_default_context_of_storescu_is_accepted(running: Node) -> None:
    # It proposes all that it knows, 120 contexts and more: one refused makes many senders give up a whole study.
    done = run_dcmtk(
        "storescu", "-d", "-aet", "MR01", "-aec", "DICOMAI", "127.0.0.1", str(running.port), TEST_FILES / "CT_small.dcm"
    )
    assert done.returncode == 0, done.stdout
    answer = done.stdout.partition("BEGIN A-ASSOCIATE-AC")[2]
    results = re.findall(r"Context ID: +\d+ +\((.*?)\)", answer)
    assert len(results) > 100
    assert set(results) == {"Accepted"}


@pytest.mark.parametrize(
    ("calling", "called", "reason", "remedy"),
    [
        ("MR01", "ANOTHER", "Called AE Title Not Recognized", "set the called AE title to DICOMAI"),
        ("MR99", "DICOMAI", "Calling AE Title Not Recognized", "add MR99@127.0.0.1 to receiver.allow"),
        ("CT01", "DICOMAI", "Calling AE Title Not Recognized", "add CT01@127.0.0.1 to receiver.allow"),
    ],
    ids=["called AE", "calling AE", "address"],
)
def test_a_refused_association_names_its_reason_to_dcmtk(
    calling: str, called: str, reason: str, remedy: str, running: Node
) -> None:
    before = len(running.log)
    for program, more in (("echoscu", []), ("storescu", [TEST_FILES / "CT_small.dcm"])):
        done = run_dcmtk(program, "-v", "-aet", calling, "-aec", called, "127.0.0.1", str(running.port), *more)
        assert done.returncode != 0
        assert "Result: Rejected Permanent, Source: Service User" in done.stdout
        assert f"Reason: {reason}" in done.stdout
    lines = [line for line in running.log[before:].splitlines() if "association refused" in line]
    assert len(lines) == 2, "one line each"
    assert all(remedy in line for line in lines)


def test_an_instance_without_uids_is_refused_with_its_status(running: Node, tmp_path: Path) -> None:
    ds = pydicom.dcmread(TEST_FILES / "CT_small.dcm")
    del ds.SeriesInstanceUID
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.save_as(tmp_path / "lacks.dcm")
    sent = storescu(running.port, tmp_path / "lacks.dcm", "-R", "-xe")
    assert "Error: CannotUnderstand" in sent or "0xc000" in sent.lower(), sent
    assert running.stored(str(ds.SOPInstanceUID)) == []
