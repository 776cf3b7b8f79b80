"""Who may come in, beside AE titles and certificates: users, and limits on addresses and on time."""

import contextlib
import socket
from typing import Any

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom.pdu_primitives import UserIdentityNegotiation
from structlog.testing import capture_logs

from dicomai import passcodes
from dicomai.config import UserSettings
from tests.dimse import associate, node, rejection, store, wait_until

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
        assert "471" not in str(logs)

    def test_without_users_an_identity_is_of_no_account(self) -> None:
        shown = [identity(2, b"anyone", b"anything", answer=True)]
        with node() as n, associate(n.port, CT, negotiation=shown) as assoc:
            assert assoc.is_established
            assert assoc.acceptor.user_identity is None


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
