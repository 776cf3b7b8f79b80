"""The worklist: nothing is given twice, nothing is lost, and a stale attempt changes nothing. On both databases."""

import itertools
import multiprocessing
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pydicom.uid import generate_uid

from dicomai.database.results import FrozenObject
from dicomai.database.tables import Acceptance, Audit, Result, ResultObject, Table
from dicomai.database.tables import Workitem as Row
from dicomai.database.worklist import Claim
from dicomai.errors import StaleAttemptError, WorklistError
from dicomai.leases import kept
from dicomai.workitem import FINAL, Kind, State, is_legal
from tests.beds import Bed, route
from tests.dimse import wait_until
from tests.processes import work
from tests.synthetic import series


@pytest.fixture
def bed(database_url: str, tmp_path: Path) -> Iterator[Bed]:
    made = Bed(tmp_path, database_url)
    yield made
    made.close()


def schedule(bed: Bed, count: int = 1, **changes: Any) -> list[int]:
    """Plan as many items, each of a study of its own; gives their numbers."""
    for _ in range(count):
        bed.take(series(modality="MR", shape=(2, 4, 4)))
    known = {item.id for item in bed.items()}
    assert bed.plan(route(**changes)) == count
    return [item.id for item in bed.items() if item.id not in known]


def claim(bed: Bed, kind: Kind = Kind.INFERENCE, owner: str = "one", lease: float = 60.0, attempts: int = 3) -> Claim:
    got = bed.worklist.claim(kind, owner, lease, attempts)
    assert got is not None
    return got


def objects(bed: Bed, got: Claim) -> list[FrozenObject]:
    made = []
    for n, output in enumerate(("seg", "sr")):
        key = f"results/{got.item}/{got.attempt}/{n}.dcm"
        bed.store.put(key, b"x")
        made.append(FrozenObject(output, "1.2", generate_uid(), generate_uid(), 9000 + n, key))
    return made


def finish(bed: Bed, *destinations: str) -> int:
    got = claim(bed)
    bed.worklist.finish_inference(got, objects(bed, got), destinations or ("pacs",))
    return got.item


def item(bed: Bed, number: int) -> Row:
    (found,) = (row for row in bed.rows(Row) if row.id == number)
    return found


class TestClaims:
    @pytest.mark.slow
    def test_processes_that_claim_at_once_never_get_the_same(self, bed: Bed) -> None:
        numbers = schedule(bed, 24)
        context = multiprocessing.get_context("spawn")
        barrier, out = context.Barrier(4), context.Queue()
        processes = [
            context.Process(target=work, args=(bed.url, bed.database.forward, f"p{n}", barrier, out)) for n in range(4)
        ]
        for process in processes:
            process.start()
        done = [number for _ in processes for number in out.get(timeout=60)]
        for process in processes:
            process.join(30)
        assert Counter(done) == Counter(numbers)
        assert {row.state for row in bed.items()} == {State.COMPLETED}
        assert {row.attempt for row in bed.items()} == {1}

    def test_threads_that_claim_at_once_never_get_the_same(self, bed: Bed) -> None:
        numbers = schedule(bed, 6)
        start = threading.Barrier(6)
        got: list[int] = []

        def work() -> None:
            start.wait()
            while (one := bed.worklist.claim(Kind.INFERENCE, threading.current_thread().name, 60, 3)) is not None:
                got.append(one.item)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(got) == numbers

    def test_the_urgent_and_then_the_oldest_come_first(self, bed: Bed) -> None:
        first, second, third = schedule(bed, 3)
        with bed.database.write() as session:
            session.execute(sa.update(Row).where(Row.id == third).values(priority=0))
        assert [claim(bed).item for _ in range(3)] == [third, first, second]
        assert bed.worklist.claim(Kind.INFERENCE, "one", 60, 3) is None

    def test_kinds_and_destinations_are_kept_apart(self, bed: Bed) -> None:
        schedule(bed)
        assert bed.worklist.claim(Kind.DELIVERY, "one", 60, 3) is None
        finish(bed, "pacs", "folder")
        assert bed.worklist.claim(Kind.INFERENCE, "one", 60, 3) is None
        assert bed.worklist.claim(Kind.DELIVERY, "one", 60, 3, "elsewhere") is None
        got = bed.worklist.claim(Kind.DELIVERY, "one", 60, 3, "folder")
        assert got is not None
        assert got.destination == "folder"

    def test_a_held_item_is_nobody_s(self, bed: Bed) -> None:
        (number,) = schedule(bed)
        got = claim(bed)
        bed.worklist.hold(got, "Whose is it?")
        assert bed.worklist.claim(Kind.INFERENCE, "one", 60, 3) is None
        bed.turn(1e6)
        assert bed.worklist.claim(Kind.INFERENCE, "one", 60, 3) is None
        assert (item(bed, number).state, item(bed, number).hold) == (State.IN_PROGRESS, "Whose is it?")
        bed.overview.release(number, "person/a")
        assert claim(bed).attempt == 2


