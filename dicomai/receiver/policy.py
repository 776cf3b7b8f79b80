"""Association policy: who may associate, and with which reason the others are refused (PS3.8 9.3.4)."""

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass

from dicomai.config import ReceiverSettings


@dataclass(frozen=True, slots=True)
class Reason:
    """A refusal as the A-ASSOCIATE-RJ has it (PS3.8 Table 9-21).

    Attributes:
        result: 1 rejected for good, 2 for now.
        source: 1 service user, 2 service provider (ACSE), 3 service provider (presentation).
        diagnostic: the reason, by source.
        meaning: the standard's words for it.
        when: what brings it about.
    """

    result: int
    source: int
    diagnostic: int
    meaning: str
    when: str


CALLED_AE = Reason(1, 1, 7, "called AE title not recognized", "the called AE title is not that of this node")
CALLING_AE = Reason(
    1,
    1,
    3,
    "calling AE title not recognized",
    "the calling AE title, or its address, is not in the list of senders",
)
IDENTITY = Reason(
    1,
    1,
    1,
    "no reason given",
    "users are configured, and the requestor shows no user name, or no passcode, of one of them",
)
LIMIT = Reason(2, 3, 2, "local limit exceeded", "as many associations are open as may be, in all or from this address")
CONGESTION = Reason(
    2, 3, 1, "temporary congestion", "the storage's disk is nearly full, or the node cannot work for now"
)

REASONS = (CALLED_AE, CALLING_AE, IDENTITY, CONGESTION, LIMIT)
"""Every reason that the receiver gives, in the order in which they are looked at."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refused association: the reason, and what a person can do about it."""

    reason: Reason
    remedy: str


class Policy:
    """Who may associate."""

    def __init__(self, ae_title: str, settings: ReceiverSettings, has_room: Callable[[], bool]) -> None:
        """Make the policy.

        Args:
            ae_title: the node's own AE title.
            settings: the section `[receiver]`; an empty `allow` lets everyone in.
            has_room: tells whether the disk is above its low-water mark.
        """
        self._ae_title = ae_title
        self._max_associations = settings.max_associations
        self._max_per_peer = settings.max_associations_per_peer or settings.max_associations
        self._min_free_bytes = settings.min_free_bytes
        self._has_room = has_room
        self._allowed = [_parse(entry) for entry in settings.allow]

    def stranger(self, *, calling_ae: str, called_ae: str, address: str) -> Refusal | None:
        """Judge who requests an association; None if they may.

        Args:
            calling_ae: who asks.
            called_ae: whom they ask for.
            address: where they ask from, IPv4 or IPv6.
        """
        if called_ae.strip() != self._ae_title:
            return Refusal(
                CALLED_AE,
                f"set the called AE title to {self._ae_title} at the sender, or node.ae_title to {called_ae.strip()}",
            )
        if not self._may_send(calling_ae.strip(), address):
            return Refusal(CALLING_AE, f"add {calling_ae.strip()}@{address} to receiver.allow if it may send")
        return None

    def crowd(self, open_associations: int, from_address: int) -> Refusal | None:
        """Judge how many there are; None if there is room for one more.

        Args:
            open_associations: how many are open without this one.
            from_address: how many of them are from its address.
        """
        for count, most, key in (
            (open_associations, self._max_associations, "max_associations"),
            (from_address, self._max_per_peer, "max_associations_per_peer"),
        ):
            if count >= most:
                return Refusal(LIMIT, f"raise receiver.{key} over {most} if this goes on; the sender may retry")
        return None

    def congestion(self) -> Refusal | None:
        """Judge the disk; None if it has room."""
        if not self._has_room():
            return Refusal(
                CONGESTION,
                f"free some room on the storage's disk: less than {self._min_free_bytes} bytes"
                " (receiver.min_free_bytes) are left",
            )
        return None

    def _may_send(self, calling_ae: str, address: str) -> bool:
        if not self._allowed:
            return True
        ip = ipaddress.ip_address(address)
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        return any(title == calling_ae and (network is None or ip in network) for title, network in self._allowed)


def _parse(entry: str) -> tuple[str, ipaddress.IPv4Network | ipaddress.IPv6Network | None]:
    """Take `AE` or `AE@network` apart."""
    title, _, network = entry.partition("@")
    return title.strip(), ipaddress.ip_network(network) if network else None
