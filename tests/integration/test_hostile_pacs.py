"""A PACS that refuses, breaks off, answers every status, loses and restarts: what becomes of the result each time."""

import threading
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import evt
from structlog.testing import capture_logs

from dicomai.database.tables import Acceptance, Result
from dicomai.destinations import Outgoing
from dicomai.errors import NotKeptError, RejectedError, UnreachableError
from dicomai.workitem import Kind, State
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
from tests.beds import Bed
from tests.dimse import Scp, free_port
from tests.rejected import rejection_note
from tests.synthetic import encode, series

FOR_GOOD = [0xA900, 0xA9FF, 0x0122, 0x0124]
FOR_NOW = [0xA700, 0xA7FF, 0x0110]
WARNINGS = [0xB006, 0xB007]


class TestStatuses:
    """PS3.4 B.2.3 and PS3.7 Annex C."""

    @pytest.mark.parametrize("status", FOR_GOOD, ids=hex)
    def test_what_is_refused_for_good_fails_at_once_with_a_sentence(self, result_bed: Bed, status: int) -> None:
        with Archive().open(status) as archive:
            sent_until_it_ends(result_bed, result_bed.delivery(archive.destination()))
        row = delivery(result_bed)
        assert (row.state, row.attempt, classes(archive)) == (State.CANCELED, 1, [SEG])
        assert f"answered {status:04X}" in row.reason
        assert "then retry" in row.reason

    @pytest.mark.parametrize("status", FOR_NOW, ids=hex)
    def test_what_can_pass_waits_and_arrives(self, result_bed: Bed, status: int) -> None:
        with Archive().open(status, 0x0000) as archive:
            sent_until_it_ends(result_bed, result_bed.delivery(archive.destination()))
        assert (delivery(result_bed).state, classes(archive)) == (State.COMPLETED, [SEG, SEG, SR])

    def test_what_is_not_understood_is_sent_three_times_and_no_more(self, result_bed: Bed) -> None:
        with Archive().open(0xA700, 0xC000) as archive:  # the first is another matter, and does not count
            sent_until_it_ends(result_bed, result_bed.delivery(archive.destination()))
        row = delivery(result_bed)
        assert (row.state, classes(archive)) == (State.CANCELED, [SEG] * 4)
        assert row.reason.startswith("Given up after 3 times: Destination 'pacs'")
        assert "answered C000" in row.reason
        assert result_bed.rows(Acceptance) == []

    def test_what_is_understood_at_the_third_time_arrives(self, result_bed: Bed) -> None:
        with Archive().open(0xC000, 0xCFFF, 0x0000) as archive:
            sent_until_it_ends(result_bed, result_bed.delivery(archive.destination()))
        assert (delivery(result_bed).state, classes(archive)) == (State.COMPLETED, [SEG] * 3 + [SR])

    @pytest.mark.parametrize("status", WARNINGS, ids=hex)
    def test_a_warning_is_an_acceptance_and_is_recorded(self, result_bed: Bed, status: int) -> None:
        with Archive().open(status, 0x0000) as archive, capture_logs() as logs:
            sent_until_it_ends(result_bed, result_bed.delivery(archive.destination()))
        row = delivery(result_bed)
        assert (row.state, [a.status for a in result_bed.rows(Acceptance)]) == (State.COMPLETED, [status, 0])
        assert row.reason
        assert [(x["status"], x["log_level"]) for x in logs if x["event"] == "accepted with a warning"] == [
            (f"0x{status:04X}", "warning")
        ]


class TestOtherSyntax:
    def test_a_pacs_that_takes_implicit_vr_alone_gets_the_whole_result_and_the_worklist_says_so(
        self, result_bed: Bed
    ) -> None:
        with Archive().open(contexts=[(one, ["1.2.840.10008.1.2"]) for one in (SEG, SR)]) as archive:
            sent_until_it_ends(result_bed, result_bed.delivery(archive.destination()))
        row = delivery(result_bed)
        assert (row.state, classes(archive)) == (State.COMPLETED, [SEG, SR])
        assert [a.comment for a in result_bed.rows(Acceptance)] == ["sent in Implicit VR Little Endian"] * 2


