"""Key frames at other people's: kept by Orthanc, which draws each frame, and scrolled through in OHIF."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset

from dicomai.outputs import build, encode
from tests import results, synthetic
from tests.acceptance import ohif
from tests.acceptance.orthanc import Orthanc, orthanc

pytestmark = pytest.mark.timeout(240)

SHAPE = (9, 64, 80)


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("pacs")) as running:
        yield running


@pytest.fixture(scope="module")
def frames(pacs: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The key frames of a CT, in the archive beside it."""
    images = synthetic.series(shape=SHAPE, spacing=(3.0, 1.0, 1.0), WindowCenter="1000", WindowWidth="4000")
    folder = tmp_path_factory.mktemp("study")
    found = results.findings(results.ball(SHAPE))
    made = build("keyframes", found, results.sources(synthetic.instances(images)), results.provenance())
    assert made is not None
    path = folder / "keyframes.dcm"
    path.write_bytes(encode(made))
    pacs.upload(*synthetic.write(images, folder / "ct"), Path(path))
    return made


def test_orthanc_draws_every_frame(pacs: Orthanc, frames: Dataset) -> None:
    (instance,) = pacs.instances(SOPInstanceUID=frames.SOPInstanceUID)
    pictures = frames.pixel_array
    assert len(pictures) > 3
    for n, picture in enumerate(pictures):
        drawn = Image.open(io.BytesIO(pacs.request(f"/instances/{instance}/frames/{n}/preview")))
        np.testing.assert_array_equal(np.asarray(drawn), picture)


@pytest.mark.parametrize("version", ohif.VERSIONS)
def test_ohif_shows_frame_after_frame(version: str, pacs: Orthanc, frames: Dataset) -> None:
    with ohif.browser() as chromium, ohif.serving(version, pacs.dicomweb) as url:
        viewer = ohif.Viewer(chromium, url)
        viewer.open(str(frames.StudyInstanceUID), "CT")
        viewer.show("OT")
        pictures = frames.pixel_array
        assert nearest(viewer.picture(), pictures) == 0
        viewer.page.locator("canvas.cornerstone-canvas").first.hover()
        for n in (1, 2):
            viewer.page.mouse.wheel(0, 100)
            viewer.page.wait_for_timeout(500)
            assert nearest(viewer.picture(), pictures) == n


def nearest(drawn: NDArray[np.uint8], pictures: NDArray[np.uint8]) -> int:
    """Say which of some pictures is drawn in the middle of a viewport, as large as there is room."""
    rows, columns = pictures.shape[1:3]
    scale = min(drawn.shape[1] / columns, drawn.shape[0] / rows)
    size = round(columns * scale), round(rows * scale)
    left, top = (drawn.shape[1] - size[0]) // 2, (drawn.shape[0] - size[1]) // 2
    shown = drawn[top : top + size[1], left : left + size[0]].astype(float)
    away = [np.abs(shown - np.asarray(Image.fromarray(one).resize(size))).mean() for one in pictures]
    assert min(away) < 6
    return int(np.argmin(away))
