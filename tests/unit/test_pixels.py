"""Pixel data comes out as the values that the scanner meant, from every transfer syntax, or is refused."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from dicomai.errors import NotAcceptedError, StoreError, UnreadableError
from dicomai.pixels import decode, is_lossy
from dicomai.stacks import frames, split
from dicomai.study import Instance, Stack
from dicomai.volume import Limits, load
from tests.synthetic import as_series, encode, enhanced, instances, pattern, series


def decoded(datasets):
    return decode([frame for instance in instances(datasets) for frame in frames(instance)], threads=2)


def sample(name) -> Instance:
    """One of pydicom's own images."""
    return Instance.read(lambda: Path(get_testdata_file(name, download=False)).open("rb"), name)


def test_ct_is_in_hounsfield_units_as_small_integers():
    array = decoded(series())
    assert array.dtype == np.int16
    np.testing.assert_array_equal(array, pattern((5, 8, 10)).astype(int) - 1024)


@pytest.mark.parametrize(
    ("stored", "slope", "intercept", "expected"),
    [
        (np.array([[[0, 255]]], np.uint8), None, None, np.uint8),
        (np.array([[[0, 65535]]], np.uint16), "1", "0", np.uint16),
        (np.array([[[-32768, 32767]]], np.int16), "1", "0", np.int16),
        (np.array([[[0, 65535]]], np.uint16), "1", "-1024", np.int32),
        (np.array([[[-32768, 32767]]], np.int16), "2", "-1024", np.int32),
        (np.array([[[0, 65535]]], np.uint16), "100000", "0", np.float32),
        (np.array([[[0, 65535]]], np.uint16), "0.5", "0", np.float32),
        (np.array([[[0, 4095]]], np.uint16), "1", "0.5", np.float32),
    ],
)
def test_integers_are_kept_where_slope_and_intercept_allow(stored, slope, intercept, expected):
    array = decoded(series(modality="MR", array=stored, RescaleSlope=slope, RescaleIntercept=intercept))
    assert array.dtype == expected
    np.testing.assert_allclose(array, stored * float(slope or 1) + float(intercept or 0), rtol=1e-7)


def test_each_slice_is_scaled_by_its_own_slope():
    array = decoded(series(RescaleSlope=lambda z: f"{z + 0.5}", RescaleIntercept="0"))
    np.testing.assert_allclose(array, pattern((5, 8, 10)) * (np.arange(5) + 0.5)[:, None, None])


def test_each_frame_is_scaled_by_its_own_functional_group():
    ds = enhanced(shape=(3, 4, 4))
    for number, frame in enumerate(ds.PerFrameFunctionalGroupsSequence):
        item = Dataset()
        item.RescaleSlope, item.RescaleIntercept, item.RescaleType = f"{number + 2}", "-7", "US"
        frame.PixelValueTransformationSequence = [item]
    array = decoded([ds])
    np.testing.assert_array_equal(array, pattern((3, 4, 4)) * (np.arange(3) + 2)[:, None, None] - 7)
    assert array.dtype == np.int16


def test_a_modality_lut_is_applied():
    item = Dataset()
    item.LUTDescriptor, item.ModalityLUTType, item.LUTData = [4, 0, 16], "US", [10, 20, 30, 40]
    for tag in ("LUTDescriptor", "LUTData"):
        item[tag].VR = "US"
    stored = np.array([[[0, 1, 2, 3]]], np.uint16)
    lut = {"ModalityLUTSequence": [item], "RescaleSlope": None, "RescaleIntercept": None}
    np.testing.assert_array_equal(decoded(series(array=stored, **lut)), [[[10, 20, 30, 40]]])


@pytest.mark.parametrize(("slope", "intercept"), [("0", "0"), (None, "-1024"), ("1", None)])
def test_a_rescaling_that_gives_no_values_is_refused(slope, intercept):
    with pytest.raises(UnreadableError, match=r"RescaleSlope .* which give no values"):
        decoded(series(RescaleSlope=slope, RescaleIntercept=intercept))


def test_monochrome1_and_padding_stay_as_stored():
    array = decoded(series(modality="MR", PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0))
    np.testing.assert_array_equal(array, pattern((5, 8, 10)))