NOTES = {
    0xA772: "it does not have an object that the rejection note names",
    0xA774: "an object that the rejection note names was rejected by another one",
    0xA776: "it has to retain an object that the rejection note names",
}


class TestRejectionNote:
    """What archives after IHE IOCM answer: a lack of resources elsewhere."""

    @staticmethod
    def note(code: str = "113001") -> Outgoing:
        """A note, or a document with another title."""
        ds = rejection_note(series(modality="MR", shape=(1, 4, 4)), code)
        return Outgoing(str(ds.SOPClassUID), str(ds.SOPInstanceUID), partial(BytesIO, encode(ds)))

    @pytest.mark.parametrize("status", NOTES, ids=hex)
    def test_one_that_is_refused_for_good_ends_at_once_and_says_why(self, status: int) -> None:
        with Archive().open(status) as archive:
            for sent, error in ((self.note(), RejectedError), (self.note("113000"), UnreachableError)):
                with pytest.raises(error, match=f"answered {status:04X}") as caught:
                    archive.destination().send([sent], lambda *_: None)
                assert (NOTES[status] in str(caught.value)) is (error is RejectedError)

    def test_one_that_is_there_already_counts_where_c_find_shows_it(self) -> None:
        one, taken = self.note(), list[tuple[int, str]]()
        archive = Archive()
        with archive.open(archive.keep, 0xA770):
            for _ in range(2):
                archive.destination().send([one], lambda _, status, meaning: taken.append((status, meaning)))
            assert taken[0] == (0, "")
            assert taken[1][0] == 0x0111
            assert taken[1][1].startswith("it has this rejection note already; C-FIND shows it there")
            archive.hides = True
            with pytest.raises(NotKeptError, match="C-FIND does not show it there"):
                archive.destination().send([one], lambda *_: None)


class TestDuplicate:
    """0111: the object may be ours, whose answer was lost."""

    def test_what_c_find_shows_is_accepted_and_the_rest_follows(self, result_bed: Bed) -> None:
        archive = Archive()

        def lose_the_answer(event: Any) -> Dataset:
            answer = archive.keep(event)
            event.assoc.abort(block=False)
            return answer

        with archive.open(lose_the_answer, 0x0111, archive.keep):
            sent_until_it_ends(result_bed, result_bed.delivery(archive.destination()))
        row = delivery(result_bed)
        assert (row.state, classes(archive)) == (State.COMPLETED, [SEG, SEG, SR])
        assert [a.status for a in result_bed.rows(Acceptance)] == [0x0111, 0x0000]
        assert "C-FIND shows it there" in row.reason
        (query,) = (q for q in archive.queries if q.QueryRetrieveLevel == "IMAGE")
        assert query.SOPInstanceUID == archive.kept[0].SOPInstanceUID

    def test_what_c_find_does_not_show_is_for_a_person(self, result_bed: Bed) -> None:
        with Archive().open(0x0111) as archive:
            sent_until_it_ends(result_bed, result_bed.delivery(archive.destination()))
        row = delivery(result_bed)
        assert (row.state, classes(archive), result_bed.rows(Acceptance)) == (State.CANCELED, [SEG] * 3, [])
        assert "0111" in row.reason
        assert row.reason.endswith("C-FIND does not show it there.")

    def test_another_object_in_the_same_series_is_not_it(self, result_bed: Bed) -> None:
        """A peer that passes over the key of the instance answers with the whole series."""
        archive = Archive()

        def answer(event: Any) -> Iterator[tuple[int, Dataset]]:
            yield (
                0xFF00,
                data_set(
                    StudyInstanceUID=event.identifier.StudyInstanceUID,
                    SeriesInstanceUID=event.identifier.SeriesInstanceUID,
                    SOPInstanceUID="1.2.3",
                ),
            )

        archive.find = answer  # type: ignore[method-assign]  # another PACS
        with archive.open(0x0111):
            sent_until_it_ends(result_bed, result_bed.delivery(archive.destination()))
        assert delivery(result_bed).state == State.CANCELED


