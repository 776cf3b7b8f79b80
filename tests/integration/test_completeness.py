"""What procedure steps, notifications and counts do to the wait: over real sockets, on both databases, by a clock."""

import contextlib
import copy
import itertools
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import sqlalchemy as sa
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom.association import Association

from dicomai.association import AssociationEnd
from dicomai.config import Settings
from dicomai.counts import Counts
from dicomai.database import Database
from dicomai.database.announcements import Announcements, Said
from dicomai.database.completeness import PATIENCE
from dicomai.database.index import SeriesState
from dicomai.database.results import FrozenObject
from dicomai.database.tables import Announcement, Audit, ProcedureStep, Series, WorkitemInput
from dicomai.errors import UnreachableError, WorklistError
from dicomai.receiver import Receiver
from dicomai.receiver.availability import Availability
from dicomai.receiver.procedure_steps import ProcedureSteps
from dicomai.receiver.services import Answer, Request, Service
from dicomai.routing import Level
from dicomai.workitem import Kind, State
from tests.beds import LOST, QUIET, Bed, route
from tests.dimse import HOST, MemoryIntake, associate
from tests.synthetic import series

STEP = "1.2.840.10008.3.1.2.3.3"
NOTICE = "1.2.840.10008.5.1.4.33"
STUDY = "1.2.826.0.1"
OTHER_SERIES = "1.2.826.0.1.9"


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables, to be copied: to make them takes longer than most tests here."""
    path = tmp_path_factory.mktemp("migrated") / "worklist.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    database.close()
    return path


@pytest.fixture
def bed(tmp_path: Path, migrated: Path) -> Iterator[Bed]:
    shutil.copy(migrated, tmp_path)
    made = Bed(tmp_path, f"sqlite:///{tmp_path / 'worklist.db'}")
    yield made
    made.close()


@pytest.fixture
def any_bed(database_url: str, tmp_path: Path) -> Iterator[Bed]:
    made = Bed(tmp_path, database_url)
    yield made
    made.close()


def mr(count: int = 4, **attributes: Any) -> list[FileDataset]:
    return series(modality="MR", shape=(count, 4, 4), **({"study_uid": STUDY} | attributes))


@contextlib.contextmanager
def wire(bed: Bed) -> Iterator[Association]:
    """An association with a receiver that offers both services on this bed's database."""
    announcements = Announcements(bed.database)
    settings = Settings(node={"host": HOST, "port": 1, "storage": bed.folder})
    settings = settings.model_copy(update={"node": settings.node.model_copy(update={"port": 0})})
    receiver = Receiver(settings, MemoryIntake(), [ProcedureSteps(announcements), Availability(announcements)])
    receiver.start()
    try:
        contexts = [(uid, [ImplicitVRLittleEndian, ExplicitVRLittleEndian]) for uid in (STEP, NOTICE)]
        with associate(receiver.port, contexts) as assoc:
            assert assoc.is_established
            yield assoc
    finally:
        receiver.shutdown(grace=1)


class Direct:
    """The services without their wire, called as an association is."""

    def __init__(self, bed: Bed) -> None:
        announcements = Announcements(bed.database)
        self.services: dict[str, Service] = {
            STEP: ProcedureSteps(announcements),
            NOTICE: Availability(announcements),
        }

    def send_n_create(self, ds: Dataset, sop_class: str, uid: str) -> tuple[Dataset, None]:
        """Create."""
        return self._status(self.services[sop_class].n_create(self._request(ds, sop_class, uid)))

    def send_n_set(self, ds: Dataset, sop_class: str, uid: str) -> tuple[Dataset, None]:
        """Set."""
        return self._status(self.services[sop_class].n_set(self._request(ds, sop_class, uid)))

    def _request(self, ds: Dataset, sop_class: str, uid: str) -> Request:
        return Request(cast("Association", None), "CT01", HOST, sop_class, uid, 0, ds)

    def _status(self, answer: Answer) -> tuple[Dataset, None]:
        return item(Status=answer.status), None


@contextlib.contextmanager
def wordy(bed: Bed) -> Iterator[Direct]:
    """Like `wire`, in no time."""
    yield Direct(bed)


def item(**attributes: Any) -> Dataset:
    ds = Dataset()
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def begun(study: str = STUDY, **changes: Any) -> Dataset:
    """The attribute list of an N-CREATE; None leaves an attribute out."""
    attributes: dict[str, Any] = {
        "ScheduledStepAttributesSequence": [item(StudyInstanceUID=study, AccessionNumber="")],
        "PatientName": "Secret^Name",
        "PerformedProcedureStepID": "1",
        "PerformedStationAETitle": "CT01",
        "PerformedProcedureStepStartDate": "20260101",
        "PerformedProcedureStepStartTime": "120000",
        "PerformedProcedureStepStatus": "IN PROGRESS",
        "Modality": "MR",
        "PerformedSeriesSequence": [],
    }
    return item(**{k: v for k, v in (attributes | changes).items() if v is not None})


