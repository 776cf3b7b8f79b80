"""What is wrong with a bundle's folder: for the engineer who has just put it there."""

from pathlib import Path

from dicomai import bundle as bundles
from dicomai import weights
from dicomai.errors import DicomaiError
from dicomai.inference import engine


def check(path: Path, storage: Path) -> tuple[str, ...]:
    """Look a bundle over as a node would: its files, its weights, and whether its networks can be built.

    Args:
        path: the bundle's folder.
        storage: `node.storage`, where pulled weights lie.

    Returns:
        A sentence for every problem; none for a bundle that can run.
    """
    try:
        bundle = bundles.load(path)
        engine.load(bundle, weights.located(bundle, storage), "cpu")
    except DicomaiError as error:
        return (str(error),)
    return ()
