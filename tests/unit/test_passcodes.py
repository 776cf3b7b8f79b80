"""Passcodes of users."""

import hypothesis
from hypothesis import strategies

from dicomai import passcodes


@hypothesis.settings(max_examples=5, deadline=None)
@hypothesis.given(strategies.binary(min_size=1), strategies.binary(min_size=1))
def test_a_passcode_fits_its_own_hash_and_no_other(one: bytes, other: bytes) -> None:
    text = passcodes.hashed(one)
    assert passcodes.is_hash(text)
    assert passcodes.fits(one, text)
    assert passcodes.fits(other, text) is (one == other)


def test_two_hashes_of_one_passcode_differ() -> None:
    assert passcodes.hashed(b"4711") != passcodes.hashed(b"4711")


def test_what_is_no_hash_is_told() -> None:
    assert passcodes.is_hash(passcodes.NOBODY)
    assert not passcodes.is_hash("4711")
    assert not passcodes.is_hash(passcodes.NOBODY + "A")
