"""Why work has to wait for a person: doubt about whose images a study holds, or images that are known to be missing."""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from dicomai.database import audit
from dicomai.database.completeness import lack, lack_of_study
from dicomai.database.results import made_here
from dicomai.database.tables import (
    Announcement,
    Association,
    Instance,
    ProcedureStep,
    ResultObject,
    Series,
    Study,
    Version,
    Workitem,
)
from dicomai.study import Identity
from dicomai.workitem import FINAL, Kind, State


def doubt(session: Session, study_id: int, but_from: Collection[str] | None = None) -> str:
    """Say in a sentence why it is in doubt whose images a study holds; empty where it is not.

    Args:
        session: the transaction to look in.
        study_id: the study.
        but_from: for images that go on, the AE titles of which nothing counts: what they go to sends its own view of
            them back. Whose the documents are counts then too, as they go on with the images. None for other work.
    """
    of_those = sa.and_(Instance.series_id == Series.id, Series.study_id == study_id)
    counts = sa.and_(Version.instance_id == Instance.id, sa.not_(Version.conflicting), *_from_others(Version, but_from))
    conflict = sa.select(Instance.conflict).where(of_those, Instance.is_image, Instance.conflict != "")
    if but_from is None:
        counts = sa.and_(counts, Instance.is_image)
    else:
        ours = sa.exists().where(made_here(), ResultObject.sop_instance_uid == Instance.sop_instance_uid)
        counts = sa.and_(counts, ~ours)
        contradicts = sa.and_(Version.instance_id == Instance.id, Version.conflicting, *_from_others(Version, but_from))
        conflict = sa.select(Instance.conflict).where(of_those, Instance.conflict != "", sa.exists().where(contradicts))
    flagged = sa.select(Series.conflict).where(Series.study_id == study_id, Series.conflict != "")
    of_steps = sa.select(ProcedureStep.doubt).where(ProcedureStep.doubt != "", of_study(study_id))
    conflicts = sorted({said for query in (conflict, flagged, of_steps) for said in session.scalars(query.distinct())})
    if conflicts:
        more = f" (And {len(conflicts) - 1} more of the kind.)" if len(conflicts) > 1 else ""
        return f"{conflicts[0]}{more} Release the item to go on with the images as they came first, or cancel it."
    who = (Version.patient_id, Version.issuer_of_patient_id, Version.patient_name, Version.patient_birth_date)
    query = sa.select(*who, Instance.is_image).where(of_those, counts).distinct()
    if len({row[:-1] for row in session.execute(query)}) > 1:  # maybe in versions that count no more
        later = sa.orm.aliased(Version)
        newer = sa.or_(
            later.received_at > Version.received_at,
            sa.and_(later.received_at == Version.received_at, later.id > Version.id),
        )
        others = sa.and_(later.instance_id == Instance.id, sa.not_(later.conflicting), *_from_others(later, but_from))
        rows = session.execute(query.where(~sa.exists().where(others, newer)).order_by(*who)).all()
        keywords = _disagreeing([(Identity(*row[:-1]), row[-1]) for row in rows])
        if keywords:
            return _disagreement(keywords, goes_on=but_from is not None)
    return ""


def _disagreeing(identities: Sequence[tuple[Identity, bool]]) -> list[str]:
    """Name the attributes in which images differ, or which documents give otherwise: those leave out what they may.

    Args:
        identities: each with whether images have it, or documents.
    """
    of_images = [identity for identity, is_image in identities if is_image]
    of_documents = [identity for identity, is_image in identities if not is_image]
    found = {keyword for other in of_images[1:] for keyword in of_images[0].differences(other)}
    for one in of_images or of_documents[:1]:
        found.update(keyword for other in of_documents for keyword in one.contradictions(other))
    return sorted(found)


def _disagreement(keywords: Sequence[str], *, goes_on: bool) -> str:
    if not goes_on:
        return (
            f"The images of this study disagree in {', '.join(keywords)}; "
            "correct them in the PACS and send the study again."
        )
    return (
        f"What came of this study disagrees in {', '.join(keywords)}: have the right one sent, or release the item to"
        " let all go on as it came, or cancel it."
    )


def _from_others(version: type[Version], but_from: Collection[str] | None) -> tuple[sa.ColumnElement[bool], ...]:
    if not but_from:
        return ()
    from_there = sa.exists().where(
        Association.id == version.association_id, sa.func.trim(Association.calling_ae).in_(sorted(but_from))
    )
    return (~from_there,)


