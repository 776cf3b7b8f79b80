"""Headers of received data sets: nothing that a stranger writes is understood to be what it is not."""

import io
import resource

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dicomai.errors import UnreadableError
from dicomai.header import Header, read_beginning, read_header
from tests.beds import as_received
from tests.fuzz import datasets


def read(data: bytes, syntax: str) -> Header | None:
    """Read as the receiver does; None where it cannot be understood."""
    try:
        with as_received():
            return read_header(io.BytesIO(data), syntax)
    except UnreadableError:
        return None


@pytest.mark.filterwarnings("ignore:Unknown encoding:UserWarning")  # half of one
@pytest.mark.parametrize("syntax", datasets.SYNTAXES[:4])
def test_a_data_set_that_is_cut_is_never_half_understood(syntax: str) -> None:
    data = datasets.valid(syntax)
    whole = read(data, syntax)
    assert whole is not None
    assert whole.is_image
    understood = {cut: header for cut in range(len(data)) if (header := read(data[:cut], syntax)) is not None}
    # At the end of an element nobody can tell, and what is left of one in big endian may be the zeros of padding.
    assert {header.series_instance_uid for header in understood.values()} <= {whole.series_instance_uid}
    assert len([cut for cut, header in understood.items() if header != whole]) <= 8
    if syntax == DeflatedExplicitVRLittleEndian:
        assert understood == {}


def test_zeros_may_fill_it_up_and_nothing_else_may() -> None:
    header = datasets.valid(ExplicitVRLittleEndian)[:-44]  # without the pixels
    assert read(header, ExplicitVRLittleEndian) is not None
    assert read(header + bytes(5), ExplicitVRLittleEndian) is not None
    assert read(header + b"\1", ExplicitVRLittleEndian) is None


@pytest.mark.parametrize("syntax", datasets.SYNTAXES[:3])
@pytest.mark.parametrize("inside", ["SQ", "UN"])
@pytest.mark.parametrize("closed", [True, False])
def test_ten_thousand_sequences_in_each_other_are_refused(syntax: str, inside: str, closed: bool) -> None:
    deep = datasets.nested(10_000, syntax, closed=closed, vr=inside)
    first = datasets.encode([(0x00080008, "CS", b"A ")], syntax)
    begins = datasets.encode([(0x00081140, inside, deep)], syntax, {0x00081140: 0xFFFFFFFF})
    assert read(first + begins + datasets.valid(syntax), syntax) is None


@pytest.mark.parametrize("tag", [0x00080018, 0x0008103E, 0x00081140, 0x00191001])
@pytest.mark.parametrize("vr", ["UN", "UT", "OB"])
def test_four_gigabytes_that_are_not_there_take_no_memory(tag: int, vr: str) -> None:
    elements = [(0x00080016, "UI", b"1.2.3\0"), (tag, vr, bytes(1000))]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read(datasets.encode(elements, ExplicitVRLittleEndian, {tag: 0xFFFFFFF0}), ExplicitVRLittleEndian) is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


@pytest.mark.filterwarnings("ignore:Unknown encoding:UserWarning")
@pytest.mark.parametrize("tag", [0x00080005, 0x00080018, 0x00280010])
@pytest.mark.parametrize("vr", ["FD", "US"])
def test_a_value_of_a_length_that_its_vr_cannot_have_is_refused(tag: int, vr: str) -> None:
    elements = [element for element in datasets.decoded() if element[0] != tag]
    wrong = datasets.encode(sorted([*elements, (tag, vr, b"\1\2\3")]), ExplicitVRLittleEndian)
    assert read(wrong, ExplicitVRLittleEndian) is None


def read_quickly(data: bytes, syntax: str) -> Header | None:
    try:
        with as_received():
            return read_beginning(data, syntax)
    except UnreadableError:
        return None


@pytest.mark.parametrize("syntax", datasets.SYNTAXES)
def test_the_quick_way_finds_what_the_library_finds(syntax: str) -> None:
    data = datasets.valid(syntax)
    quick = read_quickly(data, syntax)
    assert quick in {None, read(data, syntax)}
    assert (quick is None) == (syntax in {DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian})


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_an_image_of_a_known_series_is_not_taken_for_another(syntax: str) -> None:
    """One value that differs, be it the character set, makes another header; a UID that is none makes no header."""
    elements = datasets.decoded()
    assert read_quickly(datasets.valid(syntax), syntax) is not None
    for tag, vr, value in (
        (0x00080005, "CS", b"ISO_IR 192"),
        (0x00080018, "UI", b"1.2.3.4\0"),
        (0x00100010, "PN", b"M\xc3\xbcller"),
        (0x00100020, "LO", b"4711"),
        (0x0020000D, "UI", b"1.2.3.5\0"),
        (0x00280010, "US", b"\0\0"),
    ):
        others = [element for element in elements if element[0] != tag]
        data = datasets.encode(sorted([*others, (tag, vr, value)]), syntax)
        for _ in range(2):  # the second time from what is remembered
            assert read_quickly(data, syntax) == read(data, syntax)
    for value in (b"", b"\0\0", b"1.2\\1.3\0", b"1.2.\xe4\0"):
        others = [element for element in elements if element[0] != 0x00080018]
        assert read_quickly(datasets.encode(sorted([*others, (0x00080018, "UI", value)]), syntax), syntax) is None


def test_a_first_element_that_may_be_read_in_two_ways_is_left_to_the_library() -> None:
    """The library takes implicit VR for explicit where the length looks like a VR: the quick way must not differ."""
    victim, attacker = datasets.valid(ImplicitVRLittleEndian), datasets.valid(ExplicitVRLittleEndian)
    hidden = attacker.replace(b"1.2.826", b"1.2.999")
    length = int.from_bytes(b"OB\0\0", "little")
    crafted = b"\x08\0\x01\0OB\0\0" + (4).to_bytes(4, "little") + bytes(4) + hidden
    crafted = crafted[: 8 + length].ljust(8 + length, b"\0") + victim
    assert read_quickly(crafted, ImplicitVRLittleEndian) is None


@settings(max_examples=1500, deadline=None)
@given(
    st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian]),
    st.lists(st.tuples(st.integers(0, 4000), st.binary(min_size=1, max_size=4)), max_size=4),
    st.integers(0, 4000),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_whatever_is_written_over_it_the_quick_way_finds_the_same_or_leaves_it(
    syntax: str, changes: list[tuple[int, bytes]], cut: int
) -> None:
    whole = datasets.valid(syntax)
    assert read_quickly(whole, syntax) is not None  # its values are remembered
    data = bytearray(whole)
    for place, new in changes:
        start = place % len(data)
        data[start : start + len(new)] = new
    changed = bytes(data[: len(data) - (cut if cut < 200 else 0)])
    for _ in range(2):
        quick = read_quickly(changed, syntax)
        assert quick is None or quick == read(changed, syntax)
