"""Images are held against what the bundle takes before a pixel is read: every one of them."""

from typing import Any

import pytest

from dicomai import bundle
from dicomai.analysis import check
from dicomai.errors import NotAcceptedError
from dicomai.routing import OutsideValidated
from dicomai.stacks import split
from dicomai.study import Stack
from tests import synthetic


def stack_in_which_one_slice_differs(at: int, keyword: str, odd: str, usual: str | None) -> Stack:
    changes: dict[str, Any] = {keyword: lambda z: odd if z == at else usual}
    made = synthetic.series(modality="MR", shape=(3, 4, 4), RepetitionTime="600", EchoTime="12", **changes)
    (stack,) = split(synthetic.as_series(made))
    return stack


@pytest.mark.parametrize("at", [0, 1, 2])
def test_one_slice_of_another_modality_is_refused(at: int) -> None:
    brain = bundle.find("brain_extraction", bundle.packaged())
    stack = stack_in_which_one_slice_differs(at, "Modality", "CT", "MR")
    with pytest.raises(NotAcceptedError, match="takes MR, this series is CT"):
        check(brain, {"image": stack}, OutsideValidated.REPORT)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_one_slice_outside_of_what_was_validated_puts_the_stack_outside(at: int) -> None:
    brain = bundle.find("brain_extraction", bundle.packaged())
    stack = stack_in_which_one_slice_differs(at, "ContrastBolusAgent", "Gadobutrol", None)
    (remark,) = check(brain, {"image": stack}, OutsideValidated.REPORT)
    assert "ContrastBolusAgent Gadobutrol" in remark
    with pytest.raises(NotAcceptedError, match="Gadobutrol"):
        check(brain, {"image": stack}, OutsideValidated.REFUSE)
