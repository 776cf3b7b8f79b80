"""Objects to peers that do not take their transfer syntax: what they say arrives unchanged, or nothing does."""

import contextlib
import os
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openjpeg import utils as openjpeg
from pydicom.data import get_testdata_file
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MRImageStorage,
    RLELossless,
)

from dicomai.config import DicomDestination
from dicomai.destinations import Outgoing, send_files
from dicomai.destinations.dimse.transcode import fallbacks, recode
from dicomai.errors import RejectedError, StoreError
from tests.dimse import HOST, free_port, is_listening, scp, wait_until
from tests.integration.test_destinations import changed, outgoing, send, whole

UNCOMPRESSED = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))
COMPRESSED = {
    "MR_small_RLE.dcm": "RLE",
    "MR_small_jp2klossless.dcm": "JPEG 2000 without loss, signed",
    "JPEG2000.dcm": "JPEG 2000 with loss",
    "MR_small_jpeg_ls_lossless.dcm": "JPEG-LS",
    "JPGLosslessP14SV1_1s_1f_8b.dcm": "JPEG without loss",
    "SC_rgb_rle_2frame.dcm": "RLE, colour, frames",
    "SC_rgb_jpeg_dcmtk.dcm": "JPEG, colour",
    "SC_ybr_full_422_uncompressed.dcm": "nothing compressed, YBR_FULL_422",
}


CONVERTED = (0x00080005, 0x00080018)
"""Elements that reading converts, or that a test has looked at."""

CUT_OFF = pytest.mark.filterwarnings("ignore:End of file reached:UserWarning")


def named(path: str | Path) -> Outgoing:
    """A file as an object to be sent."""
    meta = pydicom.dcmread(path, stop_before_pixels=True).file_meta
    data = Path(path).read_bytes()
    return Outgoing(str(meta.MediaStorageSOPClassUID), str(meta.MediaStorageSOPInstanceUID), partial(BytesIO, data))


def read(data_set: bytes, syntax: str) -> Dataset:
    """A data set as a peer reads it."""
    ds = read_dataset(DicomBytesIO(data_set), syntax == ImplicitVRLittleEndian, True)
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.set_original_encoding(syntax == ImplicitVRLittleEndian, True)
    return ds


def values(ds: Dataset) -> Iterator[tuple[tuple[Any, ...], bytes]]:
    """Where each value lies, and its bytes; of an empty sequence too."""
    for element in [ds.get_item(tag, keep_deferred=True) for tag in sorted(ds.keys())]:
        if ds[element.tag].VR != "SQ":
            if isinstance(element, RawDataElement) and element.tag not in CONVERTED:
                yield (int(element.tag),), element.value or b""
            else:
                yield (int(element.tag),), str(ds[element.tag].value).encode()
            continue
        items = ds[element.tag].value
        yield (int(element.tag), len(items)), b""
        for number, item in enumerate(items):
            for where, value in values(item):
                yield (int(element.tag), number, *where), value


@contextlib.contextmanager
def storescp(folder: Path, *options: str) -> Iterator[DicomDestination]:
    """DCMTK's receiver, which keeps what it gets in a folder."""
    port = free_port()
    folder.mkdir()
    command = ["/usr/bin/storescp", *options, "-od", str(folder), str(port)]
    process = subprocess.Popen(command, env={**os.environ, "TCP_NODELAY": "1"})
    try:
        wait_until(lambda: is_listening(port))
        yield DicomDestination(type="dicom", name="pacs", ae_title="PACS", host=HOST, port=port)
    finally:
        process.terminate()
        process.wait(10)


def test_a_pacs_that_takes_implicit_vr_alone_gets_every_value_as_it_was(tmp_path: Path) -> None:
    objects = outgoing(2)
    with storescp(tmp_path / "pacs", "+xi") as there:
        accepted = send(there, objects)
    assert accepted == [(o.sop_instance_uid, 0, "sent in Implicit VR Little Endian") for o in objects]
    by_uid = {o.sop_instance_uid: o for o in objects}
    for path in (tmp_path / "pacs").iterdir():
        kept = pydicom.dcmread(path)
        assert kept.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
        assert list(values(kept)) == list(values(pydicom.dcmread(BytesIO(whole(by_uid.pop(kept.SOPInstanceUID))))))
    assert not by_uid


