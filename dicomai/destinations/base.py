"""Destination: where results go. What every transport has in common."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import BinaryIO, Protocol, runtime_checkable

from dicomai.errors import DicomaiError, NotAdmittedError, NotKeptError, RejectedError, StoreError, UnreadableError
from dicomai.filemeta import read_meta
from dicomai.study import UNREADABLE, Identity


@dataclass(frozen=True)
class Outgoing:
    """An object to be sent. Its bytes are frozen, every attempt sends the same; they are read only while it is sent.

    Attributes:
        sop_class_uid: SOP Class UID (0008,0016).
        sop_instance_uid: SOP Instance UID (0008,0018).
        open: opens a DICOM file (PS3.10) for reading, at its start: preamble, file meta information, data set.
    """

    sop_class_uid: str
    sop_instance_uid: str
    open: Callable[[], BinaryIO] = field(repr=False)

    @cached_property
    def transfer_syntax_uid(self) -> str:
        """Transfer Syntax UID (0002,0010), read when it is first asked for.

        Raises:
            StoreError: the file cannot be read.
            UnreadableError: it does not say it.
        """
        try:
            with self.open() as file:
                return str(read_meta(file).TransferSyntaxUID)
        except (OSError, MemoryError) as error:
            raise StoreError(
                f"SOP Instance {self.sop_instance_uid} cannot be read ({type(error).__name__}): another attempt may"
                " succeed; look at the storage folder if this goes on."
            ) from error
        except UNREADABLE as error:
            raise UnreadableError(
                f"SOP Instance {self.sop_instance_uid} is no DICOM file that says its transfer syntax"
                f" ({type(error).__name__}): look into the storage folder."
            ) from error


Accepted = Callable[[Outgoing, int, str], None]
"""Called as soon as the destination has accepted an object: the object, the status (0x0000, a warning, or 0x0111 for
what was found there), what the status means ('' for success)."""


Refused = Callable[[Outgoing, DicomaiError], None]
"""Called with an object that cannot be handed over, and why; what comes after it is offered all the same."""


def offer(
    outgoing: Outgoing, store: Callable[[Outgoing], tuple[int, str]], accepted: Accepted, refused: Refused | None
) -> None:
    """Offer an object.

    Args:
        outgoing: the object.
        store: hands it over; gives the status and what that means.
        accepted: called where it was taken.
        refused: called where it was not, for a reason of its own; without it that reason is raised.
    """
    try:
        status, meaning = store(outgoing)
    except NotAdmittedError:  # which is the fault of no object
        raise
    except (RejectedError, NotKeptError, StoreError, UnreadableError) as error:
        if refused is None:
            raise
        refused(outgoing, error)
    else:
        accepted(outgoing, status, meaning)


@dataclass(frozen=True, slots=True)
class Report:
    """What a destination says of a storage commitment that it was asked for (PS3.4 Table J.3.3-1).

    Attributes:
        transaction_uid: Transaction UID (0008,1195).
        committed: SOP Instance UIDs of what it will keep.
        failed: Failure Reason (0008,1197) by SOP Instance UID of what it will not; None where it gave none.
    """

    transaction_uid: str
    committed: frozenset[str]
    failed: Mapping[str, int | None]


Reported = Callable[[Report], bool]
"""Called with a report; tells whether the transaction is one of ours."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of asking whether a destination is there.

    Attributes:
        seconds: from the request for a connection to the answer.
        remark: what a person should look at all the same, in a sentence; empty if nothing.
    """

    seconds: float
    remark: str = ""


class Destination(Protocol):
    """A way to hand objects over."""

    @property
    def name(self) -> str:
        """The name in the configuration."""

    @property
    def max_age(self) -> float | None:
        """Seconds after which a result is too old to be sent; None where it never is."""

    @property
    def withdraws_superseded(self) -> bool:
        """Whether it is told by a rejection note of a result that another has taken the place of."""

    @property
    def verify_timeout(self) -> float | None:
        """Seconds for an accepted object to be shown by the destination; None where it is not asked."""

    def reach(self) -> None:
        """Find out whether the destination can be reached, without sending anything.

        Raises:
            UnreachableError: it cannot.
        """

    def send(self, objects: Sequence[Outgoing], accepted: Accepted, refused: Refused | None = None) -> None:
        """Send objects in the order given; the first that is not accepted ends it, later ones are not sent.

        Args:
            objects: what refers to others comes last.
            accepted: called after each object that was accepted.
            refused: where it is given, what is not accepted for a reason of its own, or cannot be read, is told to it,
                and later ones are sent.

        Raises:
            NoAssociationError: no association could be had for now; nothing was sent.
            NotKeptError: the destination cannot make sense of the object; another try may help, many do not.
            UnreachableError: no connection, it broke, or the destination cannot take the object for now.
            RejectedError: the destination will not have the object, or not from us; another try is of no use.
            StoreError: an object's bytes cannot be had.
        """


@runtime_checkable
class Knowing(Destination, Protocol):
    """A destination that can be asked whose a study is."""

    @property
    def checks_patient(self) -> bool:
        """Whether it is asked, before anything of a delivery is sent, whose the study is there."""

    def patients(self, study_instance_uid: str) -> list[Identity]:
        """Say whose a study is shown to be: each patient under whom it is shown, once; none where it is not shown.

        Raises:
            UnreachableError: no connection, it broke, or the destination cannot answer for now.
            RejectedError: the destination does not answer such questions, or not to us.
        """


@runtime_checkable
class Searchable(Destination, Protocol):
    """A destination that can be searched for what it holds."""

    def whereabouts(self, objects: Sequence[Outgoing]) -> dict[str, str | None]:
        """Say of accepted objects, by SOP Instance UID, how they are filed: '' as they were sent, None not at all.

        Raises:
            UnreachableError: no connection, it broke, or the destination cannot answer for now.
            RejectedError: the destination does not answer such questions, or not to us.
        """


@runtime_checkable
class Archive(Searchable, Protocol):
    """A destination that answers for what it holds, as a PACS does over DIMSE."""

    @property
    def ae_title(self) -> str:
        """Its AE title."""

    @property
    def commitment_timeout(self) -> float | None:
        """Seconds for its report after it was asked for storage commitment; None where it is not asked."""

    @property
    def waits_for_source(self) -> bool:
        """Whether a result is sent only once the images are there of which it was made."""

    def request_commitment(
        self, objects: Sequence[Outgoing], transaction_uid: str, reported: Reported, *, listens: bool = True
    ) -> None:
        """Ask for the commitment of accepted objects.

        Args:
            objects: that it accepted.
            transaction_uid: under which it will report.
            reported: called if the report comes before this is over; it may come later, by another way.
            listens: whether to stay for a while, for a report that comes at once.

        Raises:
            UnreachableError: no connection, it broke, or the destination cannot be asked for now.
            RejectedError: the destination commits to nothing, or not to this.
        """

    def lacking(self, series: Sequence[tuple[str, str, int]]) -> list[str]:
        """Give the UIDs of the series of which the destination shows less.

        Args:
            series: UIDs of study and series, and the number of images that are expected.

        Raises:
            UnreachableError: no connection, it broke, or the destination cannot answer for now.
            RejectedError: the destination does not answer such questions.
        """
