"""Images that go on: what of a series has still to, the work of it, and what that work lets go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from dicomai.database import audit, holds
from dicomai.database.engine import Database
from dicomai.database.index import SeriesState
from dicomai.database.results import DOCUMENT, made_here, objects_of
from dicomai.database.tables import (
    Acceptance,
    Association,
    Forwarded,
    Instance,
    ResultObject,
    Series,
    Version,
    Workitem,
    WorkitemInput,
)
from dicomai.database.worklist import Claim
from dicomai.forwarding import Deidentify, Forward
from dicomai.workitem import FINAL, Kind, State

_ACTOR = "planner"
_NOT_ON = "It does not go on: "
_MEDIUM, _LOW = 1, 2  # priorities of workitems
_AT_ONCE = 500  # rows in a statement
_MOST_TURNS = 5
"""Which version of an instance by one rule a person has to let go, as each after it: none changes so often."""


@dataclass(frozen=True, slots=True)
class DueForward:
    """A series of which something may have to go on.

    Attributes:
        forward_at: by which a change since it was read is known.
        document: where it holds no images, the key of one of its instances.
    """

    series_id: int
    study_id: int
    trace: str
    revision: int
    forward_at: datetime
    document: str


@dataclass(frozen=True, slots=True)
class Leaving:
    """One instance that goes on.

    Attributes:
        is_image: see `study.is_image`.
        key: of the version, in the store.
    """

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    is_image: bool
    key: str
    version_id: int


@dataclass(slots=True)
class Planned:
    """What an item was planned for, as it is now.

    Attributes:
        leaving: what goes on.
        outdated: how many were left out because another version of them goes after it, by an item of its own.
        doubted: the instances that came with other pixels, or under another series, than those that count.
    """

    leaving: list[Leaving] = field(default_factory=list)
    outdated: int = 0
    doubted: list[str] = field(default_factory=list)


class Forwards:
    """Looks for what has still to go on."""

    def __init__(self, database: Database) -> None:
        """Work on a database."""
        self._db = database

    def due(self, limit: int = 100) -> list[DueForward]:
        """List the series that are complete and may hold something new.

        One that holds no images waits for every series of its study that does: documents refer to images.
        """
        with self._db.read() as session:
            images = sa.exists().where(Instance.series_id == Series.id, Instance.is_image)
            other = sa.orm.aliased(Series)
            receives = sa.exists().where(other.study_id == Series.study_id, other.state == SeriesState.RECEIVING.value)
            query = (
                sa.select(Series, images)
                .where(
                    Series.forward_at <= self._db.now(session),
                    Series.state != SeriesState.RECEIVING.value,
                    sa.or_(images, ~receives),
                )
                .order_by(sa.desc(images), Series.forward_at, Series.id)
                .limit(limit)
            )
            return [
                DueForward(
                    one.id, one.study_id, one.study.trace, one.revision, one.forward_at or self._db.now(session),
                    "" if has_images else _first_key(session, one.id),
                )
                for one, has_images in session.execute(query).all()
            ]  # fmt: skip

    def forget(self) -> None:
        """Say that nothing has to go on of all that is here, as where no rule is configured."""
        with self._db.read() as session:
            if session.scalars(sa.select(Series.id).where(Series.forward_at.is_not(None)).limit(1)).first() is None:
                return
        with self._db.write() as session:
            session.execute(sa.update(Series).where(Series.forward_at.is_not(None)).values(forward_at=None))

    def postpone(self, due: DueForward, until: datetime, why: str) -> None:
        """Look at a series again later; why is said in a sentence, after the reason why nothing is run on it."""
        with self._db.write() as session:
            if session.execute(_as_read(due).values(forward_at=until).returning(Series.id)).first() is not None:
                _remark(session.get_one(Series, due.series_id), why)

    def commit(self, due: DueForward, rules: Sequence[Forward], why_not: str = "") -> int:
        """Write the work of letting a series go on, in one transaction; gives how many workitems that are.

        What went last of its instance by the same rule is left out, and so is what came from the destination. Items
        are held for a person while it is in doubt whose images they are, and where one comes in ever other versions.

        Args:
            due: the series as it was read; where it has changed since, it is due again.
            rules: those that take it.
            why_not: what cannot be told of it, in a sentence.
        """
        with self._db.read() as session:  # of a large study this takes its time, and nobody else can write meanwhile
            doubts = {rule.name: holds.doubt(session, due.study_id, rule.comes_from) for rule in rules}
        with self._db.write() as session:
            now = self._db.now(session)
            if session.execute(_as_read(due).values(forward_at=None).returning(Series.id)).first() is None:
                return 0
            series = session.get_one(Series, due.series_id)
            _remark(series, why_not)
            versions = _versions(session, series)
            made = [item for rule in rules for item in _schedule(session, now, series, rule, versions)]
            for item in made:
                item.hold = doubts[item.route_name] or item.mismatch
                if item.hold:
                    audit.record(session, now, _ACTOR, "held", workitem=item.id, study=item.study_id, detail=item.hold)
            return len(made)

    def planned(self, claim: Claim) -> Planned:
        """Give what an item lets go on: of what it was planned for, the last versions that go by its rule."""
        with self._db.read() as session:
            query = (
                sa.select(Version, Instance, Forwarded.turn, _last_turn())
                .join(Forwarded, Forwarded.version_id == Version.id)
                .join(Instance, Instance.id == Version.instance_id)
                .where(Forwarded.workitem_id == claim.item)
                .order_by(Instance.sop_instance_uid, Version.id)
            )
            rows = session.execute(query).all()
            item = session.get_one(Workitem, claim.item)
            uids = {i.series_id: i.series.series_instance_uid for i in item.inputs}
            found = Planned()
            for version, instance, turn, last in rows:
                if version.conflicting:
                    found.doubted.append(instance.sop_instance_uid)
                elif turn < last:
                    found.outdated += 1
                else:
                    found.leaving.append(
                        Leaving(
                            instance.sop_class_uid, instance.sop_instance_uid, uids[instance.series_id],
                            instance.is_image, version.key, version.id,
                        )
                    )  # fmt: skip
            return found

    def images_before(self, claim: Claim) -> str:
        """Say in a sentence for what a delivery of documents alone has to wait; empty where it need not.

        Images of its study go before it to the same destination; not what has failed, nor what is canceled.
        """
        if "forwards" not in claim.route:
            return ""
        with self._db.read() as session:
            item = session.get_one(Workitem, claim.item)
            if any(one.output != DOCUMENT for one in objects_of(session, item.result_id or 0)):
                return ""
            images = (
                sa.exists()
                .where(Forwarded.workitem_id == Workitem.id)
                .where(Version.id == Forwarded.version_id, Instance.id == Version.instance_id, Instance.is_image)
            )
            others = sa.select(Workitem).where(
                Workitem.kind == Kind.FORWARD.value, Workitem.study_id == item.study_id, images
            )
            for one in session.scalars(others.order_by(Workitem.id)):
                before = _on_its_way(session, one, item.destination)
                if before is not None:
                    held = ", which is held for a person" if before.hold else ""
                    what = f"workitem {before.id}{held}"
                    return f"Waits until the images of its study have gone, which it may refer to: for {what}."
            return ""


def hand_on(session: Session, old: Workitem, new: Workitem) -> None:
    """Let an item that replaces another let go what that one would have."""
    session.execute(sa.update(Forwarded).where(Forwarded.workitem_id == old.id).values(workitem_id=new.id))


def take_over(session: Session, old: Workitem, new: Workitem) -> None:
    """Let a delivery that replaces another offer what that one could not hand over: what was accepted is there."""
    if "forwards" not in old.route or State(old.state) is not State.CANCELED:
        return
    same = (Acceptance.result_object_id, Acceptance.at, Acceptance.status, Acceptance.comment, Acceptance.found)
    rows = sa.select(sa.literal(new.id), *same).where(Acceptance.workitem_id == old.id)
    session.execute(sa.insert(Acceptance).from_select(["workitem_id", *(column.key for column in same)], rows))


def _remark(series: Series, said: str) -> None:
    """Say of a series why it does not go on, beside why nothing is run on it; what was said before is over."""
    reason = series.reason.partition(_NOT_ON)[0].rstrip()
    if said:
        reason = f"{reason} {_NOT_ON}{said}".lstrip()
    if reason != series.reason:
        series.reason = reason


def _last_turn() -> sa.ScalarSelect[int]:
    """Make the query for the turn of what goes last of the instance and by the rule of a row of `Forwarded`."""
    last, of = sa.orm.aliased(Forwarded), sa.orm.aliased(Version)
    return (
        sa.select(sa.func.max(last.turn))
        .join(of, of.id == last.version_id)
        .where(of.instance_id == Instance.id, last.rule == Forwarded.rule)
        .correlate(Instance, Forwarded)
        .scalar_subquery()
    )


def _as_read(due: DueForward) -> sa.Update:
    return sa.update(Series).where(
        Series.id == due.series_id,
        Series.revision == due.revision,
        Series.forward_at == due.forward_at,
        Series.state != SeriesState.RECEIVING.value,
    )


def _first_key(session: Session, series_id: int) -> str:
    keys = (
        sa.select(Version.key)
        .join(Instance, Instance.id == Version.instance_id)
        .where(Instance.series_id == series_id, sa.not_(Version.conflicting))
        .order_by(Instance.sop_instance_uid, Version.received_at.desc(), Version.id.desc())
    )
    return session.scalars(keys.limit(1)).first() or ""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A version that may go on, and who sent it."""

    version: int
    instance: int
    conflicting: bool
    sop_instance_uid: str
    digest: str
    calling_ae: str


