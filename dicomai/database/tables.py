"""The tables. Times are UTC; a due time is a column, so it survives a restart."""

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.types import TypeDecorator

from dicomai.rejection import KEY_OBJECT_SELECTION

UID = String(64)
# SQLite numbers rows by itself only in a column of type INTEGER.
Key = BigInteger().with_variant(Integer, "sqlite")


class UTCDateTime(TypeDecorator[datetime]):
    """A moment in UTC: aware in, aware out, also from SQLite, which forgets the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Turn an aware moment into what the database keeps."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("A moment without a time zone cannot be stored.")
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002  the signature is the library's
        """Give the moment back, aware."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Table(DeclarativeBase):
    """The root of all tables."""

    type_annotation_map = {datetime: UTCDateTime}  # noqa: RUF012  the library's way to say it


class CleanText(TypeDecorator[str]):
    """Text that comes from images or peers: PostgreSQL refuses the NUL characters that some devices leave in it."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002  the signature is the library's
        """Leave NUL characters out."""
        return value.replace("\0", "") if value else value


class Installation(Table):
    """This node: one row. Its identifier is part of every work digest and names the device in results."""

    __tablename__ = "installation"
    id: Mapped[int] = mapped_column(primary_key=True)
    uuid: Mapped[str] = mapped_column(String(36))
    secret: Mapped[str] = mapped_column(String(64), default="")  # the key of pseudonyms, in hexadecimal; leaves no node


class Association(Table):
    """An association that brought instances: a leased row, so that a lost one is found out."""

    __tablename__ = "association"
    id: Mapped[int] = mapped_column(Key, primary_key=True)
    way_in: Mapped[str] = mapped_column(String(16), default="")  # the process that has it, see `store.Store`
    calling_ae: Mapped[str] = mapped_column(String(16))
    address: Mapped[str] = mapped_column(String(64))
    opened_at: Mapped[datetime]
    last_activity: Mapped[datetime]
    lease_expires: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    end: Mapped[str | None] = mapped_column(String(16))  # released, aborted, lost


class Study(Table):
    """A study, and the short name by which its way is followed in the log, see `log.trace_id`."""

    __tablename__ = "study"
    id: Mapped[int] = mapped_column(Key, primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(UID, unique=True)
    trace: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime]
    series: Mapped[list["Series"]] = relationship(back_populates="study")


class Series(Table):
    """A series, and how far its planning is."""

    __tablename__ = "series"
    __table_args__ = (
        UniqueConstraint("study_id", "series_instance_uid"),
        Index("ix_series_due", "state", "due_at"),
        Index("ix_series_uid", "series_instance_uid"),
        Index("ix_series_forward", "forward_at"),
    )
    id: Mapped[int] = mapped_column(Key, primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    series_instance_uid: Mapped[str] = mapped_column(UID)
    modality: Mapped[str] = mapped_column(String(16))
    description: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))  # see index.SeriesState
    reason: Mapped[str] = mapped_column(CleanText, default="")
    conflict: Mapped[str] = mapped_column(CleanText, default="")  # what it has in common with another study
    revision: Mapped[int] = mapped_column(default=0)  # goes up with every change, so that planning cannot miss one
    last_received_at: Mapped[datetime]
    due_at: Mapped[datetime | None]
    forward_at: Mapped[datetime | None]  # when to look what of it has still to go on; None where nothing is new
    study: Mapped[Study] = relationship(back_populates="series")
    instances: Mapped[list["Instance"]] = relationship(back_populates="series")


class AssociationSeries(Table):
    """Which association carried images of which series."""

    __tablename__ = "association_series"
    association_id: Mapped[int] = mapped_column(ForeignKey("association.id"), primary_key=True)
    series_id: Mapped[int] = mapped_column(ForeignKey("series.id"), primary_key=True, index=True)


UNEXAMINED = f"sop_class_uid = '{KEY_OBJECT_SELECTION}' AND examined_at IS NULL"
"""Which instances wait to be read for what they reject; a condition on `instance` that its index serves."""


class Instance(Table):
    """A SOP instance, and which of its versions counts."""

    __tablename__ = "instance"
    __table_args__ = (
        Index("ix_instance_unexamined", "id", sqlite_where=text(UNEXAMINED), postgresql_where=text(UNEXAMINED)),
    )
    id: Mapped[int] = mapped_column(Key, primary_key=True)
    series_id: Mapped[int] = mapped_column(ForeignKey("series.id"), index=True)
    sop_instance_uid: Mapped[str] = mapped_column(UID, unique=True)
    sop_class_uid: Mapped[str] = mapped_column(UID)
    is_image: Mapped[bool]
    fingerprint: Mapped[str | None] = mapped_column(String(64))
    conflict: Mapped[str] = mapped_column(Text, default="")  # in a sentence; empty where there is none
    examined_at: Mapped[datetime | None]  # of a Key Object Selection: when it was read for what it rejects
    series: Mapped[Series] = relationship(back_populates="instances")
    versions: Mapped[list["Version"]] = relationship(back_populates="instance", order_by="Version.received_at")


KNOWN = "patient_id <> '' AND length(patient_id) <= 64"
"""Which versions can be found by Patient ID; a condition on `version` that its index serves.

