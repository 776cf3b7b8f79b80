"""Report for people: an Encapsulated PDF (PS3.3 A.45.1) with the slices that matter, the numbers and what made them.

It names no patient and no date of the study: those are corrected in the PACS, and in the object before it is sent, but
never inside of a document; a page that says another name than its object would be the worse of the two. Whose it is,
the viewer says beside it. What the images have drawn on their pixels stays: the object then says so.
"""

import io
import unicodedata
from collections.abc import Iterator, Sequence
from datetime import UTC
from functools import cache
from typing import Any
from xml.sax.saxutils import escape

from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import EncapsulatedPDFStorage
from reportlab.lib.colors import Color, HexColor
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase.pdfmetrics import registerFont
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import CondPageBreak, Flowable, Paragraph, SimpleDocTemplate, Spacer, Table
from reportlab.platypus import Image as Picture

from dicomai import render, words
from dicomai.findings import Findings, NumberedSegment, found_segments, missing_segments
from dicomai.outputs import keyimage
from dicomai.outputs.common import check_shapes, finish
from dicomai.outputs.encapsulated import Kind, encapsulate
from dicomai.outputs.provenance import Provenance, Sources

KIND = Kind("pdf", EncapsulatedPDFStorage, "DOC", "application/pdf")

_MARGIN, _WIDTH = 15 * mm, A4[0] - 30 * mm
_GAP = 2 * mm
_PADDING = 6  # points that the library keeps free at each side of its frame
_FONT, _BOLD = "Vera", "VeraBd"  # they come with reportlab, and travel in the document: no reader has to have them
_TEXT = ParagraphStyle("text", fontName=_FONT, fontSize=9, leading=12.5)
_SMALL = ParagraphStyle("small", _TEXT, fontSize=8, leading=11, textColor=HexColor(0x555555))
_HEAD = ParagraphStyle("head", _TEXT, fontName=_BOLD, fontSize=10.5, leading=14, spaceBefore=9, spaceAfter=3)
_TITLE = ParagraphStyle("title", _TEXT, fontName=_BOLD, fontSize=15, leading=20)
_MARK = ParagraphStyle("mark", _TEXT, fontName=_BOLD, backColor=Color(1, 0.84, 0), borderPadding=4, spaceAfter=8)
_COLUMNS = (0.02, 0.3, 0.2, 0.3, 0.18)  # of the page's width: colour, what, quantity, value, method

_HEADS = ("About", "Quantity", "Value", "Method")


def build(findings: Findings, sources: Sources, provenance: Provenance) -> Dataset:
    """Write the report; where nothing was found, it says what was looked for, beside the middle slice.

    Args:
        findings: label maps of shape (z, y, x), z as in `sources.frames`; measurements and remarks.
        sources: the images that the label maps lie on; their pixel data is read again, of the slices shown.
        provenance: who made it, and under which identifiers.

    Raises:
        InferenceError: a label map has another shape than the images, or a value that is not described.
        GeometryError: an image does not say where it lies.
        UnreadableError: pixel data cannot be decoded.
        StoreError: the storage did not give an instance.
    """
    check_shapes(findings, sources)
    title = f"AI result, unverified: {provenance.algorithm.name}"
    document = _document(findings, sources, provenance, title)
    made = encapsulate(document, KIND, title, codes.DCM.ImagingMeasurementReport, sources, provenance)
    if _burned_in(sources):
        made.BurnedInAnnotation = "YES"  # its pages show the images
    made.ConversionType = "WSD"
    return finish(made, sources, provenance, KIND.output)