def _counting(session: Session, series_id: int) -> list[Version]:
    """Give of each instance of a series the version that counts."""
    rows = session.scalars(
        sa.select(Version)
        .join(Instance, Instance.id == Version.instance_id)
        .where(Instance.series_id == series_id, sa.not_(Version.conflicting))
        .order_by(Version.received_at, Version.id)
    )
    return list({version.instance_id: version for version in rows}.values())


def _versions(session: Session, series: Series) -> list[_Candidate]:
    """List what others made: of each instance the version that counts, and those that contradict it."""
    ours = sa.select(ResultObject.id).where(made_here())
    if session.scalars(ours.where(ResultObject.series_instance_uid == series.series_instance_uid).limit(1)).first():
        return []
    counting = {version.id for version in _counting(session, series.id)}
    rows = session.execute(
        sa.select(Version, Instance.sop_instance_uid, Association.calling_ae)
        .join(Instance, Instance.id == Version.instance_id)
        .outerjoin(Association, Association.id == Version.association_id)
        .where(
            Instance.series_id == series.id,
            ~sa.exists().where(made_here(), ResultObject.sop_instance_uid == Instance.sop_instance_uid),
        )
        .order_by(Instance.sop_instance_uid, Version.id)
    )
    return [
        _Candidate(
            version.id, version.instance_id, version.conflicting, uid, version.digest, (calling_ae or "").strip()
        )
        for version, uid, calling_ae in rows
        if version.conflicting or version.id in counting
    ]


