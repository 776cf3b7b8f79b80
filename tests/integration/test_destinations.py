"""Destinations against real peers, friendly and hostile ones."""

import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MRImageStorage,
)
from pynetdicom import evt
from pynetdicom.dimse_primitives import C_ECHO

from dicomai.config import DicomDestination, FolderDestination
from dicomai.destinations import Outgoing, echo, open_destination, send_files
from dicomai.destinations.dimse.association import Peer
from dicomai.destinations.dimse.storage import associate
from dicomai.errors import DeliveryError, NoAssociationError, NotKeptError, RejectedError, UnreachableError
from tests.dimse import HOST, data_set_of, free_port, node, proposals, scp, wait_until
from tests.synthetic import series

GE_STUDY = Path(__file__).parents[2] / "dicomai" / "demo" / "study"


def outgoing(count: int = 2, size: int = 4, **attributes: Any) -> list[Outgoing]:
    """Objects ready to be sent."""
    objects = []
    for ds in series(modality="MR", shape=(count, size, size), **attributes):
        buffer = BytesIO()
        ds.save_as(buffer, enforce_file_format=True)
        objects.append(Outgoing(str(ds.SOPClassUID), str(ds.SOPInstanceUID), partial(BytesIO, buffer.getvalue())))
    return objects


def whole(one: Outgoing) -> bytes:
    """The bytes of an object's file."""
    with one.open() as file:
        return file.read()


def changed(one: Outgoing, data: bytes) -> Outgoing:
    """The same object with other bytes."""
    return replace(one, open=partial(BytesIO, data))


def send(destination: DicomDestination, objects: list[Outgoing], timeout: float = 5.0) -> list[tuple[str, int, str]]:
    """Send and say what was accepted, also when it ends in an error."""
    accepted: list[tuple[str, int, str]] = []
    try:
        open_destination(destination, calling_ae="DICOMAI", timeout=timeout).send(
            objects, lambda o, status, meaning: accepted.append((o.sop_instance_uid, status, meaning))
        )
    except DeliveryError as error:
        error.add_note(f"accepted: {len(accepted)}")
        raise
    return accepted


def test_objects_arrive_byte_for_byte_in_order_over_one_association(tmp_path: Path) -> None:
    stray = b"\x08\x00\x90\x00PN\x04\x00A^B "  # out of order: who encodes it again puts it elsewhere
    objects = [changed(o, whole(o) + stray) for o in outgoing(3)]
    with scp() as pacs:
        accepted = send(pacs.destination(), objects)
    assert accepted == [(o.sop_instance_uid, 0x0000, "") for o in objects]
    assert [r.sop_instance_uid for r in pacs.received] == [o.sop_instance_uid for o in objects]
    assert {r.association for r in pacs.received} == {0}
    for one, other in zip(objects, pacs.received, strict=True):
        path = tmp_path / "one.dcm"
        path.write_bytes(whole(one))
        assert other.data_set == data_set_of(path)[3]
    wait_until(lambda: pacs.associations[0].is_released)


def test_only_the_contexts_of_the_objects_are_proposed_and_what_they_can_be_sent_in() -> None:
    with scp() as pacs:
        send(pacs.destination(), outgoing(2))
        proposed = proposals(pacs.associations[0])
    assert [(c.abstract_syntax, c.transfer_syntax) for c in proposed] == [
        (MRImageStorage, [ExplicitVRLittleEndian]),
        (MRImageStorage, [ImplicitVRLittleEndian]),
    ]


