"""Storage commitment as the delivery asks for it: an archive that reports at once, later, by another way, or never."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import build_role, evt
from pynetdicom.dimse_messages import N_ACTION_RSP
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.dsutils import encode

from dicomai.database.commitments_asked import AskedCommitments
from dicomai.database.tables import Acceptance, AskedCommitment
from dicomai.destinations import Destination
from dicomai.destinations.dimse import commitment
from dicomai.destinations.dimse.commitment import PUSH_MODEL, PUSH_MODEL_INSTANCE
from dicomai.receiver.commitment_reports import CommitmentReports
from dicomai.workitem import State
from tests.archive import (
    SEG,
    SR,
    Archive,
    analysed,
    audited,
    classes,
    data_set,
    delivery,
    sent_until_it_ends,
)
from tests.beds import Bed, route
from tests.dimse import associate, node
from tests.synthetic import series

IMPLICIT = "1.2.840.10008.1.2"
HOUR = 3600.0


def report_on(transaction: str, committed: list[tuple[str, str]], failed: Mapping[tuple[str, str], int]) -> Dataset:
    """Make Event Information."""
    ds = data_set(TransactionUID=transaction)
    for keyword, references in (("ReferencedSOPSequence", committed), ("FailedSOPSequence", list(failed))):
        items = [data_set(ReferencedSOPClassUID=one, ReferencedSOPInstanceUID=uid) for one, uid in references]
        if items:
            setattr(ds, keyword, items)
    for item, reason in zip(ds.get("FailedSOPSequence", []), failed.values(), strict=True):
        item.FailureReason = reason
    return ds


@dataclass
class Committer:
    """An archive that is asked for commitment.

    Attributes:
        archive: the rest of it.
        asked: transaction and references of each request.
        says: gives, for the n-th request, what it answers at once; its status alone if that is all.
    """

    archive: Archive = field(default_factory=Archive)
    asked: list[tuple[str, list[tuple[str, str]]]] = field(default_factory=list)
    says: Callable[[int, Any], int] = lambda _number, _event: 0x0000

    def n_action(self, event: Any) -> tuple[int, None]:
        """Take a request."""
        ds = event.action_information
        assert (event.action_type, event.request.RequestedSOPInstanceUID) == (1, PUSH_MODEL_INSTANCE)
        references = [(str(i.ReferencedSOPClassUID), str(i.ReferencedSOPInstanceUID)) for i in ds.ReferencedSOPSequence]
        self.asked.append((str(ds.TransactionUID), references))
        return self.says(len(self.asked), event), None

    @contextlib.contextmanager
    def open(self, **options: Any) -> Iterator["Committer"]:
        """Run."""
        with self.archive.open(n_action=self.n_action, **options):
            yield self

    def destination(self, **keys: Any) -> Destination:
        """The destination that leads here."""
        return self.archive.destination(commitment=True, commitment_timeout=HOUR, **keys)


def report_here(event: Any, ds: Dataset) -> None:
    """Report on the association of a request, without waiting for the answer."""
    message = N_EVENT_REPORT()
    message.MessageID = 7
    message.AffectedSOPClassUID, message.AffectedSOPInstanceUID = UID(PUSH_MODEL), UID(PUSH_MODEL_INSTANCE)
    message.EventTypeID = 2 if "FailedSOPSequence" in ds else 1
    message.EventInformation = BytesIO(encode(ds, is_implicit_vr=True, is_little_endian=True) or b"")
    event.assoc.dimse.send_msg(message, event.context.context_id)


def report_there(port: int, ds: Dataset, calling_ae: str = "PACS", event_type: int | None = None) -> int:
    """Report on a new association, as SCP; gives the status of the answer."""
    role = build_role(PUSH_MODEL, scp_role=True)
    with associate(port, [(PUSH_MODEL, [IMPLICIT])], calling_ae=calling_ae, negotiation=[role]) as assoc:
        (context,) = assoc.accepted_contexts
        assert (context.as_scu, context.as_scp) == (False, True)
        kind = event_type or (2 if "FailedSOPSequence" in ds else 1)
        answer, _ = assoc.send_n_event_report(ds, kind, PUSH_MODEL, PUSH_MODEL_INSTANCE)
    return int(answer.Status)


@contextlib.contextmanager
def hearing(bed: Bed) -> Iterator[int]:
    """Run the receiver to which reports come; gives its port."""
    with node(services=[CommitmentReports(AskedCommitments(bed.database))]) as running:
        yield running.port


class TestOnItsAssociation:
    @pytest.mark.parametrize("when", ["before the answer", "after the answer"])
    def test_a_result_is_delivered_when_all_is_committed(self, result_bed: Bed, when: str) -> None:
        def says(_: int, event: Any) -> int:
            ds = report_on(*pacs.asked[-1], {})
            if when == "before the answer":
                report_here(event, ds)
            else:
                event.assoc.bind(
                    evt.EVT_DIMSE_SENT, lambda sent: isinstance(sent.message, N_ACTION_RSP) and report_here(event, ds)
                )
            return 0x0000

        pacs = Committer(says=says)
        with pacs.open():
            assert result_bed.delivery(pacs.destination()).step()
        row = delivery(result_bed)
        assert (row.state, row.attempt, row.reason) == (State.COMPLETED, 1, "")
        ((_, references),) = pacs.asked
        assert references == [(r.sop_class_uid, r.sop_instance_uid) for r in pacs.archive.server.received]
        assert len(audited(result_bed, "commitment requested")) == len(audited(result_bed, "commitment answered")) == 1

    def test_what_is_not_committed_is_sent_again_alone_and_all_is_asked_for_anew(self, result_bed: Bed) -> None:
        def says(number: int, event: Any) -> int:
            transaction, references = pacs.asked[-1]
            failed = {references[0]: 0x0110} if number == 1 else {}
            report_here(event, report_on(transaction, [r for r in references if r not in failed], failed))
            return 0x0000

        pacs = Committer(says=says)
        with pacs.open():
            lane = result_bed.delivery(pacs.destination())
            lane.step()
            row = delivery(result_bed)
            assert (row.state, [a.status for a in result_bed.rows(Acceptance)]) == (State.IN_PROGRESS, [0])
            assert "(Failure Reason 0110)" in row.reason
            result_bed.turn(60)
            lane.step()
        assert (delivery(result_bed).state, classes(pacs.archive)) == (State.COMPLETED, [SEG, SR, SEG])
        received = pacs.archive.server.received
        assert received[0].data_set == received[2].data_set
        assert [len(references) for _, references in pacs.asked] == [2, 2]
        assert pacs.asked[0][0] != pacs.asked[1][0]

    def test_what_a_report_leaves_out_is_not_committed(self, result_bed: Bed) -> None:
        def says(_: int, event: Any) -> int:
            transaction, references = pacs.asked[-1]
            report_here(event, report_on(transaction, references[:1], {}))
            return 0x0000

        pacs = Committer(says=says)
        with pacs.open():
            sent_until_it_ends(result_bed, result_bed.delivery(pacs.destination()))
        row = delivery(result_bed)
        assert (row.state, classes(pacs.archive)) == (State.CANCELED, [SEG, SR, SR, SR])
        assert row.reason.startswith("Given up after 3 times: Destination 'pacs' accepted and does not commit")
        assert "(not named in the report)" in row.reason


@pytest.fixture
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listen for a moment only, where nothing is said on the association of the request."""
    monkeypatch.setattr(commitment, "_LISTEN_SECONDS", 0.1)


