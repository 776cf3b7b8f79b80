"""The index of studies, series and instances: what is here, in which version, and what contradicts what."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from dicomai.database import audit
from dicomai.database.engine import Database
from dicomai.database.results import made_here
from dicomai.database.tables import (
    Association,
    AssociationSeries,
    Instance,
    ResultObject,
    Series,
    Study,
    Version,
)
from dicomai.errors import ContendedError, StoreError
from dicomai.log import trace_id
from dicomai.study import Identity

_TRIES = 5


class SeriesState(StrEnum):
    """How far the planning of a series is."""

    RECEIVING = "RECEIVING"  # images came since it was last planned; waits until it is complete
    WAITING = "WAITING"  # its own work is planned; that of its study waits for series that are announced
    COMPLETE = "COMPLETE"  # planned: there is work, or a reason why there is none


class Recorded(StrEnum):
    """What an arrival meant."""

    NEW = "new"  # an instance that was not here
    SAME = "same"  # the same bytes again
    UPDATED = "updated"  # equal pixels under another header: the newest attributes count
    CONFLICT = "conflict"  # other pixels, or another series: kept, flagged, the work held
    UNDECIDED = "undecided"  # nothing was recorded: the caller must compare pixels first


@dataclass(frozen=True, slots=True)
class Arrival:
    """One received instance, as the index wants to know it."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    is_image: bool
    modality: str
    description: str
    identity: Identity
    key: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was recorded of an arrival.

    Attributes:
        recorded: what it meant.
        trace: of its study, see `log.trace_id`.
        series_id: of the series that holds the instance.
        rival: for UNDECIDED the key of the version to compare with.
        is_image: it counts as an image to analyse: it is one, and not a result of this node's.
    """

    recorded: Recorded
    trace: str
    series_id: int
    rival: str = ""
    is_image: bool = False


class Index:
    """Records arrivals."""

    def __init__(self, database: Database) -> None:
        """Work on a database."""
        self._db = database

    def record(
        self, arrival: Arrival, association: int | None, quiet_period: float, *, same_pixels: bool | None = None
    ) -> Outcome:
        """Record an arrival in one transaction.

        Args:
            arrival: what came; its file is published already.
            association: the association that brought it.
            quiet_period: seconds after which its series may be looked at.
            same_pixels: the answer to an earlier UNDECIDED: whether pixels and geometry equal the known ones.

        Raises:
            StoreError: the database failed; nothing was recorded.
        """
        for _ in range(_TRIES):
            try:
                with self._db.write() as session:
                    entry = _Entry(session, arrival, association, quiet_period, self._db.now(session))
                    return self._record(entry, same_pixels)
            except (IntegrityError, ContendedError):
                continue  # another association recorded the same study, series or instance at this moment
        raise StoreError("The index did not settle on an instance that several associations send at once; send again.")

    def is_known(self, key: str) -> bool:
        """Tell whether a version with this key was committed."""
        with self._db.read() as session:
            return session.execute(sa.select(Version.id).where(Version.key == key)).first() is not None

    def is_new_of_carried(self, arrival: Arrival, association: int | None) -> bool:
        """Tell whether nobody knows an instance, while its association has brought others of its series."""
        known = sa.select(Instance.id).where(Instance.sop_instance_uid == arrival.sop_instance_uid)
        query = (
            sa.select(AssociationSeries.series_id)
            .join(Series, Series.id == AssociationSeries.series_id)
            .join(Study, Study.id == Series.study_id)
            .where(
                AssociationSeries.association_id == association,
                Study.study_instance_uid == arrival.study_instance_uid,
                Series.series_instance_uid == arrival.series_instance_uid,
            )
        )
        with self._db.read() as session:
            return session.execute(query).first() is not None and session.execute(known).first() is None

    def _record(self, entry: "_Entry", same: bool | None) -> Outcome:
        session, arrival = entry.session, entry.arrival
        study = _study(entry)
        series = _series(entry, study)
        instance = session.scalar(sa.select(Instance).where(Instance.sop_instance_uid == arrival.sop_instance_uid))
        if instance is not None:
            return self._record_again(entry, instance, series, same)
        ours = _is_ours(session, arrival)
        instance = Instance(
            series_id=series.id,
            sop_instance_uid=arrival.sop_instance_uid,
            sop_class_uid=arrival.sop_class_uid,
            is_image=arrival.is_image and not ours,
        )
        session.add(instance)
        session.flush()
        _add_version(entry, instance)
        _carry(entry, series)
        if instance.is_image:
            if series.revision == 0:
                _flag_shared(session, series)
            _reopen(entry, series)
        else:
            series.forward_at = entry.now + timedelta(seconds=entry.quiet_period)
            if series.state == SeriesState.COMPLETE and not series.reason:
                series.reason = "Made by this node." if ours else "Holds no images, so nothing is run on it."
        return Outcome(Recorded.NEW, study.trace, series.id, is_image=instance.is_image)

    def _record_again(self, entry: "_Entry", instance: Instance, series: Series, same: bool | None) -> Outcome:
        trace = series.study.trace
        known = next((version for version in instance.versions if version.digest == entry.arrival.digest), None)
        current = max((v for v in instance.versions if not v.conflicting), key=lambda v: (v.received_at, v.id))
        if known is not None and (known is current or known.conflicting):
            _carry(entry, instance.series)
            return Outcome(Recorded.SAME, trace, instance.series_id)
        elsewhere = instance.series_id != series.id
        if not elsewhere and same is None:
            return Outcome(Recorded.UNDECIDED, trace, instance.series_id, current.key)
        if known is None:
            known = _add_version(entry, instance)
        if elsewhere or not same:
            what = "is known under another series or study" if elsewhere else "came again with other pixels"
            instance.conflict = f"SOP Instance {instance.sop_instance_uid} {what}."
            known.conflicting = True
            audit.record(
                entry.session, entry.now, "receiver", "conflict", study=series.study_id, detail=instance.conflict
            )
            if elsewhere:  # this series lacks it now, so that nothing may be run here either
                series.conflict = series.reason = instance.conflict
        else:
            known.received_at = entry.now
            instance.examined_at = None  # a rejection note may name more now
        _carry(entry, instance.series)
        if instance.is_image:
            _reopen(entry, instance.series)
        else:
            instance.series.forward_at = entry.now + timedelta(seconds=entry.quiet_period)
        recorded = Recorded.CONFLICT if known.conflicting else Recorded.UPDATED
        return Outcome(recorded, trace, instance.series_id)


@dataclass(frozen=True, slots=True)
class _Entry:
    """What one recording carries along."""

    session: Session
    arrival: Arrival
    association: int | None
    quiet_period: float
    now: datetime


def _study(entry: _Entry) -> Study:
    session, arrival = entry.session, entry.arrival
    study = session.scalar(sa.select(Study).where(Study.study_instance_uid == arrival.study_instance_uid))
    if study is None:
        study = Study(
            study_instance_uid=arrival.study_instance_uid,
            trace=trace_id(arrival.study_instance_uid),
            created_at=entry.now,
        )
        session.add(study)
        session.flush()
    return study


def _series(entry: _Entry, study: Study) -> Series:
    session, arrival = entry.session, entry.arrival
    series = session.scalar(
        sa.select(Series).where(Series.study_id == study.id, Series.series_instance_uid == arrival.series_instance_uid)
    )
    if series is None:
        series = Series(
            study_id=study.id,
            series_instance_uid=arrival.series_instance_uid,
            modality=arrival.modality[:16],
            description=arrival.description[:64],
            state=SeriesState.COMPLETE.value,
            reason="",
            revision=0,
            last_received_at=entry.now,
        )
        session.add(series)
        session.flush()
    return series


def _flag_shared(session: Session, series: Series) -> None:
    """Flag a series whose UID is that of a series of another study, and the other one: a person has to decide."""
    others = session.scalars(
        sa.select(Series).where(
            Series.series_instance_uid == series.series_instance_uid,
            Series.id != series.id,
            Series.revision > 0,  # it holds images
        )
    ).all()
    for one in (series, *others) if others else ():
        one.conflict = f"Series {series.series_instance_uid} is known under another study too."


def _is_ours(session: Session, arrival: Arrival) -> bool:
    query = sa.select(ResultObject.id).where(
        made_here(),
        sa.or_(
            ResultObject.sop_instance_uid == arrival.sop_instance_uid,
            ResultObject.series_instance_uid == arrival.series_instance_uid,
        ),
    )
    return session.execute(query.limit(1)).first() is not None


def _add_version(entry: _Entry, instance: Instance) -> Version:
    arrival = entry.arrival
    version = Version(
        instance_id=instance.id,
        key=arrival.key,
        digest=arrival.digest,
        size=arrival.size,
        conflicting=False,
        received_at=entry.now,
        association_id=entry.association,
        patient_id=arrival.identity.patient_id,
        issuer_of_patient_id=arrival.identity.issuer_of_patient_id,
        patient_name=arrival.identity.patient_name,
        patient_birth_date=arrival.identity.patient_birth_date,
    )
    entry.session.add(version)
    entry.session.flush()
    return version


def _reopen(entry: _Entry, series: Series) -> None:
    """Let the series wait for the next quiet period; the revision makes a planning under way start over."""
    entry.session.execute(
        sa.update(Series)
        .where(Series.id == series.id)
        .values(
            state=SeriesState.RECEIVING.value,
            reason="",
            revision=Series.revision + 1,
            last_received_at=entry.now,
            due_at=entry.now + timedelta(seconds=entry.quiet_period),
        )
    )


def _carry(entry: _Entry, series: Series) -> None:
    """Write down that the association is at work, and that it carries this series, be it for the second time."""
    session, association = entry.session, entry.association
    if association is None:
        return
    session.execute(sa.update(Association).where(Association.id == association).values(last_activity=entry.now))
    if session.get(AssociationSeries, (association, series.id)) is None:
        session.add(AssociationSeries(association_id=association, series_id=series.id))
