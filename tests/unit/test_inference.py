"""A bundle of MONAI's own parts, run on volumes: where the mask lies, what it is called, and what is refused."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets.unet import UNet

from dicomai import bundle, inference
from dicomai.errors import BundleError, ConfigurationError, DicomaiError, InferenceError, UnreadableError
from dicomai.findings import Outcome
from tests.bundles import AXES, INVERT, ORIENT, THRESHOLD, blob, compose, load, segment, toml, volume

Make = Callable[..., inference.Engine]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a bundle and make an engine of it; `state` becomes its model.pt."""
    return partial(load, tmp_path / "tiny")


class TestTheMask:
    @pytest.mark.parametrize("axes", AXES)
    def test_lies_on_the_source_voxel_for_voxel(self, make: Make, axes: str) -> None:
        engine = make(preprocessing=compose(ORIENT), postprocessing=compose(THRESHOLD, INVERT))
        findings = engine.infer({"image": volume(blob(), axes)})
        (layer,) = findings.layers
        assert layer.labels.dtype == np.uint8
        assert np.array_equal(layer.labels, blob() > 0)
        assert findings.outcome is Outcome.FINDINGS

    def test_the_network_sees_the_image_in_ras(self, make: Make) -> None:
        # Of an axial LPS image, RAS is x and y turned round: the corner with the highest x and y comes first.
        array = np.zeros((2, 3, 4), np.int16)
        array[0, 2, 3] = 1000
        corner = {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x * (x.flatten()[0] > 999)"}
        engine = make(preprocessing=compose(ORIENT), postprocessing=compose(corner, THRESHOLD, INVERT))
        assert engine.infer({"image": volume(array)}).layers[0].labels[0, 2, 3] == 1

    def test_its_volume_is_voxels_times_their_size(self, make: Make) -> None:
        (measurement,) = make().infer({"image": volume(blob(), "oblique")}).measurements
        assert measurement.value == pytest.approx(4 * 6 * 10 * 3.0 * 2.0 * 1.5 / 1000)
        assert measurement.unit.value == "cm3"

    def test_it_is_measured_as_the_bundle_asks(self, make: Make) -> None:
        asked = (
            '[[measurement]]\nname = ["103339001", "SCT", "Long axis"]\nunit = ["mm", "UCUM", "mm"]\n'
            '[[measurement]]\nname = ["110852", "DCM", "MR signal intensity"]\nunit = ["1", "UCUM", "no units"]\n'
            'derivation = ["56851009", "SCT", "Maximum"]\nsegments = ["Body 1.1"]\n'
        )
        engine = make(toml(segment(1) + asked), postprocessing=compose(THRESHOLD))
        source = volume(blob())
        found = {one.name.meaning: one.value for one in engine.infer({"image": source}).measurements}
        _, down, across = source.spacing
        assert found["MR signal intensity"] == 1000
        # 6 x 10 voxels: to the middle of the outer faces, so a voxel more along one side and none along the other
        assert found["Long axis"] == pytest.approx(max(np.hypot(6 * down, 9 * across), np.hypot(5 * down, 10 * across)))

    def test_resampled_and_back(self, make: Make) -> None:
        spacing = {"_target_": "Spacingd", "keys": "image", "pixdim": [1.0, 1.0, 1.0], "mode": "nearest"}
        engine = make(preprocessing=compose(ORIENT, spacing), postprocessing=compose(THRESHOLD, INVERT))
        labels = engine.infer({"image": volume(blob(), "sagittal")}).layers[0].labels
        overlap = 2 * np.count_nonzero(labels * (blob() > 0)) / (np.count_nonzero(labels) + np.count_nonzero(blob()))
        assert labels.shape == blob().shape
        assert overlap > 0.9

    def test_layers_may_overlap(self, make: Make) -> None:
        twice = {"_target_": "RepeatChanneld", "keys": "pred", "repeats": 2}
        engine = make(toml(segment(1) + segment(1, layer=2)), postprocessing=compose(THRESHOLD, twice))
        findings = engine.infer({"image": volume(blob())})
        assert [layer.segments[0].label for layer in findings.layers] == ["Body 1.1", "Body 2.1"]
        assert np.array_equal(findings.layers[0].labels, findings.layers[1].labels)
        assert len(findings.measurements) == 2

    def test_labels_beyond_a_byte(self, make: Make) -> None:
        scale = {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x * 300"}
        engine = make(toml(segment(7) + segment(300)), postprocessing=compose(THRESHOLD, scale))
        findings = engine.infer({"image": volume(blob())})
        assert findings.layers[0].labels.dtype == np.uint16
        assert findings.layers[0].labels.max() == 300
        assert [m.segment.number for m in findings.measurements] == [300]  # the other has no voxel


class TestNothingFound:
    def test_is_a_finding_where_the_bundle_says_so(self, make: Make) -> None:
        findings = make().infer({"image": volume(np.zeros_like(blob()))})
        assert findings.outcome is Outcome.NEGATIVE
        assert findings.measurements == ()

    def test_is_a_failure_where_the_bundle_says_so_and_no_retry_helps(self, make: Make) -> None:
        engine = make(toml(empty="failure"))
        with pytest.raises(
            InferenceError, match=r"tiny found nothing where it must find something \(Body 1\.1\)"
        ) as caught:
            engine.infer({"image": volume(np.zeros_like(blob()))})
        assert not caught.value.retryable


class TestAnAnswerThatCannotBeAResult:
    def test_another_grid(self, make: Make) -> None:
        half = {"_target_": "Spacingd", "keys": "image", "pixdim": [3.0, 4.0, 6.0]}
        with pytest.raises(InferenceError, match=r"lies on another grid, 14 x 10 x 6 voxels and not 28 x 20 x 12"):
            make(preprocessing=compose(half)).infer({"image": volume(blob())})

    def test_another_place(self, make: Make) -> None:
        with pytest.raises(InferenceError, match=r"lies on another grid, .* mm off the images"):
            make(preprocessing=compose(ORIENT)).infer({"image": volume(blob())})

    def test_no_numbers(self, make: Make) -> None:
        engine = make(network_def={"_target_": "torch.nn.Threshold", "threshold": 500, "value": "$float('nan')"})
        with pytest.raises(InferenceError, match="values that are no numbers") as caught:
            engine.infer({"image": volume(blob())})
        assert not caught.value.retryable

    def test_a_label_that_nobody_described(self, make: Make) -> None:
        three = {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x * 3"}
        with pytest.raises(InferenceError, match="gave the label 3, which no"):
            make(postprocessing=compose(THRESHOLD, three)).infer({"image": volume(blob())})

    def test_fractions(self, make: Make) -> None:
        third = {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x / 3"}
        with pytest.raises(InferenceError, match="holds fractions"):
            make(postprocessing=compose(THRESHOLD, third)).infer({"image": volume(blob())})

    def test_more_channels_than_layers(self, make: Make) -> None:
        twice = {"_target_": "RepeatChanneld", "keys": "pred", "repeats": 2}
        with pytest.raises(InferenceError, match=r"gave 2 label maps and dicomai\.toml describes 1"):
            make(postprocessing=compose(THRESHOLD, twice)).infer({"image": volume(blob())})


UNET = {
    "_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2],
}  # fmt: skip
WINDOWS = {
    "_target_": "SlidingWindowInferer",
    "roi_size": [16, 16, 16],
    "sw_batch_size": 2,
    "overlap": 0.25,
}
ARGMAX = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}


class TestSlidingWindow:
    @pytest.fixture
    def engine(self, make: Make) -> inference.Engine:
        torch.manual_seed(0)
        state = UNet(spatial_dims=3, in_channels=1, out_channels=2, channels=[4, 8], strides=[2]).state_dict()
        # What zoo bundles have and a node must not do: read and write files.
        read = {"_target_": "LoadImaged", "keys": "image"}
        first = {"_target_": "EnsureChannelFirstd", "keys": "image"}
        scale = {"_target_": "ScaleIntensityd", "keys": "image"}
        save = {"_target_": "SaveImaged", "keys": "pred", "output_dir": "$@bundle_root + '/eval'"}
        return make(
            state=state,
            network_def=UNET,
            inferer=WINDOWS,
            preprocessing=compose(read, first, ORIENT, scale),
            postprocessing=compose(ARGMAX, INVERT, save),
            evaluator={"_target_": "SupervisedEvaluator", "device": "@device"},
        )

    def test_a_zoo_bundle_runs_as_it_is_and_the_same_every_time(self, engine: inference.Engine) -> None:
        noise = np.random.default_rng(1).integers(0, 1000, (20, 24, 40)).astype(np.uint16)
        one, two = (engine.infer({"image": volume(noise)}).layers[0].labels for _ in range(2))
        assert np.array_equal(one, two)
        assert 0 < one.mean() < 1
        assert not (engine.bundle.path / "eval").exists()

    def test_the_weights_are_those_of_model_pt(self, engine: inference.Engine, make: Make) -> None:
        noise = np.random.default_rng(1).integers(0, 1000, (20, 24, 40)).astype(np.uint16)
        before = engine.infer({"image": volume(noise)}).layers[0].labels
        silent = {key: torch.zeros_like(value) for key, value in engine._network.state_dict().items()}
        config = json.loads((engine.bundle.path / "configs/inference.json").read_text())
        after = make(state=silent, **config).infer({"image": volume(noise)}).layers[0].labels
        assert before.any()
        assert not after.any()

    def test_progress_ascends_through_the_windows(self, engine: inference.Engine) -> None:
        seen: list[float] = []
        engine.infer({"image": volume(blob((20, 24, 40)))}, seen.append)
        assert seen == sorted(seen)
        assert (seen[0], seen[-1]) == (0.0, 1.0)
        within = [fraction for fraction in seen if 0.1 < fraction < 0.9]
        assert len(within) >= 4
        assert max(fraction for fraction in seen if fraction < 1.0) == pytest.approx(0.9)

    def test_progress_may_stop_the_run(self, engine: inference.Engine) -> None:
        class StoppedError(DicomaiError): ...

        def stop(fraction: float) -> None:
            if fraction > 0.3:
                raise StoppedError("enough")

        with pytest.raises(StoppedError):
            engine.infer({"image": volume(blob((20, 24, 40)))}, stop)

    def test_weights_of_another_network(self, make: Make) -> None:
        with pytest.raises(BundleError, match=r"model\.pt does not fit network_def of tiny") as caught:
            make(state={"other.weight": torch.zeros(3)}, network_def=UNET)
        assert "\n" not in str(caught.value)

    def test_a_network_whose_weights_nobody_named(self, make: Make) -> None:
        with pytest.raises(BundleError, match="makes a network without weights"):
            make(network_def=UNET)

    def test_weights_that_would_run_code(self, make: Make) -> None:
        with pytest.raises(BundleError, match=r"model\.pt of tiny holds more than tensors"):
            make(state={"weight": Path()}, network_def=UNET)


class TestInputs:
    def test_several_roles_become_one_image_on_the_grid_of_the_first(self, make: Make) -> None:
        join = {"_target_": "ConcatItemsd", "keys": ["now", "prior"], "name": "image"}
        change = {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x[:1] - x[1:]"}
        engine = make(
            toml(roles=("now", "prior")),
            preprocessing=compose(join),
            postprocessing=compose(change, THRESHOLD),
        )
        prior = blob()
        prior[3:5] = 0
        labels = engine.infer({"prior": volume(prior), "now": volume(blob())}).layers[0].labels
        assert np.array_equal(labels > 0, blob() > prior)

    def test_a_role_that_is_missing(self, make: Make) -> None:
        with pytest.raises(BundleError, match="takes the inputs image, it was given prior"):
            make().infer({"prior": volume(blob())})

    def test_voxels_that_are_no_numbers(self, make: Make) -> None:
        array = blob().astype(np.float32)
        array[0, 0, :3] = np.nan
        with pytest.raises(UnreadableError, match="3 voxels of the images are no numbers"):
            make().infer({"image": volume(array)})


class TestWhatFails:
    def test_a_transform_that_breaks_ends_in_one_sentence_that_may_be_retried(self, make: Make) -> None:
        divide = {"_target_": "Lambdad", "keys": "image", "func": "$lambda x: 1 // 0"}
        with pytest.raises(InferenceError, match=r"tiny did not run: ZeroDivisionError: .*zero\.") as caught:
            make(preprocessing=compose(divide)).infer({"image": volume(blob())})
        assert caught.value.retryable
        assert "\n" not in str(caught.value)

    def test_an_inference_json_that_cannot_be_built(self, make: Make) -> None:
        with pytest.raises(BundleError, match=r"inference\.json cannot be built: .*NoSuchNet"):
            make(network_def={"_target_": "NoSuchNet"})

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_a_gpu_that_is_not_there(self, make: Make) -> None:
        engine = make()
        with pytest.raises(ConfigurationError, match=r"worker\.device is 'cuda' and PyTorch sees no GPU"):
            inference.load(engine.bundle, engine.bundle.path / "models", "cuda")
        assert inference.load(engine.bundle, engine.bundle.path / "models", "auto").device.type == "cpu"


class TestCheck:
    def test_says_what_keeps_a_bundle_from_running(self, make: Make, tmp_path: Path) -> None:
        folder = make().bundle.path
        assert inference.check(folder, tmp_path) == ()
        (folder / "configs/inference.json").write_text('{"network_def": 3}')
        assert inference.check(folder, tmp_path) == ("network_def of tiny makes int, which is no network.",)
        (folder / "dicomai.toml").unlink()
        (problem,) = inference.check(folder, tmp_path)
        assert "dicomai.toml cannot be read" in problem

    def test_weights_that_are_not_here(self, tmp_path: Path) -> None:
        problems = inference.check(bundle.packaged() / "brain_extraction", tmp_path)
        assert problems == (
            "The weights of brain_extraction are not here: run `dicomai models pull brain_extraction`.",
        )
