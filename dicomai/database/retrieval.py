"""What is kept, as others may have it back: of each instance the version that counts."""

from dataclasses import dataclass

import sqlalchemy as sa

from dicomai.database.engine import Database
from dicomai.database.rejections import is_withdrawn
from dicomai.database.tables import Instance, Series, Study, Version


@dataclass(frozen=True, slots=True)
class Kept:
    """An instance in the version that counts.

    Attributes:
        study_instance_uid: where it belongs.
        series_instance_uid: where it belongs.
        sop_instance_uid: its own.
        key: of its file in the store.
        size: of that file, in bytes.
    """

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    key: str
    size: int


class Retrieval:
    """Finds what is kept; changes nothing."""

    def __init__(self, database: Database) -> None:
        """Look into a database."""
        self._db = database

    def find(
        self,
        study_instance_uid: str | None = None,
        series_instance_uid: str | None = None,
        sop_instance_uid: str | None = None,
        *,
        withdrawn: bool = True,
    ) -> list[Kept]:
        """List instances by series and SOP Instance UID, each in its newest version that contradicts no other.

        Args:
            study_instance_uid: that they belong to; None for any.
            series_instance_uid: that they belong to; None for any.
            sop_instance_uid: the one that is wanted; None for any.
            withdrawn: whether those are given too that a rejection note withdraws.

        Raises:
            StoreError: the database did not answer.
        """
        query = (
            sa.select(
                Study.study_instance_uid,
                Series.series_instance_uid,
                Instance.sop_instance_uid,
                Version.key,
                Version.size,
            )
            .select_from(Version)
            .join(Instance, Instance.id == Version.instance_id)
            .join(Series, Series.id == Instance.series_id)
            .join(Study, Study.id == Series.study_id)
            .where(sa.not_(Version.conflicting))
            .order_by(Series.series_instance_uid, Instance.sop_instance_uid, Version.received_at, Version.id)
        )
        for column, wanted in (
            (Study.study_instance_uid, study_instance_uid),
            (Series.series_instance_uid, series_instance_uid),
            (Instance.sop_instance_uid, sop_instance_uid),
        ):
            if wanted is not None:
                query = query.where(column == wanted)
        if not withdrawn:
            query = query.where(sa.not_(is_withdrawn()))
        with self._db.read() as session:
            rows = [Kept(*row) for row in session.execute(query)]
        return list({kept.sop_instance_uid: kept for kept in rows}.values())  # the newest stands last
