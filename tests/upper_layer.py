"""`python -m tests.upper_layer`: pynetdicom's own tests with the receiver's upper layer in place of the library's.

The library brings its tests along, those of the very version that is installed. Every association that a server of
theirs accepts is made by `dicomai.receiver.stream`, on a connection of the receiver's; C-STORE requests come to the
tests' handlers by the library's own Storage Service Class. Arguments go to pytest; without any, each file is run in
which a server accepts associations. What fails twice is run with the library's upper layer: what fails there too has
another reason. `DIFFERENT` names the differences that there are, with their reasons; any other one is a failure.
"""

import contextlib
import functools
import socket
import sys
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import cast
from unittest import mock

import pynetdicom.tests
import pytest
from pynetdicom import transport
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.tests import utils
from pynetdicom.transport import AssociationServer

from dicomai.receiver import stream
from dicomai.receiver.connections import Connection, TlsConnection
from dicomai.receiver.statuses import Status

FOLDER = Path(next(iter(pynetdicom.tests.__path__)))

FILES = (
    *("acse", "ae", "assoc", "assoc_n", "assoc_user", "dimse_provider", "dul", "events", "fsm", "presentation"),
    *("service_n", "service_qr", "service_storage", "service_verification", "transport"),
)

DIFFERENT = {
    "test_invalid_context": "aborted all the same, by the provider and without the line in the library's log",
    "test_scp_handler_return_dataset_multi": "the receiver answers with Status and Error Comment alone",
    "test_scp_handler_dataset_path": "STORE_RECV_CHUNKED_DATASET: the fragments go to the receiver's own file",
    "test_scp_handler_move_origin": "the receiver does not read the Move Originator",
    "TestQRMoveServiceClass::test_scp_handler_request": "as before",
}
"""Why a test of the library is not met, by a part of its name."""

_get_request, _server_bind = AssociationServer.get_request, AssociationServer.server_bind


def store(assoc: Association, request: stream.StoreRequest, fragments: Iterator[memoryview]) -> Status:
    """Serve a C-STORE request as the library does, and give what it would answer."""
    primitive = C_STORE()
    primitive.MessageID = request.command.message_id
    primitive.AffectedSOPClassUID = request.command.sop_class_uid
    primitive.AffectedSOPInstanceUID = request.command.sop_instance_uid
    primitive.Priority = 2
    primitive.DataSet = BytesIO(b"".join(map(bytes, fragments)))
    with (
        mock.patch.object(assoc.dimse, "send_msg") as send,
        mock.patch.object(assoc, "abort", functools.partial(assoc.abort, block=False)),  # this is its own thread
    ):
        assoc._serve_request(primitive, request.context_id)
    if not send.called:  # the test's handler has ended the association, or nothing serves that SOP class
        raise stream.BrokenError
    answer = send.call_args.args[0]
    return Status(answer.Status, "", "", comment=answer.ErrorComment or "")


class Handler(stream.handler(store)):  # type: ignore[misc]
    """Makes the association of a test's server; the sender has the time that the test's AE gives it."""

    def _create_association(self) -> Association:
        self.request.be_patient(self.ae.network_timeout or 60.0)
        return cast("Association", super()._create_association())


class Run:
    """A run of pytest: our upper layer in each server, and what came of each test."""

    def __init__(self, *, ours: bool) -> None:
        self._is_ours = ours
        self._servers: list[AssociationServer] = []
        self._has_accepted = False
        self.passed: set[str] = set()
        self.accepting: set[str] = set()  # those in which a server made an association
        self.failed: set[str] = set()

    def of(self, arguments: Iterable[str]) -> "Run":
        """Run tests, free of this project's settings."""
        settings = ["-c", "/dev/null", "--rootdir", str(FOLDER), "-q", "--tb=short", "-p", "no:cacheprovider"]
        with self._replaced():
            pytest.main([*settings, *arguments], [self])
        return self

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take down an outcome."""
        if report.failed:
            self.failed.add(report.nodeid)
        elif report.when == "call" and report.passed:
            self.passed.add(report.nodeid)
        if self._has_accepted:
            self.accepting.add(report.nodeid)

    def pytest_runtest_teardown(self) -> None:
        """End the servers of a test that failed: the next one wants their port."""
        for server in self._servers:
            if server in server.ae._servers:
                server.shutdown()
        self._servers.clear()

    def pytest_runtest_setup(self) -> None:
        """Begin with nothing accepted."""
        self._has_accepted = False

    @contextlib.contextmanager
    def _replaced(self) -> Iterator[None]:
        def server_bind(server: AssociationServer) -> None:
            self._servers.append(server)
            _server_bind(server)

        def get_request(server: AssociationServer) -> tuple[socket.socket, tuple[str, int]]:
            if self._is_ours and server.ssl_context is not None:
                server.ssl_context.sslsocket_class = TlsConnection
            accepted, address = _get_request(server)
            self._has_accepted |= server.RequestHandlerClass is Handler  # some serve by hand
            is_plain = self._is_ours and type(accepted) is socket.socket
            return (Connection(fileno=accepted.detach()) if is_plain else accepted), address

        with (
            mock.patch.object(transport, "RequestHandler", Handler if self._is_ours else transport.RequestHandler),
            mock.patch.object(AssociationServer, "get_request", get_request),
            mock.patch.object(AssociationServer, "server_bind", server_bind),
            mock.patch.dict(utils.PORTS, clear=True),  # theirs is one that a node listens on
        ):
            yield


def main(arguments: list[str]) -> int:
    """Run and compare; 0 where every difference is a known one."""
    ours, again, theirs = Run(ours=True), Run(ours=True), Run(ours=False)
    ours.of(arguments or [str(FOLDER / f"test_{name}.py") for name in FILES])
    if ours.failed:  # some wait for half a second only, which a busy machine takes
        again.of(f"{FOLDER}/{name}" for name in sorted(ours.failed))
    failed = again.failed & again.accepting  # the others know nothing of our upper layer
    if failed:
        theirs.of(f"{FOLDER}/{name}" for name in sorted(failed))
    passed = (ours.passed | again.passed) & ours.accepting
    known = {name for name in theirs.passed if any(part in name for part in DIFFERENT)}
    new = sorted(theirs.passed - known)
    for name in new:
        sys.stdout.write(f"differs: {name}\n")
    sys.stdout.write(
        f"With an accepted association {len(passed)} passed, {len(known)} differ as known,"
        f" {len(theirs.failed)} fail with either upper layer.\n"
    )
    return 1 if new else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
