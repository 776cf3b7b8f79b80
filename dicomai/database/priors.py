"""Priors: earlier results of the same patient, by the same route and model, that still hold."""

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from dicomai.database import holds
from dicomai.database.engine import Database
from dicomai.database.planning import Image
from dicomai.database.rejections import rejected_input
from dicomai.database.results import objects_of
from dicomai.database.tables import KNOWN, Instance, ResultObject, Series, Version, Workitem
from dicomai.database.withdrawals import withdrawals_of
from dicomai.database.worklist import Claim, newest_image
from dicomai.study import Identity
from dicomai.workitem import Kind, State

_REPORT = "sr"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A result of another study of the same patient; whether it is an earlier one, its images say.

    Attributes:
        item: the inference that gave it.
        image: the newest of those that it was made of.
        report: the key of its report.
    """

    item: int
    image: Image
    report: str


class Priors:
    """Looks for them."""

    def __init__(self, database: Database) -> None:
        """Work on a database."""
        self._db = database

    def candidates(self, claim: Claim) -> list[Candidate]:
        """List the results that an inference may be compared with.

        They are COMPLETED, of the same route and model, with a report; nothing has taken their place, nobody has
        withdrawn them, and none of their images is rejected. The patient is the same where Patient ID, which is not
        empty, its issuer, the birth date, which is not empty, and the name are, and nothing is in doubt.
        """
        with self._db.read() as session:
            item = session.get_one(Workitem, claim.item)
            person = newest_image(session, item).identity
            if not (person.patient_id and person.patient_birth_date) or _in_doubt(session, item.study_id):
                return []
            studies = _other_studies(session, person, item.study_id)
            earlier = _results().where(Workitem.study_id.in_(studies), Workitem.route_name == item.route_name)
            found = []
            for one in session.scalars(earlier.order_by(Workitem.id)):
                reports = [o.key for o in objects_of(session, one.result_id or 0) if o.output == _REPORT]
                if reports and one.route["model"] == item.route["model"] and _holds(session, one):
                    image = newest_image(session, one)
                    if image.identity == person:
                        found.append(Candidate(one.id, image, reports[0]))
            return found

    def image(self, claim: Claim, report: str) -> Image | None:
        """Give the newest image of the earlier result that a delivery compares with.

        Args:
            claim: the delivery.
            report: SOP Instance UID of the earlier report.

        Returns:
            None where that result no longer holds, or it is no longer known that the patient is the same.
        """
        with self._db.read() as session:
            item = session.get_one(Workitem, claim.item)
            made = _results().join(ResultObject, ResultObject.result_id == Workitem.result_id)
            one = session.scalars(made.where(ResultObject.sop_instance_uid == report)).first()
            if one is None or not _holds(session, one) or _in_doubt(session, item.study_id, but=item):
                return None
            image = newest_image(session, one)
            return image if image.identity == newest_image(session, item).identity else None


def _results() -> sa.Select[Workitem]:
    return sa.select(Workitem).where(
        Workitem.kind == Kind.INFERENCE.value,
        Workitem.state == State.COMPLETED.value,
        Workitem.replaced_by.is_(None),
        Workitem.result_id.is_not(None),
    )


def _other_studies(session: Session, person: Identity, but: int) -> list[int]:
    """List the studies that hold an image of a person, one left aside; an index leads there."""
    query = (
        sa.select(Series.study_id)
        .join(Instance, Instance.series_id == Series.id)
        .join(Version, Version.instance_id == Instance.id)
        .where(
            sa.text(KNOWN),
            Version.patient_id == person.patient_id,
            Version.issuer_of_patient_id == person.issuer_of_patient_id,
            Version.patient_birth_date == person.patient_birth_date,
            Version.patient_name == person.patient_name,
            sa.not_(Version.conflicting),
            Series.study_id != but,
        )
    )
    return list(session.scalars(query.distinct()))


def _holds(session: Session, item: Workitem) -> bool:
    """Tell whether the result of an inference is one that a person may still rely on."""
    newer = sa.select(Workitem.id).where(Workitem.study_id == item.study_id, Workitem.supersedes == item.id)
    return not (
        session.scalars(newer.limit(1)).first()
        or withdrawals_of(session, item)
        or rejected_input(session, item)
        or _in_doubt(session, item.study_id)
    )


def _in_doubt(session: Session, study_id: int, but: Workitem | None = None) -> bool:
    """Tell whether it is in doubt whose a study is: by its images, or as a destination shows it as another patient's.

    That lasts until the destination shows the same patient, or a person has vouched for it; an item that ends without
    either settles nothing, but what went to the same destination later does.

    Args:
        session: the transaction to look in.
        study_id: the study.
        but: a delivery that has just asked its destination.
    """
    later = sa.orm.aliased(Workitem)
    settled = sa.exists().where(
        later.study_id == Workitem.study_id,
        later.destination == Workitem.destination,
        later.id > Workitem.id,
        later.kind == Kind.DELIVERY.value,
        later.state == State.COMPLETED.value,
        later.mismatch == "",
    )
    shown = sa.select(Workitem.id).where(Workitem.study_id == study_id, Workitem.mismatch != "", ~settled)
    if but is not None:
        shown = shown.where(Workitem.id != but.id)
    return bool(holds.doubt(session, study_id)) or session.scalars(shown.limit(1)).first() is not None
