"""Findings and sources to DICOM objects, one file per kind; a new kind is one file and one line in the table."""

from collections.abc import Callable

from pydicom.dataset import Dataset

from dicomai.errors import ConfigurationError
from dicomai.findings import Findings
from dicomai.outputs import keyimage, seg, sr
from dicomai.outputs.common import encode
from dicomai.outputs.header import restate
from dicomai.outputs.provenance import Algorithm, Predecessor, Provenance, Sources

__all__ = ["Algorithm", "Predecessor", "Provenance", "Sources", "build", "encode", "restate"]

_BUILDERS: dict[str, Callable[[Findings, Sources, Provenance], Dataset | None]] = {
    "seg": seg.build,
    "sr": sr.build,
    "keyimage": keyimage.build,
}


def build(output: str, findings: Findings, sources: Sources, provenance: Provenance) -> Dataset | None:
    """Build one result object.

    Args:
        output: 'seg', 'sr' or 'keyimage', as in a route.
        findings: what the model said.
        sources: the images it looked at.
        provenance: who made it, and under which identifiers.

    Returns:
        The object with its file meta information, or None where there is nothing to encode (no segment has a voxel).

    Raises:
        ConfigurationError: there is no such output.
        InferenceError: the findings do not fit the images.
        GeometryError: an image does not say where it lies.
        UnreadableError: a key image's slices cannot be decoded.
        StoreError: the storage did not give them.
        IdentityError: the newest instance lies in another study than the images.
    """
    if output not in _BUILDERS:
        raise ConfigurationError(f"There is no output '{output}'; there are: {', '.join(sorted(_BUILDERS))}.")
    return _BUILDERS[output](findings, sources, provenance)
