"""The comparison with an earlier result: what is said of it, and when nothing is."""

import io
from dataclasses import replace
from datetime import date
from typing import Any

import highdicom as hd
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicomai.findings import Findings, Measurement, Outcome, Score
from dicomai.outputs import Sources, build, encode, priors, restate
from dicomai.outputs.priors import NoPrior, Prior
from dicomai.quantities import ATTENUATION, MEAN, MR_SIGNAL
from tests import results, synthetic

SHAPE = (4, 8, 8)
THEN, NOW = date(2025, 11, 3), date(2026, 2, 1)
HU = Code("[hnsf'U]", "UCUM", "Hounsfield unit")
NO_UNITS = Code("1", "UCUM", "no units")
LAD, RCA = Code("59438005", "SCT", "LAD"), Code("13647002", "SCT", "RCA")
CALCIUM = Code("112058", "DCM", "Calcium score")


def study(day: date = NOW, **attributes: Any) -> Sources:
    images = synthetic.series(shape=SHAPE, StudyDate=day.strftime("%Y%m%d"), **attributes)
    return results.sources(synthetic.instances(images))


def report(findings: Findings, sources: Sources, **changes: Any) -> Dataset:
    ds = build("sr", findings, sources, results.provenance(**changes))
    assert ds is not None
    return pydicom.dcmread(io.BytesIO(encode(ds)))


def prior(findings: Findings, **changes: Any) -> Prior:
    """Make the report of an earlier study, and read it."""
    return priors.read(report(findings, study(THEN), work_digest="before", **changes), THEN, NOW)


def volume(cm3: float) -> Findings:
    return results.findings(results.ball(SHAPE), value=cm3)


def of(name: Code, value: float, unit: Code, derivation: Code | None = None) -> Findings:
    (one,) = volume(1).layers[0].segments
    return replace(volume(1), measurements=(Measurement(name, value, unit, one, derivation=derivation),))


def section(ds: Dataset) -> list[Dataset]:
    """Give what the report says of earlier studies; it has one such part, or none."""
    found = [item for item in ds.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "111424"]
    assert len(found) <= 1
    return list(found[0].ContentSequence) if found else []


def said(ds: Dataset) -> list[str]:
    return [item.TextValue for item in section(ds) if item.ValueType == "TEXT"]


def test_a_report_is_read_as_it_was_written() -> None:
    one = volume(1).layers[0].segments[0]
    measured = (
        Measurement(
            results.VOLUME, 1750.123456, results.CM3, one, Code("126030", "DCM", "Sum of segmented voxel volumes")
        ),
        Measurement(ATTENUATION, -41.5, HU, one, derivation=MEAN),
    )
    given = replace(volume(1), measurements=measured, scores=(Score(CALCIUM, 250.0, NO_UNITS),))
    read = prior(given)
    assert (read.day, read.algorithm) == (THEN, "brain_extraction 1.0.2")
    assert read.device_uid == results.algorithm().device_uid
    assert read.bundle_digest == results.algorithm().bundle_digest
    assert [(n.identifier, n.name, n.value, n.unit, n.method, n.derivation) for n in read.numbers] == [
        ("brain_extraction: Intracranial structure", results.VOLUME, 1750.12, results.CM3, measured[0].method, None),
        ("brain_extraction: Intracranial structure", ATTENUATION, -41.5, HU, None, MEAN),
        ("brain_extraction: Calcium score 1", CALCIUM, 250.0, NO_UNITS, None, None),
    ]
    assert [(n.site, n.is_score) for n in read.numbers] == [(one.finding_site, False)] * 2 + [(None, True)]


def test_both_numbers_are_given_with_unit_and_day_and_the_earlier_report_is_named() -> None:
    before = prior(volume(1750))
    ds = report(volume(1790), study(), prior=before)
    first, last = said(ds)
    assert first == ("Intracranial structure: Volume 1790 cm3 on 2026-02-01; 1750 cm3 on 2025-11-03 (+40 cm3, +2.3 %).")
    assert "brain_extraction 1.0.2 on the study of 2025-11-03" in last
    (named,) = (item for item in section(ds) if item.ValueType == "COMPOSITE")
    assert named.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == before.sop_instance_uid
    (other,) = ds.PertinentOtherEvidenceSequence
    assert other.StudyInstanceUID == before.study_instance_uid != ds.StudyInstanceUID
    assert before.sop_instance_uid not in str(ds.CurrentRequestedProcedureEvidenceSequence)


def test_the_earlier_number_is_never_among_the_measurements_of_this_study() -> None:
    before = prior(volume(1750))
    ds = report(volume(1790), study(), prior=before)
    content: Any = hd.sr.Comprehensive3DSR.from_dataset(ds).content
    groups = [*content.get_volumetric_roi_measurement_groups(), *content.get_image_measurement_groups()]
    assert [one.value for group in groups for one in group.get_measurements()] == [1790.0]
    (group,) = (item for item in section(ds) if item.ValueType == "CONTAINER")
    texts = [item.get("TextValue") or item.get("UID") for item in group.ContentSequence]
    assert {"Study of 2025-11-03", before.study_instance_uid, before.numbers[0].uid} <= set(texts)
    assert [n.value for n in priors.read(ds, NOW, NOW).numbers] == [1790.0]