What is longer than a Long String may be (PS3.5 6.2) might not fit into an index of PostgreSQL, and has to be kept.
"""


class Version(Table):
    """One file of an instance. The newest that is no conflict counts; the others are kept."""

    __tablename__ = "version"
    __table_args__ = (
        UniqueConstraint("instance_id", "digest"),
        Index("ix_version_patient", "patient_id", sqlite_where=text(KNOWN), postgresql_where=text(KNOWN)),
    )
    id: Mapped[int] = mapped_column(Key, primary_key=True)
    instance_id: Mapped[int] = mapped_column(ForeignKey("instance.id"))
    key: Mapped[str] = mapped_column(Text, unique=True)
    digest: Mapped[str] = mapped_column(String(64))  # SHA-256 of transfer syntax and data set as received
    size: Mapped[int] = mapped_column(BigInteger)
    conflicting: Mapped[bool] = mapped_column(default=False)
    received_at: Mapped[datetime]
    association_id: Mapped[int | None] = mapped_column(ForeignKey("association.id"))
    patient_id: Mapped[str] = mapped_column(CleanText)
    issuer_of_patient_id: Mapped[str] = mapped_column(CleanText)
    patient_name: Mapped[str] = mapped_column(CleanText)
    patient_birth_date: Mapped[str] = mapped_column(CleanText)
    instance: Mapped[Instance] = relationship(back_populates="versions")


class Forwarded(Table):
    """A version of an instance that a forward rule lets go on, and the workitem that does it: the last of each rule."""

    __tablename__ = "forwarded"
    version_id: Mapped[int] = mapped_column(ForeignKey("version.id"), primary_key=True)
    rule: Mapped[str] = mapped_column(String(64), primary_key=True)
    workitem_id: Mapped[int] = mapped_column(ForeignKey("workitem.id"), index=True)
    turn: Mapped[int]  # the how manyeth of its instance to go by the rule, from 1; 0 of one that contradicts the others


class Workitem(Table):
    """One piece of work (UPS): see `dicomai.workitem` for its states."""

    __tablename__ = "workitem"
    __table_args__ = (
        Index("ix_workitem_claim", "kind", "state", "due_at"),
        Index("ix_workitem_result", "result_id"),
        Index("ix_workitem_digest", "digest"),
        Index(
            "ux_workitem_digest",
            "digest",
            unique=True,
            sqlite_where=text("kind = 'inference' AND replaced_by IS NULL"),
            postgresql_where=text("kind = 'inference' AND replaced_by IS NULL"),
        ),
        Index(
            "ux_workitem_delivery",
            "result_id",
            "destination",
            unique=True,
            sqlite_where=text("kind = 'delivery' AND replaced_by IS NULL"),
            postgresql_where=text("kind = 'delivery' AND replaced_by IS NULL"),
        ),
    )
    id: Mapped[int] = mapped_column(Key, primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(CleanText, default="")
    hold: Mapped[str] = mapped_column(CleanText, default="")  # why a person has to decide; nobody claims a held item
    priority: Mapped[int] = mapped_column(default=1)  # 0 HIGH, 1 MEDIUM, 2 LOW
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"), index=True)
    route: Mapped[dict[str, object]] = mapped_column(JSON)  # as it was planned
    route_name: Mapped[str] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(64))
    generation: Mapped[int] = mapped_column(default=0)
    replaced_by: Mapped[int | None] = mapped_column(ForeignKey("workitem.id"))
    supersedes: Mapped[int | None] = mapped_column(ForeignKey("workitem.id"))
    result_id: Mapped[int | None] = mapped_column(ForeignKey("result.id"))  # given by an inference, sent by deliveries
    destination: Mapped[str] = mapped_column(String(64), default="")
    attempt: Mapped[int] = mapped_column(default=0)
    setbacks: Mapped[int] = mapped_column(default=0)  # of a delivery: what was not understood, or lost, by now
    looks: Mapped[int] = mapped_column(default=0)  # of a delivery: attempts that do not count, as they sent nothing
    looked_at: Mapped[datetime | None]  # of a delivery: when it was last asked for and not shown, nothing failing since
    unseen: Mapped[float] = mapped_column(Double, default=0.0)  # of a delivery: seconds, asked for in vain
    mismatch: Mapped[str] = mapped_column(CleanText, default="")  # that its destination shows another patient
    vouched: Mapped[str] = mapped_column(CleanText, default="")  # the mismatch in spite of which a person has it sent
    released: Mapped[str] = mapped_column(CleanText, default="")  # the doubt in spite of which images go on
    lease_owner: Mapped[str | None] = mapped_column(String(128))
    lease_expires: Mapped[datetime | None]
    due_at: Mapped[datetime]
    progress: Mapped[int] = mapped_column(default=0)  # percent
    created_at: Mapped[datetime]
    changed_at: Mapped[datetime]
    study: Mapped[Study] = relationship()
    inputs: Mapped[list["WorkitemInput"]] = relationship(order_by="WorkitemInput.id")

    def inputs_again(self) -> "list[WorkitemInput]":
        """Give the same inputs for another item."""
        return [
            WorkitemInput(role=i.role, series_id=i.series_id, stack=i.stack, sop_instance_uids=i.sop_instance_uids)
            for i in self.inputs
        ]


class WorkitemInput(Table):
    """One input of a workitem: exactly the instances that were planned."""

    __tablename__ = "workitem_input"
    id: Mapped[int] = mapped_column(Key, primary_key=True)
    workitem_id: Mapped[int] = mapped_column(ForeignKey("workitem.id"), index=True)
    role: Mapped[str] = mapped_column(String(64))
    series_id: Mapped[int] = mapped_column(ForeignKey("series.id"), index=True)
    stack: Mapped[str] = mapped_column(CleanText)
    sop_instance_uids: Mapped[list[str]] = mapped_column(JSON)
    series: Mapped[Series] = relationship()


class Result(Table):
    """What an inference workitem gave: frozen objects."""

    __tablename__ = "result"
    id: Mapped[int] = mapped_column(Key, primary_key=True)
    created_at: Mapped[datetime]
    first_sent_at: Mapped[datetime | None]  # from here on the bytes are what a destination may have
    objects: Mapped[list["ResultObject"]] = relationship(order_by="ResultObject.n")


class ResultObject(Table):
    """One DICOM object of a result, in the order in which it is sent."""

    __tablename__ = "result_object"
    __table_args__ = (UniqueConstraint("result_id", "n"),)
    id: Mapped[int] = mapped_column(Key, primary_key=True)
    result_id: Mapped[int] = mapped_column(ForeignKey("result.id"))
    n: Mapped[int]
    output: Mapped[str] = mapped_column(String(32))
    sop_class_uid: Mapped[str] = mapped_column(UID)
    sop_instance_uid: Mapped[str] = mapped_column(UID, index=True)
    series_instance_uid: Mapped[str] = mapped_column(UID, index=True)
    series_number: Mapped[int]
    key: Mapped[str] = mapped_column(Text)
    version_id: Mapped[int | None] = mapped_column(ForeignKey("version.id"))  # of what goes on: which it is


class Acceptance(Table):
    """A destination's answer to one object of a delivery."""

    __tablename__ = "acceptance"
    workitem_id: Mapped[int] = mapped_column(ForeignKey("workitem.id"), primary_key=True)
    result_object_id: Mapped[int] = mapped_column(ForeignKey("result_object.id"), primary_key=True)
    at: Mapped[datetime]
    status: Mapped[int]
    comment: Mapped[str] = mapped_column(CleanText, default="")
    found: Mapped[str | None] = mapped_column(CleanText)  # how it was filed otherwise; None where nobody has looked yet


