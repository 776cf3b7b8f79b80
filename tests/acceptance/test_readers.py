"""All objects of one result before other people's programs: validators of dicom3tools, readers of DCMTK, plastimatch.

Each kind of object has tests of its own beside `dicomai.outputs`; here it is the whole set, as a route can ask for it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dicomai.config import RouteSettings
from dicomai.outputs import Sources, build, encode
from tests import results, synthetic
from tests.acceptance import tools

SHAPE = (8, 48, 64)
SPACING = (3.0, 0.9, 0.6)

# What dcentvfy calls an error and is none.
FALSE = (
    # A structure set refers to its study as to an instance, by the study's UID (PS3.3 C.8.8.5): there is no such file.
    r"Error - Missing SOPInstanceUID that was referenced - {study} for file <.*rtstruct\.dcm>",
)


@dataclass(frozen=True)
class Whole:
    """One result in files, and what it was made of."""

    images: Path
    files: dict[str, Path]
    labels: NDArray[np.uint8]
    sources: Sources


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Every output that there is of one CT; two have nothing to encode: there is no saliency map, nothing failed."""
    folder = tmp_path_factory.mktemp("whole")
    z, y, x = np.indices(SHAPE)
    labels = np.zeros(SHAPE, np.uint8)
    labels[((z - 4) / 3) ** 2 + ((y - 20) / 12) ** 2 + ((x - 36) / 17) ** 2 < 1] = 1
    labels[1:6, 34:44, 8:24] = 2
    stored = np.where(labels, 1200, 824).astype(np.uint16)
    images = synthetic.series(array=stored, spacing=SPACING, WindowCenter="0", WindowWidth="600")
    synthetic.write(images, folder / "images")
    sources = results.sources(synthetic.instances(images))
    found = results.findings(labels, segments=[results.segment(1, "Liver"), results.segment(2, "Spleen")])
    outputs = tuple(sorted(RouteSettings.OUTPUTS))
    provenance = results.provenance(outputs=outputs, series_numbers=frozenset({3}))
    files = {}
    for output in outputs:
        ds = build(output, found, sources, provenance)
        if ds is not None:
            files[output] = folder / f"{output}.dcm"
            files[output].write_bytes(encode(ds))
    assert {"seg", "sr", "keyimage", "rtstruct", "gsps", "kos", "pdf", "mesh"} <= files.keys()
    return Whole(folder / "images", files, labels, sources)


def images_of(whole: Whole) -> Sequence[Path]:
    return sorted(whole.images.glob("*.dcm"))


def test_dciodvfy_finds_no_error(whole: Whole) -> None:
    assert {output: tools.errors_of(path) for output, path in whole.files.items()} == {
        output: [] for output in whole.files
    }


def test_the_objects_fit_each_other_and_the_images(whole: Whole) -> None:
    said = tools.errors_between(*images_of(whole), *whole.files.values())
    study = re.escape(str(whole.sources.header.StudyInstanceUID))
    assert [line for line in said if not any(re.fullmatch(one.format(study=study), line) for one in FALSE)] == []


def test_dcentvfy_would_find_one(whole: Whole, tmp_path: Path) -> None:
    (tmp_path / "other.dcm").write_bytes(whole.files["sr"].read_bytes().replace(b"SYN-1", b"SYN-2"))
    assert tools.errors_between(*images_of(whole), tmp_path / "other.dcm")


def test_dcmtk_reads_the_numbers_with_units_and_the_warning(whole: Whole) -> None:
    dumped = tools.run_dcmtk("dsrdump", whole.files["sr"])
    assert dumped.returncode == 0, dumped.stdout
    page = tools.run_dcmtk("dsr2html", whole.files["sr"]).stdout
    assert len(re.findall(r"<b>Volume:</b><br>\s*<span class=\"under\">1292\.12 cm3</span>", page)) == 2
    assert "not verified by a person" in page
    assert "UNVERIFIED" in page


def test_dcmtk_finds_no_fault_in_the_presentation_state(whole: Whole, tmp_path: Path) -> None:
    checked = tools.run_dcmtk("dcmpschk", whole.files["gsps"]).stdout
    assert "Test passed" in checked
    assert "E:" not in checked
    shown = tools.run_dcmtk("dcmp2pgm", "-p", whole.files["gsps"], images_of(whole)[4], tmp_path / "shown.pgm")
    assert shown.returncode == 0, shown.stdout
    assert "E:" not in shown.stdout


def test_plastimatch_fills_the_structure_sets_contours_to_the_mask(whole: Whole, tmp_path: Path) -> None:
    masks = tools.structures_of(whole.files["rtstruct"], whole.images, tmp_path, "Liver", "Spleen")
    np.testing.assert_array_equal(masks["Liver"], whole.labels == 1)
    np.testing.assert_array_equal(masks["Spleen"], whole.labels == 2)
