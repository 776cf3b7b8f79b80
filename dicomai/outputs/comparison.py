"""Comparison with an earlier result, as a part of the structured report: both numbers, each with unit and day.

The earlier numbers stand in groups of their own (PS3.16 TID 1501) with their time point (TID 1502), beside a reference
to the report that they come from. PS3.16 has no code for the change of a measurement in time: that is said in words.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from highdicom.sr import (
    CompositeContentItem,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    FindingSite,
    Measurement,
    MeasurementsAndQualitativeEvaluations,
    TextContentItem,
    TimePointContext,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from dicomai import words
from dicomai.findings import Findings
from dicomai.outputs.common import stand_in, tracking
from dicomai.outputs.document import CONTAINS
from dicomai.outputs.groups import identified, made_by
from dicomai.outputs.priors import COMPARISON, NoPrior, Number, Prior, Quantity
from dicomai.outputs.provenance import Provenance
from dicomai.quantities import MR_SIGNAL, QUANTITIES, SUV, Kind

_CAUTION = (
    "A difference may come from the images, their settings or the algorithm as well as from the patient; no person has"
    " verified it."
)


def build(findings: Findings, provenance: Provenance) -> ContainerContentItem | None:
    """Compare with the earlier result of the provenance; None where none was asked for."""
    if provenance.prior is None:
        return None
    container = ContainerContentItem(COMPARISON, relationship_type=CONTAINS)
    container.ContentSequence = ContentSequence([*_content(provenance.prior, findings, provenance)])
    return container


def evidence(provenance: Provenance) -> list[Dataset]:
    """Stand for the earlier report, if there is one; it lies in another study (Pertinent Other Evidence, C.17.2)."""
    prior = provenance.prior
    if not isinstance(prior, Prior):
        return []
    named = (prior.study_instance_uid, prior.series_instance_uid, prior.sop_class_uid, prior.sop_instance_uid)
    return [stand_in(*named)]


def _content(prior: Prior | NoPrior, findings: Findings, provenance: Provenance) -> Iterator[ContentItem]:
    if isinstance(prior, NoPrior):
        yield _comment(f"Not compared with an earlier result: {prior.why}")
        return
    other = _other(prior, provenance)
    if prior.undated:
        yield _comment(
            f"Not looked at: results of other studies whose images cannot be read ({prior.undated}); one of them may be"
            " later than the one that is compared with."
        )
    sentences = [other] if other else _changes(prior, list(_current(findings, provenance)), provenance.algorithm.name)
    yield from map(_comment, sentences)
    yield CompositeContentItem(
        codes.DCM.PriorReportForCurrentPatient, prior.sop_class_uid, prior.sop_instance_uid, CONTAINS
    )
    for one in () if other else prior.numbers:
        yield from _group(one, prior, provenance)


def _current(findings: Findings, provenance: Provenance) -> Iterator[Number]:
    """Give the numbers of this run as its report has them: to six digits, under the same identifiers."""
    for index, layer in enumerate(findings.layers):
        for segment in layer.segments:
            identifier, uid = tracking(provenance, index, segment)
            for one in findings.measurements:
                if one.segment == segment:
                    value = float(f"{one.value:.6g}")
                    site = segment.finding_site
                    yield Number(identifier, uid, one.name, value, one.unit, one.method, one.derivation, site)
    for n, score in enumerate(findings.scores, start=1):
        identifier, uid = identified(score.name, "score", n, provenance)
        value = float(f"{score.value:.6g}")
        yield Number(identifier, uid, score.name, value, score.unit, score.method, site=score.site, is_score=True)


def _other(prior: Prior, provenance: Provenance) -> str:
    """Say why numbers are not comparable, as they were measured otherwise; empty where they were measured alike."""
    if prior.device_uid != provenance.algorithm.device_uid:
        how = f"by another version, {prior.algorithm}: versions may measure differently"
    elif prior.bundle_digest is None:
        how = f"by {prior.algorithm}, and with which settings of it is not known: others may measure differently"
    elif prior.bundle_digest != provenance.algorithm.bundle_digest:
        how = f"by {prior.algorithm} with other settings of it: they may measure differently"
    else:
        return ""
    return f"The result of {prior.day} was measured {how}, and no difference is given."


def _changes(prior: Prior, numbers: Sequence[Number], algorithm: str) -> Iterator[str]:
    """Say of each number what it was, and of those that have no counterpart that they have none."""
    now, then = _by_quantity(numbers), _by_quantity(prior.numbers)
    abouts = _abouts({**then, **now}, algorithm)
    for key, one in now.items():
        said = f"{abouts[key]} {words.amount(one.value, one.unit)} on {prior.compared_on}"
        yield f"{said}; {_before(one, then[key], prior)}." if key in then else f"{said}; not measured on {prior.day}."
    for key, one in then.items():
        if key not in now:
            value = words.amount(one.value, one.unit)
            yield f"{abouts[key]} {value} on {prior.day}; not measured on {prior.compared_on}."
    yield f"Compared with the result of {prior.algorithm} on the study of {prior.day}. {_CAUTION}"


def _by_quantity(numbers: Sequence[Number]) -> dict[Quantity, Number]:
    """Sort numbers by what they are of; what a report says twice is left out, as it is not known which is meant."""
    times = Counter(one.quantity for one in numbers)
    return {one.quantity: one for one in numbers if times[one.quantity] == 1}


def _abouts(numbers: Mapping[Quantity, Number], algorithm: str) -> dict[Quantity, str]:
    """Name what was measured, such as 'Liver: Volume' or 'Calcium score, Right coronary artery'.

    Where that does not tell two of them apart, with all that does: number or label, place and method.
    """
    short = {key: _about(one, algorithm) for key, one in numbers.items()}
    times = Counter(short.values())
    return {key: short[key] if times[short[key]] == 1 else _about(numbers[key], algorithm, fully=True) for key in short}


def _about(one: Number, algorithm: str, *, fully: bool = False) -> str:
    tracked = one.identifier.removeprefix(f"{algorithm}: ")
    quantity = ", ".join(code.meaning for code in (one.name, one.derivation) if code)
    if not fully:
        return words.named(one.name, one.site) if one.is_score else f"{tracked}: {quantity}"
    told = [tracked, *(code.meaning for code in (one.site, one.method) if code)]
    return ", ".join(told) if one.is_score else f"{', '.join(told)}: {quantity}"


def _before(one: Number, before: Number, prior: Prior) -> str:
    """Say what a number was, and by how much it differs where that means something."""
    said = f"{words.amount(before.value, before.unit)} on {prior.day}"
    if one.unit != before.unit:
        return f"{said}, in another unit, so that no difference is given"
    if one.name == MR_SIGNAL:  # its unit is of this one acquisition
        return f"{said}, which is not comparable"
    difference = one.value - before.value
    if not difference:
        return f"{said} (no difference)"
    change = f"{'+' if difference > 0 else '-'}{words.amount(abs(difference), one.unit)}"
    if before.value > 0 and _has_natural_zero(one):
        change += f", {100 * difference / before.value:+.1f} %"
    return f"{said} ({change})"


def _has_natural_zero(one: Number) -> bool:
    """Tell whether a ratio means something: half a volume is half, half an attenuation or a grade is nothing."""
    known = QUANTITIES.get(one.name)
    return known is not None and (known.kind is not Kind.INTENSITY or one.name == SUV)


def _group(one: Number, prior: Prior, provenance: Provenance) -> MeasurementsAndQualitativeEvaluations:
    """Hold an earlier number under its own identifiers, and say when it was measured."""
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=one.uid, identifier=one.identifier),
        algorithm_id=made_by(provenance),
        finding_sites=[FindingSite(one.site)] if one.site else None,
        time_point_context=TimePointContext(
            f"Study of {prior.day}", subject_time_point_identifier=prior.study_instance_uid
        ),
        measurements=[
            Measurement(name=one.name, value=one.value, unit=one.unit, method=one.method, derivation=one.derivation)
        ],
    )


def _comment(sentence: str) -> TextContentItem:
    return TextContentItem(codes.DCM.Comment, sentence, CONTAINS)