class AskedCommitment(Table):
    """A storage commitment that a destination was asked for, for all that a delivery sent it (PS3.4 J.3.2)."""

    __tablename__ = "asked_commitment"
    id: Mapped[int] = mapped_column(Key, primary_key=True)
    workitem_id: Mapped[int] = mapped_column(ForeignKey("workitem.id"), index=True)
    transaction_uid: Mapped[str] = mapped_column(UID, unique=True)
    ae_title: Mapped[str] = mapped_column(String(16))  # of the destination: nobody else may report
    state: Mapped[str] = mapped_column(String(16))  # OPEN, REPORTED, CLOSED
    failures: Mapped[dict[str, int | None]] = mapped_column(JSON)  # Failure Reason by SOP Instance UID; None for none
    asked_at: Mapped[datetime]


class Audit(Table):
    """Every transition, written in its transaction. Free of names and birth dates."""

    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(Key, primary_key=True)
    at: Mapped[datetime]
    actor: Mapped[str] = mapped_column(String(128))
    event: Mapped[str] = mapped_column(String(64))
    workitem_id: Mapped[int | None] = mapped_column(ForeignKey("workitem.id"), index=True)
    study_id: Mapped[int | None] = mapped_column(ForeignKey("study.id"), index=True)
    detail: Mapped[str] = mapped_column(CleanText, default="")


