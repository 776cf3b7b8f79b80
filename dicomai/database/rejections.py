"""Rejected instances: what rejection notes withdraw, and which work ends by it.

A note is obeyed for what lies in its own study and bears its own patient, as IHE RAD-66 has it. One that names images
of another study or patient is in doubt: those images are not rejected by it, and their study is held for a person.
What a note names and is not here yet is rejected when it comes, and stays so.
"""

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, field
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from dicomai.database import audit
from dicomai.database.engine import Database
from dicomai.database.holds import identity_of, origin_of, settle
from dicomai.database.index import SeriesState
from dicomai.database.planning import images_of
from dicomai.database.tables import UNEXAMINED, Instance, Rejection, Result, Series, Version, Workitem, WorkitemInput
from dicomai.database.transitions import cancel, cancel_unsent
from dicomai.rejection import RejectionNote, titled
from dicomai.study import Identity
from dicomai.workitem import FINAL, Kind, State

_ACTOR = "planner"
_AT_ONCE = 500  # parameters in one statement


@dataclass(frozen=True, slots=True)
class Document:
    """A stored Key Object Selection document that has not been read for what it rejects."""

    instance_id: int
    sop_instance_uid: str
    trace: str
    key: str


@dataclass(slots=True)
class Effect:
    """What a rejection note brought about.

    Attributes:
        rejected: how many images that are here it withdraws.
        canceled: workitems that it ended.
        sent: workitems made of rejected images whose result is at a destination, or on its way.
        doubts: sentences about images that it names and that are not its to reject.
    """

    rejected: int = 0
    canceled: list[int] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)


class Rejections:
    """Reads and writes of what is rejected."""

    def __init__(self, database: Database) -> None:
        """Work on a database."""
        self._db = database

    def waiting(self, limit: int = 100) -> list[Document]:
        """List the documents that wait to be read, the oldest first."""
        with self._db.read() as session:
            found = session.scalars(sa.select(Instance).where(sa.text(UNEXAMINED)).order_by(Instance.id).limit(limit))
            return [Document(one.id, one.sop_instance_uid, one.series.study.trace, _version(one).key) for one in found]

    def pass_over(self, document: Document, reason: str = "") -> None:
        """Write down that a document was read and rejects nothing, or why it could not be read."""
        with self._db.write() as session:
            note = session.get_one(Instance, document.instance_id, with_for_update=True)
            note.examined_at = self._db.now(session)
            if reason:
                audit.record(
                    session, note.examined_at, _ACTOR, "not examined", study=note.series.study_id, detail=reason
                )

    def obey(self, document: Document, content: RejectionNote) -> Effect:
        """Reject what a note names: end the open work on it, and let its series be planned anew.

        All in one transaction, once: a note that was obeyed already has no further effect.
        """
        effect = Effect()
        with self._db.write() as session:
            note = session.get_one(Instance, document.instance_id, with_for_update=True)
            if note.examined_at is not None:
                return effect
            now = note.examined_at = self._db.now(session)
            doubted: set[str] = set()
            for series, named in _by_series(session, content.sop_instance_uids):
                images = [image.sop_instance_uid for image in images_of(session, series.id, frozenset(named))]
                why = _doubt(session, note, series, named) if images else ""
                if why:
                    doubted |= named
                    series.conflict = why
                    effect.doubts.append(why)
                    audit.record(session, now, _ACTOR, "rejection doubted", study=series.study_id, detail=why)
                    session.flush()
                    settle(session, now, series.study_id, _ACTOR)
                elif images:
                    effect.rejected += len(images)
                    _reject(session, now, series, frozenset(images), content, effect)
            _remember(session, now, note, content, doubted)
            if not note.series.revision:  # it holds no images
                count = len(content.sop_instance_uids) - len(doubted)
                note.series.reason = f"A rejection note: {count} instances are withdrawn ({content.title})."
        return effect

    def judge(self, series_id: int) -> str:
        """Say in a sentence that images of a series are rejected, so that nothing may be run; empty where none is.

        One that came after a note of another study named it is in doubt, as with `obey`.
        """
        with self._db.read() as session:
            found = _standing(session, series_id)
        if not found:
            return ""
        with self._db.write() as session:
            series = session.get_one(Series, series_id, with_for_update=True)
            found = _standing(session, series_id)
            codes = {one.sop_instance_uid: one.code for one in found if one.study_id == series.study_id}
            foreign = [one for one in found if one.study_id != series.study_id]
            for note in sorted({one.note_sop_instance_uid for one in foreign}):
                series.conflict = _doubt_of_study(note, series)
                now = self._db.now(session)
                audit.record(session, now, _ACTOR, "rejection doubted", study=series.study_id, detail=series.conflict)
            session.execute(sa.delete(Rejection).where(Rejection.id.in_([one.id for one in foreign])))
            images = sa.select(sa.func.count()).where(Instance.series_id == series_id, Instance.is_image)
            total = session.execute(images).scalar_one()
        if not codes:
            return ""
        titles = "; ".join(titled(code) for code in sorted(set(codes.values())))
        return (
            f"{len(codes)} of {total} images of this series were rejected ({titles}); nothing is run on the rest:"
            " have what is right sent as a new series."
        )


@dataclass(frozen=True, slots=True)
class _Standing:
    """A rejection of an image that is here."""

    id: int
    sop_instance_uid: str
    code: str
    note_sop_instance_uid: str
    study_id: int  # of the note


def is_withdrawn() -> sa.ColumnElement[bool]:
    """Make the condition on an `Instance`, joined with its `Series`, that a note of its own study rejects it."""
    note, of_note = aliased(Instance), aliased(Series)
    return sa.exists().where(
        Rejection.sop_instance_uid == Instance.sop_instance_uid,
        note.sop_instance_uid == Rejection.note_sop_instance_uid,
        of_note.id == note.series_id,
        of_note.study_id == Series.study_id,
    )


