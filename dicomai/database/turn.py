"""Whose turn it is to write: threads queue for a lock, processes for one on a file."""

import fcntl
import os
import threading
from pathlib import Path
from types import TracebackType

from dicomai.errors import StoreError


class Turn:
    """A lock among all threads of all processes that name the same file; a process that ends lets go of it."""

    def __init__(self, path: Path) -> None:
        """Name the file; it is made at the first turn, and stays."""
        self._path = path
        self._threads = threading.Lock()
        self._descriptor: int | None = None

    def __enter__(self) -> None:
        self._threads.acquire()
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        except OSError as error:
            self._threads.release()
            raise StoreError(
                f"The worklist database's folder cannot be written ({error.strerror}); check the storage."
            ) from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        fcntl.flock(self._descriptor or 0, fcntl.LOCK_UN)
        self._threads.release()

    def close(self) -> None:
        """Close the file; the next turn opens it anew."""
        with self._threads:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