class TestLeases:
    def test_an_item_is_taken_over_when_its_lease_has_run_out(self, bed: Bed) -> None:
        schedule(bed)
        old = claim(bed, owner="one", lease=60)
        bed.turn(59)
        assert bed.worklist.claim(Kind.INFERENCE, "other", 60, 3) is None
        bed.turn(2)
        new = claim(bed, owner="other")
        assert (new.item, new.attempt) == (old.item, 2)

    def test_a_heartbeat_keeps_it_and_says_how_far_the_work_is(self, bed: Bed) -> None:
        (number,) = schedule(bed)
        got = claim(bed, lease=60)
        for percent in (-5, 40, 250):
            bed.turn(50)
            bed.worklist.heartbeat(got, 60, percent)
            assert item(bed, number).progress == max(0, min(100, percent))
        assert bed.worklist.claim(Kind.INFERENCE, "other", 60, 3) is None

    def test_a_thread_keeps_the_lease_while_the_work_goes_on(self, bed: Bed) -> None:
        (number,) = schedule(bed)
        got = claim(bed, lease=1.0)
        before = item(bed, number).lease_expires
        assert before is not None
        with kept(bed.worklist, got, 1.0) as progress:
            progress(0.37)
            wait_until(lambda: item(bed, number).progress == 37)
            assert (item(bed, number).lease_expires or before) > before

    def test_the_leases_of_a_dead_process_are_let_go(self, bed: Bed) -> None:
        first, second = schedule(bed, 2)
        claim(bed, owner="dead", lease=1e6)
        claim(bed, owner="alive", lease=1e6)
        assert sorted(bed.worklist.owners()) == ["alive", "dead"]
        assert bed.worklist.expire("dead") == 1
        assert bed.worklist.owners() == ["alive"]
        assert claim(bed, owner="heir").item == first
        assert bed.events(first) == ["scheduled", "IN PROGRESS", "let go", "IN PROGRESS"]
        assert item(bed, second).lease_owner == "alive"

    def test_too_many_attempts_end_it_with_a_sentence(self, bed: Bed) -> None:
        (number,) = schedule(bed)
        for _ in range(2):
            claim(bed, attempts=2, lease=10)
            bed.turn(11)
        assert bed.worklist.claim(Kind.INFERENCE, "one", 60, 2) is None
        row = item(bed, number)
        assert (row.state, row.lease_owner) == (State.CANCELED, None)
        assert row.reason == "Given up after 2 attempts: its worker ended without a word"

    def test_the_sentence_tells_the_last_failure(self, bed: Bed) -> None:
        (number,) = schedule(bed)
        for _ in range(2):
            bed.worklist.postpone(claim(bed, attempts=2), 1, "The GPU is full.")
            bed.turn(2)
        assert bed.worklist.claim(Kind.INFERENCE, "one", 60, 2) is None
        assert item(bed, number).reason == "Given up after 2 attempts: The GPU is full."

    def test_one_that_was_given_up_does_not_hide_the_next(self, bed: Bed) -> None:
        first, second = schedule(bed, 2)
        claim(bed, attempts=1, lease=10)
        bed.turn(11)
        assert claim(bed, attempts=1).item == second
        assert item(bed, first).state == State.CANCELED


