"""What a bundle gives beside masks: answers, scores, boxes and maps, through networks and transforms of MONAI."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dicomai import inference
from dicomai.errors import BundleError, DicomaiError, InferenceError
from dicomai.findings import Findings, Outcome, Shape
from tests.bundles import CODE, INVERT, ORIENT, SPACING, blob, compose, load, segment, toml, volume

Make = Callable[..., inference.Engine]

MEAN = {"_target_": "torch.nn.AdaptiveAvgPool3d", "output_size": 1}
PRESENT, ABSENT = '["52101004", "SCT", "Present"]', '["272519000", "SCT", "Absent"]'
CLASSES = (
    f'[[evaluation]]\nname = ["233604007", "SCT", "Pneumonia"]\n'
    f"[[evaluation.answer]]\ncode = {ABSENT}\nchannel = 0\nnegative = true\n"
    f"[[evaluation.answer]]\ncode = {PRESENT}\nchannel = 1\n"
)
THRESHOLDED = (
    f'[[evaluation]]\nname = ["233604007", "SCT", "Pneumonia"]\nthreshold = 0.7\n'
    f"[[evaluation.answer]]\ncode = {PRESENT}\nchannel = 0\n"
    f"[[evaluation.answer]]\ncode = {ABSENT}\nnegative = true\n"
)
SCORE = '[[score]]\nname = ["112058", "DCM", "Calcium score"]\nunit = ["1", "UCUM", "no units"]\nchannel = 0\n'
NODULES = (
    f'[[detection]]\nlabel = 0\ntype = ["27925004", "SCT", "Nodule"]\ncategory = {CODE}\nsite = {CODE}\n'
    "min_probability = 0.5\n"
)
KEPT = f'{segment(1)}channel = 1\n{segment(2)}[probabilities]\nkey = "shares"\n'
RESTING = (
    '[saliency]\nkey = "rest"\nquantity = ["1000", "99TEST", "Share in the answer"]\nunit = ["1", "UCUM", "no units"]\n'
)


def boxes(space: str, mode: str = "cccwhd") -> str:
    return f'{NODULES}[boxes]\nspace = "{space}"\nmode = "{mode}"\n'


def does(code: str, keys: str = "pred") -> dict[str, Any]:
    return {"_target_": "Lambdad", "keys": keys, "func": f"$lambda x: {code}"}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return partial(load, tmp_path / "tiny")


class TestAnswers:
    def classified(self, make: Make, present: float, text: str = CLASSES) -> Findings:
        shares = does(f"torch.stack([1 - {present} + 0 * x.flatten()[0], {present} + 0 * x.flatten()[0]])")
        config = {"network_def": MEAN, "postprocessing": compose(shares), "imports": ["$import torch"]}
        return make(toml("", "", heads=text), **config).infer({"image": volume(blob())})

    def test_the_most_probable_class_is_the_answer(self, make: Make) -> None:
        found = self.classified(make, 0.75)
        (answered,) = found.evaluations
        assert (answered.name.meaning, answered.answer.meaning, answered.probability) == ("Pneumonia", "Present", 0.75)
        assert (found.outcome, found.layers, found.measurements) == (Outcome.FINDINGS, (), ())

    def test_an_answer_that_nothing_is_there_is_a_negative_result_and_no_failure(self, make: Make) -> None:
        found = self.classified(make, 0.25)
        assert found.evaluations[0].answer.meaning == "Absent"
        assert found.outcome is Outcome.NEGATIVE

    def test_of_equal_probabilities_the_answer_that_stands_first(self, make: Make) -> None:
        assert self.classified(make, 0.5).evaluations[0].answer.meaning == "Absent"

    @pytest.mark.parametrize(("mean", "answer", "probability"), [(700, "Present", 0.7), (690, "Absent", 0.31)])
    def test_a_threshold_parts_two_answers(self, make: Make, mean: int, answer: str, probability: float) -> None:
        engine = make(
            toml("", "", heads=THRESHOLDED + SCORE),
            network_def=MEAN,
            postprocessing=compose(does("x / 1000")),
        )
        found = engine.infer({"image": volume(np.full((2, 4, 6), mean, np.int16))})
        (answered,), (score,) = found.evaluations, found.scores
        assert (answered.answer.meaning, answered.probability) == (answer, pytest.approx(probability))
        assert (score.name.meaning, score.value) == ("Calcium score", pytest.approx(mean / 1000))

    def test_a_score_alone_is_a_finding(self, make: Make) -> None:
        engine = make(toml("", "", heads=SCORE), network_def=MEAN, postprocessing=compose(does("x * 2")))
        found = engine.infer({"image": volume(np.full((2, 4, 6), 50, np.int16))})
        assert (found.scores[0].value, found.outcome) == (100.0, Outcome.FINDINGS)

    @pytest.mark.parametrize(
        ("code", "sentence"),
        [
            ("x.flatten()", r"left 35\.7143 to 35\.7143 under 'pred', where probabilities from 0 to 1"),
            ("x.flatten() * 0 + 0.5", r"left 1 values under 'pred' and dicomai\.toml names channel 1"),
            ("x.flatten().repeat(2) * 0 + 0.2", r"answers to 'Pneumonia' add up to 0\.4 and not to 1"),
            ("x.flatten().repeat(2) * float('nan')", "values under 'pred' that are no numbers"),
            ("x.flatten().repeat(4).reshape(2, 2)", r"left 2 x 2 numbers under 'pred', and not one number for each"),
            ("'none'", "left no numbers under 'pred', but str"),
        ],
    )
    def test_what_are_no_probabilities_of_the_answers_is_refused(self, make: Make, code: str, sentence: str) -> None:
        engine = make(toml("", "", heads=CLASSES), network_def=MEAN, postprocessing=compose(does(code)))
        with pytest.raises(InferenceError, match=sentence) as caught:
            engine.infer({"image": volume(blob())})
        assert not caught.value.retryable

    def test_a_network_with_two_heads_gives_a_mask_and_an_answer(self, make: Make) -> None:
        second = THRESHOLDED.replace("threshold", 'key = "present"\nthreshold')
        engine = make(
            toml(heads=second),
            network_def=MEAN,
            inferer="$lambda images, network: {'pred': images > 500, 'present': network(images).flatten(1) / 100}",
            postprocessing=None,
        )
        found = engine.infer({"image": volume(blob())})
        assert np.array_equal(found.layers[0].labels, blob() > 0)
        assert found.evaluations[0].probability == pytest.approx(0.642857)
        nothing = engine.infer({"image": volume(np.zeros_like(blob()))})
        assert nothing.outcome is Outcome.NEGATIVE

    def test_a_key_that_is_not_there(self, make: Make) -> None:
        engine = make(toml("", "", heads=CLASSES.replace("[[evaluation.", 'key = "classes"\n[[evaluation.', 1)))
        with pytest.raises(BundleError, match="leaves nothing under the key 'classes'"):
            engine.infer({"image": volume(blob())})

    def test_what_is_no_tensor(self, make: Make) -> None:
        engine = make(inferer="$lambda images, network: {'pred': 'mask'}")
        with pytest.raises(BundleError, match="gave str as 'pred'; it has to give a tensor"):
            engine.infer({"image": volume(blob())})


# As MONAI's detectors give them: for each image a dictionary, boxes as two corners in voxels of what the network saw.
FOUND = "{'box': torch.tensor([[15., 4, 3, 24, 9, 6], [0, 0, 0, 2, 2, 2]]), 'label': torch.tensor([0, 0]), "
FOUND += "'label_scores': torch.tensor([0.75, 0.25])}"
WORLD = [
    {"_target_": "monai.apps.detection.transforms.dictionary.ClipBoxToImaged", "box_keys": "box",
     "label_keys": ["label", "label_scores"], "box_ref_image_keys": "image", "remove_empty": True},
    {"_target_": "monai.apps.detection.transforms.dictionary.AffineBoxToWorldCoordinated", "box_keys": "box",
     "box_ref_image_keys": "image"},
    {"_target_": "monai.apps.detection.transforms.dictionary.ConvertBoxModed", "box_keys": "box",
     "src_mode": "xyzxyz", "dst_mode": "cccwhd"},
]  # fmt: skip


def expected(axes: str) -> tuple[Any, Any]:
    """Give the centre of the first box, and the lengths of its sides, of what lies in voxels (x, y, z)."""
    place = volume(blob(), axes).affine
    return (place @ [4.5, 6.5, 19.5, 1])[:3], np.array([9, 5, 3]) * SPACING[::-1]


class TestBoxes:
    def detector(self, make: Make, text: str, found: str = FOUND, **config: Any) -> inference.Engine:
        config = {"imports": ["$import torch"], "postprocessing": None, **config}
        return make(toml("", heads=text), inferer=f"$lambda images, network: [{found}]", **config)

    @pytest.mark.parametrize("axes", ["axial", "feet first", "sagittal"])
    @pytest.mark.parametrize("lps", [False, True])
    def test_boxes_in_the_world_lie_where_they_were_found(self, make: Make, axes: str, lps: bool) -> None:
        clip, world, center = WORLD
        steps = compose(clip, {**world, "affine_lps_to_ras": lps}, center)
        engine = self.detector(make, boxes("LPS" if lps else "RAS"), postprocessing=steps)
        (one,) = engine.infer({"image": volume(blob(), axes)}).detections  # the other is too improbable
        middle, sides = expected(axes)
        np.testing.assert_allclose(one.region.center, middle, atol=1e-4)
        extent = np.abs(np.asarray(one.region.semi_axes)).sum(axis=0) * 2
        turned = np.abs((volume(blob(), axes).affine[:3, :3] / SPACING)[:, ::-1]) @ sides
        np.testing.assert_allclose(extent, turned, atol=1e-4)
        assert (one.region.shape, one.probability, one.type.meaning) == (Shape.BOX, 0.75, "Nodule")

    @pytest.mark.parametrize("axes", ["axial", "sagittal", "oblique"])
    def test_boxes_in_voxels_are_as_oblique_as_the_images(self, make: Make, axes: str) -> None:
        engine = self.detector(make, boxes("image", "xyzxyz"))
        (one,) = engine.infer({"image": volume(blob(), axes)}).detections
        middle, sides = expected(axes)
        np.testing.assert_allclose(one.region.center, middle, atol=1e-4)
        directions = (volume(blob(), axes).affine[:3, :3] / SPACING)[:, ::-1].T
        np.testing.assert_allclose(one.region.semi_axes, directions * sides[:, None] / 2, atol=1e-4)

    def test_boxes_of_a_turned_image_are_refused_along_the_patient_s_axes(self, make: Make) -> None:
        engine = self.detector(make, boxes("RAS"), postprocessing=compose(*WORLD))
        with pytest.raises(
            InferenceError, match=r'lost its size: let postprocessing leave boxes in voxels \(space = "'
        ):
            engine.infer({"image": volume(blob(), "oblique")})

    def test_where_preprocessing_turns_the_image_they_are_good(self, make: Make) -> None:
        turn = {"_target_": "Spacingd", "keys": "image", "pixdim": [1.0, 1.0, 1.0], "diagonal": True}
        middle, _ = expected("oblique")
        row = [-middle[0], -middle[1], middle[2], 8.0, 6.0, 4.0]
        center = does(f"torch.tensor([{row}])", "box")
        one = FOUND.replace(", [0, 0, 0, 2, 2, 2]", "").replace("0, 0]", "0]").replace(", 0.25", "")
        engine = self.detector(make, boxes("RAS"), one, preprocessing=compose(turn), postprocessing=compose(center))
        (found,) = engine.infer({"image": volume(blob(), "oblique")}).detections
        np.testing.assert_allclose(found.region.center, middle, atol=1e-4)
        np.testing.assert_allclose(found.region.semi_axes, np.diag([4, 3, 2]))

    def test_none_is_a_negative_result_or_a_failure_as_the_bundle_says(self, make: Make) -> None:
        none = "{'box': torch.zeros((0, 6)), 'label': torch.zeros(0), 'label_scores': torch.zeros(0)}"
        found = self.detector(make, boxes("image"), none).infer({"image": volume(blob())})
        assert (found.outcome, found.detections) == (Outcome.NEGATIVE, ())
        assert found.remarks == ("Looked for and not detected with a probability of 0.5 or more: Nodule.",)
        engine = make(
            toml("", "failure", heads=boxes("image")),
            imports=["$import torch"],
            inferer=f"$lambda images, network: [{none}]",
            postprocessing=None,
        )
        with pytest.raises(InferenceError, match=r"found nothing where it must find something \(Nodule\)"):
            engine.infer({"image": volume(blob())})

    @pytest.mark.parametrize(
        ("old", "new", "sentence"),
        [
            ("[15., 4,", "[15., -8,", r"A box of tiny \(Nodule\) lies outside of the images: see that space and mode"),
            ("24, 9, 6]", "24, 9, 16]", "lies outside of the images"),
            ("24, 9, 6]", "24, 4, 6]", r"\(Nodule\) has no extent along an axis"),
            ("tensor([0, 0])", "tensor([0, 3])", r"a box the label 3, which no \[\[detection\]\] of its dicomai\.toml"),
            ("tensor([0, 0])", "tensor([0])", "left 2 boxes, 1 labels and 2 scores"),
            ("[0.75,", "[1.75,", "left 0.25 to 1.75 under 'label_scores', where probabilities"),
            ("4, 3, 24,", "4, 24,", r"numbers under 'box', and not 6 numbers in each row"),
        ],
    )
    def test_what_are_no_boxes_in_the_images_is_refused(self, make: Make, old: str, new: str, sentence: str) -> None:
        assert old in FOUND
        found = FOUND.replace(old, new)
        if "6 numbers" in sentence:
            found = found.replace("[0, 0, 0, 2, 2, 2]", "[0, 0, 0, 2, 2]")
        with pytest.raises(InferenceError, match=sentence) as caught:
            self.detector(make, boxes("image", "xyzxyz"), found).infer({"image": volume(blob())})
        assert not caught.value.retryable


SHARES = does("torch.cat([1 - x / 1000, x / 1000])")
COPY = {"_target_": "CopyItemsd", "keys": "pred", "names": ["shares", "rest"], "times": 2}
LABEL = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
BACK = {**INVERT, "keys": ["pred", "shares", "rest"]}


class TestMaps:
    def engine(self, make: Make, text: str, *steps: dict[str, Any]) -> inference.Engine:
        steps = steps or (SHARES, COPY, LABEL, BACK)
        return make(text, imports=["$import torch"], preprocessing=compose(ORIENT), postprocessing=compose(*steps))

    @pytest.mark.parametrize("axes", ["axial", "sagittal", "oblique"])
    def test_probabilities_and_saliency_lie_on_the_source_voxel_for_voxel(self, make: Make, axes: str) -> None:
        array = np.random.default_rng(3).integers(0, 1001, blob().shape).astype(np.int16)
        found = self.engine(make, toml(KEPT, heads=RESTING)).infer({"image": volume(array, axes)})
        (kept,) = found.probabilities
        np.testing.assert_allclose(kept.values, array / 1000, atol=1e-6)
        assert (kept.segment.label, kept.layer, kept.values.dtype) == ("Body 1.1", 0, np.float32)
        assert found.saliency is not None
        np.testing.assert_allclose(found.saliency.values, 1 - array / 1000, atol=1e-6)
        assert (found.saliency.label, found.saliency.quantity.meaning) == ("Saliency", "Share in the answer")
        assert np.array_equal(found.layers[0].labels, array > 500)

    @pytest.mark.parametrize(
        ("steps", "sentence"),
        [
            ((COPY, {**LABEL, "argmax": False, "threshold": 500}, BACK), r"dicomai\.toml names channel 1, counted"),
            ((does("torch.cat([x, x])"), COPY, LABEL, BACK), r"probabilities of Body 1\.1 are 0 to 1000"),
            ((SHARES, COPY, LABEL, INVERT), r"probability of Body 1\.1 that tiny gave lies on another grid"),
            (
                (SHARES, COPY, LABEL, BACK, {"_target_": "ToTensord", "keys": "shares", "track_meta": False}),
                "does not say where it lies",
            ),
        ],
    )
    def test_what_are_no_probabilities_on_the_source_is_refused(
        self, make: Make, steps: tuple[dict[str, Any], ...], sentence: str
    ) -> None:
        with pytest.raises(DicomaiError, match=sentence) as caught:
            self.engine(make, toml(KEPT, heads=RESTING), *steps).infer({"image": volume(blob())})
        assert not caught.value.retryable

    def test_a_saliency_that_is_no_number_is_refused(self, make: Make) -> None:
        steps = (SHARES, COPY, LABEL, BACK, does("x / 0", "rest"))
        with pytest.raises(InferenceError, match="map 'Saliency' of tiny holds values that are no numbers"):
            self.engine(make, toml(KEPT, heads=RESTING), *steps).infer({"image": volume(blob())})


class TestTheBundle:
    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            (toml("", ""), r"describe at least one \[\[segment\]\], \[\[evaluation\]\]"),
            (toml("", "negative", heads=CLASSES), "empty is about segments and detections, and there are none"),
            (toml("", "", heads=boxes("RAS")), "empty says what it means when nothing is marked or detected"),
            (toml("", heads=NODULES), r"\[\[detection\]\] and \[boxes\] stand together"),
            (toml("", heads=boxes("RAS") + NODULES), r"two entries of \[\[detection\]\] bear the same label"),
            (toml("", heads=boxes("world")), r"boxes\.space: Input should be 'RAS', 'LPS' or 'image'"),
            (toml(heads=CLASSES), r"'Pneumonia' is read under 'pred', where the labels of \[\[segment\]\] lie"),
            (
                toml("", "", heads=CLASSES.replace("channel = 1\n", "")),
                "without a threshold each answer to 'Pneumonia'",
            ),
            (
                toml("", "", heads=THRESHOLDED + f"[[evaluation.answer]]\ncode = {CODE}\n"),
                "'Pneumonia' has two answers",
            ),
            (toml("", "", heads=CLASSES.replace(PRESENT, ABSENT)), "two answers to 'Pneumonia' bear the same code"),
            (
                toml("", "", heads=SCORE.replace("UCUM", "99TEST")),
                "unit of 'Calcium score' is a code of UCUM, not of 99TEST",
            ),
            (toml(segment(1) + "channel = 0\n"), r"\[probabilities\] and a channel in \[\[segment\]\] stand together"),
            (toml(KEPT.replace('"shares"', '"pred"')), "copy the probabilities before they become labels"),
            (toml(heads=RESTING + 'label = "Saliency of the answer"\n'), r"saliency\.label: "),
        ],
    )
    def test_what_is_wrong_with_it_is_said_in_a_sentence(
        self, make: Make, tmp_path: Path, text: str, sentence: str
    ) -> None:
        with pytest.raises(BundleError, match=sentence) as caught:
            make(text)
        assert "\n" not in str(caught.value)
        assert inference.check(tmp_path / "tiny", tmp_path) == (str(caught.value),)
