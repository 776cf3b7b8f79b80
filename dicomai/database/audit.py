"""The audit: every transition, in the transaction that makes it."""

from datetime import datetime

from sqlalchemy.orm import Session

from dicomai.database.tables import Audit


def record(
    session: Session,
    at: datetime,
    actor: str,
    event: str,
    *,
    workitem: int | None = None,
    study: int | None = None,
    detail: str = "",
) -> None:
    """Write down who did what; `detail` is a sentence free of names and birth dates."""
    session.add(Audit(at=at, actor=actor, event=event, workitem_id=workitem, study_id=study, detail=detail))
