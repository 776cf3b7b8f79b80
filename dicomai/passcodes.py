"""Passcodes of users: kept as salted hashes by scrypt (RFC 7914), never as they are."""

import base64
import hashlib
import hmac
import re
import secrets

_COST, _BLOCK, _PARALLEL = 2**14, 8, 1  # 16 MiB and some 50 ms for each try
_HASH = re.compile(r"scrypt:(?P<salt>[A-Za-z0-9_-]{22}):(?P<digest>[A-Za-z0-9_-]{43})")

NOBODY = "scrypt:" + 22 * "A" + ":" + 43 * "A"
"""A hash that no passcode has: looking it up takes as long as looking up a user's."""


def is_hash(text: str) -> bool:
    """Tell whether a text is a hash that `hashed` made."""
    return _HASH.fullmatch(text) is not None


def hashed(passcode: bytes) -> str:
    """Make the hash of a passcode, with a salt of its own."""
    salt = secrets.token_bytes(16)
    return f"scrypt:{_text(salt)}:{_text(_digest(passcode, salt))}"


def fits(passcode: bytes, text: str) -> bool:
    """Tell whether a passcode is the one that a hash was made of, in a time that does not depend on the answer.

    Raises:
        ValueError: `text` is no hash.
    """
    found = _HASH.fullmatch(text)
    if found is None:
        raise ValueError("no hash of a passcode")
    return hmac.compare_digest(_text(_digest(passcode, _bytes(found["salt"]))), found["digest"])


def _digest(passcode: bytes, salt: bytes) -> bytes:
    return hashlib.scrypt(passcode, salt=salt, n=_COST, r=_BLOCK, p=_PARALLEL, dklen=32)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "==")