def made(images: Sequence[Dataset], others: Sequence[str] = (), uid: str | None = None) -> Dataset:
    """An item of the Performed Series Sequence."""
    refer = [item(ReferencedSOPClassUID=i.SOPClassUID, ReferencedSOPInstanceUID=i.SOPInstanceUID) for i in images]
    beside = [item(ReferencedSOPClassUID="1.2", ReferencedSOPInstanceUID=one) for one in others]
    return item(
        SeriesInstanceUID=uid or images[0].SeriesInstanceUID,
        ReferencedImageSequence=refer,
        ReferencedNonImageCompositeSOPInstanceSequence=beside,
    )


def ended(*performed: Dataset, state: str = "COMPLETED") -> Dataset:
    return item(PerformedProcedureStepStatus=state, PerformedSeriesSequence=list(performed))


def step(assoc: Association | Direct, *performed: Dataset, state: str = "COMPLETED", uid: str | None = None) -> str:
    """Begin and end a procedure step; gives its UID."""
    uid = uid or generate_uid()
    status, _ = assoc.send_n_create(begun(), STEP, uid)
    assert status.Status == 0x0000
    status, _ = assoc.send_n_set(ended(*performed, state=state), STEP, uid)
    assert status.Status == 0x0000
    return uid


def notice(images: Sequence[Dataset], words: Sequence[str] = ("ONLINE",)) -> Dataset:
    """A notification of one series; the words go round."""
    refer = [
        item(
            ReferencedSOPClassUID=image.SOPClassUID,
            ReferencedSOPInstanceUID=image.SOPInstanceUID,
            InstanceAvailability=word,
            RetrieveAETitle="PACS",
        )
        for image, word in zip(images, itertools.cycle(words), strict=False)
    ]
    one = item(SeriesInstanceUID=images[0].SeriesInstanceUID, ReferencedSOPSequence=refer)
    return item(ReferencedPerformedProcedureStepSequence=[], StudyInstanceUID=STUDY, ReferencedSeriesSequence=[one])


def reason(bed: Bed) -> str:
    """The sentence beside the only series on which nothing runs yet."""
    (entry,) = (entry for entry in bed.overview.entries() if entry.id is None)
    return entry.reason