def test_bits_beyond_bits_stored_are_no_value():
    stored = pattern((2, 4, 4))
    overlaid = stored | np.uint16(0xF000)  # as retired overlays lie in the unused bits
    np.testing.assert_array_equal(decoded(series(modality="MR", array=overlaid, BitsStored=12, HighBit=11)), stored)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_uncompressed_transfer_syntaxes(syntax):
    made = series()
    for ds in made:
        ds.file_meta.TransferSyntaxUID = syntax
    np.testing.assert_array_equal(decoded(made), pattern((5, 8, 10)).astype(int) - 1024)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, RLELossless])
@pytest.mark.parametrize("multi_frame", [False, True])
def test_compression_without_loss_changes_nothing(syntax, multi_frame):
    made = [enhanced(modality="CT", shape=(3, 16, 16))] if multi_frame else series(shape=(3, 16, 16))
    for ds in made:
        ds.compress(syntax)
    found = load(Stack("", tuple(frame for i in instances(made) for frame in frames(i))), Limits())
    np.testing.assert_array_equal(found.array, pattern((3, 16, 16)).astype(int) - 1024)
    assert not found.lossy


@pytest.mark.parametrize(
    ("compressed", "plain"),
    [
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
        ("MR_small_bigendian.dcm", "MR_small.dcm"),
        ("MR_small_padded.dcm", "MR_small.dcm"),
        ("emri_small_RLE.dcm", "emri_small.dcm"),
        ("emri_small_jpeg_2k_lossless.dcm", "emri_small.dcm"),
        ("emri_small_jpeg_ls_lossless.dcm", "emri_small.dcm"),
        ("emri_small_big_endian.dcm", "emri_small.dcm"),
        ("693_J2KR.dcm", "693_UNCR.dcm"),
        ("MR2_J2KR.dcm", "MR2_UNCR.dcm"),
    ],
)
def test_images_of_other_encoders_equal_their_uncompressed_originals(compressed, plain):
    one, other = (decode(frames(sample(name)), threads=2) for name in (compressed, plain))
    np.testing.assert_array_equal(one, other)


def test_jpeg_lossless_decodes():
    instance = sample("JPEG-LL.dcm")
    np.testing.assert_array_equal(decode(frames(instance), threads=1)[0], instance.dataset().pixel_array)
    assert not is_lossy(instance.header)


@pytest.mark.parametrize("name", ["JPEG2000.dcm", "693_J2KI.dcm", "JPGExtended.dcm", "JPEGLSNearLossless_16.dcm"])
def test_lossy_images_are_known_as_such(name):
    assert is_lossy(sample(name).header)


def test_jpeg_2000_that_says_it_is_without_loss_is_believed_and_baseline_is_not():
    ds = series()[0]
    ds.LossyImageCompression = "00"
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.91"
    assert not is_lossy(ds)
    del ds.LossyImageCompression
    assert is_lossy(ds)
    ds.LossyImageCompression = "00"
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    assert is_lossy(ds)


