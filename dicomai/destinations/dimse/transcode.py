"""Objects in another transfer syntax, for a peer that does not take the one that they are in (PS3.5 Annex A).

Values keep their bytes; only how elements are headed changes, pixel data that were compressed are decompressed, and an
icon that was compressed is left out. The object says the same, so that it keeps its SOP Instance UID (PS3.3
C.7.6.1.1.5 asks for a new one where an image is compressed with loss, not where it is decompressed).
"""

import struct
from collections.abc import Sequence
from io import BytesIO

import pydicom
from pydicom.datadict import dictionary_VR, private_dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import BytesLengthException
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import correct_ambiguous_vr_element, write_dataset
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR

from dicomai.destinations.base import Outgoing
from dicomai.errors import RejectedError, StoreError

_UNCOMPRESSED = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))
_COMPRESSED = frozenset(
    map(str, (RLELossless, *JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes))
)
_FROM = _COMPRESSED | {*_UNCOMPRESSED, str(DeflatedExplicitVRLittleEndian)}
_CHARACTER_SET, _SOP_INSTANCE_UID = BaseTag(0x00080005), BaseTag(0x00080018)
_UNDEFINED = 0xFFFFFFFF  # length (PS3.5 7.1.1)
_PIXEL_DATA = BaseTag(0x7FE00010)
_OFFSET_TABLES = frozenset({0x7FE00001, 0x7FE00002})  # of encapsulated pixel data (PS3.3 C.7.6.3)
_ICON = BaseTag(0x00880200)  # Icon Image Sequence (PS3.3 F.7), which no object needs
_OF_PIXELS = ("PhotometricInterpretation", "PlanarConfiguration", "PixelData")
_LONGEST_SHORT = 0xFFFE  # bytes of a value whose VR has a length of two bytes (PS3.5 7.1.2)
_ONE = 2  # characters of one VR; the dictionary's "US or SS" are more than one


def fallbacks(transfer_syntax_uid: str) -> tuple[str, ...]:
    """Give the transfer syntaxes that an object can be sent in where its own is not taken, the better first.

    None of Explicit VR Big Endian, whose values have other bytes, and of what no decoder here understands.
    """
    return tuple(one for one in _UNCOMPRESSED if transfer_syntax_uid in _FROM - {one})


def recode(outgoing: Outgoing, transfer_syntax_uid: str) -> bytes:
    """Encode an object's data set in one of its `fallbacks`; the same bytes for the same object.

    Raises:
        RejectedError: its pixel data, or its elements, cannot be made sense of.
        StoreError: its bytes cannot be had, or there is no memory for them.
    """
    from dicomai.pixels import UNDECODABLE  # noqa: PLC0415  decoders take long to import, and are rarely needed

    try:
        with outgoing.open() as file:
            data = BytesIO(file.read())
    except (OSError, MemoryError) as error:
        raise _not_now(outgoing, error) from error
    try:
        ds = pydicom.dcmread(data)
        if _SOP_INSTANCE_UID not in ds:  # the library gives what ends early as a data set without elements
            raise EOFError
        return _encode(ds, UID(transfer_syntax_uid).is_implicit_VR)
    except MemoryError as error:
        raise _not_now(outgoing, error) from error
    except UNDECODABLE as error:
        raise RejectedError(
            f"SOP Instance {outgoing.sop_instance_uid} is not taken in {UID(outgoing.transfer_syntax_uid).name}, and"
            f" cannot be sent in {UID(transfer_syntax_uid).name} ({type(error).__name__}): allow its transfer syntax"
            " at the destination, then retry."
        ) from error


def _not_now(outgoing: Outgoing, error: Exception) -> StoreError:
    return StoreError(
        f"SOP Instance {outgoing.sop_instance_uid} cannot be encoded anew for now ({type(error).__name__}): another"
        " attempt may succeed; look at the storage folder and the memory of this machine if this goes on."
    )


def _encode(ds: FileDataset, is_implicit: bool) -> bytes:
    from dicomai.pixels import decompress, is_lossy  # noqa: PLC0415  as above

    made = _headed_anew(ds, [], is_implicit)
    if str(ds.file_meta.TransferSyntaxUID) in _COMPRESSED and _PIXEL_DATA in ds:
        was_lossy = is_lossy(ds)
        decompress(ds)
        for keyword in _OF_PIXELS:
            if keyword in ds:
                made[keyword] = ds[keyword]
        for tag in _OFFSET_TABLES & made.keys():
            del made[tag]
        if was_lossy:  # which its transfer syntax does not say any more
            made.LossyImageCompression = "01"
    elif _is_encapsulated(ds):
        raise ValueError("its pixel data are encapsulated, which its transfer syntax does not allow")
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = is_implicit, True
    write_dataset(buffer, made)
    return buffer.getvalue()


