"""C-STORE requests from memory to the socket, and what a peer may answer between: nothing is lost or mistaken."""

import os
import struct
import time
import tracemalloc
from dataclasses import replace
from io import BufferedReader
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import build_context, evt
from pynetdicom.dsutils import encode
from pynetdicom.events import Event

from dicomai.config import FolderDestination
from dicomai.destinations import open_destination, send_each, send_files
from dicomai.destinations.dimse import commitment
from dicomai.destinations.dimse.association import Peer, requested
from dicomai.destinations.dimse.storage import StorageLink
from dicomai.destinations.files import SentFile
from dicomai.errors import RejectedError, StoreError, UnreachableError
from tests.dimse import scp, wait_until
from tests.integration.test_destinations import changed, outgoing, send, whole
from tests.integration.test_transcoding import storescp

CONTEXT = 1


def saying(*pdus: bytes, then: int = 0x0000) -> Any:
    """Make a handler that sends raw bytes before the library answers."""

    def on_store(event: Event) -> int:
        for pdu in pdus:
            event.assoc.dul.socket.send(pdu)
            time.sleep(0.01)
        return then

    return evt.EVT_C_STORE, on_store


def pdata(content: bytes, control: int, context: int = CONTEXT) -> bytes:
    return struct.pack(">BBLLBB", 4, 0, len(content) + 6, len(content) + 2, context, control) + content


def response(message_id: int, status: int) -> bytes:
    ds = Dataset()
    ds.CommandField, ds.MessageIDBeingRespondedTo, ds.CommandDataSetType, ds.Status = 0x8001, message_id, 0x0101, status
    ds.AffectedSOPClassUID, ds.AffectedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", "1.2.3"
    ds.CommandGroupLength = len(encode(ds, True, True) or b"")
    return encode(ds, True, True) or b""


@pytest.mark.parametrize("longest", [0, 131072, 16382, 4097, 128], ids=lambda longest: f"max PDU {longest}")
def test_the_bytes_that_arrive_are_those_that_were_frozen(longest: int) -> None:
    objects = outgoing(3, size=120)
    with scp(maximum_pdu_size=longest) as pacs:
        assert [status for _, status, _ in send(pacs.destination(), objects)] == [0, 0, 0]
    sent = [data[144 + int.from_bytes(data[140:144], "little") :] for data in map(whole, objects)]
    assert [received.data_set for received in pacs.received] == sent


@pytest.mark.parametrize("kind", ["dicom", "folder"])
def test_an_object_is_sent_from_where_it_lies_and_is_never_in_memory(kind: str, tmp_path: Path) -> None:
    (one,) = outgoing(1)
    large = tmp_path / "large.dcm"
    with large.open("wb") as file:
        file.write(whole(one) + struct.pack("<HH2sHL", 0x7FE1, 0x0010, b"OB", 0, 64_000_000))
        file.truncate(file.tell() + 64_000_000)
    sent = replace(one, open=lambda: large.open("rb"))
    with storescp(tmp_path / "pacs", "--ignore") as pacs:
        there = {
            "dicom": pacs,
            "folder": FolderDestination(type="folder", name="out", path=tmp_path / "out"),
        }[kind]
        destination = open_destination(there, calling_ae="X", timeout=10.0)
        tracemalloc.start()
        try:
            destination.send([sent], lambda *_: None)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 8_000_000


def test_a_data_set_begins_where_it_does_whatever_the_group_length_says() -> None:
    (one,) = outgoing(1)
    data = whole(one)
    length = int.from_bytes(data[140:144], "little")
    lying = data[:140] + (length + 12).to_bytes(4, "little") + data[144:]
    with scp() as pacs:
        send(pacs.destination(), [changed(one, lying)])
    assert [received.data_set for received in pacs.received] == [data[144 + length :]]


def test_nothing_is_no_data_set() -> None:
    (one,) = outgoing(1)
    head = whole(one)[: 144 + int.from_bytes(whole(one)[140:144], "little")]
    with scp() as pacs, pytest.raises(RejectedError, match="has no data set"):
        send(pacs.destination(), [changed(one, head)])
    assert pacs.received == []


