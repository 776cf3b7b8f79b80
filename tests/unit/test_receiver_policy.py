"""Who may associate."""

from collections.abc import Callable

import pytest

from dicomai.config import ReceiverSettings
from dicomai.receiver.policy import CALLED_AE, CALLING_AE, CONGESTION, LIMIT, Policy, Reason


def judge(
    *allow: str,
    calling_ae: str = "CT01",
    called_ae: str = "DICOMAI",
    address: str = "10.1.2.3",
    open_associations: int = 0,
    from_address: int = 0,
    has_room: Callable[[], bool] = lambda: True,
) -> Reason | None:
    limits = ReceiverSettings(allow=allow, max_associations=3, max_associations_per_peer=2)
    policy = Policy("DICOMAI", limits, has_room)
    refusal = (
        policy.stranger(calling_ae=calling_ae, called_ae=called_ae, address=address)
        or policy.congestion()
        or policy.crowd(open_associations, from_address=from_address)
    )
    return refusal.reason if refusal is not None else None


def test_an_empty_list_lets_everyone_in() -> None:
    assert judge(calling_ae="ANYONE", address="2001:db8::1") is None


@pytest.mark.parametrize(
    ("entry", "address", "may"),
    [
        ("CT01", "192.168.0.1", True),
        ("CT02", "10.1.2.3", False),
        ("ct01", "10.1.2.3", False),  # AE titles are told apart by case (PS3.5 6.2)
        ("CT01@10.1.0.0/16", "10.1.255.255", True),
        ("CT01@10.1.0.0/16", "10.2.0.0", False),
        ("CT01@10.1.2.3", "10.1.2.3", True),
        ("CT01@10.1.2.3", "10.1.2.4", False),
        ("CT01@10.1.0.0/16", "::ffff:10.1.2.3", True),  # IPv4 on a socket that takes both
        ("CT01@2001:db8::/32", "2001:db8:1::5", True),
        ("CT01@2001:db8::/32", "10.1.2.3", False),
        ("CT01@fe80::/10", "fe80::1%eth0", True),
    ],
)
def test_an_entry_admits_a_title_from_its_network_only(entry: str, address: str, may: bool) -> None:
    assert (judge("OTHER", entry, address=address) is None) is may


def test_spaces_around_a_title_are_of_no_account() -> None:
    assert judge("CT01", calling_ae=" CT01 ", called_ae="DICOMAI   ") is None


def test_the_limit_is_the_number_that_may_be_open() -> None:
    assert judge(open_associations=2, from_address=1) is None
    assert judge(open_associations=3) is LIMIT
    assert judge(open_associations=2, from_address=2) is LIMIT


def test_an_address_may_have_them_all_unless_told_otherwise() -> None:
    policy = Policy("DICOMAI", ReceiverSettings(max_associations=3), lambda: True)
    assert policy.crowd(2, from_address=2) is None
    assert policy.crowd(3, from_address=3) is not None


def test_what_will_not_change_is_said_first() -> None:
    everything = {"open_associations": 9, "has_room": lambda: False}
    assert judge("X", called_ae="Y", **everything) is CALLED_AE  # type: ignore[arg-type]
    assert judge("X", **everything) is CALLING_AE  # type: ignore[arg-type]
    assert judge(**everything) is CONGESTION  # type: ignore[arg-type]


def test_the_disk_is_not_looked_at_for_strangers() -> None:
    def fail() -> bool:
        raise AssertionError

    assert judge("X", has_room=fail) is CALLING_AE
