"""Probe the DICOM destinations, at the start and every day: what they accept decides in which form results are made."""

import os
import threading
from collections.abc import Callable, Mapping

import structlog

from dicomai.database import Database, owner_name
from dicomai.database.probes import Probes
from dicomai.errors import ConfigurationError, DeliveryError, StoreError
from dicomai.profiles import Probe

log = structlog.get_logger()

_INTERVAL = 86400.0
_AGAIN = 60.0

Ask = Callable[[], frozenset[tuple[str, str]]]
"""Asks a destination what it accepts: SOP Class UID and Transfer Syntax UID of each presentation context.

Raises:
    DeliveryError: it gives no answer, or none but a refusal.
    ConfigurationError: a file of `[tls]` is missing or wrong.
"""


Judge = Callable[[Probe], str]
"""Says in a sentence what is at odds with what is said of a destination; empty where nothing is."""


class Prober:
    """Asks each destination in its turn, and writes down what it accepts."""

    def __init__(self, database: Database, destinations: Mapping[str, tuple[Judge, Ask]]) -> None:
        """Make a prober.

        Args:
            database: where the answers go.
            destinations: by name how what it accepts is judged, and how it is asked.
        """
        self._probes = Probes(database)
        self._destinations = destinations
        self._owner = owner_name("delivery", os.getpid())

    def run(self, stop: threading.Event) -> None:
        """Probe now and every day until told to stop."""
        while not stop.is_set():
            for name in self._destinations:
                if not stop.is_set():
                    self._probe(name, stop)
            stop.wait(_INTERVAL)

    def _probe(self, name: str, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                self.probe(name)
                break
            except StoreError as error:  # nobody would miss this thread
                log.error("what was probed could not be kept", destination=name, error=str(error))
                stop.wait(_AGAIN)

    def probe(self, name: str) -> None:
        """Probe one destination; that it is away is no fault, deliveries say so themselves."""
        judge, ask = self._destinations[name]
        try:
            is_news = self._probes.answered(name, ask(), self._owner)
        except (DeliveryError, ConfigurationError) as error:
            self._probes.failed(name, str(error))
            log.info("a destination was not probed", destination=name, error=str(error))
            return
        except Exception as error:
            # Nobody would miss this thread: no destination would be probed any more, without a word.
            log.exception("a probe failed unexpectedly", destination=name)
            self._probes.failed(
                name, f"The probe failed with {type(error).__name__}; the log of the delivery says where."
            )
            return
        remark = judge(self._probes.last()[name])
        if remark:
            log.warning("a destination is at odds with what is said of it", destination=name, remark=remark)
        elif is_news:
            log.info("a destination was probed", destination=name)
