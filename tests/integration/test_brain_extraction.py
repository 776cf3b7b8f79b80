"""The packaged model on real MR, with its real weights: the numbers of the reference implementation."""

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from dicomai import bundle, inference, stacks, volume, weights
from dicomai.findings import Outcome
from dicomai.study import Instance, group
from dicomai.volume import Limits, Volume

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "dicomai" / "demo" / "study"
SEVEN_TESLA = ROOT.parent / "shared" / "data" / "mr_brain_t1_7t.tar.xz"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def brain() -> bundle.Bundle:
    return bundle.find("brain_extraction", bundle.packaged())


@pytest.fixture(scope="module")
def engine(brain: bundle.Bundle, tmp_path_factory: pytest.TempPathFactory) -> inference.Engine:
    storage = tmp_path_factory.mktemp("storage")
    weights.pull(brain, storage)
    return inference.load(brain, weights.located(brain, storage), "cpu")


def opener(path: Path) -> Callable[[], BinaryIO]:
    return lambda: path.open("rb")


def read(folder: Path, limits: Limits) -> tuple[Instance, Volume]:
    files = sorted(path for path in folder.rglob("*.dcm"))
    instances = [Instance.read(opener(path), path.name) for path in files]
    ((series,),) = (study.series for study in group(instances))
    (stack,) = stacks.split(series)
    return instances[0], volume.load(stack, limits, threads=2)


def limits(brain: bundle.Bundle) -> Limits:
    spec = brain.input()
    return Limits(spec.min_slices, spec.spacing_tolerance, spec.tilted, spec.lossy)


@pytest.mark.skipif(not any(DEMO.rglob("*.dcm")), reason="the demo's study is not there")
class TestProtonDensity:
    """20 oblique slices of a 1.5 T scanner."""

    def test_the_volume_is_that_of_the_reference(self, brain: bundle.Bundle, engine: inference.Engine) -> None:
        instance, images = read(DEMO, limits(brain))
        findings = engine.infer({"image": images})
        assert findings.outcome is Outcome.FINDINGS
        ((measurement,), (layer,)) = findings.measurements, findings.layers
        assert measurement.value == pytest.approx(1292.3, rel=0.005)
        assert layer.labels.shape == images.array.shape
        assert float(layer.labels.sum()) * images.voxel_volume / 1000 == pytest.approx(measurement.value)
        # The mask is one body in the middle of the head, and holes are filled.
        assert layer.labels[10, 128, 128] == 1
        assert not layer.labels[:, :10].any()
        # The network was made for T1.
        sentence = brain.outside_validated(instance.header)
        assert sentence is not None
        assert "RepetitionTime 2300, " in sentence
        assert "EchoTime 22" in sentence

    def test_the_same_mask_on_every_run_and_however_the_image_is_stored(
        self, brain: bundle.Bundle, engine: inference.Engine
    ) -> None:
        _, images = read(DEMO, limits(brain))
        labels = engine.infer({"image": images}).layers[0].labels
        assert np.array_equal(engine.infer({"image": images}).layers[0].labels, labels)
        # The same head with rows bottom up: other storage, same place.
        flip = np.eye(4)
        flip[1, 1], flip[1, 3] = -1, images.array.shape[1] - 1
        turned = Volume(images.array[:, ::-1], images.affine @ flip, images.frames, images.lossy)
        assert np.array_equal(engine.infer({"image": turned}).layers[0].labels[:, ::-1], labels)

    def test_an_image_without_a_head_is_no_result(self, brain: bundle.Bundle, engine: inference.Engine) -> None:
        _, images = read(DEMO, limits(brain))
        blank = Volume(np.zeros_like(images.array), images.affine, images.frames, images.lossy)
        with pytest.raises(inference.UnusableAnswerError, match="no head"):
            engine.infer({"image": blank})


@pytest.mark.skipif(not SEVEN_TESLA.is_file(), reason="../shared/data/mr_brain_t1_7t.tar.xz is not there")
def test_seven_tesla_t1(brain: bundle.Bundle, engine: inference.Engine, tmp_path: Path) -> None:
    with tarfile.open(SEVEN_TESLA) as archive:
        archive.extractall(tmp_path, filter="data")
    instance, images = read(tmp_path, limits(brain))
    assert brain.outside_validated(instance.header) is None
    (measurement,) = engine.infer({"image": images}).measurements
    assert measurement.value == pytest.approx(1791.7, rel=0.005)


def test_a_bundle_that_is_whole_has_no_problems(brain: bundle.Bundle, tmp_path: Path) -> None:
    weights.pull(brain, tmp_path)
    assert inference.check(brain.path, tmp_path) == ()