class TestProcedureSteps:
    def test_all_that_the_modality_made_is_here_so_nothing_is_waited_for(self, any_bed: Bed) -> None:
        images = mr()
        planner = any_bed.planner()
        with wire(any_bed) as assoc:
            any_bed.take(images[:3])
            step(assoc, made(images))
            assert planner.sweep() == 0
            any_bed.take(images[3:])
            assert planner.sweep() == 1
        (given,) = any_bed.rows(WorkitemInput)
        assert len(given.sop_instance_uids) == 4
        assert any_bed.items()[0].hold == ""
        assert [row.event for row in any_bed.rows(Audit)][:2] == [
            "procedure step IN PROGRESS",
            "procedure step COMPLETED",
        ]

    def test_the_step_may_end_after_the_images(self, bed: Bed) -> None:
        images = mr()
        bed.take(images)
        planner = bed.planner()
        with wordy(bed) as assoc:
            assert planner.sweep() == 0
            step(assoc, made(images))
            assert planner.sweep() == 1

    def test_an_association_that_broke_off_is_made_up_for_by_the_whole(self, bed: Bed) -> None:
        images = mr()
        association = bed.intake.open_association("CT01", "10.0.0.1")
        bed.take(images, association)
        bed.intake.close_association(association, AssociationEnd.ABORTED)
        with wordy(bed) as assoc:
            step(assoc, made(images))
        assert bed.planner().sweep() == 1

    def test_what_is_missing_is_waited_for_and_then_a_person_decides(self, bed: Bed) -> None:
        images = mr()
        bed.take(images[:3])
        planner = bed.planner()
        with wordy(bed) as assoc:
            step(assoc, made(images))
        bed.turn(QUIET + 1)
        assert planner.sweep() == 0
        assert reason(bed) == "Waits for 1 of 4 instances that its modality's procedure step announced."
        bed.turn(LOST - QUIET - 5)
        assert planner.sweep() == 0
        bed.turn(10)
        assert planner.sweep() == 1
        (work,) = bed.items()
        assert work.hold == (
            f"Series {images[0].SeriesInstanceUID} lacks 1 of 4 instances that its modality's procedure step "
            "announced; send the rest, or release the item to go on with what is here, or cancel it."
        )
        assert bed.worklist.claim(Kind.INFERENCE, "one", 60, 3) is None
        bed.overview.release(work.id, "person/me")
        assert bed.worklist.claim(Kind.INFERENCE, "one", 60, 3) is not None
        assert bed.events(work.id)[:4] == ["scheduled", "held", "overruled", "released"]

    def test_the_rest_that_comes_late_supersedes_what_a_person_was_asked_about(self, bed: Bed) -> None:
        images = mr()
        bed.take(images[:3])
        with wordy(bed) as assoc:
            step(assoc, made(images))
        bed.turn(LOST + 1)
        planner = bed.planner()
        assert planner.sweep() == 1
        bed.take(images[3:])
        assert planner.sweep() == 1
        old, new = bed.items()
        assert (old.state, new.state, new.hold) == (State.CANCELED, State.SCHEDULED, "")
        assert len(bed.rows(WorkitemInput)[-1].sop_instance_uids) == 4

    def test_a_step_that_ends_after_half_was_planned_holds_that_and_waits(self, any_bed: Bed) -> None:
        images = mr()
        any_bed.take(images[:3])
        assert any_bed.plan() == 1
        claim = any_bed.worklist.claim(Kind.INFERENCE, "one", 60, 3)
        assert claim is not None
        with wordy(any_bed) as assoc:
            step(assoc, made(images))
        assert any_bed.series(images[0].SeriesInstanceUID).state == SeriesState.RECEIVING
        assert "lacks 1 of 4" in any_bed.items()[0].hold
        made_of_half = FrozenObject("seg", "1.2", "1.2.3", "1.2.4", 9000, "results/x")
        any_bed.worklist.finish_inference(claim, [made_of_half], ["pacs"])
        sending = any_bed.worklist.claim(Kind.DELIVERY, "two", 60, 3)
        assert sending is not None
        assert "lacks 1 of 4" in any_bed.worklist.why_wait(sending)  # nothing of half a series is sent
        any_bed.take(images[3:])
        assert any_bed.planner().sweep() == 1
        assert len(any_bed.rows(WorkitemInput)[-1].sop_instance_uids) == 4

    def test_more_than_the_step_says_waits_as_always(self, bed: Bed) -> None:
        images = mr()
        bed.take(images)
        with wordy(bed) as assoc:
            step(assoc, made(images[:3]))
        planner = bed.planner()
        assert planner.sweep() == 0
        bed.turn(QUIET + 1)
        assert planner.sweep() == 1
        assert bed.items()[0].hold == ""

    def test_an_equal_number_of_other_instances_is_not_the_whole(self, bed: Bed) -> None:
        images = mr(5)
        bed.take(images[:4])
        with wordy(bed) as assoc:
            step(assoc, made(images[1:]))
        bed.turn(QUIET + 1)
        assert bed.planner().sweep() == 0
        assert "Waits for 1 of 4" in reason(bed)

    def test_a_step_in_progress_shortens_nothing(self, bed: Bed) -> None:
        images = mr()
        bed.take(images)
        planner = bed.planner()
        with wordy(bed) as assoc:
            status, _ = assoc.send_n_create(begun(), STEP, "1.2.3")
            assoc.send_n_set(item(PerformedSeriesSequence=[made(images)]), STEP, "1.2.3")
            assert planner.sweep() == 0
            status, _ = assoc.send_n_set(item(PerformedProcedureStepStatus="COMPLETED"), STEP, "1.2.3")
            assert status.Status == 0x0000  # its series stand as they were named before
        assert planner.sweep() == 1

    def test_a_second_step_that_goes_on_with_the_series_shortens_nothing(self, bed: Bed) -> None:
        images = mr()
        bed.take(images)
        with wordy(bed) as assoc:
            assoc.send_n_create(begun(PerformedSeriesSequence=[made(images[:1])]), STEP, "1.2.3")
            step(assoc, made(images))
            assert bed.planner().sweep() == 0
            assoc.send_n_set(item(PerformedProcedureStepStatus="COMPLETED"), STEP, "1.2.3")
        assert bed.planner().sweep() == 1

    def test_a_series_that_the_step_takes_back_is_no_longer_waited_for(self, bed: Bed) -> None:
        images, others = mr(), mr(3)
        bed.take(images[:2])
        with wordy(bed) as assoc:
            assoc.send_n_create(begun(PerformedSeriesSequence=[made(images)]), STEP, "1.2.3")
            bed.turn(QUIET + 1)
            assert bed.planner().sweep() == 0
            assoc.send_n_set(ended(made(others)), STEP, "1.2.3")
        assert bed.planner().sweep() == 1
        assert bed.items()[0].hold == ""

    def test_instances_that_are_no_images_count(self, bed: Bed) -> None:
        images = mr()
        report = mr(1, series_uid=images[0].SeriesInstanceUID, Rows=None, SOPInstanceUID="1.2.3.4")[0]
        bed.take(images)
        planner = bed.planner()
        with wordy(bed) as assoc:
            step(assoc, made(images, others=["1.2.3.4"]))
        bed.turn(QUIET + 1)
        assert planner.sweep() == 0
        bed.take([report])
        assert planner.sweep() == 1

    def test_of_contradicting_steps_the_larger_counts(self, bed: Bed) -> None:
        images = mr()
        bed.take(images[:3])
        with wordy(bed) as assoc:
            step(assoc, made(images))
            step(assoc, made(images[:3]))
        bed.turn(QUIET + 1)
        assert bed.planner().sweep() == 0

    def test_a_step_of_another_study_shortens_nothing(self, bed: Bed) -> None:
        images = mr()
        bed.take(images)
        with wordy(bed) as assoc:
            assoc.send_n_create(begun("1.2.3.999"), STEP, "1.2.3")
            assoc.send_n_set(ended(made(images)), STEP, "1.2.3")
        assert bed.planner().sweep() == 0

    def test_a_step_survives_the_receiver(self, bed: Bed) -> None:
        images = mr()
        with wordy(bed) as assoc:
            assoc.send_n_create(begun(), STEP, "1.2.3")
        bed.take(images)
        with wordy(bed) as assoc:
            assoc.send_n_set(ended(made(images), state="DISCONTINUED"), STEP, "1.2.3")
        assert [row.state for row in bed.rows(ProcedureStep)] == ["DISCONTINUED"]
        assert bed.planner().sweep() == 1

    def test_wrong_requests_get_the_statuses_of_the_standard(self, bed: Bed) -> None:
        images = mr()
        with wire(bed) as assoc:

            def create(ds: Dataset, uid: str = "1.2.4") -> int:
                return int(assoc.send_n_create(ds, STEP, uid)[0].Status)

            assert create(begun(PerformedStationAETitle=None)) == 0x0120
            assert create(begun(Modality="")) == 0x0121
            assert create(begun(ScheduledStepAttributesSequence=[])) == 0x0121
            assert create(begun("not a UID")) == 0x0106
            assert create(begun(PerformedProcedureStepStatus="COMPLETED")) == 0x0106
            assert create(begun(PerformedSeriesSequence=[item(ReferencedImageSequence=[])])) == 0x0120
            assert bed.rows(ProcedureStep) == []
            assert create(begun()) == 0x0000
            assert create(begun()) == 0x0111
            status, _ = assoc.send_n_set(ended(made(images)), STEP, "1.2.5")
            assert status.Status == 0x0112
            status, _ = assoc.send_n_set(ended(), STEP, "1.2.4")
            assert status.Status == 0x0121
            status, _ = assoc.send_n_set(ended(made(images), state="DONE"), STEP, "1.2.4")
            assert status.Status == 0x0106
            status, _ = assoc.send_n_set(ended(made(images)), STEP, "1.2.4")
            assert status.Status == 0x0000
            status, _ = assoc.send_n_set(ended(made(images[:2])), STEP, "1.2.4")
            assert (status.Status, status.ErrorID) == (0x0110, 0xA710)
            assert status.ErrorComment == "Performed Procedure Step Object may no longer be updated"
        (row,) = bed.rows(Announcement)
        assert (row.instances, row.is_final) == (4, True)

    def test_no_name_reaches_the_log(self, bed: Bed, capsys: pytest.CaptureFixture[str]) -> None:
        with wire(bed) as assoc:
            step(assoc, made(mr()))
        shown = "".join(capsys.readouterr())
        assert "procedure step" in shown
        assert "Secret" not in shown

    def test_a_correction_that_comes_image_by_image_is_waited_for(self, bed: Bed) -> None:
        images = mr()
        planner = bed.planner()
        bed.take(images)
        with wordy(bed) as assoc:
            step(assoc, made(images))
        assert planner.sweep() == 1
        for n, image in enumerate(images):
            again = copy.deepcopy(image)
            again.PatientName = "New^Name"
            bed.take([again])
            bed.turn(1)
            assert planner.sweep() == 0, n
        bed.turn(QUIET)
        assert planner.sweep() == 1
        assert [one.hold for one in bed.items()] == [""]


