"""Key image: the slices that matter as one colour picture, for a PACS that shows nothing else.

Secondary Capture (PS3.3 A.8.1), RGB, 8 bits: every PACS shows it. Slices are drawn as they are stored, with contours, a
legend with the numbers, and 'AI, unverified' burned in. A segmentation and a report say the same to more capable
viewers; this picture is for the eye: it has no pixel spacing, so that nobody measures on it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import SecondaryCaptureImageStorage

from dicomai import pixels, render
from dicomai.findings import Detection, Findings
from dicomai.findings import areas as slice_areas
from dicomai.outputs.common import Geometry, check_shapes, code_item, finish, geometry, references
from dicomai.outputs.picture import capture
from dicomai.outputs.provenance import Provenance, Sources
from dicomai.volume import Volume

SOP_CLASS_UID = SecondaryCaptureImageStorage

MOST = 6
"""How many slices a key image has at most."""

_FEWEST = 3  # so many where fewer would show every segment: one slice alone says little of a large structure
_SMALL, _LARGE = 512, 1024  # pixels of a slice's longer side: smaller ones are enlarged, larger ones reduced
_THREADS = 2


def build(findings: Findings, sources: Sources, provenance: Provenance) -> Dataset:
    """Draw the slices that matter and encode the picture as a Secondary Capture image.

    Where nothing was found, the picture is the middle slice, and the legend says what was looked for.

    Args:
        findings: label maps of shape (z, y, x), z as in `sources.frames`.
        sources: the images that the label maps lie on; their pixel data is read again, of the slices shown.
        provenance: who made it, and under which identifiers.

    Raises:
        InferenceError: a label map has another shape than the images, or a value that is not described.
        GeometryError: an image does not say where it lies.
        UnreadableError: pixel data cannot be decoded.
        StoreError: the storage did not give an instance.
    """
    check_shapes(findings, sources)
    counted = areas(findings)
    chosen = choose_slices(counted, len(sources.frames), detected(findings, sources))
    picture = _picture(findings, sources, provenance, chosen, hidden(findings, sources, counted, chosen))
    made = capture(picture, "keyimage", sources, provenance)
    side = render.edges(affine(geometry(sources), chosen[0]))
    made.PatientOrientation = [side.right, side.bottom]
    made.DerivationDescription = "Slices with the contours of segments drawn on them, side by side"
    made.DerivationCodeSequence = [
        code_item(codes.cid7203.SegmentationImageDerivation),
        code_item(codes.cid7203.SpatiallyRelatedFramesExtractedFromTheVolume),
    ]
    made.SourceImageSequence = shown(sources, chosen, codes.cid7202.SourceImageForMontage)
    return finish(made, sources, provenance, "keyimage")


Areas = Mapping[tuple[int, int], NDArray[np.int64]]
"""Voxels in each slice of each segment that has some, by the index of its layer and its number there."""


def areas(findings: Findings) -> Areas:
    """Count the voxels of each segment in each slice."""
    counted: dict[tuple[int, int], NDArray[np.int64]] = {}
    for index, layer in enumerate(findings.layers):
        table = np.stack(list(slice_areas(layer)))
        counted |= {(index, int(value)): table[:, value] for value in np.flatnonzero(table.any(axis=0)) if value}
    return counted


def detected(findings: Findings, sources: Sources) -> tuple[int, ...]:
    """Give the slice that is nearest to the centre of each detection.

    Raises:
        GeometryError: an image does not say where it lies.
    """
    if not findings.detections:
        return ()
    place = geometry(sources)
    normal = np.cross(place.orientation[:3], place.orientation[3:])
    heights = np.asarray(place.positions) @ normal
    return tuple(int(np.argmin(np.abs(heights - one.region.center @ normal))) for one in findings.detections)


def outside(findings: Findings, sources: Sources) -> tuple[Detection, ...]:
    """Give the detections whose centre lies more than half a voxel outside of the images.

    Raises:
        GeometryError: an image does not say where it lies.
    """
    if not findings.detections:
        return ()
    place = geometry(sources)
    from_first, from_last = (np.linalg.inv(affine(place, z)) for z in (0, -1))
    limits = np.asarray([int(sources.header.Rows), int(sources.header.Columns)]) - 0.5
    found = []
    for one in findings.detections:
        height, *at, _ = from_first @ [*one.region.center, 1]
        above = (from_last @ [*one.region.center, 1])[0]
        if height < -0.5 or above > 0.5 or (np.asarray(at) < -0.5).any() or (at > limits).any():
            found.append(one)
    return tuple(found)


def choose_slices(areas: Areas, depth: int, detected: Sequence[int] = (), most: int = MOST) -> tuple[int, ...]:
    """Choose the slices to show: of each segment the one of its largest area, as far as they are not too many.

    The slices of detections count as well. Where they are too many, those that are so for most come first. Where they
    are fewer than three, others that segments lie on are added; where nothing was found, it is the middle slice.

    Args:
        areas: as `areas` counts them.
        depth: how many slices there are.
        detected: the slice of each detection.
        most: the most slices to give.

    Returns:
        Indices of slices, ascending; at least one.
    """
    if not areas and not detected:
        return ((depth - 1) // 2,)
    wanted = Counter([*(int(np.argmax(area)) for area in areas.values()), *detected])
    chosen = {z for z, _ in wanted.most_common(most)}
    if not areas:
        return tuple(sorted(chosen))
    filled = np.flatnonzero(np.any(list(areas.values()), axis=0))
    for place in (0.25, 0.75, 0.5):
        if len(chosen) < min(_FEWEST, most):
            chosen.add(int(filled[round(place * (len(filled) - 1))]))
    return tuple(sorted(chosen))


def hidden(findings: Findings, sources: Sources, areas: Areas, chosen: Sequence[int]) -> str:
    """Name what is on none of the slices shown, each with the image of its largest area or its centre.

    Args:
        findings: label maps of shape (z, y, x).
        sources: the images that they lie on.
        areas: as `areas` counts them.
        chosen: the slices shown, as `choose_slices` gives them.

    Returns:
        Names with commas between; empty where all that was found is shown.
    """
    names = []
    for (index, value), area in areas.items():
        label = next((one.label for one in findings.layers[index].segments if one.number == value), None)
        if label is not None and not area[list(chosen)].any():
            names.append((label, int(np.argmax(area))))
    images = [(name, render.image_name(sources.frames[z])) for name, z in names]
    beyond = outside(findings, sources)
    for one, z in zip(findings.detections, detected(findings, sources), strict=True):
        if not any(True for _ in drawn_on(one, sources, chosen)):
            where = "outside of the images" if one in beyond else render.image_name(sources.frames[z])
            images.append((one.type.meaning, where))
    return ", ".join(f"{name} ({image})" if image else name for name, image in images)


def drawn_on(one: Detection, sources: Sources, chosen: Sequence[int]) -> Iterator[int]:
    """Give those of some slices on which something of a detection is drawn.

    Raises:
        GeometryError: an image does not say where it lies.
    """
    place, size = geometry(sources), (int(sources.header.Rows), int(sources.header.Columns))
    normal = np.cross(place.orientation[:3], place.orientation[3:])
    # Along the normal a box reaches as far as its half axes together, and an ellipsoid no farther.
    far = sum(abs(float(np.dot(axis, normal))) for axis in one.region.semi_axes) + (place.spacing or np.inf)
    away = np.abs((np.asarray(place.positions)[list(chosen)] - one.region.center) @ normal)
    near = (z for z, distance in zip(chosen, away, strict=True) if distance <= far)
    yield from (z for z in near if render.region(one.region, affine(place, z), size, 0).any())


def panels(findings: Findings, sources: Sources, chosen: Sequence[int], largest: int = _LARGE) -> list[Image.Image]:
    """Draw slices, each with its contours, 'AI, unverified', its orientation and its place; their pixels are read.

    Args:
        findings: label maps of shape (z, y, x).
        sources: the images that they lie on.
        chosen: indices of slices.
        largest: the most pixels of a slice's longer side.

    Raises:
        GeometryError: an image does not say where it lies.
        UnreadableError: pixel data cannot be decoded.
        StoreError: the storage did not give an instance.
    """
    place = geometry(sources)
    frames = [sources.frames[z] for z in chosen]
    values = pixels.decode(frames, _THREADS)
    longer = longer_side(sources, largest)
    windows: dict[tuple[float | None, float | None], tuple[float, float]] = {}
    drawn = []
    for z, frame, plane in zip(chosen, frames, values, strict=True):
        single = Volume(plane[np.newaxis], affine(place, z), (frame,), sources.lossy)
        layers = tuple(replace(layer, labels=layer.labels[z : z + 1]) for layer in findings.layers)
        stated = render.voi_window(frame)
        if stated not in windows:
            windows[stated] = render.window(values, frame)
        drawn.append(render.panel(single, replace(findings, layers=layers), 0, windows[stated], longer))
    return drawn


def _picture(
    findings: Findings, sources: Sources, provenance: Provenance, chosen: Sequence[int], hidden: str
) -> NDArray[np.uint8]:
    """Draw the slices and what stands below them; shape (rows, columns, 3)."""
    drawn = panels(findings, sources, chosen)
    lines = [*_lines(findings, sources, provenance, hidden)]
    per_row = 2 if len(drawn) == 4 else 3
    text = render.text_size(longer_side(sources))
    return np.asarray(render.compose(drawn, lines, per_row=per_row, text=text))


def made_by(sources: Sources, provenance: Provenance) -> render.Line:
    """Say who made a picture, and of which series."""
    algorithm = provenance.algorithm
    series_number = sources.header.get("SeriesNumber")
    of = f", of series {series_number}" if series_number is not None else ""
    return render.Line(f"{render.MARK}: {algorithm.name} {algorithm.version}{of}", render.YELLOW)


def _lines(findings: Findings, sources: Sources, provenance: Provenance, hidden: str) -> Iterator[render.Line]:
    """Give what stands below the slices: who made it, the legend, and what the picture does not show."""
    yield made_by(sources, provenance)
    yield from render.legend(findings)
    if hidden:
        yield render.Line(f"Found, but on none of these slices: {hidden}.")
    for output in ("keyimage", "reportimage"):  # also the one that said that there is no result
        predecessor = provenance.predecessor(output)
        if predecessor is not None:
            yield render.Line(f"This picture replaces the one in series {predecessor.series_number}.")


def longer_side(sources: Sources, largest: int = _LARGE) -> int:
    """Give the pixels of a slice's longer side: a whole number per voxel where slices are small.

    Args:
        sources: the images.
        largest: the most that there are.
    """
    rows, columns, place = int(sources.header.Rows), int(sources.header.Columns), geometry(sources)
    finest = min(place.pixel_spacing)
    native = round(max(rows * place.pixel_spacing[0], columns * place.pixel_spacing[1]) / finest)
    return min(native * -(-_SMALL // native), largest)


def affine(place: Geometry, z: int) -> NDArray[np.float64]:
    """Give the affine of a slice as if it were a volume of its own: an index (0, y, x, 1) to LPS in mm."""
    right, down = np.asarray(place.orientation[:3]), np.asarray(place.orientation[3:])
    made = np.eye(4)
    made[:3, 0] = np.cross(right, down) * (place.spacing or place.slice_thickness)
    made[:3, 1] = down * place.pixel_spacing[0]
    made[:3, 2] = right * place.pixel_spacing[1]
    made[:3, 3] = place.positions[z]
    return made


def shown(sources: Sources, chosen: Sequence[int], purpose: Code) -> list[Dataset]:
    """Name the images, and frames, of the slices that are shown (PS3.3 C.7.6.1.1.4).

    Args:
        sources: the images.
        chosen: indices of slices.
        purpose: what they were used for (CID 7202).
    """
    items = references(sources.frames[z] for z in chosen)
    for item in items:
        item.PurposeOfReferenceCodeSequence = [code_item(purpose)]
    return items
