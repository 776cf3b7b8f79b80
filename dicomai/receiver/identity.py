"""User identity negotiation (PS3.7 D.3.3.7): a user name, with or without a passcode, of one of the users."""

import hashlib
import hmac
import secrets
import threading
from collections.abc import Sequence

from pynetdicom.pdu_primitives import UserIdentityNegotiation

from dicomai import passcodes
from dicomai.config import UserSettings
from dicomai.receiver.policy import IDENTITY, Refusal

_USER_NAME, _USER_NAME_AND_PASSCODE = 1, 2


class Users:
    """Those who may associate; anyone if there are none."""

    def __init__(self, users: Sequence[UserSettings]) -> None:
        """Take over the users of the configuration."""
        self._passcodes = {user.name.encode(): user.passcode for user in users}
        # A sender that opens an association for each image is not to wait for scrypt each time.
        self._secret = secrets.token_bytes(32)
        self._proven: dict[bytes, bytes] = {}
        self._lock = threading.Lock()
        self._trying = threading.Lock()  # one at a time: a hundred strangers would take gigabytes for scrypt

    def refusal(self, identity: UserIdentityNegotiation | None) -> Refusal | None:
        """Judge an identity; None if it may be accepted.

        Args:
            identity: what the requestor shows; None if it shows nothing.
        """
        if not self._passcodes:
            return None
        if identity is None:
            return Refusal(IDENTITY, "set a user name and passcode of a [[user]] at the sender")
        if identity.user_identity_type not in {_USER_NAME, _USER_NAME_AND_PASSCODE}:
            kind = identity.user_identity_type
            return Refusal(IDENTITY, f"set a user name and passcode at the sender; it shows an identity of type {kind}")
        name, passcode = identity.primary_field or b"", identity.secondary_field or b""
        if not self._fits(name, passcode):
            shown = ascii(name[:64].decode(errors="replace"))
            return Refusal(IDENTITY, f"check user name {shown} and its passcode at the sender and in [[user]]")
        return None

    def _fits(self, name: bytes, passcode: bytes) -> bool:
        text = self._passcodes.get(name, passcodes.NOBODY)
        if not text:  # the name is enough
            return True
        seal = hmac.digest(self._secret, passcode, hashlib.sha256)
        with self._lock:
            proven = self._proven.get(name, b"")
        if hmac.compare_digest(seal, proven):
            return True
        with self._trying:
            fits = passcodes.fits(passcode, text)
        if not fits or name not in self._passcodes:
            return False
        with self._lock:
            self._proven[name] = seal
        return True


def response(identity: UserIdentityNegotiation | None) -> UserIdentityNegotiation | None:
    """Make the positive response, which has nothing in it (PS3.7 D.3.3.7.2); None where none is asked for.

    The library makes one for tickets only.
    """
    if identity is None or not identity.positive_response_requested:
        return None
    item = UserIdentityNegotiation()
    item.server_response = b""
    return item
