"""Modality Performed Procedure Step SCP (PS3.4 F.7): the modality says what it made, and when it has ended.

Kept is what completeness needs: the state, and which instances each series has. There is no N-GET, and nothing of the
patient is kept.
"""

from typing import ClassVar

import structlog
from pydicom.dataset import Dataset

from dicomai.database.announcements import Announcements, Said, StepChange
from dicomai.database.completeness import StepState
from dicomai.log import trace_id
from dicomai.receiver import references
from dicomai.receiver.references import DUPLICATE, INVALID_VALUE, MISSING_VALUE, SUCCESS, RefusedError
from dicomai.receiver.services import PROCESSING_FAILURE, Answer, Request, Service

log = structlog.get_logger()

NO_SUCH_INSTANCE = 0x0112
"""Status (PS3.7 C.5.19): nothing of this UID is here."""

NO_LONGER = Answer(PROCESSING_FAILURE, "Performed Procedure Step Object may no longer be updated", error_id=0xA710)
"""To whoever changes a step that has ended (PS3.4 F.7.2.2.2)."""

INCORRECT_WORKLIST_ENTRY = ("110514", "DCM")
"""Reason to discontinue (PS3.16 CID 9300): the images may be another patient's."""

# Of type 1 for the SCU in N-CREATE (PS3.4 Table F.7.2-1). Type 2 ones are not asked for: what is not there is no less
# known than what is empty, and a modality is not to stop for it.
_REQUIRED = (
    "ScheduledStepAttributesSequence",
    "PerformedProcedureStepID",
    "PerformedStationAETitle",
    "PerformedProcedureStepStartDate",
    "PerformedProcedureStepStartTime",
    "PerformedProcedureStepStatus",
    "Modality",
)


class ProcedureSteps(Service):
    """Takes N-CREATE and N-SET of procedure steps."""

    SOP_CLASSES: ClassVar = {"1.2.840.10008.3.1.2.3.3": "Modality Performed Procedure Step SOP Class"}

    def __init__(self, announcements: Announcements) -> None:
        """Write down what is said."""
        self._announcements = announcements

    def n_create(self, request: Request) -> Answer:
        """Begin a step, which must be IN PROGRESS."""
        try:
            step = references.own_uid(request)
            for keyword in _REQUIRED:
                references.value(request.ds, keyword)
            state = _state(request.ds)
            study = references.uid(
                next(references.items(request.ds, "ScheduledStepAttributesSequence")), "StudyInstanceUID"
            )
            series = performed_series(request.ds)
        except RefusedError as refused:
            return _refuse(request, refused.answer)
        if state is not StepState.IN_PROGRESS:
            return _refuse(request, Answer(INVALID_VALUE, "PerformedProcedureStepStatus must be IN PROGRESS"))
        if not self._announcements.begin_step(step, request.calling_ae, study, series):
            return _refuse(request, Answer(DUPLICATE, "There is a procedure step of this SOP Instance UID"))
        log.info("procedure step begun", study=trace_id(study), sop_instance_uid=step, calling_ae=request.calling_ae)
        return Answer(SUCCESS)

    def n_set(self, request: Request) -> Answer:
        """Change a step that is in progress, or end it."""
        try:
            step = references.own_uid(request)
            state = _state(request.ds) if "PerformedProcedureStepStatus" in request.ds else StepState.IN_PROGRESS
            series = performed_series(request.ds) if "PerformedSeriesSequence" in request.ds else None
        except RefusedError as refused:
            return _refuse(request, refused.answer)
        wrong = state is StepState.DISCONTINUED and _is_wrong_entry(request.ds)
        match self._announcements.change_step(step, request.calling_ae, state, series, wrong_entry=wrong):
            case StepChange.UNKNOWN:
                return _refuse(request, Answer(NO_SUCH_INSTANCE, "There is no such procedure step"))
            case StepChange.ENDED:
                return _refuse(request, NO_LONGER)
            case StepChange.EMPTY:
                return _refuse(request, Answer(MISSING_VALUE, "PerformedSeriesSequence has no value"))
            case StepChange.DONE:
                log.info(
                    f"procedure step {state.lower()}",
                    sop_instance_uid=step,
                    calling_ae=request.calling_ae,
                    series=None if series is None else len(series),
                )
                return Answer(SUCCESS)


def performed_series(ds: Dataset) -> list[Said]:
    """Read the Performed Series Sequence (PS3.3 C.4.15); a series that is named twice has the instances of both.

    Raises:
        RefusedError: an item lacks a UID.
    """
    made: dict[str, set[str]] = {}
    for item in references.items(ds, "PerformedSeriesSequence"):
        instances = made.setdefault(references.uid(item, "SeriesInstanceUID"), set())
        for keyword in ("ReferencedImageSequence", "ReferencedNonImageCompositeSOPInstanceSequence"):
            instances.update(references.uid(one, "ReferencedSOPInstanceUID") for one in references.items(item, keyword))
    return [Said(uid, tuple(sorted(instances))) for uid, instances in made.items()]


def _is_wrong_entry(ds: Dataset) -> bool:
    """Tell whether a step was discontinued because it was begun for what is not in its images (PS3.16 CID 9300)."""
    reasons = ds.get("PerformedProcedureStepDiscontinuationReasonCodeSequence") or ()
    return any(
        (str(reason.get("CodeValue")), str(reason.get("CodingSchemeDesignator"))) == INCORRECT_WORKLIST_ENTRY
        for reason in reasons
        if isinstance(reason, Dataset)
    )


def _state(ds: Dataset) -> StepState:
    text = str(references.value(ds, "PerformedProcedureStepStatus"))
    if text not in set(StepState):
        raise RefusedError(INVALID_VALUE, "PerformedProcedureStepStatus is none that there is")
    return StepState(text)


def _refuse(request: Request, answer: Answer) -> Answer:
    log.warning(
        f"procedure step refused with {answer.status:04X}: {answer.comment}",
        remedy="look at the modality's log; its series wait for the quiet period as without a procedure step",
        sop_instance_uid=request.sop_instance_uid,
        calling_ae=request.calling_ae,
    )
    return answer
