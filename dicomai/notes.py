"""Reads stored Key Object Selection documents, once each, and does what those ask that are rejection notes."""

import time

import pydicom
import structlog

from dicomai.database.engine import Database
from dicomai.database.rejections import Document, Rejections
from dicomai.errors import ContendedError, StoreError
from dicomai.rejection import RejectionNote
from dicomai.store import Store
from dicomai.study import UNREADABLE

log = structlog.get_logger()

_RETRY = 30.0  # seconds until a document is looked at again that the store did not give


class Notes:
    """Rejection notes, from the store to the worklist.

    Which documents were read is a column, written with what they brought about: a sweep that is killed, or that two
    planners run at once, neither loses a note nor obeys it twice.
    """

    def __init__(self, store: Store, database: Database) -> None:
        """Work on a store and its database."""
        self._store = store
        self._rejections = Rejections(database)
        self._again: dict[int, float] = {}

    def sweep(self) -> int:
        """Read every document that waits; gives how many there were. What it rejects must not be planned after it."""
        waiting = [one for one in self._rejections.waiting() if self._again.get(one.instance_id, 0) <= time.monotonic()]
        for document in waiting:
            try:
                self._examine(document)
                self._again.pop(document.instance_id, None)
            except StoreError as error:
                log.error("a key object selection cannot be read now", study=document.trace, error=str(error))
                if not isinstance(error, ContendedError):  # which is over by the next sweep
                    self._again[document.instance_id] = time.monotonic() + _RETRY
            except Exception:
                # What a library makes of an odd document: one must not keep everything from being planned.
                log.exception("a key object selection could not be examined", study=document.trace)
                self._again[document.instance_id] = time.monotonic() + _RETRY
        return len(waiting)

    def _examine(self, document: Document) -> None:
        facts = {"study": document.trace, "sop_instance_uid": document.sop_instance_uid}
        with self._store.open(document.key) as stream:
            try:
                content = RejectionNote.of(pydicom.dcmread(stream, stop_before_pixels=True))
            except UNREADABLE as error:
                why = (
                    f"Key Object Selection {document.sop_instance_uid} cannot be read ({type(error).__name__}), so it"
                    " rejects nothing; cancel by hand what it was to reject."
                )
                log.error(why, **facts)
                self._rejections.pass_over(document, why)
                return
        if content is None:
            self._rejections.pass_over(document)
            return
        effect = self._rejections.obey(document, content)
        facts["code"] = content.code
        log.info("a rejection note came", rejected=effect.rejected, canceled=effect.canceled, **facts)
        for doubt in effect.doubts:
            log.warning("a rejection note is not obeyed; the study is held for a person", why=doubt, **facts)
        for workitem in effect.sent:
            log.warning(
                "images were rejected after a result made of them was sent",
                remedy="see what was made of them: dicomai recall --workitem with this number withdraws it",
                workitem=workitem,
                **facts,
            )