STEPS: dict[str, Callable[[Bed, Claim], object]] = {
    "heartbeat": lambda bed, old: bed.worklist.heartbeat(old, 1e6, 99),
    "finish_inference": lambda bed, old: bed.worklist.finish_inference(old, objects(bed, old), ("pacs",)),
    "finish_delivery": lambda bed, old: bed.worklist.finish_delivery(old),
    "postpone": lambda bed, old: bed.worklist.postpone(old, 1e6, "stale"),
    "hold": lambda bed, old: bed.worklist.hold(old, "stale"),
    "fail": lambda bed, old: bed.worklist.fail(old, "stale"),
    "accepted": lambda bed, old: bed.worklist.accepted(old, 1, 0, ""),
    "begin_sending": lambda bed, old: bed.worklist.begin_sending(old, [], {}),
}


@pytest.mark.parametrize("how", ["taken over", "canceled", "let go"])
def test_a_stale_attempt_changes_nothing(bed: Bed, how: str) -> None:
    schedule(bed)
    finish(bed)
    old = claim(bed, Kind.DELIVERY, lease=10)
    if how == "taken over":
        bed.turn(11)
        assert claim(bed, Kind.DELIVERY, owner="one").item == old.item  # the same process, even
    elif how == "canceled":
        bed.overview.cancel(old.item, "person/a")
    else:
        bed.worklist.expire("one")

    def everything() -> list[object]:
        tables: tuple[type[Table], ...] = (Row, Audit, Acceptance, Result, ResultObject)
        return [[getattr(r, c.key) for c in t.__table__.columns] for t in tables for r in bed.rows(t)]

    before = everything()
    for step in STEPS.values():
        with pytest.raises(StaleAttemptError, match=f"Attempt 1 of workitem {old.item} is over"):
            step(bed, old)
        assert everything() == before


class TestTransitions:
    def test_each_leaves_an_audit_row_with_who_and_when(self, bed: Bed) -> None:
        (number,) = schedule(bed)
        got = claim(bed, owner="host/worker/1")
        bed.worklist.postpone(got, 5, "Once more.")
        bed.turn(6)
        finish(bed)
        rows = [row for row in bed.rows(Audit) if row.workitem_id == number]
        assert [(row.actor, row.event, row.detail) for row in rows] == [
            ("planner", "scheduled", ""),
            ("host/worker/1", "IN PROGRESS", "attempt 1"),
            ("host/worker/1", "IN PROGRESS", "Once more."),
            ("one", "IN PROGRESS", "attempt 2"),
            ("one", "COMPLETED", ""),
        ]
        assert [row.at for row in rows] == sorted(row.at for row in rows)
        assert {row.study_id for row in rows} == {1}

    def test_an_error_in_the_transaction_leaves_neither(self, bed: Bed) -> None:
        (number,) = schedule(bed)
        got = claim(bed)
        events = bed.events(number)
        made = objects(bed, got)
        with pytest.raises(sa.exc.IntegrityError):  # twice to one destination: the second row breaks it off
            bed.worklist.finish_inference(got, made, ("pacs", "pacs"))
        assert bed.events(number) == events
        assert item(bed, number).state == State.IN_PROGRESS
        assert (bed.rows(Result), bed.items("delivery")) == ([], [])

    def test_cancel_goes_by_way_of_in_progress(self, bed: Bed) -> None:
        (number,) = schedule(bed)
        bed.overview.cancel(number, "person/a")
        assert bed.events(number) == ["scheduled", "IN PROGRESS", "CANCELED"]
        assert item(bed, number).reason == "Canceled by person/a."
        assert bed.worklist.claim(Kind.INFERENCE, "one", 60, 3) is None

    def test_a_final_state_is_final(self, bed: Bed) -> None:
        number = schedule(bed)[0]
        finish(bed)
        with pytest.raises(WorklistError, match="COMPLETED already; a final state is final"):
            bed.overview.cancel(number, "person/a")

    def test_what_is_not_there_is_a_sentence(self, bed: Bed) -> None:
        for step in (bed.overview.show, lambda n: bed.overview.cancel(n, "a"), lambda n: bed.overview.retry(n, "a")):
            with pytest.raises(WorklistError, match="There is no workitem 99"):
                step(99)
        (number,) = schedule(bed)
        with pytest.raises(WorklistError, match="is not held"):
            bed.overview.release(number, "a")

    def test_finishing_schedules_the_deliveries_in_the_same_step(self, bed: Bed) -> None:
        number = schedule(bed)[0]
        finish(bed, "pacs", "folder")
        assert [(d.destination, d.state) for d in bed.items("delivery")] == [
            ("pacs", State.SCHEDULED),
            ("folder", State.SCHEDULED),
        ]
        row = item(bed, number)
        assert (row.state, row.progress, row.lease_owner) == (State.COMPLETED, 100, None)
        shown = bed.overview.show(number)
        assert [o["output"] for o in shown["objects"]] == ["seg", "sr"]
        assert shown["inputs"][0]["instances"] == 2