def doubt_about(session: Session, item: Workitem) -> str:
    """Say in a sentence why it is in doubt whose images those of an item are; empty where it is not."""
    how: Any = item.route.get("forwards")
    return doubt(session, item.study_id, None if how is None else how["returns_as"])


def doubted(session: Session, item: Workitem) -> str:
    """Say the doubt about an item; empty also where a person has released it in spite of that."""
    said = doubt_about(session, item)
    return "" if said == item.released else said


def of_study(study_id: int) -> sa.ColumnElement[bool]:
    """Make the condition on a procedure step that images of a study may be its own.

    It made the series that it names; and where it was begun under the study, also what it does not name: one that was
    discontinued often names nothing, though its images were sent.
    """
    named = (
        sa.select(Announcement.origin)
        .join(Series, Series.series_instance_uid == Announcement.series_instance_uid)
        .where(Series.study_id == study_id)
    )
    begun_under = sa.select(Study.study_instance_uid).where(Study.id == study_id)
    return sa.or_(
        ProcedureStep.sop_instance_uid.in_(named), ProcedureStep.study_instance_uid == begun_under.scalar_subquery()
    )


def identity_of(version: Version) -> Identity:
    """Say whose an image is, as this version of it has it."""
    return Identity(version.patient_id, version.issuer_of_patient_id, version.patient_name, version.patient_birth_date)


def why(session: Session, item: Workitem) -> str:
    """Say in a sentence why an item has to wait for a person; empty where it need not."""
    return doubted(session, item) or shortage(session, item)


def shortage(session: Session, item: Workitem) -> str:
    """Say in a sentence what the series that an item works on lack; empty where they lack nothing.

    Work on a study waits for every series of it, also for those of which nothing has come, other work for its inputs.
    """
    if Kind(origin_of(session, item).kind) is not Kind.INFERENCE:
        # A withdrawal is about what was sent, whatever is missing now; and what is here goes on without what may come.
        return ""
    found = next(filter(None, (lack(session, series) for series in series_behind(session, item))), "")
    return found or (lack_of_study(session, item.study) if item.route["level"] == "study" else "")


def series_behind(session: Session, item: Workitem) -> Iterable[Series]:
    """Give the series that an item is about; of a delivery, those of the inference that gave its result."""
    if item.route["level"] == "study":
        query = sa.select(Series).where(Series.study_id == item.study_id, Series.revision > 0)
        return session.scalars(query.order_by(Series.id)).all()
    return [given.series for given in origin_of(session, item).inputs]


def origin_of(session: Session, item: Workitem) -> Workitem:
    """Give the inference, withdrawal or forward that gave the result of a delivery; one of those itself."""
    if Kind(item.kind) is not Kind.DELIVERY:
        return item
    origin = sa.select(Workitem).where(Workitem.kind != Kind.DELIVERY.value, Workitem.result_id == item.result_id)
    return session.scalars(origin.order_by(Workitem.id)).first() or item


def standing(session: Session, item: Workitem) -> str:
    """Say why an item has to wait where it is not in doubt whose images they are: a shortage, or a mismatch."""
    return shortage(session, item) or item.mismatch


def settle(session: Session, now: datetime, study_id: int, actor: str) -> None:
    """Hold the open items of a study, or let them go when there is no reason any more."""
    items = session.scalars(
        sa.select(Workitem)
        .where(Workitem.study_id == study_id, Workitem.state.not_in([state.value for state in FINAL]))
        .order_by(Workitem.id)
    ).all()
    known: dict[str, str] = {}

    def reason_of(item: Workitem) -> str:
        rule = item.route_name if "forwards" in item.route else ""  # the doubt is the same for all of one rule
        if rule not in known:
            known[rule] = doubt_about(session, item)
        return ("" if known[rule] == item.released else known[rule]) or standing(session, item)

    for item in items:
        if item.hold == reason_of(item):
            continue
        session.refresh(item, with_for_update=True)  # its delivery, or a person, may just have held it or let it go
        reason = reason_of(item)
        if item.hold == reason or State(item.state) in FINAL:
            continue
        item.hold = reason
        item.changed_at = now
        event = "held" if reason else "let go"
        audit.record(session, now, actor, event, workitem=item.id, study=study_id, detail=reason)
