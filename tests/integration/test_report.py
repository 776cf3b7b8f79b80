"""The report of an analysis that failed or was refused: made where the route asks for it, and sent like a result."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from dicomai.bundle import Bundle
from dicomai.database.tables import Result, ResultObject
from dicomai.errors import IdentityError, InferenceError
from dicomai.outputs import Predecessor, build, encode
from dicomai.outputs.report import not_analysed
from dicomai.workitem import State
from tests import results, synthetic
from tests.beds import Bed, Threshold, route
from tests.dimse import scp
from tests.integration.test_delivery import pacs_of
from tests.integration.test_outputs_validators import faults, read
from tests.synthetic import series

ASKED = route(outputs=("seg", "sr", "report"))


def raising(error: Exception) -> Callable[[Bundle], Threshold]:
    def fail() -> None:
        raise error

    return lambda one: Threshold(one, fail)


def refused(bed: Bed, **attributes: Any) -> list[Any]:
    """Plan work on a series in which a slice is missing."""
    images = series(modality="MR", shape=(5, 12, 16), SeriesNumber=7, **attributes)
    bed.take(images[:2] + images[3:])
    bed.plan(ASKED)
    return images


def objects(bed: Bed) -> list[Dataset]:
    made: list[Dataset] = []
    for row in bed.rows(ResultObject):
        with bed.store.open(row.key) as stream:
            made.append(pydicom.dcmread(stream))
    return made


def evaluations(ds: Dataset) -> tuple[str, list[str]]:
    """Give the code of how the analysis ended, and the sentences."""
    headline = next(item for item in ds.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "121106")
    code, *texts = ds.ContentSequence[-1].ContentSequence
    return code.ConceptCodeSequence[0].CodeValue, [str(item.TextValue) for item in (headline, *texts)]


def test_a_refused_series_is_reported_and_the_report_delivered(bed: Bed) -> None:
    images = refused(bed, PatientName="Secret^Name", PatientID="SECRET-ID")
    assert bed.worker().step()
    (item,) = bed.items()
    assert item.state == State.CANCELED
    with scp() as pacs:
        assert bed.delivery(pacs_of(pacs)).step()
    (received,) = pacs.received
    (ds,) = objects(bed)
    assert received.sop_class_uid == ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.34"
    assert bed.items("delivery")[0].state == State.COMPLETED
    assert (ds.StudyInstanceUID, ds.PatientID) == (images[0].StudyInstanceUID, "SECRET-ID")
    assert (ds.VerificationFlag, ds.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    code, sentences = evaluations(ds)
    assert code == "111245"
    assert sentences[0].startswith("Series 7 was not analysed by tiny 0.1: ")
    assert item.reason in sentences[0]
    assert "Secret" not in str(sentences)
    assert "SECRET-ID" not in str(sentences)
    equipment = ds.ContributingEquipmentSequence[0]
    assert (equipment.ManufacturerModelName, equipment.SoftwareVersions[0]) == ("tiny", "0.1")
    evidence = ds.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert [len(one.ReferencedSOPSequence) for one in evidence] == [4]


def test_nothing_is_made_where_the_route_does_not_ask(sqlite_bed: Bed) -> None:
    images = series(modality="MR", shape=(5, 12, 16))
    sqlite_bed.take(images[:2] + images[3:])
    sqlite_bed.plan()
    assert sqlite_bed.worker().step()
    assert sqlite_bed.items()[0].state == State.CANCELED
    assert (sqlite_bed.rows(Result), sqlite_bed.items("delivery")) == ([], [])


def test_images_that_were_analysed_give_no_such_report(sqlite_bed: Bed) -> None:
    sqlite_bed.take(series(modality="MR", shape=(3, 12, 16)))
    sqlite_bed.plan(ASKED)
    assert sqlite_bed.worker().step()
    assert [row.output for row in sqlite_bed.rows(ResultObject)] == ["seg", "sr"]


def test_only_the_last_attempt_is_reported_and_what_foreign_code_said_is_not(sqlite_bed: Bed) -> None:
    sqlite_bed.take(series(modality="MR", shape=(3, 12, 16)))
    sqlite_bed.plan(ASKED)
    worker = sqlite_bed.worker(raising(InferenceError("tiny did not run: KeyError: Secret^Name.")))
    for attempt in (1, 2, 3):
        assert sqlite_bed.rows(Result) == []
        assert worker.step()
        assert sqlite_bed.items()[0].attempt == attempt
        sqlite_bed.turn(100)
    (item,) = sqlite_bed.items()
    assert item.state == State.CANCELED
    assert item.reason == "Given up after 3 attempts: tiny did not run: KeyError: Secret^Name."
    code, sentences = evaluations(objects(sqlite_bed)[0])
    assert (code, "Secret" in str(sentences)) == ("111245", False)


def test_what_nobody_thought_of_is_reported_too(sqlite_bed: Bed) -> None:
    sqlite_bed.take(series(modality="MR", shape=(3, 12, 16)))
    sqlite_bed.plan(ASKED)
    assert sqlite_bed.worker(raising(ZeroDivisionError("Secret^Name"))).step()
    _, sentences = evaluations(objects(sqlite_bed)[0])
    assert "The analysis failed; the worklist of the node says why." in sentences[0]


def test_images_in_doubt_are_not_reported(sqlite_bed: Bed) -> None:
    sqlite_bed.take(series(modality="MR", shape=(3, 12, 16)))
    sqlite_bed.plan(ASKED)
    assert sqlite_bed.worker(raising(IdentityError("Whose images are these?"))).step()
    assert sqlite_bed.items()[0].state == State.CANCELED
    assert sqlite_bed.items("delivery") == []


def test_a_result_that_comes_after_all_replaces_the_report(bed: Bed) -> None:
    images = refused(bed)
    assert bed.worker().step()
    with scp() as pacs:
        assert bed.delivery(pacs_of(pacs)).step()
    bed.take(images[2:3])
    bed.plan(ASKED)
    assert bed.worker().step()
    report, _, sr = objects(bed)
    (study,) = sr.PredecessorDocumentsSequence
    (named,) = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert named.ReferencedSOPInstanceUID == report.SOPInstanceUID
    assert f"This report replaces the one in series {report.SeriesNumber}." in evaluations(sr)[1]


def test_an_older_result_is_still_known_behind_a_report(sqlite_bed: Bed) -> None:
    """A result, then more images that cannot be analysed, then all of them: the last names both."""
    bed = sqlite_bed
    images = series(modality="MR", shape=(6, 12, 16))
    with scp() as pacs:
        for some in (images[:3], images[4:], images[3:4]):
            bed.take(some)
            bed.plan(ASKED)
            assert bed.worker().step()
            assert bed.delivery(pacs_of(pacs)).step()
    _, sr, report, _, last = objects(bed)
    assert "PredecessorDocumentsSequence" not in report
    assert f"An earlier result, in series {sr.SeriesNumber}," in evaluations(report)[1][-1]
    replaced = last.PredecessorDocumentsSequence[0].ReferencedSeriesSequence
    assert {one.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for one in replaced} == {
        sr.SOPInstanceUID,
        report.SOPInstanceUID,
    }


@pytest.mark.parametrize("multi_frame", [False, True])
def test_validators_find_no_fault_and_the_bytes_are_the_same_again(multi_frame: bool, tmp_path: Path) -> None:
    images = tmp_path / "images"
    made = [synthetic.enhanced(shape=(5, 8, 10))] if multi_frame else synthetic.series(shape=(5, 8, 10))
    synthetic.write(made, images)
    sources = results.sources(read(images))
    old = Predecessor("report", str(sources.header.StudyInstanceUID), "1.2.3", "1.2.4", synthetic.SOP_CLASSES["CT"], 1)
    first, again = (
        encode(not_analysed("A slice is missing.", sources, results.provenance(supersedes=(old,)))) for _ in range(2)
    )
    assert first == again
    path = tmp_path / "report.dcm"
    path.write_bytes(first)
    assert faults(path, images) == set()
    ds = pydicom.dcmread(io.BytesIO(first))
    assert ds.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert build("report", results.findings(np.zeros((5, 8, 10), np.uint8)), sources, results.provenance()) is None