def _schedule(
    session: Session, now: datetime, series: Series, rule: Forward, versions: Sequence[_Candidate]
) -> list[Workitem]:
    """Write the items of one rule: one, or several where not everything goes to every destination."""
    rows = session.execute(
        sa.select(Version.id, Version.instance_id, Forwarded.turn)
        .join(Forwarded, Forwarded.version_id == Version.id)
        .join(Instance, Instance.id == Version.instance_id)
        .where(Forwarded.rule == rule.name, Instance.series_id == series.id)
        .order_by(Forwarded.turn)
    ).all()
    last = {instance: (version, turn) for version, instance, turn in rows if turn}
    # What went before another version of itself goes again where it counts again: a correction was taken back.
    gone = {version for version, instance, turn in rows if not turn or last[instance][0] == version}
    groups: dict[tuple[tuple[str, ...], bool], list[tuple[_Candidate, int]]] = {}
    for one in versions:
        if one.version not in gone:
            turn = 0 if one.conflicting else last.get(one.instance, (0, 0))[1] + 1
            # What came by another way than an association has no AE title.
            where = tuple(name for name in rule.destinations if one.calling_ae not in rule.returns_as.get(name, ()))
            groups.setdefault((where, turn >= _MOST_TURNS), []).append((one, turn))
    return [_write(session, now, series, rule, where, some) for (where, _), some in groups.items() if where]


