"""Key frames: every slice with a finding as one colour picture to scroll through, for a PACS that shows nothing else.

Multi-frame True Color Secondary Capture (PS3.3 A.8.5), RGB, 8 bits, uncompressed. A frame is a slice drawn as in a key
image, and below it what lies on it; it has no pixel spacing, so that nobody measures on it. Its size is bounded, and
where not all slices fit, every frame says so.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import MultiFrameTrueColorSecondaryCaptureImageStorage

from dicomai import render, words
from dicomai.findings import Findings, NumberedSegment, found_segments, missing_segments
from dicomai.outputs.common import begin, check_shapes, code_item, finish, geometry
from dicomai.outputs.keyimage import (
    Areas,
    affine,
    areas,
    choose_slices,
    detected,
    drawn_on,
    hidden,
    longer_side,
    made_by,
    panels,
    shown,
)
from dicomai.outputs.picture import describe
from dicomai.outputs.provenance import Provenance, Sources

SOP_CLASS_UID = MultiFrameTrueColorSecondaryCaptureImageStorage

MOST = 64
"""How many frames there are at most: some 60 MB."""

_LARGEST = 512  # pixels of a slice's longer side
_MOST_NAMES = 12  # of segments in one text
_TAG_OF_PAGES = 0x00182001  # Page Number Vector


def build(findings: Findings, sources: Sources, provenance: Provenance) -> Dataset:
    """Draw the slices with findings and encode them as one multi-frame image, in the order of the volume.

    Where nothing was found, there is one frame, the middle slice, which says what was looked for.

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
    every = _with_findings(findings, sources, counted)
    chosen = _choose(every, counted, findings, sources)
    frames = _drawn(findings, sources, chosen, _captions(findings, sources, provenance, counted, every, chosen))
    made = begin("keyframes", SOP_CLASS_UID, "OT", provenance)
    made.ImageType = ["DERIVED", "SECONDARY"]
    describe(made, sources, provenance)
    side = render.edges(affine(geometry(sources), chosen[0]))
    made.PatientOrientation = [side.right, side.bottom]
    made.DerivationDescription = "Slices with the contours of segments drawn on them, one on each frame"
    made.DerivationCodeSequence = [code_item(codes.cid7203.SegmentationImageDerivation)]
    made.SourceImageSequence = shown(sources, chosen, codes.cid7202.SourceImageForImageProcessingOperation)
    _encode(made, frames)
    return finish(made, sources, provenance, "keyframes")


def _with_findings(findings: Findings, sources: Sources, counted: Areas) -> tuple[int, ...]:
    """Give the slices that something was found on."""
    depth = len(sources.frames)
    filled = np.any(list(counted.values()), axis=0) if counted else np.zeros(depth, dtype=bool)
    for one in findings.detections:
        filled[list(drawn_on(one, sources, range(depth)))] = True
    filled[list(detected(findings, sources))] = True  # also of what lies outside of the images
    return tuple(int(z) for z in np.flatnonzero(filled))


def _choose(every: Sequence[int], counted: Areas, findings: Findings, sources: Sources) -> tuple[int, ...]:
    """Choose the slices to show: all; where they are too many, some evenly between, and those of a key image."""
    if 0 < len(every) <= MOST:
        return tuple(every)
    first = choose_slices(counted, len(sources.frames), detected(findings, sources), most=MOST)
    if not every:
        return first
    chosen = {every[index] for index in np.rint(np.linspace(0, len(every) - 1, MOST)).astype(int)}
    for z in first:
        if z not in chosen:
            chosen.remove(min(chosen.difference(first), key=lambda other: abs(other - z)))
            chosen.add(z)
    return tuple(sorted(chosen))


