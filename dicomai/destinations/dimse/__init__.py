"""C-STORE SCU (PS3.4 Annex B) and Verification SCU (Annex A) on pynetdicom."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from functools import partial

from dicomai.config import DicomDestination, TlsSettings
from dicomai.destinations.base import Accepted, Outgoing, Refused, Reported, offer
from dicomai.destinations.dimse import commitment
from dicomai.destinations.dimse.association import Peer
from dicomai.destinations.dimse.find import Finder, Place, finding
from dicomai.destinations.dimse.storage import Answer, associate, batches, contexts_of
from dicomai.errors import (
    ConfigurationError,
    DicomaiError,
    NoAssociationError,
    NotAdmittedError,
    NotKeptError,
    RejectedError,
    StoreError,
    UnreadableError,
)
from dicomai.study import Identity
from dicomai.tls import client_args

_VERIFICATION = ("1.2.840.10008.1.1", "1.2.840.10008.1.2")
_DUPLICATE = 0x0111


class DimseDestination:
    """A Storage SCP, such as a PACS."""

    def __init__(
        self, settings: DicomDestination, *, calling_ae: str, timeout: float, tls: TlsSettings | None = None
    ) -> None:
        """Make the destination; the association is requested by `send`.

        Args:
            settings: the entry of the configuration.
            calling_ae: the node's AE title.
            timeout: seconds without any progress after which an attempt ends.
            tls: the section `[tls]`.

        Raises:
            ConfigurationError: a file of `[tls]` is missing or wrong.
        """
        self._peer = Peer(settings, calling_ae, timeout, tls or TlsSettings())
        client_args(self._peer.tls, settings)  # what is wrong with the files is to be said now, not at the first send

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self._peer.settings.name

    @property
    def max_age(self) -> float | None:
        """Seconds after which a result is too old to be sent; None where it never is."""
        return self._peer.settings.max_age

    @property
    def withdraws_superseded(self) -> bool:
        """Whether it is told by a rejection note of a result that another has taken the place of."""
        return self._peer.settings.withdraw_superseded

    @property
    def verify_timeout(self) -> float | None:
        """Seconds for an accepted object to be shown by C-FIND; None where it is not asked."""
        settings = self._peer.settings
        return settings.verify_timeout if settings.verify == "find" else None

    @property
    def ae_title(self) -> str:
        """The destination's AE title."""
        return self._peer.settings.ae_title

    @property
    def commitment_timeout(self) -> float | None:
        """Seconds for its report after it was asked for storage commitment; None where it is not asked."""
        settings = self._peer.settings
        return settings.commitment_timeout if settings.commitment else None

    @property
    def waits_for_source(self) -> bool:
        """Whether a result is sent only once the images are there of which it was made."""
        return self._peer.settings.wait_for_source

    @property
    def checks_patient(self) -> bool:
        """Whether it is asked, before anything of a delivery is sent, whose the study is there."""
        return self._peer.settings.check_patient

    def reach(self) -> None:
        """Ask by C-ECHO whether the destination is there; one that admits us, and be it to refuse the echo, is.

        Raises:
            UnreachableError: it is not.
            NotAdmittedError: it has no association with us, until a person corrects that.
        """
        try:
            with self._called(), associate(self._peer, [_VERIFICATION]) as link:
                link.echo()
        except NotAdmittedError:
            raise
        except RejectedError:
            return

    def whereabouts(self, objects: Sequence[Outgoing]) -> dict[str, str | None]:
        """Say by C-FIND, by SOP Instance UID, how accepted objects are filed: '' as they were sent, None not at all.

        Raises:
            UnreachableError: no connection, it broke, or the destination cannot answer for now.
            RejectedError: the destination offers no C-FIND in the Study Root, or refuses the query.
        """
        with self._finding("What was accepted cannot be looked for") as finder:
            return finder.whereabouts([Place.of(outgoing) for outgoing in objects])

    def patients(self, study_instance_uid: str) -> list[Identity]:
        """Say by C-FIND whose a study is shown to be: each patient under whom it is shown, once.

        Raises:
            UnreachableError: no connection, it broke, or the destination cannot answer for now.
            RejectedError: the destination offers no C-FIND in the Study Root, or refuses the query.
        """
        with self._finding("Whose the study is there cannot be asked (check_patient)") as finder:
            return finder.patients(study_instance_uid)

    def lacking(self, series: Sequence[tuple[str, str, int]]) -> list[str]:
        """Give the UIDs of the series (study, series, number of images) of which C-FIND shows less.

        Raises:
            UnreachableError: no connection, it broke, or the destination cannot answer for now.
            RejectedError: the destination offers no C-FIND in the Study Root, or refuses the query.
        """
        with self._finding("The images behind the result cannot be looked for") as finder:
            return [uid for study, uid, images in series if finder.lacks(study, uid, images)]

    def request_commitment(
        self, objects: Sequence[Outgoing], transaction_uid: str, reported: Reported, *, listens: bool = True
    ) -> None:
        """Ask for storage commitment (PS3.4 J.3.2), and listen for a while where the report may come at once.

        Raises:
            UnreachableError: no connection, it broke, or the destination cannot be asked for now.
            RejectedError: the destination offers no Storage Commitment, or refuses the request.
        """
        with self._called():
            commitment.request(self._peer, objects, transaction_uid, reported, listens=listens)

    def send(self, objects: Sequence[Outgoing], accepted: Accepted, refused: Refused | None = None) -> None:
        """Send objects in the order given, over as few associations as 128 presentation contexts allow.

        Each goes in its own transfer syntax, byte for byte; in an uncompressed one where the destination does not take
        its own. Nothing goes over an association unless the destination has accepted a presentation context for all
        that is to. What it says to have already (0111) is looked for by C-FIND; what comes after goes over a further
        association.

        Raises:
            NoAssociationError: no association could be had for now.
            NotKeptError: the destination cannot make sense of an object (Cxxx).
            UnreachableError: no connection, it broke, or the destination cannot take the object for now.
            RejectedError: the destination refuses the association or an object for good.
        """
        left = list(objects)

        def took(outgoing: Outgoing, status: int, meaning: str) -> None:
            accepted(outgoing, status, meaning)
            left.remove(outgoing)

        def turned_down(outgoing: Outgoing, error: DicomaiError) -> None:
            if refused is None:
                raise error
            refused(outgoing, error)
            left.remove(outgoing)

        for outgoing, error in _unreadable(objects) if refused is not None else ():
            turned_down(outgoing, error)
        while left:
            batch = next(batches(left))
            try:
                with self._called():
                    duplicate = self._send(batch, took, turned_down, takes_all=refused is None)
            except NotAdmittedError:
                raise
            except RejectedError as none_taken:  # no context of all that was proposed is accepted
                for outgoing in batch:
                    turned_down(outgoing, none_taken)
            except StoreError as error:  # maybe in the middle of it: the next ones go over another association
                turned_down(left[0], error)
            else:
                if duplicate is not None:
                    offer(left[0], partial(self._duplicate, duplicate), took, turned_down)

    @contextlib.contextmanager
    def _finding(self, why_not: str) -> Iterator[Finder]:
        try:
            with self._called(), finding(self._peer) as finder:
                yield finder
        except NotAdmittedError:
            raise
        except RejectedError as error:
            raise RejectedError(f"{why_not}: {error}") from error

    @contextlib.contextmanager
    def _called(self) -> Iterator[None]:
        try:
            yield
        except ConfigurationError as error:  # certificates are replaced one file after the other
            raise NoAssociationError(f"{self._peer} is not called: {error}") from error

    def _duplicate(self, answer: Answer, outgoing: Outgoing) -> tuple[int, str]:
        return _DUPLICATE, self._looked_for(outgoing, answer)

    def _looked_for(self, outgoing: Outgoing, duplicate: Answer) -> str:
        """Make sure that an object of which the destination says that it has it is there; gives what to say of it.

        Raises:
            NotKeptError: it does not show it, yet or at all.
            RejectedError: the destination offers no C-FIND.
            UnreachableError: the destination cannot answer for now.
        """
        said = duplicate.error(f"SOP Instance {outgoing.sop_instance_uid}", self._peer)
        with self._finding(f"{said} C-FIND cannot tell whether it is there") as finder:
            where = finder.whereabouts([Place.of(outgoing)])[outgoing.sop_instance_uid]
        if where is None:
            raise NotKeptError(f"{said} C-FIND does not show it there.")
        return f"{duplicate.meaning}; C-FIND shows it there{', ' if where else ''}{where}"

    def _send(
        self, objects: Sequence[Outgoing], accepted: Accepted, refused: Refused, *, takes_all: bool
    ) -> Answer | None:
        """Send over one association; gives the answer to the first object that is said to be there already."""
        with associate(self._peer, contexts_of(objects)) as link:
            kinds = dict.fromkeys((o.sop_class_uid, o.transfer_syntax_uid) for o in objects) if takes_all else {}
            for sop_class_uid, transfer_syntax_uid in kinds:
                link.taken_in(sop_class_uid, transfer_syntax_uid)
            for outgoing in objects:
                try:
                    answer = link.store(outgoing)
                    if answer.is_duplicate:
                        return answer
                    if not answer.is_accepted:
                        raise answer.error(f"SOP Instance {outgoing.sop_instance_uid}", self._peer)
                except (RejectedError, NotKeptError) as error:
                    refused(outgoing, error)
                else:
                    accepted(outgoing, answer.status, answer.meaning)
        return None


def _unreadable(objects: Sequence[Outgoing]) -> Iterator[tuple[Outgoing, DicomaiError]]:
    for outgoing in objects:
        try:
            _ = outgoing.transfer_syntax_uid
        except (StoreError, UnreadableError) as error:
            yield outgoing, error


def echo(settings: DicomDestination, *, calling_ae: str, timeout: float, tls: TlsSettings | None = None) -> float:
    """Verify a destination with C-ECHO.

    Returns:
        Seconds from the request for an association to the answer.

    Raises:
        ConfigurationError: a file of `[tls]` is missing or wrong.
        UnreachableError: no connection, or no answer.
        RejectedError: the association, or Verification, is refused for good.
    """
    peer = Peer(settings, calling_ae, timeout, tls or TlsSettings())
    start = time.monotonic()
    with associate(peer, [_VERIFICATION]) as link:
        answer = link.echo()
        seconds = time.monotonic() - start
    if not answer.is_accepted:
        raise answer.error("C-ECHO", peer)
    return seconds
