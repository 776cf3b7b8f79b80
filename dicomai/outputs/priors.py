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

Quantity = tuple[str, Code, Code | None, Code | None]

_CONTAINS = hd.sr.RelationshipTypeValues.CONTAINS
_CORRECTED = (
    "Not compared with an earlier result: the attributes of the patient or the date of the study were corrected after"
    " the analysis."
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
    """

    identifier: str
    uid: str
    name: Code
    value: float
    unit: Code
    method: Code | None = None
    derivation: Code | None = None

    @property
    def quantity(self) -> Quantity:
        """What tells it from the other numbers of its report."""
        return self.identifier, self.name, self.method, self.derivation


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
        numbers: all that it holds but how certain something is.
    """

    day: date
    compared_on: date
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    algorithm: str
    device_uid: str
    numbers: tuple[Number, ...]


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


def read(report: Dataset, day: date, compared_on: date) -> Prior:
    """Read what a report of ours measured (PS3.16 TID 1500).

    Args:
        report: Comprehensive 3D SR, as `sr.build` makes it.
        day: of its study.
        compared_on: the day of the study that is compared with it.

    Raises:
        AttributeError, LookupError, TypeError, ValueError: it is no such report; see `study.UNREADABLE`.
    """
    (by,) = report.ContributingEquipmentSequence
    return Prior(
        day=day,
        compared_on=compared_on,
        study_instance_uid=str(report.StudyInstanceUID),
        series_instance_uid=str(report.SeriesInstanceUID),
        sop_instance_uid=str(report.SOPInstanceUID),
        sop_class_uid=str(report.SOPClassUID),
        algorithm=f"{by.ManufacturerModelName} {by.SoftwareVersions[0]}",
        device_uid=str(by.DeviceUID),
        numbers=tuple(_numbers(report)),
    )


def forget(report: Dataset) -> None:
    """Take a comparison out of a report, and say so in its place.

    Args:
        report: its elements may be shared with another data set; they are replaced, not changed.
    """
    del report.PertinentOtherEvidenceSequence
    content = copy.deepcopy(report.ContentSequence)
    for item in content:
        if Code(*_code(item.ConceptNameCodeSequence[0])) == COMPARISON:
            item.ContentSequence = Sequence([hd.sr.TextContentItem(codes.DCM.Comment, _CORRECTED, _CONTAINS)])
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


def _numbers(report: Dataset) -> Iterator[Number]:
    content = cast("hd.sr.MeasurementReport", hd.sr.Comprehensive3DSR.from_dataset(report).content)
    groups = (*content.get_volumetric_roi_measurement_groups(), *content.get_image_measurement_groups())
    for group in groups:
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
                )


def _code(item: Dataset) -> tuple[str, str, str, str | None]:
    value = item.get("CodeValue") or item.get("LongCodeValue") or item.get("URNCodeValue")
    return str(value), str(item.CodingSchemeDesignator), str(item.CodeMeaning), item.get("CodingSchemeVersion")