def _headed_anew(ds: Dataset, above: Sequence[Dataset], is_implicit: bool) -> Dataset:
    """Copy a data set, with each value as the bytes that it came in and the VR under which it is written.

    Args:
        ds: as it was read.
        above: the data sets of which it is an item, the innermost first.
        is_implicit: whether it is written in Implicit VR.
    """
    made: dict[BaseTag, DataElement | RawDataElement] = {}
    around = [ds, *above]
    elements: dict[BaseTag, DataElement | RawDataElement] = {
        tag: ds.get_item(tag, keep_deferred=True) for tag in list(ds.keys())
    }  # as they are now: to look at one of them may convert others
    for tag, element in elements.items():
        vr = _vr(element, around) if isinstance(element, RawDataElement) else element.VR
        if isinstance(element, RawDataElement) and element.VR is None and tag.is_private and vr == VR.SQ:
            vr = VR.UN  # a dictionary may err, and then its value would be lost; UN may hold a sequence (PS3.5 6.2.2)
        if vr == VR.SQ:
            if isinstance(element, RawDataElement):
                _check_whole(element)
            if tag == _ICON and any(map(_is_encapsulated, ds[tag].value)):
                continue  # nothing encapsulated is in an uncompressed transfer syntax (PS3.5 A.4)
            made[tag] = DataElement(tag, VR.SQ, [_headed_anew(item, around, is_implicit) for item in ds[tag].value])
        elif isinstance(element, RawDataElement):
            if element.length == _UNDEFINED and (above or tag != _PIXEL_DATA):
                raise ValueError(f"{tag} is encapsulated within a sequence")
            made[tag] = _as_it_is(element, vr)
        elif tag == _CHARACTER_SET:  # the only one that reading converts
            made[tag] = element
        else:
            raise ValueError(f"{tag} of undefined length is no sequence")
    again = Dataset(made)  # at once: to set a private element in a data set is to convert it
    again.set_original_encoding(is_implicit, True, again._character_set)  # so that values are written as they are
    return again


def _is_encapsulated(ds: Dataset) -> bool:
    """Tell whether pixel data, as they were read, are in fragments (PS3.5 A.4)."""
    return _PIXEL_DATA in ds and getattr(ds.get_item(_PIXEL_DATA), "length", 0) == _UNDEFINED


def _check_whole(element: RawDataElement) -> None:
    if element.length not in {len(element.value or b""), _UNDEFINED}:
        raise ValueError(f"{element.tag} ends early")


def _as_it_is(element: RawDataElement, vr: str) -> RawDataElement:
    _check_whole(element)
    value = element.value or b""
    if len(value) > _LONGEST_SHORT and vr not in EXPLICIT_VR_LENGTH_32:
        vr = VR.UN  # PS3.5 6.2.2
    return element._replace(VR=vr, value=value)


def _creator(tag: BaseTag) -> BaseTag:
    """Give the tag of a private element's Private Creator (PS3.5 7.8.1)."""
    return BaseTag((tag.group << 16) | (tag.element >> 8))


def _vr(element: RawDataElement, around: Sequence[Dataset]) -> str:
    """Give the VR of an element; UN where nothing tells it, which leaves the value as it is (PS3.5 6.2.2)."""
    if element.VR is not None:
        return element.VR
    tag = element.tag
    if tag.is_private_creator:
        return VR.LO
    try:
        if tag.is_private:
            vr = private_dictionary_VR(tag, str(around[0][_creator(tag)].value))
            return vr if len(vr) == _ONE else VR.UN
        vr = dictionary_VR(tag)
        if len(vr) == _ONE:
            return vr
        found = correct_ambiguous_vr_element(convert_raw_data_element(element), around[0], True, list(around))
    except (LookupError, AttributeError, ValueError, struct.error, BytesLengthException):
        return VR.UN
    return found.VR if found.VR is not None and len(found.VR) == _ONE else VR.UN
