"""A series is split into what makes one volume each, whatever the order on disk."""

import copy
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicomai.errors import UnreadableError
from dicomai.stacks import split
from dicomai.study import Series
from tests.synthetic import as_series, enhanced, instances, plain, series

SMALL = (3, 4, 4)
ONE_SERIES = {"study_uid": "1.2.3", "series_uid": "1.2.3.4", "frame_of_reference_uid": "1.2.3.5"}


def counts(found):
    return {stack.key: len(stack.frames) for stack in found}


def test_a_plain_series_is_one_stack_named_by_its_values():
    found = split(as_series(series(modality="MR", shape=SMALL, EchoTime="22.5", orientation="sagittal")))
    assert counts(found) == {"type=ORIGINAL/PRIMARY/OTHER; echo=1; te=22.5; orientation=0,1,0,0,0,-1": 3}


@pytest.mark.parametrize(
    ("keyword", "given_values", "named"),
    [
        ("EchoTime", ["90", "20"], ["te=20", "te=90"]),
        ("EchoNumbers", [2, 1], ["echo=1", "echo=2"]),
        ("DiffusionBValue", [1000.0, 0.0], ["b=0", "b=1000"]),
        ("TemporalPositionIdentifier", [10, 9], ["time=9", "time=10"]),
        ("ImageType", [["ORIGINAL", "PRIMARY", "P"], ["ORIGINAL", "PRIMARY", "M"]], ["PRIMARY/M", "PRIMARY/P"]),
    ],
)
def test_frames_at_the_same_place_are_told_apart_and_ordered(keyword, given_values, named):
    mixed = [
        ds for value in given_values for ds in series(modality="MR", shape=SMALL, **ONE_SERIES, **{keyword: value})
    ]
    random.Random(1).shuffle(mixed)
    found = split(as_series(mixed))
    assert [len(stack.frames) for stack in found] == [3, 3]
    assert all(name in stack.key for name, stack in zip(named, found, strict=True))
    for stack in found:
        values = {str(frame.instance.header.get(keyword)) for frame in stack.frames}
        assert len(values) == 1


def test_the_three_planes_of_a_localizer_are_three_stacks():
    mixed = [
        ds for plane in ("axial", "sagittal", "coronal") for ds in series(shape=SMALL, orientation=plane, **ONE_SERIES)
    ]
    assert sorted(counts(split(as_series(mixed))).values()) == [3, 3, 3]


def test_cosines_that_differ_in_their_rounding_stay_together():
    # 0.0005 is where three digits round either way: clustering by rounding would tear this series apart.
    wobble = [1, 0.00049, 0, 0, 1, 0], [1, 0.00051, 0, 0, 1, 0], [1, -0.0004, 0, 0, 1, 0]
    found = split(as_series(series(shape=SMALL, ImageOrientationPatient=lambda z: list(wobble[z]))))
    assert len(found) == 1


def test_slabs_one_degree_apart_are_separate():
    turn = np.radians(1.0)
    other = (np.cos(turn), np.sin(turn), 0, -np.sin(turn), np.cos(turn), 0)
    mixed = series(shape=SMALL, **ONE_SERIES) + series(shape=SMALL, orientation=other, **ONE_SERIES)
    assert len(split(as_series(mixed))) == 2


def test_echo_times_that_jitter_stay_together():
    found = split(as_series(series(modality="MR", shape=SMALL, EchoTime=lambda z: ["22.000", "22.001", "22.01"][z])))
    assert len(found) == 1
    assert "te=22;" in found[0].key


def test_what_is_no_image_is_left_out_and_what_has_no_place_is_kept():
    report = plain(modality="OT", PixelData=None, Rows=None, Columns=None, BitsAllocated=None)
    chest = plain(modality="CR")
    for ds in (report, chest):
        ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    found = split(as_series([report, chest, *series(shape=SMALL, **ONE_SERIES)]))
    assert counts(found) == {
        "type=ORIGINAL/PRIMARY": 1,
        "type=ORIGINAL/PRIMARY/AXIAL; orientation=1,0,0,0,1,0": 3,
    }
    assert split(as_series([report])) == ()


def test_an_image_without_any_of_the_values_still_has_a_key():
    assert counts(split(as_series([plain(modality="US", ImageType=None)]))) == {"plain": 1}


