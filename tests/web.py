"""Servers of HTTP that tests talk to, and what a destination there has accepted."""

import contextlib
import threading
from collections.abc import Iterator
from socketserver import BaseServer

from dicomai.destinations import Destination, Outgoing


@contextlib.contextmanager
def served(server: BaseServer) -> Iterator[None]:
    """Have a server answer, by a thread of its own, and end both."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def send(destination: Destination, *objects: Outgoing) -> list[tuple[str, int, str]]:
    """Send objects; gives of each that was accepted the SOP Instance UID, the status and what it means."""
    accepted: list[tuple[str, int, str]] = []
    destination.send(objects, lambda o, status, meaning: accepted.append((o.sop_instance_uid, status, meaning)))
    return accepted
