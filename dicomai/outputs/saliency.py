"""Saliency, or another quantity of each voxel: a Parametric Map (PS3.3 A.75), a frame for each source image.

Values are 32 bit floating point numbers as the model gave them, with their quantity and unit in codes. Every frame
refers to its source image and lies where it lies: viewers place maps by either.
"""

import highdicom as hd
import numpy as np
from highdicom.pm import ParametricMap, RealWorldValueMapping
from pydicom.dataset import Dataset
from pydicom.uid import ParametricMapStorage

from dicomai.errors import InferenceError
from dicomai.findings import Findings, Saliency
from dicomai.outputs.common import Geometry, carry, equipment, finish, geometry, say_lossy
from dicomai.outputs.planes import in_order, name_dimensions, put_frames, stand_in, take_frame
from dicomai.outputs.provenance import Provenance, Sources

SOP_CLASS_UID = ParametricMapStorage


def build(findings: Findings, sources: Sources, provenance: Provenance) -> Dataset | None:
    """Encode the saliency; None where the findings have none.

    Args:
        findings: their saliency has the shape (z, y, x), z as in `sources.frames`.
        sources: the images that it lies on.
        provenance: who made it, and under which identifiers.

    Raises:
        InferenceError: the values lie on another grid than the images, or one is no number.
        GeometryError: an image does not say where it lies.
    """
    saliency = findings.saliency
    if saliency is None:
        return None
    _check(saliency, sources)
    place = geometry(sources)
    made = _outline(saliency, sources, provenance, place)
    pattern = take_frame(made)
    slices = in_order(range(len(sources.frames)), place)
    name_dimensions(made, provenance.uid("saliency", "dimensions"))
    made.Rows, made.Columns = sources.header.Rows, sources.header.Columns
    made.FloatPixelData = saliency.values[slices].astype("<f4", copy=False).tobytes()
    say_lossy(made, sources)
    if sources.header.get("BodyPartExamined"):
        carry(made, sources.header, "BodyPartExamined")
    whole = finish(made, sources, provenance, "saliency")
    put_frames(whole, pattern, [(0, plane) for plane in range(len(slices))], slices, sources, place)
    return whole


def _check(saliency: Saliency, sources: Sources) -> None:
    header = sources.header
    expected = (len(sources.frames), int(header.Rows), int(header.Columns))
    if saliency.values.shape != expected:
        raise InferenceError(
            f"The {saliency.label} has the shape {saliency.values.shape} and the images have {expected}: it lies on"
            " another grid."
        )
    if not np.isfinite(saliency.values).all():
        count = int(np.count_nonzero(~np.isfinite(saliency.values)))
        raise InferenceError(f"The {saliency.label} has {count} values that are no numbers: the network diverged.")


def _outline(saliency: Saliency, sources: Sources, provenance: Provenance, place: Geometry) -> ParametricMap:
    """Let highdicom make the object with one frame of a single voxel: of the real ones it would copy all."""
    low, high = float(saliency.values.min()), float(saliency.values.max())
    window = hd.VOILUTTransformation(  # exact: a linear window is never narrower than 1 (PS3.3 C.11.2.1.3)
        window_center=float(f"{(low + high) / 2:.6g}"),
        window_width=float(f"{(high - low) or 1.0:.6g}"),
        voi_lut_function="LINEAR_EXACT",
    )
    mapping = RealWorldValueMapping(
        lut_label=saliency.label,
        lut_explanation=saliency.quantity.meaning,
        unit=saliency.unit,
        value_range=(low, high),
        slope=1.0,
        intercept=0.0,
        quantity_definition=saliency.quantity,
    )
    return ParametricMap(
        source_images=[stand_in(sources, provenance, place)],
        pixel_array=np.zeros((1, 1, 1), np.float32),
        series_instance_uid=provenance.uid("saliency", "series"),
        series_number=provenance.series_number("saliency"),
        sop_instance_uid=provenance.uid("saliency", "instance"),
        instance_number=1,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[window],
        content_label="PARAMETRIC_MAP",
        content_description=f"{saliency.label} by {provenance.algorithm.name}"[:64],
        content_creator_name="dicomai^",
        **equipment(provenance),
    )
