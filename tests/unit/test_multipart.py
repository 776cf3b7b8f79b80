"""Bodies of requests: cut anywhere, framed either way, with whatever bytes in them."""

import io
from collections.abc import Iterable, Iterator
from email.message import Message
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomai.console.body import Body, RequestError
from dicomai.console.multipart import boundary_of, read_parts
from dicomai.console.wado import accepted_syntaxes

BOUNDARY = b"cut here"
DELIMITER = b"\r\n--" + BOUNDARY

# Whatever a file may hold: also what nearly is a boundary, but not a boundary, which a sender has to avoid.
pieces = st.sampled_from([b"\r", b"\n", b"-", b"\r\n--", b"\r\n--cut", b"cut here", b"--cut here", b"\r\n\r\n", b"\0"])
contents = st.lists(st.one_of(pieces, st.binary(max_size=12)), max_size=12).map(b"".join)
contents = contents.filter(lambda data: DELIMITER not in data)


def body_of(parts: Iterable[bytes], head: bytes = b"Content-Type: application/dicom\r\n") -> bytes:
    return b"".join(DELIMITER + b"\r\n" + head + b"\r\n" + part for part in parts)[2:] + DELIMITER + b"--\r\n"


def cut(data: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    at = 0
    for size in cuts:
        if at < len(data):
            yield data[at : at + size]
            at += size
    if at < len(data):
        yield data[at:]


def read_all(body: bytes, read: list[bytes]) -> None:
    """Add each part to those that were read, so that they can be seen after an error."""
    for part in read_parts([body], BOUNDARY):
        read.append(b"".join(part.blocks))  # noqa: PERF401  what came before the error counts


def headers(**values: str) -> Message:
    message = Message()
    for name, value in values.items():
        message[name.replace("_", "-")] = value
    return message


@given(st.lists(contents, min_size=1, max_size=4), st.lists(st.integers(1, 9)))
def test_what_was_put_in_comes_out_wherever_it_is_cut(parts: list[bytes], cuts: list[int]) -> None:
    blocks = cut(body_of(parts), cuts)
    assert [b"".join(part.blocks) for part in read_parts(blocks, BOUNDARY)] == parts


@given(st.lists(contents, min_size=2, max_size=4), st.lists(st.integers(1, 9)), st.integers(0, 3))
def test_what_is_left_of_a_part_is_no_part_of_the_next(parts: list[bytes], cuts: list[int], taken: int) -> None:
    seen = []
    for number, part in enumerate(read_parts(cut(body_of(parts), cuts), BOUNDARY)):
        if number % 2:
            seen.append(b"".join(part.blocks))
        else:
            for _ in zip(range(taken), part.blocks, strict=False):
                pass
            part.blocks.close()  # type: ignore[attr-defined]  # as a generator round it does that is thrown away
    assert seen == parts[1::2]


@given(st.lists(contents, min_size=1, max_size=3), st.data())
def test_a_body_that_ends_too_soon_gives_no_whole_last_part(parts: list[bytes], data: st.DataObject) -> None:
    whole = body_of(parts)
    end = data.draw(st.integers(0, len(whole) - 5))  # before the two dashes
    read: list[bytes] = []
    with pytest.raises(RequestError, match="ends before"):
        read_all(whole[:end], read)
    assert len(read) < len(parts)
    assert read == parts[: len(read)]


def test_preamble_padding_and_epilogue_are_read_over() -> None:
    body = b"one\r\n--cut here \t\r\nX: y\r\n\r\nA\r\n--cut here\r\n\r\nB\r\n--cut here--\r\nmore"
    assert [b"".join(part.blocks) for part in read_parts([body], BOUNDARY)] == [b"A", b"B"]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"--cut here, or not\r\n\r\nA\r\n--cut here--", "stands inside of a part"),
        (b"--cut here\r\nX: " + b"y" * 20_000 + b"\r\n\r\nA\r\n--cut here--", "more than 16384 bytes"),
        (b"--cut here\r\nX: " + b"y" * 20_000, "more than 16384 bytes"),
        (b"--cut here" + b" " * 500 + b"\r\n\r\nA\r\n--cut here--", "more than 256 bytes"),
        (b"x" * 100_000 + b"\r\n--cut here--", "much in it that is no part"),
        (b"--cut here--" + b"x" * 100_000, "much in it that is no part"),
        (b"nothing of the kind", "ends before its last boundary"),
        (b"", "ends before its last boundary"),
    ],
)
def test_what_is_no_such_body_is_refused(body: bytes, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence) as said:
        read_all(body, [])
    assert said.value.status is HTTPStatus.BAD_REQUEST


