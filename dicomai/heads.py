"""Heads: what a bundle's networks give beside label maps, as `dicomai.toml` describes it.

`postprocessing` leaves each under a key of MONAI's data dictionary: class probabilities and numbers as a vector, boxes
with their labels and scores, and maps of probabilities or of what an answer rests on.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydicom.sr.coding import Code

from dicomai.parts import Channel, CodedConcept, Part

PRED = "pred"
"""MONAI's name (monai.utils.CommonKeys) of what comes out of the network; the label maps, where there are segments."""

Key = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Answer(Part):
    """`[[evaluation.answer]]`: one answer to a question.

    Attributes:
        code: what is answered, such as (52101004, SCT, Present).
        channel: of the vector, where its probability stands; None for the one that holds below a threshold.
        negative: whether it says that nothing was found.
    """

    code: CodedConcept
    channel: Channel | None = None
    negative: bool = False


class Question(Part):
    """`[[evaluation]]`: a question, and which value of a vector means which answer.

    Attributes:
        name: what is asked, such as (233604007, SCT, Pneumonia).
        site: where, if it is about a part of the images.
        key: under which the vector of probabilities lies.
        threshold: from which probability on the first answer holds, and below it the second; None where the most
            probable of several answers holds.
        answer: the answers; of equal probabilities the one that stands first holds.
    """

    name: CodedConcept
    site: CodedConcept | None = None
    key: Key = PRED
    threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    answer: Annotated[tuple[Answer, ...], Field(min_length=2)]

    @model_validator(mode="after")
    def _answerable(self) -> Self:
        asked, channels = self.name.meaning, [one.channel for one in self.answer]
        if self.threshold is not None and (len(channels) != 2 or channels[0] is None or channels[1] is not None):
            raise ValueError(
                f"with a threshold '{asked}' has two answers: one with a channel, and after it the one that holds below"
                " the threshold, without a channel"
            )
        if self.threshold is None and (None in channels or len(set(channels)) < len(channels)):
            raise ValueError(f"without a threshold each answer to '{asked}' has a channel of its own")
        if len({one.code for one in self.answer}) < len(channels):
            raise ValueError(f"two answers to '{asked}' bear the same code")
        return self


class Number(Part):
    """`[[score]]`: a number that is about no segment.

    Attributes:
        name: such as (112058, DCM, Calcium score).
        unit: a UCUM code.
        channel: of the vector, where it stands.
        key: under which the vector lies.
        site: where, if it is about a part of the images.
        method: how it is made, where a code exists.
    """

    name: CodedConcept
    unit: CodedConcept
    channel: Channel
    key: Key = PRED
    site: CodedConcept | None = None
    method: CodedConcept | None = None

    @model_validator(mode="after")
    def _in_ucum(self) -> Self:
        if self.unit.scheme_designator != "UCUM":
            raise ValueError(
                f"the unit of '{self.name.meaning}' is a code of UCUM, not of {self.unit.scheme_designator}"
            )
        return self


class Target(Part):
    """`[[detection]]`: what a label of a box means.

    Attributes:
        label: the label that the detector gives.
        type: what it is, such as (27925004, SCT, Nodule).
        category: of what kind that is (CID 7150).
        site: in which part of the body.
        min_probability: boxes with a lower score are left out.
    """

    label: Annotated[int, Field(ge=0)]
    type: CodedConcept
    category: CodedConcept
    site: CodedConcept
    min_probability: Share


class Boxes(Part):
    """`[boxes]`: where a detector's boxes lie in the data dictionary, and in which coordinates.

    Attributes:
        space: `RAS` or `LPS`, mm along the patient's axes, or `image`, voxels of the image that the network saw (a
            whole number is the centre of a voxel).
        mode: MONAI's name for the six numbers of a box: two corners, or centre and size.
        box: key of the boxes, (N, 6).
        label: key of their labels, (N,).
        score: key of their probabilities, (N,).
    """

    space: Literal["RAS", "LPS", "image"]
    mode: Literal["xyzxyz", "cccwhd"]
    box: Key = "box"
    label: Key = "label"
    score: Key = "label_scores"


class ProbabilityMaps(Part):
    """`[probabilities]`: maps of how probable each segment is, of which `[[segment]]` names the channels.

    Attributes:
        key: under which they lie, (channel, x, y, z), 0 to 1, on the grid of the source images.
    """

    key: Key

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.key == PRED:
            raise ValueError(
                f"'{PRED}' holds the labels: copy the probabilities before they become labels (CopyItemsd)"
            )
        return self


class SaliencyMap(Part):
    """`[saliency]`: how much each voxel counted for the answer, or another quantity of each voxel.

    Attributes:
        key: under which the map lies, (channel, x, y, z), on the grid of the source images.
        channel: which of its channels.
        quantity: what the values are.
        unit: a UCUM code.
        label: the same for people, at most 16 characters.
    """

    key: Key
    channel: Channel = 0
    quantity: CodedConcept
    unit: CodedConcept = Code("1", "UCUM", "no units")
    label: Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[ -\[\]-~]+$")] = "Saliency"


class Heads(Part):
    """All that a bundle gives beside label maps.

    Attributes:
        evaluation: questions that are answered in codes.
        score: numbers.
        detection: what the labels of boxes mean.
        boxes: where they lie; None where there are none.
        probabilities: where the segments' probabilities lie; None where they are not kept.
        saliency: what the answer rests on, or another quantity of each voxel; None where there is none.
    """

    evaluation: tuple[Question, ...] = ()
    score: tuple[Number, ...] = ()
    detection: tuple[Target, ...] = ()
    boxes: Boxes | None = None
    probabilities: ProbabilityMaps | None = None
    saliency: SaliencyMap | None = None

    @property
    def keys(self) -> frozenset[str]:
        """The keys of MONAI's data dictionary that these are read from, after postprocessing."""
        named = {one.key for one in self.vectors}
        named |= {self.boxes.box, self.boxes.label, self.boxes.score} if self.boxes else set()
        named |= {self.probabilities.key} if self.probabilities else set()
        return frozenset(named | ({self.saliency.key} if self.saliency else set()))

    @property
    def vectors(self) -> tuple[Question | Number, ...]:
        """What is read of a vector."""
        return (*self.evaluation, *self.score)

    @model_validator(mode="after")
    def _detected(self) -> Self:
        if bool(self.detection) != (self.boxes is not None):
            raise ValueError("[[detection]] and [boxes] stand together, or neither does")
        if len({one.label for one in self.detection}) < len(self.detection):
            raise ValueError("two entries of [[detection]] bear the same label")
        return self