class TestUniqueness:
    def test_a_digest_is_there_once_among_items_that_are_not_replaced(self, bed: Bed) -> None:
        (number,) = schedule(bed)
        row = item(bed, number)

        def copy() -> None:
            with bed.database.write() as session:
                values = {c.key: getattr(row, c.key) for c in sa.inspect(Row).columns if c.key != "id"}
                session.add(Row(**values))

        with pytest.raises(sa.exc.IntegrityError):
            copy()
        with bed.database.write() as session:
            session.execute(sa.update(Row).values(replaced_by=number))
        copy()

    def test_a_result_goes_to_a_destination_once(self, bed: Bed) -> None:
        schedule(bed)
        finish(bed, "pacs")
        (row,) = bed.items("delivery")
        twin = Row(**{c.key: getattr(row, c.key) for c in sa.inspect(Row).columns if c.key != "id"})
        with pytest.raises(sa.exc.IntegrityError), bed.database.write() as session:
            session.add(twin)


class TestRetry:
    def test_makes_a_new_item_that_takes_the_place_of_the_old(self, bed: Bed) -> None:
        (number,) = schedule(bed)
        bed.worklist.fail(claim(bed), "No volume.")
        new = bed.overview.retry(number, "person/a")
        old, fresh = item(bed, number), item(bed, new)
        assert (old.state, old.replaced_by) == (State.CANCELED, new)
        assert (fresh.state, fresh.digest, fresh.generation) == (State.SCHEDULED, old.digest, 0)
        assert bed.worklist.inputs(claim(bed)) != []
        assert bed.events(new)[0] == "retried"
        with pytest.raises(WorklistError, match=f"was replaced by {new}"):
            bed.overview.retry(number, "person/a")
        with pytest.raises(WorklistError, match="only one that has ended"):
            bed.overview.retry(new, "person/a")

    @pytest.mark.parametrize("sent", [False, True])
    def test_the_generation_rises_only_if_something_was_sent(self, bed: Bed, sent: bool) -> None:
        schedule(bed)
        number = finish(bed)
        if sent:
            got = claim(bed, Kind.DELIVERY)
            assert bed.worklist.begin_sending(got, bed.worklist.result(got), {})
            bed.worklist.postpone(got, 1, "It hung up before it answered.")
        new = item(bed, bed.overview.retry(number, "person/a"))
        assert (new.generation, new.supersedes) == ((1, number) if sent else (0, None))
        (delivery,) = bed.items("delivery")
        assert delivery.state == State.CANCELED
        assert delivery.reason == f"Replaced: workitem {number} runs again as {new.id}."
        assert len(bed.worklist.predecessors(claim(bed))) == (2 if sent else 0)

    def test_a_delivery_sends_the_same_result_again(self, bed: Bed) -> None:
        schedule(bed)
        finish(bed)
        got = claim(bed, Kind.DELIVERY)
        bed.worklist.begin_sending(got, bed.worklist.result(got), {})
        bed.worklist.accepted(got, bed.worklist.result(got)[0].id, 0, "")
        bed.worklist.fail(got, "Refused.")
        new = bed.overview.retry(got.item, "person/a")
        again = claim(bed, Kind.DELIVERY)
        assert again.item == new
        assert [o.output for o in bed.worklist.result(again)] == ["seg", "sr"]

    def test_a_retry_and_a_delivery_that_begins_to_send_agree_who_was_first(self, bed: Bed) -> None:
        """Otherwise the new result would have the UIDs of one that the PACS has already, and other bytes."""
        schedule(bed)
        number = finish(bed)
        got = claim(bed, Kind.DELIVERY)
        seen = bed.worklist.result(got)
        start = threading.Barrier(2)
        outcome: dict[str, Any] = {}

        def begin() -> None:
            start.wait()
            try:
                outcome["sent"] = bed.worklist.begin_sending(got, seen, {})
            except StaleAttemptError:
                outcome["sent"] = False

        thread = threading.Thread(target=begin)
        thread.start()
        start.wait()
        new = item(bed, bed.overview.retry(number, "person/a"))
        thread.join()
        assert new.generation == int(outcome["sent"])

    def test_what_a_later_item_supersedes_is_not_tried_again(self, bed: Bed) -> None:
        images = series(modality="MR", shape=(4, 4, 4))
        bed.take(images[:3])
        bed.plan()
        finish(bed)
        bed.take(images[3:])
        bed.plan()
        old, new = bed.items()
        with pytest.raises(WorklistError, match=f"superseded by {new.id}"):
            bed.overview.retry(old.id, "person/a")
        with pytest.raises(WorklistError, match=f"outdated by workitem {new.id}"):
            bed.overview.retry(bed.items("delivery")[0].id, "person/a")
        # Nor after the later one was itself replaced.
        got = claim(bed)
        assert got.item == new.id
        bed.worklist.fail(got, "No volume.")
        bed.overview.retry(new.id, "person/a")
        with pytest.raises(WorklistError, match="superseded by"):
            bed.overview.retry(old.id, "person/a")

    def test_a_retry_in_doubt_is_held(self, bed: Bed) -> None:
        bed.take(series(modality="MR", shape=(2, 4, 4), PatientID=str))
        bed.plan()
        (row,) = bed.items()
        bed.overview.cancel(row.id, "person/a")
        new = bed.overview.retry(row.id, "person/a")
        assert item(bed, new).hold.startswith("The images of this study disagree in PatientID")