@pytest.mark.parametrize("name", COMPRESSED, ids=COMPRESSED.get)
def test_pixels_are_those_that_dcmtk_decompresses(name: str, tmp_path: Path) -> None:
    path = get_testdata_file(name)
    one = named(path)
    original = pydicom.dcmread(path)
    with storescp(tmp_path / "pacs", "+xi") as there:
        ((_, status, _),) = send(there, [one])
    assert status == 0
    (kept_path,) = (tmp_path / "pacs").iterdir()
    kept = pydicom.dcmread(kept_path)
    assert kept.SOPInstanceUID == original.SOPInstanceUID
    if "jp2k" in name or "2000" in name:  # which DCMTK does not decode
        expected = original.pixel_array
    else:
        tool = {"RLE": "dcmdrle", "rle": "dcmdrle", "jpeg_ls": "dcmdjpls"}
        command = next((t for part, t in tool.items() if part in name), "dcmdjpeg")
        if "uncompressed" in name:
            command = "dcmconv"
        subprocess.run([f"/usr/bin/{command}", path, str(tmp_path / "raw.dcm")], check=True)
        raw = pydicom.dcmread(tmp_path / "raw.dcm")
        assert kept.PhotometricInterpretation == raw.PhotometricInterpretation
        expected = raw.pixel_array
    assert np.array_equal(kept.pixel_array, expected)


def test_what_was_compressed_with_loss_says_so_ever_after() -> None:
    ds = pydicom.dcmread(get_testdata_file("SC_rgb_jpeg_dcmtk.dcm"))
    ds.pop("LossyImageCompression", None)
    buffer = BytesIO()
    ds.save_as(buffer)
    one = changed(named(get_testdata_file("SC_rgb_jpeg_dcmtk.dcm")), buffer.getvalue())
    sent = read(recode(one, ExplicitVRLittleEndian), ExplicitVRLittleEndian)
    assert (sent.LossyImageCompression, sent.PhotometricInterpretation, sent.PlanarConfiguration) == ("01", "RGB", 0)
    without = named(get_testdata_file("MR_small_RLE.dcm"))
    assert "LossyImageCompression" not in read(recode(without, ExplicitVRLittleEndian), ExplicitVRLittleEndian)


def test_a_label_map_in_rle_goes_to_a_pacs_that_takes_nothing_compressed() -> None:
    one = named(get_testdata_file("MR_small_RLE.dcm"))
    with scp(contexts=[(one.sop_class_uid, UNCOMPRESSED)]) as pacs:
        ((_, _, meaning),) = send(pacs.destination(), [one])
    assert meaning == "sent in Explicit VR Little Endian"  # the better of the two
    (got,) = pacs.received
    assert got.transfer_syntax_uid == ExplicitVRLittleEndian
    assert got.data_set == recode(one, ExplicitVRLittleEndian)  # the same each time
    uncompressed = pydicom.dcmread(get_testdata_file("MR_small.dcm"))
    assert read(got.data_set, got.transfer_syntax_uid).PixelData == uncompressed.PixelData


def test_what_the_peer_takes_as_it_is_stays_as_it_is_beside_what_it_does_not() -> None:
    plain, compressed = outgoing(1)[0], named(get_testdata_file("MR_small_RLE.dcm"))
    with scp(contexts=[(MRImageStorage, [RLELossless, ImplicitVRLittleEndian])]) as pacs:
        accepted = send(pacs.destination(), [plain, compressed])
    assert [meaning for _, _, meaning in accepted] == ["sent in Implicit VR Little Endian", ""]
    assert whole(compressed).endswith(pacs.received[1].data_set)
    assert [r.association for r in pacs.received] == [0, 0]


@CUT_OFF
def test_pixels_that_cannot_be_decoded_are_not_sent_and_what_to_do_is_said() -> None:
    compressed, plain = named(get_testdata_file("MR_small_RLE.dcm")), outgoing(1)[0]
    data = whole(compressed)
    at = data.index(b"\xfe\xff\x00\xe0", data.index(b"\xe0\x7f\x10\x00") + 20) + 8  # the first frame's RLE header
    for one, broken in (
        (compressed, data[:-2000]),
        (compressed, data[:at] + b"\xff" * 64 + data[at + 64 :]),
        (plain, whole(plain)[:-10]),  # its length promises more
    ):
        sentence = f"is not taken in {UID(one.transfer_syntax_uid).name}, and cannot be sent in Implicit VR .*allow its"
        refused = pytest.raises(RejectedError, match=sentence)
        with scp(contexts=[(one.sop_class_uid, [ImplicitVRLittleEndian])]) as pacs, refused:
            send(pacs.destination(), [changed(one, broken)])
        assert pacs.received == []


