"""Equal pixels and geometry, equal fingerprint; whatever the rest of the header says and however they are encoded."""

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pydicom
import pytest
from openjpeg.utils import encode_pixel_data
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from dicomai.fingerprint import fingerprint, fingerprint_of
from tests.synthetic import encode, enhanced, plain, series


def reread(ds: FileDataset) -> FileDataset:
    return pydicom.dcmread(io.BytesIO(encode(ds)))


def image(**attributes: Any) -> FileDataset:
    return series(modality="MR", shape=(1, 64, 80), series_uid="1.2", frame_of_reference_uid="1.3", **attributes)[0]


def test_another_header_changes_nothing() -> None:
    other = image(PatientName="Roe^Jane", PatientID="X", StudyDescription="else", SeriesNumber=77)
    assert other.SOPInstanceUID != image().SOPInstanceUID
    assert fingerprint(reread(other)) == fingerprint(reread(image()))


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_another_uncompressed_syntax_changes_nothing(syntax: UID) -> None:
    ds = image()
    before = fingerprint(reread(ds))
    again = io.BytesIO()
    if syntax == ExplicitVRBigEndian:
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
    ds.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(
        again, ds, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=syntax != ExplicitVRBigEndian
    )
    assert fingerprint(pydicom.dcmread(io.BytesIO(again.getvalue()))) == before


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_lossless_compression_changes_nothing(syntax: str) -> None:
    ds = image()
    before = fingerprint(reread(ds))
    compressed = copy.deepcopy(ds)
    if syntax == JPEG2000Lossless:
        frame = encode_pixel_data(
            ds.PixelData, rows=64, columns=80, samples_per_pixel=1, bits_stored=ds.BitsStored, bits_allocated=16,
            pixel_representation=0, photometric_interpretation="MONOCHROME2",
        )  # fmt: skip
        compressed.PixelData = encapsulate([bytes(frame)])
        compressed["PixelData"].VR = "OB"
        compressed.file_meta.TransferSyntaxUID = UID(syntax)
    else:
        compressed.compress(syntax, generate_instance_uid=False)
    again = reread(compressed)
    assert again.file_meta.TransferSyntaxUID == syntax
    assert fingerprint(again) == before


def _pixel(ds: FileDataset) -> None:
    ds.PixelData = ds.PixelData[:-2] + b"\x01\x00"


@pytest.mark.parametrize(
    "change",
    [
        _pixel,
        lambda ds: setattr(ds, "ImagePositionPatient", [0, 0, 0]),
        lambda ds: setattr(ds, "ImageOrientationPatient", [1, 0, 0, 0, 0, -1]),
        lambda ds: setattr(ds, "PixelSpacing", [0.8, 0.7]),
        lambda ds: setattr(ds, "RescaleSlope", "2"),
        lambda ds: setattr(ds, "PhotometricInterpretation", "MONOCHROME1"),
        lambda ds: setattr(ds, "FrameOfReferenceUID", "1.2.3.4"),
    ],
    ids=["pixel", "position", "orientation", "spacing", "slope", "photometric", "frame of reference"],
)
def test_other_pixels_or_another_place_change_it(change: Callable[[FileDataset], None]) -> None:
    ds = image()
    before = fingerprint(reread(ds))
    change(ds)
    assert fingerprint(reread(ds)) != before


def test_the_place_of_a_frame_counts_in_a_multi_frame_image() -> None:
    ds = enhanced(shape=(3, 4, 4))
    before = fingerprint(reread(ds))
    places = ds.PerFrameFunctionalGroupsSequence
    places[0].PlanePositionSequence, places[2].PlanePositionSequence = (
        places[2].PlanePositionSequence,
        places[0].PlanePositionSequence,
    )
    assert fingerprint(reread(ds)) != before


def test_the_padding_byte_is_no_pixel() -> None:
    ds = plain(modality="US", array=np.arange(9, dtype=np.uint8).reshape(3, 3))
    assert len(ds.PixelData) == 10
    before = fingerprint(reread(ds))
    ds.PixelData = ds.PixelData[:-1] + b"\xff"
    assert fingerprint(reread(ds)) == before


def test_pixels_that_cannot_be_decoded_are_hashed_as_they_are() -> None:
    ds = image()
    ds.compress(RLELossless, generate_instance_uid=False)
    broken = reread(ds)
    broken.PixelData = broken.PixelData[:40] + b"\xff" * 24 + broken.PixelData[64:]
    other = reread(broken)
    other.PixelData = broken.PixelData[:-4] + b"\x01\x02\x03\x04"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert fingerprint(broken) == fingerprint(broken)
        assert fingerprint(broken) != fingerprint(other)


def test_an_object_without_pixels_has_one_too() -> None:
    ds = image()
    del ds.PixelData
    assert fingerprint(reread(ds)) != fingerprint(reread(image()))


class Watched(io.BytesIO):
    """A file that knows how much of it was asked for at once."""

    most = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.most = max(self.most, len(data))
        return data


def _without_pixels(ds: FileDataset) -> None:
    del ds.PixelData


def _float(ds: FileDataset) -> None:
    del ds.PixelData
    ds.FloatPixelData = bytes(64 * 80 * 4)


@pytest.mark.parametrize(
    "change",
    [
        lambda _: None,
        lambda ds: setattr(ds.file_meta, "TransferSyntaxUID", ImplicitVRLittleEndian),
        lambda ds: setattr(ds.file_meta, "TransferSyntaxUID", DeflatedExplicitVRLittleEndian),
        lambda ds: ds.compress(RLELossless, generate_instance_uid=False),
        lambda ds: setattr(ds, "PixelData", ds.PixelData + b"\0\0"),
        _without_pixels,
        _float,
    ],
    ids=["as it is", "implicit", "deflated", "compressed", "longer than it is", "no pixels", "float"],
)
def test_a_file_has_the_fingerprint_of_what_is_in_it(change: Callable[[FileDataset], None]) -> None:
    ds = image()
    change(ds)
    written = io.BytesIO()
    implicit = ds.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    pydicom.dcmwrite(written, ds, implicit_vr=implicit, little_endian=True, enforce_file_format=True)
    expected = fingerprint(pydicom.dcmread(io.BytesIO(written.getvalue())))
    assert fingerprint_of(io.BytesIO(written.getvalue())) == expected


def test_a_file_of_odd_length_has_it_too_and_one_that_breaks_off_is_read_as_before() -> None:
    odd = encode(plain(modality="US", array=np.arange(9, dtype=np.uint8).reshape(3, 3)))
    assert fingerprint_of(io.BytesIO(odd)) == fingerprint(pydicom.dcmread(io.BytesIO(odd)))
    cut = encode(image())[:-100]
    assert fingerprint_of(io.BytesIO(cut)) == fingerprint(pydicom.dcmread(io.BytesIO(cut)))


def test_a_large_image_is_read_in_blocks() -> None:
    stream = Watched(encode(series(shape=(1, 1500, 1500))[0]))
    fingerprint_of(stream)
    assert stream.most <= 1024 * 1024 < len(stream.getvalue()) / 4
