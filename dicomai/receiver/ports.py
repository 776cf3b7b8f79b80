"""What the receiver needs from the rest of the node."""

from collections.abc import Collection, Iterable
from typing import Protocol

from dicomai.association import AssociationEnd
from dicomai.filemeta import FileMeta


class Intake(Protocol):
    """Where instances go, and where associations are written down."""

    def has_room(self) -> bool:
        """Tell whether the disk is above its low-water mark."""

    def elsewhere(self, address: str) -> tuple[int, int]:
        """Count the associations that other processes have open: in all, and from an address."""

    def open_association(self, calling_ae: str, address: str) -> int:
        """Write down an accepted association; gives its number."""

    def close_association(self, association: int, outcome: AssociationEnd) -> None:
        """Write down how an association ended."""

    def renew(self, associations: Collection[int]) -> None:
        """Say that these associations are still open."""

    def accept(self, meta: FileMeta, fragments: Iterable[bytes | memoryview], association: int) -> object:
        """Take in one instance; returns when it is durable and indexed.

        Args:
            meta: what was announced of it.
            fragments: the data set's bytes as received.
            association: the association that brings it.

        Raises:
            StorageFullError: there is no room.
            StoreError: disk or index failed.
            NotAcceptedError: the data set is not of the announced SOP class or instance.
            UnreadableError: it cannot be understood.
        """
