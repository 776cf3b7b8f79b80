"""From a finished analysis to what the PACS has: real images, real result objects, real destinations."""

import contextlib
import io
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import FileDataset
from pydicom.filereader import read_dataset
from structlog.testing import capture_logs

from dicomai.config import FolderDestination
from dicomai.database.deliveries import Deliveries
from dicomai.database.tables import Acceptance, Result, ResultObject
from dicomai.database.tables import Workitem as Row
from dicomai.destinations import Destination, Outgoing, open_destination
from dicomai.destinations.base import Accepted
from dicomai.errors import StoreError, UnreachableError
from dicomai.workitem import Kind, State
from tests.arrivals import changed, repixeled
from tests.beds import Bed, parts_of, route
from tests.dimse import HOST, Received, Scp, free_port, scp, wait_until
from tests.synthetic import series

SEG = "1.2.840.10008.5.1.4.1.1.66.4"
SR = "1.2.840.10008.5.1.4.1.1.88.34"


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    made = Bed(tmp_path, f"sqlite:///{tmp_path / 'worklist.db'}")
    yield made
    made.close()


def analysed(bed: Bed, *destinations: str, **attributes: Any) -> list[FileDataset]:
    """Take a series in and analyse it; gives its images."""
    images = series(modality="MR", shape=(3, 12, 16), **attributes)
    bed.take(images)
    bed.plan(route(destinations=destinations or ("pacs",)))
    assert bed.worker().step()
    assert bed.items()[-1].state == State.COMPLETED
    return images


def pacs_of(server: Scp, name: str = "pacs", timeout: float = 5.0) -> Destination:
    return open_destination(server.destination(name), calling_ae="DICOMAI", timeout=timeout)


def folder_of(path: Path) -> Destination:
    return open_destination(FolderDestination(type="folder", name="folder", path=path), calling_ae="X", timeout=5.0)


def delivery(bed: Bed, number: int = 0) -> Row:
    return bed.items("delivery")[number]


def read(received: Received) -> pydicom.Dataset:
    return read_dataset(io.BytesIO(received.data_set), is_implicit_VR=False, is_little_endian=True)


class TestWhatArrives:
    def test_the_seg_first_and_the_sr_last_over_one_association_byte_for_byte(self, bed: Bed) -> None:
        analysed(bed)
        with scp() as pacs:
            assert bed.delivery(pacs_of(pacs)).step()
            assert not bed.delivery(pacs_of(pacs)).step()
        assert [r.sop_class_uid for r in pacs.received] == [SEG, SR]
        assert {r.association for r in pacs.received} == {0}
        for received, frozen in zip(pacs.received, bed.rows(ResultObject), strict=True):
            assert received.data_set == parts_of(bed.store.get(frozen.key))[1]
        row = delivery(bed)
        assert (row.state, row.reason, row.attempt) == (State.COMPLETED, "", 1)
        assert [a.status for a in bed.rows(Acceptance)] == [0, 0]

    def test_the_sr_comes_last_whatever_the_order_in_the_route(self, bed: Bed) -> None:
        bed.take(series(modality="MR", shape=(3, 12, 16)))
        bed.plan(route(outputs=("sr", "seg")))
        assert bed.worker().step()
        with scp() as pacs:
            assert bed.delivery(pacs_of(pacs)).step()
        assert [r.sop_class_uid for r in pacs.received] == [SEG, SR]

    def test_a_folder_and_a_pacs_get_the_same_bytes(self, bed: Bed, tmp_path: Path) -> None:
        analysed(bed, "folder", "pacs")
        with scp() as pacs:
            lanes = [bed.delivery(folder_of(tmp_path / "out")), bed.delivery(pacs_of(pacs))]
            start = threading.Barrier(2)
            threads = [threading.Thread(target=lambda one=one: (start.wait(), one.step())) for one in lanes]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        files = {parts_of(path.read_bytes())[1] for path in (tmp_path / "out").rglob("*.dcm")}
        assert files == {r.data_set for r in pacs.received}
        assert {row.state for row in bed.items("delivery")} == {State.COMPLETED}


