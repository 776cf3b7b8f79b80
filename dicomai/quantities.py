"""Quantities: what can be measured of a segment, under which codes of PS3.16 and in which units. Imports no numpy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pydicom.sr.coding import Code


class Kind(StrEnum):
    """How a quantity is measured."""

    VOLUME = "volume"  # voxels times the volume of a voxel
    LONG_AXIS = "long axis"  # the largest diameter in an image, as in RECIST
    SHORT_AXIS = "short axis"  # the largest one across it, in the same image
    DIAMETER = "diameter"  # the largest in space
    INTENSITY = "intensity"  # of the images, inside the segment
    NUMBER = "number"  # of its connected parts


@dataclass(frozen=True, slots=True)
class Quantity:
    """One that can be measured.

    Attributes:
        kind: how.
        name: the code by which bundles and reports name it.
        units: by UCUM code, how many of the unit are one cubic millimetre, millimetre, or one.
        modality: of the images that an intensity is measured in.
    """

    kind: Kind
    name: Code
    units: Mapping[str, float] = field(repr=False)
    modality: str = ""


VOLUME = Code("118565006", "SCT", "Volume")
LONG_AXIS = Code("103339001", "SCT", "Long axis")
SHORT_AXIS = Code("103340004", "SCT", "Short axis")
DIAMETER = Code("L0JK", "IBSI", "Maximum 3D Diameter of a Mesh")
ATTENUATION = Code("112031", "DCM", "Attenuation Coefficient")
SUV = Code("126401", "DCM", "SUVbw")
MR_SIGNAL = Code("110852", "DCM", "MR signal intensity")
LESIONS = Code("246206008", "SCT", "Number of lesions")

_LENGTH = {"mm": 1.0, "cm": 0.1}  # CID 7460, as far as it is of use

QUANTITIES: Mapping[Code, Quantity] = {
    one.name: one
    for one in (
        Quantity(Kind.VOLUME, VOLUME, {"cm3": 1e-3, "mm3": 1.0}),  # CID 7462
        Quantity(Kind.LONG_AXIS, LONG_AXIS, _LENGTH),  # CID 7470
        Quantity(Kind.SHORT_AXIS, SHORT_AXIS, _LENGTH),
        Quantity(Kind.DIAMETER, DIAMETER, _LENGTH),
        Quantity(Kind.INTENSITY, ATTENUATION, {"[hnsf'U]": 1.0}, "CT"),  # CID 7469
        Quantity(Kind.INTENSITY, SUV, {"g/ml{SUVbw}": 1.0}, "PT"),
        Quantity(Kind.INTENSITY, MR_SIGNAL, {"1": 1.0}, "MR"),
        Quantity(Kind.NUMBER, LESIONS, {"1": 1.0}),
    )
}

MEAN = Code("373098007", "SCT", "Mean")
STANDARD_DEVIATION = Code("386136009", "SCT", "Standard Deviation")
MINIMUM = Code("255605001", "SCT", "Minimum")
MAXIMUM = Code("56851009", "SCT", "Maximum")

DERIVATIONS = (MEAN, STANDARD_DEVIATION, MINIMUM, MAXIMUM)
"""How one number is made of the intensities of all voxels (CID 7464)."""