def rejected_input(session: Session, item: Workitem) -> str:
    """Say in a sentence that an input of an item, or of the one behind a delivery, is rejected; empty where none is.

    Args:
        session: the transaction to look in.
        item: the item.
    """
    for planned in origin_of(session, item).inputs:
        for one in _standing(session, planned.series_id):
            if one.study_id == planned.series.study_id:
                return f"Series {planned.series.series_instance_uid} has rejected images ({titled(one.code)})."
    return ""


def _standing(session: Session, series_id: int) -> list[_Standing]:
    note, of_note = aliased(Instance), aliased(Series)
    rows = session.execute(
        sa.select(
            Rejection.id, Rejection.sop_instance_uid, Rejection.code, Rejection.note_sop_instance_uid, of_note.study_id
        )
        .join(Instance, Instance.sop_instance_uid == Rejection.sop_instance_uid)
        .join(note, note.sop_instance_uid == Rejection.note_sop_instance_uid)
        .join(of_note, of_note.id == note.series_id)
        .where(Instance.series_id == series_id, Instance.is_image)
        .order_by(Rejection.id)
    )
    return [_Standing(*row) for row in rows]


def _by_series(session: Session, sop_instance_uids: Sequence[str]) -> list[tuple[Series, set[str]]]:
    """Sort those of the named instances that are here by their series."""
    named: dict[int, set[str]] = {}
    for some in _chunks(sop_instance_uids):
        query = sa.select(Instance.series_id, Instance.sop_instance_uid).where(Instance.sop_instance_uid.in_(some))
        for series_id, uid in session.execute(query):
            named.setdefault(series_id, set()).add(uid)
    return [(session.get_one(Series, number, with_for_update=True), named[number]) for number in sorted(named)]


def _doubt(session: Session, note: Instance, series: Series, named: set[str]) -> str:
    """Say in a sentence why a note may not be meant for these images; empty where nothing speaks against it."""
    if note.series.study_id != series.study_id:
        return _doubt_of_study(note.sop_instance_uid, series)
    said = identity_of(_version(note))
    keywords = sorted(
        {
            keyword
            for image in images_of(session, series.id, frozenset(named))
            for keyword in _filled(said, image.identity).differences(image.identity)
        }
    )
    if not keywords:
        return ""
    return (
        f"Rejection note {note.sop_instance_uid} names images of series {series.series_instance_uid}, but differs from"
        f" them in {', '.join(keywords)}."
    )


def _filled(said: Identity, by: Identity) -> Identity:
    """Fill in what a note leaves out, such as the issuer: it contradicts nothing."""
    return Identity(*(one or other for one, other in zip(astuple(said), astuple(by), strict=True)))


def _doubt_of_study(note: str, series: Series) -> str:
    return f"Rejection note {note} of another study names images of series {series.series_instance_uid}."


def _reject(
    session: Session, now: datetime, series: Series, images: frozenset[str], content: RejectionNote, effect: Effect
) -> None:
    """End the open work on a series, whichever of its stacks it is on, and let it be planned anew."""
    reason = (
        f"{len(images)} images of series {series.series_instance_uid} were rejected by their sender ({content.title})."
    )
    audit.record(session, now, _ACTOR, "images rejected", study=series.study_id, detail=reason)
    session.execute(
        sa.update(Series)
        .where(Series.id == series.id)
        .values(state=SeriesState.RECEIVING.value, due_at=now, revision=Series.revision + 1)
    )
    of_series = sa.select(WorkitemInput.workitem_id).where(WorkitemInput.series_id == series.id)
    items = session.scalars(
        sa.select(Workitem)
        .where(Workitem.kind == Kind.INFERENCE.value, Workitem.id.in_(of_series))
        .order_by(Workitem.id)
        .with_for_update()
    ).all()
    for item in items:
        if State(item.state) not in FINAL:
            cancel(session, now, item, _ACTOR, reason)
            effect.canceled.append(item.id)
        if item.result_id is None:
            continue
        effect.canceled += cancel_unsent(session, now, item.result_id, _ACTOR, reason)
        # Under the lock that `Worklist.begin_sending` takes: it either has begun by now, or sees the rejection.
        was_sent = session.get_one(Result, item.result_id, with_for_update=True).first_sent_at is not None
        if was_sent and any(not images.isdisjoint(planned.sop_instance_uids) for planned in item.inputs):
            effect.sent.append(item.id)
            said = f"{reason} The result was sent before; withdraw it where it is."
            audit.record(
                session, now, _ACTOR, "rejected after sending", workitem=item.id, study=item.study_id, detail=said
            )


def _remember(session: Session, now: datetime, note: Instance, content: RejectionNote, but: set[str]) -> None:
    of_note = sa.select(Rejection.sop_instance_uid).where(Rejection.note_sop_instance_uid == note.sop_instance_uid)
    known = set(session.scalars(of_note))  # by an earlier version of it
    rows = [
        {
            "sop_instance_uid": uid,
            "note_sop_instance_uid": note.sop_instance_uid,
            "code": content.code,
            "recorded_at": now,
        }
        for uid in content.sop_instance_uids
        if uid not in but and uid not in known
    ]
    if rows:
        session.execute(sa.insert(Rejection), rows)


def _version(instance: Instance) -> Version:
    """Give the version of an instance that counts."""
    return max((v for v in instance.versions if not v.conflicting), key=lambda v: (v.received_at, v.id))


def _chunks(values: Sequence[str]) -> Iterator[Sequence[str]]:
    return (values[start : start + _AT_ONCE] for start in range(0, len(values), _AT_ONCE))
