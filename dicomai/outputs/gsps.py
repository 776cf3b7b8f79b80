r"""Grayscale Softcopy Presentation State (PS3.3 A.33.1): outlines of what was found as graphics over the source images.

Each segment has a layer of its own, in its colour, that a reader can switch off, and all detections have one; a label
and numbers stand on the slice of a segment's largest area, and where a detection has its centre, 'AI, unverified' on
every image. Grey values are shown as the source images say.

Graphics are in PIXEL units: 0\0 is the top left corner of the first pixel, 1\1 its bottom right corner, so that its
centre is 0.5\0.5 (PS3.3 C.10.5.1.2).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from highdicom.color import CIELabColor
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import GrayscaleSoftcopyPresentationStateStorage

from dicomai import pixels, render, words
from dicomai.findings import Findings, NumberedSegment, found_segments
from dicomai.outputs.common import (
    begin,
    carry,
    check_shapes,
    decimals,
    finish,
    geometry,
    reference,
    references,
    tracking,
)
from dicomai.outputs.contours import Polygon, masks, outlines, speckled
from dicomai.outputs.groups import identified
from dicomai.outputs.keyimage import affine, areas, choose_slices, detected, drawn_on
from dicomai.outputs.provenance import Provenance, Sources
from dicomai.stacks import attributes, number
from dicomai.study import Frame

SOP_CLASS_UID = GrayscaleSoftcopyPresentationStateStorage

_GRAPHIC_DATA = Tag("GraphicData")
_MOST_POINTS = 65534 // 8  # of a line: two 32 bit numbers each, in 16 bits of length
_MARK_LAYER = "AI_UNVERIFIED"
_DETECTIONS = "DETECTIONS"
_MARK_BOX = ([0.01, 0.01], [0.99, 0.05])  # of the displayed area
_THREADS = 2

Window = tuple[float, float, str]  # centre, width, VOI LUT Function


@dataclass(frozen=True, slots=True)
class Table:
    """A VOI LUT (PS3.3 C.11.2.1.1): what its LUT Descriptor says, that element's VR, and LUT Data."""

    vr: str
    entries: int
    first: int
    bits: int
    data: bytes

    def item(self) -> Dataset:
        """Give the item of VOI LUT Sequence."""
        made = Dataset()
        made.add_new("LUTDescriptor", self.vr, [self.entries, self.first, self.bits])
        made.add_new("LUTData", "OW", self.data)
        return made


def build(findings: Findings, sources: Sources, provenance: Provenance) -> Dataset | None:
    """Draw outlines of segments and detections as graphics; None where there is neither, or they cannot be shown right.

    That is where the images' grey values cannot be stated (`_can_show_grey`), and where there are too many parts.

    Args:
        findings: label maps of shape (z, y, x), z as in `sources.frames`.
        sources: the images that the label maps lie on; where one to be shown has no window, pixel data is read again.
        provenance: who made it, and under which identifiers.

    Raises:
        InferenceError: a label map has another shape than the images, or a value that is not described.
        GeometryError: an image does not say where it lies.
        UnreadableError: pixel data cannot be decoded.
        StoreError: the storage did not give an instance.
    """
    check_shapes(findings, sources)
    found = found_segments(findings)
    counted = areas(findings)
    seen = [[*drawn_on(one, sources, range(len(sources.frames)))] for one in findings.detections]
    filled = np.flatnonzero(np.any(list(counted.values()), axis=0)) if found else ()
    shown = [sources.frames[z] for z in sorted({*map(int, filled), *(z for slices in seen for z in slices)})]
    if not shown or not _can_show_grey(shown) or speckled(findings, found, counted):
        return None
    made = begin("gsps", SOP_CLASS_UID, "PR", provenance)
    made.ContentLabel = _MARK_LAYER
    made.ContentDescription = f"Outlines by {provenance.algorithm.name}"[:64].replace("\\", "/")
    made.ContentCreatorName = "dicomai^"
    made.PresentationCreationDate = made.PresentationCreationTime = None  # `finish` knows them
    made.GraphicLayerSequence = [*_layers(found, provenance)]
    if any(seen):
        made.GraphicLayerSequence.append(_layer(_DETECTIONS, len(found) + 2, "Detections", words.DETECTED))
    made.GraphicAnnotationSequence = [
        _mark(provenance),
        *_drawn(findings, found, sources, provenance),
        *_detected(findings, seen, sources, provenance),
    ]
    series = Dataset()
    series.SeriesInstanceUID = str(sources.header.SeriesInstanceUID)
    series.ReferencedImageSequence = references(shown)
    made.ReferencedSeriesSequence = [series]
    made.DisplayedAreaSelectionSequence = [_whole_image(sources)]
    chosen = choose_slices(counted, len(sources.frames), detected(findings, sources))
    _show_grey(made, shown, [sources.frames[z] for z in chosen])
    inverse = sources.header.get("PhotometricInterpretation") == "MONOCHROME1"
    made.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
    for keyword in ("BodyPartExamined", "Laterality"):
        if sources.header.get(keyword):
            carry(made, sources.header, keyword)
    return finish(made, sources, provenance, "gsps")