def test_an_enhanced_image_is_split_frame_by_frame():
    ds = enhanced(
        shape=(6, 4, 4),
        positions=[0, 0, 2, 2, 4, 4],
        echo_times=[20, 90, 20, 90, 20, 90],
        b_values=[0, 0, 0, 0, 0, 0],
    )
    found = split(as_series([ds]))
    assert [[frame.number for frame in stack.frames] for stack in found] == [[1, 3, 5], [2, 4, 6]]
    assert [("te=20" in stack.key, "b=0" in stack.key) for stack in found] == [(True, True), (False, True)]


def test_magnitude_and_phase_of_an_enhanced_image_are_told_apart():
    ds = enhanced(shape=(4, 4, 4), positions=[0, 0, 2, 2])
    shared = ds.SharedFunctionalGroupsSequence[0]
    (kind,) = shared.MRImageFrameTypeSequence
    del shared.MRImageFrameTypeSequence
    for index, frame in enumerate(ds.PerFrameFunctionalGroupsSequence):
        other = copy.deepcopy(kind)
        other.ComplexImageComponent = "PHASE" if index % 2 else "MAGNITUDE"
        frame.MRImageFrameTypeSequence = [other]
    found = split(as_series([ds]))
    assert [[frame.number for frame in stack.frames] for stack in found] == [[1, 3], [2, 4]]


def test_different_sizes_are_no_reason_to_split():
    mixed = series(shape=SMALL, **ONE_SERIES) + series(shape=(1, 8, 8), origin=(0, 0, 90), **ONE_SERIES)
    assert len(split(as_series(mixed))) == 1


def test_a_value_that_is_no_number_is_refused_in_a_sentence():
    bad = instances(series(modality="MR", shape=SMALL))
    element = bad[0].header.get_item("EchoTime")
    bad[0].header._dict[element.tag] = element._replace(value=b"nan ")
    with pytest.raises(UnreadableError, match=r"^EchoTime has a value that is not finite"):
        split(Series("1.2", bad))


def test_functional_groups_that_do_not_match_the_frames_are_refused():
    ds = enhanced(shape=SMALL)
    del ds.PerFrameFunctionalGroupsSequence[-1]
    with pytest.raises(UnreadableError, match="has 3 frames but functional groups for 2"):
        split(as_series([ds]))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["20", "20.01", "20.02", "20.03", "90"]),
            st.sampled_from([None, 0.0, 1000.0, 1000.5, 1001.4]),
            st.sampled_from(
                [(1, 0, 0, 0, 1, 0), (1, 0.006, 0, -0.006, 1, 0), (1, 0.012, 0, -0.012, 1, 0), (0, 1, 0, 0, 0, -1)]
            ),
        ),
        min_size=1,
        max_size=8,
    ),
    st.randoms(use_true_random=False),
)
def test_stacks_do_not_depend_on_order_and_are_found_again_from_their_own_images(kinds, shuffler):
    datasets = [
        ds
        for te, b, cosines in kinds
        for ds in series(
            modality="MR",
            shape=(1, 2, 2),
            EchoTime=te,
            DiffusionBValue=b,
            ImageOrientationPatient=list(cosines),
            **ONE_SERIES,
        )
    ]
    found = split(as_series(datasets))
    assert sum(len(stack.frames) for stack in found) == len(datasets)
    assert len({stack.key for stack in found}) == len(found)
    shuffler.shuffle(datasets)
    again = split(Series("1.2.3.4", instances(datasets)))
    as_uids = [(s.key, [f.instance.sop_instance_uid for f in s.frames]) for s in again]
    assert as_uids == [(s.key, [f.instance.sop_instance_uid for f in s.frames]) for s in found]
    for stack in found:
        (alone,) = split(Series("1.2.3.4", stack.instances))
        assert (alone.key, alone.frames) == (stack.key, stack.frames)


@pytest.mark.parametrize("count", [-3, 2_000_000_000])
def test_a_number_of_frames_that_cannot_be_is_refused_before_it_fills_the_memory(count):
    with pytest.raises(UnreadableError, match=f"says that it has {count} frames"):
        split(as_series([plain(modality="US", NumberOfFrames=count)]))
