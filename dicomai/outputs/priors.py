"""An earlier result of the same patient, as its report says it, and what becomes of a comparison with it later on.

What a report says of an earlier study stands in one container, (111424, DCM, Comparison to previous studies), outside
of its Imaging Measurements: whoever collects those never takes an earlier number for one of this study.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import cast

import highdicom as hd
from pydicom import Sequence
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from dicomai.study import Identity

COMPARISON = codes.DCM.ComparisonToPreviousStudies

BUNDLE = "bundle="
"""Begins the Algorithm Parameters (111002, DCM) of a group that hold the digest of its bundle."""

Quantity = tuple[str, Code | None, Code, Code | None, Code | None]

_Group = hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations | hd.sr.MeasurementsAndQualitativeEvaluations

_CONTAINS = hd.sr.RelationshipTypeValues.CONTAINS
_CORRECTED = (
    "Not compared with an earlier result: the attributes of the patient or the date of the study were corrected after"
    " the analysis."
)
_GONE = (
    "Not compared with an earlier result: the one that was compared with does not hold any more, or it is no longer"
    " certain whose it is."
)


@dataclass(frozen=True, slots=True)
class Number:
    """A number that a report holds.

    Attributes:
        identifier: Tracking Identifier of what it is of; the same version of a model gives the same to the same thing.
        uid: Tracking Unique Identifier.
        name: what was measured.
        value: in `unit`.
        unit: UCUM code.
        method: how it was measured, where that is said.
        derivation: how it was made of many (CID 7464), where that is said.
        site: where it was measured; of a score, where that is said.
        is_score: it is about no segment.
    """

    identifier: str
    uid: str
    name: Code
    value: float
    unit: Code
    method: Code | None = None
    derivation: Code | None = None
    site: Code | None = None
    is_score: bool = False

    @property
    def quantity(self) -> Quantity:
        """What tells it from the other numbers of its report."""
        return self.identifier, self.site, self.name, self.method, self.derivation


@dataclass(frozen=True, slots=True)
class Prior:
    """The report of an earlier study.

    Attributes:
        day: of the study.
        compared_on: the day of the study that is compared with it.
        study_instance_uid: of the study.
        series_instance_uid: of the report.
        sop_instance_uid: of the report.
        sop_class_uid: of the report.
        algorithm: what measured, with its version.
        device_uid: of that version with its weights, see `Algorithm.device_uid`.
        bundle_digest: of all files of its bundle, see `Algorithm.bundle_digest`; None where the report does not say.
        numbers: all that it holds but how certain something is.
        undated: of how many other results the day is not known, as their images cannot be read.
    """

    day: date
    compared_on: date
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    algorithm: str
    device_uid: str
    bundle_digest: str | None
    numbers: tuple[Number, ...]
    undated: int = 0


@dataclass(frozen=True, slots=True)
class NoPrior:
    """There is nothing to compare with, though it was asked for.

    Attributes:
        why: in a sentence that tells nothing of the patient.
    """

    why: str


def study_day(header: Dataset) -> date | None:
    """Give the day of a study: its StudyDate, else the AcquisitionDate of an image; None where neither is a day."""
    for keyword in ("StudyDate", "AcquisitionDate"):
        text = str(header.get(keyword) or "").strip()
        if len(text) == 8 and text.isdigit():
            try:
                return date(int(text[:4]), int(text[4:6]), int(text[6:]))
            except ValueError:
                continue
    return None


def read(report: Dataset, day: date, compared_on: date, undated: int = 0) -> Prior:
    """Read what a report of ours measured (PS3.16 TID 1500).

    Args:
        report: Comprehensive 3D SR, as `sr.build` makes it.
        day: of its study.
        compared_on: the day of the study that is compared with it.
        undated: of how many other results the day is not known.

    Raises:
        AttributeError, LookupError, TypeError, ValueError: it is no such report; see `study.UNREADABLE`.
    """
    (by,) = report.ContributingEquipmentSequence
    groups = _groups(report)
    return Prior(
        day=day,
        compared_on=compared_on,
        study_instance_uid=str(report.StudyInstanceUID),
        series_instance_uid=str(report.SeriesInstanceUID),
        sop_instance_uid=str(report.SOPInstanceUID),
        sop_class_uid=str(report.SOPClassUID),
        algorithm=f"{by.ManufacturerModelName} {by.SoftwareVersions[0]}",
        device_uid=str(by.DeviceUID),
        bundle_digest=next(filter(None, map(_bundle_digest, groups)), None),
        numbers=tuple(number for group in groups for number in _numbers(group)),
        undated=undated,
    )


def compared_with(report: Dataset) -> str | None:
    """Give the SOP Instance UID of the earlier report that a result compares with; None where it compares with none."""
    for item in _comparison(report):
        if item.ValueType == "COMPOSITE":
            return str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
    return None


def names_day(report: Dataset, day: date | None) -> bool:
    """Tell whether a comparison gives this day as that of the earlier study: its last sentence names no other."""
    last = [str(item.TextValue) for item in _comparison(report) if item.ValueType == "TEXT"][-1:]
    return day is not None and any(str(day) in said for said in last)


def forget(report: Dataset, *, is_gone: bool = False) -> None:
    """Take a comparison out of a report, and say so in its place.

    Args:
        report: its elements may be shared with another data set; they are replaced, not changed.
        is_gone: it is the earlier result that no longer holds, not this one that was corrected.
    """
    del report.PertinentOtherEvidenceSequence
    why = _GONE if is_gone else _CORRECTED
    content = copy.deepcopy(report.ContentSequence)
    for item in content:
        if Code(*_code(item.ConceptNameCodeSequence[0])) == COMPARISON:
            item.ContentSequence = Sequence([hd.sr.TextContentItem(codes.DCM.Comment, why, _CONTAINS)])
    report.ContentSequence = content


def no_longer_holds(report: Dataset, newest: Dataset) -> bool:
    """Tell whether a report compares with a study of which it is no longer known that it is the same patient's.

    Args:
        report: as it was made; one that bears no patient yet is never meant.
        newest: the newest instance of its sources, whose attributes it is to bear.
    """
    if "PertinentOtherEvidenceSequence" not in report or not report.get("PatientID"):
        return False
    before, after = report.get("StudyDate"), newest.get("StudyDate")
    return Identity.of(report) != Identity.of(newest) or str(before or "") != str(after or "")


def _comparison(report: Dataset) -> Sequence:
    for item in report.get("ContentSequence") or ():
        if Code(*_code(item.ConceptNameCodeSequence[0])) == COMPARISON:
            return cast("Sequence", item.ContentSequence)
    return Sequence()


def _groups(report: Dataset) -> tuple[_Group, ...]:
    content = cast("hd.sr.MeasurementReport", hd.sr.Comprehensive3DSR.from_dataset(report).content)
    return (*content.get_volumetric_roi_measurement_groups(), *content.get_image_measurement_groups())


def _bundle_digest(group: _Group) -> str | None:
    for item in group[0].ContentSequence:
        if item.name == codes.DCM.AlgorithmParameters and str(item.TextValue).startswith(BUNDLE):
            return str(item.TextValue).removeprefix(BUNDLE)
    return None


def _numbers(group: _Group) -> Iterator[Number]:
    sites = [Code(*_code(one.value)) for one in group.finding_sites]
    for one in group.get_measurements():
        if one.name != codes.DCM.CertaintyOfFinding:
            yield Number(
                identifier=str(group.tracking_identifier),
                uid=str(group.tracking_uid),
                name=Code(*_code(one.name)),
                value=float(one.value),
                unit=Code(*_code(one.unit)),
                method=Code(*_code(one.method)) if one.method else None,
                derivation=Code(*_code(one.derivation)) if one.derivation else None,
                site=sites[0] if sites else None,
                is_score=group.finding_type is None,
            )


def _code(item: Dataset) -> tuple[str, str, str, str | None]:
    value = item.get("CodeValue") or item.get("LongCodeValue") or item.get("URNCodeValue")
    return str(value), str(item.CodingSchemeDesignator), str(item.CodeMeaning), item.get("CodingSchemeVersion")