def _layers(found: Sequence[NumberedSegment], provenance: Provenance) -> Iterator[Dataset]:
    """Describe the layers (PS3.3 C.10.7): the mark's, and one for each segment."""
    algorithm = provenance.algorithm
    yield _layer(_MARK_LAYER, 1, f"{render.MARK}: {algorithm.name}", render.YELLOW)
    for one in found:
        yield _layer(_layer_name(one), one.number + 1, one.segment.label, one.segment.color)


def _layer(name: str, order: int, description: str, color: tuple[int, int, int]) -> Dataset:
    item = Dataset()
    item.GraphicLayer, item.GraphicLayerOrder = name, order
    item.GraphicLayerDescription = description[:64].replace("\\", "/")
    item.GraphicLayerRecommendedDisplayCIELabValue = list(CIELabColor.from_rgb(*color).value)
    return item


def _layer_name(one: NumberedSegment) -> str:
    return f"SEGMENT_{one.number}"


def _mark(provenance: Provenance) -> Dataset:
    """Say on every image who drew, and that nobody has verified it; it names no image, which means all."""
    algorithm = provenance.algorithm
    text = Dataset()
    text.BoundingBoxAnnotationUnits = "DISPLAY"
    text.BoundingBoxTopLeftHandCorner, text.BoundingBoxBottomRightHandCorner = _MARK_BOX
    text.BoundingBoxTextHorizontalJustification = "LEFT"
    text.UnformattedTextValue = f"{render.MARK}: {algorithm.name} {algorithm.version}"
    item = Dataset()
    item.GraphicLayer = _MARK_LAYER
    item.TextObjectSequence = [text]
    return item


def _drawn(
    findings: Findings, found: Sequence[NumberedSegment], sources: Sources, provenance: Provenance
) -> Iterator[Dataset]:
    """Draw each segment on each image that it lies on (PS3.3 C.10.5)."""
    counted = areas(findings)
    for one, z, mask in masks(findings, found, counted):
        lines = [polygon + 0.5 for polygon in outlines(mask)]
        numbers = render.numbers_of(one.segment, findings.measurements)
        said = ", ".join([one.segment.label, *([numbers] if numbers else [])])
        largest = z == int(np.argmax(counted[one.layer, one.segment.number]))
        named = tracking(provenance, one.layer, one.segment)
        yield _annotation(_layer_name(one), sources.frames[z], lines, named, said if largest else "")


def _detected(
    findings: Findings, seen: Sequence[Sequence[int]], sources: Sources, provenance: Provenance
) -> Iterator[Dataset]:
    """Draw each detection on each image that shows some of it; what it is stands where its centre is nearest."""
    place, size = geometry(sources), (int(sources.header.Rows), int(sources.header.Columns))
    statements = (one for one in words.statements(findings) if one.kind == "Detection")
    centers = detected(findings, sources)
    for n, (one, said, slices) in enumerate(zip(findings.detections, statements, seen, strict=True), 1):
        named = identified(one.type, "detection", n, provenance)
        told = centers[n - 1] if centers[n - 1] in slices else next(iter(slices), None)
        for z in slices:
            lines = [polygon + 0.5 for polygon in outlines(render.region(one.region, affine(place, z), size, 0))]
            text = f"{said.about}: {said.value}" if z == told else ""
            yield _annotation(_DETECTIONS, sources.frames[z], lines, named, text)


