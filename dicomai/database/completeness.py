"""Is a series whole? What other services announced of it, held against what is here.

An announcement that names more than is here always lengthens the wait. It shortens it only where it is the last word
of its source and says exactly what is here: fewer would be half a series, more a source that counts otherwise.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Session

from dicomai.database.tables import (
    Announcement,
    Association,
    AssociationSeries,
    Instance,
    ProcedureStep,
    Series,
    Study,
    Version,
)


class Kind(StrEnum):
    """Which service an announcement comes by."""

    STEP = "mpps"  # Modality Performed Procedure Step (PS3.4 Annex F)
    AVAILABILITY = "availability"  # Instance Availability Notification (PS3.4 Annex R)
    COUNT = "query"  # NumberOfSeriesRelatedInstances (PS3.4 C.6.1.1)


class StepState(StrEnum):
    """Performed Procedure Step Status (0040,0252); the last two are final."""

    IN_PROGRESS = "IN PROGRESS"
    COMPLETED = "COMPLETED"
    DISCONTINUED = "DISCONTINUED"


PATIENCE = timedelta(hours=1)
"""How long after the last image an announcement makes a series wait longer, and a planning start over.

One who announces ever more could otherwise keep a series from a person for ever. What comes later holds the work that
is planned, but no longer puts that off.
"""

_WHO = {
    Kind.STEP: "its modality's procedure step",
    Kind.AVAILABILITY: "an availability notification",
    Kind.COUNT: "the source '{origin}'",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the announcements of a series come to.

    Attributes:
        expected: how many instances there are at least, images or not.
        missing: how many of them are not here.
        who: who announced most.
        announced_at: the newest announcement.
        whole: all is here that a source gave as its last word, and nothing else: no need to wait.
    """

    expected: int
    missing: int
    who: str
    announced_at: datetime
    whole: bool


def judge(session: Session, series: Series) -> Verdict | None:
    """Hold what was announced of a series against what is here; None where nothing was announced.

    Where announcements contradict each other the larger one counts.

    Args:
        session: the transaction to look in.
        series: which holds images.
    """
    announced = session.scalars(
        sa.select(Announcement).where(Announcement.series_instance_uid == series.series_instance_uid)
    ).all()
    if not announced:
        return None
    here = set(session.scalars(sa.select(Instance.sop_instance_uid).where(Instance.series_id == series.id)))
    named = {uid for one in announced for uid in one.sop_instance_uids or ()}
    largest = max(announced, key=lambda one: one.instances)
    expected = max(len(named), largest.instances)
    missing = max(len(named - here), expected - len(here))
    going_on = any(one.kind == Kind.STEP and not one.is_final for one in announced)
    # What came again with other attributes is being corrected, and nobody says how much of it is still to come.
    versions = sa.select(sa.func.count(Version.id)).join(Instance, Instance.id == Version.instance_id)
    is_corrected = session.execute(versions.where(Instance.series_id == series.id)).scalar_one() > len(here)
    is_exact = missing == 0 and expected == len(here) and not is_corrected
    return Verdict(
        expected=expected,
        missing=missing,
        who=_WHO[Kind(largest.kind)].format(origin=largest.origin),
        announced_at=max(one.announced_at for one in announced),
        whole=is_exact and not going_on and any(_may_shorten(session, series, expected, one) for one in announced),
    )


def lack(session: Session, series: Series) -> str:
    """Say in a sentence what a series lacks of that which was announced; empty where it lacks nothing."""
    verdict = judge(session, series)
    if verdict is None or not verdict.missing:
        return ""
    return (
        f"Series {series.series_instance_uid} lacks {verdict.missing} of {verdict.expected} instances that "
        f"{verdict.who} announced; send the rest, or release the item to go on with what is here, or cancel it."
    )


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is still to come of a study, as its modality's procedure steps have it.

    Attributes:
        absent: SeriesInstanceUIDs of series with images of which nothing is here.
        going_on: whether a step is in progress.
        changed_at: the newest word of these steps; None where there is none.
    """

    absent: tuple[str, ...]
    going_on: bool
    changed_at: datetime | None


def outlook(session: Session, study: Study) -> Outlook:
    """Say what is still to come of a study. Only a procedure step knows: others speak of what they have.

    Args:
        session: the transaction to look in.
        study: of which some series are here.
    """
    steps = session.scalars(
        sa.select(ProcedureStep).where(ProcedureStep.study_instance_uid == study.study_instance_uid)
    ).all()
    here = sa.exists().where(Series.series_instance_uid == Announcement.series_instance_uid)
    absent = session.scalars(
        sa.select(Announcement.series_instance_uid).where(
            Announcement.study_instance_uid == study.study_instance_uid,
            Announcement.kind == Kind.STEP.value,
            Announcement.instances > 0,
            ~here,
        )
    )
    return Outlook(
        absent=tuple(sorted(set(absent))),
        going_on=any(step.state == StepState.IN_PROGRESS for step in steps),
        changed_at=max((step.changed_at for step in steps), default=None),
    )


def lack_of_study(session: Session, study: Study) -> str:
    """Say in a sentence which series of a study were announced and are not here; empty where all are."""
    absent = outlook(session, study).absent
    if not absent:
        return ""
    more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
    return (
        f"Of series {absent[0]}{more} that the modality's procedure step announced nothing has come; send it, or "
        "release the item to go on with what is here, or cancel it."
    )


def _may_shorten(session: Session, series: Series, expected: int, one: Announcement) -> bool:
    """Tell whether this one alone says that the series is whole."""
    if not one.is_final or one.instances != expected or one.study_instance_uid != series.study.study_instance_uid:
        return False
    match Kind(one.kind):
        case Kind.STEP:
            return True
        case Kind.COUNT:  # a source that receives itself has a count that grows: both queries came after the last image
            return one.announced_at >= series.last_received_at
        case Kind.AVAILABILITY:  # the standard lets it speak of any part of a series (PS3.4 R.1.1)
            carriers = sa.select(Association.id).join(
                AssociationSeries, AssociationSeries.association_id == Association.id
            )
            is_open = carriers.where(AssociationSeries.series_id == series.id, Association.ended_at.is_(None))
            return session.scalars(is_open.limit(1)).first() is None