def _document(findings: Findings, sources: Sources, provenance: Provenance, title: str) -> bytes:
    """Set the pages; the same input gives the same bytes, the document's own date is that of the result."""
    for name in (_FONT, _BOLD):
        registerFont(_font(name))
    buffer = io.BytesIO()
    template = SimpleDocTemplate(
        buffer,
        pagesize=A4,
        leftMargin=_MARGIN - _PADDING,
        rightMargin=_MARGIN - _PADDING,
        topMargin=_MARGIN,
        bottomMargin=_MARGIN + 6 * mm,
        title=_spelled(title),
        author="dicomai",
        subject=render.MARK,
        creator=f"dicomai {provenance.software_version}",
        invariant=1,
        lang="en",
    )

    def foot(canvas: Canvas, _: Any) -> None:
        algorithm = provenance.algorithm
        canvas.setDateFormatter(lambda *_: f"D:{provenance.created.astimezone(UTC):%Y%m%d%H%M%S}Z")
        canvas.setFont(_FONT, 8)
        canvas.drawString(_MARGIN, _MARGIN, _spelled(f"{render.MARK}: {algorithm.name} {algorithm.version}"))
        canvas.drawRightString(A4[0] - _MARGIN, _MARGIN, f"Page {canvas.getPageNumber()}")

    template.build([*_story(findings, sources, provenance)], onFirstPage=foot, onLaterPages=foot)
    return buffer.getvalue()


def _story(findings: Findings, sources: Sources, provenance: Provenance) -> Iterator[Flowable]:
    """Give what stands on the pages, from top to bottom."""
    algorithm = provenance.algorithm
    counted = keyimage.areas(findings)
    chosen = keyimage.choose_slices(counted, len(sources.frames), keyimage.detected(findings, sources))
    yield _paragraph(f"{algorithm.name} {algorithm.version}", _TITLE)
    yield Spacer(0, 6)
    yield _paragraph("AI, unverified: made by an algorithm, and not verified by a person.", _MARK)
    yield _paragraph(_analysed(sources))
    for remark in findings.remarks:
        yield _paragraph(remark, ParagraphStyle("remark", _TEXT, fontName=_BOLD))
    yield Spacer(0, 6)
    yield _pictures(keyimage.panels(findings, sources, chosen))
    unseen = keyimage.hidden(findings, sources, counted, chosen)
    if unseen:
        yield _paragraph(f"Found, but on none of these slices: {unseen}.", _SMALL)
    found = found_segments(findings)
    if found or any(words.statements(findings)):
        yield from _head("Result")
        yield _table(found, findings)
    missing = ", ".join(segment.label for _, segment in missing_segments(findings, found))
    if missing:
        yield from _head("Looked for and not found")
        yield _paragraph(missing)
    yield from _head("About this document")
    for sentence in _sentences(findings, sources, provenance):
        yield _paragraph(sentence, _SMALL)


def _analysed(sources: Sources) -> str:
    header = sources.header
    number = f" {header.SeriesNumber}" if header.get("SeriesNumber") is not None else ""
    return (
        f"Analysed: series{number} ({header.get('Modality') or 'modality not stated'}), {len(sources.frames)} slices of"
        f" {header.Columns} x {header.Rows} pixels."
    )


def _table(found: Sequence[NumberedSegment], findings: Findings) -> Table:
    """Make a row for each measurement of each segment found, or one that says 'not measured'; then of the rest."""
    rows: list[tuple[Any, ...]] = [("", *(_paragraph(text, _SMALL) for text in _HEADS))]
    style: list[tuple[Any, ...]] = [
        ("LINEBELOW", (0, 0), (-1, -1), 0.3, HexColor(0xBBBBBB)),
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ("TOPPADDING", (0, 0), (-1, -1), 1.5),
    ]
    for segment in (one.segment for one in found):
        measured = [
            (words.quantity(one), words.value(one), one.method.meaning if one.method else "")
            for one in findings.measurements
            if one.segment == segment
        ]
        color = Color(*(part / 255 for part in segment.color))
        for cells in measured or [("not measured", "", "")]:
            style.append(("BACKGROUND", (0, len(rows)), (0, len(rows)), color))
            rows.append(("", *map(_paragraph, (segment.label, *cells))))
    for one in words.statements(findings):
        if one.color:
            style.append(("BACKGROUND", (0, len(rows)), (0, len(rows)), Color(*(part / 255 for part in one.color))))
        rows.append(("", *map(_paragraph, (one.about, one.kind, one.value, one.method))))
    return Table(rows, colWidths=[part * _WIDTH for part in _COLUMNS], repeatRows=1, style=style)