@dataclass(frozen=True, slots=True)
class _Captions:
    """What stands below the slices.

    Attributes:
        findings: what was found.
        counted: the voxels of each segment in each slice.
        found: the segments that have some.
        detected: words on each detection, and the slices that it is drawn on.
        first: who made it; the first line of every slice.
        last: what holds for all slices.
    """

    findings: Findings
    counted: Areas
    found: tuple[NumberedSegment, ...]
    detected: tuple[tuple[words.Statement, frozenset[int]], ...]
    first: render.Line
    last: tuple[render.Line, ...]

    def below(self, z: int) -> Iterator[render.Line]:
        """Give the lines below a slice, the largest segments first where they are too many to have one each."""
        yield self.first
        here = {one: int(self.counted[one.layer, one.segment.number][z]) for one in self.found}
        named = [one for one, area in here.items() if area]
        if len(named) > _MOST_NAMES:
            named.sort(key=lambda one: -here[one])
        yield from (render.named(one.segment, self.findings.measurements) for one in named[:_MOST_NAMES])
        if len(named) > _MOST_NAMES:
            yield render.Line(f"and on this slice: {_some([one.segment.label for one in named[_MOST_NAMES:]])}.")
        yield from (render.stated(said) for said, slices in self.detected if z in slices)
        yield from self.last


def _captions(
    findings: Findings,
    sources: Sources,
    provenance: Provenance,
    counted: Areas,
    every: Sequence[int],
    chosen: Sequence[int],
) -> _Captions:
    """Gather what stands below slices; `every` are those with findings, `chosen` those that are shown."""
    found = found_segments(findings)
    statements = [*words.statements(findings)]
    detections = [one for one in statements if one.kind == "Detection"]
    slices = (frozenset(drawn_on(one, sources, chosen)) for one in findings.detections)
    last = [render.stated(one) for one in statements if one.kind != "Detection"]
    missing = [segment.label for _, segment in missing_segments(findings, found)]
    last += [render.Line(f"Looked for, not found: {_some(missing)}.")] if missing else []
    last += [*render.nothing(findings), *(render.Line(remark, render.YELLOW) for remark in findings.remarks)]
    if len(every) > len(chosen):
        last.append(render.Line(f"{len(chosen)} of {len(every)} slices with findings are shown.", render.YELLOW))
    unseen = hidden(findings, sources, counted, chosen)
    last += [render.Line(f"Found, but on none of these slices: {unseen}.", render.YELLOW)] if unseen else []
    for output in ("keyframes", "reportimage"):  # also the one that said that there is no result
        predecessor = provenance.predecessor(output)
        if predecessor is not None:
            last.append(render.Line(f"These pictures replace what is in series {predecessor.series_number}."))
    return _Captions(
        findings,
        counted,
        found,
        tuple(zip(detections, slices, strict=True)),
        made_by(sources, provenance),
        tuple(last),
    )


def _some(names: Sequence[str]) -> str:
    """Name some, and say how many more there are."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"{', '.join(names[:_MOST_NAMES])}{more}"


def _drawn(findings: Findings, sources: Sources, chosen: Sequence[int], said: _Captions) -> NDArray[np.uint8]:
    """Draw the frames; shape (frame, row, column, 3)."""
    text = render.text_size(longer_side(sources, _LARGEST))
    pictures = [
        np.asarray(render.compose([panel], [*said.below(z)], per_row=1, text=text))
        for z, panel in zip(chosen, panels(findings, sources, chosen, _LARGEST), strict=True)
    ]
    frames = np.zeros((len(pictures), max(map(len, pictures)), *pictures[0].shape[1:]), np.uint8)
    for frame, one in zip(frames, pictures, strict=True):
        frame[: len(one)] = one
    return frames


def _encode(made: Dataset, frames: NDArray[np.uint8]) -> None:
    """Put frames into an image that is paged through (PS3.3 C.7.6.3, C.7.6.6, C.8.6.3, C.8.6.4)."""
    made.NumberOfFrames, made.Rows, made.Columns, made.SamplesPerPixel = frames.shape
    made.PhotometricInterpretation, made.PlanarConfiguration = "RGB", 0
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit, made.PixelRepresentation = 7, 0
    if len(frames) > 1:
        made.FrameIncrementPointer = _TAG_OF_PAGES
        made.PageNumberVector = [*range(1, len(frames) + 1)]
    data = frames.tobytes()
    made.PixelData = data + bytes(len(data) % 2)