class DestinationProbe(Table):
    """What a destination was last seen to accept in negotiation."""

    __tablename__ = "destination_probe"
    destination: Mapped[str] = mapped_column(String(64), primary_key=True)
    tried_at: Mapped[datetime]
    error: Mapped[str] = mapped_column(CleanText, default="")  # why it gave no answer; empty where it did
    answered_at: Mapped[datetime | None]
    accepted: Mapped[list[list[str]]] = mapped_column(JSON)  # [SOP Class UID, Transfer Syntax UID] each, sorted


class ProcedureStep(Table):
    """A Modality Performed Procedure Step (PS3.3 C.4.13-15), as far as completeness needs it."""

    __tablename__ = "procedure_step"
    id: Mapped[int] = mapped_column(Key, primary_key=True)
    sop_instance_uid: Mapped[str] = mapped_column(UID, unique=True)
    calling_ae: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))  # IN PROGRESS, COMPLETED, DISCONTINUED
    doubt: Mapped[str] = mapped_column(CleanText, default="")  # why it is in doubt whose images it made
    study_instance_uid: Mapped[str] = mapped_column(UID, index=True)
    created_at: Mapped[datetime]
    changed_at: Mapped[datetime]


class Announcement(Table):
    """What another service says about a series: how many instances its source has, and which."""

    __tablename__ = "announcement"
    __table_args__ = (UniqueConstraint("series_instance_uid", "kind", "origin"),)
    id: Mapped[int] = mapped_column(Key, primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(UID, index=True)
    series_instance_uid: Mapped[str] = mapped_column(UID)
    kind: Mapped[str] = mapped_column(String(16))  # mpps, availability, query
    origin: Mapped[str] = mapped_column(String(64))  # SOP Instance UID of the notice, or name of the queried source
    instances: Mapped[int]
    sop_instance_uids: Mapped[list[str] | None] = mapped_column(JSON)  # None where the source gives the count alone
    is_final: Mapped[bool]  # the source will add nothing: a step that ended, a count unchanged in two queries
    announced_at: Mapped[datetime]


class Rejection(Table):
    """An instance that a rejection note (Key Object Selection, IHE IOCM) withdraws, here already or not."""

    __tablename__ = "rejection"
    __table_args__ = (UniqueConstraint("sop_instance_uid", "note_sop_instance_uid"),)
    id: Mapped[int] = mapped_column(Key, primary_key=True)
    sop_instance_uid: Mapped[str] = mapped_column(UID)
    note_sop_instance_uid: Mapped[str] = mapped_column(UID)
    code: Mapped[str] = mapped_column(String(16))  # of CID 7011, DCM
    recorded_at: Mapped[datetime]


class Commitment(Table):
    """A request for storage commitment, until its answer has reached the requestor (PS3.4 Annex J)."""

    __tablename__ = "commitment"
    __table_args__ = (
        Index("ix_commitment_transaction", "calling_ae", "transaction_uid"),
        Index("ix_commitment_due", "state", "due_at"),
    )
    id: Mapped[int] = mapped_column(Key, primary_key=True)
    transaction_uid: Mapped[str] = mapped_column(UID)
    calling_ae: Mapped[str] = mapped_column(String(16))
    references: Mapped[list[list[str]]] = mapped_column(JSON)  # [SOP Class UID, SOP Instance UID] each
    duplicate: Mapped[bool]  # the transaction UID was in use for other instances
    state: Mapped[str] = mapped_column(String(16))  # OPEN, REPORTED, GIVEN UP
    reason: Mapped[str] = mapped_column(CleanText, default="")
    attempt: Mapped[int] = mapped_column(default=0)
    requested_at: Mapped[datetime]
    due_at: Mapped[datetime]