@pytest.mark.parametrize(
    ("now", "then", "change"),
    [
        (of(ATTENUATION, -40.0, HU, MEAN), of(ATTENUATION, 20.0, HU, MEAN), "20 HU on 2025-11-03 (-60 HU)."),
        (
            of(MR_SIGNAL, 210, NO_UNITS, MEAN),
            of(MR_SIGNAL, 105, NO_UNITS, MEAN),
            "2025-11-03, which is not comparable.",
        ),
        (volume(0), volume(12), "Volume 0 cm3 on 2026-02-01; 12 cm3 on 2025-11-03 (-12 cm3, -100.0 %)."),
        (volume(12), volume(0), "12 cm3 on 2026-02-01; 0 cm3 on 2025-11-03 (+12 cm3)."),
        (volume(12), volume(12), "(no difference)."),
        (
            of(results.VOLUME, 12000, Code("mm3", "UCUM", "cubic millimeter")),
            volume(11),
            "Volume 12000 mm3 on 2026-02-01; 11 cm3 on 2025-11-03, in another unit, so that no difference is given.",
        ),
    ],
)
def test_a_difference_is_given_where_it_means_something(now: Findings, then: Findings, change: str) -> None:
    assert said(report(now, study(), prior=prior(then)))[0].endswith(change)


def test_a_score_is_compared_without_a_ratio() -> None:
    nothing = Findings((), (), Outcome.FINDINGS)
    now, then = (replace(nothing, scores=(Score(CALCIUM, value, NO_UNITS),)) for value in (300.0, 250.0))
    assert said(report(now, study(), prior=prior(then)))[0] == (
        "Calcium score 300 on 2026-02-01; 250 on 2025-11-03 (+50)."
    )


def scored(*scores: tuple[float, Code | None]) -> Findings:
    given = tuple(Score(CALCIUM, value, NO_UNITS, site) for value, site in scores)
    return replace(Findings((), (), Outcome.FINDINGS), scores=given)


def test_scores_of_one_name_are_told_apart_by_their_place() -> None:
    then, now = scored((250.0, LAD), (7.0, RCA)), scored((300.0, LAD), (12.0, RCA))
    ds = report(now, study(), prior=prior(then))
    assert said(ds)[:2] == [
        "Calcium score, LAD 300 on 2026-02-01; 250 on 2025-11-03 (+50).",
        "Calcium score, RCA 12 on 2026-02-01; 7 on 2025-11-03 (+5).",
    ]
    groups = [item for item in section(ds) if item.ValueType == "CONTAINER"]
    assert [str(group).count(site.meaning) for group in groups for site in (LAD, RCA)] == [1, 0, 0, 1]
    swapped = report(scored((12.0, RCA), (300.0, LAD)), study(), prior=prior(then))  # never one of the other
    assert [sentence.partition("; ")[2] for sentence in said(swapped)[:4]] == [
        "not measured on 2025-11-03.", "not measured on 2025-11-03.",
        "not measured on 2026-02-01.", "not measured on 2026-02-01.",
    ]  # fmt: skip


def test_scores_that_name_and_place_do_not_tell_apart_are_told_apart_by_their_number() -> None:
    first, second, _ = said(
        report(scored((3.0, LAD), (4.0, LAD)), study(), prior=prior(scored((1.0, LAD), (2.0, LAD))))
    )
    assert first == "Calcium score 1, LAD 3 on 2026-02-01; 1 on 2025-11-03 (+2)."
    assert second.startswith("Calcium score 2, LAD 4 on ")


@pytest.mark.parametrize("algorithm", ["brain_extraction", "brain: extraction"])
def test_a_segment_keeps_its_label_also_where_that_begins_like_what_was_measured(algorithm: str) -> None:
    segments = [results.segment(1, "Volume left"), results.segment(2, "Volume 2")]
    labels = results.ball(SHAPE)
    labels[0, 0, :2] = 1, 2
    found, by = results.findings(labels, segments=segments), results.algorithm(name=algorithm)
    ds = report(found, study(), algorithm=by, prior=prior(found, algorithm=by))
    assert [sentence.partition(" 1292 cm3")[0] for sentence in said(ds)[:2]] == [
        "Volume left: Volume",
        "Volume 2: Volume",
    ]


def test_what_has_no_counterpart_is_said_to_have_none() -> None:
    first, second, _ = said(report(of(ATTENUATION, 40, HU, MEAN), study(), prior=prior(volume(12))))
    assert first.endswith("Mean 40 HU on 2026-02-01; not measured on 2025-11-03.")
    assert second.endswith("Volume 12 cm3 on 2025-11-03; not measured on 2026-02-01.")