class TestSending:
    def test_nothing_begins_while_there_is_a_doubt(self, bed: Bed) -> None:
        images = series(modality="MR", shape=(2, 4, 4))
        bed.take(images)
        bed.plan()
        finish(bed)
        got = claim(bed, Kind.DELIVERY)
        images[0].PatientID = "ANOTHER"
        bed.take(images)
        assert not bed.worklist.begin_sending(got, bed.worklist.result(got), {})
        assert bed.rows(Result)[0].first_sent_at is None

    def test_the_first_of_two_deliveries_settles_the_bytes(self, bed: Bed) -> None:
        schedule(bed)
        finish(bed, "pacs", "folder")
        one, other = claim(bed, Kind.DELIVERY), claim(bed, Kind.DELIVERY)
        seen = bed.worklist.result(other)
        assert bed.worklist.begin_sending(one, seen, {seen[0].id: "results/new.dcm"})
        assert not bed.worklist.begin_sending(other, seen, {seen[0].id: "results/newer.dcm"})
        assert not bed.worklist.begin_sending(other, seen, {})
        again = bed.worklist.result(other)
        assert again[0].key == "results/new.dcm"
        assert not bed.worklist.begin_sending(other, again, {again[0].id: "results/newer.dcm"})
        assert bed.worklist.begin_sending(other, again, {})

    def test_what_was_accepted_is_not_sent_again_and_warnings_are_kept(self, bed: Bed) -> None:
        schedule(bed)
        finish(bed)
        got = claim(bed, Kind.DELIVERY)
        seg, sr = bed.worklist.result(got)
        bed.worklist.accepted(got, seg.id, 0xB000, "Coercion of data elements")
        bed.worklist.accepted(got, seg.id, 0xB000, "Coercion of data elements")
        assert [o.id for o in bed.worklist.result(got)] == [sr.id]
        bed.worklist.accepted(got, sr.id, 0, "")
        bed.worklist.finish_delivery(got)
        assert item(bed, got.item).reason == "Coercion of data elements"
        shown = bed.overview.show(got.item)
        assert [o["status"] for o in shown["objects"]] == ["0xB000", "0x0000"]


