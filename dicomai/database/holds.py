"""Why work has to wait for a person: doubt about whose images a study holds, or images that are known to be missing."""

from collections.abc import Iterable
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from dicomai.database import audit
from dicomai.database.completeness import lack, lack_of_study
from dicomai.database.tables import Announcement, Instance, ProcedureStep, Series, Study, Version, Workitem
from dicomai.study import Identity
from dicomai.workitem import FINAL, Kind, State


def doubt(session: Session, study_id: int) -> str:
    """Say in a sentence why it is in doubt whose images a study holds; empty where it is not.

    Args:
        session: the transaction to look in.
        study_id: the study.
    """
    rows = session.execute(
        sa.select(Instance.id, Instance.conflict, Version)
        .join(Version, Version.instance_id == Instance.id)
        .join(Series, Series.id == Instance.series_id)
        .where(Series.study_id == study_id, Instance.is_image, sa.not_(Version.conflicting))
        .order_by(Instance.id, Version.received_at, Version.id)
    ).all()
    flagged = session.scalars(sa.select(Series.conflict).where(Series.study_id == study_id, Series.conflict != ""))
    of_steps = sa.select(ProcedureStep.doubt).where(ProcedureStep.doubt != "", of_study(study_id))
    conflicts = sorted(
        {conflict for _, conflict, _ in rows if conflict} | set(flagged) | set(session.scalars(of_steps))
    )
    if conflicts:
        more = f" (And {len(conflicts) - 1} more of the kind.)" if len(conflicts) > 1 else ""
        return f"{conflicts[0]}{more} Release the item to go on with the images as they came first, or cancel it."
    identities = {identity_of(version) for version in {instance: v for instance, _, v in rows}.values()}
    if len(identities) > 1:
        first, *others = identities
        keywords = sorted({keyword for other in others for keyword in first.differences(other)})
        return (
            f"The images of this study disagree in {', '.join(keywords)}; "
            "correct them in the PACS and send the study again."
        )
    return ""


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
    return doubt(session, item.study_id) or shortage(session, item)


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
    doubted = doubt(session, study_id)
    items = session.scalars(
        sa.select(Workitem)
        .where(Workitem.study_id == study_id, Workitem.state.not_in([state.value for state in FINAL]))
        .order_by(Workitem.id)
    ).all()
    for item in items:
        if item.hold == (doubted or standing(session, item)):
            continue
        session.refresh(item, with_for_update=True)  # its delivery, or a person, may just have held it or let it go
        reason = doubted or standing(session, item)
        if item.hold == reason or State(item.state) in FINAL:
            continue
        item.hold = reason
        item.changed_at = now
        event = "held" if reason else "let go"
        audit.record(session, now, actor, event, workitem=item.id, study=study_id, detail=reason)