def test_nothing_to_send_needs_no_association() -> None:
    assert send(DicomDestination(type="dicom", name="x", ae_title="X", host=HOST, port=free_port()), []) == []


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (0xA700, UnreachableError),
        (0xA7FF, UnreachableError),
        (0x0110, UnreachableError),
        (0x0213, UnreachableError),
        (0xC000, NotKeptError),
        (0xC1A2, NotKeptError),
        (0xFE00, UnreachableError),
        (0xA900, RejectedError),
        (0xA9AB, RejectedError),
        (0x0122, RejectedError),
        (0x0124, RejectedError),
        (0x0117, RejectedError),
    ],
)
def test_a_failure_status_is_a_failure_and_ends_the_sending(status: int, error: type[DeliveryError]) -> None:
    def fail(_event: object) -> Dataset:
        response = Dataset()
        response.Status = status
        response.ErrorComment = "Smith^Jane is unknown"
        return response

    objects = outgoing(3)
    with scp(0x0000, fail) as pacs, pytest.raises(error, match=f"'pacs'.* answered {status:04X}") as caught:
        send(pacs.destination(), objects)
    assert type(caught.value) is error
    assert objects[1].sop_instance_uid in str(caught.value)
    assert "Smith" not in str(caught.value)
    assert caught.value.__notes__ == ["accepted: 1"]
    assert len(pacs.received) == 2  # the third was never sent


@pytest.mark.parametrize("status", [0xB006, 0xB007, 0x0107, 0x0116, 0xB123])
def test_a_warning_is_success_and_is_reported(status: int) -> None:
    objects = outgoing(2)
    with scp(status, 0x0000) as pacs:
        accepted = send(pacs.destination(), objects)
    assert [a[1] for a in accepted] == [status, 0x0000]
    assert accepted[0][2]
    assert len(pacs.received) == 2


def test_an_object_that_is_said_to_be_there_already_is_for_a_person_to_look_at_without_c_find() -> None:
    contexts = [(MRImageStorage, [ExplicitVRLittleEndian])]
    cannot = pytest.raises(RejectedError, match=r"0111 .*C-FIND cannot tell whether it is there")
    with scp(0x0111, 0x0000, contexts=contexts) as pacs, cannot:
        send(pacs.destination(), outgoing(2))
    assert len(pacs.received) == 1


@pytest.mark.parametrize(
    ("rejection", "error", "text"),
    [
        ((1, 1, 1), RejectedError, "no reason given"),
        ((1, 1, 3), RejectedError, "enter the AE title DICOMAI there"),
        ((1, 1, 7), RejectedError, "check ae_title"),
        ((2, 3, 1), NoAssociationError, "temporary congestion"),
        ((2, 3, 2), NoAssociationError, "local limit exceeded"),
    ],
)
def test_a_refused_association_says_why(rejection: tuple[int, int, int], error: type[DeliveryError], text: str) -> None:
    def refuse(event: Any) -> None:
        event.assoc.acse.send_reject(*rejection)
        event.assoc.kill()

    with scp(on_request=refuse) as pacs, pytest.raises(error, match=text):
        send(pacs.destination(), outgoing(1))


def test_a_pacs_that_does_not_know_us_is_understood() -> None:
    with (
        scp(require_calling_aet=["OTHER"]) as pacs,
        pytest.raises(RejectedError, match=r"1/1/3, calling AE title not recognized"),
    ):
        send(pacs.destination(), outgoing(1))


