"""Destination: where results go. What every transport has in common."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An object to be sent, its bytes frozen: every attempt sends the same.

    Attributes:
        sop_class_uid: SOP Class UID (0008,0016).
        sop_instance_uid: SOP Instance UID (0008,0018).
        transfer_syntax_uid: Transfer Syntax UID (0002,0010).
        data: a DICOM file (PS3.10): preamble, file meta information, data set.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data: bytes = field(repr=False)


Accepted = Callable[[Outgoing, int, str], None]
"""Called as soon as the destination has accepted an object: the object, the status (0x0000, or a warning), what the
status means ('' for success)."""


class Destination(Protocol):
    """A way to hand objects over."""

    @property
    def name(self) -> str:
        """The name in the configuration."""

    def send(self, objects: Sequence[Outgoing], accepted: Accepted) -> None:
        """Send objects in the order given; the first that is not accepted ends it, later ones are not sent.

        Args:
            objects: what refers to others comes last.
            accepted: called after each object that was accepted.

        Raises:
            UnreachableError: no connection, it broke, or the destination cannot take the object for now.
            RejectedError: the destination will not have the object, or not from us; another try is of no use.
        """
