"""A bundle's folder: what is read from it, what is refused, and which images are inside of the validated range."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes

from dicomai import bundle
from dicomai.errors import BundleError, NotAcceptedError


@pytest.fixture(scope="module")
def brain() -> bundle.Bundle:
    return bundle.find("brain_extraction", bundle.packaged())


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Give a copy of the packaged bundle that a test may spoil."""
    return Path(shutil.copytree(bundle.packaged() / "brain_extraction", tmp_path / "brain_extraction"))


def edit(folder: Path, old: str, new: str, file: str = "dicomai.toml") -> None:
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1))


def header(**attributes: object) -> Dataset:
    ds = Dataset()
    ds.Modality = "MR"
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def nested(**attributes: object) -> Sequence:
    ds = Dataset()
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return Sequence([ds])


MPRAGE = {
    "ScanningSequence": ["GR", "IR"], "RepetitionTime": 2300, "EchoTime": 2.98, "InversionTime": 900, "FlipAngle": 9,
}  # fmt: skip
SPIN_ECHO = {
    "ScanningSequence": "SE",
    "RepetitionTime": 550,
    "EchoTime": 12,
    "InversionTime": 0,
    "FlipAngle": 90,
}
SPOILED = {"ScanningSequence": "GR", "RepetitionTime": 25, "EchoTime": 4.6, "FlipAngle": 30}


class TestPackagedBundle:
    def test_says_what_the_mask_is_in_the_codes_of_the_standard(self, brain: bundle.Bundle) -> None:
        ((segment,),) = brain.layers
        assert segment.type == codes.SCT.IntracranialStructure == segment.finding_site
        assert segment.category == codes.cid7150.AnatomicalStructure
        (wanted,) = brain.measurements
        assert wanted.name == codes.SCT.Volume
        assert wanted.unit == codes.cid7462.CubicCentimeter
        assert wanted.method == codes.DCM.SumOfSegmentedVoxelMethodForVolume
        assert brain.algorithm.family == codes.cid7162.ArtificialIntelligence

    def test_an_empty_mask_is_a_failure(self, brain: bundle.Bundle) -> None:
        assert brain.empty == "failure"

    def test_its_version_is_that_of_the_metadata(self, brain: bundle.Bundle) -> None:
        metadata = json.loads((brain.path / "configs/metadata.json").read_text())
        assert brain.version == metadata["version"] == brain.algorithm.version
        assert brain.version in metadata["changelog"]

    def test_no_torch_is_imported_for_it(self) -> None:
        code = (
            "import sys; from dicomai import bundle, weights; bundle.available(bundle.packaged());"
            "sys.exit(bool({'torch', 'monai', 'pynetdicom', 'sqlalchemy'} & set(sys.modules)))"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestDigest:
    @pytest.mark.parametrize(
        ("file", "old", "new"),
        [
            ("configs/inference.json", "0.226", "0.227"),
            ("configs/metadata.json", '"version": "1.0.0"', '"version": "1.0.1"'),
            ("dicomai.toml", "min_slices = 10", "min_slices = 11"),
            ("dicomai.toml", "de8ee7", "de8ee8"),
        ],
    )
    def test_changes_with_the_model(self, copy: Path, file: str, old: str, new: str) -> None:
        before = bundle.load(copy).digest
        edit(copy, old, new, file)
        assert bundle.load(copy).digest != before

    def test_is_the_same_wherever_the_folder_lies(self, copy: Path, brain: bundle.Bundle) -> None:
        (copy / "docs/README.md").write_text("A note does not make another model.")
        assert bundle.load(copy).digest == brain.digest

    def test_a_file_added_to_the_configs_changes_it(self, copy: Path, brain: bundle.Bundle) -> None:
        (copy / "configs/transforms.json").write_text("{}")
        assert bundle.load(copy).digest != brain.digest


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("old", "new", "sentence"),
        [
            (
                'empty = "failure"',
                'empty = "maybe"',
                r"dicomai\.toml: empty: Input should be 'failure' or 'negative'",
            ),
            (
                "min_slices = 10",
                "min_slices = 10\nmax_slices = 900",
                r"input\.0\.max_slices: there is no such key",
            ),
            ("EchoTime = {", "EchoTimes = {", r"'EchoTimes' is no DICOM keyword"),
            ("number = 1", "number = 0", r"segment\.0\.number: "),
            (
                'label = "Intracranial',
                'label = "Schädel',
                r"segment\.0\.label: 'Schädel structure' is no text of 1 to 64",
            ),
            (
                '["cm3", "UCUM", "cubic centimeter"]',
                '["ml", "UCUM", "millilitre"]',
                r"cm3 or mm3 of UCUM, not 'ml'",
            ),
            (
                '["118565006", "SCT", "Volume"]',
                '["410668003", "SCT", "Length"]',
                r"'Length' cannot be measured",
            ),
            (
                'license = "MIT"',
                'license = "MIT"\nreport_title = ["18748-4", "LN", "Diagnostic imaging report"]',
                r"report_title is one of \[126000, .*, not 'Diagnostic imaging report'",
            ),
            (
                "[[measurement]]",
                '[[measurement]]\nsegments = ["Brain"]',
                r"\[\[measurement\]\] names the segment 'Brain'; there are: Intracranial structure",
            ),
            ("39a7b2b5", "39A7B2B5", r"weights\.file\.0\.sha256: "),
            ('name = "model.pt"', 'name = "../model.pt"', r"'\.\./model\.pt' is no plain file name"),
            (
                'license = "MIT"',
                'license = "MIT"\nversion = "2"',
                r"the version stands in configs/metadata\.json",
            ),
            ("[algorithm]", "[algorithm", r"dicomai\.toml is no TOML: "),
            ('ScanningSequence = "SE"', 'ScanningSequence = "(SE"', r"'\(SE' is no regular expression"),
            ('{ not = "Y" }', "{}", r"a condition says at least one of"),
        ],
    )
    def test_a_wrong_value_is_named_with_its_file(self, copy: Path, old: str, new: str, sentence: str) -> None:
        edit(copy, old, new)
        with pytest.raises(BundleError, match=sentence) as caught:
            bundle.load(copy)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("file", ["configs/metadata.json", "configs/inference.json", "dicomai.toml"])
    def test_a_missing_file_is_named(self, copy: Path, file: str) -> None:
        (copy / file).unlink()
        with pytest.raises(BundleError, match=f"{file} cannot be read"):
            bundle.load(copy)

    def test_metadata_without_a_version(self, copy: Path) -> None:
        (copy / "configs/metadata.json").write_text("{}")
        with pytest.raises(BundleError, match=r"metadata\.json has no 'version'"):
            bundle.load(copy)

    def test_json_that_is_none(self, copy: Path) -> None:
        (copy / "configs/inference.json").write_text("{")
        with pytest.raises(BundleError, match=r"inference\.json is no JSON"):
            bundle.load(copy)

    def test_two_segments_of_one_number(self, copy: Path) -> None:
        text = (copy / "dicomai.toml").read_text()
        segment = text[text.index("[[segment]]") : text.index("[[measurement]]")]
        (copy / "dicomai.toml").write_text(text.replace(segment, segment + segment))
        with pytest.raises(BundleError, match="the same number in the same layer"):
            bundle.load(copy)
        edit(copy, "number = 1", "number = 1\nlayer = 2")
        with pytest.raises(BundleError, match="bear the same label"):  # whose numbers would a report show?
            bundle.load(copy)
        edit(copy, 'label = "Intracranial structure"', 'label = "Intracranial structure, again"')
        assert [len(segments) for segments in bundle.load(copy).layers] == [1, 1]