@CUT_OFF
def test_send_encodes_files_anew_where_it_has_to(tmp_path: Path) -> None:
    path = Path(get_testdata_file("MR_small_RLE.dcm"))
    broken = tmp_path / "2.dcm"
    broken.write_bytes(path.read_bytes()[:-2000])
    with scp(contexts=[(MRImageStorage, [ImplicitVRLittleEndian])]) as pacs:
        outcomes = send_files([path, broken], pacs.destination(), calling_ae="X", timeout=5)
    assert [o.is_accepted for o in outcomes] == [True, False]
    assert outcomes[0].text == "sent in Implicit VR Little Endian"
    assert "cannot be sent in Implicit VR Little Endian" in outcomes[1].text
    assert len(pacs.received) == 1


def elements() -> st.SearchStrategy[Dataset]:
    """Data sets with text in a foreign character set, private elements, sequences in sequences, and odd values."""
    leaf = st.fixed_dictionaries(
        {},
        optional={
            "PatientName": st.sampled_from(["Müller^Jürgen", "Yamada^Tarou=山田^太郎", " "]),
            "ImageComments": st.text("aé山\\ ", max_size=70_000 // 10),
            "SmallestImagePixelValue": st.integers(0, 100),
            "SliceThickness": st.sampled_from(["1.50", " 3.0 ", ""]),
            "StudyInstanceUID": st.sampled_from(["1.2.03", "1.2"]),
        },
    )

    def made(content: tuple[dict[str, Any], list[Dataset], bytes]) -> Dataset:
        attributes, items, private = content
        ds = Dataset()
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.PixelRepresentation = 0
        for keyword, value in attributes.items():
            setattr(ds, keyword, value)
        block = ds.private_block(0x0029, "ACME 1.0", create=True)
        block.add_new(0x01, "UN", private)
        siemens = ds.private_block(0x0019, "SIEMENS MR HEADER", create=True)
        siemens.add_new(0x0C, "IS", "1000")
        if items:
            ds.ReferencedSeriesSequence = items
        return ds

    content = leaf, st.binary(max_size=12).map(lambda b: b + b"\0" * (len(b) % 2))
    return st.recursive(
        st.tuples(content[0], st.just([]), content[1]).map(made),
        lambda inner: st.tuples(content[0], st.lists(inner, max_size=2), content[1]).map(made),
        max_leaves=4,
    )


@pytest.mark.filterwarnings("ignore:Invalid value for VR:UserWarning", "ignore:.*exceeds the:UserWarning")
@settings(max_examples=40)
@given(elements(), st.permutations(UNCOMPRESSED))
def test_no_value_changes_in_either_direction(ds: Dataset, syntaxes: list[str]) -> None:
    source, target = syntaxes
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, "1.2.3"
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = source
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, ds, enforce_file_format=True)
    one = Outgoing(CTImageStorage, "1.2.3", partial(BytesIO, buffer.getvalue()))
    again = read(recode(one, target), target)
    assert list(values(again)) == list(values(pydicom.dcmread(BytesIO(buffer.getvalue()))))
    if target == ExplicitVRLittleEndian:
        assert again[0x0019100C].VR == "IS"
        assert again.get_item(0x00291001).VR == "UN"


def compressed(ds: Dataset, frame: bytes) -> Outgoing:
    """An image of one frame in JPEG 2000."""
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, "1.2.3"
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    encapsulated(ds, frame)
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, ds, enforce_file_format=True)
    return Outgoing(CTImageStorage, "1.2.3", partial(BytesIO, buffer.getvalue()))


def encapsulated(ds: Dataset, frame: bytes) -> None:
    ds.PixelData = encapsulate([frame])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True


def image(allocated: int, stored: int) -> Dataset:
    ds = Dataset()
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 64, 80, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = allocated, stored, stored - 1, 0
    return ds


def frame_of(bits: int) -> bytes:
    pixels = (np.arange(64 * 80) % (1 << bits)).astype(np.uint8).reshape(64, 80)
    return bytes(openjpeg.encode_array(pixels, bits_stored=bits, photometric_interpretation=2))


@pytest.mark.parametrize(("allocated", "stored"), [(16, 8), (1, 1)], ids=["8 bits in 16", "a binary mask"])
def test_samples_that_come_out_of_another_size_than_the_header_says_are_not_sent(allocated: int, stored: int) -> None:
    one = compressed(image(allocated, stored), frame_of(stored))
    with scp(contexts=[(CTImageStorage, UNCOMPRESSED)]) as pacs, pytest.raises(RejectedError, match="allow its"):
        send(pacs.destination(), [one])
    assert pacs.received == []
    fits = read(recode(compressed(image(8, 8), frame_of(8)), ExplicitVRLittleEndian), ExplicitVRLittleEndian)
    assert len(fits.PixelData) == 64 * 80


