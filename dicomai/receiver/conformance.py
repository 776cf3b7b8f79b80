"""The tables of the conformance statement, made from what the receiver offers.

`python -m dicomai.receiver.conformance docs/conformance.md` writes them anew between their markers.
"""

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydicom.uid import UID

from dicomai import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicomai.receiver import commitment, contexts, policy, statuses
from dicomai.receiver.availability import Availability
from dicomai.receiver.commitment_reports import CommitmentReports
from dicomai.receiver.procedure_steps import ProcedureSteps
from dicomai.receiver.services import Service

_SERVICES: tuple[tuple[type[Service], str, str, str], ...] = (
    (ProcedureSteps, "SCP", "N-CREATE, N-SET", "`receiver.procedure_steps`"),
    (Availability, "SCP", "N-CREATE", "`receiver.availability`"),
    (commitment.StorageCommitment, "SCP", "N-ACTION, N-EVENT-REPORT", "`receiver.commitment`"),
    (CommitmentReports, "SCU", "N-EVENT-REPORT", "`commitment` of a `[[destination]]`"),
)

_BLOCK = re.compile(r"(<!-- table: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def conformance_tables() -> dict[str, str]:
    """Make the tables in Markdown, by the names that their markers in the conformance statement have."""
    return {
        "identity": _table(
            ("Item", "Value"),
            (
                ("Application Context Name", "1.2.840.10008.3.1.1.1"),
                ("Implementation Class UID", IMPLEMENTATION_CLASS_UID),
                ("Implementation Version Name", IMPLEMENTATION_VERSION_NAME),
            ),
        ),
        "sop-classes": _table(
            ("SOP class", "UID", "Role"),
            (
                (UID(contexts.VERIFICATION).name, contexts.VERIFICATION, "SCP"),
                *((name, uid, "SCP") for uid, name in contexts.STORAGE_CLASSES.items()),
            ),
        ),
        "transfer-syntaxes": _table(
            ("Transfer syntax", "UID"), ((name, uid) for uid, name in contexts.TRANSFER_SYNTAXES.items())
        ),
        "refusals": _table(
            ("Result", "Source", "Reason", "Meaning", "When"),
            ((str(r.result), str(r.source), str(r.diagnostic), r.meaning, r.when) for r in policy.REASONS),
        ),
        "services": _table(
            ("SOP class", "UID", "Role", "Operations", "Offered where this is true"),
            (
                (name, uid, role, operations, key)
                for service, role, operations, key in _SERVICES
                for uid, name in service.SOP_CLASSES.items()
            ),
        ),
        "commitment-failures": _table(
            ("Failure Reason", "Meaning"),
            ((f"{reason:04X}", meaning) for reason, meaning in commitment.FAILURES.items()),
        ),
        "statuses": _table(
            ("Status", "Meaning", "When", "Error Comment"),
            ((f"{s.code:04X}", s.meaning, s.when, s.comment or "none") for s in statuses.STATUSES),
        ),
    }


def render(text: str) -> str:
    """Put the tables into a text between their markers.

    Raises:
        KeyError: a marker names a table that there is not.
    """
    tables = conformance_tables()
    return _BLOCK.sub(lambda block: f"{block[1]}{tables[block['name']]}{block[3]}", text)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(render(document.read_text(encoding="utf-8")), encoding="utf-8")
