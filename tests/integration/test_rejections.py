"""Rejection notes: what they withdraw is not run, not sent, and not taken up again. On both databases."""

from typing import Any

import pytest
import sqlalchemy as sa
from pydicom.dataset import FileDataset
from pydicom.uid import generate_uid

from dicomai.database import rejections
from dicomai.database.planning import Planning
from dicomai.database.results import FrozenObject
from dicomai.database.tables import UNEXAMINED, Audit, Instance, Rejection, WorkitemInput
from dicomai.database.worklist import Claim
from dicomai.errors import StaleAttemptError, WorklistError
from dicomai.notes import Notes
from dicomai.rejection import TITLES
from dicomai.routing import Level
from dicomai.workitem import Kind, State
from tests.beds import QUIET, Bed, route
from tests.rejected import rejection_note
from tests.synthetic import series

STUDY = generate_uid()


def mr(count: int = 3, **attributes: Any) -> list[FileDataset]:
    return series(modality="MR", shape=(count, 4, 4), study_uid=STUDY, **attributes)


def finish(bed: Bed, *destinations: str) -> Claim:
    """Finish the next inference item as a worker does."""
    claim = bed.worklist.claim(Kind.INFERENCE, "test", 60, 3)
    assert claim is not None
    key = f"results/{claim.item}/{claim.attempt}/sr.dcm"
    bed.store.put(key, b"x")
    done = [FrozenObject("sr", "1.2", generate_uid(), generate_uid(), 9000, key)]
    bed.worklist.finish_inference(claim, done, destinations or ("pacs",))
    return claim


def reason(bed: Bed, images: list[FileDataset]) -> str:
    return bed.series(images[0].SeriesInstanceUID).reason


@pytest.mark.parametrize("code", sorted(TITLES))
def test_a_note_cancels_the_open_work_on_what_it_names(sqlite_bed: Bed, code: str) -> None:
    images = mr()
    sqlite_bed.take(images)
    sqlite_bed.plan()
    sqlite_bed.take([rejection_note(images, code)])
    sqlite_bed.planner().sweep()
    (item,) = sqlite_bed.items()
    assert item.state == State.CANCELED
    assert f"were rejected by their sender ({code}, {TITLES[code]})" in item.reason
    assert sqlite_bed.events(item.id)[-2:] == ["IN PROGRESS", "CANCELED"]
    assert sqlite_bed.worklist.claim(Kind.INFERENCE, "test", 60, 3) is None
    assert f"3 of 3 images of this series were rejected ({code}, {TITLES[code]})" in reason(sqlite_bed, images)


def test_of_a_series_with_one_rejected_image_nothing_is_run(bed: Bed) -> None:
    images = mr(4)
    bed.take(images)
    bed.plan()
    note = rejection_note(images[:1])
    bed.take([note])
    assert bed.plan() == 1
    (item,) = bed.items()
    assert item.state == State.CANCELED
    assert reason(bed, images).startswith("1 of 4 images of this series were rejected (113001, ")
    # Nor when more of it comes: what is left of a series is not a series.
    bed.take(mr(1, series_uid=images[0].SeriesInstanceUID))
    bed.plan()
    assert [one.state for one in bed.items()] == [State.CANCELED]
    assert reason(bed, images).startswith("1 of 5 images")
    assert reason(bed, [note]) == (
        "A rejection note: 1 instances are withdrawn (113001, Rejected for Quality Reasons)."
    )


def test_the_study_s_other_series_go_on(sqlite_bed: Bed) -> None:
    wrong, right = mr(), mr()
    sqlite_bed.take([*wrong, *right])
    sqlite_bed.plan()
    sqlite_bed.take([rejection_note(wrong)])
    sqlite_bed.planner().sweep()
    states = {row.id: row.state for row in sqlite_bed.items()}
    assert {frozenset(i.sop_instance_uids): states[i.workitem_id] for i in sqlite_bed.rows(WorkitemInput)} == {
        frozenset(str(i.SOPInstanceUID) for i in wrong): State.CANCELED,
        frozenset(str(i.SOPInstanceUID) for i in right): State.SCHEDULED,
    }