def test_the_boundary_may_be_quoted() -> None:
    kind = 'multipart/related; type="application/dicom"; boundary="cut here"'
    assert boundary_of(headers(Content_Type=kind)) == BOUNDARY


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/dicom", 415),
        ("multipart/form-data; boundary=x", 415),
        ('multipart/related; type="application/dicom+json"; boundary=x', 415),
        ("multipart/related; boundary=x", 415),
        ("text/plain", 415),
        ('multipart/related; type="application/dicom"', 400),
        ('multipart/related; type="application/dicom"; boundary=""', 400),
        (f'multipart/related; type="application/dicom"; boundary={257 * "x"}', 400),
        ("multipart/related; type=\"application/dicom\"; boundary*=utf-8''x", 400),
    ],
)
def test_another_kind_of_body_is_refused(kind: str, status: int) -> None:
    with pytest.raises(RequestError) as said:
        boundary_of(headers(Content_Type=kind))
    assert said.value.status == status


def test_a_body_that_is_compressed_once_more_is_refused() -> None:
    kind = 'multipart/related; type="application/dicom"; boundary=x'
    with pytest.raises(RequestError, match="without a Content-Encoding"):
        boundary_of(headers(Content_Type=kind, Content_Encoding="gzip"))


def chunked(data: bytes, cuts: Iterable[int]) -> bytes:
    return b"".join(b"%x;a=b\r\n%s\r\n" % (len(one), one) for one in cut(data, cuts) if one) + b"0\r\nX: y\r\n\r\n"


@given(st.binary(max_size=200), st.lists(st.integers(1, 50)))
def test_both_framings_give_the_same_body_and_leave_what_follows(data: bytes, cuts: list[int]) -> None:
    for framing, raw in (
        (headers(Content_Length=str(len(data))), data),
        (headers(Transfer_Encoding="chunked"), chunked(data, cuts)),
    ):
        stream = io.BytesIO(raw + b"next")
        assert b"".join(Body(framing, stream)) == data
        assert stream.read() == b"next"


@given(st.binary(min_size=1, max_size=60), st.lists(st.integers(1, 20)), st.data())
def test_a_body_that_breaks_off_is_never_taken_for_whole(data: bytes, cuts: list[int], drawn: st.DataObject) -> None:
    for framing, raw in (
        (headers(Content_Length=str(len(data))), data),
        (headers(Transfer_Encoding="chunked"), chunked(data, cuts)),
    ):
        end = drawn.draw(st.integers(0, len(raw) - 1))
        with pytest.raises(RequestError):
            b"".join(Body(framing, io.BytesIO(raw[:end])))


@pytest.mark.parametrize(
    ("framing", "status"),
    [
        ([], 411),
        ([("Content-Length", "1"), ("Content-Length", "2")], 400),
        ([("Content-Length", "1"), ("Transfer-Encoding", "chunked")], 400),
        ([("Content-Length", "-1")], 400),
        ([("Content-Length", "٣")], 400),
        ([("Transfer-Encoding", "gzip, chunked")], 501),
    ],
)
def test_a_body_of_which_nobody_knows_the_end_is_refused(framing: list[tuple[str, str]], status: int) -> None:
    message = Message()
    for name, value in framing:
        message[name] = value
    with pytest.raises(RequestError) as said:
        Body(message, io.BytesIO())
    assert said.value.status == status


@pytest.mark.parametrize(
    "raw", [b"x\r\n", b"-1\r\n", b"1\r\nABC\r\n", b"5" * 20 + b"\r\n", b"0" * 5000, b"1\nA\n0\n\n"]
)
def test_a_malformed_chunk_is_refused(raw: bytes) -> None:
    with pytest.raises(RequestError):
        b"".join(Body(headers(Transfer_Encoding="chunked"), io.BytesIO(raw)))


@pytest.mark.parametrize(
    ("accept", "syntaxes"),
    [
        ([], {"*"}),
        (["*/*"], {"*"}),
        (["text/html, multipart/*;q=0.5"], {"*"}),
        (['multipart/related; type="application/dicom"'], {"*"}),
        (['multipart/related; type="application/dicom"; transfer-syntax=*'], {"*"}),
        (['multipart/related; type="application/dicom"; transfer-syntax=1.2.3, multipart/related;transfer-syntax=1.2'],
         {"1.2.3", "1.2"}),
    ],
)  # fmt: skip
def test_what_a_reader_takes_is_understood(accept: list[str], syntaxes: set[str]) -> None:
    assert accepted_syntaxes(accept) == syntaxes


@pytest.mark.parametrize(
    "accept", ["application/dicom+json", 'multipart/related; type="image/jpeg"', "*/*;q=0", "image/png, text/html"]
)
def test_a_reader_that_takes_nothing_we_have_is_told_so(accept: str) -> None:
    with pytest.raises(RequestError) as said:
        accepted_syntaxes([accept])
    assert said.value.status is HTTPStatus.NOT_ACCEPTABLE
