"""When is a series complete, and what work comes of it: with real files, on a clock that is turned."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import FileDataset
from pydicom.uid import generate_uid
from structlog.testing import capture_logs

from dicomai import planner as planner_module
from dicomai.association import AssociationEnd
from dicomai.database.index import Recorded, SeriesState
from dicomai.database.results import FrozenObject
from dicomai.database.tables import Instance, Result, ResultObject, Series, WorkitemInput
from dicomai.database.tables import Workitem as Row
from dicomai.errors import StoreError, WorklistError
from dicomai.routing import Level
from dicomai.stacks import split
from dicomai.workitem import Kind, State
from tests.arrivals import changed, repixeled
from tests.beds import LOST, QUIET, Bed, announced, parts, route
from tests.synthetic import encode, enhanced, series

STUDY = "1.2.826.0.1"


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    made = Bed(tmp_path, f"sqlite:///{tmp_path / 'worklist.db'}")
    yield made
    made.close()


@pytest.fixture
def any_bed(database_url: str, tmp_path: Path) -> Iterator[Bed]:
    made = Bed(tmp_path, database_url)
    yield made
    made.close()


def mr(count: int = 3, **attributes: Any) -> list[FileDataset]:
    return series(modality="MR", shape=(count, 4, 4), study_uid=STUDY, **attributes)


def finish(bed: Bed, destination: str = "pacs", outputs: tuple[str, ...] = ("seg", "sr")) -> int:
    """Finish the next inference item as a worker does; gives its number."""
    claim = bed.worklist.claim(Kind.INFERENCE, "test", 60, 3)
    assert claim is not None
    objects = []
    for n, output in enumerate(outputs):
        key = f"results/{claim.item}/{claim.attempt}/{n}.dcm"
        bed.store.put(key, b"x")
        objects.append(FrozenObject(output, "1.2", generate_uid(), generate_uid(), 9000 + n, key))
    bed.worklist.finish_inference(claim, objects, [destination])
    return claim.item


def reason(bed: Bed) -> str:
    """Give the sentence that a person sees of the only series on which nothing runs."""
    (entry,) = (entry for entry in bed.overview.entries() if entry.id is None)
    return entry.reason


class TestComplete:
    def test_after_the_quiet_period_and_not_before(self, any_bed: Bed) -> None:
        any_bed.take(mr())
        planner = any_bed.planner()
        any_bed.turn(QUIET - 5)
        assert planner.sweep() == 0
        assert any_bed.items() == []
        any_bed.turn(6)
        assert planner.sweep() == 1
        (item,) = any_bed.items()
        (given,) = any_bed.rows(WorkitemInput)
        assert (item.state, item.hold, item.route_name, given.role) == (State.SCHEDULED, "", "tiny", "image")
        assert len(given.sop_instance_uids) == 3
        assert any_bed.events(item.id) == ["scheduled"]
        assert planner.sweep() == 0

    def test_every_image_begins_the_quiet_period_anew(self, bed: Bed) -> None:
        planner = bed.planner()
        for image in mr(4):
            bed.take([image])
            bed.turn(QUIET - 5)
            assert planner.sweep() == 0
        bed.turn(6)
        assert planner.sweep() == 1
        assert len(bed.items()) == 1

    def test_a_route_can_ask_for_a_longer_quiet_period(self, bed: Bed) -> None:
        planner = bed.planner(route(quiet_period=300.0))
        bed.take(mr())
        bed.turn(QUIET + 1)
        assert planner.sweep() == 0
        bed.turn(300 - QUIET)
        assert planner.sweep() == 1

    def test_not_while_an_association_that_carried_it_is_at_work(self, any_bed: Bed) -> None:
        planner = any_bed.planner()
        association = any_bed.intake.open_association("CT01", "10.0.0.1")
        any_bed.take(mr(), association)
        for _ in range(3):  # it sends another series for as long
            any_bed.turn(QUIET - 10)
            any_bed.intake.renew([association])
            any_bed.take(mr(1), association)
            any_bed.turn(11)
            any_bed.intake.renew([association])
            assert planner.sweep() == 0
        any_bed.intake.close_association(association, AssociationEnd.RELEASED)
        any_bed.turn(QUIET)
        assert planner.sweep() == 4

    def test_an_open_association_that_is_idle_counts_as_closed(self, bed: Bed) -> None:
        association = bed.intake.open_association("CT01", "10.0.0.1")
        bed.take(mr(), association)
        bed.turn(QUIET + 1)
        bed.intake.renew([association])
        assert bed.planner().sweep() == 1

    def test_an_association_whose_receiver_has_died_is_not_taken_for_idle(self, bed: Bed) -> None:
        association = bed.intake.open_association("CT01", "10.0.0.1")
        bed.take(mr(), association)
        planner = bed.planner(route(quiet_period=2.0))
        bed.turn(3)
        assert planner.sweep() == 0
        bed.intake.recover()  # the receiver starts again: the association was lost
        bed.turn(QUIET)
        assert planner.sweep() == 0
        bed.turn(LOST)
        assert planner.sweep() == 1

    @pytest.mark.parametrize("end", [AssociationEnd.ABORTED, AssociationEnd.LOST])
    def test_after_an_association_that_broke_off_it_waits_for_longer(self, any_bed: Bed, end: AssociationEnd) -> None:
        association = any_bed.intake.open_association("CT01", "10.0.0.1")
        any_bed.take(mr(), association)
        any_bed.intake.close_association(association, end)
        planner = any_bed.planner()
        any_bed.turn(QUIET + 1)
        assert planner.sweep() == 0
        any_bed.turn(LOST - QUIET - 10)
        assert planner.sweep() == 0
        any_bed.turn(10)
        assert planner.sweep() == 1

    def test_an_association_whose_lease_runs_out_was_lost(self, bed: Bed) -> None:
        association = bed.intake.open_association("CT01", "10.0.0.1")
        bed.take(mr(), association)
        bed.turn(QUIET + 1)
        planner = bed.planner()
        assert planner.sweep() == 0  # nobody has renewed it
        bed.turn(LOST)
        assert planner.sweep() == 1

    @pytest.mark.parametrize("again", ["what was missing", "all of it", "what was there already"])
    def test_a_later_association_that_was_released_makes_up_for_it(self, bed: Bed, again: str) -> None:
        images = mr(4)
        association = bed.intake.open_association("CT01", "10.0.0.1")
        there = images if again == "what was there already" else images[:2]
        bed.take(there, association)
        bed.intake.close_association(association, AssociationEnd.ABORTED)
        bed.turn(5)
        association = bed.intake.open_association("CT01", "10.0.0.1")
        bed.take(images[2:] if again == "what was missing" else images, association)
        bed.intake.close_association(association, AssociationEnd.RELEASED)
        bed.turn(QUIET + 1)
        assert bed.planner().sweep() == 1

    def test_an_association_beside_the_broken_one_does_not_make_up_for_it(self, bed: Bed) -> None:
        images = mr(4)
        one, other = (bed.intake.open_association(f"CT{n}", "10.0.0.1") for n in (1, 2))
        bed.take(images[:2], one)
        bed.take(images[2:], other)
        bed.turn(1)
        bed.intake.close_association(one, AssociationEnd.ABORTED)
        bed.intake.close_association(other, AssociationEnd.RELEASED)
        bed.turn(QUIET + 1)
        assert bed.planner().sweep() == 0

    def test_due_times_survive_a_restart(self, tmp_path: Path) -> None:
        bed = Bed(tmp_path, f"sqlite:///{tmp_path / 'worklist.db'}")
        bed.take(mr())
        bed.turn(QUIET / 2)
        assert bed.planner().sweep() == 0
        forward = bed.database.forward
        bed.close()
        again = Bed(tmp_path, bed.url)
        again.database.forward = forward
        again.intake.recover()
        assert again.planner().sweep() == 0
        again.turn(QUIET / 2 + 1)
        assert again.planner().sweep() == 1
        again.close()

    def test_an_image_that_comes_while_it_is_planned_makes_it_start_over(
        self, bed: Bed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images = mr(3)
        bed.take(images[:2])
        bed.turn(QUIET + 1)
        planner = bed.planner()
        real = planner._planning.commit
        monkeypatch.setattr(planner._planning, "commit", lambda *a: (bed.take(images[2:]), real(*a))[1])
        assert planner.sweep() == 0
        assert bed.items() == []
        monkeypatch.undo()
        bed.turn(QUIET + 1)
        assert planner.sweep() == 1
        assert len(bed.rows(WorkitemInput)[0].sop_instance_uids) == 3


class TestWhatWork:
    def test_two_echoes_are_two_stacks_and_two_items(self, bed: Bed) -> None:
        uid = generate_uid()
        bed.take(mr(series_uid=uid, EchoTime="20", EchoNumbers=1) + mr(series_uid=uid, EchoTime="90", EchoNumbers=2))
        assert bed.plan() == 1
        stacks = [given.stack for given in bed.rows(WorkitemInput)]
        assert ["echo=1" in stack for stack in stacks] == [True, False]
        assert len({item.digest for item in bed.items()}) == 2
        assert [len(given.sop_instance_uids) for given in bed.rows(WorkitemInput)] == [3, 3]

    def test_every_route_that_matches_gives_an_item(self, bed: Bed) -> None:
        bed.take(mr())
        bed.plan(route("one"), route("other"), route("ct", match={"Modality": "CT"}))
        assert [item.route_name for item in bed.items()] == ["one", "other"]

    def test_the_item_carries_its_route_as_it_was_planned(self, bed: Bed) -> None:
        bed.take(mr())
        bed.plan(route(destinations=("pacs", "folder"), outputs=("sr",)))
        (item,) = bed.items()
        assert item.route["destinations"] == ["pacs", "folder"]
        assert item.route["outputs"] == ["sr"]

    def test_no_route_is_a_sentence_with_values(self, bed: Bed) -> None:
        bed.take(series(modality="CT", shape=(2, 4, 4), SeriesDescription="Thorax"))
        bed.plan(route("brain", match={"Modality": "MR"}))
        assert bed.items() == []
        assert reason(bed) == "No route takes it: brain: Modality is 'CT', not 'MR'."

    def test_no_route_at_all_is_a_sentence(self, bed: Bed) -> None:
        bed.take(mr())
        bed.turn(QUIET + 1)
        planner = bed.planner(route())
        planner._routes = ()
        planner.sweep()
        assert reason(bed) == "No route is configured."

    def test_a_localizer_is_left_out_unless_asked_for(self, bed: Bed) -> None:
        bed.take(mr(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
        bed.plan()
        assert bed.items() == []
        assert "excluded by 'LOCALIZER|DERIVED|SECONDARY'" in reason(bed)
        bed.take(mr(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
        bed.plan(route(exclude={}))
        assert len(bed.items()) == 1

    def test_a_nul_character_in_what_is_quoted_does_no_harm(self, any_bed: Bed) -> None:
        (image,) = mr(1, SeriesDescription="T2 axial")
        head, data = parts(image)
        any_bed.intake.accept(*announced((head, data.replace(b"T2 axial", b"T2\0axial"))), None)
        any_bed.plan(route(match={"SeriesDescription": "T1.*"}))
        assert "T2axial" in reason(any_bed)

    def test_pixels_of_what_no_route_takes_are_not_hashed(self, bed: Bed) -> None:
        bed.take(mr())
        bed.plan(route(match={"Modality": "CT"}))
        assert [row.fingerprint for row in bed.rows(Instance)] == [None] * 3
        bed.take(mr())
        bed.plan()
        assert sum(row.fingerprint is not None for row in bed.rows(Instance)) == 3


class TestLater:
    def test_a_late_image_gives_a_new_item_that_supersedes(self, any_bed: Bed) -> None:
        images = mr(4)
        any_bed.take(images[:3])
        any_bed.plan()
        first = finish(any_bed)
        any_bed.take(images[3:])
        assert any_bed.series(images[0].SeriesInstanceUID).state == SeriesState.RECEIVING
        any_bed.plan()
        old, new = any_bed.items()
        assert (new.supersedes, new.state, old.state) == (first, State.SCHEDULED, State.COMPLETED)
        assert new.digest != old.digest
        (delivery,) = any_bed.items("delivery")
        assert delivery.state == State.CANCELED
        assert delivery.reason == f"Superseded by workitem {new.id}: images came after this one was planned."
        assert any_bed.events(delivery.id) == ["scheduled", "IN PROGRESS", "CANCELED"]

    def test_it_cancels_an_item_under_way_whose_attempt_then_changes_nothing(self, bed: Bed) -> None:
        images = mr(4)
        bed.take(images[:3])
        bed.plan()
        claim = bed.worklist.claim(Kind.INFERENCE, "test", 1e6, 3)
        assert claim is not None
        bed.take(images[3:])
        bed.plan()
        with pytest.raises(WorklistError):
            bed.worklist.finish_inference(claim, [], ["pacs"])
        old, _ = bed.items()
        assert (old.state, old.result_id) == (State.CANCELED, None)
        assert bed.items("delivery") == []

    def test_a_delivery_that_is_being_sent_goes_on(self, bed: Bed) -> None:
        """Half a result at the destination would be worse than an old one that the new one names."""
        images = mr(4)
        bed.take(images[:3])
        bed.plan()
        finish(bed)
        claim = bed.worklist.claim(Kind.DELIVERY, "test", 1e6, 3)
        assert claim is not None
        objects = bed.worklist.result(claim)
        assert bed.worklist.begin_sending(claim, objects, {})
        bed.take(images[3:])
        bed.plan()
        assert bed.items("delivery")[0].state == State.IN_PROGRESS
        bed.worklist.accepted(claim, objects[0].id, 0, "")
        bed.worklist.postpone(claim, 10, "The PACS went to sleep.")
        # What was sent is what the new result supersedes.
        new = bed.worklist.claim(Kind.INFERENCE, "test", 60, 3)
        assert new is not None
        assert [o.sop_instance_uid for o in bed.worklist.predecessors(new)] == [o.sop_instance_uid for o in objects]

    def test_what_was_never_sent_is_nothing_to_supersede(self, bed: Bed) -> None:
        images = mr(4)
        bed.take(images[:3])
        bed.plan()
        finish(bed)
        bed.take(images[3:])
        bed.plan()
        new = bed.worklist.claim(Kind.INFERENCE, "test", 60, 3)
        assert new is not None
        assert bed.worklist.predecessors(new) == []

    def test_a_header_that_was_corrected_makes_no_new_work(self, any_bed: Bed) -> None:
        images = mr()
        any_bed.take(images)
        any_bed.plan()
        finish(any_bed)
        newer = [changed(image, PatientName="Corrected^Name") for image in images]
        assert set(any_bed.take(newer)) == {Recorded.UPDATED}
        assert any_bed.plan() == 1
        assert len(any_bed.items()) == 1
        assert any_bed.items("delivery")[0].state == State.SCHEDULED

    def test_the_same_images_again_make_no_new_work(self, bed: Bed) -> None:
        images = mr()
        bed.take(images)
        bed.plan()
        bed.take(images)
        assert bed.plan() == 0
        assert len(bed.items()) == 1

    def test_a_new_version_of_the_model_is_other_work(self, bed: Bed, tmp_path: Path) -> None:
        from dicomai import bundle
        from tests.beds import write_bundle

        images = mr(4)
        bed.take(images[:3])
        bed.plan()
        newer = {"tiny": bundle.load(write_bundle(tmp_path / "newer/tiny", version="0.2"))}
        bed.take([changed(images[0], PatientName="Corrected^Name")])
        bed.turn(QUIET + 1)
        assert bed.planner(bundles=newer).sweep() == 1
        old, new = bed.items()
        assert old.digest != new.digest
        assert (old.state, new.supersedes) == (State.CANCELED, old.id)

    def test_our_own_segmentation_coming_back_makes_no_work(self, bed: Bed) -> None:
        bed.take(mr())
        bed.plan()
        finish(bed)
        before = [(s.id, s.revision, s.state) for s in bed.rows(Series)]
        (ours,) = mr(1)
        with bed.database.write() as session:
            session.add(
                Result(
                    created_at=bed.database.now(session),
                    objects=[
                        ResultObject(
                            n=0,
                            output="seg",
                            sop_class_uid="1.2",
                            sop_instance_uid=ours.SOPInstanceUID,
                            series_instance_uid=ours.SeriesInstanceUID,
                            series_number=9000,
                            key="x",
                        )
                    ],
                )
            )
        bed.take([ours])
        assert bed.plan() == 0
        assert [(s.id, s.revision, s.state) for s in bed.rows(Series)][:-1] == before
        assert len(bed.items()) == 1


class TestWhoseImages:
    def test_other_pixels_hold_the_work_until_a_person_releases_it(self, any_bed: Bed) -> None:
        images = mr()
        any_bed.take(images)
        any_bed.plan()
        any_bed.take([repixeled(images[0])])
        any_bed.plan()
        (item,) = any_bed.items()
        assert "came again with other pixels. Release the item" in item.hold
        assert any_bed.worklist.claim(Kind.INFERENCE, "test", 60, 3) is None
        assert any_bed.events(item.id) == ["scheduled", "held"]
        any_bed.overview.release(item.id, "person/a")
        assert any_bed.events(item.id) == ["scheduled", "held", "released"]
        assert any_bed.worklist.claim(Kind.INFERENCE, "test", 60, 3) is not None

    def test_a_mixed_up_patient_holds_until_the_pacs_corrects_it(self, any_bed: Bed) -> None:
        images = mr(PatientID=lambda z: "A" if z else "B")
        any_bed.take(images)
        any_bed.plan()
        (item,) = any_bed.items()
        assert item.hold.startswith("The images of this study disagree in PatientID;")
        assert any_bed.worklist.claim(Kind.INFERENCE, "test", 60, 3) is None
        with pytest.raises(WorklistError, match="stays held"):
            any_bed.overview.release(item.id, "person/a")
        (entry,) = (entry for entry in any_bed.overview.entries() if entry.id == item.id)
        assert (entry.state, entry.reason) == ("SCHEDULED (held)", item.hold)
        any_bed.take([changed(images[0], PatientID="A")])
        any_bed.plan()
        assert any_bed.items()[0].hold == ""
        assert any_bed.worklist.claim(Kind.INFERENCE, "test", 60, 3) is not None
        assert any_bed.events(item.id) == ["scheduled", "held", "let go", "IN PROGRESS"]

    def test_doubt_in_one_series_holds_the_whole_study(self, bed: Bed) -> None:
        bed.take(mr())
        bed.plan()
        bed.take(mr(PatientBirthDate="19991231"))
        bed.plan()
        assert [bool(item.hold) for item in bed.items()] == [True, True]

    def test_a_series_that_lacks_an_image_to_another_study_is_held_too(self, bed: Bed) -> None:
        """Without its own image, which went to another study first, it would be analysed with a hole."""
        images = mr(4)
        stray = changed(images[1], StudyInstanceUID="1.2.99", SeriesInstanceUID="1.2.99.1")
        bed.take([stray])
        bed.take(images)
        bed.plan()
        held = {item.study_id: bool(item.hold) for item in bed.items()}
        assert set(held.values()) == {True}
        assert len(held) == 2

    def test_a_shared_series_is_released_study_by_study(self, bed: Bed) -> None:
        uid = generate_uid()
        bed.take(mr(series_uid=uid))
        bed.take(series(modality="MR", shape=(3, 4, 4), study_uid="1.2.77", series_uid=uid))
        bed.plan()
        one, other = bed.items()
        assert one.hold == other.hold != ""
        bed.overview.release(one.id, "person/a")
        claim = bed.worklist.claim(Kind.INFERENCE, "test", 60, 3)
        assert claim is not None
        assert claim.item == one.id
        assert bed.worklist.doubt(one.study_id) == ""
        assert bed.worklist.claim(Kind.INFERENCE, "test", 60, 3) is None


class TestStudyLevel:
    ROUTE = route(level=Level.STUDY, match={"SeriesDescription": "T1"})

    def test_it_waits_for_all_series(self, any_bed: Bed) -> None:
        planner = any_bed.planner(self.ROUTE)
        any_bed.take(mr(SeriesDescription="T1"))
        any_bed.turn(QUIET - 10)
        any_bed.take(mr(SeriesDescription="T2"))
        any_bed.turn(11)
        assert planner.sweep() == 1
        assert any_bed.items() == []
        any_bed.turn(QUIET)
        assert planner.sweep() == 1
        (item,) = any_bed.items()
        (given,) = any_bed.rows(WorkitemInput)
        assert any_bed.rows(Series)[given.series_id - 1].description == "T1"
        assert item.route["level"] == "study"

    def test_a_series_that_comes_later_and_changes_nothing_makes_no_new_work(self, bed: Bed) -> None:
        bed.take(mr(SeriesDescription="T1"))
        bed.plan(self.ROUTE)
        bed.take(mr(SeriesDescription="T2"))
        assert bed.plan(self.ROUTE) == 1
        assert len(bed.items()) == 1

    def test_two_that_match_are_a_question_to_a_person(self, bed: Bed) -> None:
        bed.take(mr(SeriesDescription="T1") + mr(SeriesDescription="T1"))
        bed.plan(self.ROUTE)
        assert bed.items() == []
        assert any("matches 2 stacks of this study, but tiny takes 1" in e.reason for e in bed.overview.entries())

    def test_a_broken_series_does_not_cost_another_its_own_work(self, bed: Bed) -> None:
        bad = mr(SeriesDescription="T1")
        bed.take(bad)
        bed.turn(1)
        bed.take(mr(SeriesDescription="T2"))
        break_file(bed, bad[0])
        bed.plan(self.ROUTE, route("own", match={"SeriesDescription": "T2"}))
        assert [item.route_name for item in bed.items()] == ["own"]
        assert bed.series(bad[0].SeriesInstanceUID).reason.endswith("cannot be read as DICOM: InvalidDicomError.")


def break_file(bed: Bed, image: FileDataset) -> None:
    """Let a disk lose the content of a stored image."""
    (key,) = (key for key in bed.files() if str(image.SOPInstanceUID) in key)
    (bed.folder / "storage" / key).write_bytes(b"\0" * 200)


class TestTrouble:
    def test_a_corrupt_file_ends_in_a_sentence_and_the_others_go_on(self, bed: Bed) -> None:
        bad = mr()
        bed.take(bad)
        bed.turn(1)
        bed.take(mr())
        break_file(bed, bad[1])
        assert bed.plan() == 1
        assert reason(bed) == f"SOP Instance {bad[1].SOPInstanceUID} cannot be read as DICOM: InvalidDicomError."
        assert len(bed.items()) == 1

    def test_a_file_that_is_gone_is_looked_for_again(self, bed: Bed) -> None:
        (image,) = mr(1)
        bed.take([image])
        (key,) = bed.files()
        (bed.folder / "storage" / key).unlink()
        bed.turn(QUIET + 1)
        planner = bed.planner()
        assert planner.sweep() == 0
        assert "Cannot read instances/" in reason(bed)
        assert bed.rows(Series)[0].state == SeriesState.RECEIVING
        bed.store.put(key, encode(image))
        assert planner.sweep() == 0  # not at once
        bed.turn(31)
        assert planner.sweep() == 1

    def test_what_nobody_thought_of_does_not_keep_others_from_being_planned(
        self, bed: Bed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = mr()
        bed.take(first)
        bed.turn(1)
        bed.take(mr())
        real = split

        def odd(one: Any) -> Any:
            if one.header.SeriesInstanceUID == first[0].SeriesInstanceUID:
                raise ZeroDivisionError
            return real(one)

        monkeypatch.setattr(planner_module, "split", odd)
        with capture_logs() as logs:
            bed.plan()
        assert reason(bed) == "Planning failed with ZeroDivisionError; the log of the planner says where."
        assert len(bed.items()) == 1
        assert [line["event"] for line in logs if line["log_level"] == "error"] == ["planning failed unexpectedly"]

    def test_a_database_that_goes_away_in_the_middle_loses_nothing(
        self, bed: Bed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bed.take(mr())
        bed.turn(QUIET + 1)
        planner = bed.planner()

        def fail(*_: object) -> bool:
            raise StoreError("The worklist database failed (x).")

        with monkeypatch.context() as patch:
            patch.setattr(planner._planning, "commit", fail)
            assert planner.sweep() == 0
        bed.turn(31)
        assert planner.sweep() == 1
        assert len(bed.items()) == 1


def test_an_enhanced_image_with_two_echoes_is_two_items_of_one_instance(bed: Bed) -> None:
    bed.take([enhanced(shape=(4, 4, 4), positions=[0, 0, 2, 2], echo_times=[20, 90, 20, 90])])
    bed.plan()
    assert len(bed.items()) == 2
    one, other = bed.rows(WorkitemInput)
    assert one.sop_instance_uids == other.sop_instance_uids
    assert one.stack != other.stack


def test_two_planners_at_once_plan_once(database_url: str, tmp_path: Path) -> None:
    import threading

    bed = Bed(tmp_path, database_url)
    for _ in range(4):
        bed.take(mr())
    bed.turn(QUIET + 1)
    start = threading.Barrier(2)

    def sweep() -> None:
        planner = bed.planner()
        start.wait()
        planner.sweep()

    threads = [threading.Thread(target=sweep) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(bed.items()) == 4
    assert len({row.digest for row in bed.rows(Row)}) == 4
    bed.close()