@pytest.mark.usefixtures("in_haste")
class TestOnAnother:
    def test_a_report_that_comes_later_ends_the_wait(self, tmp_path: Path, database_url: str) -> None:
        made = Bed(tmp_path, database_url)
        analysed(made)
        pacs = Committer()
        with hearing(made) as port:
            with pacs.open():
                made.delivery(pacs.destination()).step()
            row = delivery(made)
            assert (row.state, row.lease_owner) == (State.IN_PROGRESS, None)
            assert "has not reported yet" in row.reason
            lane = made.delivery(pacs.destination())  # the node was started again, and the archive is away
            made.turn(60)
            assert not lane.step()
            assert report_there(port, report_on(*pacs.asked[0], {})) == 0x0000
            assert lane.step()
            assert report_there(port, report_on(*pacs.asked[0], {})) == 0x0000  # twice: as if it were the first
        row = delivery(made)
        assert (row.state, classes(pacs.archive), len(pacs.asked)) == (State.COMPLETED, [SEG, SR], 1)
        assert row.attempt - row.looks == 1
        made.close()

    def test_where_reports_come_by_another_association_nobody_listens_on_the_first(
        self, result_bed: Bed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        listened: list[bool] = []
        request = commitment.request

        def asked(*arguments: Any, listens: bool) -> None:
            listened.append(listens)
            request(*arguments, listens=listens)

        monkeypatch.setattr(commitment, "request", asked)
        made, pacs = result_bed, Committer()
        with pacs.open(), hearing(made) as port:
            lane = made.delivery(pacs.destination())
            lane.step()
            assert report_there(port, report_on(*pacs.asked[0], {})) == 0x0000
            lane.step()
            made.take(series(modality="MR", shape=(3, 12, 16), PatientID="Q"))
            made.plan(route())
            while made.worker().step():
                pass
            lane.step()
            made.turn(HOUR)
            lane.step()  # not reported: it may not be able to any more
            assert listened == [True, False, True]

    def test_a_report_is_taken_from_whom_was_asked_and_on_what_was_asked(self, result_bed: Bed) -> None:
        pacs = Committer()
        with pacs.open(), hearing(result_bed) as port:
            result_bed.delivery(pacs.destination()).step()
            transaction, references = pacs.asked[0]
            assert report_there(port, report_on("1.2.3", references, {})) == 0x0110
            assert report_there(port, report_on(transaction, references, {}), calling_ae="OTHER") == 0x0110
            assert report_there(port, report_on(transaction, references, {}), event_type=3) == 0x0113
            assert report_there(port, data_set(RetrieveAETitle="PACS"), event_type=1) == 0x0115
        assert [row.state for row in result_bed.rows(AskedCommitment)] == ["OPEN"]
        assert delivery(result_bed).state == State.IN_PROGRESS

    def test_one_that_never_reports_is_asked_three_times_and_then_a_person(self, result_bed: Bed) -> None:
        pacs = Committer()
        with pacs.open():
            lane = result_bed.delivery(pacs.destination())
            for number in range(1, 4):
                assert lane.step()
                result_bed.turn(HOUR / 2)
                assert not lane.step()
                result_bed.turn(HOUR / 2)
                assert len(pacs.asked) == number
            lane.step()
        row = delivery(result_bed)
        assert (row.state, classes(pacs.archive), len(pacs.asked)) == (State.CANCELED, [SEG, SR], 3)
        assert "did not report within 3600 s whether it commits it, asked 3 times" in row.reason

    def test_one_that_never_reports_is_asked_by_c_find_where_that_is_set(self, result_bed: Bed) -> None:
        pacs = Committer()
        with pacs.open():
            lane = result_bed.delivery(pacs.destination(verify="find"))
            for _ in range(3):
                lane.step()
                assert pacs.archive.queries == []
                result_bed.turn(HOUR)
            lane.step()
        assert (delivery(result_bed).state, len(pacs.asked)) == (State.COMPLETED, 3)
        assert len(pacs.archive.queries) == 3  # two objects, and whose study it is

    def test_a_late_report_on_an_earlier_request_counts(self, result_bed: Bed) -> None:
        pacs = Committer()
        with pacs.open(), hearing(result_bed) as port:
            lane = result_bed.delivery(pacs.destination())
            lane.step()
            result_bed.turn(HOUR)
            lane.step()
            assert report_there(port, report_on(*pacs.asked[0], {})) == 0x0000
            lane.step()
        assert (delivery(result_bed).state, len(pacs.asked)) == (State.COMPLETED, 2)

    def test_it_counts_even_when_the_last_request_has_run_out(self, result_bed: Bed) -> None:
        pacs = Committer()
        with pacs.open(), hearing(result_bed) as port:
            lane = result_bed.delivery(pacs.destination())
            for _ in range(3):
                lane.step()
                result_bed.turn(HOUR)
            assert report_there(port, report_on(*pacs.asked[0], {})) == 0x0000
            lane.step()
        assert (delivery(result_bed).state, len(pacs.asked)) == (State.COMPLETED, 3)


@pytest.mark.usefixtures("in_haste")
class TestRefused:
    def test_an_archive_that_cannot_take_the_request_now_is_asked_again(self, result_bed: Bed) -> None:
        pacs = Committer(says=lambda number, _: 0x0213 if number == 1 else 0x0000)
        with pacs.open(), hearing(result_bed) as port:
            lane = result_bed.delivery(pacs.destination())
            lane.step()
            assert "answered 0213 to a request for storage commitment" in delivery(result_bed).reason
            # It did not take it, and reports all the same: nothing depends on that any more.
            first = report_on(pacs.asked[0][0], [], dict.fromkeys(pacs.asked[0][1], 0x0112))
            assert report_there(port, first) == 0x0000
            result_bed.turn(60)
            lane.step()
            assert report_there(port, report_on(*pacs.asked[1], {})) == 0x0000
            lane.step()
        assert (delivery(result_bed).state, classes(pacs.archive)) == (State.COMPLETED, [SEG, SR])

    def test_a_pacs_without_commitment_is_no_place_to_be_sure_of(self, result_bed: Bed) -> None:
        contexts = [(uid, ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"]) for uid in (SEG, SR)]
        pacs = Committer()
        with pacs.open(contexts=contexts):
            result_bed.delivery(pacs.destination()).step()
        assert delivery(result_bed).state == State.CANCELED
        assert delivery(result_bed).reason.startswith("What was accepted cannot be committed: Destination 'pacs'")

    def test_one_that_restarts_before_it_answers_is_asked_when_it_is_back(self, result_bed: Bed) -> None:
        def says(number: int, event: Any) -> int:
            if number == 1:
                event.assoc.abort(block=False)
            else:
                report_here(event, report_on(*pacs.asked[-1], {}))
            return 0x0000

        pacs = Committer(says=says)
        with pacs.open():
            lane = result_bed.delivery(pacs.destination())
            lane.step()
            assert "broke off" in delivery(result_bed).reason
            result_bed.turn(60)
            lane.step()
        assert (delivery(result_bed).state, classes(pacs.archive), len(pacs.asked)) == (State.COMPLETED, [SEG, SR], 2)
