"""Bundles of MONAI's own parts, written for tests, and volumes to run them on."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dicomai import bundle, inference
from dicomai.volume import Volume

SPACING = (3.0, 2.0, 1.5)  # z, y, x in mm
CODE = '["91723000", "SCT", "Anatomical Structure"]'
# No posture of the image may matter: LPS, flipped along x, rows and slices exchanged (sagittal), and oblique.
AXES = {
    "axial": np.diag([1.0, 1.0, 1.0]),
    "feet first": np.diag([1.0, 1.0, -1.0]),
    "sagittal": np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]]),
    "oblique": np.array([[0.8, 0.6, 0], [-0.6, 0.8, 0], [0, 0, 1.0]]),
}


def volume(array: NDArray[Any], axes: str = "axial") -> Volume:
    """Make a volume; `AXES` has the directions of x, y, z as columns."""
    affine = np.eye(4)
    affine[:3, :3] = AXES[axes][:, ::-1] * SPACING
    affine[:3, 3] = (-20.0, 30.0, 500.0)
    return Volume(array=array, affine=affine, frames=(), lossy=False)


def blob(shape: tuple[int, int, int] = (12, 20, 28)) -> NDArray[np.int16]:
    """Make an image with one bright body that is off centre in every axis."""
    array = np.zeros(shape, np.int16)
    array[3:7, 4:10, 15:25] = 1000
    return array


def segment(number: int, layer: int = 1) -> str:
    """Describe a segment, in TOML."""
    return (
        f'[[segment]]\nlayer = {layer}\nnumber = {number}\nlabel = "Body {layer}.{number}"\ncategory = {CODE}\n'
        f"type = {CODE}\nfinding_site = {CODE}\ncolor = [255, 0, 0]\n"
    )


def toml(
    segments: str = segment(1),
    empty: str = "negative",
    roles: tuple[str, ...] = ("image",),
    model: str = "",
    heads: str = "",
) -> str:
    """Describe a bundle, in TOML; `heads` is what it gives beside segments."""
    inputs = "".join(f'[[input]]\nrole = "{role}"\nmodality = ["MR"]\n' for role in roles)
    weights = f'[[weights.file]]\nname = "model.pt"\nsha256 = "{model}"\n' if model else ""
    measured = '[[measurement]]\nname = ["118565006", "SCT", "Volume"]\nunit = ["cm3", "UCUM", "cubic centimeter"]\n'
    said = f'empty = "{empty}"\n' if empty else ""
    return (
        f'{said}[algorithm]\nname = "test"\nfamily = ["123110", "DCM", "Artificial Intelligence"]\n'
        f'manufacturer = "none"\ndescription = "for tests"\nlicense = "MIT"\n{inputs}{segments}'
        f"{measured if segments else ''}{weights}{heads}"
    )


IDENTITY = {"_target_": "torch.nn.Identity"}
THRESHOLD = {"_target_": "AsDiscreted", "keys": "pred", "threshold": 500}
INVERT = {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"}
ORIENT = {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"}


def compose(*transforms: dict[str, Any]) -> dict[str, Any]:
    """Chain transforms."""
    return {"_target_": "Compose", "transforms": list(transforms)}


def load(folder: Path, text: str = "", state: dict[str, Any] | None = None, **config: Any) -> inference.Engine:
    """Write a bundle into a folder and make an engine of it; `state` becomes its model.pt."""
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    (folder / "models").mkdir(exist_ok=True)
    digest = ""
    if state is not None:
        torch.save(state, folder / "models/model.pt")
        digest = hashlib.sha256((folder / "models/model.pt").read_bytes()).hexdigest()
    (folder / "dicomai.toml").write_text(text or toml(model=digest))
    (folder / "configs/metadata.json").write_text('{"version": "0.1"}')
    config = {"network_def": IDENTITY, "postprocessing": compose(THRESHOLD), **config}
    (folder / "configs/inference.json").write_text(json.dumps(config))
    return inference.load(bundle.load(folder), folder / "models", "cpu")