def test_a_note_that_comes_first_rejects_what_comes_after_it(sqlite_bed: Bed) -> None:
    images = mr()
    sqlite_bed.take([rejection_note(images, "113038")])
    sqlite_bed.planner().sweep()
    sqlite_bed.take(images)
    sqlite_bed.plan()
    assert sqlite_bed.items() == []
    assert reason(sqlite_bed, images).startswith("3 of 3 images of this series were rejected (113038, ")


def test_what_was_rejected_stays_so_when_it_is_sent_again(sqlite_bed: Bed) -> None:
    images = mr()
    sqlite_bed.take([*images, rejection_note(images)])
    sqlite_bed.plan()
    for image in images:
        image.SeriesDescription = "corrected"
    sqlite_bed.take(images)
    sqlite_bed.plan()
    assert sqlite_bed.items() == []
    assert reason(sqlite_bed, images).startswith("3 of 3 images")


def test_a_worker_that_has_the_item_finds_its_attempt_stale(sqlite_bed: Bed) -> None:
    images = mr()
    sqlite_bed.take(images)
    sqlite_bed.plan()
    claim = sqlite_bed.worklist.claim(Kind.INFERENCE, "test", 60, 3)
    assert claim is not None
    sqlite_bed.take([rejection_note(images)])
    sqlite_bed.planner().sweep()
    with pytest.raises(StaleAttemptError):
        sqlite_bed.worklist.finish_inference(claim, [], ["pacs"])
    assert sqlite_bed.items("delivery") == []


