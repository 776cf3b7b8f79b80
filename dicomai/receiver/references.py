"""What the attribute list of an N-message must hold, and the instances that it refers to (PS3.7 10.1, PS3.3 10.8)."""

from collections.abc import Iterator

from pydicom.dataset import Dataset
from pydicom.tag import Tag

from dicomai.errors import UnreadableError
from dicomai.receiver.services import Answer, Request
from dicomai.store import checked_uid

SUCCESS = 0x0000
"""Status (PS3.7 C.1.1): it is written down."""

DUPLICATE = 0x0111
"""Status (PS3.7 C.5.7): something of this UID is here already."""

INVALID_INSTANCE = 0x0117
"""Status (PS3.7 C.5.12): the SOP Instance UID is none."""

MISSING_ATTRIBUTE = 0x0120
"""Status (PS3.7 C.5.13): a required attribute is not there."""

MISSING_VALUE = 0x0121
"""Status (PS3.7 C.5.14): a required attribute has no value."""

INVALID_VALUE = 0x0106
"""Status (PS3.7 C.5.11): an attribute's value is not one that it may have."""


class RefusedError(Exception):
    """An attribute list that cannot be taken.

    Attributes:
        answer: what the requestor is told.
    """

    def __init__(self, status: int, comment: str) -> None:
        super().__init__(comment)
        self.answer = Answer(status, comment[:64])


def value(ds: Dataset, keyword: str) -> object:
    """Give the value of an attribute of type 1.

    Raises:
        RefusedError: it is missing or empty.
    """
    element = ds.get(Tag(keyword))
    if element is None:
        raise RefusedError(MISSING_ATTRIBUTE, f"{keyword} is missing")
    if element.is_empty:
        raise RefusedError(MISSING_VALUE, f"{keyword} has no value")
    return element.value


def uid(ds: Dataset, keyword: str) -> str:
    """Give a UID of type 1.

    Raises:
        RefusedError: it is missing, empty, or no UID.
    """
    try:
        return checked_uid(str(value(ds, keyword)), keyword)
    except UnreadableError as error:
        raise RefusedError(INVALID_VALUE, f"{keyword} is no UID") from error


def items(ds: Dataset, keyword: str) -> Iterator[Dataset]:
    """Go through the items of a sequence; there are none where it is missing or empty.

    Raises:
        RefusedError: it is no sequence.
    """
    found = ds.get(keyword) or ()
    for item in found if not isinstance(found, str | bytes) else (found,):
        if not isinstance(item, Dataset):
            raise RefusedError(INVALID_VALUE, f"{keyword} is no sequence")
        yield item


def own_uid(request: Request) -> str:
    """Give the SOP Instance UID, which the requestor has to make (PS3.4 F.7.2.1.2, R.3.2.1.2).

    Raises:
        RefusedError: there is none.
    """
    ds = Dataset()
    ds.SOPInstanceUID = request.sop_instance_uid
    try:
        return uid(ds, "SOPInstanceUID")
    except RefusedError as error:
        raise RefusedError(INVALID_INSTANCE, "The request has no usable SOP Instance UID") from error
