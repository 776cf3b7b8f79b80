"""What came back, read from the DICOM objects alone: segments, measurements, remarks, and the mask as a picture."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pydicom
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, segread
from highdicom.sr import MeasurementReport, srread
from PIL.Image import Image
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicomai import folder, render, volume
from dicomai.errors import UnreadableError
from dicomai.findings import Findings, Layer, Measurement, Outcome, Segment
from dicomai.stacks import split

_COMMENT = "121106"  # (121106, DCM, Comment)


@dataclass(frozen=True, slots=True)
class Returned:
    """A result as its SEG and SR say it.

    Attributes:
        seg: the Segmentation.
        sr: the Structured Report.
        segments: described in the SEG.
        measurements: stated in the SR, of segments of the SEG.
        remarks: the SR's comments.
    """

    seg: Segmentation
    sr: Dataset
    segments: tuple[Segment, ...]
    measurements: tuple[Measurement, ...]
    remarks: tuple[str, ...]

    def slices(self, segment: Segment) -> int:
        """Count the slices that a segment lies on: it has one frame for each."""
        shared = self.seg.SharedFunctionalGroupsSequence[0].get("SegmentIdentificationSequence")
        named = [shared or frame.SegmentIdentificationSequence for frame in self.seg.PerFrameFunctionalGroupsSequence]
        return sum(int(item[0].ReferencedSegmentNumber) == segment.number for item in named)

    def overlay(self, study: Path) -> Image:
        """Draw the mask of the SEG on the images that it refers to.

        Args:
            study: the folder with the images.

        Raises:
            UnreadableError: the images are not there.
        """
        (series,) = folder.read(study)[0][0].series
        wanted = {uid for _, _, uid in self.seg.get_source_image_uids()}
        for stack in split(series):
            if wanted <= {instance.sop_instance_uid for instance in stack.instances}:
                images = volume.load(stack, volume.Limits())
                labels = self.seg.get_pixels_by_source_instance(
                    [frame.instance.sop_instance_uid for frame in images.frames],
                    combine_segments=True,
                    assert_missing_frames_are_empty=True,
                )
                layers = (Layer(labels, self.segments),)
                return render.montage(images, Findings(layers, self.measurements, Outcome.FINDINGS, self.remarks))
        raise UnreadableError(f"The images that the SEG refers to are not in {study}.")


def read(files: Sequence[Path]) -> Returned:
    """Read a result.

    Args:
        files: a SEG and an SR that refers to it, in any order.

    Raises:
        UnreadableError: one of the two is missing, or they do not belong together.
    """
    by_modality = {str(pydicom.dcmread(path, specific_tags=["Modality"]).get("Modality")): path for path in files}
    if by_modality.keys() != {"SEG", "SR"}:
        came = ", ".join(sorted(by_modality)) or "nothing"
        raise UnreadableError(f"A SEG and an SR were to come back; what came is {came}: the node's log says why.")
    seg, sr = segread(by_modality["SEG"]), srread(by_modality["SR"])
    segments = {number: _segment(seg, number) for number in seg.segment_numbers}
    measurements = []
    report = cast("MeasurementReport", sr.content)
    for group in report.get_volumetric_roi_measurement_groups():
        if group.referenced_segment is None:
            raise UnreadableError("The SR measures something without saying which segment it is.")
        reference = group.referenced_segment[0].ReferencedSOPSequence[0]
        if reference.ReferencedSOPInstanceUID != seg.SOPInstanceUID:
            raise UnreadableError("The SR refers to another SEG than the one that came with it.")
        segment = segments[int(reference.ReferencedSegmentNumber)]
        measurements += [
            Measurement(_code(m.name), float(m.value), _code(m.unit), segment, _code(m.method) if m.method else None)
            for m in group.get_measurements()
        ]
    return Returned(seg, sr, tuple(segments.values()), tuple(measurements), tuple(_comments(sr)))


def _segment(seg: Segmentation, number: int) -> Segment:
    described = seg.get_segment_description(number)
    color = CIELabColor.from_dicom_value(described.RecommendedDisplayCIELabValue).to_rgb()
    return Segment(
        number=number,
        label=described.segment_label,
        category=_code(described.segmented_property_category),
        type=_code(described.segmented_property_type),
        finding_site=_code(described.anatomic_regions[0]),
        color=(int(color[0]), int(color[1]), int(color[2])),
    )


def _code(item: Dataset) -> Code:
    return Code(str(item.CodeValue), str(item.CodingSchemeDesignator), str(item.CodeMeaning))


def _comments(item: Dataset) -> Iterator[str]:
    if item.get("ValueType") == "TEXT" and item.ConceptNameCodeSequence[0].CodeValue == _COMMENT:
        yield str(item.TextValue)
    for child in item.get("ContentSequence") or ():
        yield from _comments(child)