def test_no_fragments_are_left_in_what_is_uncompressed() -> None:
    ds, icon = image(8, 8), image(8, 8)
    encapsulated(icon, frame_of(8))
    ds.IconImageSequence = [icon]
    sent = read(recode(compressed(ds, frame_of(8)), ImplicitVRLittleEndian), ImplicitVRLittleEndian)
    assert "IconImageSequence" not in sent
    ds.ReferencedImageSequence = [icon]  # where nobody may leave it out
    with pytest.raises(RejectedError, match="allow its"):
        recode(compressed(ds, frame_of(8)), ImplicitVRLittleEndian)


def test_what_cannot_be_read_for_now_is_no_fault_of_the_destination() -> None:
    one = named(get_testdata_file("MR_small_RLE.dcm"))

    class Broken(BytesIO):
        fault: Exception = OSError(5, "Input/output error")

        def read(self, *count: int | None) -> bytes:
            if self.tell() >= 400 or count in {(), (-1,)}:
                raise self.fault
            return super().read(*count)

    broken = replace(one, open=lambda: Broken(whole(one)))
    assert broken.transfer_syntax_uid == RLELossless
    for fault in (Broken.fault, MemoryError()):
        Broken.fault = fault
        with pytest.raises(StoreError, match="another attempt may"):
            recode(broken, ExplicitVRLittleEndian)
    with pytest.raises(StoreError, match=r"cannot be read \(FileNotFoundError\)"):
        _ = replace(one, open=lambda: open("/nowhere", "rb")).transfer_syntax_uid  # noqa: PTH123, SIM115


def implicit(*elements: tuple[int, int, bytes]) -> Outgoing:
    """An object in Implicit VR, element by element."""
    uid = ImplicitVRLittleEndian.encode() + b"\0"
    head = struct.pack("<HH2sH", 2, 0x10, b"UI", len(uid)) + uid
    body = b"".join(struct.pack("<HHL", g, e, len(v)) + v for g, e, v in ((8, 0x18, b"1.2.3\0"), *elements))
    return Outgoing(CTImageStorage, "1.2.3", partial(BytesIO, bytes(128) + b"DICM" + head + body))


def test_private_values_stay_what_they_are_whatever_a_dictionary_says_of_them() -> None:
    told = [  # what it has as a sequence, as "US or SS", and as "OB_OW"
        (0x2001, b"Philips Imaging DD 001", 0x5F, b"garbage!"),
        (0x0027, b"FDMS 1.0", 0xA3, b"\1\0"),
        (0x7019, b"TOSHIBA_MEC_OT3 ", 0x80, b"\1\0\2\0"),
    ]
    elements = [e for g, creator, at, v in told for e in ((g, 0x10, creator), (g, 0x1000 | at, v))]
    sent = read(recode(implicit(*elements), ExplicitVRLittleEndian), ExplicitVRLittleEndian)
    for group, _, at, value in told:
        element = sent.get_item((group << 16) | 0x1000 | at, keep_deferred=True)
        assert (element.VR, element.value) == ("UN", value)
    odd = implicit((0x0019, 0x10, b"SIEMENS MR HEADER "), (0x0019, 0x100C, b" 1 s"))  # of VR IS
    assert whole(odd)[-4:] == recode(odd, ExplicitVRLittleEndian)[-4:] == b" 1 s"


@CUT_OFF
def test_an_object_that_ends_within_a_sequence_does_not_become_a_shorter_one() -> None:
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 14) + struct.pack("<HHL", 8, 0x1155, 6) + b"1.2.3\0"
    one = implicit((8, 0x1140, item))
    assert len(read(recode(one, ExplicitVRLittleEndian), ExplicitVRLittleEndian).ReferencedImageSequence) == 1
    with pytest.raises(RejectedError, match="allow its"):
        recode(changed(one, whole(one)[:-6]), ExplicitVRLittleEndian)


def test_of_what_no_decoder_here_understands_nothing_else_is_proposed() -> None:
    assert fallbacks(JPEG2000Lossless) == UNCOMPRESSED
    assert fallbacks(ImplicitVRLittleEndian) == (ExplicitVRLittleEndian,)
    for syntax in ("1.2.840.10008.1.2.2", "1.2.840.10008.1.2.4.100", "1.2.3.4"):  # big endian, MPEG2, private
        assert fallbacks(syntax) == ()
