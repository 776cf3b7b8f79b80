"""Command sets of DIMSE messages as they are encoded; what the library reads of a broken one is anybody's guess."""

import struct
from collections.abc import Iterator


def elements(encoded: bytes | bytearray) -> Iterator[tuple[int, bytes]]:
    """Take a command set apart: Implicit VR Little Endian, group 0000 alone, no sequences (PS3.7 6.3.1).

    Args:
        encoded: the command set.

    Returns:
        The element number and the value of each element.

    Raises:
        ValueError: it is none.
    """
    offset = 0
    while offset < len(encoded):
        if offset + 8 > len(encoded):
            raise ValueError("a command set that ends inside an element")
        group, tag, length = struct.unpack_from("<HHL", encoded, offset)
        offset += 8
        if group or offset + length > len(encoded):
            raise ValueError("a command set with an element that does not belong there")
        yield tag, bytes(encoded[offset : offset + length])
        offset += length
