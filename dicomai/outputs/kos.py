"""Key Object Selection document (PS3.3 A.35.4) after TID 2010: the source images that matter.

They are those of the key image, so that a reader sees the same places with and without contours. The title is (113000,
DCM, Of Interest): it points at images and says nothing of their quality, and no archive takes it for a rejection note.
"""

from collections.abc import Iterator, Sequence

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import KeyObjectSelectionDocumentStorage

from dicomai import render
from dicomai.findings import Findings, found_segments
from dicomai.outputs.common import (
    MANUFACTURER,
    MODEL_NAME,
    check_shapes,
    equipment,
    finish,
    observer,
    references,
    stand_in,
)
from dicomai.outputs.keyimage import Areas, areas, choose_slices, detected, hidden, outside
from dicomai.outputs.provenance import Provenance, Sources

SOP_CLASS_UID = KeyObjectSelectionDocumentStorage


def build(findings: Findings, sources: Sources, provenance: Provenance) -> Dataset | None:
    """Name the images that matter; None where no segment has a voxel and nothing was detected.

    Args:
        findings: label maps of shape (z, y, x), z as in `sources.frames`.
        sources: the images that the label maps lie on.
        provenance: who made it, and under which identifiers.

    Raises:
        InferenceError: a label map has another shape than the images, or a value that is not described.
        GeometryError: something was detected, and an image does not say where it lies.
    """
    check_shapes(findings, sources)
    if not found_segments(findings) and not findings.detections:
        return None
    counted = areas(findings)
    chosen = choose_slices(counted, len(sources.frames), detected(findings, sources))
    named = references(sources.frames[z] for z in chosen)
    study = str(sources.header.StudyInstanceUID), str(sources.header.SeriesInstanceUID)
    evidence = [
        stand_in(*study, item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID, is_image=True) for item in named
    ]
    content = hd.ko.KeyObjectSelection(
        document_title=codes.DCM.OfInterest,
        referenced_objects=evidence,
        observer_device_context=observer(provenance.device_uid, provenance.installation),
        description=" ".join(_sentences(findings, sources, provenance, counted, chosen)),
    )
    images = [item for item in content[0].ContentSequence if item.ValueType == "IMAGE"]
    for image, item in zip(images, named, strict=True):
        image.ReferencedSOPSequence = [item]  # with the numbers of frames
    made = hd.ko.KeyObjectSelectionDocument(
        evidence=evidence,
        content=content,
        series_instance_uid=provenance.uid("kos", "series"),
        series_number=provenance.series_number("kos"),
        sop_instance_uid=provenance.uid("kos", "instance"),
        instance_number=1,
        manufacturer=MANUFACTURER,
    )
    by = equipment(provenance)
    made.ManufacturerModelName, made.SoftwareVersions = MODEL_NAME, by["software_versions"]
    made.DeviceSerialNumber = by["device_serial_number"]
    return finish(made, sources, provenance, "kos")


def _sentences(
    findings: Findings, sources: Sources, provenance: Provenance, counted: Areas, chosen: Sequence[int]
) -> Iterator[str]:
    """Say who chose, what is largest on which image, and what is on none of them."""
    algorithm = provenance.algorithm
    yield f"{render.MARK}: {algorithm.name} {algorithm.version}."
    largest: dict[int, list[str]] = {}
    nearest: dict[int, list[str]] = {}
    for one in found_segments(findings):
        z = int(np.argmax(counted[one.layer, one.segment.number]))
        largest.setdefault(z, []).append(one.segment.label)
    beyond = outside(findings, sources)
    for detection, z in zip(findings.detections, detected(findings, sources), strict=True):
        if detection not in beyond:
            nearest.setdefault(z, []).append(detection.type.meaning)
    for z in chosen:
        image = render.image_name(sources.frames[z])
        for what, names in (("Largest area of", largest), ("Nearest to the centre of", nearest)):
            if z in names:
                yield f"{what} {', '.join(names[z])}{f': {image}' if image else ''}."
    missed = hidden(findings, sources, counted, chosen)
    if missed:
        yield f"Found, but on none of these images: {missed}."
    yield from findings.remarks