def test_a_pacs_that_lacks_a_transfer_syntax_for_which_there_is_no_other_gets_nothing() -> None:
    with (
        scp(contexts=[(MRImageStorage, [JPEG2000Lossless])]) as pacs,
        pytest.raises(RejectedError, match=r"accepts no presentation context .*MR Image Storage"),
    ):
        send(pacs.destination(), outgoing(1))
    objects = outgoing(2)
    swapped = changed(objects[1], whole(objects[1]).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0"))
    assert swapped.transfer_syntax_uid == ExplicitVRBigEndian
    with (
        scp(contexts=[(MRImageStorage, [ExplicitVRLittleEndian])]) as pacs,
        pytest.raises(RejectedError, match="does not take MR Image Storage in Explicit VR Big Endian"),
    ):
        send(pacs.destination(), [objects[0], swapped])
    assert pacs.received == []


def test_no_connection_is_said_with_its_reason() -> None:
    nobody = DicomDestination(type="dicom", name="pacs", ae_title="PACS", host=HOST, port=free_port())
    with pytest.raises(UnreachableError, match=r"cannot be connected to .Connection refused."):
        send(nobody, outgoing(1))
    nowhere = nobody.model_copy(update={"host": "no-such-host.invalid"})
    with pytest.raises(UnreachableError, match=r"cannot be found .*check its host name"):
        send(nowhere, outgoing(1))


def test_a_pacs_that_aborts_midway_is_tried_again() -> None:
    def abort(event: Any) -> int:
        event.assoc.abort()
        return 0x0000

    with scp(0x0000, abort) as pacs, pytest.raises(UnreachableError, match="broke off") as caught:
        send(pacs.destination(), outgoing(3))
    assert caught.value.__notes__ == ["accepted: 1"]


def test_a_pacs_that_stalls_is_left_after_the_time_out() -> None:
    release = threading.Event()

    def stall(_event: object) -> int:
        release.wait(20)
        return 0x0000

    start = time.monotonic()
    with scp(0x0000, stall) as pacs:
        with pytest.raises(UnreachableError, match=r"stopped answering for 0\.5 s"):
            send(pacs.destination(), outgoing(3), timeout=0.5)
        assert time.monotonic() - start < 5
        release.set()


@pytest.mark.slow
def test_a_slow_pacs_that_moves_is_waited_for() -> None:
    """The time-out counts from the last byte that moved, not from the first."""
    objects = outgoing(1, size=550)

    with _throttled() as port:
        destination = DicomDestination(type="dicom", name="pacs", ae_title="PACS", host=HOST, port=port)
        start = time.monotonic()
        assert [a[1] for a in send(destination, objects, timeout=2.0)] == [0x0000]
        assert time.monotonic() - start > 2.2


@contextmanager
def _throttled() -> Iterator[int]:
    """A relay in front of a PACS that lets 64 KiB through every 0.3 s."""
    with scp(maximum_pdu_size=16384) as pacs, socket.create_server((HOST, 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)

        def relay() -> None:
            near, _ = listener.accept()
            with near, socket.create_connection((HOST, pacs.port)) as far:
                back = threading.Thread(target=pump, args=(far, near, 0.0), daemon=True)
                back.start()
                pump(near, far, 0.3)
                back.join(5)

        def pump(source: socket.socket, sink: socket.socket, pause: float) -> None:
            with suppress(OSError):  # either side may have closed it
                while data := source.recv(65536):
                    time.sleep(pause)
                    sink.sendall(data)
                sink.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=relay, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        thread.join(5)


def test_a_listener_that_never_answers_is_left_after_the_time_out() -> None:
    with socket.create_server((HOST, 0)) as mute:
        port = int(mute.getsockname()[1])
        destination = DicomDestination(type="dicom", name="pacs", ae_title="PACS", host=HOST, port=port)
        start = time.monotonic()
        with pytest.raises(UnreachableError, match="gave no answer"):
            send(destination, outgoing(1), timeout=0.5)
        assert time.monotonic() - start < 5


@pytest.mark.parametrize("answer", [b"", b"\x02\x00\x00\x00\x40\x00half"], ids=["closes", "half an answer"])
def test_a_peer_that_is_no_pacs_is_left(answer: bytes) -> None:
    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)
            if answer:
                connection.recv(65536)

    with socket.create_server((HOST, 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        port = int(listener.getsockname()[1])
        destination = DicomDestination(type="dicom", name="pacs", ae_title="PACS", host=HOST, port=port)
        before = threading.active_count()
        with pytest.raises(UnreachableError):
            send(destination, outgoing(1), timeout=0.5)
        wait_until(lambda: threading.active_count() <= before)


def test_a_pacs_that_takes_pdus_of_any_size_gets_ours() -> None:
    objects = outgoing(1, size=550)
    sizes: list[int] = []

    def measure(event: Any) -> None:
        event.assoc.bind(evt.EVT_DATA_RECV, lambda pdu: sizes.append(len(pdu.data)))

    with scp(maximum_pdu_size=0, on_request=measure) as pacs:
        send(pacs.destination(), objects)
    assert 100_000 < max(sizes) <= 131072 + 6
    assert pacs.received[0].data_set == whole(objects[0])[-len(pacs.received[0].data_set) :]


def test_an_error_of_ours_between_two_objects_aborts() -> None:
    def fail(*_: object) -> None:
        raise KeyError("database")

    with scp() as pacs:
        with pytest.raises(KeyError):
            open_destination(pacs.destination(), calling_ae="DICOMAI", timeout=5).send(outgoing(2), fail)
        wait_until(lambda: pacs.associations[0].is_aborted)
    assert len(pacs.received) == 1


def test_an_answer_that_is_waited_for_is_not_taken_by_the_library_s_own_thread() -> None:
    with scp() as pacs:
        peer = Peer(pacs.destination(), "DICOMAI", 5.0)
        with associate(peer, [("1.2.840.10008.1.1", "1.2.840.10008.1.2")]) as link:
            with link.talk():
                answer = (1, C_ECHO())
                link.assoc.dimse.msg_queue.put(answer)
                time.sleep(0.05)  # the library's thread, which nobody has paused here, looks once a millisecond
                assert link.assoc.dimse.get_msg() == (None, None)
                assert link.assoc.dimse.get_msg(block=True) == answer
            assert link.echo().is_accepted


def test_echo_measures_and_says_no() -> None:
    with scp() as pacs:
        assert 0 < echo(pacs.destination(), calling_ae="DICOMAI", timeout=5) < 5
    with scp(require_called_aet=True) as pacs:
        wrong = pacs.destination().model_copy(update={"ae_title": "OTHER"})
        with pytest.raises(RejectedError, match="1/1/7"):
            echo(wrong, calling_ae="DICOMAI", timeout=5)


def test_the_ge_files_with_their_stray_elements_arrive_as_they_are() -> None:
    files = sorted(GE_STUDY.glob("*.dcm"))
    if not files:
        pytest.skip("the demo's study is not there")
    seen: list[tuple[int, int]] = []
    with node() as n:
        entry = DicomDestination(type="dicom", name="n", ae_title="DICOMAI", host=HOST, port=n.port)
        outcomes = send_files(
            [GE_STUDY],
            entry,
            calling_ae="CT01",
            timeout=10,
            progress=lambda _, done, total: seen.append((done, total)),
        )
        sent = [o for o in outcomes if o.is_accepted]
        assert [o.path for o in sent] == files
        assert [n.intake.data_set(i) for i in range(len(files))] == [data_set_of(path)[3] for path in files]
        assert len(n.intake.opened) == 1
    assert seen[-1] == (len(outcomes), len(outcomes))
    assert {o.path.name for o in outcomes} - {o.path.name for o in sent} == {"LICENSE", "README.md"}


def _write(folder: Path, objects: list[Outgoing]) -> list[Path]:
    paths = []
    for number, one in enumerate(objects):
        paths.append(folder / f"{number}.dcm")
        paths[-1].write_bytes(whole(one))
    return paths


def test_a_refused_file_does_not_keep_the_next_from_being_sent(tmp_path: Path) -> None:
    paths = _write(tmp_path, outgoing(3))
    with scp(0x0000, 0xA900, 0xB000) as pacs:
        outcomes = send_files(paths, pacs.destination(), calling_ae="X", timeout=5)
    assert [(o.status, o.is_accepted) for o in outcomes] == [(0x0000, True), (0xA900, False), (0xB000, True)]
    assert "Does Not Match" in outcomes[1].text


def test_a_file_whose_context_is_not_accepted_is_named_and_the_rest_sent(tmp_path: Path) -> None:
    paths = _write(tmp_path, [*outgoing(1), *outgoing(1, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")])
    with scp(contexts=[(MRImageStorage, [ExplicitVRLittleEndian])]) as pacs:
        outcomes = send_files(reversed(paths), pacs.destination(), calling_ae="X", timeout=5)
    assert [o.is_accepted for o in outcomes] == [False, True]
    assert "Secondary Capture" in outcomes[0].text


def test_a_connection_that_breaks_ends_the_sending_of_files(tmp_path: Path) -> None:
    def abort(event: Any) -> int:
        event.assoc.abort()
        return 0x0000

    paths = _write(tmp_path, outgoing(4))
    with scp(0x0000, abort) as pacs:
        outcomes = send_files(paths, pacs.destination(), calling_ae="X", timeout=5)
    assert [o.is_accepted for o in outcomes] == [True, False, False, False]
    assert all("broke off" in o.text for o in outcomes[1:])
    with pytest.raises(UnreachableError):
        send_files(paths, pacs.destination(), calling_ae="X", timeout=5)


def test_more_kinds_of_object_than_an_association_has_contexts_for_take_further_ones(tmp_path: Path) -> None:
    ds = series(modality="MR", shape=(1, 4, 4))[0]
    for number in range(130):
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = UID(f"1.2.826.0.1.3680043.8.{number + 1}")
        ds.save_as(tmp_path / f"{number:03}.dcm", enforce_file_format=True)
    with node() as n:
        entry = DicomDestination(type="dicom", name="n", ae_title="DICOMAI", host=HOST, port=n.port)
        outcomes = send_files([tmp_path], entry, calling_ae="X", timeout=10)
        assert [o.status for o in outcomes] == [0x0000] * 130
        assert len(n.intake.opened) == 3  # each kind is proposed in two ways


class TestFolder:
    def put(self, path: Path, objects: list[Outgoing]) -> list[str]:
        accepted: list[str] = []
        entry = FolderDestination(type="folder", name="out", path=path)
        open_destination(entry, calling_ae="X", timeout=1).send(
            objects, lambda o, *_: accepted.append(o.sop_instance_uid)
        )
        return accepted

    def test_files_lie_by_study_and_series_and_a_second_sending_changes_nothing(self, tmp_path: Path) -> None:
        objects = outgoing(2)
        for _ in range(2):
            assert self.put(tmp_path / "new", objects) == [o.sop_instance_uid for o in objects]
        files = sorted((tmp_path / "new").rglob("*"))
        assert sorted(f.read_bytes() for f in files if f.is_file()) == sorted(map(whole, objects))
        assert {f.stem for f in files if f.is_file()} == {o.sop_instance_uid for o in objects}
        assert {len(f.relative_to(tmp_path / "new").parts) for f in files if f.is_file()} == {3}

    def test_another_object_under_the_same_uid_is_not_overwritten(self, tmp_path: Path) -> None:
        first = outgoing(1)
        self.put(tmp_path, first)
        for other in (whole(first[0]) + b"\0\0", whole(first[0])[:-2], whole(first[0])[:-2] + b"\1\1"):
            with pytest.raises(RejectedError, match="holds another object"):
                self.put(tmp_path, [changed(first[0], other)])
        assert next(tmp_path.rglob("*.dcm")).read_bytes() == whole(first[0])

    @pytest.mark.filterwarnings("ignore:Invalid value for VR UI:UserWarning")
    def test_a_uid_that_is_a_path_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RejectedError, match="StudyInstanceUID is no UID"):
            self.put(tmp_path / "in", outgoing(1, StudyInstanceUID="../../etc"))
        assert list(tmp_path.rglob("*")) == []

    @pytest.mark.parametrize("has_links", [True, False])
    def test_what_comes_while_it_writes_is_not_written_over(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
    ) -> None:
        (one,) = outgoing(1)
        folder = open_destination(
            FolderDestination(type="folder", name="out", path=tmp_path / "out"), calling_ae="X", timeout=1.0
        )
        real = os.link

        def link(temporary: Path, target: Path) -> None:
            target.write_bytes(b"another")
            if not has_links:
                raise OSError(errno.EPERM, "Operation not permitted")
            real(temporary, target)

        monkeypatch.setattr(os, "link", link)
        with pytest.raises(RejectedError, match="holds another object"):
            folder.send([one], lambda *_: None)
        assert [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()] == [b"another"]

    def test_a_folder_without_hard_links_is_written_to(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (one,) = outgoing(1)

        def link(*_: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
        there = FolderDestination(type="folder", name="out", path=tmp_path / "out")
        open_destination(there, calling_ae="X", timeout=1.0).send([one], lambda *_: None)
        assert [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()] == [whole(one)]

    def test_a_folder_that_cannot_be_written_is_tried_again(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(UnreachableError, match="could not write"):
            self.put(tmp_path / "file" / "sub", outgoing(1))
