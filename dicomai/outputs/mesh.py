"""Surfaces of the segments: an Encapsulated STL (PS3.3 A.85.1), in patient coordinates (LPS, mm), for 3D viewers.

A result is one object, and STL knows neither names nor colours: each segment is a closed shell of its own, one after
the other in the order in which the document's title names them. Programs that show STL take shells apart.

The surface runs half-way between the voxels inside and those outside (marching cubes; nothing is smoothed or left out).
Flat faces lie where the voxels' do; edges and corners are cut, so that a shell of a few voxels holds less than they do.
Numbers are in the report.
"""

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import EncapsulatedSTLStorage
from scipy.ndimage import find_objects
from skimage.measure import marching_cubes

from dicomai.findings import Findings, found_segments
from dicomai.outputs.common import (
    Geometry,
    check_shapes,
    code_item,
    finish,
    frame_of_reference,
    geometry,
    identification,
)
from dicomai.outputs.encapsulated import Kind, encapsulate, instances
from dicomai.outputs.provenance import Provenance, Sources

KIND = Kind("mesh", EncapsulatedSTLStorage, "M3D", "model/stl")

_TITLES = {"CT": codes.cid7061.CT3DCAMModel, "MR": codes.cid7061.MR3DCAMModel, "US": codes.cid7061.US3DCAMModel}
_MM = Code("mm", "UCUM", "mm")  # CID 7063
_HEAD = b"binary STL of segments, patient coordinates (LPS), mm"  # never 'solid', which would say that it is text
_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def build(findings: Findings, sources: Sources, provenance: Provenance) -> Dataset | None:
    """Make the surface of every segment that has voxels; None where none has.

    Args:
        findings: label maps of shape (z, y, x), z as in `sources.frames`.
        sources: the images that the label maps lie on.
        provenance: who made it, and under which identifiers.

    Raises:
        InferenceError: a label map has another shape than the images, or a value that is not described.
        GeometryError: an image does not say where it lies.
    """
    check_shapes(findings, sources)
    found = found_segments(findings)
    if not found:
        return None
    place = geometry(sources)
    boxes = [find_objects(layer.labels) for layer in findings.layers]
    shells = []
    for one in found:
        box = boxes[one.layer][one.segment.number - 1]
        mask = findings.layers[one.layer].labels[box] == one.segment.number
        shells.append(surface(mask, place, tuple(side.start for side in box)))
    title = f"AI result, unverified: {', '.join(one.segment.label for one in found)}"[:1024]
    concept = _TITLES.get(str(sources.header.get("Modality")))
    made = encapsulate(_stl(np.concatenate(shells)), KIND, title, concept, sources, provenance)
    made.MeasurementUnitsCodeSequence = [code_item(_MM)]
    made.ModelModification = made.ModelMirroring = "NO"
    made.DerivationAlgorithmSequence = identification(provenance.algorithm)
    if len(found) == 1:
        made.RecommendedDisplayCIELabValue = list(hd.color.CIELabColor.from_rgb(*found[0].segment.color).value)
    made.FrameOfReferenceUID = frame_of_reference(sources, provenance)
    made.PositionReferenceIndicator = None
    series = Dataset()
    series.SeriesInstanceUID = str(sources.header.SeriesInstanceUID)
    series.ReferencedInstanceSequence = instances(sources)
    made.ReferencedSeriesSequence = [series]
    return finish(made, sources, provenance, KIND.output)


def surface(mask: NDArray[np.bool_], place: Geometry, first: tuple[int, ...] = (0, 0, 0)) -> NDArray[np.float32]:
    """Give the closed surface of a mask as triangles, anticlockwise as seen from outside.

    Args:
        mask: shape (z, y, x), at least one voxel; it may be a part of the grid.
        place: where the slices of the grid lie.
        first: index (z, y, x) of the mask's first voxel in the grid.

    Returns:
        Corners, shape (triangle, 3, 3), LPS in mm.
    """
    padded = np.pad(mask, 1).astype(np.float32)  # so that it closes at the edge of the images
    corners, faces, _, _ = marching_cubes(padded, 0.5)  # type: ignore[no-untyped-call]  # skimage
    points = _points(corners + np.asarray(first) - 1, place).astype(np.float32)
    return np.asarray(points[faces], dtype=np.float32)


def volume(triangles: NDArray[np.float32]) -> float:
    """Give the volume that a closed surface holds, in mm3: negative where its triangles look inwards."""
    corners = triangles.astype(np.float64)
    corners -= corners.reshape(-1, 3).mean(axis=0)
    return float(np.einsum("ij,ij->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6)


def _points(index: NDArray[np.float64], place: Geometry) -> NDArray[np.float64]:
    """Map indices (z, y, x) to LPS in mm; along z between the slices where they really lie, and half a step beyond."""
    right, down = np.asarray(place.orientation[:3]), np.asarray(place.orientation[3:])
    positions = np.asarray(place.positions)
    if len(positions) > 1:
        first, last = (after - before for before, after in (positions[:2], positions[-2:]))
    else:
        first = last = np.cross(right, down) * place.slice_thickness
    known = np.vstack([positions[0] - first, positions, positions[-1] + last])
    steps = np.arange(-1, len(positions) + 1)
    origin = np.stack([np.interp(index[:, 0], steps, axis) for axis in known.T], axis=1)
    return np.asarray(
        origin + index[:, 1:2] * down * place.pixel_spacing[0] + index[:, 2:] * right * place.pixel_spacing[1]
    )


def _stl(triangles: NDArray[np.float32]) -> bytes:
    """Encode triangles as binary STL: 80 bytes, their number, and for each its normal and its corners."""
    made = np.zeros(len(triangles), dtype=_TRIANGLE)
    normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    made["normal"] = np.divide(normals, lengths, out=np.zeros_like(normals), where=lengths > 0)
    made["corners"] = triangles
    return b"".join((_HEAD.ljust(80), len(made).to_bytes(4, "little"), made.tobytes()))
