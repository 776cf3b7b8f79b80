"""Slices with contours as pictures: for the demonstration, key images, reports and the console.

A slice is shown as it is stored, never flipped or turned, so that an axial series stays in the radiological
convention; letters at its edges say which side is which. Nothing that names the patient is drawn.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, chain, groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from skimage.measure import find_contours

from dicomai import words
from dicomai.errors import UnreadableError
from dicomai.findings import Findings, Measurement, Outcome, Region, Segment, Shape, found_segments, missing_segments
from dicomai.stacks import attributes, number
from dicomai.study import Frame
from dicomai.volume import Volume

MARK = "AI, unverified"

YELLOW = (255, 214, 0)
WHITE = (240, 240, 240)
_GREY = (170, 170, 170)

_PANEL = 480  # pixels of a slice's longer side
_GAP = 6
_FINE = 3  # contours are drawn this much larger and then reduced, which smooths them
_SMALLEST_TEXT, _TEXT_OF_PANEL = 15, 32  # in pixels: at least, and this part of a slice's longer side
_AXES = (("R", "L"), ("A", "P"), ("F", "H"))  # negative and positive direction of x, y, z in LPS (PS3.3 C.7.6.1.1.1)
_NEAR = 0.55  # of the step between slices, which are not quite even: no farther off is the nearest, or one of two
_POINT = 0.03  # radius of the circle around a point, of the longer side of a slice
_ALONG = 0.25  # an axis that a direction has less of than this cosine is not named: within 15 degrees
_PER_ROW = 4
_COLUMN_LINES, _COLUMN_WIDTH = 8, 32  # a legend of more lines has columns of at least so many times the text's size

Color = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text below the slices.

    Attributes:
        text: in words; it is broken where it is too long.
        color: of the text.
        swatch: colour of the square before it, where it explains a contour.
    """

    text: str
    color: Color = _GREY
    swatch: Color | None = None


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
    to_index = np.linalg.inv(volume.affine)
    centers = [round(float((to_index @ [*one.region.center, 1])[0])) for one in findings.detections]
    chosen = choose_slices(findings, volume.shape[0], slices, centers)
    shown = window(volume.array[list(chosen)], volume.frames[chosen[len(chosen) // 2]])
    panels = [panel(volume, findings, z, shown, _PANEL) for z in chosen]
    lines = [*([Line(title)] if title else []), *legend(findings)]
    return compose(panels, lines, per_row=_PER_ROW, text=text_size(_PANEL))


def compose(panels: Sequence[Image.Image], lines: Sequence[Line], *, per_row: int, text: int) -> Image.Image:
    """Put slices of one size side by side, above lines of text.

    Args:
        panels: at least one.
        lines: what stands below, in this order.
        per_row: how many slices stand side by side at most.
        text: size of the text, in pixels.
    """
    columns = min(len(panels), per_row)
    rows = -(-len(panels) // columns)
    width, height = panels[0].size
    total = columns * (width + _GAP) + _GAP
    footer = page(lines, total, text)
    picture = Image.new("RGB", (total, rows * (height + _GAP) + _GAP + footer.height))
    for index, one in enumerate(panels):
        row, column = divmod(index, columns)
        picture.paste(one, (_GAP + column * (width + _GAP), _GAP + row * (height + _GAP)))
    picture.paste(footer, (0, picture.height - footer.height))
    return picture


def choose_slices(findings: Findings, depth: int, slices: int, detected: Sequence[int] = ()) -> tuple[int, ...]:
    """Choose slices: evenly over what was found, the one with the largest area, or most detections, among them.

    Args:
        findings: label maps (z, y, x).
        depth: how many slices the volume has.
        slices: how many are wanted; fewer are given where there are not as many.
        detected: the slice nearest to each detection; one outside of the volume does not count.
    """
    areas = np.zeros(depth, dtype=np.int64)
    for z in detected:
        if 0 <= z < depth:
            areas[z] += 1
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


def window(values: NDArray[Any], frame: Frame) -> tuple[float, float]:
    """Choose the values to show as black and as white.

    The image's own VOI window (PS3.3 C.11.2), also where most lies outside of it, as lungs do in one for soft tissue.
    The range from the 1st to the 99.5th percentile where none is stated, where it has no width, and where all would
    be black or all white: some scanners write windows for other values than those of the image.

    Args:
        values: what is shown, all slices of it.
        frame: whose window counts.
    """
    center, width = voi_window(frame)
    if center is not None and width is not None and width >= 1:
        low, high = center - width / 2, center + width / 2
        if values.max() > low and values.min() < high:
            return low, high
    low, high = (float(value) for value in np.percentile(values, (1, 99.5)))
    return (low, high) if high > low else (low, low + 1.0)


def voi_window(frame: Frame) -> tuple[float | None, float | None]:
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


def panel(volume: Volume, findings: Findings, z: int, shown: tuple[float, float], longer: int) -> Image.Image:
    """Draw one slice in its true proportions, with the segments' contours, its orientation, its place and the mark.

    Args:
        volume: what was analysed.
        findings: label maps of the volume's shape.
        z: which slice.
        shown: the values that are black and white, as `window` gives them.
        longer: pixels of the slice's longer side; beside a narrow one the picture is black up to half of it.
    """
    low, high = shown
    grey = np.clip((volume.array[z].astype(np.float64) - low) / (high - low), 0, 1)
    if volume.frames[z].instance.header.get("PhotometricInterpretation") == "MONOCHROME1":
        grey = 1 - grey
    scale = _scale(volume, longer)
    size = (max(1, round(grey.shape[1] * scale[0])), max(1, round(grey.shape[0] * scale[1])))
    picture = (
        Image.fromarray(np.rint(grey * 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC).convert("RGB")
    )
    overlay = Image.new("RGBA", (size[0] * _FINE, size[1] * _FINE))
    draw = ImageDraw.Draw(overlay)
    for color, line in chain(_contours(findings, z), _regions(findings, volume, z)):
        points = [tuple(point) for point in (line[:, ::-1] + 0.5) * scale * _FINE]
        draw.line(points, fill=(*color, 255), width=max(2, longer // 256) * _FINE, joint="curve")
    reduced = overlay.reduce(_FINE)
    picture.paste(reduced.convert("RGB"), mask=reduced.getchannel("A"))
    canvas = Image.new("RGB", (max(size[0], longer // 2), max(size[1], longer // 2)))
    canvas.paste(picture, ((canvas.width - size[0]) // 2, (canvas.height - size[1]) // 2))
    _label(canvas, volume, z, text_size(longer))
    return canvas


def _scale(volume: Volume, longer: int) -> NDArray[np.float64]:
    """Give pixels of the picture per voxel along (x, y): the same number of pixels per mm along both."""
    _, rows, columns = volume.shape
    _, high, wide = volume.spacing
    per_mm = longer / max(rows * high, columns * wide)
    return np.asarray([wide * per_mm, high * per_mm])


def text_size(longer: int) -> int:
    """Give the size of text, in pixels, that is legible beside slices whose longer side has `longer` pixels."""
    return max(_SMALLEST_TEXT, longer // _TEXT_OF_PANEL)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _contours(findings: Findings, z: int) -> Iterator[tuple[tuple[int, int, int], NDArray[np.float64]]]:
    """Give the outlines of each segment in a slice: its colour, and points (y, x) in voxels, from voxel centres."""
    for layer in findings.layers:
        plane = layer.labels[z]
        for segment in layer.segments:
            mask = plane == segment.number
            if mask.any():
                for line in outlines(mask):
                    yield segment.color, line


def outlines(mask: NDArray[np.bool_]) -> Iterator[NDArray[np.float64]]:
    """Follow the edges of a mask, half-way between the centres of voxels in and out; a hole has a line of its own.

    Voxels that touch at a corner only are apart. Lines around the mask and around its holes turn in opposite ways.

    Args:
        mask: shape (y, x).

    Returns:
        Closed lines, points (y, x) in voxels, 0 at the centre of the first one; the first point is the last again.
    """
    padded = np.pad(mask, 1).astype(np.float64)  # so that a line closes at the edge of the image
    for line in find_contours(padded, 0.5):  # type: ignore[no-untyped-call]  # skimage
        yield line - 1


def _regions(findings: Findings, volume: Volume, z: int) -> Iterator[tuple[Color, NDArray[np.float64]]]:
    """Give the outlines of what was detected in a slice, as `_contours` gives those of masks."""
    for one in findings.detections:
        for line in outlines(region(one.region, volume.affine, volume.shape[1:], z)):
            yield words.DETECTED, line


def region(one: Region, affine: NDArray[np.float64], size: tuple[int, int], z: int) -> NDArray[np.bool_]:
    """Give what is drawn of a region in a slice, as a mask of shape (y, x).

    What lies between slices is drawn in the slice that is nearest to its centre; there, what is a point or smaller than
    a pixel is a circle.

    Args:
        one: the region.
        affine: shape (4, 4), maps (z, y, x, 1) to LPS in mm.
        size: rows, columns.
        z: which slice.
    """
    center = np.asarray(one.center)
    height, *_ = np.linalg.inv(affine) @ [*center, 1]
    near = abs(height - z) <= _NEAR
    if near:
        center = center + (z - height) * affine[:3, 0]
    step_z, step_y, step_x, origin = affine[:3].T
    y, x = np.indices(size)[..., np.newaxis]
    places = origin + z * step_z + y * step_y + x * step_x - center
    inside = np.zeros(size, dtype=bool)
    if one.semi_axes:
        axes = np.asarray(one.semi_axes)
        away = places @ (axes / np.sum(axes**2, axis=1)[:, None]).T
        inside = np.abs(away).max(axis=-1) <= 1 if one.shape is Shape.BOX else np.sum(away**2, axis=-1) <= 1
    if near and not inside.any():
        radius = max(_POINT * max(size), 1) * max(np.linalg.norm(affine[:3, 1:3], axis=0))
        inside = np.sum(places**2, axis=-1) <= radius**2
    return np.asarray(inside)


def _label(picture: Image.Image, volume: Volume, z: int, size: int) -> None:
    """Write the orientation, the mark and the slice's place onto a slice."""
    side = edges(volume.affine)
    width, height = picture.size
    place = _place(volume, z)
    lift = 0 if _font(size).getlength(place) < width / 2 - 2 * size else 1.4 * size  # above the letter at the edge
    for text, at, anchor, color in (
        (side.left, (6, height / 2), "lm", WHITE),
        (side.right, (width - 6, height / 2), "rm", WHITE),
        (side.top, (width / 2, 6), "mt", WHITE),
        (side.bottom, (width / 2, height - 6), "mb", WHITE),
        (MARK, (6, 6), "lt", YELLOW),
        (place, (6, height - 6 - lift), "lb", _GREY),
    ):
        ImageDraw.Draw(picture).text(
            at, text, fill=color, font=_font(size), anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0)
        )


def _place(volume: Volume, z: int) -> str:
    """Say which slice it is: its number in the series, and the place of its centre along the main axis."""
    _, rows, columns = volume.shape
    center = volume.affine @ np.asarray([z, (rows - 1) / 2, (columns - 1) / 2, 1])
    normal = np.cross(volume.affine[:3, 2], volume.affine[:3, 1])
    axis = int(np.argmax(np.abs(normal)))
    name = image_name(volume.frames[z])
    return ", ".join([*([name] if name else []), f"{_AXES[axis][int(center[axis] > 0)]} {abs(center[axis]):.1f} mm"])


def image_name(frame: Frame) -> str:
    """Say which image of its series a slice is, such as 'Im 12'; empty where it does not say."""
    given = frame.number or frame.instance.header.get("InstanceNumber")
    return f"Im {given}" if given is not None else ""


def legend(findings: Findings) -> Iterator[Line]:
    """Give each segment's colour, label and numbers, then what was not found, then what a reader must know."""
    found = found_segments(findings)
    for segment in (one.segment for one in found):
        yield named(segment, findings.measurements)
    for _, segment in missing_segments(findings, found):
        yield Line(f"{segment.label}: looked for, not found", WHITE, segment.color)
    for one in words.statements(findings):
        yield stated(one)
    yield from nothing(findings)
    for remark in findings.remarks:
        yield Line(remark, YELLOW)


def named(segment: Segment, measurements: Sequence[Measurement]) -> Line:
    """Give a segment's colour, label and numbers."""
    return Line(f"{segment.label}  {numbers_of(segment, measurements)}".rstrip(), WHITE, segment.color)


def stated(one: words.Statement) -> Line:
    """Give what was classified, scored or detected."""
    return Line(f"{one.about}: {one.value}", WHITE, one.color)


def nothing(findings: Findings) -> Iterator[Line]:
    """Say that nothing was found, where no segment was looked for and no answer says it."""
    if findings.outcome is Outcome.NEGATIVE and not findings.layers and not findings.evaluations:
        yield Line("Nothing was found of what was looked for.", WHITE)


def page(lines: Sequence[Line], width: int, size: int) -> Image.Image:
    """Draw lines of text below each other; those that explain contours in columns where they are many.

    Args:
        lines: in this order; one that is too long is broken.
        width: of the picture, in pixels.
        size: of the text, in pixels.
    """
    blocks: list[list[Image.Image]] = []
    for explains, group in groupby(lines, key=lambda line: line.swatch is not None):
        block = list(group)
        columns = min(-(-len(block) // _COLUMN_LINES), max(1, width // (_COLUMN_WIDTH * size))) if explains else 1
        each = -(-len(block) // columns)
        blocks.append([_column(block[at : at + each], width // columns, size) for at in range(0, len(block), each)])
    heights = [max(column.height for column in block) for block in blocks]
    picture = Image.new("RGB", (width, sum(heights) + 2 * _GAP))
    for drawn, top in zip(blocks, accumulate(heights, initial=_GAP), strict=False):
        for index, column in enumerate(drawn):
            picture.paste(column, (index * column.width, top))
    return picture


def _column(lines: Sequence[Line], width: int, size: int) -> Image.Image:
    font, pitch, indent = _font(size), round(1.4 * size), round(1.5 * size)
    broken = [
        (part, line, index == 0)
        for line in lines
        for index, part in enumerate(_broken(line.text, font, width - 2 * _GAP - indent))
    ]
    picture = Image.new("RGB", (width, pitch * len(broken)))
    draw = ImageDraw.Draw(picture)
    for index, (text, line, first) in enumerate(broken):
        top = index * pitch
        if line.swatch is not None and first:
            draw.rectangle((_GAP, top + size // 5, _GAP + size - 2, top + size), fill=line.swatch)
        draw.text((_GAP + (indent if line.swatch else 0), top), text, fill=line.color, font=font, anchor="la")
    return picture


def _broken(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> Iterator[str]:
    """Break a text into lines of at most `width` pixels, between words, and inside of a word that is too long."""
    line = ""
    for word in _spelled(text).split(" "):
        joined = f"{line} {word}" if line else word
        if line and font.getlength(joined) > width:
            yield line
            joined = word
        while len(joined) > 1 and font.getlength(joined) > width:
            fits = next(n for n in range(len(joined) - 1, 0, -1) if n == 1 or font.getlength(joined[:n]) <= width)
            yield joined[:fits]
            joined = joined[fits:]
        line = joined
    yield line


def _spelled(text: str) -> str:
    """Spell a text in what the font has, which is ASCII: letters without their marks, and '?' where there is none."""
    bare = (one for one in unicodedata.normalize("NFKD", text) if not unicodedata.combining(one))
    return "".join(bare).encode("ascii", "replace").decode()


def numbers_of(segment: Segment, measurements: Sequence[Measurement]) -> str:
    """Write a segment's measurements, such as '1292 cm3'; other quantities than the volume with their name."""
    return ", ".join(_text(one) for one in measurements if one.segment == segment)


def _text(one: Measurement) -> str:
    named = "" if one.name.value == "118565006" else f"{words.quantity(one)} "
    return f"{named}{words.value(one)}"
