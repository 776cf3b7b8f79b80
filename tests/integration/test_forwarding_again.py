"""What goes on more than once: corrections, what is taken back, refused or comes back; and what a person sees of it."""

from datetime import timedelta

import pytest
import sqlalchemy as sa
from pydicom.dataset import FileDataset
from pydicom.uid import generate_uid

from dicomai.database.index import Recorded
from dicomai.database.overview import Shown
from dicomai.database.tables import Audit, Workitem
from dicomai.database.tables import Series as SeriesRow
from dicomai.errors import WorklistError
from dicomai.forwarder import Forwarder
from dicomai.forwarding import Deidentify
from dicomai.planner import Planner
from dicomai.workitem import Kind, State
from tests.arrivals import changed, repixeled
from tests.beds import LOST, QUIET, Bed, parts, route
from tests.dimse import Scp, scp
from tests.integration.test_forwarding import came, ct, go, rule, send_on
from tests.rejected import rejection_note

CT = ("1.2.840.10008.5.1.4.1.1.2", ["1.2.840.10008.1.2.1"])


def headed(datasets: list[FileDataset], **attributes: str) -> list[FileDataset]:
    return [changed(ds, **attributes) for ds in datasets]


def order(pacs: Scp, right: list[FileDataset]) -> list[str]:
    """Say of all that was received whether it is what has to be there in the end."""
    wanted = {parts(ds)[1] for ds in right}
    return ["RIGHT" if one.data_set in wanted else "WRONG" for one in pacs.received]


def test_an_old_version_never_overtakes_its_correction(bed: Bed) -> None:
    wrong = ct(2, PatientID="WRONG")
    right = headed(wrong[:1], PatientID="RIGHT") + headed(wrong[1:], PatientID="RIGHT")
    bed.take(wrong)
    with scp(*[0xA700] * 8, 0x0000) as pacs:
        bed.plan(forwards=(rule(),))
        for _ in range(7):  # the wait is longer than a quiet period by then
            send_on(bed, pacs)
            bed.turn(1000.0)
        assert bed.take(right) == [Recorded.UPDATED] * 2
        for _ in range(4):
            bed.plan(forwards=(rule(),))
            send_on(bed, pacs)
            bed.turn(4000.0)
    assert order(pacs, right)[-2:] == ["RIGHT"] * 2
    assert "WRONG" not in order(pacs, right)[8:]
    old, new = bed.items(Kind.DELIVERY)
    assert (new.state, new.reason) == (State.COMPLETED, "")
    assert (old.state, old.reason) == (
        State.CANCELED, "2 of 2 objects did not go: newer ones of theirs go by themselves.",
    )  # fmt: skip


