"""Priors: earlier results of the same patient, by the same route and model, that still hold."""

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from dicomai.database import holds
from dicomai.database.engine import Database
from dicomai.database.planning import Image
from dicomai.database.rejections import rejected_input
from dicomai.database.results import objects_of
from dicomai.database.tables import KNOWN, Instance, Series, Version, Workitem
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
            if not (person.patient_id and person.patient_birth_date) or holds.doubt(session, item.study_id):
                return []
            studies = _other_studies(session, person, item.study_id)
            earlier = sa.select(Workitem).where(
                Workitem.study_id.in_(studies),
                Workitem.kind == Kind.INFERENCE.value,
                Workitem.state == State.COMPLETED.value,
                Workitem.route_name == item.route_name,
                Workitem.replaced_by.is_(None),
                Workitem.result_id.is_not(None),
            )
            found = []
            for one in session.scalars(earlier.order_by(Workitem.id)):
                reports = [o.key for o in objects_of(session, one.result_id or 0) if o.output == _REPORT]
                if reports and one.route["model"] == item.route["model"] and _holds(session, one):
                    image = newest_image(session, one)
                    if image.identity == person:
                        found.append(Candidate(one.id, image, reports[0]))
            return found


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
        or holds.doubt(session, item.study_id)
    )
