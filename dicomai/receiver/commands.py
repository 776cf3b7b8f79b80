"""Command sets of C-STORE (PS3.7 9.3.1): read from a request, written into its response."""

import struct
from dataclasses import dataclass

from dicomai.commandset import elements
from dicomai.receiver.statuses import Status

_AFFECTED_SOP_CLASS_UID, _COMMAND_FIELD, _MESSAGE_ID, _RESPONDED_TO = 0x0002, 0x0100, 0x0110, 0x0120
_DATA_SET_TYPE, _STATUS, _ERROR_COMMENT, _AFFECTED_SOP_INSTANCE_UID = 0x0800, 0x0900, 0x0902, 0x1000

_C_STORE_RQ, _C_STORE_RSP = 0x0001, 0x8001
_NO_DATA_SET = 0x0101


@dataclass(frozen=True, slots=True)
class Command:
    """What the receiver needs of a command set.

    Attributes:
        is_store: it is a C-STORE request.
        has_data_set: a data set follows.
        message_id: Message ID (0000,0110).
        sop_class_uid: Affected SOP Class UID (0000,0002), empty if there is none.
        sop_instance_uid: Affected SOP Instance UID (0000,1000), empty if there is none.
    """

    is_store: bool
    has_data_set: bool
    message_id: int
    sop_class_uid: str
    sop_instance_uid: str

    @classmethod
    def decode(cls, encoded: bytes | bytearray) -> "Command":
        """Read a command set.

        Raises:
            ValueError: it is none.
        """
        values = dict(elements(encoded))
        number = {
            tag: struct.unpack("<H", values[tag])[0]
            for tag in (_COMMAND_FIELD, _MESSAGE_ID, _DATA_SET_TYPE)
            if len(values.get(tag, b"")) == 2
        }
        if _COMMAND_FIELD not in number or _DATA_SET_TYPE not in number:
            raise ValueError("a command set without Command Field or Command Data Set Type")
        return cls(
            is_store=number[_COMMAND_FIELD] == _C_STORE_RQ and _MESSAGE_ID in number,
            has_data_set=number[_DATA_SET_TYPE] != _NO_DATA_SET,
            message_id=number.get(_MESSAGE_ID, 0),
            sop_class_uid=_uid(values.get(_AFFECTED_SOP_CLASS_UID, b"")),
            sop_instance_uid=_uid(values.get(_AFFECTED_SOP_INSTANCE_UID, b"")),
        )


def store_response(request: Command, status: Status) -> bytes:
    """Write the command set of a C-STORE response (PS3.7 9.3.1.2), Implicit VR Little Endian."""
    elements = [
        (_AFFECTED_SOP_CLASS_UID, _even(request.sop_class_uid, b"\0")),
        (_COMMAND_FIELD, struct.pack("<H", _C_STORE_RSP)),
        (_RESPONDED_TO, struct.pack("<H", request.message_id)),
        (_DATA_SET_TYPE, struct.pack("<H", _NO_DATA_SET)),
        (_STATUS, struct.pack("<H", status.code)),
        (_ERROR_COMMENT, _even(status.comment, b" ")),
        (_AFFECTED_SOP_INSTANCE_UID, _even(request.sop_instance_uid, b"\0")),
    ]
    body = b"".join(struct.pack("<HHL", 0, tag, len(value)) + value for tag, value in elements if value)
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def _uid(value: bytes) -> str:
    return value.decode("ascii", "replace").rstrip("\0 ")


def _even(text: str, padding: bytes) -> bytes:
    value = text.encode("ascii", "replace")
    return value + padding * (len(value) % 2)
