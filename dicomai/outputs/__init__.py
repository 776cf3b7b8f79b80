"""Findings and sources to DICOM objects: one file per kind, and its name in `provenance.OUTPUTS`."""

import importlib
from collections.abc import Callable

from pydicom.dataset import Dataset

from dicomai.errors import ConfigurationError
from dicomai.findings import Findings
from dicomai.outputs.common import encode
from dicomai.outputs.header import restate
from dicomai.outputs.provenance import OUTPUTS, Algorithm, Predecessor, Provenance, Sources

__all__ = [
    "NOT_ANALYSED",
    "OUTPUTS",
    "Algorithm",
    "Predecessor",
    "Provenance",
    "Sources",
    "build",
    "encode",
    "not_analysed",
    "restate",
]

NOT_ANALYSED = ("report", "reportimage")
"""The outputs that say that images were not analysed."""

Builder = Callable[[Findings, Sources, Provenance], Dataset | None]


def build(output: str, findings: Findings, sources: Sources, provenance: Provenance) -> Dataset | None:
    """Build one result object.

    Args:
        output: its name as in a route, such as 'seg'.
        findings: what the model said.
        sources: the images it looked at.
        provenance: who made it, and under which identifiers.

    Returns:
        The object with its file meta information, or None where there is nothing to encode (no segment has a voxel).

    Raises:
        ConfigurationError: there is no such output.
        InferenceError: the findings do not fit the images.
        GeometryError: an image does not say where it lies.
        UnreadableError: slices that are drawn cannot be decoded.
        StoreError: the storage did not give them.
        IdentityError: the newest instance lies in another study than the images.
    """
    if output not in OUTPUTS:
        raise ConfigurationError(f"There is no output '{output}'; there are: {', '.join(sorted(OUTPUTS))}.")
    # Only what is built is loaded: a delivery builds nothing, and page layout or meshes take their time and memory.
    builder: Builder = importlib.import_module(f"{__name__}.{output}").build
    return builder(findings, sources, provenance)


def not_analysed(output: str, why: str, sources: Sources, provenance: Provenance) -> Dataset:
    """Build what says that images were not analysed.

    Args:
        output: one of `NOT_ANALYSED`.
        why: in a sentence that tells nothing of the patient.
        sources: the images; they need not make a volume.
        provenance: what was to analyse them, and under which identifiers.

    Raises:
        IdentityError: the newest instance lies in another study than the images.
    """
    made: Dataset = importlib.import_module(f"{__name__}.{output}").not_analysed(why, sources, provenance)
    return made
