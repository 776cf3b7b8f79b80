"""The body of a request as it comes off the wire (RFC 9112 6 and 7): in blocks, never whole."""

import io
import re
from collections.abc import Iterator
from email.message import Message
from http import HTTPStatus

from dicomai.errors import DicomaiError

BLOCK = 128 * 1024
"""The most bytes of a body that are in memory at once, and then some."""

_LONGEST_LINE = 4096
_MOST_TRAILERS = 100


class RequestError(DicomaiError):
    """The request gets this status of HTTP, and a sentence."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        """Say no.

        Args:
            status: the answer's.
            sentence: what is wrong, and what to do.
        """
        super().__init__(sentence)
        self.status = status


class Body:
    """The body of one request; iterate over it once, to its end."""

    def __init__(self, headers: Message, stream: io.BufferedIOBase) -> None:
        """Judge how the body is framed; nothing is read yet.

        Args:
            headers: of the request.
            stream: what stands after them.

        Raises:
            RequestError: its length is not said, or said twice, so that nobody can tell where it ends.
        """
        self._stream = stream
        lengths, codings = headers.get_all("Content-Length", []), headers.get_all("Transfer-Encoding", [])
        if not lengths and not codings:
            raise RequestError(
                HTTPStatus.LENGTH_REQUIRED, "The request has no body; send Content-Length or chunked transfer encoding."
            )
        if codings and [str(coding).strip().lower() for coding in codings] != ["chunked"]:
            raise RequestError(HTTPStatus.NOT_IMPLEMENTED, "The one transfer encoding that is taken is 'chunked'.")
        if len(lengths) + len(codings) != 1 or not all(re.fullmatch("[0-9]{1,18}", str(size)) for size in lengths):
            raise RequestError(
                HTTPStatus.BAD_REQUEST, "Where the body ends is not clear; send one Content-Length or one encoding."
            )
        self._length = int(lengths[0]) if lengths else None

    def __iter__(self) -> Iterator[bytes]:
        """Give the blocks as they come.

        Raises:
            RequestError: the connection broke off or stood still, or a chunk is malformed.
        """
        if self._length is not None:
            yield from self._read(self._length)
            return
        while size := self._chunk_size():
            yield from self._read(size)
            if self._line():
                raise RequestError(HTTPStatus.BAD_REQUEST, "A chunk is longer than it says; send the request again.")
        for _ in range(_MOST_TRAILERS):
            if not self._line():
                return
        raise RequestError(HTTPStatus.BAD_REQUEST, "The body has too many trailers; leave them out.")

    def _read(self, count: int) -> Iterator[bytes]:
        while count:
            try:
                block = self._stream.read1(min(count, BLOCK))
            except OSError as error:
                raise _broken() from error
            if not block:
                raise _broken()
            count -= len(block)
            yield block

    def _chunk_size(self) -> int:
        size = self._line().partition(b";")[0].strip(b" \t")  # what follows are extensions
        if not re.fullmatch(b"[0-9A-Fa-f]{1,15}", size):
            raise RequestError(HTTPStatus.BAD_REQUEST, "A chunk does not say its size; send the request again.")
        return int(size, 16)

    def _line(self) -> bytes:
        try:
            line = self._stream.readline(_LONGEST_LINE)
        except OSError as error:
            raise _broken() from error
        if len(line) < _LONGEST_LINE and not line.endswith(b"\n"):
            raise _broken()
        if not line.endswith(b"\r\n"):
            raise RequestError(HTTPStatus.BAD_REQUEST, "A chunk does not end where it says; send the request again.")
        return line[:-2]


def _broken() -> RequestError:
    return RequestError(HTTPStatus.BAD_REQUEST, "The body broke off; what had come whole is kept, send all again.")
