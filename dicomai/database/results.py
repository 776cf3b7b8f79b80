"""Results: what an inference gave, as rows that name objects in the store, in the order in which they are sent."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from dicomai.database import audit
from dicomai.database.tables import Acceptance, Forwarded, Result, ResultObject, Version, Workitem
from dicomai.database.transitions import cancel
from dicomai.workitem import Kind, State

_SEGMENTATIONS = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"})
_WANTED = "wanted"  # in the route of a delivery: the outputs that go to its destination
_DOCUMENTS = "1.2.840.10008.5.1.4.1.1.88."

IMAGE, DOCUMENT, DEIDENTIFIED = "image", "document", "deidentified"
"""What a forwarded object is, in place of the output that gave it; the first two are what came, byte for byte."""


@dataclass(frozen=True, slots=True)
class FrozenObject:
    """One result object whose bytes are in the store.

    Attributes:
        version_id: of what goes on, the version of an instance that it is, or is made of.
    """

    output: str
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    series_number: int
    key: str
    id: int = 0
    version_id: int | None = None


def keep(session: Session, now: datetime, item: Workitem, objects: Sequence[FrozenObject]) -> None:
    """Write down what an item gave."""
    result = Result(
        created_at=now,
        objects=[
            ResultObject(
                n=n,
                output=o.output,
                sop_class_uid=o.sop_class_uid,
                sop_instance_uid=o.sop_instance_uid,
                series_instance_uid=o.series_instance_uid,
                series_number=o.series_number,
                key=o.key,
                version_id=o.version_id,
            )
            for n, o in enumerate(sorted(objects, key=_turn))
        ],
    )
    session.add(result)
    session.flush()
    item.result_id = result.id


def schedule_delivery(
    session: Session,
    now: datetime,
    item: Workitem,
    destination: str,
    actor: str,
    wanted: Sequence[str] | None = None,
) -> Workitem:
    """Write the delivery of an item's result to one destination.

    Args:
        session: what it is written in.
        now: the database's time.
        item: what gave the result, or an earlier delivery of it.
        destination: where it goes.
        actor: who schedules it.
        wanted: the outputs that go there; without it all, or those of the earlier delivery. Where the result has none
            of them, the delivery ends at once.
    """
    delivery = Workitem(
        kind=Kind.DELIVERY.value,
        state=State.SCHEDULED.value,
        hold="",
        priority=item.priority,
        study_id=item.study_id,
        route=item.route if wanted is None else {**item.route, _WANTED: list(wanted)},
        route_name=item.route_name,
        digest=item.digest,
        generation=item.generation,
        result_id=item.result_id,
        released=item.released,
        destination=destination,
        due_at=now,
        created_at=now,
        changed_at=now,
    )
    session.add(delivery)
    session.flush()
    audit.record(session, now, actor, "scheduled", workitem=delivery.id, study=item.study_id, detail=destination)
    if not any(wants(delivery, o.output) for o in objects_of(session, item.result_id or 0)):
        what = f" that goes to destination '{destination}' ({', '.join(wanted)})" if wanted else ""
        cancel(session, now, delivery, actor, f"Nothing was sent: the result has no object{what}.")
    return delivery


def wants(delivery: Workitem, output: str) -> bool:
    """Tell whether an output goes to the destination of a delivery."""
    return output in delivery.route.get(_WANTED, (output,))  # type: ignore[operator]  # JSON, as it was written above


def made_here() -> sa.ColumnElement[bool]:
    """Make the condition on a `ResultObject` that this node made it: what it only forwards is its source's."""
    return ResultObject.output.not_in((IMAGE, DOCUMENT))


def objects_of(session: Session, result_id: int) -> list[FrozenObject]:
    """Give the objects of a result in the order in which they are sent."""
    rows = session.scalars(sa.select(ResultObject).where(ResultObject.result_id == result_id).order_by(ResultObject.n))
    return [
        FrozenObject(
            o.output,
            o.sop_class_uid,
            o.sop_instance_uid,
            o.series_instance_uid,
            o.series_number,
            o.key,
            o.id,
            o.version_id,
        )
        for o in rows
    ]


def outdated(session: Session, item: Workitem) -> set[int]:
    """Give the numbers of what a delivery of images that go on must not send any more.

    By the same rule another version of each goes after it: of a correction and what it corrects, that comes last.
    """
    if "forwards" not in item.route:
        return set()
    mine, theirs = sa.orm.aliased(Forwarded), sa.orm.aliased(Forwarded)
    old, new = sa.orm.aliased(Version), sa.orm.aliased(Version)
    query = (
        sa.select(ResultObject.id)
        .join(old, old.id == ResultObject.version_id)
        .join(mine, mine.version_id == old.id)
        .join(new, new.instance_id == old.instance_id)
        .join(theirs, theirs.version_id == new.id)
        .where(
            ResultObject.result_id == item.result_id,
            mine.rule == item.route_name,
            theirs.rule == item.route_name,
            theirs.turn > mine.turn,
        )
    )
    return set(session.scalars(query))


def left_out(session: Session, item: Workitem) -> str:
    """Say in a sentence what of a delivery did not go, as newer versions of it do; empty where all did."""
    accepted = sa.select(Acceptance.result_object_id).where(Acceptance.workitem_id == item.id)
    left = outdated(session, item) - set(session.scalars(accepted))
    of = sa.select(sa.func.count(ResultObject.id)).where(ResultObject.result_id == item.result_id)
    if not left:
        return ""
    return f"{len(left)} of {session.scalars(of).one()} objects did not go: newer ones of theirs go by themselves."


def _turn(frozen: FrozenObject) -> int:
    """Say when an object is sent: segmentations first, what refers to others (SR, KO) last, in whatever order made."""
    if frozen.output == DOCUMENT or frozen.sop_class_uid.startswith(_DOCUMENTS):
        return 2
    return 0 if frozen.sop_class_uid in _SEGMENTATIONS else 1