def test_a_file_that_ends_while_it_is_sent_is_an_error_of_the_storage(tmp_path: Path) -> None:
    (one,) = outgoing(1, size=400)
    path = tmp_path / "one.dcm"
    path.write_bytes(whole(one))

    class Cut(BufferedReader):
        def seek(self, offset: int, whence: int = 0) -> int:
            at = super().seek(offset, whence)
            if whence == os.SEEK_END:  # its length is known now
                os.truncate(path, 4096)
            return at

    cut = replace(one, open=lambda: Cut(path.open("rb", buffering=0)))
    with scp() as pacs, pytest.raises(StoreError, match="became shorter"):
        send(pacs.destination(), [cut])
    assert pacs.received == []


def test_a_file_that_vanishes_on_the_way_keeps_no_other_from_being_sent(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.dcm" for number in range(4)]
    for path, one in zip(paths, outgoing(4), strict=True):
        path.write_bytes(whole(one))

    def meanwhile(_: SentFile, number: int, __: int) -> None:
        if number == 1:
            paths[1].unlink()
            paths[2].write_bytes(b"")

    with scp() as pacs:
        outcomes = send_files(paths, pacs.destination(), calling_ae="X", timeout=5, progress=meanwhile)
    assert [(o.path, o.is_accepted) for o in outcomes] == list(zip(paths, [True, False, False, True], strict=True))
    assert "No such file" in outcomes[1].text
    paths[3].rename(paths[1])
    folder = FolderDestination(type="folder", name="out", path=tmp_path / "out")
    there = open_destination(folder, calling_ae="X", timeout=5)
    assert [o.is_accepted for o in send_each(paths[:2], there, progress=meanwhile)] == [True, False]


def test_an_answer_may_come_in_pieces() -> None:
    whole = response(1, 0xB000)
    pieces = [pdata(bytes([part]), 1) for part in whole[:-1]] + [pdata(whole[-1:], 3)]
    with scp(handlers=[saying(*pieces)]) as pacs:
        ((_, status, _),) = send(pacs.destination(), outgoing(1))
    assert status == 0xB000


@pytest.mark.parametrize(
    "pdus",
    [
        [pdata(response(7, 0x0000), 3)],
        [pdata(b"\xff" * 40, 3)],
        [pdata(response(1, 0x0000)[:-4], 3)],
        [b"\x04\x00\xff\xff\xff\xff"],
        [b"\x04\x00\x00\x00\x00\x06\x00\x00\x00\x63\x01\x03"],
        [b"\x09\x00\x00\x00\x00\x00"],
        [b"\x07\x00\x00\x00\x00\x04\x00\x00\x00\x00"],
    ],
    ids=["to another message", "garbage", "cut off", "too long", "a length that lies", "no PDU", "A-ABORT"],
)
def test_what_is_no_answer_is_no_acceptance(pdus: list[bytes]) -> None:
    with scp(handlers=[saying(*pdus)]) as pacs, pytest.raises(UnreachableError, match="broke off the association"):
        send(pacs.destination(), outgoing(1))


def test_a_report_that_comes_before_the_answer_is_taken_and_is_no_answer() -> None:
    reports: list[Event] = []

    def report(event: Event) -> int:
        reports.append(event)
        return 0x0000

    command, content = Dataset(), Dataset()
    content.TransactionUID = "1.2.3.4"
    body = encode(content, False, True) or b""
    command.AffectedSOPClassUID, command.CommandField, command.MessageID = commitment.PUSH_MODEL, 0x0100, 5
    command.CommandDataSetType, command.EventTypeID = 0x0001, 1
    command.AffectedSOPInstanceUID = commitment.PUSH_MODEL_INSTANCE
    command.CommandGroupLength = len(encode(command, True, True) or b"")
    raw = encode(command, True, True) or b""
    (one,) = outgoing(1)
    with scp(handlers=[saying(pdata(raw, 3, 3), pdata(body, 2, 3))]) as pacs:
        peer = Peer(pacs.destination(), "DICOMAI", 5.0)
        contexts = [
            build_context(one.sop_class_uid, one.transfer_syntax_uid),
            build_context(commitment.PUSH_MODEL, ExplicitVRLittleEndian),
        ]
        with requested(peer, contexts, connect_timeout=5.0, handlers=[(evt.EVT_N_EVENT_REPORT, report)]) as link:
            answer = StorageLink(link.peer, link.assoc, link.watch).store(one)
            wait_until(lambda: reports)
    assert answer.status == 0x0000
    assert [event.event_information.TransactionUID for event in reports] == ["1.2.3.4"]