def cut(ds, share):
    """The same image with the end of its pixel data gone, as after a broken transfer."""
    if not ds.file_meta.TransferSyntaxUID.is_encapsulated:
        ds["PixelData"].value = ds.PixelData[: int(len(ds.PixelData) * share) // 2 * 2]
        return ds
    streams = list(generate_frames(ds.PixelData, number_of_frames=int(ds.get("NumberOfFrames") or 1)))
    streams[-1] = streams[-1][: int(len(streams[-1]) * share) // 2 * 2]
    ds.PixelData = encapsulate(streams)
    ds["PixelData"].VR = "OB"
    return ds


@pytest.mark.parametrize("share", [0.5, 0.97])
@pytest.mark.parametrize("name", ["MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "JPEG-LL.dcm",
                                  "MR_small_jpeg_ls_lossless.dcm", "emri_small.dcm", "emri_small_RLE.dcm",
                                  "emri_small_jpeg_2k_lossless.dcm", "emri_small_jpeg_ls_lossless.dcm"])  # fmt: skip
def test_truncated_pixel_data_is_refused(name, share):
    ds = cut(sample(name).dataset(), share)
    began = time.perf_counter()
    with pytest.raises(UnreadableError, match=r"^Pixel data of instance [\d.]+(, frame \d+,)? cannot be decoded \("):
        decoded([ds])
    assert time.perf_counter() - began < 20.0, "a broken image must not hold up the others"


def test_a_file_that_ends_in_its_pixel_data_is_refused():
    for ds in (series(shape=(1, 16, 16))[0], enhanced(shape=(2, 16, 16))):
        content = encode(ds)
        whole = Instance.read(lambda content=content: io.BytesIO(content[:-100]), "image")
        with pytest.raises(UnreadableError, match="cannot be decoded"):
            decode(frames(whole), threads=1)


@pytest.mark.filterwarnings("ignore:End of file reached before delimiter:UserWarning")  # that is the point
def test_a_compressed_file_that_ends_in_its_pixel_data_is_refused():
    (ds,) = series(array=np.random.default_rng(1).integers(0, 4096, (1, 32, 32)).astype(np.uint16))
    ds.compress(JPEGLSLossless)
    content = encode(ds)
    whole = Instance.read(lambda: io.BytesIO(content[:-200]), "image")
    with pytest.raises(UnreadableError, match="cannot be decoded"):
        decode(frames(whole), threads=1)


def test_no_pixel_data_at_all_is_refused():
    with pytest.raises(UnreadableError, match="cannot be decoded"):
        decoded(series(PixelData=None))


@pytest.mark.parametrize("multiple", [2, 0.5])
@pytest.mark.parametrize(
    "name", ["JPEG-LL.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm", "MR_small_RLE.dcm"]
)
def test_a_header_that_states_another_size_neither_passes_nor_ends_the_process(name, multiple):
    ds = sample(name).dataset()
    ds.Rows = int(ds.Rows * multiple)
    with pytest.raises(UnreadableError, match="cannot be decoded"):
        decoded([ds])


def test_a_jpeg_of_impossible_precision_does_not_end_the_process():
    ds = sample("JPEG-LL.dcm").dataset()
    (codestream,) = generate_frames(ds.PixelData, number_of_frames=1)
    precision = codestream.index(b"\xff\xc3") + 4
    ds.PixelData = encapsulate([codestream[:precision] + b"\xdf" + codestream[precision + 1 :]])
    ds["PixelData"].VR = "OB"
    with pytest.raises(UnreadableError, match="1 samples of 223 bits"):
        decoded([ds])


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEG2000Lossless, HTJ2KLossless, JPEGLSLossless, RLELossless])
def test_garbage_is_refused(syntax):
    (ds,) = series(shape=(1, 16, 16))
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate([b"\xff\xd8" + bytes(range(256)) * 4 + b"\xff\xd9"])
    ds["PixelData"].VR = "OB"
    with pytest.raises(UnreadableError, match="cannot be decoded"):
        decoded([ds])


def test_a_failing_disk_is_no_fault_of_the_image():
    (good,) = instances(series(shape=(1, 4, 4)))

    def broken():
        raise OSError("input/output error")

    with pytest.raises(StoreError, match="cannot be read from storage") as failed:
        decode(frames(Instance(good.header, broken)), threads=1)
    assert failed.value.retryable


@pytest.mark.slow
def test_300_slices_load_in_well_under_a_second():
    made = series(array=np.zeros((300, 512, 512), np.uint16))
    stack = Stack("", tuple(frame for instance in instances(made) for frame in frames(instance)))
    began = time.perf_counter()
    load(stack, Limits())
    assert time.perf_counter() - began < 2.0, "usually 0.4 s; the limit leaves room for a busy machine"


@pytest.mark.parametrize("keyword", ["Rows", "BitsAllocated", "BitsStored"])
def test_an_attribute_with_two_numbers_is_refused_by_its_name(keyword):
    (stack,) = split(as_series(series(modality="MR", **{keyword: [8, 8]})))
    with pytest.raises(UnreadableError, match=f"has no single number in {keyword}"):
        load(stack, Limits())


def test_a_stack_that_no_memory_holds_is_refused(monkeypatch):
    def full(*_args: object, **_more: object) -> None:
        raise MemoryError

    made = series(shape=(2, 4, 4))
    monkeypatch.setattr("dicomai.pixels.np.empty", full)
    with pytest.raises(NotAcceptedError, match="2 slices of 4 x 4 pixels, which do not fit"):
        decoded(made)
