"""Every file that comes with pydicom, in every transfer syntax and every state of repair, sent to one node.

DCMTK and Orthanc send what they agree to send, a raw SCU all of it: what is broken has a status, and a change shows.
"""

import socket
from collections.abc import Iterator
from pathlib import Path

import data_store
import pydicom.data
import pytest
from pydicom.filereader import read_file_meta_info

from tests.acceptance.node import Node, node
from tests.acceptance.orthanc import orthanc
from tests.acceptance.tools import dcmsend, with_new_uids
from tests.acceptance.wire import Wire, messages, wire
from tests.beds import as_received, parts_of
from tests.dimse import associate, store

LARGEST = 600_000  # bytes of a file
FILES = {
    path.name: path
    for package in (pydicom.data, data_store)
    for path in sorted(Path(package.__file__).parent.rglob("*.dcm"))
    if path.stat().st_size <= LARGEST
}

IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"

# What has no file meta information that tells: its SOP class, SOP instance and transfer syntax, and where its data set
# begins, as its sender would know them.
WITHOUT_META = {
    "ExplVR_BigEndNoMeta.dcm": ("1.2.840.10008.5.1.4.1.1.481.8", "1.2.333.4444.5.6.7.8", BIG_ENDIAN, 0),
    "ExplVR_LitEndNoMeta.dcm": ("1.2.840.10008.5.1.4.1.1.481.8", "1.2.333.4444.5.6.7.8", EXPLICIT, 0),
    "OT-PAL-8-face.dcm": ("1.2.840.10008.5.1.4.1.1.7", "1.2.999999.9.1.6.2", IMPLICIT, 0),
    "empty_charset_LEI.dcm": ("1.2.840.10008.5.1.4.1.1.2", "1.2.3", IMPLICIT, 230),
    "meta_missing_tsyntax.dcm": ("1.2.840.10008.5.1.4.1.1.2", "1.2.3", IMPLICIT, 202),
    "nested_priv_SQ.dcm": ("1.2.840.10008.5.1.4.1.1.4", "1.2.3", IMPLICIT, 228),
    "no_meta.dcm": ("1.2.840.10008.5.1.4.1.1.2", "1.3.6.1.4.1.5962.1.1.1.1.1.20040119072730.12322", EXPLICIT, 1),
    "no_meta_group_length.dcm": ("1.2.840.10008.5.1.4.1.1.481.1", "1.2.3", IMPLICIT, 338),
    "rtstruct.dcm": ("1.2.840.10008.5.1.4.1.1.481.3", "1.2.826.0.1.3680043.8.498.2010020400001", IMPLICIT, 0),
}

_WITHOUT_UIDS = (
    "JPEGLSNearLossless_08.dcm", "JPEGLSNearLossless_16.dcm", "SC_rgb_jls_lossy_line.dcm", "UN_sequence.dcm",
    "SC_rgb_jls_lossy_sample.dcm", "chrSQEncoding.dcm", "chrSQEncoding1.dcm", "empty_charset_LEI.dcm",
    "meta_missing_tsyntax.dcm", "nested_priv_SQ.dcm", "no_meta_group_length.dcm", "priv_SQ.dcm",
    # Color palettes are of no study (PS3.3 A.58.3).
    "fall.dcm", "hotiron.dcm", "hotmetalblue.dcm", "pet.dcm", "pet20step.dcm", "spring.dcm", "summer.dcm", "winter.dcm",
)  # fmt: skip
_OTHER_UIDS_IN_META = (
    "badVR.dcm", "bad_sequence.dcm", "chrJapMulti.dcm", "chrJapMultiExplicitIR6.dcm", "rtdose.dcm", "rtdose_1frame.dcm",
    "rtdose_expb.dcm", "rtdose_expb_1frame.dcm", "rtplan.dcm",
)  # fmt: skip

REFUSED = {
    **dict.fromkeys(_WITHOUT_UIDS, "C000"),
    **dict.fromkeys(_OTHER_UIDS_IN_META, "A900"),
    "rtplan_truncated.dcm": "C000",  # ends inside an element; of MR_truncated.dcm only the pixels do
    "DICOMDIR-empty.dcm": "no context",  # Media Storage Directory Storage
}
"""What is not stored, and the status that it gets; all else is."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node without a planner: some of these files would keep it busy."""
    with node(tmp_path_factory.mktemp("node")) as one:
        one.start("--only", "receiver")
        yield one
        one.stop()


