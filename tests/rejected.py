"""Rejection notes as a PACS makes them: real Key Object Selection documents, by highdicom."""

import io
import logging
from collections.abc import Sequence
from typing import Any

import pydicom
from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from pydicom.dataset import Dataset, FileDataset
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from dicomai.rejection import TITLES

logging.getLogger("highdicom").setLevel(logging.ERROR)  # says what it does


def rejection_note(images: Sequence[Dataset], code: str = "113001", **attributes: Any) -> FileDataset:
    """Make a note that rejects images, in their study and with their patient unless attributes say otherwise.

    Args:
        images: what it names, in the evidence and in the content tree.
        code: its document title; one that rejects nothing is allowed as well.
        attributes: by keyword, over what is there.
    """
    title = Code(code, "DCM", TITLES.get(code, "Of Interest"))
    evidence = [_with_type_2(image) for image in images]
    note = KeyObjectSelectionDocument(
        evidence=evidence,
        content=KeyObjectSelection(document_title=title, referenced_objects=evidence),
        series_instance_uid=generate_uid(),
        series_number=99,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="Archive",
    )
    for keyword, value in attributes.items():
        setattr(note, keyword, value)
    out = io.BytesIO()
    note.save_as(out)
    return pydicom.dcmread(io.BytesIO(out.getvalue()))


def _with_type_2(image: Dataset) -> Dataset:
    """Give the attributes that a document takes over, where an image has none."""
    header = Dataset()
    header.update({element.tag: element for element in image if element.keyword != "PixelData"})
    for keyword in ("PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"):
        if keyword not in header:
            setattr(header, keyword, "")
    return header
