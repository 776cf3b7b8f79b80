"""Images that go on: what of a series has still to, the work of it, and what that work lets go."""

from collections.abc import Iterable, Mapping, Sequence
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
from dicomai.forwarding import Forward
from dicomai.workitem import FINAL, Kind, State

_ACTOR = "planner"


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
        key: of the version that counts, in the store.
    """

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    is_image: bool
    key: str


@dataclass(slots=True)
class Planned:
    """What an item was planned for, as it is now.

    Attributes:
        leaving: what goes on.
        outdated: how many were left out because a later version of them counts, which has an item of its own.
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

    def postpone(self, due: DueForward, until: datetime) -> None:
        """Look at a series again later."""
        with self._db.write() as session:
            session.execute(_as_read(due).values(forward_at=until))

    def commit(self, due: DueForward, rules: Iterable[Forward]) -> int:
        """Write the work of letting a series go on, in one transaction; gives how many workitems that are.

        What went before by the same rule is left out, and so is what came from the destination. Items that hold an
        instance which contradicts a known one are held for a person.

        Args:
            due: the series as it was read; where it has changed since, it is due again.
            rules: those that take it.
        """
        with self._db.write() as session:
            now = self._db.now(session)
            if session.execute(_as_read(due).values(forward_at=None).returning(Series.id)).first() is None:
                return 0
            series = session.get_one(Series, due.series_id)
            versions = _versions(session, series)
            made = [item for rule in rules for item in _schedule(session, now, series, rule, versions)]
            if made:
                holds.settle(session, now, due.study_id, _ACTOR)
            return len(made)

    def planned(self, claim: Claim) -> Planned:
        """Give what an item lets go on: of what it was planned for, the versions that count now."""
        with self._db.read() as session:
            query = (
                sa.select(Version, Instance)
                .join(Forwarded, Forwarded.version_id == Version.id)
                .join(Instance, Instance.id == Version.instance_id)
                .where(Forwarded.workitem_id == claim.item)
                .order_by(Instance.sop_instance_uid, Version.id)
            )
            rows = session.execute(query).all()
            item = session.get_one(Workitem, claim.item)
            uids = {i.series_id: i.series.series_instance_uid for i in item.inputs}
            counting = {one.id for number in uids for one in _counting(session, number)}
            found = Planned()
            for version, instance in rows:
                if version.conflicting:
                    found.doubted.append(instance.sop_instance_uid)
                elif version.id not in counting:
                    found.outdated += 1
                else:
                    found.leaving.append(
                        Leaving(
                            instance.sop_class_uid, instance.sop_instance_uid, uids[instance.series_id],
                            instance.is_image, version.key,
                        )
                    )  # fmt: skip
            return found

    def images_before(self, claim: Claim) -> bool:
        """Tell whether a delivery of documents alone has to wait: images of their study go before it.

        Those that were planned before it and go to the same destination; not what has failed, nor what is canceled.
        """
        if "forwards" not in claim.route:
            return False
        with self._db.read() as session:
            item = session.get_one(Workitem, claim.item)
            if any(one.output != DOCUMENT for one in objects_of(session, item.result_id or 0)):
                return False
            images = (
                sa.exists()
                .where(Forwarded.workitem_id == Workitem.id)
                .where(Version.id == Forwarded.version_id, Instance.id == Version.instance_id, Instance.is_image)
            )
            earlier = session.scalars(
                sa.select(Workitem).where(
                    Workitem.kind == Kind.FORWARD.value,
                    Workitem.study_id == item.study_id,
                    Workitem.id < holds.origin_of(session, item).id,
                    images,
                )
            )
            return any(_is_on_its_way(session, one, item.destination) for one in earlier)


def hand_on(session: Session, old: Workitem, new: Workitem) -> None:
    """Let an item that replaces another let go what that one would have."""
    session.execute(sa.update(Forwarded).where(Forwarded.workitem_id == old.id).values(workitem_id=new.id))


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
        _Candidate(version.id, uid, version.digest, (calling_ae or "").strip())
        for version, uid, calling_ae in rows
        if version.conflicting or version.id in counting
    ]


def _schedule(
    session: Session, now: datetime, series: Series, rule: Forward, versions: Sequence[_Candidate]
) -> list[Workitem]:
    """Write the items of one rule: one, or several where not everything goes to every destination."""
    numbers = sa.select(Version.id).join(Instance, Instance.id == Version.instance_id)
    gone = set(
        session.scalars(
            sa.select(Forwarded.version_id).where(
                Forwarded.rule == rule.name,
                Forwarded.version_id.in_(numbers.where(Instance.series_id == series.id)),
            )
        )
    )
    groups: dict[tuple[str, ...], list[_Candidate]] = {}
    for one in versions:
        if one.version not in gone:
            # What came by another way than an association has no AE title, as a destination of another type has none.
            where = tuple(name for name in rule.destinations if rule.ae_titles.get(name) != one.calling_ae)
            groups.setdefault(where, []).append(one)
    return [_write(session, now, series, rule, where, some) for where, some in groups.items() if where]


def _write(
    session: Session,
    now: datetime,
    series: Series,
    rule: Forward,
    destinations: Sequence[str],
    some: Sequence[_Candidate],
) -> Workitem:
    what = "|".join([rule.name, rule.deidentify, *destinations, *(one.digest for one in some)])
    item = Workitem(
        kind=Kind.FORWARD.value,
        state=State.SCHEDULED.value,
        study_id=series.study_id,
        route=_route(rule, destinations),
        route_name=rule.name,
        digest=sha256(f"{series.series_instance_uid}|{what}".encode()).hexdigest(),
        due_at=now,
        created_at=now,
        changed_at=now,
        inputs=[
            WorkitemInput(
                role="forward", series_id=series.id, stack="",
                sop_instance_uids=list(dict.fromkeys(one.sop_instance_uid for one in some)),
            )
        ],
    )  # fmt: skip
    session.add(item)
    session.flush()
    rows = [{"version_id": one.version, "rule": rule.name, "workitem_id": item.id} for one in some]
    session.execute(sa.insert(Forwarded), rows)
    audit.record(session, now, _ACTOR, "scheduled", workitem=item.id, study=series.study_id)
    return item


def _route(rule: Forward, destinations: Sequence[str]) -> Mapping[str, Any]:
    """Say on an item what is done with its images; its deliveries have it too."""
    how = {"deidentify": rule.deidentify.value, "retain": [one.value for one in rule.retain]}
    return {"name": rule.name, "level": "series", "destinations": list(destinations), "forwards": how}


def _is_on_its_way(session: Session, forward: Workitem, destination: str) -> bool:
    if destination not in forward.route["destinations"]:  # type: ignore[operator]  # JSON, as `_route` wrote it
        return False
    if State(forward.state) not in FINAL:
        return True
    deliveries = sa.select(Workitem.state).where(
        Workitem.kind == Kind.DELIVERY.value,
        Workitem.result_id == forward.result_id,
        Workitem.destination == destination,
        Workitem.replaced_by.is_(None),
    )
    return any(State(state) not in FINAL for state in session.scalars(deliveries))