class TestAvailability:
    def test_all_that_the_archive_has_is_here(self, bed: Bed) -> None:
        images = mr()
        association = bed.intake.open_association("PACS", "10.0.0.1")
        bed.take(images, association)
        planner = bed.planner()
        with wire(bed) as assoc:
            status, _ = assoc.send_n_create(notice(images, ["ONLINE", "NEARLINE"]), NOTICE, "1.2.3")
            assert status.Status == 0x0000
            assert planner.sweep() == 0  # it may speak of what it has so far, and the association is open
            bed.intake.close_association(association, AssociationEnd.RELEASED)
            assert planner.sweep() == 1
            status, _ = assoc.send_n_create(notice(images), NOTICE, "1.2.3")
            assert status.Status == 0x0111
            broken = notice(images, ["ON THE SHELF"])
            assert assoc.send_n_create(broken, NOTICE, "1.2.4")[0].Status == 0x0106

    @pytest.mark.parametrize("word", ["OFFLINE", "UNAVAILABLE"])
    def test_what_is_not_at_hand_shortens_nothing(self, bed: Bed, word: str) -> None:
        images = mr()
        bed.take(images if word == "OFFLINE" else images[:2])
        with wordy(bed) as assoc:
            assoc.send_n_create(
                notice(images, ["ONLINE", word] if word == "OFFLINE" else ["ONLINE", "ONLINE", word, word]),
                NOTICE,
                "1.2.3",
            )
        planner = bed.planner()
        assert planner.sweep() == 0
        bed.turn(QUIET + 1)
        assert planner.sweep() == 1

    def test_parts_of_a_series_shorten_nothing(self, bed: Bed) -> None:
        images = mr()
        bed.take(images)
        with wordy(bed) as assoc:
            assoc.send_n_create(notice(images[:2]), NOTICE, "1.2.3")
            assoc.send_n_create(notice(images[2:]), NOTICE, "1.2.4")
        assert bed.planner().sweep() == 0

    def test_a_notification_of_more_than_was_planned_holds_what_was(self, bed: Bed) -> None:
        images = mr()
        bed.take(images[:3])
        bed.plan()
        with wordy(bed) as assoc:
            assoc.send_n_create(notice(images), NOTICE, "1.2.3")
        assert "lacks 1 of 4 instances that an availability notification announced" in bed.items()[0].hold

    def test_what_can_be_had_no_more_is_no_longer_waited_for(self, bed: Bed) -> None:
        images = mr()
        bed.take(images[:3])
        with wordy(bed) as assoc:
            assoc.send_n_create(notice(images), NOTICE, "1.2.3")
            bed.turn(QUIET + 1)
            assert bed.planner().sweep() == 0
            assoc.send_n_create(notice(images[3:], ["UNAVAILABLE"]), NOTICE, "1.2.4")
        assert bed.planner().sweep() == 1
        assert bed.items()[0].hold == ""

    def test_what_is_left_of_a_notification_is_not_its_last_word(self, bed: Bed) -> None:
        images = mr()
        bed.take(images[:2])
        with wordy(bed) as assoc:
            assoc.send_n_create(notice(images), NOTICE, "1.2.3")
            assoc.send_n_create(notice(images[2:], ["UNAVAILABLE"]), NOTICE, "1.2.4")
        assert bed.planner().sweep() == 0
        bed.turn(QUIET + 1)
        assert bed.planner().sweep() == 1


