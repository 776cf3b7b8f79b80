"""Bytes that are wrong in the ways that matter; the same for the same seed."""

from random import Random

NUMBERS = (
    0, 1, 2, 3, 4, 5, 6, 7, 8, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000,
    0xFFFFFFF0, 0xFFFFFFFE, 0xFFFFFFFF,
)  # fmt: skip
"""Where lengths, counts and tags break."""


def number(rng: Random, size: int) -> int:
    """A number of so many bytes: mostly one at which something breaks."""
    value = rng.choice(NUMBERS) if rng.random() < 0.7 else rng.getrandbits(8 * size)
    return value & ((1 << (8 * size)) - 1)


def bent(rng: Random, data: bytes, changes: int = 3) -> bytes:
    """Change some bytes: overwritten, put in, left out, doubled, cut off."""
    bytes_ = bytearray(data)
    for _ in range(rng.randint(1, changes)):
        at = rng.randrange(len(bytes_) + 1)
        match rng.randrange(7):
            case 0:
                bytes_[at : at + 1] = bytes((rng.getrandbits(8),))
            case 1:
                bytes_[at : at + 1] = bytes((rng.choice((0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF)),))
            case 2:
                size = rng.choice((1, 2, 4))
                bytes_[at : at + size] = number(rng, size).to_bytes(size, rng.choice(("big", "little")))
            case 3:
                del bytes_[at : at + rng.randint(1, 8)]
            case 4:
                bytes_[at:at] = rng.randbytes(rng.randint(1, 8))
            case 5:
                bytes_[at:at] = bytes_[at : at + rng.randint(1, 32)]
            case _ if rng.random() < 0.3:
                del bytes_[at:]
            case _:
                if at < len(bytes_):
                    bytes_[at] ^= 1 << rng.randrange(8)
    return bytes(bytes_)


def cut(rng: Random, data: bytes) -> list[bytes]:
    """Cut into pieces: one, a few, or each byte by itself; some may be empty."""
    way = rng.random()
    if way < 0.5 or not data:
        return [data]
    if way < 0.55 and len(data) <= 256:
        return [data[at : at + 1] for at in range(len(data))]
    places = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randint(1, 4)))
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]
