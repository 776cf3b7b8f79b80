"""A node's storage held against its index, and both against what was acknowledged."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import sqlalchemy as sa

from dicomai.database import Database
from dicomai.database.tables import Instance, Version


def faults(storage: Path, url: str, acknowledged: Mapping[str, str]) -> list[str]:
    """List what is wrong; call it while nothing is being received.

    Args:
        storage: the storage folder.
        url: of the database.
        acknowledged: SHA-256 of each data set that was answered with success, in hexadecimal, by SOP Instance UID.
    """
    database = Database(url)
    try:
        with database.read() as session:
            query = sa.select(Instance.sop_instance_uid, Version.key).join(Version, Version.instance_id == Instance.id)
            rows = session.execute(query).all()
    finally:
        database.close()
    keys: dict[str, set[str]] = {}
    for uid, key in rows:
        keys.setdefault(uid, set()).add(key)
    indexed = {key for _, key in rows}
    files = {str(path.relative_to(storage)) for path in (storage / "instances").rglob("*") if path.is_file()}
    found = [f"a row without a file: {key}" for key in sorted(indexed - files)]
    found += [f"a file without a row: {key}" for key in sorted(files - indexed)]
    found += [f"half received: {path.name}" for path in (storage / "incoming").glob("*/*")]
    for uid, digest in acknowledged.items():
        there = [storage / key for key in keys.get(uid, ()) if key in files]
        if not there:
            found.append(f"acknowledged, but not there: {uid}")
        elif digest not in {digest_of(path) for path in there}:
            found.append(f"not what was sent: {uid}")
    return found


def digest_of(file: Path) -> str:
    """Hash the data set of a DICOM file, without preamble and file meta information."""
    with file.open("rb") as stream:
        stream.seek(144 + int.from_bytes(stream.read(144)[140:], "little"))
        return hashlib.file_digest(stream, "sha256").hexdigest()
