"""A rejection note that withdraws results of ours: Key Object Selection (PS3.3 A.35.4) after IHE IOCM (RAD-66)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from dicomai.outputs.common import MANUFACTURER, MODEL_NAME, observer, seal, stand_in
from dicomai.outputs.provenance import derived_uid, in_zone

OUTPUT = "withdrawal"
"""What the worklist calls it; no route names it."""


_IMAGES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.7",  # Secondary Capture
        "1.2.840.10008.5.1.4.1.1.30",  # Parametric Map
        "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
        "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation
    }
)


@dataclass(frozen=True, slots=True)
class Author:
    """Who withdraws, and when.

    Attributes:
        work: what identifies the withdrawal; the UIDs of its note come from it.
        installation: UUID of this node.
        software_version: dicomai's own.
        created: when the note was made; aware of its time zone.
        timezone: the hospital's, an IANA name; None for the host's.
    """

    work: str
    installation: str
    software_version: str
    created: datetime
    timezone: str | None


@dataclass(frozen=True, slots=True)
class Named:
    """An object that is withdrawn."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str


def build(
    objects: Sequence[Named], study_instance_uid: str, newest: Dataset, series_number: int, reason: str, author: Author
) -> Dataset:
    """Make the note.

    Its title is (113001, DCM, Rejected for Quality Reasons): an archive that knows such notes hides what it names, and
    keeps it (IHE RAD TF-3 4.66.4.1.3).

    Args:
        objects: what is withdrawn.
        study_instance_uid: the study that they are in.
        newest: the newest image of those that the objects are about: the patient's and the study's attributes.
        series_number: of the series that the note gets.
        reason: in a sentence, for who reads the note.
        author: who withdraws.

    Raises:
        IdentityError: the newest image lies in another study than the objects.
    """
    evidence = [
        stand_in(
            study_instance_uid,
            one.series_instance_uid,
            one.sop_class_uid,
            one.sop_instance_uid,
            is_image=one.sop_class_uid in _IMAGES,
        )
        for one in objects
    ]
    made = hd.ko.KeyObjectSelectionDocument(
        evidence=evidence,
        content=hd.ko.KeyObjectSelection(
            document_title=codes.DCM.RejectedForQualityReasons,
            referenced_objects=evidence,
            observer_device_context=observer(derived_uid("installation", author.installation), author.installation),
            description=reason,
        ),
        series_instance_uid=derived_uid(author.work, OUTPUT, "series"),
        series_number=series_number,
        sop_instance_uid=derived_uid(author.work, OUTPUT, "instance"),
        instance_number=1,
        manufacturer=MANUFACTURER,
    )
    made.ManufacturerModelName = MODEL_NAME
    made.SoftwareVersions = author.software_version
    made.DeviceSerialNumber = author.installation
    made.SeriesDescription = f"Withdrawn AI result, {len(objects)} objects"
    return seal(made, newest, author.created, in_zone(author.created, author.timezone), author.software_version)