class Source:
    """A source that is asked for counts."""

    def __init__(self, bed: Bed, counts: dict[str, int]) -> None:
        self.asked: list[str] = []
        self.answer: Callable[[], dict[str, int]] = lambda: counts
        self.counts = Counts(Announcements(bed.database), "pacs", "PACS", self.ask, apart=5.0)

    def ask(self, study: str) -> dict[str, int]:
        self.asked.append(study)
        return self.answer()


def carry(bed: Bed, images: Sequence[FileDataset], ae: str = "PACS") -> None:
    """Take images in over an association of their own."""
    association = bed.intake.open_association(ae, "10.0.0.1")
    bed.take(images, association)
    bed.intake.close_association(association, AssociationEnd.RELEASED)


class TestCounts:
    def test_a_count_that_stays_and_is_here_ends_the_wait(self, any_bed: Bed) -> None:
        images = mr()
        carry(any_bed, images)
        source = Source(any_bed, {images[0].SeriesInstanceUID: 4, OTHER_SERIES: 7})
        planner = any_bed.planner()
        any_bed.turn(1)
        assert source.counts.sweep() == 1
        assert planner.sweep() == 0
        any_bed.turn(4)
        source.counts.sweep()
        assert planner.sweep() == 0  # asked again too soon
        any_bed.turn(1)
        source.counts.sweep()
        assert planner.sweep() == 1
        assert source.asked == [STUDY] * 3
        source.counts.sweep()
        assert len(source.asked) == 3  # nobody waits any more

    def test_an_image_between_two_queries_begins_them_anew(self, bed: Bed) -> None:
        images = mr()
        source = Source(bed, {images[0].SeriesInstanceUID: 4})
        planner = bed.planner()
        carry(bed, images[:3])
        bed.turn(1)
        source.counts.sweep()
        carry(bed, images[3:])
        bed.turn(6)
        source.counts.sweep()
        assert planner.sweep() == 0
        bed.turn(6)
        source.counts.sweep()
        assert planner.sweep() == 1

    def test_a_count_from_before_the_last_image_shortens_nothing(self, bed: Bed) -> None:
        images = mr()
        source = Source(bed, {images[0].SeriesInstanceUID: 3})  # as it was a minute ago: some archives are slow to know
        planner = bed.planner()
        carry(bed, images[:2])
        for _ in range(3):
            bed.turn(6)
            source.counts.sweep()
        carry(bed, images[2:3])
        assert planner.sweep() == 0
        carry(bed, images[3:])
        bed.turn(QUIET + 1)
        assert planner.sweep() == 1
        assert len(bed.rows(WorkitemInput)[0].sop_instance_uids) == 4

    def test_a_count_that_grows_is_waited_for(self, bed: Bed) -> None:
        images = mr()
        counts = {images[0].SeriesInstanceUID: 3}
        source = Source(bed, counts)
        planner = bed.planner()
        carry(bed, images[:3])
        bed.turn(1)
        source.counts.sweep()
        counts[images[0].SeriesInstanceUID] = 4
        bed.turn(6)
        source.counts.sweep()
        bed.turn(QUIET)
        assert planner.sweep() == 0
        assert reason(bed) == "Waits for 1 of 4 instances that the source 'pacs' announced."
        counts[images[0].SeriesInstanceUID] = 3  # one was deleted there
        for _ in range(2):
            source.counts.sweep()
            bed.turn(6)
        assert planner.sweep() == 1
        assert bed.items()[0].hold == ""

    def test_a_procedure_step_with_more_weighs_more(self, bed: Bed) -> None:
        images = mr()
        carry(bed, images[:3])
        source = Source(bed, {images[0].SeriesInstanceUID: 3})
        with wordy(bed) as assoc:
            step(assoc, made(images))
        for _ in range(3):
            source.counts.sweep()
            bed.turn(6)
        bed.turn(QUIET)
        assert bed.planner().sweep() == 0

    def test_another_sender_is_not_asked_and_a_silent_one_changes_nothing(
        self, bed: Bed, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = Source(bed, {})
        carry(bed, mr(), "CT01")
        source.counts.sweep()
        assert source.asked == []
        carry(bed, mr())

        def fail() -> dict[str, int]:
            raise UnreachableError("The source 'pacs' does not answer.")

        source.answer = fail
        assert source.counts.sweep() == source.counts.sweep() == 0
        assert "".join(capsys.readouterr()).count("cannot be asked") == 1
        bed.turn(QUIET + 1)
        assert bed.planner().sweep() == 2


class TestStudies:
    def test_a_series_that_was_announced_and_has_not_come_keeps_the_study_waiting(self, bed: Bed) -> None:
        images, others = mr(), mr(3, SeriesDescription="other")
        planner = bed.planner(route("study", level=Level.STUDY, match={"SeriesDescription": "other"}), route("series"))
        bed.take(images)
        with wordy(bed) as assoc:
            step(assoc, made(images), made(others))
        assert planner.sweep() == 1
        assert [one.route_name for one in bed.items()] == ["series"]  # its own work need not wait
        assert bed.series(images[0].SeriesInstanceUID).reason == (
            "The study waits for 1 series that its modality announced."
        )
        bed.turn(QUIET + 1)
        assert planner.sweep() == 0
        bed.take(others)
        planner.sweep()
        planner.sweep()
        assert [one.route_name for one in bed.items()] == ["series", "series", "study"]
        assert {row.state for row in bed.rows(Series)} == {SeriesState.COMPLETE}
        assert {one.hold for one in bed.items()} == {""}

    def test_what_never_comes_is_for_a_person(self, bed: Bed) -> None:
        images, others = mr(), mr(3)
        planner = bed.planner(route("study", level=Level.STUDY))
        bed.take(images)
        with wordy(bed) as assoc:
            step(assoc, made(images), made(others))
        planner.sweep()
        bed.turn(LOST + 1)
        planner.sweep()
        (work,) = bed.items()
        assert f"Of series {others[0].SeriesInstanceUID} that" in work.hold
        bed.overview.release(work.id, "person/me")
        assert bed.items()[0].hold == ""
        assert bed.worklist.claim(Kind.INFERENCE, "one", 60, 3) is not None

    def test_a_study_on_which_the_modality_works_is_not_whole(self, bed: Bed) -> None:
        planner = bed.planner(route("study", level=Level.STUDY))
        bed.take(mr())
        with wordy(bed) as assoc:
            assoc.send_n_create(begun(), STEP, "1.2.3")
            bed.turn(QUIET + 1)
            planner.sweep()
            assert bed.items() == []
            assoc.send_n_set(ended(state="DISCONTINUED"), STEP, "1.2.3")
        planner.sweep()
        assert [one.hold for one in bed.items()] == [""]

    def test_a_step_that_nobody_ends_is_forgotten_after_a_while(self, bed: Bed) -> None:
        planner = bed.planner(route("study", level=Level.STUDY))
        bed.take(mr())
        with wordy(bed) as assoc:
            assoc.send_n_create(begun(), STEP, "1.2.3")
        bed.turn(LOST + 1)
        planner.sweep()
        assert [one.hold for one in bed.items()] == [""]

    def test_a_step_that_is_changed_for_ever_keeps_the_study_for_a_while(self, bed: Bed) -> None:
        planner = bed.planner(route("study", level=Level.STUDY))
        bed.take(mr())
        planned = []
        with wordy(bed) as assoc:
            assoc.send_n_create(begun(), STEP, "1.2.3")
            for _ in range(8):
                bed.turn(LOST - 1)
                assoc.send_n_set(ended(state="IN PROGRESS"), STEP, "1.2.3")
                planner.sweep()
                planned.append(len(bed.items()))
        assert planned == [0] * 7 + [1]


class TestSafety:
    def test_images_under_a_wrong_worklist_entry_are_for_a_person(self, bed: Bed) -> None:
        images = mr()
        bed.take(images)
        attributes = ended(made(images), state="DISCONTINUED")
        attributes.PerformedProcedureStepDiscontinuationReasonCodeSequence = [
            item(CodeValue="110514", CodingSchemeDesignator="DCM", CodeMeaning="Incorrect worklist entry selected")
        ]
        with wordy(bed) as assoc:
            assoc.send_n_create(begun(), STEP, "1.2.3")
            assoc.send_n_set(attributes, STEP, "1.2.3")
        assert bed.planner().sweep() == 1
        (work,) = bed.items()
        assert "wrong worklist entry" in work.hold
        assert bed.overview.release(work.id, "person/me") == ""
        assert bed.items()[0].hold == ""

    @pytest.mark.parametrize("named", [None, []])
    def test_also_where_the_step_does_not_name_them(self, any_bed: Bed, named: list[Dataset] | None) -> None:
        any_bed.take(mr())
        any_bed.plan()
        attributes = ended(state="DISCONTINUED")
        if named is None:
            del attributes.PerformedSeriesSequence
        attributes.PerformedProcedureStepDiscontinuationReasonCodeSequence = [
            item(CodeValue="110514", CodingSchemeDesignator="DCM", CodeMeaning="Incorrect worklist entry selected")
        ]
        with wordy(any_bed) as assoc:
            assoc.send_n_create(begun(), STEP, "1.2.3")
            assoc.send_n_set(attributes, STEP, "1.2.3")
        (work,) = any_bed.items()
        assert "wrong worklist entry" in work.hold
        assert any_bed.overview.release(work.id, "person/me") == ""
        assert any_bed.worklist.claim(Kind.INFERENCE, "one", 60, 3) is not None

    def test_a_doubt_that_nobody_has_read_is_not_released_with_another_reason(self, any_bed: Bed) -> None:
        images = mr()
        any_bed.take(images[:3])
        any_bed.plan()
        with wordy(any_bed) as assoc:
            step(assoc, made(images))
        (work,) = any_bed.items()
        assert "lacks 1 of 4" in work.hold
        other = copy.deepcopy(images[0])
        other.PixelData = bytes(reversed(range(len(other.PixelData))))
        any_bed.take([other])
        said = any_bed.overview.release(work.id, "person/me")
        assert "came again with other pixels" in said
        assert any_bed.items()[0].hold == said
        assert any_bed.worklist.claim(Kind.INFERENCE, "one", 60, 3) is None
        assert "lacks 1 of 4" in any_bed.overview.release(work.id, "person/me")
        assert any_bed.overview.release(work.id, "person/me") == ""

    def test_who_releases_a_doubt_has_not_spoken_of_what_is_missing(self, bed: Bed) -> None:
        images = mr()
        bed.take(images[:3])
        bed.plan()
        with wordy(bed) as assoc:
            step(assoc, made(images))
        with bed.database.write() as session:
            session.execute(sa.update(Series).values(conflict="Series X is known under another study too."))
        bed.turn(LOST)
        bed.planner().sweep()
        (work,) = bed.items()
        assert work.hold.startswith("Series X is known")
        assert "lacks 1 of 4" in bed.overview.release(work.id, "person/me")
        assert bed.overview.release(work.id, "person/me") == ""

    def test_a_doubt_about_whose_images_these_are_cannot_be_released_by_that(self, bed: Bed) -> None:
        images = mr()
        bed.take([*images[:2], *mr(1, PatientID="ANOTHER")])
        with wordy(bed) as assoc:
            step(assoc, made(images))
        bed.turn(LOST + 1)
        bed.planner().sweep()
        for work in bed.items():
            with pytest.raises(WorklistError, match="disagree in PatientID"):
                bed.overview.release(work.id, "person/me")

    def test_an_announcement_while_it_is_planned_makes_it_start_over(
        self, any_bed: Bed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images = mr()
        any_bed.take(images[:3])
        any_bed.turn(QUIET + 1)
        planner = any_bed.planner()
        real = planner._planning.commit
        said = Said(images[0].SeriesInstanceUID, tuple(str(one.SOPInstanceUID) for one in images))
        notices = Announcements(any_bed.database)

        def commit(*arguments: Any) -> bool:
            notices.notify("1.2.3", "PACS", STUDY, [said])
            return real(*arguments)

        monkeypatch.setattr(planner._planning, "commit", commit)
        assert planner.sweep() == 0
        assert any_bed.items() == []
        monkeypatch.undo()
        assert planner.sweep() == 0
        assert "Waits for 1 of 4" in reason(any_bed)

    def test_who_announces_ever_more_does_not_keep_a_series_from_a_person(self, any_bed: Bed) -> None:
        images = mr()
        counts = {images[0].SeriesInstanceUID: 3}
        source = Source(any_bed, counts)
        planner = any_bed.planner()
        carry(any_bed, images[:3])
        planned = []
        for _ in range(8):
            any_bed.turn(LOST - 1)
            counts[images[0].SeriesInstanceUID] += 1
            source.counts.sweep()
            planned.append(planner.sweep())
        assert planned == [0] * 7 + [1]  # PATIENCE and the lost period after the last image
        assert "lacks 8 of 11 instances that the source 'pacs' announced" in any_bed.items()[0].hold
        said = Said(images[0].SeriesInstanceUID, tuple(f"1.2.{n}" for n in range(20)))
        Announcements(any_bed.database).notify("1.2.3", "PACS", STUDY, [said])
        assert any_bed.series(images[0].SeriesInstanceUID).state == SeriesState.COMPLETE
        assert "an availability notification announced" in any_bed.items()[0].hold

    def test_nor_a_planning_from_its_end(self, any_bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
        images = mr()
        any_bed.take(images[:3])
        any_bed.turn(PATIENCE.total_seconds() + 1)
        planner = any_bed.planner()
        real = planner._planning.commit
        said = Said(images[0].SeriesInstanceUID, tuple(str(one.SOPInstanceUID) for one in images))

        def commit(*arguments: Any) -> bool:
            Announcements(any_bed.database).notify(generate_uid(), "PACS", STUDY, [said])
            return real(*arguments)

        monkeypatch.setattr(planner._planning, "commit", commit)
        assert planner.sweep() == 1
        assert "lacks 1 of 4" in any_bed.items()[0].hold

    def test_whatever_comes_first_half_a_series_is_never_let_go(self, any_bed: Bed) -> None:
        """Planner and announcer at the same moment: afterwards the series waits, or its work is held."""
        notices, planner = Announcements(any_bed.database), any_bed.planner()
        taken = [mr(3, study_uid=generate_uid()) if n else mr(3) for n in range(6)]
        for images in taken:
            any_bed.take(images[:2])
        any_bed.turn(QUIET + 1)
        barrier = threading.Barrier(2)

        def announce() -> None:
            barrier.wait()
            for images in taken:
                said = Said(images[0].SeriesInstanceUID, tuple(str(one.SOPInstanceUID) for one in images))
                notices.notify(generate_uid(), "PACS", str(images[0].StudyInstanceUID), [said])

        thread = threading.Thread(target=announce)
        thread.start()
        barrier.wait()
        planner.sweep()
        thread.join()
        for images in taken:
            assert any_bed.series(images[0].SeriesInstanceUID).state == SeriesState.RECEIVING
        assert all("lacks 1 of 3" in work.hold for work in any_bed.items())

    def test_nothing_is_written_of_a_notice_that_fails_half_way(
        self, bed: Bed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images = mr()
        bed.take(images)
        monkeypatch.setattr("dicomai.database.announcements._touch", lambda *_: 1 / 0)
        with wire(bed) as assoc:
            status, _ = assoc.send_n_create(begun(PerformedSeriesSequence=[made(images)]), STEP, "1.2.3")
            assert status.Status == 0x0110
            assert bed.rows(ProcedureStep) == []
            assert bed.rows(Announcement) == []
            monkeypatch.undo()
            status, _ = assoc.send_n_create(begun(PerformedSeriesSequence=[made(images)]), STEP, "1.2.3")
            assert status.Status == 0x0000
