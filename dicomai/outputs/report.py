"""Report of an analysis that failed or was refused: 'not analysed, because ...', for who waits for a result.

Comprehensive 3D SR after TID 1500 without measurements, which the template allows where there are evaluations: in codes
that no algorithm succeeded (CID 6047), and in a sentence why. It holds no measurement and refers to no segmentation.
"""

from collections.abc import Iterator

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from dicomai.findings import Findings
from dicomai.outputs import document
from dicomai.outputs.provenance import Provenance, Sources


def build(findings: Findings, sources: Sources, provenance: Provenance) -> None:
    """Give nothing: where there are findings, the images were analysed, and the other outputs say what came of it."""


def not_analysed(why: str, sources: Sources, provenance: Provenance) -> Dataset:
    """Report that images were not analysed.

    Args:
        why: in a sentence that tells nothing of the patient.
        sources: the images; they need not make a volume.
        provenance: what was to analyse them, and under which identifiers the report goes.

    Raises:
        IdentityError: the newest instance lies in another study than the images.
    """
    return document.build(
        "report",
        document.NOT_ANALYSED,
        [headline(why, sources, provenance)],
        (),
        document.evaluations(codes.cid6047.NoAlgorithmsSucceededWithoutFindings, sentences(provenance, "sr")),
        sources,
        provenance,
        place=None,
    )


def headline(why: str, sources: Sources, provenance: Provenance) -> str:
    """Say what was not analysed, by what, and why."""
    algorithm = provenance.algorithm
    series_number = sources.header.get("SeriesNumber")
    images = f"Series {series_number} was" if series_number is not None else "The images were"
    return f"{images} not analysed by {algorithm.name} {algorithm.version}: {why}"


def sentences(provenance: Provenance, *results: str) -> Iterator[str]:
    """Say what a reader must know; `results` are the outputs of an earlier result of which the reader may have one."""
    yield "This says nothing about what the images show. It was written by a program and not verified by a person."
    earlier = next(filter(None, map(provenance.predecessor, results)), None)
    if earlier is not None:
        yield f"An earlier result, in series {earlier.series_number}, is neither confirmed nor replaced by this report."
