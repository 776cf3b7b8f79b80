"""Slices with contours as pictures: for the demonstration, key images, reports and the console.

A slice is shown as it is stored, never flipped or turned, so that an axial series stays in the radiological
convention; letters at its edges say which side is which. Nothing that names the patient is drawn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import wrap

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from skimage.measure import find_contours

from dicomai.errors import UnreadableError
from dicomai.findings import Findings, Measurement, Segment
from dicomai.outputs.common import found_segments, missing_segments
from dicomai.stacks import attributes, number
from dicomai.study import Frame
from dicomai.volume import Volume

MARK = "AI, unverified"

_PANEL = 480  # pixels of a slice's longer side
_GAP = 6
_FINE = 3  # contours are drawn this much larger and then reduced, which smooths them
_FONT = ImageFont.load_default(15)
_LINE = 21
_WHITE, _GREY, _YELLOW = (240, 240, 240), (170, 170, 170), (255, 214, 0)
_AXES = (("R", "L"), ("A", "P"), ("F", "H"))  # negative and positive direction of x, y, z in LPS (PS3.3 C.7.6.1.1.1)
_ALONG = 0.25  # an axis that a direction has less of than this cosine is not named: within 15 degrees
_PER_ROW = 4

_UNITS = {"1": "", "[hnsf'U]": "HU"}  # UCUM codes that people write in another way


def montage(volume: Volume, findings: Findings, *, slices: int = 3, title: str = "") -> Image.Image:
    """Draw slices side by side, each with the segments' contours, above a legend with the measurements.

    Args:
        volume: what was analysed; VOI windows and instance numbers come from its frames.
        findings: label maps of the volume's shape, measurements, remarks.
        slices: how many slices, at least 1.
        title: a line above the legend, such as the model's name and version; nothing of the patient.

    Returns:
        An RGB image. Every slice bears 'AI, unverified', its orientation and its place.
    """
    chosen = choose_slices(findings, volume.shape[0], slices)
    low, high = window(volume, chosen)
    panels = [_panel(volume, findings, z, low, high) for z in chosen]
    columns = min(len(panels), _PER_ROW)
    rows = -(-len(panels) // columns)
    width, height = panels[0].size
    total = columns * (width + _GAP) + _GAP
    footer = _footer(findings, title, total)
    picture = Image.new("RGB", (total, rows * (height + _GAP) + _GAP + footer.height))
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        picture.paste(panel, (_GAP + column * (width + _GAP), _GAP + row * (height + _GAP)))
    picture.paste(footer, (0, picture.height - footer.height))
    return picture


def choose_slices(findings: Findings, depth: int, slices: int) -> tuple[int, ...]:
    """Choose slices: evenly over what was segmented, the one with the largest area among them.

    Args:
        findings: label maps (z, y, x).
        depth: how many slices the volume has.
        slices: how many are wanted; fewer are given where there are not as many.
    """
    areas = np.zeros(depth, dtype=np.int64)
    for layer in findings.layers:
        areas += np.count_nonzero(layer.labels, axis=(1, 2))
    filled = np.flatnonzero(areas)
    first, last = (int(filled[0]), int(filled[-1])) if filled.size else (0, depth - 1)
    steps = np.arange(1, slices + 1) / (slices + 1)
    chosen = np.unique(np.rint(first + steps * (last - first)).astype(int))
    if filled.size:
        largest = int(np.argmax(areas))
        chosen[np.argmin(np.abs(chosen - largest))] = largest
    return tuple(int(z) for z in np.unique(chosen))


def window(volume: Volume, chosen: Sequence[int]) -> tuple[float, float]:
    """Choose the values to show as black and as white.

    The image's own VOI window (PS3.3 C.11.2) where it shows something: some scanners write windows of no width, or
    for other values. Else the range from the 1st to the 99.5th percentile of the chosen slices.
    """
    shown = volume.array[list(chosen)]
    center, width = _voi(volume.frames[chosen[len(chosen) // 2]])
    if center is not None and width is not None and width >= 1:
        low, high = center - width / 2, center + width / 2
        if np.mean((shown > low) & (shown < high)) > 0.05:
            return low, high
    low, high = (float(value) for value in np.percentile(shown, (1, 99.5)))
    return (low, high) if high > low else (low, low + 1.0)


def _voi(frame: Frame) -> tuple[float | None, float | None]:
    """Give a frame's window centre and width; a window that cannot be read counts as none."""
    voi = attributes(frame, "FrameVOILUTSequence")
    try:
        return number(voi, "WindowCenter"), number(voi, "WindowWidth")
    except UnreadableError:
        return None, None


@dataclass(frozen=True, slots=True)
class Edges:
    """Which side of the patient lies at each edge of a slice, such as 'R', or 'AF' where it lies between two."""

    left: str
    right: str
    top: str
    bottom: str


def edges(affine: NDArray[np.float64]) -> Edges:
    """Say which side of the patient lies at each edge of a slice that is drawn as stored.

    Args:
        affine: shape (4, 4), maps (z, y, x, 1) to LPS in mm.
    """
    down, right = affine[:3, 1], affine[:3, 2]
    return Edges(left=_letters(-right), right=_letters(right), top=_letters(-down), bottom=_letters(down))


def _letters(direction: NDArray[np.float64]) -> str:
    unit = direction / np.linalg.norm(direction)
    by_size = sorted(range(3), key=lambda axis: -abs(unit[axis]))
    return "".join(_AXES[axis][int(unit[axis] > 0)] for axis in by_size if abs(unit[axis]) > _ALONG)


