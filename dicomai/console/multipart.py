"""`multipart/related` (RFC 2046 5.1, RFC 2387) as STOW-RS sends it: parts in a stream, never one of them whole."""

import email
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus

from dicomai.console.body import RequestError

_LONGEST_BOUNDARY = 256  # RFC 2046 5.1.1 has 70; Orthanc sends 73
_LONGEST_HEADER = 16 * 1024
_LONGEST_PADDING = 256
_LONGEST_SURROUNDINGS = 64 * 1024  # what may stand before the first part and after the last


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the body.

    Attributes:
        headers: its own.
        blocks: its content as it comes; what is left of it goes when the next part is asked for.
    """

    headers: Message
    blocks: Iterator[bytes]


def boundary_of(headers: Message) -> bytes:
    """Give the boundary between the parts of a request.

    Raises:
        RequestError: the request is not `multipart/related; type="application/dicom"`, or has no usable boundary.
    """
    kind, root, boundary = headers.get_content_type(), headers.get_param("type"), headers.get_param("boundary")
    if kind != "multipart/related" or str(root).lower() != "application/dicom" or "Content-Encoding" in headers:
        raise RequestError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            'What is taken is multipart/related; type="application/dicom", without a Content-Encoding; send that.',
        )
    if not isinstance(boundary, str) or not re.fullmatch(rf"[ -~]{{1,{_LONGEST_BOUNDARY}}}", boundary):
        raise RequestError(
            HTTPStatus.BAD_REQUEST, f"The boundary has to have 1 to {_LONGEST_BOUNDARY} characters; send such a one."
        )
    return boundary.encode("ascii")


def read_parts(blocks: Iterable[bytes], boundary: bytes) -> Iterator[Part]:
    """Take a body apart.

    Args:
        blocks: the body, cut anywhere.
        boundary: between its parts.

    Raises:
        RequestError: it is no such body, or ends before its last boundary.
    """
    delimiter = b"\r\n--" + boundary
    scanner = _Scanner(blocks)
    _leave(scanner.until(delimiter))
    while not scanner.at_end():
        yield Part(scanner.headers(), scanner.until(delimiter))
        while not scanner.has_passed:  # whoever took the part may have left some of it, and closed its blocks
            for _ in scanner.until(delimiter):
                pass
    _leave(scanner.rest())


class _Scanner:
    """A window on a stream of blocks."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._window = b"\r\n"  # the first boundary may stand at the very start, where there is no line before it
        self.has_passed = False  # the delimiter that ends what is being read

    def until(self, delimiter: bytes) -> Iterator[bytes]:
        """Give what stands before the delimiter, and step over it."""
        keep = len(delimiter) - 1  # so many bytes may be the start of it
        while (at := self._window.find(delimiter)) < 0:
            if len(self._window) > keep:
                block, self._window = self._window[:-keep], self._window[-keep:]
                yield block
            self._more()
        block, self._window = self._window[:at], self._window[at + len(delimiter) :]
        self.has_passed = True
        if block:
            yield block

    def at_end(self) -> bool:
        """Step over what follows a boundary in its line; tells whether it was the last one."""
        while len(self._window) < 2:
            self._more()
        if self._window.startswith(b"--"):
            self._window = self._window[2:]
            return True
        if self._take(b"\r\n", _LONGEST_PADDING).strip(b" \t"):
            raise RequestError(
                HTTPStatus.BAD_REQUEST, "The boundary stands inside of a part; send the request with another one."
            )
        return False

    def headers(self) -> Message:
        """Read the headers of a part, which end at an empty line."""
        self.has_passed = False
        while len(self._window) < 2:
            self._more()
        if self._window.startswith(b"\r\n"):
            self._window = self._window[2:]
            return Message()
        return email.message_from_bytes(self._take(b"\r\n\r\n", _LONGEST_HEADER))

    def rest(self) -> Iterator[bytes]:
        """Give what is left."""
        yield self._window
        yield from self._blocks

    def _take(self, end: bytes, limit: int) -> bytes:
        """Take what stands before an end that has to come soon."""
        while (at := self._window.find(end)) < 0 and len(self._window) <= limit:
            self._more()
        if not 0 <= at <= limit:
            raise RequestError(HTTPStatus.BAD_REQUEST, f"The header of a part has more than {limit} bytes; shorten it.")
        taken, self._window = self._window[:at], self._window[at + len(end) :]
        return taken

    def _more(self) -> None:
        block = next(self._blocks, None)
        if block is None:
            raise RequestError(
                HTTPStatus.BAD_REQUEST, "The body ends before its last boundary; what had come whole is kept, send all."
            )
        self._window += block


def _leave(blocks: Iterable[bytes]) -> None:
    """Read over what is no part."""
    size = 0
    for block in blocks:
        size += len(block)
        if size > _LONGEST_SURROUNDINGS:
            raise RequestError(
                HTTPStatus.BAD_REQUEST, "The body has much in it that is no part; send what its boundary says."
            )
