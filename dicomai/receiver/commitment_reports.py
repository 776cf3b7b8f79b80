"""Storage Commitment Push Model SCU (PS3.4 Annex J): reports that a destination makes on an association of its own.

It opens one to our port and takes the role of the SCP by role selection (PS3.7 D.3.3.4). Only what this node asked for
is taken, and only from whom it asked.
"""

from typing import ClassVar

import structlog

from dicomai.database.commitments_asked import AskedCommitments
from dicomai.destinations.base import Report
from dicomai.destinations.dimse.commitment import PROCESSING_FAILURE, PUSH_MODEL, SUCCESS, take_report
from dicomai.receiver.services import Answer, Request, Service

log = structlog.get_logger()


class CommitmentReports(Service):
    """Takes N-EVENT-REPORTs of transactions that deliveries have open."""

    SOP_CLASSES: ClassVar = {PUSH_MODEL: "Storage Commitment Push Model SOP Class"}
    IS_REPORTED_TO: ClassVar = True

    def __init__(self, asked: AskedCommitments) -> None:
        """Write down what is reported."""
        self._asked = asked

    def n_event_report(self, request: Request) -> Answer:
        """Take a report (PS3.4 J.3.3); one that came before is taken again, and changes nothing."""

        def reported(report: Report) -> bool:
            known = self._asked.report(request.calling_ae, report.transaction_uid, report.committed, report.failed)
            log.info(
                "storage commitment reported to us"
                if known
                else "a report of storage commitment that nobody waits for",
                calling_ae=request.calling_ae,
                transaction_uid=report.transaction_uid,
                committed=len(report.committed),
                failed=len(report.failed),
            )
            return known

        status = take_report(request.sop_instance_uid, request.event_type, request.ds, reported)
        comments = {SUCCESS: "", PROCESSING_FAILURE: "This AE was not asked for this transaction"}
        return Answer(status, comments.get(status, "Not a report of the Push Model"))