def _annotation(layer: str, frame: Frame, lines: Sequence[Polygon], named: tuple[str, str], text: str) -> Dataset:
    """Draw closed lines on an image, with a text at their highest corner (PS3.3 C.10.5).

    Args:
        layer: its Graphic Layer.
        frame: of the image.
        lines: in PIXEL units.
        named: tracking identifier and UID.
        text: empty for none.
    """
    item = Dataset()
    item.ReferencedImageSequence = [reference(frame)]
    item.GraphicLayer = layer
    if text:
        item.TextObjectSequence = [_text(text, lines)]
    item.GraphicObjectSequence = []
    for points in (part for line in lines for part in _parts(line)):
        drawn = Dataset()
        drawn.GraphicAnnotationUnits, drawn.GraphicDimensions = "PIXEL", 2
        drawn.NumberOfGraphicPoints = len(points)
        drawn.GraphicType, drawn.GraphicFilled = "POLYLINE", "N"
        drawn.TrackingID, drawn.TrackingUID = named
        drawn[_GRAPHIC_DATA] = _data(points)
        # Says that the bytes are in the data set's own encoding: they are then written as they are.
        drawn.set_original_encoding(False, True, drawn._character_set)
        item.GraphicObjectSequence.append(drawn)
    return item


def _parts(line: Polygon) -> Iterator[Polygon]:
    """Close a polygon, and cut it where it has more points than its attribute can hold."""
    closed = np.concatenate([line, line[:1]])
    for start in range(0, len(closed) - 1, _MOST_POINTS - 1):
        yield closed[start : start + _MOST_POINTS]


def _data(points: Polygon) -> RawDataElement:
    """Write points as 32 bit numbers; as bytes, because there may be a million of them."""
    encoded = points.astype("<f4").tobytes()
    return RawDataElement(_GRAPHIC_DATA, "FL", len(encoded), encoded, 0, False, True)


def _text(said: str, lines: Sequence[Polygon]) -> Dataset:
    """Write a text, anchored at the highest corner of an outline."""
    corners = np.concatenate(lines)
    text = Dataset()
    text.AnchorPointAnnotationUnits = "PIXEL"
    text.AnchorPoint = corners[np.argmin(corners[:, 1])].tolist()
    text.AnchorPointVisibility = "Y"
    text.UnformattedTextValue = said[:1024]
    return text


def _whole_image(sources: Sources) -> Dataset:
    """Show images whole, as large as there is room (PS3.3 C.10.4); here pixels are counted from 1."""
    item = Dataset()
    item.DisplayedAreaTopLeftHandCorner = [1, 1]
    item.DisplayedAreaBottomRightHandCorner = [int(sources.header.Columns), int(sources.header.Rows)]
    item.PresentationSizeMode = "SCALE TO FIT"
    item.PresentationPixelSpacing = decimals(geometry(sources).pixel_spacing)
    return item


def _can_show_grey(shown: Sequence[Frame]) -> bool:
    """Tell whether one presentation state can say how grey values are shown.

    It has one Modality LUT for all of its images, and no window of stored values turns light into dark.
    """
    if any(attributes(frame, "PixelValueTransformationSequence").get("ModalityLUTSequence") for frame in shown):
        return False
    rescalings = {_rescaling(frame) for frame in shown}
    return len(rescalings) == 1 or all(slope > 0 for slope, *_ in rescalings)


