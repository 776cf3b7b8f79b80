"""The worker: what becomes of an item when the images, the model or the disk are not as they should be."""

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from structlog.testing import capture_logs

from dicomai.bundle import Bundle
from dicomai.database.tables import Result, ResultObject
from dicomai.errors import InferenceError, StoreError
from dicomai.findings import Findings
from dicomai.volume import Volume
from dicomai.workitem import State
from tests.arrivals import changed
from tests.beds import Bed, Threshold, route
from tests.synthetic import plain, series


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    made = Bed(tmp_path, f"sqlite:///{tmp_path / 'worklist.db'}")
    yield made
    made.close()


def take(bed: Bed, **attributes: Any) -> list[Any]:
    images = series(modality="MR", shape=(3, 12, 16), **attributes)
    bed.take(images)
    bed.plan()
    return images


def results(bed: Bed) -> list[Dataset]:
    made: list[Dataset] = []
    for row in bed.rows(ResultObject):
        with bed.store.open(row.key) as stream:
            made.append(pydicom.dcmread(stream))
    return made


def engine(before: Callable[[], None]) -> Callable[[Bundle], Threshold]:
    return lambda one: Threshold(one, before)


def raising(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def test_the_result_lies_in_the_study_and_counts_from_free_series_numbers(bed: Bed) -> None:
    study = take(bed, SeriesNumber=9000)[0].StudyInstanceUID
    odd = plain(modality="OT", StudyInstanceUID=study, SeriesNumber=9001)
    bed.take([odd])
    assert bed.worker().step()
    assert not bed.worker().step()
    seg, sr = results(bed)
    assert {str(seg.StudyInstanceUID), str(sr.StudyInstanceUID)} == {study}
    assert (seg.SeriesNumber, sr.SeriesNumber) == (9002, 9003)
    assert bed.items()[0].progress == 100
    assert [d.destination for d in bed.items("delivery")] == ["pacs"]


def test_a_series_number_that_is_no_number_is_in_nobody_s_way(bed: Bed) -> None:
    study = take(bed)[0].StudyInstanceUID
    odd = plain(modality="OT", StudyInstanceUID=study, SeriesNumber=7)
    from tests.beds import announced, as_received, parts

    head, data = parts(odd)
    with as_received():
        bed.intake.accept(
            *announced((head, data.replace(b"\x20\x00\x11\x00IS\x02\x007 ", b"\x20\x00\x11\x00IS\x02\x00AB"))), None
        )
    assert bed.worker().step()
    assert bed.items()[0].state == State.COMPLETED


def test_the_engine_is_loaded_once_and_kept_warm(bed: Bed) -> None:
    loaded: list[str] = []

    def load(one: Bundle) -> Threshold:
        loaded.append(one.name)
        return Threshold(one)

    worker = bed.worker(load)
    for _ in range(2):
        take(bed)
        assert worker.step()
    assert loaded == ["tiny"]


def test_images_that_do_not_make_a_volume_end_in_a_sentence(bed: Bed) -> None:
    images = series(modality="MR", shape=(5, 12, 16))
    bed.take(images[:2] + images[3:])
    bed.plan()
    assert bed.worker().step()
    (row,) = bed.items()
    assert (row.state, row.attempt) == (State.CANCELED, 1)
    assert "missing" in row.reason
    assert (bed.rows(Result), bed.items("delivery")) == ([], [])


def test_what_a_retry_can_help_is_tried_again_later(bed: Bed) -> None:
    take(bed)
    worker = bed.worker(engine(raising(InferenceError("The GPU has no room."))))
    assert worker.step()
    (row,) = bed.items()
    assert (row.state, row.reason, row.lease_owner) == (State.IN_PROGRESS, "The GPU has no room.", None)
    assert not worker.step()
    bed.turn(31)
    assert bed.worker().step()
    assert bed.items()[0].state == State.COMPLETED
    assert bed.items()[0].attempt == 2


def test_what_nobody_thought_of_ends_the_item_and_not_the_worker(bed: Bed) -> None:
    take(bed, PatientName="Secret^Name")
    take(bed)
    calls: list[int] = []

    def once() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError

    worker = bed.worker(engine(once))
    with capture_logs() as logs:
        assert worker.step()
        assert worker.step()
    first, second = bed.items()
    assert first.reason == "tiny failed with ZeroDivisionError; the log of the worker says where."
    assert (first.state, second.state) == (State.CANCELED, State.COMPLETED)
    assert "Secret" not in str(logs)


@pytest.mark.parametrize("fails", [False, True])
def test_a_text_where_procedure_codes_should_be_costs_nothing(bed: Bed, fails: bool) -> None:
    images = series(modality="MR", shape=(3, 12, 16))
    for image in images:
        image[0x00081032] = DataElement(0x00081032, "LO", "XRCH")
    bed.take(images)
    bed.plan(route(outputs=("sr", "report")))
    assert bed.worker(engine(raising(ZeroDivisionError()) if fails else lambda: None)).step()
    (made,) = results(bed)
    (title,) = made.ConceptNameCodeSequence
    assert title.CodeValue == ("AI-NOT-ANALYSED" if fails else "AI-MEASUREMENTS")
    assert "ProcedureCodeSequence" not in made


def test_a_report_that_cannot_be_made_ends_the_item_and_not_the_worker(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed.take(series(modality="MR", shape=(3, 12, 16), PatientName="Secret^Name"))
    bed.plan(route(outputs=("sr", "report")))

    def broken(*_: Any) -> None:
        raise AttributeError("Secret^Name")

    monkeypatch.setattr("dicomai.worker.explain", broken)
    with capture_logs() as logs:
        assert bed.worker(engine(raising(ZeroDivisionError()))).step()
    assert bed.items()[0].state == State.CANCELED
    (line,) = [line for line in logs if line["event"] == "no report says that there is no result"]
    assert line["error"] == "AttributeError"


def test_a_doubt_holds_the_item_before_anything_is_run(bed: Bed) -> None:
    images = take(bed)
    bed.take([changed(images[0], PatientID="ANOTHER")])  # not planned yet
    assert bed.worker(engine(raising(AssertionError()))).step()
    (row,) = bed.items()
    assert row.hold.startswith("The images of this study disagree in PatientID")
    assert not bed.worker().step()
    bed.take([changed(image, PatientID="ANOTHER") for image in images[1:]])
    bed.plan()
    assert bed.worker().step()
    assert {ds.PatientID for ds in results(bed)} == {"ANOTHER"}


def test_a_result_that_comes_too_late_is_dropped(bed: Bed) -> None:
    take(bed)

    def taken_over() -> None:
        bed.turn(61)
        assert bed.worker().step()

    with capture_logs() as logs:
        assert bed.worker(engine(taken_over)).step()
    (row,) = bed.items()
    assert (row.state, row.attempt) == (State.COMPLETED, 2)
    assert len(bed.rows(Result)) == 1
    assert {ds.SOPInstanceUID for ds in results(bed)} == {o.sop_instance_uid for o in bed.rows(ResultObject)}
    assert all("/2/" in o.key for o in bed.rows(ResultObject))
    assert "left to another attempt" in [line["event"] for line in logs]


def test_an_item_that_a_person_cancels_gives_no_result(bed: Bed) -> None:
    take(bed)
    worker = bed.worker(engine(lambda: bed.overview.cancel(1, "person/a")))
    assert worker.step()
    assert bed.items()[0].state == State.CANCELED
    assert bed.items("delivery") == []


def test_an_image_whose_file_is_gone_is_a_fault_of_the_disk_and_tried_again(bed: Bed) -> None:
    take(bed)
    instances = bed.folder / "storage/instances"
    instances.rename(bed.folder / "away")
    assert bed.worker().step()
    (row,) = bed.items()
    assert (row.state, row.lease_owner) == (State.IN_PROGRESS, None)
    assert row.reason.startswith("Cannot read instances/")
    shutil.move(bed.folder / "away", instances)
    bed.turn(31)
    assert bed.worker().step()
    assert bed.items()[0].state == State.COMPLETED


def test_a_model_that_is_in_no_route_any_more_is_a_sentence(bed: Bed) -> None:
    take(bed)
    bed.bundles = {}
    assert bed.worker().step()
    assert bed.items()[0].reason.startswith("Model tiny is in no route any more;")


def test_the_same_work_has_the_same_uids_on_any_attempt(bed: Bed) -> None:
    take(bed)
    uids: list[set[str]] = []
    for _ in range(2):
        assert bed.worker().step()
        uids.append({o.sop_instance_uid for o in bed.rows(ResultObject)})
        bed.overview.retry(bed.items()[-1].id, "person/a")  # nothing was sent
    assert uids[0] == uids[1]


def test_it_stops_after_the_item_under_way(bed: Bed) -> None:
    take(bed)
    take(bed)
    stop = threading.Event()
    worker = bed.worker(engine(stop.set))
    worker.run(stop)
    assert [row.state for row in bed.items()] == [State.COMPLETED, State.SCHEDULED]


def test_a_database_that_goes_away_does_not_end_the_worker(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    take(bed)
    stop = threading.Event()
    worker = bed.worker()
    real, calls = worker._worklist.finish_inference, []

    def finish(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            bed.turn(61)  # until its lease has run out, nobody has the item
            raise StoreError("The worklist database failed (x).")
        real(*args)
        stop.set()

    monkeypatch.setattr(worker._worklist, "finish_inference", finish)
    worker.run(stop)
    assert bed.items()[0].state == State.COMPLETED
    assert len(bed.rows(Result)) == 1


def test_progress_is_seen_while_the_network_runs(bed: Bed) -> None:
    take(bed)
    seen: list[int] = []

    class Slow(Threshold):
        def infer(self, volumes: Mapping[str, Volume], progress: Callable[[float], None]) -> Findings:
            from tests.dimse import wait_until

            progress(0.5)
            wait_until(lambda: bed.items()[0].progress == 50)
            seen.append(bed.items()[0].progress)
            return super().infer(volumes, progress)

    assert bed.worker(Slow).step()
    assert seen == [50]


def test_a_route_without_destinations_keeps_the_result_here(bed: Bed) -> None:
    bed.take(series(modality="MR", shape=(3, 12, 16)))
    bed.plan(route(destinations=()))
    assert bed.worker().step()
    assert bed.items("delivery") == []
    assert len(results(bed)) == 2
