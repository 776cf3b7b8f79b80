"""Claim a withdrawal, make its note, hand it to delivery: the destinations learn that a result no longer holds."""

import os
import threading
from datetime import UTC, datetime

import structlog
from pydicom.dataset import Dataset

import dicomai
from dicomai import leases
from dicomai.database import Database, owner_name
from dicomai.database.results import FrozenObject
from dicomai.database.withdrawals import Withdrawals
from dicomai.database.worklist import Claim, Worklist
from dicomai.outputs import encode, withdrawal
from dicomai.outputs.provenance import FIRST_SERIES_NUMBER
from dicomai.planner import read_instance
from dicomai.store import Store, result_key
from dicomai.workitem import Kind

log = structlog.get_logger()

_LEASE_SECONDS = 60.0
_RETRY_SECONDS = 30.0
_ATTEMPTS = 10


class Withdrawer:
    """Works off withdrawals."""

    def __init__(self, store: Store, database: Database, *, timezone: str | None) -> None:
        """Make one.

        Args:
            store: where images and results are.
            database: where the worklist is.
            timezone: the hospital's, an IANA name; None for the host's.
        """
        self._store = store
        self._worklist = Worklist(database)
        self._withdrawals = Withdrawals(database)
        self._installation = database.installation()
        self._timezone = timezone
        self._owner = owner_name("delivery", os.getpid())

    def run(self, stop: threading.Event) -> None:
        """Withdraw until told to stop."""
        leases.work_off(self.step, stop)

    def step(self) -> bool:
        """Work off one withdrawal; tells whether there was one."""
        return leases.attempt(
            self._worklist, Kind.WITHDRAWAL, self._owner, self._withdraw, lease=_LEASE_SECONDS, attempts=_ATTEMPTS
        )

    def _withdraw(self, claim: Claim, _progress: leases.Progress) -> None:
        where = {"study": claim.trace, "workitem": claim.item, "of": claim.route["withdraws"]["workitem"]}
        with leases.tried_again(self._worklist, claim, _RETRY_SECONDS * claim.attempt, where):
            why = self._worklist.why_wait(claim)
            if why:
                self._worklist.hold(claim, why)
                log.warning("held for a person", why=why, **where)
                return
            destinations = [str(name) for name in claim.route["withdraws"]["destinations"]]
            self._worklist.finish_inference(claim, [self._note(claim)], destinations)
            log.info("a result is withdrawn", destinations=destinations, **where)

    def _note(self, claim: Claim) -> FrozenObject:
        newest = read_instance(self._store, self._worklist.newest_image(claim)).header
        about = claim.route["withdraws"]
        named = [
            withdrawal.Named(o.sop_class_uid, o.sop_instance_uid, o.series_instance_uid)
            for o in self._withdrawals.objects(about)
        ]
        author = withdrawal.Author(
            f"{claim.digest}|{claim.item}", self._installation, dicomai.__version__, datetime.now(UTC), self._timezone
        )
        study = self._withdrawals.study_of(int(about["workitem"]))
        ds = withdrawal.build(named, study, newest, self._series_number(claim), str(about["reason"]), author)
        key = result_key(claim.item, claim.attempt, str(ds.SOPInstanceUID))
        self._store.put(key, encode(ds))
        return FrozenObject(
            withdrawal.OUTPUT,
            str(ds.SOPClassUID),
            str(ds.SOPInstanceUID),
            str(ds.SeriesInstanceUID),
            int(ds.SeriesNumber),
            key,
        )

    def _series_number(self, claim: Claim) -> int:
        taken = set(self._worklist.series_numbers(claim.study_id))
        return next(n for n in range(FIRST_SERIES_NUMBER, FIRST_SERIES_NUMBER + len(taken) + 1) if n not in taken)


def version_of(header: Dataset) -> str:
    """Give the version of the model that made a result: the first Software Versions of its Contributing Equipment."""
    software = header.ContributingEquipmentSequence[0].get("SoftwareVersions")
    return str(software if isinstance(software, str) else software[0])