@pytest.mark.parametrize("other", [{"version": "1.0.1"}, {"weights_digest": "0000"}])
def test_another_version_gives_no_difference(other: dict[str, str]) -> None:
    before = prior(volume(1750), algorithm=results.algorithm(**other))
    ds = report(volume(1790), study(), prior=before)
    (sentence,) = said(ds)
    assert f"measured by another version, {before.algorithm}:" in sentence
    assert "1750" not in str(section(ds))
    assert not [item for item in section(ds) if item.ValueType == "CONTAINER"]


@pytest.mark.parametrize(
    ("known", "why"), [("0000", "with other settings of it"), (None, "with which settings of it is not known")]
)
def test_a_bundle_that_was_edited_gives_no_difference_under_the_same_version(known: str | None, why: str) -> None:
    ds = report(volume(1790), study(), prior=replace(prior(volume(1750)), bundle_digest=known))
    (sentence,) = said(ds)
    assert "was measured by brain_extraction 1.0.2" in sentence
    assert why in sentence
    assert "1750" not in str(section(ds))


def test_a_report_that_does_not_name_its_bundle_is_read() -> None:
    ds = report(volume(1750), study(THEN))
    measured = (i for i in ds.ContentSequence if i.ConceptNameCodeSequence[0].CodeMeaning == "Imaging Measurements")
    for group in next(measured).ContentSequence:
        group.ContentSequence = [item for item in group.ContentSequence if "bundle=" not in str(item.get("TextValue"))]
    old = pydicom.dcmread(io.BytesIO(encode(ds)))
    assert "bundle=" not in str(old)
    assert priors.read(old, THEN, NOW).bundle_digest is None


def test_results_that_nobody_could_look_at_are_spoken_of() -> None:
    ds = report(volume(1790), study(), prior=replace(prior(volume(1750)), undated=2))
    assert said(ds)[0].startswith("Not looked at: results of other studies whose images cannot be read (2);")
    assert priors.names_day(ds, THEN)
    assert "+40 cm3" in said(ds)[1]


def test_that_there_is_nothing_to_compare_with_is_said_where_it_was_asked_for() -> None:
    ds = report(volume(1790), study(), prior=NoPrior("this node has none of this route for this patient."))
    assert said(ds) == ["Not compared with an earlier result: this node has none of this route for this patient."]
    assert "PertinentOtherEvidenceSequence" not in ds
    assert section(report(volume(1790), study())) == []


@pytest.mark.parametrize("corrected", ["PatientID", "PatientBirthDate", "PatientName", "StudyDate"])
def test_a_correction_of_whose_images_these_are_takes_the_comparison_away(corrected: str) -> None:
    images = study(IssuerOfPatientID="Here", PatientName="A^B", PatientBirthDate="19500101")
    ds = report(volume(1790), images, prior=prior(volume(1750)))
    assert encode(restate(ds, images.newest)) == encode(ds)
    newest = Dataset()
    newest.update(images.newest)
    setattr(newest, corrected, "19490101")
    newest.file_meta = images.newest.file_meta
    again = pydicom.dcmread(io.BytesIO(encode(restate(ds, newest))))
    (sentence,) = said(again)
    assert sentence.startswith("Not compared with an earlier result: the attributes of the patient or the date")
    assert "PertinentOtherEvidenceSequence" not in again
    assert "2025-11-03" not in str(again)
    assert encode(restate(again, newest)) == encode(again)
    assert len(said(ds)) == 2


def test_a_comparison_with_what_no_longer_holds_is_taken_out() -> None:
    images, before = study(), prior(volume(1750))
    ds = report(volume(1790), images, prior=before)
    assert priors.compared_with(ds) == before.sop_instance_uid
    assert [priors.names_day(ds, day) for day in (THEN, NOW, None)] == [True, False, False]
    again = pydicom.dcmread(io.BytesIO(encode(restate(ds, images.newest, prior_holds=False))))
    (sentence,) = said(again)
    assert sentence.startswith("Not compared with an earlier result: the one that was compared with does not hold")
    assert priors.compared_with(again) is None
    assert "PertinentOtherEvidenceSequence" not in again
    assert "1750" not in str(again)
    assert encode(restate(again, images.newest)) == encode(again)


def test_the_same_comparison_gives_the_same_bytes() -> None:
    images, before = study(), prior(volume(1750))
    made = [build("sr", volume(1790), images, results.provenance(prior=before)) for _ in range(2)]
    assert made[0] is not None
    assert made[1] is not None
    assert encode(made[0]) == encode(made[1])


@pytest.mark.parametrize(
    ("given", "day"),
    [
        ({"StudyDate": "20251103", "AcquisitionDate": "20251104"}, THEN),
        ({"StudyDate": "", "AcquisitionDate": "20251103"}, THEN),
        ({"StudyDate": "20251399"}, None),
        ({}, None),
    ],
)
def test_the_day_of_a_study(given: dict[str, str], day: date | None) -> None:
    header = Dataset()
    for keyword, value in given.items():
        header.add_new(keyword, "LO", value)
    assert priors.study_day(header) == day