def _pictures(panels: Sequence[Image.Image]) -> Table:
    """Put the slices side by side; a row that is not full is filled up, so that all have one size."""
    per_row = 2 if len(panels) in (1, 2, 4) else 3
    width = _WIDTH / per_row
    cells: list[Any] = [
        Picture(_png(panel), width - _GAP, (width - _GAP) * panel.height / panel.width) for panel in panels
    ]
    cells += [""] * (-len(cells) % per_row)
    rows = [cells[at : at + per_row] for at in range(0, len(cells), per_row)]
    style = [("LEFTPADDING", (0, 0), (-1, -1), 0), ("RIGHTPADDING", (0, 0), (-1, -1), _GAP)]
    return Table(rows, colWidths=[width] * per_row, style=style)


def _png(panel: Image.Image) -> io.BytesIO:
    buffer = io.BytesIO()
    panel.save(buffer, "PNG")
    buffer.seek(0)
    return buffer


def _burned_in(sources: Sources) -> bool:
    """Tell whether an image says that text is drawn on it that may tell whose it is (PS3.3 C.7.6.1.1)."""
    return any(str(one.header.get("BurnedInAnnotation") or "").strip() == "YES" for one in sources.instances)


def _sentences(findings: Findings, sources: Sources, provenance: Provenance) -> Iterator[str]:
    """Say what made the document, of what, and what it leaves out."""
    algorithm = provenance.algorithm
    maker = f", by {algorithm.manufacturer}" if algorithm.manufacturer else ""
    yield f"Algorithm: {algorithm.name} {algorithm.version}{maker}; weights {algorithm.weights_digest}."
    if algorithm.description:
        yield algorithm.description
    if algorithm.reference:
        yield f"Method: {algorithm.reference}"
    yield f"Made with dicomai {provenance.software_version} at {provenance.created.astimezone(UTC):%Y-%m-%d %H:%M} UTC."
    predecessor = provenance.predecessor(KIND.output)
    if predecessor is not None:
        yield f"It replaces the document in series {predecessor.series_number}."
    if not _burned_in(sources):
        yield "It names no patient: whose it is stands in the object that holds it, where corrections arrive."
    yield "Letters at a slice's edges are the patient's sides; slices are as stored, and have no scale."
    labels = [segment.label for layer in findings.layers for segment in layer.segments]
    said = (one.about + one.value for one in words.statements(findings))
    if any(_lost(text) for text in (*labels, *said, *findings.remarks, algorithm.name, algorithm.manufacturer or "")):
        yield "A '?' stands for a letter that this document's font does not have."


def _head(text: str) -> Iterator[Flowable]:
    """Head a part, on the next page where little of it would stand below."""
    yield CondPageBreak(25 * mm)
    yield _paragraph(text, _HEAD)


def _paragraph(text: str, style: ParagraphStyle = _TEXT) -> Paragraph:
    return Paragraph(escape(_spelled(text)), style)


@cache
def _font(name: str) -> TTFont:
    return TTFont(name, f"{name}.ttf")


def _spelled(text: str) -> str:
    """Spell a text in what the font has: as it is, else a letter without its marks, else '?'."""
    return "".join(map(_letter, unicodedata.normalize("NFC", text)))


def _lost(text: str) -> bool:
    return "?" in "".join(map(_letter, unicodedata.normalize("NFC", text.replace("?", ""))))


@cache
def _letter(one: str) -> str:
    has = _font(_FONT).face.charToGlyph
    bare = [part for part in unicodedata.normalize("NFKD", one) if not unicodedata.combining(part)]
    return next((way for way in (one, "".join(bare)) if way and all(ord(part) in has for part in way)), "?")