def _panel(volume: Volume, findings: Findings, z: int, low: float, high: float) -> Image.Image:
    """Draw one slice in its true proportions."""
    grey = np.clip((volume.array[z].astype(np.float64) - low) / (high - low), 0, 1)
    if volume.frames[z].instance.header.get("PhotometricInterpretation") == "MONOCHROME1":
        grey = 1 - grey
    scale = _scale(volume)
    size = (round(grey.shape[1] * scale[0]), round(grey.shape[0] * scale[1]))
    picture = (
        Image.fromarray(np.rint(grey * 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC).convert("RGB")
    )
    overlay = Image.new("RGBA", (size[0] * _FINE, size[1] * _FINE))
    draw = ImageDraw.Draw(overlay)
    for color, line in _contours(findings, z):
        points = [tuple(point) for point in (line[:, ::-1] + 0.5) * scale * _FINE]
        draw.line(points, fill=(*color, 255), width=2 * _FINE, joint="curve")
    reduced = overlay.reduce(_FINE)
    picture.paste(reduced.convert("RGB"), mask=reduced.getchannel("A"))
    _label(picture, volume, z)
    return picture


def _scale(volume: Volume) -> NDArray[np.float64]:
    """Give pixels of the picture per voxel along (x, y): the same number of pixels per mm along both."""
    _, rows, columns = volume.shape
    _, high, wide = volume.spacing
    per_mm = _PANEL / max(rows * high, columns * wide)
    return np.asarray([wide * per_mm, high * per_mm])


def _contours(findings: Findings, z: int) -> Iterator[tuple[tuple[int, int, int], NDArray[np.float64]]]:
    """Give the outlines of each segment in a slice: its colour, and points (y, x) in voxels, from voxel centres."""
    for layer in findings.layers:
        plane = layer.labels[z]
        for segment in layer.segments:
            mask = np.pad(plane == segment.number, 1)  # so that an outline closes at the edge of the image
            if mask.any():
                for line in find_contours(mask.astype(np.float64), 0.5):  # type: ignore[no-untyped-call]  # skimage
                    yield segment.color, line - 1


def _label(picture: Image.Image, volume: Volume, z: int) -> None:
    """Write the orientation, the mark and the slice's place onto a slice."""
    side = edges(volume.affine)
    width, height = picture.size
    for text, at, anchor, color in (
        (side.left, (6, height / 2), "lm", _WHITE),
        (side.right, (width - 6, height / 2), "rm", _WHITE),
        (side.top, (width / 2, 6), "mt", _WHITE),
        (side.bottom, (width / 2, height - 6), "mb", _WHITE),
        (MARK, (6, 6), "lt", _YELLOW),
        (_place(volume, z), (6, height - 6), "lb", _GREY),
    ):
        ImageDraw.Draw(picture).text(
            at, text, fill=color, font=_FONT, anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0)
        )


def _place(volume: Volume, z: int) -> str:
    """Say which slice it is: its number in the series, and the place of its centre along the main axis."""
    _, rows, columns = volume.shape
    center = volume.affine @ np.asarray([z, (rows - 1) / 2, (columns - 1) / 2, 1])
    normal = np.cross(volume.affine[:3, 2], volume.affine[:3, 1])
    axis = int(np.argmax(np.abs(normal)))
    frame = volume.frames[z]
    given = frame.number or frame.instance.header.get("InstanceNumber")
    name = f"Im {given}, " if given is not None else ""
    return f"{name}{_AXES[axis][int(center[axis] > 0)]} {abs(center[axis]):.1f} mm"


def _footer(findings: Findings, title: str, width: int) -> Image.Image:
    """Draw the legend: each segment's colour, label and numbers, then what a reader must know."""
    entries: list[tuple[str, tuple[int, int, int] | None]] = [(title, None)] if title else []
    entries += [*_legend(findings), *((remark, None) for remark in findings.remarks)]
    lines = [
        (part, color, _WHITE if color else _GREY, number_of_part > 0)
        for text, color in entries
        for number_of_part, part in enumerate(wrap(text, max(20, width // 8)))
    ]
    picture = Image.new("RGB", (width, _LINE * len(lines) + 2 * _GAP))
    draw = ImageDraw.Draw(picture)
    for index, (text, swatch, color, continued) in enumerate(lines):
        top = _GAP + index * _LINE
        if swatch is not None and not continued:
            draw.rectangle((_GAP, top + 3, _GAP + 13, top + 15), fill=swatch)
        draw.text((_GAP + (22 if swatch else 0), top), text, fill=color, font=_FONT, anchor="la")
    return picture


def _legend(findings: Findings) -> Iterator[tuple[str, tuple[int, int, int]]]:
    for found in found_segments(findings):
        segment = found.segment
        yield f"{segment.label}  {_numbers_of(segment, findings.measurements)}".rstrip(), segment.color
    for _, segment in missing_segments(findings):
        yield f"{segment.label}: looked for, not found", segment.color


def _numbers_of(segment: Segment, measurements: Sequence[Measurement]) -> str:
    """Write a segment's measurements, such as '1292 cm3'; other quantities than the volume with their name."""
    return ", ".join(_text(one) for one in measurements if one.segment == segment)


def _text(one: Measurement) -> str:
    digits = f"{one.value:.0f}" if abs(one.value) >= 100 else f"{one.value:.3g}"
    named = "" if one.name.value == "118565006" else f"{one.name.meaning} "
    return f"{named}{digits} {_UNITS.get(one.unit.value, one.unit.value)}".strip()
