"""Sequences of thousands of items, in the bytes of Explicit VR Little Endian (PS3.5 7.1.2, 7.5).

pydicom writes an item element by element, and asks of each anew how it is to be written: for the frames of a hundred
segments, or for the images of a large series, that takes seconds. Here what repeats is encoded once, by pydicom, and
put together with what is each item's own.
"""

import struct
from collections.abc import Iterable

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.tag import Tag

from dicomai.study import Instance

_ITEM = b"\xfe\xff\x00\xe0"


def encode(ds: Dataset) -> bytes:
    """Encode the elements of a data set, without file meta information."""
    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = False, True
    write_dataset(stream, ds)
    return stream.getvalue()


def text(keyword: str, vr: str, value: str) -> bytes:
    """Encode an element of a text, padded to an even length (PS3.5 6.2); in the bytes that pydicom would write.

    Args:
        keyword: such as 'ReferencedSOPInstanceUID'.
        vr: one whose length has two bytes, such as 'UI', 'DS' or 'IS'.
        value: the text, several values with backslashes between them.
    """
    encoded = value.encode("latin-1")  # odd UIDs as they came
    encoded += (b"\0" if vr == "UI" else b" ") * (len(encoded) % 2)
    return _tag(keyword) + struct.pack("<2sH", vr.encode(), len(encoded)) + encoded


def sequence(keyword: str, items: Iterable[bytes]) -> bytes:
    """Encode a sequence of items that are encoded already, with its length."""
    value = _items(items)
    return _tag(keyword) + struct.pack("<2s2xI", b"SQ", len(value)) + value


def put(ds: Dataset, keyword: str, items: Iterable[bytes]) -> None:
    """Give a data set a sequence of items that are encoded already.

    pydicom writes it as it is, and parses it where it is asked for: put it there when all else is done. The data set
    is marked as encoded in Explicit VR Little Endian; those that it lies in need that mark too (`mark`).
    """
    tag, value = Tag(keyword), _items(items)
    ds[tag] = RawDataElement(tag, "SQ", len(value), value, 0, False, True)
    mark(ds)


def mark(ds: Dataset) -> None:
    """Say that encoded elements of a data set are in the encoding that results are written in."""
    ds.set_original_encoding(False, True, ds._character_set)


def image(instance: Instance) -> bytes:
    """Name an image (PS3.3 10.3): the elements of an item that `common.reference` gives as a data set."""
    return text("ReferencedSOPClassUID", "UI", instance.sop_class_uid) + text(
        "ReferencedSOPInstanceUID", "UI", instance.sop_instance_uid
    )


def _items(items: Iterable[bytes]) -> bytes:
    return b"".join(part for item in items for part in (_ITEM, struct.pack("<I", len(item)), item))


def _tag(keyword: str) -> bytes:
    tag = Tag(keyword)
    return struct.pack("<HH", tag.group, tag.element)