def _write(
    session: Session,
    now: datetime,
    series: Series,
    rule: Forward,
    destinations: Sequence[str],
    some: Sequence[tuple[_Candidate, int]],
) -> Workitem:
    """Write an item.

    Args:
        session: what it is written in.
        now: the database's time.
        series: what it is of.
        rule: by which.
        destinations: where it goes.
        some: the versions, and which of its instance to go by the rule each is.
    """
    what = "|".join([rule.name, rule.deidentify, *destinations, *(one.digest for one, _ in some)])
    uids = list(dict.fromkeys(one.sop_instance_uid for one, _ in some))
    most = max(turn for _, turn in some)
    item = Workitem(
        kind=Kind.FORWARD.value,
        state=State.SCHEDULED.value,
        study_id=series.study_id,
        route=_route(rule, destinations),
        route_name=rule.name,
        digest=sha256(f"{series.series_instance_uid}|{what}".encode()).hexdigest(),
        # What takes long lets go first what takes no time.
        priority=_MEDIUM if rule.deidentify is Deidentify.NONE else _LOW,
        mismatch=_looping(uids, most) if most >= _MOST_TURNS else "",
        due_at=now,
        created_at=now,
        changed_at=now,
        inputs=[
            WorkitemInput(
                role="forward", series_id=series.id, stack="",
                sop_instance_uids=uids,
            )
        ],
    )  # fmt: skip
    session.add(item)
    session.flush()
    again = sa.delete(Forwarded).where(Forwarded.rule == rule.name)
    for n in range(0, len(some), _AT_ONCE):
        session.execute(again.where(Forwarded.version_id.in_([one.version for one, _ in some[n : n + _AT_ONCE]])))
    rows = [{"version_id": one.version, "rule": rule.name, "workitem_id": item.id, "turn": turn} for one, turn in some]
    session.execute(sa.insert(Forwarded), rows)
    audit.record(session, now, _ACTOR, "scheduled", workitem=item.id, study=series.study_id)
    return item


def _route(rule: Forward, destinations: Sequence[str]) -> Mapping[str, Any]:
    """Say on an item what is done with its images; its deliveries have it too."""
    how = {
        "deidentify": rule.deidentify.value,
        "retain": [one.value for one in rule.retain],
        "returns_as": sorted(rule.comes_from),
    }
    return {"name": rule.name, "level": "series", "destinations": list(destinations), "forwards": how}


def _looping(uids: Sequence[str], turn: int) -> str:
    """Say why a person has to look at what comes in ever other versions."""
    return (
        f"{len(uids)} instances have come in other versions up to {turn} times, such as SOP Instance {uids[0]}: does a"
        " destination send back what it gets? Then name the AE titles under which it sends in its returns_as, and"
        " cancel the item; else release it."
    )


def _on_its_way(session: Session, forward: Workitem, destination: str) -> Workitem | None:
    """Give the item by which images are still on their way to a destination."""
    if destination not in forward.route["destinations"]:  # type: ignore[operator]  # JSON, as `_route` wrote it
        return None
    if State(forward.state) not in FINAL:
        return forward
    deliveries = sa.select(Workitem).where(
        Workitem.kind == Kind.DELIVERY.value,
        Workitem.result_id == forward.result_id,
        Workitem.destination == destination,
        Workitem.replaced_by.is_(None),
    )
    return next((one for one in session.scalars(deliveries) if State(one.state) not in FINAL), None)