class TestWhatDoesNot:
    def test_a_pacs_that_is_away_is_tried_again_later_each_time(self, bed: Bed) -> None:
        analysed(bed)
        port = free_port()
        waits = []
        with scp(port=port) as server:
            destination = pacs_of(server)
        for attempt in range(1, 4):
            assert bed.delivery(destination, first_wait=10.0).step()
            row = delivery(bed)
            assert (row.state, row.attempt, row.lease_owner) == (State.IN_PROGRESS, attempt, None)
            assert "cannot be connected to" in row.reason
            assert not bed.delivery(destination).step()
            with bed.database.read() as session:
                waits.append((row.due_at - bed.database.now(session)).total_seconds())
            bed.turn(waits[-1] + 1)
        assert all(8 * 2**n - 1 < wait < 12 * 2**n for n, wait in enumerate(waits))
        with scp(port=port) as pacs:
            assert bed.delivery(destination).step()
        assert len(pacs.received) == 2
        assert delivery(bed).state == State.COMPLETED
        assert len(bed.items()) == 1  # a sleeping PACS never runs a GPU again

    def test_only_what_was_refused_is_sent_again(self, bed: Bed) -> None:
        analysed(bed)
        with scp(0x0000, 0xA700, 0x0000) as pacs:
            bed.delivery(pacs_of(pacs)).step()
            assert [a.status for a in bed.rows(Acceptance)] == [0]
            bed.turn(60)
            bed.delivery(pacs_of(pacs)).step()
        assert [r.sop_class_uid for r in pacs.received] == [SEG, SR, SR]
        assert pacs.received[1].data_set == pacs.received[2].data_set
        assert delivery(bed).state == State.COMPLETED

    def test_the_sr_is_never_sent_before_its_seg_was_accepted(self, bed: Bed) -> None:
        analysed(bed)
        with scp(0xA700, 0xA700, 0xA700, 0x0000) as pacs:
            for _ in range(5):
                bed.delivery(pacs_of(pacs)).step()
                bed.turn(7200)
        assert [r.sop_class_uid for r in pacs.received] == [SEG] * 4 + [SR]

    def test_it_is_given_up_with_the_last_reason(self, bed: Bed) -> None:
        analysed(bed)
        with scp(0xA700) as pacs:
            for _ in range(3):
                bed.delivery(pacs_of(pacs), attempts=2).step()
                bed.turn(7200)
        row = delivery(bed)
        assert row.state == State.CANCELED
        assert row.reason.startswith("Given up after 2 attempts: Destination 'pacs'")
        assert len(pacs.received) == 2

    def test_what_nobody_thought_of_does_not_end_the_thread(self, bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
        analysed(bed)
        with scp() as pacs:
            lane = bed.delivery(pacs_of(pacs))

            def odd(*_: object) -> None:
                raise ZeroDivisionError

            with monkeypatch.context() as patch, capture_logs() as logs:
                patch.setattr(lane._destination, "send", odd)
                assert lane.step()
            assert "a delivery failed unexpectedly" in [line["event"] for line in logs]
            assert delivery(bed).reason == "Sending failed with ZeroDivisionError; the log of the delivery says where."
            bed.turn(60)
            assert lane.step()
        assert delivery(bed).state == State.COMPLETED

    def test_a_stale_attempt_stops_sending(self, bed: Bed) -> None:
        analysed(bed)

        def cancel(event: Any) -> int:
            bed.overview.cancel(delivery(bed).id, "person/a")
            return 0x0000

        with scp(cancel) as pacs, capture_logs() as logs:
            bed.delivery(pacs_of(pacs)).step()
        assert [r.sop_class_uid for r in pacs.received] == [SEG]
        assert delivery(bed).state == State.CANCELED
        assert "left to another attempt" in [line["event"] for line in logs]

    def test_an_answer_that_was_lost_is_made_up_for_with_the_same_bytes(self, bed: Bed) -> None:
        """The PACS has the SEG and was cut off before it said so: it gets the same one again."""
        analysed(bed)
        with scp(lambda event: (event.assoc.abort(block=False), 0x0000)[1], 0x0000) as pacs:
            bed.delivery(pacs_of(pacs)).step()
            assert delivery(bed).state == State.IN_PROGRESS
            bed.turn(60)
            bed.delivery(pacs_of(pacs)).step()
        assert [r.sop_class_uid for r in pacs.received] == [SEG, SEG, SR]
        assert pacs.received[0].data_set == pacs.received[1].data_set
        assert delivery(bed).state == State.COMPLETED

    def test_the_end_after_everything_was_accepted_sends_nothing_twice(self, bed: Bed) -> None:
        analysed(bed)
        got = bed.worklist.claim(Kind.DELIVERY, "killed", 10, 30)
        assert got is not None
        with scp() as pacs:
            seen = bed.worklist.result(got)
            bed.worklist.begin_sending(got, seen, {})
            for one in seen:
                bed.worklist.accepted(got, one.id, 0, "")
            bed.turn(11)
            assert bed.delivery(pacs_of(pacs)).step()
        assert pacs.received == []
        assert delivery(bed).state == State.COMPLETED


class TestWhoseResult:
    def test_patient_and_study_are_read_again_before_the_first_send(self, bed: Bed) -> None:
        images = analysed(bed)
        newer = [changed(i, PatientName="Corrected^Name", PatientID="NEW", AccessionNumber="A7") for i in images]
        bed.take(newer)
        with scp() as pacs:
            bed.delivery(pacs_of(pacs)).step()
        for received in pacs.received:
            ds = read(received)
            assert (str(ds.PatientName), ds.PatientID, ds.AccessionNumber) == ("Corrected^Name", "NEW", "A7")
        assert [r.sop_instance_uid for r in pacs.received] == [o.sop_instance_uid for o in bed.rows(ResultObject)]
        assert delivery(bed).state == State.COMPLETED

    def test_a_retry_sends_what_was_settled_first(self, bed: Bed) -> None:
        images = analysed(bed)
        bed.take([changed(i, PatientName="Corrected^Name") for i in images])
        with scp(0xA700, 0x0000) as pacs:
            bed.delivery(pacs_of(pacs)).step()
            bed.turn(60)
            bed.delivery(pacs_of(pacs)).step()
        assert pacs.received[0].data_set == pacs.received[1].data_set
        assert b"Corrected^Name" in pacs.received[0].data_set

    def test_a_change_after_the_first_send_is_held_for_a_person(self, bed: Bed, tmp_path: Path) -> None:
        images = analysed(bed, "pacs", "folder")
        with scp() as pacs:
            bed.delivery(pacs_of(pacs)).step()
            bed.take([changed(i, PatientName="Corrected^Name") for i in images])
            bed.delivery(folder_of(tmp_path / "out")).step()
        assert not (tmp_path / "out").exists()
        assert delivery(bed, 1).hold.startswith("The patient's or the study's attributes changed after a part")
        # As the sentence says: cancel, run again, and both get a result that bears the new name.
        bed.overview.cancel(delivery(bed, 1).id, "person/a")
        bed.overview.retry(bed.items()[0].id, "person/a")
        assert bed.worker().step()
        again = bed.items()[1]
        assert (again.generation, again.supersedes) == (1, bed.items()[0].id)
        with scp() as pacs:
            bed.delivery(pacs_of(pacs)).step()
            bed.delivery(folder_of(tmp_path / "out")).step()
        assert all(b"Corrected^Name" in r.data_set for r in pacs.received)
        assert len(list((tmp_path / "out").rglob("*.dcm"))) == 2
        assert len({o.sop_instance_uid for o in bed.rows(ResultObject)}) == 4

    @pytest.mark.parametrize("doubt", ["pixels", "patient"])
    def test_nothing_is_sent_while_in_doubt(self, bed: Bed, doubt: str) -> None:
        images = analysed(bed)
        bed.take([repixeled(images[0]) if doubt == "pixels" else changed(images[0], PatientID="ANOTHER")])
        with scp() as pacs:
            bed.delivery(pacs_of(pacs)).step()
            assert pacs.received == []
            assert pacs.associations == []
            assert delivery(bed).hold == bed.worklist.doubt(1) != ""
            assert bed.rows(Result)[0].first_sent_at is None
            assert not bed.delivery(pacs_of(pacs)).step()
            if doubt == "pixels":
                bed.overview.release(delivery(bed).id, "person/a")
            else:
                bed.take([changed(image, PatientID="ANOTHER") for image in images[1:]])
                bed.plan()
            assert bed.delivery(pacs_of(pacs)).step()
        assert len(pacs.received) == 2
        assert delivery(bed).state == State.COMPLETED

    def test_a_result_of_more_images_names_the_one_that_it_supersedes(self, bed: Bed) -> None:
        images = series(modality="MR", shape=(4, 12, 16))
        with scp() as pacs:
            for some in (images[:3], images[3:]):
                bed.take(some)
                bed.plan()
                assert bed.worker().step()
                assert bed.delivery(pacs_of(pacs)).step()
        seg, sr, newer_seg, newer_sr = (read(r) for r in pacs.received)
        assert len({str(ds.SOPInstanceUID) for ds in (seg, sr, newer_seg, newer_sr)}) == 4
        assert len({int(ds.SeriesNumber) for ds in (seg, sr, newer_seg, newer_sr)}) == 4
        assert f"supersedes S{seg.SeriesNumber}" in newer_seg.SeriesDescription
        predecessors = newer_sr.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
        assert [item.ReferencedSOPInstanceUID for item in predecessors] == [sr.SOPInstanceUID]


class TestLanes:
    def test_a_pacs_that_hangs_holds_up_nobody_else(self, bed: Bed, tmp_path: Path) -> None:
        from dicomai import delivery as module

        analysed(bed, "pacs", "folder")
        stop = threading.Event()
        with contextlib.closing(socket.create_server((HOST, 0))) as deaf:  # connects and never answers
            server = Scp("PACS", deaf.getsockname()[1], [])
            lanes = [bed.delivery(pacs_of(server, timeout=6.0)), bed.delivery(folder_of(tmp_path / "out"))]
            thread = threading.Thread(target=module.run, args=(lanes, stop))
            thread.start()
            wait_until(lambda: delivery(bed, 1).state == State.COMPLETED)
            assert (delivery(bed, 0).state, delivery(bed, 0).reason) == (State.IN_PROGRESS, "")  # it still waits
            stop.set()
            thread.join(20)
            assert not thread.is_alive()
        assert delivery(bed, 0).state == State.IN_PROGRESS

    def test_a_database_that_goes_away_does_not_end_the_lane(self, bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
        analysed(bed, "folder")
        stop = threading.Event()
        lane = bed.delivery(folder_of(bed.folder / "out"))
        real, calls = lane._worklist.claim, []

        def claim(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) == 1:
                raise StoreError("The worklist database failed (x).")
            return real(*args, **kwargs)

        monkeypatch.setattr(lane._worklist, "claim", claim)
        thread = threading.Thread(target=lane.run, args=(stop,))
        thread.start()
        wait_until(lambda: delivery(bed).state == State.COMPLETED)
        stop.set()
        thread.join(5)
        assert not thread.is_alive()


def test_a_destination_that_fails_in_its_own_way(bed: Bed) -> None:
    """The seam that a transport yet to be written comes in by."""

    class Broken:
        name = "pacs"
        max_age = None
        verify_timeout = None

        def reach(self) -> None:
            raise AssertionError

        def send(self, objects: Sequence[Outgoing], accepted: Accepted) -> None:
            accepted(objects[0], 0x0000, "")
            raise UnreachableError("The line broke.")

    analysed(bed)
    bed.delivery(Broken()).step()
    assert delivery(bed).reason == "The line broke."
    assert len(bed.rows(Acceptance)) == 1


def test_a_delivery_to_a_destination_that_is_no_more_says_so(bed: Bed) -> None:
    analysed(bed, "pacs", "gone")
    deliveries = Deliveries(bed.database)
    assert deliveries.orphaned(["pacs"], "delivery") == deliveries.orphaned(["pacs"], "delivery") == 1
    to_pacs, to_gone = bed.items("delivery")
    assert (to_pacs.reason, to_gone.reason) == (
        "", "Destination 'gone' is not in the configuration: add it, or cancel this item.",
    )  # fmt: skip
    assert bed.events(to_gone.id).count("orphaned") == 1


def test_what_another_destination_gets_is_restated_before_the_first_sending(bed: Bed) -> None:
    """A corrected attribute goes out with every object, whichever of two destinations of other profiles is first."""
    images = series(modality="MR", shape=(3, 12, 16), AccessionNumber="OLD")
    bed.take(images)
    bed.plan(route(outputs=("seg", "sr", "keyimage"), destinations=("old", "pacs")))
    assert bed.worker().step()
    bed.take([changed(image, AccessionNumber="NEW") for image in images])
    with bed.database.write() as session:
        for row, wanted in zip(bed.items("delivery"), (["keyimage"], ["seg", "sr"]), strict=True):
            item = session.get_one(Row, row.id)
            item.route = {**item.route, "wanted": wanted}
    with scp() as old, scp() as pacs:
        assert bed.delivery(pacs_of(old, "old")).step()
        assert bed.delivery(pacs_of(pacs)).step()
    assert [len(old.received), len(pacs.received)] == [1, 2]
    assert {read(one).AccessionNumber for one in [*old.received, *pacs.received]} == {"NEW"}