def _show_grey(made: Dataset, shown: Sequence[Frame], chosen: Sequence[Frame]) -> None:
    """Show grey values as the images say (PS3.3 C.11.1, C.11.8): Modality LUT, windows and VOI LUTs.

    A presentation state has one rescaling for all of its images. Where theirs differ, as in PET, it has none, and the
    windows are those of the stored values. An image with neither window nor LUT gets the window of the slices chosen
    for key images.
    """
    rescalings = [_rescaling(frame) for frame in shown]
    shared = len(set(rescalings)) == 1
    if shared:
        slope, intercept, made.RescaleType = rescalings[0]
        (made.RescaleSlope,), (made.RescaleIntercept,) = decimals((slope,)), decimals((intercept,))
    by_voi: dict[Window | Table, list[Frame]] = {}
    for frame, rescaling, voi in zip(shown, rescalings, _vois(shown, chosen, tables=shared), strict=True):
        by_voi.setdefault(voi if shared or isinstance(voi, Table) else _stored(voi, rescaling), []).append(frame)
    made.SoftcopyVOILUTSequence = []
    for voi, frames in by_voi.items():
        item = Dataset()
        if len(by_voi) > 1:
            item.ReferencedImageSequence = references(frames)
        if isinstance(voi, Table):
            item.VOILUTSequence = [voi.item()]
        else:
            center, width, function = voi
            (item.WindowCenter,), (item.WindowWidth,) = decimals((center,)), decimals((width,))
            item.VOILUTFunction = function
        made.SoftcopyVOILUTSequence.append(item)


def _rescaling(frame: Frame) -> tuple[float, float, str]:
    """Give a frame's slope, intercept and unit; the identity where it has none. 'US': the unit is not stated."""
    said = attributes(frame, "PixelValueTransformationSequence")
    slope, intercept = number(said, "RescaleSlope"), number(said, "RescaleIntercept")
    return slope or 1.0, intercept or 0.0, str(said.get("RescaleType") or "US")


def _vois(shown: Sequence[Frame], chosen: Sequence[Frame], *, tables: bool) -> list[Window | Table]:
    """Give each frame's window, after rescaling, or its VOI LUT where it has no window and tables are of use."""
    stated = [_stated(frame) or (_table(frame) if tables else None) for frame in shown]
    if all(stated):
        return [voi for voi in stated if voi]
    low, high = render.window(pixels.decode(chosen, _THREADS), chosen[len(chosen) // 2])
    center, width = (float(f"{value:.6g}") for value in ((low + high) / 2, high - low))
    made = (center, width, "LINEAR" if width >= 1 else "LINEAR_EXACT")
    return [voi or made for voi in stated]


def _table(frame: Frame) -> Table | None:
    """Give the first VOI LUT of an image; None where it has none, or one that cannot be read."""
    given = attributes(frame, "FrameVOILUTSequence").get("VOILUTSequence")
    if not given or "LUTDescriptor" not in given[0] or "LUTData" not in given[0]:
        return None
    descriptor, data = given[0]["LUTDescriptor"], given[0]["LUTData"].value
    if descriptor.VR not in ("US", "SS") or descriptor.VM != 3:
        return None
    entries, first, bits = (int(value) for value in descriptor.value)
    data = data if isinstance(data, bytes) else np.asarray(data, dtype="<u2").tobytes()
    length = 2 * (entries or 65536)  # 65536 entries are written as 0 (PS3.3 C.11.2.1.1)
    if len(data) != length and not (bits <= 8 and len(data) in (length // 2, length // 2 + entries % 2)):
        return None
    return Table(str(descriptor.VR), entries, first, bits, data)


def _stated(frame: Frame) -> Window | None:
    """Give the window that an image states; None where it has none, or one that no viewer could use."""
    center, width = render.voi_window(frame)
    function = str(attributes(frame, "FrameVOILUTSequence").get("VOILUTFunction") or "LINEAR")
    if center is None or width is None or width <= 0 or (function == "LINEAR" and width < 1):
        return None
    return center, width, function


def _stored(window: Window, rescaling: tuple[float, float, str]) -> Window:
    """Give the window of stored values that is a window of rescaled ones.

    Where it is LINEAR it reaches from `center - 0.5 - (width - 1) / 2` as far up (PS3.3 C.11.2.1.2.1).
    """
    center, width, function = window
    slope, intercept, _ = rescaling
    more = 1.0 if function == "LINEAR" else 0.0
    return (center - more / 2 - intercept) / slope + more / 2, (width - more) / abs(slope) + more, function
