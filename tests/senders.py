"""Senders that know what they were answered."""

import hashlib
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests import copies, scu
from tests.beds import parts_of


@dataclass
class Sender:
    """One that sends studies, an association after the other, and knows what was answered.

    Attributes:
        acknowledged: digest of the data set by SOP Instance UID.
        unanswered: what was under way when the connection ended; it is sent again first.
        refused: statuses other than success.
    """

    number: int
    port: int
    templates: list[bytes]
    acknowledged: dict[str, str] = field(default_factory=dict)
    unanswered: tuple[str, bytes] | None = None
    refused: list[int] = field(default_factory=list)

    def send(self, end: threading.Event, chance: random.Random) -> None:
        """Send until the connection ends, or somebody says that it is enough."""
        try:
            while not end.is_set():
                with scu.associated(self.port, calling_ae=f"CT{self.number}") as assoc:
                    for uid, data_set in self._instances(chance):
                        self.unanswered = uid, data_set
                        status = assoc.store(uid, data_set)
                        if status == 0x0000:
                            self.acknowledged[uid] = hashlib.sha256(data_set).hexdigest()
                        else:
                            self.refused.append(status)
                        self.unanswered = None
                        if end.is_set():
                            return
        except OSError:
            return

    def _instances(self, chance: random.Random) -> Iterator[tuple[str, bytes]]:
        """Make a study of one or two series, of small images and large ones."""
        if self.unanswered is not None:
            yield self.unanswered
        study = copies.new_uid(chance)
        for _ in range(chance.randint(1, 2)):
            series = copies.new_uid(chance)
            for _ in range(chance.randint(1, 30)):
                uid = copies.new_uid(chance)
                yield uid, parts_of(copies.copy(chance.choice(self.templates), study, series, uid))[1]
