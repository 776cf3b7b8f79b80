"""Counts at the sender: how many instances a source has of the series that it is sending.

A sweep runs on a thread of its own for each source, so that a slow one holds up neither the planner nor the others.
"""

from collections.abc import Callable, Mapping

import structlog

from dicomai.database.announcements import Announcements
from dicomai.errors import DicomaiError

log = structlog.get_logger()

INTERVAL = 5.0
"""Seconds between two sweeps."""

APART = 4.0
"""Seconds between two queries that have to agree, at least; the sweep after the first one serves, be it a bit early."""


class Counts:
    """Asks one source, with one question for each study that it is sending."""

    def __init__(
        self,
        announcements: Announcements,
        name: str,
        ae_title: str,
        ask: Callable[[str], Mapping[str, int]],
        apart: float = APART,
    ) -> None:
        """Make it.

        Args:
            announcements: where the counts are written down.
            name: of the source, for people.
            ae_title: by which it calls us when it sends.
            ask: gives the instances by SeriesInstanceUID of a StudyInstanceUID; raises DicomaiError.
            apart: seconds between two queries that have to agree.
        """
        self._announcements = announcements
        self._name = name
        self._ae_title = ae_title
        self._ask = ask
        self._apart = apart
        self._is_silent = False

    def sweep(self) -> int:
        """Ask for every study of which series from this source are not complete yet; gives how many were answered.

        A source that does not answer leaves the wait as it is without it.

        Raises:
            StoreError: the database failed.
        """
        answered = 0
        for study in self._announcements.studies_to_count(self._ae_title):
            asked_at = self._announcements.now()
            try:
                counts = self._ask(study)
            except DicomaiError as error:
                if not self._is_silent:
                    log.warning(
                        "a source cannot be asked for counts; its series wait for the quiet period",
                        remedy="check that it takes this node's C-FIND",
                        source=self._name,
                        error=str(error),
                    )
                self._is_silent = True
                return answered
            self._is_silent = False
            self._announcements.counted(self._name, study, counts, asked_at, self._apart)
            answered += 1
        return answered
