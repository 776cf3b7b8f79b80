"""What pictures have in common, which any PACS shows: Secondary Capture (PS3.3 A.8), colour, for the eye alone."""

import numpy as np
from highdicom.sc import SCImage
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicomai import render
from dicomai.outputs.common import carry, equipment, say_lossy
from dicomai.outputs.provenance import Provenance, Sources


def capture(picture: NDArray[np.uint8], output: str, sources: Sources, provenance: Provenance) -> Dataset:
    """Encode a picture as a Secondary Capture image (PS3.3 A.8.1), RGB, 8 bits; `finish` does the rest.

    Args:
        picture: shape (rows, columns, 3).
        output: which one it is, such as 'keyimage'.
        sources: what it was made of, or is about.
        provenance: who made it, and under which identifiers.
    """
    made = SCImage(
        pixel_array=picture,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),  # takes one letter only, and none is not allowed
        study_instance_uid="1.1",  # `finish` puts the patient and the study in
        series_instance_uid=provenance.uid(output, "series"),
        series_number=provenance.series_number(output),
        sop_instance_uid=provenance.uid(output, "instance"),
        instance_number=1,
        **equipment(provenance),
    )
    # Of the clock and without a zone: the content's date and time say it.
    del made.DateOfSecondaryCapture, made.TimeOfSecondaryCapture
    made.PatientOrientation = []  # for who made the picture to say
    describe(made, sources, provenance)
    return made


def describe(made: Dataset, sources: Sources, provenance: Provenance) -> None:
    """Say how a picture came to be, and that it has text on its pixels (PS3.3 C.8.6.1, C.7.6.1)."""
    made.ConversionType = "WSD"
    made.BurnedInAnnotation = "YES"
    made.ImageComments = f"{render.MARK}: {provenance.algorithm.name} {provenance.algorithm.version}"
    say_lossy(made, sources)
    for keyword in ("BodyPartExamined", "Laterality"):
        if sources.header.get(keyword):
            carry(made, sources.header, keyword)