class TestCoercion:
    """B000: accepted, and changed."""

    @pytest.mark.parametrize(
        ("keyword", "alert"),
        [
            ("PatientID", "filed under another PatientID"),
            ("StudyInstanceUID", "filed under another StudyInstanceUID"),
            ("ReferringPhysicianName", ""),
        ],
    )
    def test_another_patient_or_study_alerts(self, result_bed: Bed, keyword: str, alert: str) -> None:
        archive = Archive()
        with archive.open(lambda event: archive.keep(event, 0xB000, **{keyword: "1.23.4"})), capture_logs() as logs:
            sent_until_it_ends(result_bed, result_bed.delivery(archive.destination()))
        row = delivery(result_bed)
        assert (row.state, len(archive.kept)) == (State.COMPLETED, 2)
        assert f": {keyword}" in row.reason
        assert ("filed under another" in row.reason) is bool(alert)
        assert alert in row.reason
        alerts = [x for x in logs if "filed under" in str(x.get("meaning"))]
        assert len(alerts) == (2 if alert else 0)
        assert {x["log_level"] for x in alerts} <= {"warning"}
        assert "1.23.4" not in str(logs) + row.reason  # what it is filed under may be a patient's ID

    def test_a_node_that_is_killed_before_it_looked_looks_when_it_is_back(self, result_bed: Bed) -> None:
        archive = Archive()
        with archive.open(lambda event: archive.keep(event, 0xB000, StudyInstanceUID="1.23.4")):
            lane = result_bed.delivery(archive.destination())
            sent = archive.destination()
            claim = result_bed.worklist.claim(Kind.DELIVERY, "killed", 10, 30)
            assert claim is not None
            seen = result_bed.worklist.result(claim)
            result_bed.worklist.begin_sending(claim, seen, {})
            by_uid = {one.sop_instance_uid: one.id for one in seen}
            sent.send(
                [lane._outgoing(one) for one in seen],
                lambda one, status, said: result_bed.worklist.accepted(
                    claim, by_uid[one.sop_instance_uid], status, said
                ),
            )
            result_bed.turn(11)
            assert lane.step()
        row = delivery(result_bed)
        assert (row.state, classes(archive)) == (State.COMPLETED, [SEG, SR])
        assert "filed under another StudyInstanceUID (2 objects)" in row.reason

    def test_a_pacs_without_c_find_is_said_not_to_have_been_asked(self, result_bed: Bed) -> None:
        contexts = [(uid, ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"]) for uid in (SEG, SR)]
        with Archive().open(0xB000, contexts=contexts) as archive:
            sent_until_it_ends(result_bed, result_bed.delivery(archive.destination()))
        assert delivery(result_bed).state == State.COMPLETED
        assert "not looked up by a search" in delivery(result_bed).reason


class TestVerified:
    """`verify = "find"`."""

    def test_a_result_that_is_shown_is_completed(self, result_bed: Bed) -> None:
        with Archive().open() as archive:
            assert result_bed.delivery(archive.destination(verify="find")).step()
        assert (delivery(result_bed).state, delivery(result_bed).attempt) == (State.COMPLETED, 1)
        images = [q.SOPInstanceUID for q in archive.queries if q.QueryRetrieveLevel == "IMAGE"]
        assert images == [ds.SOPInstanceUID for ds in archive.kept]

    def test_one_that_gives_all_that_it_has_does_not_show_it(self, result_bed: Bed) -> None:
        class Liberal(Archive):
            """Passes over the UID of the instance where that is all that it is asked for."""

            def find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
                self.queries.append(event.identifier)
                for number in range(0 if event.identifier.get("StudyInstanceUID") else 200):
                    if event.is_cancelled:
                        yield 0xFE00, None
                        return
                    yield 0xFF00, data_set(SOPInstanceUID=f"1.2.{number}", StudyInstanceUID="1.2")
                yield 0x0000, None

        with Liberal().open() as archive:
            result_bed.delivery(archive.destination(verify="find")).step()
        row = delivery(result_bed)
        assert row.state == State.IN_PROGRESS
        assert "does not show it yet" in row.reason

    def test_without_it_nobody_is_asked(self, result_bed: Bed) -> None:
        with Archive().open() as archive:
            result_bed.delivery(archive.destination()).step()
        assert (delivery(result_bed).state, archive.queries) == (State.COMPLETED, [])

    def test_a_slow_pacs_is_waited_for_and_gets_nothing_twice(
        self, result_bed: Bed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("dicomai.confirmation._MOST_NAMED", 1)  # what is longer than this is cut off
        with Archive().open() as archive:
            lane = result_bed.delivery(archive.destination(verify="find"))
            archive.hides = True
            lane.step()
            row = delivery(result_bed)
            assert (row.state, row.lease_owner) == (State.IN_PROGRESS, None)
            assert " and 1 more, and does not show it yet" in row.reason
            assert not lane.step()
            for _ in range(3):
                result_bed.turn(30)
                lane.step()
            row = delivery(result_bed)
            assert row.attempt == row.looks > 1  # to ask is no attempt to send
            archive.hides = False
            result_bed.turn(200)
            lane.step()
        assert (delivery(result_bed).state, classes(archive)) == (State.COMPLETED, [SEG, SR])

    def test_a_pacs_that_answers_without_the_keys_above_is_understood(self, result_bed: Bed) -> None:
        archive = Archive()
        full = archive.find

        def answer(event: Any) -> Iterator[tuple[int, Dataset | None]]:
            for status, ds in full(event):
                is_image = ds is not None and "SOPInstanceUID" in ds
                yield status, data_set(SOPInstanceUID=ds.SOPInstanceUID, StudyInstanceUID="") if is_image else ds

        archive.find = answer  # type: ignore[method-assign]  # another PACS
        with archive.open():
            assert result_bed.delivery(archive.destination(verify="find")).step()
        assert (delivery(result_bed).state, classes(archive)) == (State.COMPLETED, [SEG, SR])

    def test_what_was_accepted_and_lost_is_sent_again_alone(self, bed: Bed) -> None:
        analysed(bed)
        archive = Archive(server=Scp("PACS", free_port(), []))
        archive.loses = lambda ds: ds.SOPClassUID == SEG and len(archive.server.received) < 3
        lane = bed.delivery(archive.destination(verify="find", verify_timeout=60.0))
        lane.step()
        assert "cannot be connected to" in delivery(bed).reason
        with archive.open(port=archive.server.port):
            for _ in range(7):
                bed.turn(61)
                lane.step()
                assert (delivery(bed).state == State.COMPLETED) is (len(archive.kept) == 2)
        assert classes(archive) == [SEG, SR, SEG]
        assert archive.server.received[0].data_set == archive.server.received[2].data_set

    def test_what_was_filed_under_another_study_is_there_and_alerts(self, result_bed: Bed) -> None:
        archive = Archive()
        with archive.open(lambda event: archive.keep(event, 0xB000, StudyInstanceUID="1.23.4")):
            assert result_bed.delivery(archive.destination(verify="find")).step()
        row = delivery(result_bed)
        assert (row.state, classes(archive)) == (State.COMPLETED, [SEG, SR])
        assert "filed under another StudyInstanceUID (2 objects)" in row.reason

    def test_what_was_filed_otherwise_without_a_word_alerts_as_well(self, result_bed: Bed) -> None:
        archive = Archive()

        def keep(event: Any) -> int:
            archive.keep(event, SeriesInstanceUID="1.23.5")
            return 0x0000

        with archive.open(keep):
            assert result_bed.delivery(archive.destination(verify="find")).step()
        assert (delivery(result_bed).state, classes(archive)) == (State.COMPLETED, [SEG, SR])
        assert delivery(result_bed).reason == "filed under another SeriesInstanceUID (2 objects)"

    def test_a_pacs_that_refuses_relational_queries_has_not_what_it_does_not_show(self, result_bed: Bed) -> None:
        archive = Archive(loses=lambda _: True)
        full = archive.find

        def answer(event: Any) -> Iterator[tuple[int, Dataset | None]]:
            if event.identifier.QueryRetrieveLevel == "IMAGE" and "StudyInstanceUID" not in event.identifier:
                yield 0xA900, None
            elif event.identifier.QueryRetrieveLevel == "IMAGE" and not event.identifier.StudyInstanceUID:
                yield 0xC001, None
            else:
                yield from full(event)

        archive.find = answer  # type: ignore[method-assign]  # another PACS
        with archive.open():
            result_bed.delivery(archive.destination(verify="find")).step()
        assert "does not show it yet" in delivery(result_bed).reason

    def test_a_pacs_that_was_away_is_not_taken_for_one_that_lost(self, result_bed: Bed) -> None:
        """It takes all, goes down before it could be asked, and needs a moment when it is back."""
        archive = Archive()
        hostile = [True]

        def lose_the_first_queries(event: Any) -> None:
            if hostile and event.assoc.requestor.primitive.presentation_context_definition_list[
                0
            ].abstract_syntax.startswith("1.2.840.10008.5.1.4.1.2"):
                event.assoc.acse.send_reject(2, 3, 1)
                event.assoc.kill()

        with archive.open(on_request=lose_the_first_queries):
            lane = result_bed.delivery(archive.destination(verify="find"))
            lane.step()
            assert "temporary congestion" in delivery(result_bed).reason
            hostile.clear()
            archive.hides = True
            result_bed.turn(7200)
            lane.step()
            assert "does not show it yet" in delivery(result_bed).reason
            result_bed.turn(7200)
            lane.step()  # nobody asked meanwhile: two looks are not the time that it has
            assert "does not show it yet" in delivery(result_bed).reason
            hostile.append(True)
            for _ in range(2):
                result_bed.turn(7200)
                lane.step()
            assert "temporary congestion" in delivery(result_bed).reason
            hostile.clear()
            result_bed.turn(7200)
            lane.step()
            assert "does not show it yet" in delivery(result_bed).reason
            archive.hides = False
            result_bed.turn(7200)
            lane.step()
        assert (delivery(result_bed).state, classes(archive)) == (State.COMPLETED, [SEG, SR])

    def test_a_pacs_that_loses_all_is_found_out(self, result_bed: Bed) -> None:
        archive = Archive(loses=lambda _: True)
        with archive.open():
            sent_until_it_ends(result_bed, result_bed.delivery(archive.destination(verify="find")))
        row = delivery(result_bed)
        assert (row.state, classes(archive)) == (State.CANCELED, [SEG, SR] * 3)
        assert row.reason.startswith("Given up after 3 times: Destination 'pacs' accepted 2.25.")
        assert "did not show it within 300 s" in row.reason
        assert result_bed.rows(Acceptance) == []

    def test_a_pacs_without_c_find_is_no_place_to_be_sure_of(self, result_bed: Bed) -> None:
        contexts = [(uid, ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"]) for uid in (SEG, SR)]
        archive = Archive()
        with archive.open(contexts=contexts):
            sent_until_it_ends(result_bed, result_bed.delivery(archive.destination(verify="find")))
        assert delivery(result_bed).state == State.CANCELED
        assert delivery(result_bed).reason.startswith("What was accepted cannot be looked for: Destination 'pacs'")
        assert "Study Root Query/Retrieve Information Model - FIND" in delivery(result_bed).reason


class TestAway:
    """A circuit per destination."""

    def test_a_pacs_that_is_away_is_asked_by_one_echo_a_wait_and_not_by_every_result(self, sqlite_bed: Bed) -> None:
        analysed(sqlite_bed, 3)
        refused: list[Any] = []

        def refuse(event: Any) -> None:
            refused.append(event.assoc)
            event.assoc.acse.send_reject(2, 3, 2)
            event.assoc.kill()

        port = free_port()
        with capture_logs() as logs:
            with Archive().open(port=port, on_request=refuse) as archive:
                lane = sqlite_bed.delivery(archive.destination())
                for _ in range(5):
                    lane.step()
                    lane.step()  # within a wait nobody is asked
                    sqlite_bed.turn(73)  # the longest wait and its jitter
                assert len(refused) == 5  # one result at first, then one echo a wait
            rows = sqlite_bed.items("delivery")
            assert [row.attempt for row in rows] == [1, 0, 0]
            assert all("local limit exceeded" in row.reason for row in rows)
            with archive.open(port=port):
                while lane.step():
                    pass
        assert archive.echoes == 1
        rows = sqlite_bed.items("delivery")
        assert [(row.state, row.reason) for row in rows] == [(State.COMPLETED, "")] * 3
        assert classes(archive) == [SEG, SR] * 3
        said = [x["event"] for x in logs if x.get("destination") == "pacs" and "deliver" not in x["event"].split()[0]]
        assert said.count("the destination is away; deliveries wait") == 1
        assert said.count("the destination is there again") == 1
        assert len(audited(sqlite_bed, "unreachable")) == len(audited(sqlite_bed, "reachable")) == 1

    def test_a_pacs_that_restarts_between_two_results_gets_both(self, sqlite_bed: Bed) -> None:
        analysed(sqlite_bed, 2)
        port = free_port()
        with Archive().open(port=port) as archive:
            lane = sqlite_bed.delivery(archive.destination())
            lane.step()
        lane.step()
        assert "cannot be connected to" in delivery(sqlite_bed, 1).reason
        sqlite_bed.turn(60)
        with archive.open(port=port):
            lane.step()
        assert len(archive.kept) == 4
        assert [row.state for row in sqlite_bed.items("delivery")] == [State.COMPLETED] * 2

    def test_one_that_answers_the_echo_and_refuses_results_is_called_ever_less(self, result_bed: Bed) -> None:

        def refuse_results(event: Any) -> None:
            if len(event.assoc.requestor.primitive.presentation_context_definition_list) > 1:
                event.assoc.acse.send_reject(2, 3, 1)
                event.assoc.kill()

        with Archive().open(on_request=refuse_results) as archive:
            lane = result_bed.delivery(archive.destination())
            lane.step()
            result_bed.turn(13)
            lane.step()
            assert (delivery(result_bed).attempt, archive.echoes) == (2, 1)
            result_bed.turn(13)  # the first wait, but no longer the second
            assert not lane.step()
            assert archive.echoes == 1
            result_bed.turn(13)
            lane.step()
            assert (delivery(result_bed).attempt, archive.echoes) == (3, 2)
        assert classes(archive) == []

    def test_a_node_that_is_not_known_there_waits_until_a_person_has_entered_it(self, sqlite_bed: Bed) -> None:
        analysed(sqlite_bed, 2)
        known: list[bool] = []

        def refuse(event: Any) -> None:
            if not known:
                event.assoc.acse.send_reject(1, 1, 3)
                event.assoc.kill()

        with Archive().open(on_request=refuse) as archive:
            lane = sqlite_bed.delivery(archive.destination(), attempts=2)
            for _ in range(4):
                lane.step()
                sqlite_bed.turn(73)
            rows = sqlite_bed.items("delivery")
            assert [(row.state, row.attempt) for row in rows] == [(State.IN_PROGRESS, 1), (State.SCHEDULED, 0)]
            assert all("enter the AE title DICOMAI there" in row.reason for row in rows)
            known.append(True)
            while lane.step():
                pass
        assert classes(archive) == [SEG, SR] * 2
        assert [row.state for row in sqlite_bed.items("delivery")] == [State.COMPLETED] * 2

    def test_who_found_it_away_goes_on_when_it_is_back(self, result_bed: Bed) -> None:
        archive = Archive(server=Scp("PACS", free_port(), []))
        lane = result_bed.delivery(archive.destination(), first_wait=1000.0)
        lane.step()
        result_bed.turn(73)  # the longest wait for an echo, and far from its own
        with archive.open(port=archive.server.port):
            assert lane.step()
        assert delivery(result_bed).state == State.COMPLETED

    def test_after_a_restart_nobody_says_that_it_is_away(self, sqlite_bed: Bed) -> None:
        analysed(sqlite_bed, 3)
        archive = Archive(server=Scp("PACS", free_port(), []))
        sqlite_bed.delivery(archive.destination()).step()
        assert "cannot be connected to" in delivery(sqlite_bed, 2).reason
        with archive.open(port=archive.server.port):
            assert sqlite_bed.delivery(archive.destination()).step()
        assert (delivery(sqlite_bed, 2).state, delivery(sqlite_bed, 2).reason) == (State.SCHEDULED, "")

    def test_a_peer_that_takes_no_echo_is_there_all_the_same(self, result_bed: Bed) -> None:
        port = free_port()
        contexts = [(uid, ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"]) for uid in (SEG, SR)]
        archive = Archive(server=Scp("PACS", port, []))
        lane = result_bed.delivery(archive.destination())
        lane.step()
        result_bed.turn(60)
        with archive.open(port=port, contexts=contexts):
            lane.step()
        assert (delivery(result_bed).state, archive.echoes) == (State.COMPLETED, 0)


class TestBroken:
    def test_an_abort_in_mid_object_is_no_acceptance(self, result_bed: Bed) -> None:

        def abort(pdu: Any) -> None:
            if type(pdu.pdu).__name__ == "P_DATA_TF":
                pdu.assoc.abort(block=False)

        hostile = [True]

        def break_off(event: Any) -> None:
            if hostile.pop():
                event.assoc.bind(evt.EVT_PDU_RECV, abort)
            hostile.append(False)

        with Archive().open(on_request=break_off) as archive:
            lane = result_bed.delivery(archive.destination())
            lane.step()
            assert (delivery(result_bed).state, classes(archive), archive.kept) == (State.IN_PROGRESS, [], [])
            assert "broke off" in delivery(result_bed).reason
            result_bed.turn(60)
            lane.step()
        assert (delivery(result_bed).state, classes(archive)) == (State.COMPLETED, [SEG, SR])

    def test_a_pacs_that_stalls_after_it_has_the_object_gets_the_same_one_again(self, result_bed: Bed) -> None:
        release = threading.Event()
        archive = Archive()

        def stall(event: Any) -> Dataset:
            answer = archive.keep(event)
            release.wait(20)
            return answer

        with archive.open(stall, archive.keep):
            lane = result_bed.delivery(archive.destination(timeout=0.3))
            lane.step()
            release.set()
            assert (delivery(result_bed).state, result_bed.rows(Acceptance)) == (State.IN_PROGRESS, [])
            assert "stopped answering" in delivery(result_bed).reason
            result_bed.turn(60)
            result_bed.delivery(archive.destination()).step()
        assert classes(archive) == [SEG, SEG, SR]
        assert archive.server.received[0].data_set == archive.server.received[1].data_set
        assert delivery(result_bed).state == State.COMPLETED


class TestTooLate:
    """`max_age`."""

    def test_a_result_that_can_be_sent_only_when_it_is_too_old_is_not_sent(self, result_bed: Bed) -> None:
        with Archive().open() as archive:
            lane = result_bed.delivery(archive.destination(max_age=3600.0))
            result_bed.turn(3700)
            lane.step()
        row = delivery(result_bed)
        assert (row.state, classes(archive), archive.server.associations) == (State.CANCELED, [], [])
        assert "older than max_age, 3600 s" in row.reason

    def test_half_a_result_is_finished(self, result_bed: Bed) -> None:
        with Archive().open(0x0000, 0xA700, 0x0000) as archive:
            lane = result_bed.delivery(archive.destination(max_age=3600.0))
            lane.step()
            result_bed.turn(3700)
            lane.step()
        assert (delivery(result_bed).state, classes(archive)) == (State.COMPLETED, [SEG, SR, SR])

    def test_half_a_result_is_finished_also_by_the_delivery_that_a_person_has_retried(self, result_bed: Bed) -> None:
        with Archive().open(0x0000, 0xA900, 0x0000) as archive:
            lane = result_bed.delivery(archive.destination(max_age=3600.0))
            lane.step()
            assert delivery(result_bed).state == State.CANCELED
            result_bed.turn(3700)
            result_bed.overview.retry(delivery(result_bed).id, "person/a")
            lane.step()
        assert delivery(result_bed, 1).state == State.COMPLETED
        assert [ds.sop_class_uid for ds in archive.server.received] == [SEG, SR, SEG, SR]


class TestSource:
    """`wait_for_source`."""

    def test_a_result_waits_for_its_images_and_uses_up_no_attempt(self, result_bed: Bed) -> None:
        archive = Archive()
        shown = [0]

        def answer(event: Any) -> Iterator[tuple[int, Dataset | None]]:
            asked = event.identifier
            archive.queries.append(asked)
            if shown[0]:
                found = {"StudyInstanceUID": asked.StudyInstanceUID, "SeriesInstanceUID": asked.SeriesInstanceUID}
                yield 0xFF00, data_set(**found, NumberOfSeriesRelatedInstances=shown[0])
            yield 0x0000, None

        archive.find = answer  # type: ignore[method-assign]  # one that has a series
        with archive.open():
            lane = result_bed.delivery(archive.destination(wait_for_source=True), attempts=2)
            for images in (0, 0, 0, 2):
                shown[0] = images
                assert lane.step()
                assert (delivery(result_bed).state, classes(archive)) == (State.IN_PROGRESS, [])
                assert "does not show all images of series" in delivery(result_bed).reason
                assert result_bed.rows(Result)[0].first_sent_at is None  # so that its patient may still be put right
                result_bed.turn(301)
            shown[0] = 3
            assert lane.step()
        row = delivery(result_bed)
        assert (row.state, row.attempt - row.looks, classes(archive)) == (State.COMPLETED, 1, [SEG, SR])
        assert {q.QueryRetrieveLevel for q in archive.queries} == {"SERIES"}

    def test_after_a_day_of_asking_a_person_has_to_look(self, result_bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dicomai.confirmation._LONGEST_SOURCE_WAIT", 900.0)  # a day takes three hundred looks
        archive = Archive()
        with archive.open():
            lane = result_bed.delivery(archive.destination(wait_for_source=True))
            lane.step()
            result_bed.turn(864000)  # it was not asked meanwhile: that is no day of waiting
            lane.step()
            assert delivery(result_bed).state == State.IN_PROGRESS
            for _ in range(8):
                result_bed.turn(301)
                lane.step()
        row = delivery(result_bed)
        assert (row.state, classes(archive)) == (State.CANCELED, [])
        assert row.reason.endswith("send them there, then retry.")

    def test_a_result_that_is_too_old_by_then_is_not_sent(self, result_bed: Bed) -> None:
        archive = Archive()
        with archive.open():
            lane = result_bed.delivery(archive.destination(wait_for_source=True, max_age=3600.0))
            lane.step()
            result_bed.turn(3700)
            lane.step()
        assert (delivery(result_bed).state, classes(archive)) == (State.CANCELED, [])
        assert "older than max_age" in delivery(result_bed).reason