def test_a_correction_that_comes_while_the_old_one_is_under_way_goes_after_it(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    wrong = ct(2, PatientID="WRONG")
    right = headed(wrong, PatientID="RIGHT")
    bed.take(wrong)

    def corrected(_: object) -> int:
        bed.take(right)
        bed.plan(forwards=(rule(),))
        return 0x0000

    with scp(corrected, 0x0000) as pacs:
        go(bed, pacs)
        assert order(pacs, right) == ["WRONG"] * 2
        go(bed, pacs)
    assert order(pacs, right) == ["WRONG"] * 2 + ["RIGHT"] * 2


def test_a_retry_of_the_old_sends_nothing_old(bed: Bed) -> None:
    wrong = ct(2, PatientID="WRONG")
    right = headed(wrong[:1], PatientID="WRONG", StudyDescription="corrected")
    bed.take(wrong)
    with scp(0xA900, 0xA900, 0x0000) as pacs:
        go(bed, pacs)
        bed.take(right)
        go(bed, pacs)
        bed.overview.retry(bed.items(Kind.DELIVERY)[0].id, "person/ada")
        send_on(bed, pacs)
    assert [one.sop_instance_uid for one in pacs.received[2:]] == [ds.SOPInstanceUID for ds in (right[0], wrong[1])]
    again = bed.items(Kind.DELIVERY)[-1]
    assert again.state == State.COMPLETED
    assert again.reason == "1 of 2 objects did not go: newer ones of theirs go by themselves."


def test_a_correction_that_is_taken_back_goes_too(bed: Bed) -> None:
    right = ct(2, PatientID="RIGHT")
    wrong = headed(right, PatientID="WRONG")
    with scp() as pacs:
        for some in (right, wrong, right, right):
            came(bed, some, "CT01")
            go(bed, pacs)
    assert order(pacs, right) == ["RIGHT"] * 2 + ["WRONG"] * 2 + ["RIGHT"] * 2


@pytest.mark.parametrize("is_planned", [True, False])
def test_whatever_comes_in_between_the_last_version_goes(sqlite_bed: Bed, *, is_planned: bool) -> None:
    bed = sqlite_bed
    right = ct(2, PatientID="RIGHT")
    forwarder = Forwarder(bed.store, bed.database)
    came(bed, right, "CT01")
    bed.plan(forwards=(rule(),))
    came(bed, headed(right, PatientID="WRONG"), "CT01")  # before the forwarder has the first
    if is_planned:
        bed.plan(forwards=(rule(),))
    assert forwarder.step()
    came(bed, right, "CT01")
    with scp() as pacs:
        go(bed, pacs)
    assert order(pacs, right)[-2:] == ["RIGHT"] * 2


def test_a_retry_does_not_take_the_turn_of_what_came_after(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    right = ct(1, PatientID="RIGHT")
    with scp() as pacs:
        for some in (right, headed(right, PatientID="WRONG")):
            came(bed, some, "CT01")
            go(bed, pacs)
        bed.overview.retry(bed.items(Kind.FORWARD)[0].id, "person/ada")
        send_on(bed, pacs)
        came(bed, right, "CT01")
        go(bed, pacs)
    assert order(pacs, right) == ["RIGHT", "WRONG", "RIGHT"]


class TestRefused:
    def test_one_image_keeps_no_other_back_and_is_offered_again(self, bed: Bed) -> None:
        images = ct(4)
        bed.take(images)
        with scp(0x0000, 0xA900, 0x0122, 0x0000) as pacs:
            go(bed, pacs)
            (delivery,) = bed.items(Kind.DELIVERY)
            assert (len(pacs.received), len(pacs.associations), delivery.state) == (4, 1, State.CANCELED)
            assert delivery.reason.startswith("2 of 4 images were not accepted, the others were: Destination 'pacs'")
            assert "A900" in delivery.reason
            bed.overview.retry(delivery.id, "person/ada")
            send_on(bed, pacs)
            refused = [one.sop_instance_uid for one in pacs.received[1:3]]
            assert [one.sop_instance_uid for one in pacs.received[4:]] == refused
        assert bed.items(Kind.DELIVERY)[-1].state == State.COMPLETED

    def test_what_it_may_understand_later_is_offered_a_few_times(self, sqlite_bed: Bed) -> None:
        bed = sqlite_bed
        bed.take(ct(3))
        with scp(0xC001, 0x0000) as pacs:
            go(bed, pacs)
            assert len(pacs.received) == 3
            assert bed.items(Kind.DELIVERY)[0].state == State.IN_PROGRESS
            bed.turn(60.0)
            send_on(bed, pacs)
        assert (len(pacs.received), bed.items(Kind.DELIVERY)[0].state) == (4, State.COMPLETED)

    @pytest.mark.parametrize("count", [3, 0])
    def test_a_class_that_it_does_not_take(self, sqlite_bed: Bed, count: int) -> None:
        bed = sqlite_bed
        images = ct(3)
        odd = changed(images[0], SOPInstanceUID=str(generate_uid()), SOPClassUID="1.3.12.2.1107.5.9.1")
        odd.file_meta.MediaStorageSOPClassUID = odd.SOPClassUID
        odd.file_meta.MediaStorageSOPInstanceUID = odd.SOPInstanceUID
        bed.take([*images[:count], odd])
        with scp(contexts=[CT]) as pacs:
            go(bed, pacs)
        assert len(pacs.received) == count
        (delivery,) = bed.items(Kind.DELIVERY)
        assert delivery.state == State.CANCELED
        assert f"1 of {count + 1} images were not accepted" in delivery.reason

    def test_one_that_is_gone_from_the_disk(self, sqlite_bed: Bed) -> None:
        bed = sqlite_bed
        images = ct(3)
        bed.take(images)
        bed.plan(forwards=(rule(),))
        (bed.folder / "storage" / next(iter(bed.files()))).unlink()
        with scp() as pacs:
            send_on(bed, pacs)
        assert len(pacs.received) == 2
        assert "1 of 3 images were not accepted" in bed.items(Kind.DELIVERY)[0].reason


class TestComesBack:
    def test_a_pacs_that_stamps_what_it_sends_under_another_title_is_found_out(self, bed: Bed) -> None:
        images = ct(1)
        came(bed, images, "CT01")
        with scp() as pacs:
            for n in range(7):
                go(bed, pacs)
                came(bed, headed(images, InstanceCreationTime=f"12000{n}"), "PACS_SCU")
            assert len(pacs.received) == 4
            held = bed.items(Kind.FORWARD)[4]
            assert "does a destination send back what it gets?" in held.hold
            assert bed.overview.release(held.id, "person/ada") == ""
            send_on(bed, pacs)
        assert (
            next(row for row in bed.items(Kind.FORWARD) if row.id == held.id).state == State.CANCELED
        )  # newer ones came
        assert all(row.hold for row in bed.items(Kind.FORWARD)[5:])

    def test_where_its_titles_are_known_nothing_goes_to_it(self, sqlite_bed: Bed) -> None:
        bed = sqlite_bed
        images = ct(1)
        how = rule(returns_as={"pacs": ("PACS", "PACS_SCU")})
        came(bed, images, "CT01")
        with scp() as pacs:
            go(bed, pacs, how)
            came(bed, headed(images, InstanceCreationTime="120000"), "PACS_SCU")
            go(bed, pacs, how)
        assert len(pacs.received) == 1

    def test_what_it_makes_of_them_is_no_doubt_about_late_images(self, bed: Bed) -> None:
        images = ct(3, PatientID="P1")
        came(bed, images[:2], "CT01")
        with scp() as pacs:
            go(bed, pacs)
            came(bed, [changed(images[0], PatientID="HOSP-P1"), repixeled(images[1])], "PACS")
            go(bed, pacs)
            came(bed, images[2:], "CT01")
            go(bed, pacs)
        assert [one.sop_instance_uid for one in pacs.received[2:]] == [images[2].SOPInstanceUID]

    def test_a_person_lets_go_what_disagrees_and_no_analysis(self, bed: Bed) -> None:
        images = ct(2)
        bed.take([images[0], changed(images[1], PatientID="another")])
        with scp() as pacs:
            bed.plan(forwards=(rule(),))
            send_on(bed, pacs)
            (item,), (analysis,) = bed.items(Kind.FORWARD), bed.items()
            assert "disagrees in PatientID" in item.hold
            assert "disagree in PatientID" in analysis.hold
            assert bed.overview.release(item.id, "person/ada") == ""
            send_on(bed, pacs)
            with pytest.raises(WorklistError, match="stays held"):
                bed.overview.release(analysis.id, "person/ada")
        assert len(pacs.received) == 2

    def test_a_document_of_another_patient_is_held(self, sqlite_bed: Bed) -> None:
        bed = sqlite_bed
        images = ct(2, PatientID="A")
        bed.take([*images, rejection_note(images, "113030", PatientID="B")])
        bed.plan(forwards=(rule(),))
        assert all("disagrees in PatientID" in row.hold for row in bed.items(Kind.FORWARD))
        assert [row.hold for row in bed.items()] == [""]


class TestSeen:
    def test_why_nothing_is_run_is_said_of_what_goes_on_too(self, sqlite_bed: Bed) -> None:
        bed = sqlite_bed
        bed.take(ct(2))
        with scp() as pacs:
            bed.plan(route(match={"Modality": "MR"}), forwards=(rule(),))
            send_on(bed, pacs)
        assert [e.state for e in bed.overview.entries() if e.id is None] == ["NOT ROUTED"]

    def test_a_node_that_only_forwards_misses_no_route(self, sqlite_bed: Bed) -> None:
        bed = sqlite_bed
        bed.take(ct(2))
        bed.turn(QUIET + 1)
        Planner(bed.store, bed.database, (), {}, quiet_period=QUIET, lost_period=LOST, forwards=(rule(),)).sweep()
        assert [e.kind for e in bed.overview.entries()] == ["forward"]

    def test_what_is_held_is_seen_first_and_what_failed_next(self, bed: Bed) -> None:
        images = ct(2)
        bed.take([images[0], changed(images[1], PatientID="another")])
        bed.plan(forwards=(rule(),))
        failed = bed.items()[0]
        bed.overview.cancel(failed.id, "person/ada")
        with bed.database.write() as session:
            now = bed.database.now(session) + timedelta(seconds=1)
            row = {
                "kind": "delivery", "state": "COMPLETED", "study_id": 1, "route": {}, "route_name": "all",
                "digest": "x", "destination": "pacs", "due_at": now, "created_at": now, "changed_at": now,
            }  # fmt: skip
            session.execute(sa.insert(Workitem), [row] * 30)
        shown = bed.overview.entries(3)
        assert [(e.kind, e.state) for e in shown] == [
            ("forward", "SCHEDULED (held)"), ("inference", "CANCELED"), ("delivery", "COMPLETED"),
        ]  # fmt: skip
        assert [e.kind for e in bed.overview.entries(state=Shown.HELD)] == ["forward"]
        assert [e.kind for e in bed.overview.entries(state=Shown.CANCELED)] == ["inference"]

    def test_documents_ask_ever_less_and_say_for_what_they_wait(self, sqlite_bed: Bed) -> None:
        bed = sqlite_bed
        images = ct(2)
        bed.take([*images, rejection_note(images, "113000")])
        with scp(*[0xA700] * 100) as pacs:
            go(bed, pacs)
            before, (first, second) = len(bed.rows(Audit)), bed.items(Kind.DELIVERY)
            with bed.database.write() as session:
                session.get_one(Workitem, first.id).hold = "held by hand"
            for _ in range(40):
                bed.turn(30.0)
                send_on(bed, pacs)
        assert f"for workitem {first.id}, which is held for a person." in bed.items(Kind.DELIVERY)[1].reason
        assert len(bed.rows(Audit)) - before < 24
        assert second.attempt == 1

    def test_documents_wait_for_images_that_are_retried(self, sqlite_bed: Bed) -> None:
        bed = sqlite_bed
        images = ct(2)
        note = rejection_note(images, "113000")
        bed.take([*images, note])
        bed.plan(forwards=(rule(),))
        first, _ = bed.items(Kind.FORWARD)
        bed.overview.cancel(first.id, "person/ada")
        bed.overview.retry(first.id, "person/ada")
        with scp() as pacs:
            send_on(bed, pacs)
            bed.turn(60.0)
            send_on(bed, pacs)
        assert len(pacs.received) == 3
        assert pacs.received[-1].sop_instance_uid == note.SOPInstanceUID

    def test_what_cannot_be_planned_says_so_until_it_can(self, sqlite_bed: Bed) -> None:
        bed = sqlite_bed
        bed.take([rejection_note(ct(1), "113030")])
        path = bed.folder / "storage" / next(iter(bed.files()))
        aside = path.rename(path.with_suffix(".aside"))
        bed.plan(forwards=(rule(match={"Modality": "KO"}),))
        (entry,) = bed.overview.entries()
        assert "It does not go on: " in entry.reason
        aside.rename(path)
        bed.plan(forwards=(rule(match={"Modality": "KO"}),))
        assert "It does not go on" not in bed.rows(SeriesRow)[0].reason
        assert len(bed.items(Kind.FORWARD)) == 1

    def test_what_nobody_can_read_says_so(self, sqlite_bed: Bed) -> None:
        bed = sqlite_bed
        bed.take([rejection_note(ct(1), "113030")])
        path = bed.folder / "storage" / next(iter(bed.files()))
        path.chmod(0o600)
        path.write_bytes(b"nothing" * 100)
        bed.plan(forwards=(rule(match={"Modality": "KO"}),))
        (entry,) = bed.overview.entries()
        assert "nothing of it can be read" in entry.reason

    def test_what_takes_long_lets_the_others_go_first(self, sqlite_bed: Bed) -> None:
        bed = sqlite_bed
        bed.take(ct(1))
        research = rule("research", deidentify=Deidentify.BASIC)
        bed.plan(forwards=(research, rule(destinations=("archive",), returns_as={})))
        assert Forwarder(bed.store, bed.database).step()
        assert [row.route_name for row in bed.items(Kind.DELIVERY)] == ["all"]