@pytest.fixture
def tap(running: Node) -> Iterator[Wire]:
    with wire(running.port) as between:
        yield between


def announced(path: Path) -> tuple[str, str, str, bytes]:
    """SOP class, SOP instance, transfer syntax and data set, as a sender takes them from a file."""
    if path.name in WITHOUT_META:
        sop_class, sop_instance, syntax, offset = WITHOUT_META[path.name]
        return sop_class, sop_instance, syntax, path.read_bytes()[offset:]
    meta = read_file_meta_info(path)
    uids = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID
    return *map(str, uids), parts_of(path.read_bytes())[1]  # type: ignore[return-value]


def test_each_gets_its_status_and_is_stored_as_it_came_or_not_at_all(running: Node) -> None:
    instances = {name: announced(path) for name, path in FILES.items()}
    contexts = sorted({(sop_class, syntax) for sop_class, _, syntax, _ in instances.values()})
    assert len(contexts) <= 128
    found: dict[str, str] = {}
    with associate(running.port, [(sop_class, [syntax]) for sop_class, syntax in contexts]) as assoc:
        assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # type: ignore[union-attr]
        accepted = {(str(c.abstract_syntax), str(c.transfer_syntax[0])): c.context_id for c in assoc.accepted_contexts}
        for name, (sop_class, sop_instance, syntax, data_set) in instances.items():
            context = accepted.get((sop_class, syntax))
            status = (
                None if context is None else store(assoc, sop_class, sop_instance, data_set, context=context).Status
            )
            if status != 0x0000:
                found[name] = "no context" if status is None else f"{status:04X}"
            assert (data_set in running.stored(sop_instance)) == (status == 0x0000), name
    assert found == REFUSED


def test_what_dcmsend_sends_is_stored_as_it_came(running: Node, tap: Wire) -> None:
    files = [path for name, path in FILES.items() if name not in _NOT_SENT]
    done = dcmsend(tap.port, *files)
    assert done.returncode == 0, done.stdout[-3000:]
    assert stored_as_sent(running, tap) == len(files)


def test_what_orthanc_sends_is_stored_as_it_came(running: Node, tap: Wire, tmp_path: Path) -> None:
    with as_received():
        files = [with_new_uids(path, tmp_path) for path in one_of_each_syntax()]
    with orthanc(tmp_path / "pacs", modalities={"NODE": ("DICOMAI", "127.0.0.1", tap.port)}) as pacs:
        pacs.upload(*files)
        assert pacs.send("NODE")["FailedInstancesCount"] == 0
    assert stored_as_sent(running, tap) == len(files)


# What DCMTK does not read to its end, or whose UIDs it does not find as their VR is UN, and what the node is to refuse.
_NOT_SENT = {
    *_WITHOUT_UIDS, *WITHOUT_META, "DICOMDIR-empty.dcm", "rtplan_truncated.dcm", "MR_truncated.dcm", "SC_rgb_jpeg.dcm",
    "emri_small_jpeg_2k_lossless_too_short.dcm", "explicit_VR-UN.dcm", "rtdose_rle.dcm", "rtdose_rle_1frame.dcm",
    "bad_sequence.dcm",  # whose UIDs are none
}  # fmt: skip


def stored_as_sent(running: Node, tap: Wire) -> int:
    """See that all that passed was answered with success and is stored as it passed; gives how many that were."""
    answered, sent = [], []
    with as_received():
        for link in tap.links:
            sent += [(c, data) for c, data in messages(bytes(link.requests)) if c.CommandField == 0x0001]  # C-STORE-RQ
            answered += [c for c, _ in messages(bytes(link.answers)) if c.CommandField == 0x8001]
        uids = [str(command.AffectedSOPInstanceUID) for command, _ in sent]
        assert [(c.AffectedSOPInstanceUID, c.Status) for c in answered] == [(uid, 0x0000) for uid in uids]
    assert [uid for uid, (_, data) in zip(uids, sent, strict=True) if data not in running.stored(uid)] == []
    return len(sent)


def one_of_each_syntax() -> list[Path]:
    """The smallest file of each transfer syntax that can be read."""
    found: dict[str, Path] = {}
    for path in sorted(FILES.values(), key=lambda path: path.stat().st_size):
        if path.name not in {*WITHOUT_META, "DICOMDIR-empty.dcm"}:
            found.setdefault(announced(path)[2], path)
    assert len(found) >= 12
    return list(found.values())