class TestFind:
    def test_names_what_there_is(self, copy: Path) -> None:
        with pytest.raises(BundleError, match=r"no model 'lung' in .*; there are: brain_extraction\."):
            bundle.find("lung", copy.parent)

    def test_does_not_leave_the_folder(self, copy: Path) -> None:
        with pytest.raises(BundleError, match="There is no model"):
            bundle.find("../brain_extraction", copy)

    def test_a_folder_that_is_no_bundle_is_passed_over(self, copy: Path) -> None:
        (copy.parent / "notes").mkdir()
        assert [one.name for one in bundle.available(copy.parent)] == ["brain_extraction"]

    def test_the_folder_of_models_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match=r"does not exist: set node\.models"):
            bundle.available(tmp_path / "none")


class TestHardLimits:
    def test_a_ct_is_refused_whatever_the_route_says(self, brain: bundle.Bundle) -> None:
        with pytest.raises(NotAcceptedError, match="brain_extraction takes MR, this series is CT"):
            brain.accept(header(Modality="CT"))
        brain.accept(header())

    def test_a_role_that_there_is_not(self, brain: bundle.Bundle) -> None:
        with pytest.raises(BundleError, match=r"has no input 'prior'; its .* are: image"):
            brain.input("prior")


class TestValidatedRange:
    @pytest.mark.parametrize(
        "attributes",
        [
            MPRAGE,
            SPIN_ECHO,
            SPOILED,
            {
                "ScanningSequence": ["GR", "IR"],
                "RepetitionTime": 8.2,
                "EchoTime": 3.2,
                "InversionTime": 450,
            },  # BRAVO
            {
                "ScanningSequence": ["SE", "IR"],
                "RepetitionTime": 2100,
                "EchoTime": 9,
                "InversionTime": 780,
            },  # T1 FLAIR
            {"SeriesDescription": "anat-T1w", "ProtocolName": "anat-T1w"},
            {"ProtocolName": "sT1W_3D_TFE"},
            {
                **MPRAGE,
                "SeriesDescription": "t1_mprage_sag_p2",
                "ContrastBolusAgent": "None",
                "PatientAge": "018Y",
            },
            {"AcquisitionContrast": "T1"},
        ],
    )
    def test_t1_is_inside(self, brain: bundle.Bundle, attributes: dict[str, object]) -> None:
        assert brain.outside_validated(header(**attributes)) is None

    @pytest.mark.parametrize(
        "attributes",
        [
            {"ScanningSequence": "SE", "RepetitionTime": 2300, "EchoTime": 22},  # PD
            {"ScanningSequence": "SE", "RepetitionTime": 5000, "EchoTime": 100},  # T2
            {
                "ScanningSequence": ["SE", "IR"],
                "RepetitionTime": 9000,
                "EchoTime": 120,
                "InversionTime": 2500,
            },  # FLAIR
            {
                "ScanningSequence": ["SE", "IR"],
                "RepetitionTime": 4000,
                "EchoTime": 30,
                "InversionTime": 160,
            },  # STIR
            {"ScanningSequence": "GR", "RepetitionTime": 600, "EchoTime": 25, "FlipAngle": 20},  # T2*
            {"ScanningSequence": "GR", "RepetitionTime": 25, "EchoTime": 5, "FlipAngle": 5},  # PD FLASH
            {"ScanningSequence": "EP", "RepetitionTime": 720, "EchoTime": 30},  # BOLD
            {**SPOILED, "AngioFlag": "Y"},
            {**SPOILED, "SeriesDescription": "TOF_3D_multi-slab"},
            {**SPOILED, "SeriesDescription": "gre_field_mapping T2* B0"},
            {**MPRAGE, "SeriesDescription": "T1 map"},
            {**MPRAGE, "ContrastBolusAgent": "Gadobutrol"},
            {"AcquisitionContrast": "T1", "ContrastBolusAgentSequence": nested(CodeMeaning="Gadobutrol")},
            {**MPRAGE, "PhotometricInterpretation": "MONOCHROME1"},
            {**MPRAGE, "AcquisitionContrast": "FLUID_ATTENUATED"},
            {"SeriesDescription": "AX T2"},
            {},
        ],
    )
    def test_anything_else_is_outside(self, brain: bundle.Bundle, attributes: dict[str, object]) -> None:
        assert brain.outside_validated(header(**attributes)) is not None

    def test_a_contrast_agent_sent_as_text_where_codes_belong_is_one(self, brain: bundle.Bundle) -> None:
        ds = header(**MPRAGE)
        ds["ContrastBolusAgentSequence"] = DataElement("ContrastBolusAgentSequence", "LO", "Gadobutrol")
        assert brain.outside_validated(ds) is not None

    def test_the_sentence_gives_the_numbers(self, brain: bundle.Bundle) -> None:
        sentence = brain.outside_validated(header(ScanningSequence="SE", RepetitionTime="2300.00", EchoTime="22.0000"))
        assert sentence is not None
        assert sentence.startswith("brain_extraction was validated for T1-weighted MR of adults")
        assert "RepetitionTime 2300, " in sentence
        assert "EchoTime 22" in sentence

    def test_a_child_is_outside_and_the_age_is_not_quoted(self, brain: bundle.Bundle) -> None:
        child = header(**MPRAGE, PatientAge="009Y", PatientName="Doe^Jane", PatientID="4711")
        sentence = brain.outside_validated(child)
        assert sentence is not None
        assert sentence.endswith("(PatientAge).")
        assert "009" not in sentence
        infant = header(**MPRAGE, PatientAge="020M")
        assert brain.outside_validated(infant) is not None

    def test_the_age_is_reckoned_where_it_is_not_stated(self, brain: bundle.Bundle) -> None:
        assert brain.outside_validated(header(**MPRAGE, PatientBirthDate="20080510", StudyDate="20260510")) is None
        day_before = header(**MPRAGE, PatientBirthDate="20080510", StudyDate="20260509")
        sentence = brain.outside_validated(day_before)
        assert sentence is not None
        assert "2008" not in sentence
        assert brain.outside_validated(header(**MPRAGE, PatientBirthDate="", StudyDate="20260509")) is None

    def test_enhanced_multi_frame_has_its_timing_in_functional_groups(self, brain: bundle.Bundle) -> None:
        shared = nested(
            MRTimingAndRelatedParametersSequence=nested(RepetitionTime=8.0, FlipAngle=12.0),
            MRModifierSequence=nested(InversionTimes=[900.0]),
        )
        echoes = [nested(MREchoSequence=nested(EffectiveEchoTime=time))[0] for time in (3.0, 90.0)]
        ds = header(SharedFunctionalGroupsSequence=shared, PerFrameFunctionalGroupsSequence=Sequence(echoes))
        assert brain.outside_validated(ds, frame=1) is None
        second = brain.outside_validated(ds, frame=2)
        assert second is not None
        assert "EchoTime 90" in second