def test_a_planning_under_way_comes_to_nothing(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    images = mr()
    bed.take(images)
    real = Planning.commit

    def late(self: Planning, *args: Any) -> bool:
        monkeypatch.undo()
        bed.take([rejection_note(images)])
        Notes(bed.store, bed.database).sweep()
        return real(self, *args)

    monkeypatch.setattr(Planning, "commit", late)
    bed.turn(QUIET + 1)
    bed.planner().sweep()
    bed.planner().sweep()
    assert bed.items() == []
    assert reason(bed, images).startswith("3 of 3 images")


def test_a_result_that_was_not_sent_stays_here_and_one_that_was_is_named(
    bed: Bed, capsys: pytest.CaptureFixture[str]
) -> None:
    images = mr()
    bed.take(images)
    bed.plan()
    done = finish(bed, "one", "other")
    sending = bed.worklist.claim(Kind.DELIVERY, "test", 60, 3, "one")
    assert sending is not None
    assert bed.worklist.begin_sending(sending, bed.worklist.result(sending), {})
    bed.take([rejection_note(images)])
    bed.planner().sweep()
    assert {item.destination: item.state for item in bed.items("delivery")} == {
        "one": State.IN_PROGRESS,  # never half a result
        "other": State.CANCELED,
    }
    assert bed.events(done.item)[-1] == "rejected after sending"
    said = capsys.readouterr().out
    assert "images were rejected after a result made of them was sent" in said
    assert images[0].PatientID not in said


def test_a_delivery_that_was_claimed_when_the_note_came_sends_nothing(bed: Bed) -> None:
    images = mr()
    bed.take(images)
    bed.plan()
    finish(bed)
    claimed = bed.worklist.claim(Kind.DELIVERY, "test", 60, 3, "pacs")
    assert claimed is not None
    seen = bed.worklist.result(claimed)
    bed.take([rejection_note(images)])
    bed.planner().sweep()
    with pytest.raises(WorklistError, match=r"is not sent: .* has rejected images"):
        bed.worklist.begin_sending(claimed, seen, {})
    assert not bed.worklist.was_sent(claimed)
    bed.worklist.postpone(claimed, 0, "the PACS was away")
    again = bed.worklist.claim(Kind.DELIVERY, "test", 60, 3, "pacs")
    assert again is not None
    with pytest.raises(WorklistError, match="is not sent"):
        bed.worklist.begin_sending(again, seen, {})


def test_a_destination_that_has_a_part_of_the_result_gets_the_rest(sqlite_bed: Bed) -> None:
    images = mr()
    sqlite_bed.take(images)
    sqlite_bed.plan()
    finish(sqlite_bed)
    claimed = sqlite_bed.worklist.claim(Kind.DELIVERY, "test", 60, 3, "pacs")
    assert claimed is not None
    seen = sqlite_bed.worklist.result(claimed)
    assert sqlite_bed.worklist.begin_sending(claimed, seen, {})
    sqlite_bed.worklist.accepted(claimed, seen[0].id, 0, "")
    sqlite_bed.take([rejection_note(images)])
    sqlite_bed.planner().sweep()
    assert sqlite_bed.worklist.begin_sending(claimed, [], {})


def test_a_note_that_comes_again_with_more_is_obeyed_again(bed: Bed) -> None:
    images, others = mr(), mr()
    note = rejection_note(images)
    bed.take([*images, note])
    bed.plan()
    bed.take(others)
    bed.plan()
    (work,) = bed.items()
    more = rejection_note([*images, *others])
    more.SOPInstanceUID, more.SeriesInstanceUID = note.SOPInstanceUID, note.SeriesInstanceUID
    more.file_meta.MediaStorageSOPInstanceUID = note.SOPInstanceUID
    bed.take([more])
    bed.planner().sweep()
    assert [item.state for item in bed.items()] == [State.CANCELED]
    assert len(bed.rows(Rejection)) == len(images) + len(others)
    assert work.id == bed.items()[0].id


def test_nobody_can_retry_what_was_rejected(bed: Bed) -> None:
    images = mr()
    bed.take(images)
    bed.plan()
    done = finish(bed)
    bed.take([rejection_note(images)])
    bed.planner().sweep()
    for item in (*bed.items(), *bed.items("delivery")):
        with pytest.raises(WorklistError, match=r"cannot be tried again: .* \(113001, Rejected for Quality"):
            bed.overview.retry(item.id, "person/a")
    assert len(bed.items()) == 1
    assert done.item == bed.items()[0].id


class TestNotItsOwn:
    @pytest.mark.parametrize("keyword", ["PatientID", "PatientBirthDate", "PatientName"])
    def test_a_note_under_another_patient_is_not_obeyed_but_holds_the_study(
        self, sqlite_bed: Bed, keyword: str
    ) -> None:
        images = mr()
        sqlite_bed.take(images)
        sqlite_bed.plan()
        value = {"PatientBirthDate": "19000101"}.get(keyword, "Other")
        note = rejection_note(images, **{keyword: value})
        sqlite_bed.take([note])
        sqlite_bed.planner().sweep()
        (item,) = sqlite_bed.items()
        assert item.state == State.SCHEDULED
        assert f"Rejection note {note.SOPInstanceUID} names images" in item.hold
        assert keyword in item.hold
        assert value not in item.hold
        assert sqlite_bed.rows(Rejection) == []
        assert "rejection doubted" in [row.event for row in sqlite_bed.rows(Audit)]
        sqlite_bed.overview.release(item.id, "person/a")
        finish(sqlite_bed)

    def test_nor_is_one_of_another_study(self, sqlite_bed: Bed) -> None:
        images = mr()
        sqlite_bed.take(images)
        sqlite_bed.plan()
        sqlite_bed.take([rejection_note(images, StudyInstanceUID=generate_uid())])
        sqlite_bed.planner().sweep()
        (item,) = sqlite_bed.items()
        assert item.state == State.SCHEDULED
        assert "of another study" in item.hold

    def test_nor_when_its_images_come_later(self, bed: Bed) -> None:
        images = mr()
        bed.take([rejection_note(images, StudyInstanceUID=generate_uid())])
        bed.planner().sweep()
        bed.take(images)
        bed.plan()
        (item,) = bed.items()
        assert item.state == State.SCHEDULED
        assert "of another study" in item.hold
        bed.overview.release(item.id, "person/a")
        assert bed.worklist.claim(Kind.INFERENCE, "test", 60, 3) is not None


def test_a_key_image_note_rejects_nothing_and_is_read_once(sqlite_bed: Bed) -> None:
    images = mr()
    sqlite_bed.take(images)
    sqlite_bed.plan()
    sqlite_bed.take([rejection_note(images, "113000")])
    notes = Notes(sqlite_bed.store, sqlite_bed.database)
    assert [notes.sweep(), notes.sweep()] == [1, 0]
    assert sqlite_bed.items()[0].state == State.SCHEDULED
    assert sqlite_bed.rows(Rejection) == []


def test_a_note_that_a_killed_planner_had_read_is_read_again_and_obeyed_once(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = mr()
    bed.take(images)
    bed.plan()
    bed.take([rejection_note(images)])
    real = rejections._reject

    def die(*args: Any) -> None:
        real(*args)
        raise KeyboardInterrupt

    planner = bed.planner()
    with monkeypatch.context() as patch:
        patch.setattr(rejections, "_reject", die)
        with pytest.raises(KeyboardInterrupt):
            planner.sweep()
    assert bed.items()[0].state == State.SCHEDULED
    assert bed.rows(Rejection) == []
    for _ in range(2):
        Notes(bed.store, bed.database).sweep()
    assert bed.items()[0].state == State.CANCELED
    assert len(bed.rows(Rejection)) == 3


def test_a_document_that_cannot_be_read_is_named_and_does_not_stand_in_the_way(
    sqlite_bed: Bed, capsys: pytest.CaptureFixture[str]
) -> None:
    images = mr()
    sqlite_bed.take(images)
    sqlite_bed.plan()
    broken = rejection_note(images)
    before = sqlite_bed.files()
    sqlite_bed.take([broken])
    (key,) = sqlite_bed.files() - before
    (sqlite_bed.folder / "storage" / key).write_bytes(b"no DICOM")
    sqlite_bed.take([rejection_note(images, "113037")])
    sqlite_bed.planner().sweep()
    assert f"Key Object Selection {broken.SOPInstanceUID} cannot be read" in capsys.readouterr().out
    assert sqlite_bed.items()[0].state == State.CANCELED
    assert Notes(sqlite_bed.store, sqlite_bed.database).sweep() == 0


def test_one_that_nobody_thought_of_does_not_keep_others_from_being_planned(
    sqlite_bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = mr()
    sqlite_bed.take([*images, rejection_note(mr())])

    def odd(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(rejections.Rejections, "obey", odd)
        assert sqlite_bed.plan() == 1
    assert sqlite_bed.items()[0].state == State.SCHEDULED


def test_a_note_whose_file_is_gone_is_looked_for_again(sqlite_bed: Bed) -> None:
    images = mr()
    sqlite_bed.take(images)
    sqlite_bed.plan()
    before = sqlite_bed.files()
    sqlite_bed.take([rejection_note(images)])
    (key,) = sqlite_bed.files() - before
    path = sqlite_bed.folder / "storage" / key
    path.rename(path.with_suffix(".away"))
    notes = Notes(sqlite_bed.store, sqlite_bed.database)
    notes.sweep()
    assert notes.sweep() == 0, "not twice a second"
    path.with_suffix(".away").rename(path)
    Notes(sqlite_bed.store, sqlite_bed.database).sweep()
    assert sqlite_bed.items()[0].state == State.CANCELED


def test_a_study_is_not_run_on_a_series_with_rejected_images(bed: Bed) -> None:
    whole = route(level=Level.STUDY)
    wrong, right = mr(), mr()
    bed.take([*wrong, rejection_note(wrong[:1])])
    bed.plan(whole)
    bed.take(right)
    bed.plan(whole)
    (given,) = bed.rows(WorkitemInput)
    assert set(given.sop_instance_uids) == {str(i.SOPInstanceUID) for i in right}


def test_documents_that_wait_are_found_by_their_index(bed: Bed) -> None:
    """Without it every sweep would look through every instance there is."""
    query = str(sa.select(Instance.id).where(sa.text(UNEXAMINED)).order_by(Instance.id).limit(1))
    with bed.database.read() as session:
        if bed.url.startswith("sqlite"):
            plan = session.execute(sa.text(f"EXPLAIN QUERY PLAN {query.replace(':param_1', '1')}")).all()
        else:
            session.execute(sa.text("SET LOCAL enable_seqscan = off"))
            plan = session.execute(sa.text(f"EXPLAIN {query.replace(':param_1', '1')}")).all()
    assert "ix_instance_unexamined" in str(plan)
