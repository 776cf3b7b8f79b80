"""Who may come in, beside AE titles and certificates: users, limits on addresses and on time, crowds at the door."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom.pdu_primitives import UserIdentityNegotiation
from structlog.testing import capture_logs

from dicomai import passcodes
from dicomai.config import Settings, UserSettings
from dicomai.errors import TooLargeError
from dicomai.node import _door
from dicomai.receiver import Receiver
from dicomai.receiver.connections import LONGEST_PDU, Courtesy
from dicomai.receiver.identity import Users
from dicomai.receiver.services import Service
from tests.dimse import HOST, MemoryIntake, associate, free_port, node, rejection, store, wait_until

CT = [(CTImageStorage, [ExplicitVRLittleEndian])]
USERS = (UserSettings(name="ct01", passcode=passcodes.hashed(b"4711")), UserSettings(name="mr01"))


def identity(kind: int, name: bytes, passcode: bytes = b"", *, answer: bool = False) -> UserIdentityNegotiation:
    item = UserIdentityNegotiation()
    item.user_identity_type = kind
    item.primary_field = name
    item.secondary_field = passcode
    item.positive_response_requested = answer
    return item


class TestUsers:
    @pytest.mark.parametrize(
        "shown", [identity(2, b"ct01", b"4711"), identity(1, b"mr01"), identity(2, b"mr01", b"whatever")]
    )
    def test_a_user_comes_in(self, shown: UserIdentityNegotiation) -> None:
        with node(users=USERS) as n:
            for _ in range(2):  # the second time from memory
                with associate(n.port, CT, negotiation=[shown]) as assoc:
                    assert store(assoc, CTImageStorage, "1.2.3", b"\x08\x00\x18\x00").Status == 0x0000
                    assert assoc.acceptor.user_identity is None

    def test_a_positive_response_is_given_where_it_is_asked_for(self) -> None:
        with (
            node(users=USERS) as n,
            associate(n.port, CT, negotiation=[identity(2, b"ct01", b"4711", answer=True)]) as assoc,
        ):
            answer = assoc.acceptor.user_identity
            assert answer is not None
            assert answer.server_response == b""

    @pytest.mark.parametrize(
        "shown",
        [
            None,
            identity(2, b"ct01", b"4712"),
            identity(1, b"ct01"),
            identity(2, b"nobody", b"4711"),
            identity(2, b"nobody", passcodes.NOBODY.encode()),
            identity(3, b"ticket"),
            identity(4, b"assertion"),
            identity(5, b"token"),
        ],
    )
    def test_anyone_else_does_not(self, shown: UserIdentityNegotiation | None) -> None:
        with capture_logs() as logs, node(users=USERS) as n:
            for earlier in (None, identity(2, b"ct01", b"4711")):  # one who was let in leaves no door open
                if earlier is not None:
                    with associate(n.port, CT, negotiation=[earlier]) as assoc:
                        assert assoc.is_established
                with associate(n.port, CT, negotiation=[shown] if shown else []) as assoc:
                    assert rejection(assoc) == (1, 1, 1)
        refused = [line for line in logs if line["event"].startswith("association refused")]
        assert len(refused) == 2
        assert "user name" in refused[0]["remedy"]
        assert "471" not in str([line for line in logs if line["event"] != "receiver listens"])  # with any port

    def test_without_users_an_identity_is_of_no_account(self) -> None:
        shown = [identity(2, b"anyone", b"anything", answer=True)]
        with node() as n, associate(n.port, CT, negotiation=shown) as assoc:
            assert assoc.is_established
            assert assoc.acceptor.user_identity is None

    def test_strangers_that_come_at_once_do_not_each_take_the_memory_of_scrypt(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        running, most = 0, 0

        def fits(*_: object) -> bool:
            nonlocal running, most
            running += 1
            most = max(most, running)
            time.sleep(0.02)
            running -= 1
            return False

        monkeypatch.setattr(passcodes, "fits", fits)
        users = Users(USERS)
        threads = [threading.Thread(target=users.refusal, args=(identity(2, b"ct01", b"x"),)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == 1


class TestLimits:
    def test_one_address_may_not_take_it_all(self) -> None:
        with (
            capture_logs() as logs,
            node(max_associations=3, max_associations_per_peer=1) as n,
            associate(n.port, CT) as first,
        ):
            assert first.is_established
            with associate(n.port, CT) as second:
                assert rejection(second) == (2, 3, 2)
            with other_address(), associate(n.port, CT) as elsewhere:
                assert elsewhere.is_established
        (line,) = [line for line in logs if line["event"].startswith("association refused")]
        assert "receiver.max_associations_per_peer" in line["remedy"]

    def test_an_association_does_not_stay_for_ever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dicomai.receiver.scp._PATROL_SECONDS", 0.1)
        with capture_logs() as logs, node(total_timeout=0.5) as n:
            with associate(n.port, CT) as assoc:
                assert store(assoc, CTImageStorage, "1.2.3", b"\x08\x00\x18\x00").Status == 0x0000
                wait_until(lambda: assoc.is_aborted, 3)
            assert n.intake.closed == [(1, "aborted")]
            with associate(n.port, CT) as drip:  # one that keeps the thread in the middle of a PDU
                assert drip.dul.socket is not None
                assert drip.dul.socket.socket is not None
                drip.dul.socket.socket.sendall(b"\x04\x00\x00\x00\x10\x00")
                wait_until(lambda: not drip.is_established, 3)
            assert n.intake.closed[1:] == [(2, "aborted")]
        assert [line["association"] for line in logs if "too long" in line["event"]] == [1, 2]

    def test_no_pdu_is_offered_that_would_break_an_association_off(self) -> None:
        assert Settings(receiver={"max_pdu": LONGEST_PDU}).receiver.max_pdu == LONGEST_PDU
        with pytest.raises(ValidationError):
            Settings(receiver={"max_pdu": LONGEST_PDU + 1})

    def test_what_is_too_large_leaves_its_series_to_be_waited_for(self) -> None:
        with node() as n:
            n.intake.failure = TooLargeError("More bytes than are taken.")
            with associate(n.port, CT) as assoc:
                assert store(assoc, CTImageStorage, "1.2.3", b"\x08\x00\x18\x00").Status == 0xA700
            wait_until(lambda: n.intake.closed)
            assert n.intake.closed == [(1, "lost")]

    def test_a_service_that_fails_takes_nobody_s_lease(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Failing(Service):
            def patrol(self) -> None:
                raise RuntimeError("nobody foresaw it")

        monkeypatch.setattr("dicomai.receiver.scp._PATROL_SECONDS", 0.02)
        monkeypatch.setattr("dicomai.receiver.scp._RENEWAL_SECONDS", 0.04)
        with capture_logs() as logs, node(services=[Failing()]) as n, associate(n.port, CT):
            wait_until(lambda: len(n.intake.renewed) > 3)
        assert any(line["event"].startswith("a look at the open associations failed") for line in logs)


class TestTheDoor:
    def test_one_that_is_silent_does_not_keep_the_process_from_ending(self) -> None:
        with node() as n, socket.create_connection((HOST, n.port)) as silent:
            wait_until(lambda: any(thread.name.startswith("AcceptorThread") for thread in threading.enumerate()))
            n.receiver.shutdown()
            silent.settimeout(3)
            assert silent.recv(1) == b""

    def test_a_storm_is_let_in_as_it_comes(self) -> None:
        with at_door() as receiver, contextlib.ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(socket.create_connection((HOST, receiver.port)))
            assert receiver._server is not None
            there = receiver._server._connections
            wait_until(lambda: len(there) == 100)
        courtesy = Courtesy()
        pauses = [courtesy.pause(serving, 1000.0 + serving / 1000) for serving in range(100)]  # 2.8 s, one by one
        assert pauses[:3] == [0.0, 0.003, 0.006]
        assert sum(pauses) < 0.25
        assert courtesy.pause(5, 1010.0) == pytest.approx(0.015)  # in quieter times

    def test_localhost_is_where_most_senders_look_for_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        both = [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (HOST, 0)),
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
        with _door(Settings(node={"host": "localhost"})) as door:
            assert door.getsockname()[0] == HOST


@contextlib.contextmanager
def at_door() -> Iterator[Receiver]:
    """Run a receiver that may share its port with others."""
    settings = Settings(node={"host": HOST, "port": free_port()})
    receiver = Receiver(settings, MemoryIntake(), (), _door(settings))
    receiver.start()
    try:
        yield receiver
    finally:
        receiver.shutdown(grace=0.1)


@contextlib.contextmanager
def other_address() -> Any:
    """Have connections come from 127.0.0.2."""
    with pytest.MonkeyPatch.context() as patch:
        connect = socket.socket.connect

        def from_elsewhere(self: socket.socket, address: Any) -> None:
            self.close()
            self.__init__(socket.AF_INET, socket.SOCK_STREAM)  # type: ignore[misc]  the library has bound it already
            self.bind(("127.0.0.2", 0))
            connect(self, address)

        patch.setattr(socket.socket, "connect", from_elsewhere)
        yield
