"""A document inside of a DICOM object: the Encapsulated Document modules (PS3.3 C.24.1, C.24.2) of PDF and STL."""

from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicomai.outputs.common import begin, code_item, references
from dicomai.outputs.provenance import Predecessor, Provenance, Sources
from dicomai.study import Frame


@dataclass(frozen=True, slots=True)
class Kind:
    """What sort of document an object holds.

    Attributes:
        output: its name, as in a route.
        sop_class_uid: of the object.
        modality: of its series.
        mime_type: of the document.
    """

    output: str
    sop_class_uid: str
    modality: str
    mime_type: str


def encapsulate(
    document: bytes, kind: Kind, title: str, concept: Code | None, sources: Sources, provenance: Provenance
) -> Dataset:
    """Put a document into an object; `common.finish` adds what all results have.

    Args:
        document: its bytes; one is added where their number is odd, and the length says how many there were.
        kind: what sort of document it is.
        title: Document Title (0042,0010).
        concept: the title as a code; None where none is right.
        sources: the images that it was derived from.
        provenance: who made it, and under which identifiers.
    """
    made = begin(kind.output, kind.sop_class_uid, kind.modality, provenance)
    made.AcquisitionDateTime = None
    made.BurnedInAnnotation = "NO"  # nothing in it says who the patient is, or when the images were made
    made.SourceInstanceSequence = instances(sources)
    made.DocumentTitle = title
    made.ConceptNameCodeSequence = [code_item(concept)] if concept else []
    made.VerificationFlag = "UNVERIFIED"
    made.MIMETypeOfEncapsulatedDocument = kind.mime_type
    made.EncapsulatedDocument = document + bytes(len(document) % 2)
    made.EncapsulatedDocumentLength = len(document)
    predecessor = provenance.predecessor(kind.output)
    if predecessor is not None:
        made.PredecessorDocumentsSequence = [_previous(predecessor)]
    return made


def instances(sources: Sources) -> list[Dataset]:
    """Name the images that a document was derived from, whole (PS3.3 Table 10-11)."""
    return references(Frame(instance, None) for instance in sources.instances)


def _previous(predecessor: Predecessor) -> Dataset:
    """Name the document that this one replaces (Hierarchical SOP Instance Reference Macro, PS3.3 C.17.2.1)."""
    study, series, document = Dataset(), Dataset(), Dataset()
    document.ReferencedSOPClassUID = predecessor.sop_class_uid
    document.ReferencedSOPInstanceUID = predecessor.sop_instance_uid
    series.SeriesInstanceUID, series.ReferencedSOPSequence = predecessor.series_instance_uid, [document]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = predecessor.study_instance_uid, [series]
    return study