class Life(RuleBasedStateMachine):
    """Any order of what workers, planner and people do: states move legally, each move is in the audit."""

    bed: Bed
    folders = itertools.count()
    base: Path

    def __init__(self) -> None:
        super().__init__()
        folder = self.base / str(next(self.folders))
        folder.mkdir()
        self.bed = Bed(folder, f"sqlite:///{folder / 'worklist.db'}")
        self.images = series(modality="MR", shape=(8, 2, 2))
        self.claims: list[Claim] = []
        self.sent = 2
        self.bed.take(self.images[:2])
        self.bed.plan()

    def teardown(self) -> None:
        self.bed.close()

    @rule(kind=st.sampled_from(Kind), lease=st.sampled_from([5.0, 500.0]))
    def claim(self, kind: Kind, lease: float) -> None:
        got = self.bed.worklist.claim(kind, "worker", lease, 3)
        if got is not None:
            others = [c for c in self.claims if c.item == got.item]
            assert all(c.attempt < got.attempt for c in others)
            self.claims.append(got)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), step=st.sampled_from(["finish", "fail", "postpone", "hold", "heartbeat", "send"]))
    def step(self, data: st.DataObject, step: str) -> None:
        got = data.draw(st.sampled_from(self.claims))
        row = item(self.bed, got.item)
        mine = row.attempt == got.attempt and row.state == State.IN_PROGRESS and row.lease_owner == "worker"
        worklist = self.bed.worklist
        try:
            if step == "finish" and row.kind == Kind.INFERENCE:
                worklist.finish_inference(got, objects(self.bed, got), ("pacs",))
            elif step == "finish":
                worklist.finish_delivery(got)
            elif step == "send" and row.kind == Kind.DELIVERY:
                worklist.begin_sending(got, worklist.result(got), {})
            elif step == "fail":
                worklist.fail(got, "No.")
            elif step == "postpone":
                worklist.postpone(got, 10, "Later.")
            elif step == "hold":
                worklist.hold(got, "Whose?")
            else:
                worklist.heartbeat(got, 50)
            assert mine
        except StaleAttemptError:
            assert not mine

    @rule(data=st.data(), what=st.sampled_from(["retry", "cancel", "release"]))
    def person(self, data: st.DataObject, what: str) -> None:
        number = data.draw(st.sampled_from([row.id for row in self.bed.rows(Row)]))
        try:
            getattr(self.bed.overview, what)(number, "person")
        except WorklistError:
            return

    @rule(seconds=st.sampled_from([1.0, 20.0, 1000.0]))
    def time_passes(self, seconds: float) -> None:
        self.bed.turn(seconds)

    @precondition(lambda self: self.sent < 8)
    @rule()
    def another_image(self) -> None:
        self.bed.take(self.images[self.sent : self.sent + 1])
        self.sent += 1
        self.bed.plan()

    @invariant()
    def every_move_is_legal_and_written_down(self) -> None:
        audit = self.bed.rows(Audit)
        for row in self.bed.rows(Row):
            states = [State(a.event) for a in audit if a.workitem_id == row.id and a.event in set(State)]
            path = [State.SCHEDULED, *states]
            assert all(is_legal(one, other) for one, other in itertools.pairwise(path))
            assert path[-1] == row.state
            if State(row.state) in FINAL:
                assert (row.lease_owner, row.hold) == (None, "")

    @invariant()
    def a_digest_is_worked_on_once(self) -> None:
        digests = [row.digest for row in self.bed.items() if row.replaced_by is None]
        assert len(digests) == len(set(digests))

    @invariant()
    def a_result_that_was_offered_shares_no_generation_with_another(self) -> None:
        offered = {row.id for row in self.bed.rows(Result) if row.first_sent_at is not None}
        seen = [(row.digest, row.generation) for row in self.bed.items() if row.result_id in offered]
        assert len(seen) == len(set(seen))


@pytest.mark.slow
def test_any_order_of_steps_is_legal(tmp_path: Path) -> None:
    Life.base = tmp_path
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
