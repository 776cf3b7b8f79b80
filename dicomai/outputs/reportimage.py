"""The report that images were not analysed, as a picture, for a PACS that shows no structured report.

Secondary Capture (PS3.3 A.8.1), RGB: the sentences of `report` in large letters on black. It shows no slice, so that it
is never taken for a result, and nothing of the patient and the study but the modality: what is drawn cannot be
corrected before it is sent.
"""

from collections.abc import Iterator

import numpy as np
from pydicom.dataset import Dataset

from dicomai import render
from dicomai.findings import Findings
from dicomai.outputs.common import finish
from dicomai.outputs.picture import capture
from dicomai.outputs.provenance import Provenance, Sources
from dicomai.outputs.report import headline, sentences

_WIDTH, _TEXT = 768, 24  # pixels


def build(findings: Findings, sources: Sources, provenance: Provenance) -> None:
    """Give nothing: where there are findings, the images were analysed, and the other outputs say what came of it."""


def not_analysed(why: str, sources: Sources, provenance: Provenance) -> Dataset:
    """Draw the sentence that images were not analysed.

    Args:
        why: in a sentence that tells nothing of the patient.
        sources: the images; they need not make a volume.
        provenance: what was to analyse them, and under which identifiers the picture goes.

    Raises:
        IdentityError: the newest instance lies in another study than the images.
    """
    picture = np.asarray(render.page([*_lines(why, sources, provenance)], _WIDTH, _TEXT))
    made = capture(picture, "reportimage", sources, provenance)
    made.ImageComments = "Not analysed; unverified"
    return finish(made, sources, provenance, "reportimage")


def _lines(why: str, sources: Sources, provenance: Provenance) -> Iterator[render.Line]:
    yield render.Line(f"Not analysed. {render.MARK}", render.YELLOW)
    yield render.Line(headline(why, sources, provenance), render.WHITE)
    yield from (render.Line(one) for one in sentences(provenance, "keyimage", "keyframes"))
    modality = str(sources.header.get("Modality") or "")
    if modality:
        yield render.Line(f"Images: {modality}.")
